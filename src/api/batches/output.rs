//! Lines of the files that a batch ends with.

use bytes::Bytes;
use serde_json::{Value, json};

use super::wire::line_id;
use crate::api::error::ApiError;
use crate::api::wire::{ErrorBody, ErrorEnvelope};
use crate::jobs::JobFailure;
use crate::jobs::batches::{BatchId, LinePart, SettledLine};

/// A request of a batch that has come to something.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) batch: BatchId,
    /// Its place in the input file.
    pub(super) number: u64,
    /// What its client calls it; absent of a line that cannot be read any more.
    pub(super) custom_id: Option<String>,
}

/// Why a request was never made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotMade {
    Expired,
    Cancelled,
    /// Nobody knows any more what it was.
    InputGone,
}

impl Answered {
    /// With the reply that the endpoint would have given.
    pub(super) fn succeeded(&self, job: &str, body: &[u8]) -> SettledLine {
        let id = Value::from(line_id(self.batch, self.number));
        let custom_id = json!(self.custom_id);
        let job = Value::from(job);
        let head = format!(
            r#"{{"id":{id},"custom_id":{custom_id},"response":{{"status_code":200,"request_id":{job},"body":"#
        );
        let mut line = Vec::with_capacity(head.len() + body.len() + 16);
        line.extend_from_slice(head.as_bytes());
        // Within texts JSON has no line breaks; between its parts they are blanks.
        line.extend(body.iter().map(|byte| if b"\r\n".contains(byte) { b' ' } else { *byte }));
        line.extend_from_slice(b"},\"error\":null}\n");
        self.settled(LinePart::Output, line)
    }

    /// With the error that its job came to.
    pub(super) fn failed(&self, job: &str, failure: JobFailure) -> SettledLine {
        let JobFailure { message, kind, param, code, status } = failure;
        let error = ErrorBody { message, kind, param, code };
        self.answered((status, job), &ErrorEnvelope { error })
    }

    /// With the error that kept it from becoming a job.
    pub(super) fn refused(&self, error: &ApiError) -> SettledLine {
        let request = line_id(self.batch, self.number);
        self.answered((error.status().as_u16(), &request), &error.body())
    }

    fn answered(&self, (status, request): (u16, &str), body: &ErrorEnvelope) -> SettledLine {
        let response = json!({"status_code": status, "request_id": request, "body": body});
        self.error_line(response, Value::Null)
    }

    /// Without an answer, for it was not made.
    pub(super) fn not_made(&self, why: NotMade) -> SettledLine {
        let (code, message) = match why {
            NotMade::Expired => (
                "batch_expired",
                "This request was not made before the completion window was over.",
            ),
            NotMade::InputGone => ("invalid_input_file", "The file of the batch is lost."),
            NotMade::Cancelled => {
                ("batch_cancelled", "This request was not made before the batch was cancelled.")
            }
        };
        self.error_line(Value::Null, json!({"code": code, "message": message}))
    }

    fn error_line(&self, response: Value, error: Value) -> SettledLine {
        let line = json!({
            "id": line_id(self.batch, self.number),
            "custom_id": self.custom_id,
            "response": response,
            "error": error,
        });
        self.settled(LinePart::Error, format!("{line}\n").into_bytes())
    }

    fn settled(&self, part: LinePart, content: Vec<u8>) -> SettledLine {
        SettledLine { number: self.number, part, content: Bytes::from(content) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_goes_into_its_line_as_it_is() {
        let custom_id = Some("\"quoted\"\n".to_owned());
        let answered = Answered { batch: BatchId::new(), number: 3, custom_id };

        let line = answered.succeeded("job_1", b"{\n \"a\": \"b\\n\"}");

        assert_eq!((line.number, line.part), (3, LinePart::Output));
        let text = std::str::from_utf8(&line.content).unwrap();
        assert_eq!(text.find('\n'), Some(text.len() - 1), "{text}");
        let read: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read["custom_id"], "\"quoted\"\n");
        assert_eq!(read["response"]["body"], json!({"a": "b\n"}));
        assert_eq!(
            (&read["response"]["request_id"], &read["error"]),
            (&json!("job_1"), &Value::Null)
        );
        let expired = answered.not_made(NotMade::Expired);
        let other: Value = serde_json::from_slice(&expired.content).unwrap();
        assert_eq!(other["id"], read["id"], "whoever writes it");
        assert_eq!(
            (&other["response"], &other["error"]["code"]),
            (&Value::Null, &json!("batch_expired"))
        );
    }
}
