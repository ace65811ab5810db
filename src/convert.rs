//! `diffuser-api convert`: writes a model's weights in another format, with a bar on a
//! terminal.

use std::io::IsTerminal;

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use crate::hub::HubConfig;
use crate::model::{self, ConversionError, ConversionRequest};

/// Writes what `request` asks for; returns what was written, in words.
///
/// # Errors
/// A [`ConversionError`]; then the output is what it was before.
pub fn run(request: &ConversionRequest, hub: &HubConfig) -> Result<String, ConversionError> {
    let bar = bar();
    let (component, written) = model::convert(request, hub, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.bytes);
    })?;
    bar.finish_and_clear();
    let encodings = written.encodings.iter().map(|(name, count)| format!("{count} {name}"));
    Ok(format!(
        "{}: the {component}, {} tensors ({}), {}\n",
        request.output.display(),
        written.tensors,
        encodings.collect::<Vec<_>>().join(", "),
        BinaryBytes(written.bytes)
    ))
}

/// A bar on standard error, if that is a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bytes}/{total_bytes} [{wide_bar}] {bytes_per_sec}, {eta} left";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
