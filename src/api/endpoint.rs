//! The three endpoints that make pictures.

use crate::service::Offer;

/// An endpoint that makes pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Edits,
    Generations,
    Variations,
}

impl Endpoint {
    /// What the model must do for it to be served.
    pub(super) fn offer(self) -> Offer {
        match self {
            Self::Edits => Offer::Edits,
            Self::Generations => Offer::Generations,
            Self::Variations => Offer::Variations,
        }
    }
}
