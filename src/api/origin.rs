//! Where a client believes this server to be.

use axum::http::{HeaderMap, header};

use super::ApiConfig;

/// Scheme, host and port of a request, for addresses in its reply: clients only
/// trust those of the origin that they already talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin(String);

impl Origin {
    /// One that was stored.
    pub(super) fn stored(text: String) -> Self {
        Self(text)
    }

    /// As it is stored.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The configured address, else what a trusted proxy says, else the `Host`.
    pub(super) fn of(headers: &HeaderMap, config: &ApiConfig) -> Self {
        if let Some(url) = &config.public_url {
            return Self(url.trim_end_matches('/').to_owned());
        }
        let text = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            // Of several proxies, the one nearest to the client.
            let first = value.split(',').next()?.trim();
            is_plain(first).then(|| first.to_owned())
        };
        let forwarded = |name| config.trust_forwarded_headers.then(|| text(name)).flatten();
        let host = forwarded("x-forwarded-host").or_else(|| text(header::HOST.as_str()));
        let host = host.unwrap_or_else(|| "localhost".to_owned());
        let is_https = forwarded("x-forwarded-proto").as_deref() == Some("https");
        Self(format!("{}://{host}", if is_https { "https" } else { "http" }))
    }

    pub(super) fn url_of(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

/// Whether `text` can be a host, a port and nothing else.
fn is_plain(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(is_part)
}
