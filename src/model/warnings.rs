//! What several families tell a client of how a picture was made.

/// That a text was longer than the encoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutTokens {
    /// How many of its tokens were left out: the last ones.
    pub cut: usize,
    /// How many it has.
    pub of: usize,
}

impl CutTokens {
    /// Of a text of `tokens` of which `kept` are read at most; `None` if it fits.
    #[must_use]
    pub fn beyond(kept: usize, tokens: usize) -> Option<Self> {
        let cut = tokens.saturating_sub(kept);
        (cut > 0).then_some(Self { cut, of: tokens })
    }

    /// The sentence for the client; `field` is where the text stood.
    #[must_use]
    pub fn sentence(self, field: &str) -> String {
        let Self { cut, of } = self;
        format!(
            "'{field}' is longer than this model reads: the last {cut} of its {of} tokens were cut."
        )
    }
}
