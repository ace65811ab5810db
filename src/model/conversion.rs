//! `convert`: finds a component in a folder or a file, and has it written in another format.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::files::{self, ComponentError, ComponentSource};
use super::qwen_image::text_encoder::TextEncoder;
use super::{LoadError, location};
use crate::checkpoint::{
    ComponentLayout, Conversion, ConvertError, OutputFormat, Progress, Written,
};
use crate::hub::HubConfig;

/// A component of Qwen-Image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The diffusion transformer.
    Transformer,
    /// The language model that reads prompts, with its vision tower.
    TextEncoder,
    /// The autoencoder.
    Vae,
}

/// What is to be written, of what, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversionRequest {
    /// A file of weights, or a folder with a model or with such files.
    pub input: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// What to write it as.
    pub format: OutputFormat,
    /// Which component, if not the transformer or what alone is there.
    pub component: Option<Component>,
    /// Which published checkpoint the input is of, where it does not tell.
    pub variant: Option<String>,
    /// The published checkpoint, or a folder, that has the transformer's configuration.
    pub base: Option<String>,
    /// Whether a file that is there is replaced.
    pub replaces: bool,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// The component is not in the input, or its configuration is not known.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// It cannot be read or written so.
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

/// Writes the component that `request` asks for, and tells `on_progress` how far that is.
///
/// # Errors
/// A [`ConversionError`]; then the output is what it was before.
pub fn convert(
    request: &ConversionRequest,
    hub: &HubConfig,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(Component, Written), ConversionError> {
    let base_of = |id: &str| -> Result<_, LoadError> { location::base(id, hub) };
    let source = files::find_component(request, base_of)?;
    let ComponentSource { snapshot, component, has_zero_cond_t } = &source;
    let conversion = Conversion {
        snapshot,
        layout: component.layout(),
        format: request.format,
        mark: has_zero_cond_t.then_some(files::ZERO_COND_MARK),
        replaces: request.replaces,
    };
    let written = conversion.write(&request.output, on_progress)?;
    Ok((*component, written))
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Transformer, Self::TextEncoder, Self::Vae];

    /// Its folder in the published layout.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Transformer => files::TRANSFORMER,
            Self::TextEncoder => files::TEXT_ENCODER,
            Self::Vae => files::VAE,
        }
    }

    /// What its tensors are called.
    fn layout(self) -> ComponentLayout {
        let layout = ComponentLayout {
            folder: self.folder(),
            stem: "diffusion_pytorch_model",
            canonical: str::to_owned,
            blocks: &[],
            gguf_architecture: None,
        };
        match self {
            Self::Transformer => ComponentLayout {
                blocks: &["transformer_blocks."],
                gguf_architecture: Some("qwen_image"),
                ..layout
            },
            Self::TextEncoder => ComponentLayout {
                stem: "model",
                canonical: TextEncoder::canonical_name,
                blocks: &["model.layers.", "visual.blocks."],
                ..layout
            },
            Self::Vae => layout,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.folder())
    }
}

/// There is no such component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {}", Component::ALL.map(Component::folder).join(", "))]
pub struct UnknownComponent;

impl FromStr for Component {
    type Err = UnknownComponent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|component| component.folder() == text);
        known.ok_or(UnknownComponent)
    }
}
