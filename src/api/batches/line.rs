//! A line of a batch's file: a request, or what is wrong with it.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use crate::api::json::{Bounded, Object};
use crate::jobs::batches::BatchFault;
use crate::requests::{Fields, quote};

/// The longest name of a request, in characters.
const LONGEST_ID: usize = 512;

/// Values in a field besides the body that are looked at.
const MOST_VALUES: usize = 16;

/// A request of a batch.
#[derive(Debug)]
pub(super) struct LineRequest {
    /// What its client calls it.
    pub(super) custom_id: String,
    pub(super) fields: Fields,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineFault {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
}

impl LineFault {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None }
    }

    fn of(param: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(code, message) }
    }

    fn missing(param: &'static str) -> Self {
        let message = format!("Missing required parameter: '{param}'.");
        Self::of(param, "missing_required_parameter", message)
    }

    pub(super) fn too_long(max_bytes: usize) -> Self {
        let message = format!("This line is longer than the {max_bytes} bytes of a request.");
        Self::new("request_too_large", message)
    }

    pub(super) fn duplicate() -> Self {
        let message = "The custom_id of this request is that of another one: it must be unique \
                       within the batch.";
        Self::of("custom_id", "duplicate_custom_id", message)
    }

    /// The same, on line `number`.
    pub(super) fn at(self, number: u64) -> BatchFault {
        BatchFault {
            code: self.code.to_owned(),
            message: self.message,
            param: self.param.map(str::to_owned),
            line: Some(number),
        }
    }
}

/// What requests must be like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    /// The ways to write the address that they are sent to.
    pub(super) addresses: &'a [String],
    pub(super) max_fields: usize,
}

/// Takes a line apart. Not for the async runtime.
///
/// # Errors
/// The first thing that is wrong with it.
pub(super) fn read(line: &[u8], expected: Expected<'_>) -> Result<LineRequest, LineFault> {
    let raw = parse(line, expected.max_fields)?;
    let custom_id = text(raw.custom_id, "custom_id")?;
    if custom_id.is_empty() || custom_id.chars().count() > LONGEST_ID {
        let message = format!("Invalid 'custom_id': expected 1 to {LONGEST_ID} characters.");
        return Err(LineFault::of("custom_id", "invalid_value", message));
    }
    let method = text(raw.method, "method")?;
    if method != "POST" {
        let message = format!("Invalid 'method': expected 'POST', got '{}'.", quote(&method));
        return Err(LineFault::of("method", "invalid_method", message));
    }
    let url = text(raw.url, "url")?;
    if !expected.addresses.contains(&url) {
        let message = format!(
            "The URL of this request, '{}', is not the endpoint of the batch.",
            quote(&url)
        );
        return Err(LineFault::of("url", "invalid_url", message));
    }
    let fields = raw.body.ok_or_else(|| LineFault::missing("body"))?;
    Ok(LineRequest { custom_id, fields })
}

/// What a line has, unchecked.
#[derive(Default)]
struct Raw {
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
    body: Option<Fields>,
}

fn text(value: Option<Value>, param: &'static str) -> Result<String, LineFault> {
    match value {
        None | Some(Value::Null) => Err(LineFault::missing(param)),
        Some(Value::String(text)) => Ok(text),
        Some(_) => {
            let message = format!("Invalid type for '{param}': expected a text.");
            Err(LineFault::of(param, "invalid_type", message))
        }
    }
}

fn parse(line: &[u8], max_fields: usize) -> Result<Raw, LineFault> {
    let (mut refusal, mut is_in_body) = (None, false);
    let mut json = serde_json::Deserializer::from_slice(line);
    let parts = Parts { refusal: &mut refusal, is_in_body: &mut is_in_body, max_fields };
    let raw = json.deserialize_map(parts).and_then(|raw| json.end().map(|()| raw));
    raw.map_err(|error| match refusal {
        Some(refusal) => LineFault::of("body", "invalid_value", refusal),
        None if is_in_body && error.classify() == Category::Data => {
            LineFault::of("body", "invalid_type", "Invalid type for 'body': expected an object.")
        }
        None => LineFault::new("invalid_json_line", "This line is not parseable as valid JSON."),
    })
}

struct Parts<'a> {
    /// Why the body is not read on, if it is not for its grammar.
    refusal: &'a mut Option<String>,
    is_in_body: &'a mut bool,
    max_fields: usize,
}

impl<'de> Visitor<'de> for Parts<'_> {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        while let Some(name) = entries.next_key::<String>()? {
            let mut left = MOST_VALUES;
            let mut value = |entries: &mut A| entries.next_value_seed(Bounded { left: &mut left });
            match name.as_str() {
                "custom_id" => raw.custom_id = value(&mut entries)?,
                "method" => raw.method = value(&mut entries)?,
                "url" => raw.url = value(&mut entries)?,
                "body" => {
                    *self.is_in_body = true;
                    let (refusal, max_fields) = (&mut *self.refusal, self.max_fields);
                    let body = entries.next_value_seed(Object { refusal, max_fields })?;
                    *self.is_in_body = false;
                    raw.body = Some(body);
                }
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Result<LineRequest, LineFault> {
        let addresses = ["/v1/images/edits".to_owned()];
        read(line.as_bytes(), Expected { addresses: &addresses, max_fields: 4 })
    }

    #[test]
    fn a_line_is_a_request_whatever_the_order_of_its_parts() {
        let line = r#"{"body": {"prompt": "x", "n": 2}, "extra": [1, {"a": 2}],
            "url": "/v1/images/edits", "custom_id": "a", "method": "POST"} "#;

        let request = read_line(line).unwrap();

        assert_eq!((request.custom_id.as_str(), request.fields.left_over().len()), ("a", 2));
    }

    #[test]
    fn what_is_wrong_with_a_line_has_a_name() {
        let whole = r#"{"custom_id":"a","method":"POST","url":"/v1/images/edits","body":{}}"#;
        read_line(whole).unwrap();
        for (from, to, code, param) in [
            (whole, "nonsense", "invalid_json_line", None),
            (whole, "[]", "invalid_json_line", None),
            (r#"{}}"#, "{}", "invalid_json_line", None),
            (r#"{}}"#, "{}} {}", "invalid_json_line", None),
            (r#""custom_id":"a","#, "", "missing_required_parameter", Some("custom_id")),
            (r#""a""#, "null", "missing_required_parameter", Some("custom_id")),
            (r#""a""#, "7", "invalid_type", Some("custom_id")),
            (r#""a""#, r#""""#, "invalid_value", Some("custom_id")),
            (r#""method":"POST","#, "", "missing_required_parameter", Some("method")),
            ("POST", "GET", "invalid_method", Some("method")),
            ("edits", "generations", "invalid_url", Some("url")),
            (r#","body":{}"#, "", "missing_required_parameter", Some("body")),
            ("{}}", r#"{"a":1,"b":1,"c":1,"d":1,"e":1}}"#, "invalid_value", Some("body")),
            ("{}}", "[]}", "invalid_type", Some("body")),
            ("{}}", "null}", "invalid_type", Some("body")),
            ("{}}", r#"{"a" 1}}"#, "invalid_json_line", None),
        ] {
            let line = whole.replace(from, to);
            let fault = read_line(&line).unwrap_err();
            assert_eq!((fault.code, fault.param), (code, param), "{line}: {}", fault.message);
        }
    }
}
