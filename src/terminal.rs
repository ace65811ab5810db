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

/// Writes whole lines where the bars stand, which move down.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // At once: lines of other threads stay whole, too.
        let write = || io::stderr().write_all(bytes).map(|()| bytes.len());
        bars().map_or_else(write, |bars| bars.suspend(write))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
