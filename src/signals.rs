//! What the system tells the process by signals.

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-c, and on Unix SIGTERM.
    Stop,
    /// On Unix SIGHUP: read the settings again that can change while the server runs.
    Reload,
}

/// The signals that the program waits for.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on the signals no longer end the program by themselves.
    ///
    /// # Errors
    /// If the system lets nobody listen for them.
    pub fn new() -> std::io::Result<Self> {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            #[cfg(unix)]
            terminate: signal(SignalKind::terminate())?,
            #[cfg(unix)]
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        // Where ctrl-c cannot be had, SIGTERM is left.
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        #[cfg(unix)]
        tokio::select! {
            () = interrupt => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
        }
        #[cfg(not(unix))]
        {
            interrupt.await;
            Signal::Stop
        }
    }

    /// Completes with the first signal to stop; `reload` is called for each other one.
    pub async fn stop(&mut self, mut reload: impl FnMut()) {
        while self.next().await == Signal::Reload {
            reload();
        }
    }
}
