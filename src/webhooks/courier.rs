//! One try to deliver a message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reqwest13::dns::{Addrs, Name, Resolve, Resolving};
use reqwest13::header::CONTENT_TYPE;
use reqwest13::redirect::Policy;
use reqwest13::{Client, StatusCode};

use super::address::{WebhookUrl, is_public};
use super::config::WebhookConfig;
use super::secret::WebhookSecret;
use crate::causes;
use crate::tls;

/// How long a receiver may take to let the server in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take in all: what Standard Webhooks asks for, at least.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Debug, Clone)]
pub struct Message {
    /// The same at each try: by it a receiver knows what it has.
    pub id: String,
    /// JSON.
    pub body: Bytes,
}

/// What became of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver has it.
    Taken,
    /// The receiver wants nothing more.
    Unwanted,
    /// Another time, perhaps; why, for the log.
    Failed(String),
}

/// Who delivers. Clones share connections.
#[derive(Debug, Clone)]
pub struct Courier {
    client: Client,
    secret: WebhookSecret,
    allow_private: bool,
}

impl Courier {
    /// `None` where the settings have no secret.
    ///
    /// # Errors
    /// If there are no certificates to trust.
    pub fn new(config: &WebhookConfig) -> Result<Option<Self>, reqwest13::Error> {
        let Some(secret) = config.secret.clone() else { return Ok(None) };
        tls::install_provider();
        let allow_private = config.allow_private;
        let client = Client::builder()
            .dns_resolver(Arc::new(PublicNames { allow_private }))
            // Where it would lead nobody has looked at.
            .redirect(Policy::none())
            // A proxy would look names up by itself.
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // A message an hour keeps no connection.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Some(Self { client, secret, allow_private }))
    }

    /// Sends a message to `url`. Of the answer the status is looked at, and nothing is read.
    pub async fn deliver(&self, url: &WebhookUrl, message: &Message) -> Delivery {
        if let Err(fault) = url.check(self.allow_private) {
            return Delivery::Failed(format!("the settings do not allow it: {fault}"));
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let timestamp = since_1970.map_or(0, |time| time.as_secs());
        let signature = self.secret.sign(&message.id, timestamp, &message.body);
        let request = self
            .client
            .post(url.url().clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(message.body.clone());
        match request.send().await {
            Ok(response) => Delivery::by(response.status()),
            Err(error) => Delivery::Failed(causes::one_line(&error.without_url())),
        }
    }
}

impl Delivery {
    fn by(status: StatusCode) -> Self {
        match status {
            _ if status.is_success() => Self::Taken,
            StatusCode::GONE => Self::Unwanted,
            _ => Self::Failed(format!("the answer was {}", status.as_u16())),
        }
    }
}

/// Looks names up, and gives out addresses that messages may go to. What it gives out is what
/// is connected to: nothing is looked up in between.
#[derive(Debug)]
struct PublicNames {
    allow_private: bool,
}

/// A name that stands for no address that is everybody's.
#[derive(Debug, thiserror::Error)]
#[error("the name stands for no address that is public")]
struct NoPublicAddress;

impl Resolve for PublicNames {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let may_go = |address: &SocketAddr| allow_private || is_public(address.ip());
            let allowed: Vec<SocketAddr> = found.filter(may_go).collect();
            if allowed.is_empty() {
                return Err(NoPublicAddress.into());
            }
            let allowed: Addrs = Box::new(allowed.into_iter());
            Ok(allowed)
        })
    }
}
