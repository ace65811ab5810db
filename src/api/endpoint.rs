//! The three endpoints that make pictures.

use serde::{Deserialize, Serialize};

use super::form::Encodings;
use crate::service::Offer;

/// An endpoint that makes pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

    /// The media types that it takes.
    pub(super) fn encodings(self) -> Encodings {
        match self {
            Self::Edits => Encodings::JsonOrMultipart,
            Self::Generations => Encodings::Json,
            Self::Variations => Encodings::Multipart,
        }
    }

    /// The beginning of the names of its events.
    pub(super) fn event_prefix(self) -> &'static str {
        match self {
            Self::Edits | Self::Variations => "image_edit",
            Self::Generations => "image_generation",
        }
    }
}
