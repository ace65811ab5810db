//! How far a download is, for people and for the checks.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Whether to draw on the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A bar on standard error, which must be a terminal.
    Bar,
    /// A line in the log for each file.
    Log,
}

impl Progress {
    /// A bar if standard error is a terminal, else the log.
    #[must_use]
    pub fn for_terminal() -> Self {
        if std::io::stderr().is_terminal() { Self::Bar } else { Self::Log }
    }

    /// A bar of no length yet; files add theirs.
    pub(super) fn bar(self) -> ProgressBar {
        match self {
            Self::Log => ProgressBar::hidden(),
            Self::Bar => {
                let template =
                    "{bytes}/{total_bytes} [{bar:20}] {bytes_per_sec}, {eta} left  {wide_msg}";
                let style = ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new(0).with_style(style)
            }
        }
    }
}

/// Counts the bytes of one file: those received, and those that were there.
#[derive(Clone)]
pub(super) struct FileProgress {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
}

impl FileProgress {
    pub(super) fn new(bar: &ProgressBar) -> Self {
        Self { bar: bar.clone(), bytes: Arc::default() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl hf_hub::api::tokio::Progress for FileProgress {
    async fn init(&mut self, _size: usize, filename: &str) {
        self.bar.set_message(filename.to_owned());
    }

    async fn update(&mut self, size: usize) {
        self.bytes.fetch_add(size as u64, Ordering::Relaxed);
        self.bar.inc(size as u64);
    }

    async fn finish(&mut self) {}
}
