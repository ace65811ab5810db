//! What a picture takes, told once a model is loaded.

use super::ModelPlan;

/// What a picture of a model's own size takes here.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Where the weights lie, and the memory that a picture takes.
    pub plan: ModelPlan,
    /// Pixels of the picture.
    pub width: usize,
    /// Pixels of the picture.
    pub height: usize,
    /// Its steps.
    pub steps: usize,
    /// About how long it takes, in seconds; unknown where that is next to nothing.
    pub seconds: Option<f64>,
    /// What would make it sooner, for people.
    pub faster: Vec<String>,
    /// What each pixel takes beside the weights, if the family tells.
    pub bytes_per_pixel: Option<BytesPerPixel>,
}

/// Bytes of a device for each pixel of a picture, while it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BytesPerPixel {
    /// For each pixel that is made, at most.
    pub most: usize,
    /// For each pixel that the network sees, at least.
    pub least: usize,
}

impl Estimate {
    /// Where the weights lie, for people.
    #[must_use]
    pub fn weights(&self) -> String {
        let readable = |bytes: usize| indicatif::BinaryBytes(bytes as u64);
        let (all, stay) = (self.plan.weight_bytes(), self.plan.resident_bytes());
        let device = &self.plan.device;
        if stay == all {
            return format!("{} on {device}", readable(all));
        }
        let streamed = format!("{} read from their files when needed", readable(all - stay));
        if stay == 0 { streamed } else { format!("{} on {device}, {streamed}", readable(stay)) }
    }

    /// About how long a picture takes, for people: as exact as it is known.
    #[must_use]
    pub fn duration(&self) -> Option<String> {
        let seconds = self.seconds?;
        Some(match seconds {
            ..=90.0 => format!("{seconds:.0} s"),
            ..=5400.0 => format!("{:.0} min", seconds / 60.0),
            _ => format!("{:.1} h", seconds / 3600.0),
        })
    }
}
