//! What messages are signed with.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// What every secret begins with.
const PREFIX: &str = "whsec_";
/// Bytes of a secret, by Standard Webhooks.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// What messages are signed with.
#[derive(Clone)]
pub struct WebhookSecret {
    text: String,
    key: hmac::Key,
}

impl WebhookSecret {
    /// The ways to write one.
    pub const EXPECTED: &str = "whsec_ with the base64 of 24 to 64 random bytes after it";

    /// The signature of a message, as its header has it.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut signing = hmac::Context::with_key(&self.key);
        signing.update(format!("{id}.{timestamp}.").as_bytes());
        signing.update(body);
        format!("v1,{}", STANDARD.encode(signing.sign()))
    }
}

impl PartialEq for WebhookSecret {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for WebhookSecret {
    /// Never the secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("WebhookSecret")
    }
}

/// A text that is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", WebhookSecret::EXPECTED)]
pub struct UnsuitableSecret;

impl FromStr for WebhookSecret {
    type Err = UnsuitableSecret;

    fn from_str(text: &str) -> Result<Self, UnsuitableSecret> {
        let base64 = text.strip_prefix(PREFIX).ok_or(UnsuitableSecret)?;
        let bytes = STANDARD.decode(base64).map_err(|_| UnsuitableSecret)?;
        if !LENGTHS.contains(&bytes.len()) {
            return Err(UnsuitableSecret);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Ok(Self { text: text.to_owned(), key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The example of Standard Webhooks, signed by its own library for Python.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let secret: WebhookSecret = SECRET.parse().unwrap();

        let body = br#"{"test": 2432232314}"#;
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);

        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_random_enough_and_never_printed() {
        assert_eq!(format!("{:?}", SECRET.parse::<WebhookSecret>().unwrap()), "WebhookSecret");
        for wrong in ["", "whsec_", &SECRET[6..], "whsec_c2hvcnQ=", &SECRET[..20], "whsec_?"] {
            assert_eq!(wrong.parse::<WebhookSecret>().err(), Some(UnsuitableSecret), "{wrong}");
        }
    }
}
