//! Tells others that jobs have ended: `image.job.completed`, `.failed` or `.cancelled`, with the
//! job, to whoever its request, its key or the settings name.
//!
//! Which notices are due stands in the store, so that they survive the process, and any
//! process may send them: at least once, under a name that stays the same.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::wire::ImageJob;
use crate::api::ApiConfig;
use crate::api::access::Permit;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::causes;
use crate::domain::{FaultKind, ValidationError};
use crate::jobs::{JobRecord, JobState, Notice};
use crate::requests::Fields;
use crate::webhooks::{Courier, Delivery, Message, WebhookUrl};

/// The parameter by which a request names who is told.
const PARAMETER: &str = "webhook_url";
/// Notices that are sent at a time.
const AT_A_TIME: usize = 8;
/// How often it is looked whether one is due.
const LOOK: Duration = Duration::from_secs(1);
/// After how long another process may send what this one has taken up: longer than a try takes.
const LEASE: Duration = Duration::from_secs(60);
/// How long notices are still sent when the server ends.
const LAST_NOTICES: Duration = Duration::from_secs(5);

/// Takes from the fields of a job who is to be told of it.
///
/// # Errors
/// [`ValidationError`] if requests may not say so, or it is no address to which messages go.
pub(super) fn take_webhook(
    fields: &mut Fields,
    config: &ApiConfig,
) -> Result<Option<WebhookUrl>, ValidationError> {
    let Some(text) = fields.take_webhook()? else { return Ok(None) };
    if !config.webhooks.allow_requests {
        let message = format!(
            "Unsupported parameter: '{PARAMETER}' is not allowed by this server's settings \
             ('webhook.allow_requests')."
        );
        return Err(ValidationError::new(PARAMETER, FaultKind::Unsupported, message));
    }
    let url = WebhookUrl::parse(&text, config.webhooks.allow_private);
    url.map(Some).map_err(|fault| {
        let message = format!("Invalid '{PARAMETER}': {fault}.");
        ValidationError::new(PARAMETER, FaultKind::Invalid, message)
    })
}

/// Refuses that somebody is to be told of what is no job.
///
/// # Errors
/// [`ValidationError`].
pub(in crate::api) fn refuse_webhook(fields: &mut Fields) -> Result<(), ValidationError> {
    if fields.take_webhook()?.is_none() {
        return Ok(());
    }
    let message = format!("Unsupported parameter: '{PARAMETER}' needs 'background': true.");
    Err(ValidationError::new(PARAMETER, FaultKind::Unsupported, message))
}

/// Who is told of a job: whom the request names, or its key, or the settings.
pub(super) fn webhook_of(
    asked: Option<WebhookUrl>,
    permit: &Permit,
    config: &ApiConfig,
) -> Option<String> {
    let webhooks = &config.webhooks;
    webhooks.secret.as_ref()?;
    let url = asked.or_else(|| permit.webhook().cloned()).or_else(|| webhooks.url.clone());
    url.map(|url| url.as_str().to_owned())
}

/// What sends notices. Dropped, it ends at once; what was not sent is sent later.
pub(in crate::api) struct Notices {
    task: JoinHandle<()>,
    is_over: watch::Sender<bool>,
}

impl Notices {
    /// `None` where nobody is told of anything. Needs a runtime.
    pub(in crate::api) fn start(state: AppState) -> Option<Self> {
        let courier = match Courier::new(&state.config.webhooks) {
            Ok(courier) => courier?,
            Err(error) => {
                tracing::error!(cause = causes::one_line(&error), "webhooks cannot be sent");
                return None;
            }
        };
        let (is_over, over) = watch::channel(false);
        let sending = Sending { state, courier, in_hand: JoinSet::new() };
        Some(Self { task: tokio::spawn(sending.run(over)), is_over })
    }

