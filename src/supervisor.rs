//! What systemd is told, where it started the program (`Type=notify`): elsewhere nothing is.

use std::time::Duration;

/// How often systemd hears that the start goes on.
const STILL_STARTING: Duration = Duration::from_secs(20);

/// The server takes requests.
pub fn ready() {
    #[cfg(unix)]
    notify(&[sd_notify::NotifyState::Ready]);
}

/// The settings are read again; [`ready`] ends that.
pub fn reloading() {
    #[cfg(unix)]
    {
        let now = sd_notify::NotifyState::monotonic_usec_now();
        let states = [Ok(sd_notify::NotifyState::Reloading), now];
        let states: Result<Vec<_>, _> = states.into_iter().collect();
        notify(&states.unwrap_or_default());
    }
}

/// The server takes no more requests.
pub fn stopping() {
    #[cfg(unix)]
    notify(&[sd_notify::NotifyState::Stopping]);
}

/// Asks for more time as long as it is polled: weights may have to be fetched first.
pub async fn ask_for_time() -> std::convert::Infallible {
    loop {
        #[cfg(unix)]
        notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(EXTENSION_US)]);
        tokio::time::sleep(STILL_STARTING).await;
    }
}

/// How much more time is asked for, in microseconds.
#[cfg(unix)]
const EXTENSION_US: u32 = 60_000_000;

/// Tells systemd, as often as it wants to hear it (`WatchdogSec=`), that the runtime lives.
pub async fn keep_watchdog() {
    #[cfg(unix)]
    if let Some(interval) = sd_notify::watchdog_enabled() {
        loop {
            notify(&[sd_notify::NotifyState::Watchdog]);
            tokio::time::sleep(interval / 2).await;
        }
    }
}

#[cfg(unix)]
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
