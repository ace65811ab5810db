//! The messages, word for word.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::jobs::{ImageJob, JobEvent};
use crate::api::wire::ErrorBody;
use crate::domain::{FaultKind, ValidationError};
use crate::requests::{Endpoint, quote};

/// The longest name of a request, in bytes.
const LONGEST_ID: usize = 128;

/// What a client asks for.
pub(super) enum ClientMessage {
    /// `image.create`
    Create(Create),
    /// `image.cancel`: a request.
    Cancel { id: String },
    /// `job.follow`: from the event after `last` on.
    Follow { id: String, job: String, last: u64 },
    /// `job.unfollow`
    Unfollow { id: String },
}

/// A request for pictures.
pub(super) struct Create {
    pub(super) id: String,
    pub(super) endpoint: Endpoint,
    /// JSON, as the endpoint takes it.
    pub(super) body: Bytes,
    pub(super) idempotency_key: Option<String>,
}

/// A message that was not understood.
pub(super) struct Misunderstood {
    /// The request that it is about, if it said so.
    pub(super) id: Option<String>,
    pub(super) error: Box<ApiError>,
}

/// A message as it came. Further fields are refused, and so none are kept.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    endpoint: Option<&'a RawValue>,
    body: Option<&'a RawValue>,
    idempotency_key: Option<&'a RawValue>,
    job: Option<&'a RawValue>,
    last_event: Option<&'a RawValue>,
}

impl ClientMessage {
    /// Reads a message. Takes long for a large one.
    ///
    /// # Errors
    /// [`Misunderstood`] says what is wrong with it.
    pub(super) fn read(text: &Bytes) -> Result<Self, Misunderstood> {
        let envelope: Envelope = serde_json::from_slice(text).map_err(|error| {
            let error = quote(&error.to_string());
            let error = ApiError::Malformed(format!("The message is not understood: {error}."));
            Misunderstood { id: None, error: Box::new(error) }
        })?;
        let id = id_of(envelope.id);
        let known = id.as_ref().ok().cloned();
        let read = id.and_then(|id| envelope.meaning(id, text));
        read.map_err(|error| Misunderstood { id: known, error: Box::new(error.into()) })
    }
}

impl Envelope<'_> {
    fn meaning(&self, id: String, text: &Bytes) -> Result<ClientMessage, ValidationError> {
        let kind = required("type", self.kind)?;
        let of_create = [
            ("endpoint", self.endpoint),
            ("body", self.body),
            ("idempotency_key", self.idempotency_key),
        ];
        let of_follow = [("job", self.job), ("last_event", self.last_event)];
        match &*kind {
            "image.create" => {
                refuse(&of_follow, &kind)?;
                Ok(ClientMessage::Create(self.create(id, text)?))
            }
            "job.follow" => {
                refuse(&of_create, &kind)?;
                let job = required("job", self.job)?.into_owned();
                Ok(ClientMessage::Follow { id, job, last: number("last_event", self.last_event)? })
            }
            "image.cancel" | "job.unfollow" => {
                refuse(&of_create, &kind)?;
                refuse(&of_follow, &kind)?;
                let is_request = kind == "image.cancel";
                Ok(if is_request {
                    ClientMessage::Cancel { id }
                } else {
                    ClientMessage::Unfollow { id }
                })
            }
            other => Err(ValidationError::new(
                "type",
                FaultKind::Invalid,
                format!(
                    "Invalid value for 'type': '{}'. Supported values are 'image.create', \
                     'image.cancel', 'job.follow' and 'job.unfollow'.",
                    quote(other)
                ),
            )),
        }
    }

    fn create(&self, id: String, text: &Bytes) -> Result<Create, ValidationError> {
        let endpoint = match &*required("endpoint", self.endpoint)? {
            "edits" => Endpoint::Edits,
            "generations" => Endpoint::Generations,
            other => {
                let message = format!(
                    "Invalid value for 'endpoint': '{}'. Supported values are 'edits' and \
                     'generations'.",
                    quote(other)
                );
                return Err(ValidationError::new("endpoint", FaultKind::Invalid, message));
            }
        };
        let body = self.body.ok_or_else(|| missing("body"))?;
        Ok(Create {
            id,
            endpoint,
            body: text.slice_ref(body.get().as_bytes()),
            idempotency_key: word("idempotency_key", self.idempotency_key)?.map(Cow::into_owned),
        })
    }
}

fn id_of(value: Option<&RawValue>) -> Result<String, ValidationError> {
    let id = required("id", value)?;
    if (1..=LONGEST_ID).contains(&id.len()) {
        return Ok(id.into_owned());
    }
    let message = format!("Invalid 'id': expected a text of 1 to {LONGEST_ID} bytes.");
    Err(ValidationError::new("id", FaultKind::Invalid, message))
}

fn missing(name: &'static str) -> ValidationError {
    let message = format!("Missing required parameter: '{name}'.");
    ValidationError::new(name, FaultKind::Missing, message)
}