    /// Sends what is due, if that is soon done.
    pub(in crate::api) async fn finish(mut self) {
        self.is_over.send_replace(true);
        if tokio::time::timeout(LAST_NOTICES, &mut self.task).await.is_err() {
            tracing::warn!("webhooks were not sent in time: the next start sends them");
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sending {
    state: AppState,
    courier: Courier,
    in_hand: JoinSet<()>,
}

impl Sending {
    async fn run(mut self, mut over: watch::Receiver<bool>) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            self.take_up().await;
            tokio::select! {
                _ = over.wait_for(|is_over| *is_over) => break,
                Some(_) = self.in_hand.join_next() => {}
                _ = look.tick() => {}
            }
        }
        // What has ended last is told of, too.
        loop {
            self.take_up().await;
            if self.in_hand.join_next().await.is_none() {
                break;
            }
        }
    }

    /// Sends what is due, as much as may be sent at a time.
    async fn take_up(&mut self) {
        while self.in_hand.len() < AT_A_TIME {
            match self.state.jobs.store.claim_notice(LEASE).await {
                Ok(None) => return,
                Ok(Some(notice)) => {
                    let (state, courier) = (self.state.clone(), self.courier.clone());
                    self.in_hand.spawn(async move { send(&state, &courier, notice).await });
                }
                Err(error) => {
                    let cause = causes::one_line(&error);
                    tracing::error!(cause, "no webhook can be looked up");
                    return;
                }
            }
        }
    }
}

/// Makes one try to send a notice, and says when the next one is due.
async fn send(state: &AppState, courier: &Courier, notice: Notice) {
    let Notice { job, webhook, tries } = notice;
    let id = job.id;
    let message = match message_of(job, state) {
        Ok(message) => message,
        Err(error) => return tracing::error!(%id, ?error, "a webhook cannot be written"),
    };
    // It was read when the job came, and is looked at again when it is sent.
    let delivery = match WebhookUrl::parse(&webhook, true) {
        Ok(url) => courier.deliver(&url, &message).await,
        Err(fault) => Delivery::Failed(fault.to_string()),
    };
    let again = match delivery {
        Delivery::Taken => {
            tracing::info!(%id, tries, "webhook sent");
            None
        }
        Delivery::Unwanted => {
            tracing::warn!(%id, tries, "webhook not sent: the receiver wants no more (410)");
            None
        }
        Delivery::Failed(cause) => {
            let again = state.config.webhooks.delay_after(tries, rand::random());
            let next_s = again.map(|again| again.as_secs());
            tracing::warn!(%id, tries, next_s, cause, "webhook not sent");
            again
        }
    };
    if let Err(error) = state.jobs.store.settle_notice(id, tries, again).await {
        // It is sent again then: the receiver knows it by its name.
        let cause = causes::one_line(&error);
        tracing::error!(%id, cause, "what became of a webhook cannot be stored");
    }
}

/// A notice, as it is sent.
#[derive(Serialize)]
struct JobNotice {
    #[serde(rename = "type")]
    kind: String,
    /// When the job ended.
    timestamp: String,
    data: ImageJob,
}

fn message_of(job: JobRecord, state: &AppState) -> Result<Message, ApiError> {
    let event = match job.state {
        JobState::Succeeded => "completed",
        JobState::Cancelled => "cancelled",
        JobState::Failed | JobState::Queued | JobState::Running => "failed",
    };
    let ended_ms = i64::try_from(job.ended_ms.unwrap_or(job.created_ms)).unwrap_or_default();
    let timestamp = DateTime::from_timestamp_millis(ended_ms).unwrap_or_default();
    let id = format!("msg_{}_{event}", job.id);
    let notice = JobNotice {
        kind: format!("image.job.{event}"),
        timestamp: timestamp.to_rfc3339_opts(SecondsFormat::Millis, true),
        data: ImageJob::of(job, state),
    };
    let body = serde_json::to_vec(&notice).map_err(|error| ApiError::internal(&error))?;
    Ok(Message { id, body: body.into() })
}
