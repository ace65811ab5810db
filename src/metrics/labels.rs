//! The values of labels: few, and of our own.

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A picture from words.
    Generation,
    /// A picture changed as words say.
    Edit,
    /// An edit with a mask.
    Inpainting,
    /// A picture like another.
    Variation,
}

impl Operation {
    pub(super) const ALL: [Self; 4] =
        [Self::Generation, Self::Edit, Self::Inpainting, Self::Variation];

    /// As a label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::Edit => "edit",
            Self::Inpainting => "inpainting",
            Self::Variation => "variation",
        }
    }
}

/// On what a request's time is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Files of clients to pictures.
    Decode,
    /// Prompts, and the pictures that are shown with them, to what steers the steps.
    EncodingPrompts,
    /// Pictures to latents, by the VAE.
    EncodingLatents,
    /// Noise to latents.
    Denoising,
    /// Latents to pictures, by the VAE.
    Decoding,
    /// Pictures to files, and these to a reply.
    Encode,
}

impl Stage {
    pub(super) const ALL: [Self; 6] = [
        Self::Decode,
        Self::EncodingPrompts,
        Self::EncodingLatents,
        Self::Denoising,
        Self::Decoding,
        Self::Encode,
    ];

    /// As a label: the names are those that `/health` and the log have.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::EncodingPrompts => "encoding_prompts",
            Self::EncodingLatents => "encoding_latents",
            Self::Denoising => "denoising",
            Self::Decoding => "decoding",
            Self::Encode => "encode",
        }
    }
}

/// How loading a model ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadOutcome {
    /// It is there.
    Loaded,
    /// It is not.
    Failed,
}

impl LoadOutcome {
    pub(super) const ALL: [Self; 2] = [Self::Loaded, Self::Failed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Failed => "failed",
        }
    }
}

/// The word that a client reads of an error, or `internal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub &'static str);

/// `method`, if it is one of HTTP's own; clients may write any word.
pub(super) fn folded_method(method: &str) -> &'static str {
    const USUAL: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    USUAL.into_iter().find(|usual| *usual == method).unwrap_or("other")
}
