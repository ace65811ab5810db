//! What the tests of this layer share: the log of a piece of work.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// What is logged while it listens.
#[derive(Clone, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// What `work` makes, whose log is kept here.
    pub(super) fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        let log = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
        tracing::subscriber::with_default(subscriber.finish(), work)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
