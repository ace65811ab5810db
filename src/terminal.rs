//! Standard error, which logs and bars share: lines stand above the bars, on a terminal.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The bars, if standard error is a terminal.
#[must_use]
pub(crate) fn bars() -> Option<&'static MultiProgress> {
    Some(&*BARS).filter(|bars| !bars.is_hidden())
}

/// Writes whole lines where the bars stand, which move down. What cannot be written, on a full
/// disk or into a pipe that nobody reads, is lost: a log ends nothing.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // At once: lines of other threads stay whole, too.
        let write = || _ = io::stderr().write_all(bytes);
        bars().map_or_else(write, |bars| bars.suspend(write));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        _ = io::stderr().flush();
        Ok(())
    }
}
