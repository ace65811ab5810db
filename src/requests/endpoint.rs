//! The three endpoints that make pictures.

use serde::{Deserialize, Serialize};

use crate::domain::TaskKind;

/// An endpoint that makes pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Endpoint {
    Edits,
    Generations,
    Variations,
}

impl Endpoint {
    /// What the model must offer for it to be served.
    pub(crate) fn task_kind(self) -> TaskKind {
        match self {
            Self::Edits => TaskKind::Edit,
            Self::Generations => TaskKind::TextToImage,
            Self::Variations => TaskKind::Variation,
        }
    }
}
