//! Choices that are written as words.

/// A text that names none of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct UnknownChoice {
    /// The choices there are.
    pub expected: &'static str,
}
