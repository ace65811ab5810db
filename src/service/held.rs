//! What pictures hold in memory, and how those that are far larger than a model looks at
//! are made smaller before they wait.

use crate::domain::{Picture, Task};
use crate::imaging::reduce::reduce;
use crate::model::ModelCard;

use super::size_plan::Framing;

/// Pixels from which on a picture is reduced: more than the 50 megapixels of today's phones.
/// Smaller ones are scaled once, as in the reference, whose pixels they give; the budget
/// makes them wait for one another. These differ from the reference's a little.
const LARGE: usize = 48 << 20;

/// How much longer the sides of a reduced picture are, at least, than those that the model
/// looks at: what Pillow takes for its thumbnails.
const REDUCING_GAP: usize = 2;

/// Whether the picture is far larger than a model of ordinary size looks at.
pub(super) fn is_large(picture: &Picture) -> bool {
    picture.width() * picture.height() > LARGE
}

/// A large picture as small as the model's own scaling allows; others as they are.
pub(super) fn reduced(picture: Picture, model: &ModelCard) -> Picture {
    let enough = REDUCING_GAP * REDUCING_GAP * model.image_area.max(1);
    let factor = (picture.width() * picture.height() / enough).isqrt();
    if is_large(&picture) && factor > 1 { reduce(picture, factor) } else { picture }
}

/// As [`reduced`], of the pictures of tasks whose result does not lie over them.
pub(super) fn reduced_task(task: Task, model: &ModelCard) -> Task {
    match task {
        Task::Edit { images } => {
            let images = images.into_iter().map(|image| reduced(image, model));
            Task::Edit { images: images.collect() }
        }
        Task::ImageToImage { image, strength } => {
            Task::ImageToImage { image: reduced(image, model), strength }
        }
        other @ (Task::Generate | Task::Inpaint { .. } | Task::Decompose { .. }) => other,
    }
}

/// Bytes of a task's pictures.
pub(super) fn held_by(task: &Task) -> usize {
    match task {
        Task::Generate => 0,
        Task::Edit { images } => images.iter().map(Picture::bytes).sum(),
        Task::ImageToImage { image, .. } | Task::Decompose { image, .. } => image.bytes(),
        Task::Inpaint { image, mask, .. } => image.bytes() + mask.pixels().len(),
    }
}

/// Bytes that bringing a task's pictures to their sizes takes besides them, at most.
pub(super) fn needed_to_plan(task: &Task, framing: Framing, model: &ModelCard) -> usize {
    let (first, mask) = match task {
        Task::Generate => return 0,
        Task::Edit { images } => (images.first(), 0),
        Task::ImageToImage { image, .. } | Task::Decompose { image, .. } => (Some(image), 0),
        Task::Inpaint { image, mask, .. } => (Some(image), mask.pixels().len()),
    };
    let Some(first) = first else { return 0 };
    // Large ones are laid on their ground where they are, and reduced.
    let multiplied = first.alpha().map_or(0, |_| first.bytes());
    let copies = if is_large(first) && mask == 0 { first.bytes() / 4 } else { first.bytes() };
    // The seam's picture, its distances (two bytes) and shares.
    let seam = if mask > 0 && framing.preserve_unmasked { first.bytes() + 3 * mask } else { 0 };
    let scaled = 8 * model.image_area.min(4 * first.width() * first.height());
    let multiplied =
        if is_large(first) && !model.takes_transparency && mask == 0 { 0 } else { multiplied };
    copies + multiplied + seam + mask + scaled
}
