//! Writes a component once more, in another format: safetensors in 32, 16 or 8 bits, or GGUF.
//!
//! A [`Conversion`] opens what is stored, in whatever way and under whatever names, plans what
//! becomes of each tensor, and writes one after another, some rows at a time: no more of them
//! is in memory. The file gets its name when it is complete. Names are those of the published
//! checkpoint; scales are spelled as ComfyUI does now (its `QUANTIZATION.md`), and GGUF is as
//! city96's converter writes it (ComfyUI-GGUF, `convert.py`).

mod encode;
mod error;
mod format;
mod output;
mod plan;
mod safetensors;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub use error::ConvertError;
pub use format::{OutputFormat, UnknownFormat};

use super::Snapshot;
use super::tensor_files::TensorFiles;
use output::{OutputFile, refuse_existing};

/// What a component's tensors are called, and where they are.
#[derive(Debug, Clone, Copy)]
pub struct ComponentLayout {
    /// Its folder in the published layout.
    pub folder: &'static str,
    /// The name of its weights there, without an ending.
    pub stem: &'static str,
    /// The published name of a stored one.
    pub canonical: fn(&str) -> String,
    /// What names of its blocks start with, before their numbers.
    pub blocks: &'static [&'static str],
    /// What GGUF files call its architecture, if it is written as such.
    pub gguf_architecture: Option<&'static str>,
}

/// A component, and what it is to become.
#[derive(Debug)]
pub struct Conversion<'a> {
    /// Where it is.
    pub snapshot: &'a Snapshot,
    /// Which component.
    pub layout: ComponentLayout,
    /// What to write it as.
    pub format: OutputFormat,
    /// A tensor without content that says something of the component by its name.
    pub mark: Option<&'static str>,
    /// Whether a file that is there is replaced.
    pub replaces: bool,
}

/// How far the writing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are written.
    pub bytes: u64,
    /// Bytes that will be.
    pub total: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Tensors, scales and marks aside.
    pub tensors: usize,
    /// Bytes of tensors.
    pub bytes: u64,
    /// How many tensors are in which encoding.
    pub encodings: BTreeMap<String, usize>,
}

impl ComponentLayout {
    /// The prefix of the block that the tensor `name` is in, the block's number, and the name
    /// inside it.
    fn place_of<'a>(&self, name: &'a str) -> Option<(&'static str, usize, &'a str)> {
        self.blocks.iter().find_map(|prefix| {
            let (number, inner) = name.strip_prefix(prefix)?.split_once('.')?;
            Some((*prefix, number.parse().ok()?, inner))
        })
    }

    fn is_in_block(&self, name: &str) -> bool {
        self.place_of(name).is_some()
    }
}

impl Conversion<'_> {
    /// Writes the file `output`, and tells `on_progress` how far it is.
    ///
    /// # Errors
    /// A [`ConvertError`] if the component cannot be read or written so. Then there is no file
    /// `output`, or the one before.
    pub fn write(
        &self,
        output: &Path,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, ConvertError> {
        let Self { snapshot, layout, format, .. } = self;
        check_ending(output, *format)?;
        refuse_existing(output, self.replaces)?;
        let files = TensorFiles::open(snapshot, layout.folder, layout.stem, layout.canonical)?;
        let shape_of = |name| Some((String::as_str(name), files.shape(name)?));
        let tensors: BTreeMap<&str, &[usize]> = files.names().filter_map(shape_of).collect();
        let planned = plan::plan(&tensors, layout, *format)?;
        let total = planned.iter().map(|tensor| tensor.bytes as u64).sum();
        let file = OutputFile::create(output, self.replaces, total)?;
        let mut bytes = 0;
        write::write(&files, &planned, self, &file, &mut |more| {
            bytes += more;
            on_progress(Progress { bytes, total });
        })?;
        file.publish()?;
        let mut encodings = BTreeMap::new();
        for tensor in &planned {
            *encodings.entry(tensor.encoding.to_string()).or_default() += 1;
        }
        Ok(Written { tensors: planned.len(), bytes: total, encodings })
    }
}

/// A file is called as what it is: programs go by that.
fn check_ending(output: &Path, format: OutputFormat) -> Result<(), ConvertError> {
    let ending = output.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    match ending.as_deref() == Some(format.ending()) {
        true => Ok(()),
        false => Err(ConvertError::Ending { path: output.to_owned(), format }),
    }
}
