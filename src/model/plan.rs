//! What a model will take of its device, told before it is loaded.

use serde::Serialize;

/// Where a model's weights will lie, and what a picture takes besides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelPlan {
    /// The model's name.
    pub model: String,
    /// The pipeline class of `model_index.json`.
    pub pipeline: String,
    /// Where it runs.
    pub device: String,
    /// Dtype of the weights.
    pub dtype: String,
    /// Pixels of the picture that is planned for: width times height.
    pub image_area: usize,
    /// The parts of the model.
    pub components: Vec<PlannedComponent>,
    /// Bytes that a picture takes besides the weights, if the family tells.
    pub activation_bytes: Option<usize>,
    /// The most bytes that are taken at a time.
    pub total_bytes: usize,
    /// Bytes that were free when this was planned, if that can be told.
    pub free_bytes: Option<usize>,
}

/// A part of a model whose weights stay, or not, in one piece.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedComponent {
    /// Its name.
    pub name: &'static str,
    /// Bytes of its weights.
    pub bytes: usize,
    /// How many of these stay on the device; the others are read when they are needed.
    pub resident_bytes: usize,
}

impl PlannedComponent {
    /// One that stays as a whole.
    #[must_use]
    pub fn resident(name: &'static str, bytes: usize) -> Self {
        Self { name, bytes, resident_bytes: bytes }
    }
}

impl ModelPlan {
    /// Whether all of it is free, as far as can be told.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.free_bytes.is_none_or(|free| self.total_bytes <= free)
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.components.iter().map(|component| component.bytes).sum()
    }

    /// Bytes of those that stay.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.components.iter().map(|component| component.resident_bytes).sum()
    }
}