fn required<'a>(
    name: &'static str,
    value: Option<&'a RawValue>,
) -> Result<Cow<'a, str>, ValidationError> {
    word(name, value)?.ok_or_else(|| missing(name))
}

fn word<'a>(
    name: &'static str,
    value: Option<&'a RawValue>,
) -> Result<Option<Cow<'a, str>>, ValidationError> {
    let Some(value) = value else { return Ok(None) };
    let text = serde_json::from_str::<String>(value.get());
    text.map(|text| Some(Cow::Owned(text))).map_err(|_| wrong_type(name, "a text"))
}

fn number(name: &'static str, value: Option<&RawValue>) -> Result<u64, ValidationError> {
    let number = value.map(|value| serde_json::from_str(value.get()));
    let number = number.transpose().map_err(|_| wrong_type(name, "a whole number"))?;
    Ok(number.unwrap_or_default())
}

fn wrong_type(name: &'static str, expected: &str) -> ValidationError {
    let message = format!("Invalid type for '{name}': expected {expected}.");
    ValidationError::new(name, FaultKind::WrongType, message)
}

/// Refuses fields that go with another type.
fn refuse(fields: &[(&'static str, Option<&RawValue>)], kind: &str) -> Result<(), ValidationError> {
    let given = fields.iter().find(|(_, value)| value.is_some());
    given.map_or(Ok(()), |(name, _)| {
        let message = format!("Unsupported parameter: '{name}' does not go with '{kind}'.");
        Err(ValidationError::new(name, FaultKind::Unsupported, message))
    })
}

/// What a client is told.
#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum ServerMessage<'a> {
    #[serde(rename = "session.created")]
    Created {
        /// The largest message, in bytes.
        max_message_bytes: usize,
        /// Requests and jobs that may be open at a time.
        max_open: usize,
    },
    #[serde(rename = "image.queued")]
    Queued { id: &'a str, position: usize },
    #[serde(rename = "image.progress")]
    Progress {
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        stage: Option<&'static str>,
        picture: usize,
        pictures: usize,
        step: usize,
        total: Option<usize>,
        eta_ms: Option<u64>,
    },
    #[serde(rename = "image.completed")]
    Completed {
        id: &'a str,
        request_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        model_load_ms: Option<u64>,
        response: &'a RawValue,
    },
    #[serde(rename = "image.accepted")]
    Accepted { id: &'a str, request_id: &'a str, job: &'a RawValue },
    #[serde(rename = "image.failed")]
    Failed {
        id: &'a str,
        request_id: &'a str,
        status: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        error: ErrorBody,
    },
    #[serde(rename = "image.cancelled")]
    Cancelled { id: &'a str },
    #[serde(rename = "job.unfollowed")]
    Unfollowed { id: &'a str },
    #[serde(rename = "error")]
    Error { id: Option<&'a str>, status: u16, error: ErrorBody },
}

impl<'a> ServerMessage<'a> {
    /// How far a worker is with a request; `None` if that is nothing to tell.
    pub(super) fn of_job(id: &'a str, job: &ImageJob) -> Option<Self> {
        if let Some(position) = job.position {
            return Some(Self::Queued { id, position: usize::try_from(position).ok()? });
        }
        let (picture, pictures, step) = (job.picture?, job.seeds.len(), job.step?);
        let (total, eta_ms) = (job.total, job.eta_ms);
        Some(Self::Progress { id, stage: None, picture, pictures, step, total, eta_ms })
    }

    /// As it is sent.
    pub(super) fn written(&self) -> String {
        // Only maps with keys that are no strings fail, and there are none.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What an unfinished picture is told by.
#[derive(Debug, Clone, Copy)]
pub(super) enum PreviewKind {
    OfRequest,
    OfJob,
}

/// An unfinished picture: `event` is an `ImageEvent` as JSON. Takes long: not for the async
/// runtime.
///
/// # Errors
/// If it is no JSON.
pub(super) fn preview_message(
    kind: PreviewKind,
    id: &str,
    event: &str,
) -> serde_json::Result<String> {
    let kind = match kind {
        PreviewKind::OfRequest => "image.partial_image",
        PreviewKind::OfJob => "job.partial_image",
    };
    let mut message: Map<String, Value> = serde_json::from_str(event)?;
    message.insert("type".to_owned(), kind.into());
    message.insert("id".to_owned(), id.into());
    serde_json::to_string(&message)
}

/// How a job is that is followed.
#[derive(Serialize)]
pub(super) struct JobMessage<'a> {
    #[serde(rename = "type")]
    kind: String,
    id: &'a str,
    event: u64,
    job: ImageJob,
}

impl<'a> JobMessage<'a> {
    pub(super) fn written(id: &'a str, event: JobEvent) -> String {
        let JobEvent { name, number, job } = event;
        let message = Self { kind: format!("job.{name}"), id, event: number, job };
        serde_json::to_string(&message).unwrap_or_default()
    }
}
