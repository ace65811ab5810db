//! What settings say of webhooks.

use std::time::Duration;

use super::address::WebhookUrl;
use super::secret::WebhookSecret;

/// When a message is sent again that was not taken: the schedule of Standard Webhooks, cut
/// where jobs are forgotten. Six tries in less than eight hours.
const DELAYS: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
];

/// The settings of webhooks.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookConfig {
    /// Who is told of jobs for which nobody else is named.
    pub url: Option<WebhookUrl>,
    /// What messages are signed with; without it there are none.
    pub secret: Option<WebhookSecret>,
    /// Whether a request may name who is told.
    pub allow_requests: bool,
    /// Whether messages may go without TLS, and to addresses of private networks.
    pub allow_private: bool,
    /// How long to wait after each try that was in vain; after the last there is no other.
    pub delays: Vec<Duration>,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self {
            url: None,
            secret: None,
            allow_requests: false,
            allow_private: false,
            delays: DELAYS.into(),
        }
    }
}

impl WebhookConfig {
    /// When the next try is due after so many in vain; never if absent. `share`, from 0 to 1,
    /// says how much is added, of a fifth at most: not all that failed together come back so.
    #[must_use]
    pub fn delay_after(&self, tries: u32, share: f64) -> Option<Duration> {
        let index = usize::try_from(tries.checked_sub(1)?).ok()?;
        self.delays.get(index).map(|delay| delay.mul_f64(1.0 + share.clamp(0.0, 1.0) / 5.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_later_and_later_and_end() {
        let config = WebhookConfig::default();
        let delays: Vec<_> = (1..=6).map(|tries| config.delay_after(tries, 0.0)).collect();

        assert_eq!(delays[..5], DELAYS.map(Some));
        assert_eq!(delays[5], None);
        assert_eq!(config.delay_after(1, 1.0), Some(Duration::from_secs(6)));
        assert_eq!(config.delay_after(0, 0.0), None);
    }
}
