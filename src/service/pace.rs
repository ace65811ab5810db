//! How long requests take: learned from those that were made.

use std::collections::BTreeMap;

use crate::domain::{ImageRequest, OutputSize, Task, TaskKind};
use crate::model::{EditKind, ModelCard};

/// The share of the last picture in what is learned.
const LATEST: f64 = 0.25;
/// Seconds of a pass over a megapixel, before anything has been measured.
const UNKNOWN_S: f64 = 1.0;
const MEGAPIXEL: f64 = (1 << 20) as f64;

/// How much work a request is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// Megapixels that the network sees in a pass: of the picture made, and of those shown.
    megapixels: f64,
    /// Those of them that are made.
    made_megapixels: f64,
    /// Passes of all pictures together.
    passes: f64,
}

impl Work {
    #[cfg(test)]
    pub(super) const NONE: Self = Self::of_pixels(0, 0, 0.0);

    /// Of so many pixels that the network sees, and that are made.
    #[cfg(test)]
    pub(super) const fn of_pixels(seen: usize, made: usize, passes: f64) -> Self {
        let (megapixels, made_megapixels) = (seen as f64 / MEGAPIXEL, made as f64 / MEGAPIXEL);
        Self { megapixels, made_megapixels, passes }
    }

    /// The work of `request`, whose pictures are at the sizes that `model` takes.
    pub(super) fn of(request: &ImageRequest, model: &ModelCard) -> Self {
        let (shown, parts) = match &request.task {
            Task::Generate | Task::ImageToImage { .. } | Task::Inpaint { .. } => (0, 1),
            Task::Edit { images } => (images.len(), 1),
            Task::Decompose { layers, .. } => (1, layers.get() + 1),
        };
        let made = match (request.size, &request.task) {
            (OutputSize::Exact(size), _) => size.area(),
            (OutputSize::AsInput, Task::Inpaint { image, .. }) => image.width() * image.height(),
            (OutputSize::AsInput | OutputSize::Reference, _) => model.image_area,
        };
        let share = match &request.task {
            Task::ImageToImage { strength, .. } | Task::Inpaint { strength, .. } => strength.get(),
            Task::Generate | Task::Edit { .. } | Task::Decompose { .. } => 1.0,
        };
        let is_guided = request.guidance.acts() && request.negative_prompt.is_some();
        let branches = if is_guided { 2.0 } else { 1.0 };
        let pictures = request.count.get() as f64;
        Self {
            megapixels: (parts * made + shown * model.image_area) as f64 / MEGAPIXEL,
            made_megapixels: (parts * made) as f64 / MEGAPIXEL,
            passes: request.steps.get() as f64 * share * branches * pictures,
        }
    }

    /// Of a request that says nothing but a prompt, and takes `steps`.
    pub(super) fn usual(model: &ModelCard, steps: usize) -> Self {
        /// Layers that a picture is taken apart into where nothing is said.
        const LAYERS: usize = 4;
        let (shown, parts) = match model.edit_kind {
            _ if model.tasks.contains(TaskKind::TextToImage) => (0, 1),
            EditKind::ImageToImage => (0, 1),
            EditKind::Instruction => (1, 1),
            EditKind::Layers => (1, LAYERS + 1),
        };
        let area = model.image_area as f64 / MEGAPIXEL;
        let is_guided = model.defaults.guidance.acts() && model.defaults.negative_prompt.is_some();
        let branches = if is_guided { 2.0 } else { 1.0 };
        Self {
            megapixels: (shown + parts) as f64 * area,
            made_megapixels: parts as f64 * area,
            passes: steps as f64 * branches,
        }
    }

    /// Pixels that the network sees in a pass.
    pub(super) fn seen_pixels(self) -> usize {
        pixels(self.megapixels)
    }

    /// Pixels of the pictures that it makes together.
    pub(super) fn made_pixels(self) -> usize {
        pixels(self.made_megapixels)
    }

    pub(super) fn amount(self) -> f64 {
        (self.megapixels * self.passes).max(f64::MIN_POSITIVE)
    }

    /// Sizes within a factor of two are of one kind.
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm of what memory can hold")]
    fn kind(self) -> i32 {
        self.megapixels.max(f64::MIN_POSITIVE).log2().floor() as i32
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels in memory")]
fn pixels(megapixels: f64) -> usize {
    (megapixels * MEGAPIXEL).round() as usize
}

/// What a model has been measured to take, by size.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a pass over a megapixel.
    by_kind: BTreeMap<i32, f64>,
}

impl Pace {
    /// Notes that `work` took `seconds`.
    pub(super) fn note(&mut self, work: Work, seconds: f64) {
        let measured = seconds / work.amount();
        let known = self.by_kind.entry(work.kind()).or_insert(measured);
        *known += LATEST * (measured - *known);
    }

    /// Seconds that `work` will take, as far as can be told: as work of its size has, or of
    /// the nearest one.
    pub(super) fn estimate_s(&self, work: Work) -> f64 {
        self.measured_s(work).unwrap_or(UNKNOWN_S * work.amount())
    }

    /// As [`Self::estimate_s`], if anything has been measured.
    pub(super) fn measured_s(&self, work: Work) -> Option<f64> {
        let distance = |(kind, _): &(&i32, &f64)| (*kind - work.kind()).abs();
        let nearest = self.by_kind.iter().min_by_key(distance);
        nearest.map(|(_, seconds)| *seconds * work.amount())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(megapixels: f64, passes: f64) -> Work {
        Work { megapixels, made_megapixels: megapixels, passes }
    }

    #[test]
    fn work_is_estimated_as_the_nearest_size_took() {
        let mut pace = Pace::default();
        let close = |left: f64, right: f64| (left - right).abs() < 1e-9;
        // Before anything is known, by its amount alone.
        assert_eq!(pace.measured_s(work(1.0, 20.0)), None);
        assert!(close(pace.estimate_s(work(1.0, 20.0)), 20.0));

        pace.note(work(1.0, 10.0), 20.0);
        pace.note(work(0.1, 10.0), 1.0);

        assert!(close(pace.estimate_s(work(1.0, 5.0)), 10.0));
        assert!(close(pace.estimate_s(work(1.5, 1.0)), 3.0), "within a factor of two");
        assert!(close(pace.estimate_s(work(8.0, 1.0)), 16.0), "nearest to the megapixel");
        assert!(close(pace.estimate_s(work(0.05, 1.0)), 0.05), "nearest to the small one");
    }

    #[test]
    fn what_is_learned_follows_what_was_last_measured() {
        let mut pace = Pace::default();
        pace.note(work(1.0, 1.0), 1.0);
        pace.note(work(1.0, 1.0), 5.0);

        assert!((pace.estimate_s(work(1.0, 1.0)) - 2.0).abs() < 1e-9);
    }
}
