//! Sizes that follow from other sizes, the grid of the model and its areas.

use crate::domain::{ImageSize, ValidationError};
use crate::model::ModelCard;

/// Sides of pictures scaled to an area are multiples of this, as in the reference …
const AREA_GRID: usize = 32;
/// … for models of at least this area. On the short sides of smaller ones it would
/// turn circles into ellipses, so theirs are on their own grid.
const LEAST_AREA_ON_GRID: usize = 512 * 512;

/// The smallest size on the model's grid that `size` fits into.
pub(super) fn next_on_grid(
    size: ImageSize,
    model: &ModelCard,
) -> Result<ImageSize, ValidationError> {
    let up = |side: usize| side.next_multiple_of(model.size_multiple.max(1));
    ImageSize::new(up(size.width()), up(size.height()))
}

/// The size of about `area` pixels in the shape of `shape`, as the reference
/// rounds it; `None` if a side would vanish or the model does not make it.
///
/// Source: diffusers 0.42.1, `calculate_dimensions` of the Qwen-Image edit pipelines.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are positive and far below 2^32"
)]
pub(super) fn size_of_area(area: usize, shape: ImageSize, model: &ModelCard) -> Option<ImageSize> {
    let own = model.size_multiple.max(1);
    let grid = if area < LEAST_AREA_ON_GRID { own } else { AREA_GRID.next_multiple_of(own) };
    let ratio = shape.width() as f64 / shape.height() as f64;
    let width = (area as f64 * ratio).sqrt();
    let round = |side: f64| (side / grid as f64).round_ties_even() as usize * grid;
    let size = ImageSize::new(round(width), round(width / ratio)).ok()?;
    model.accepts(size).then_some(size)
}

/// `size` shrunk in its shape to at most `area` pixels.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are positive and shrink"
)]
pub(super) fn within(area: usize, size: ImageSize) -> Result<ImageSize, ValidationError> {
    let shrink = (area as f64 / size.area() as f64).sqrt();
    let side = |side: usize| ((side as f64 * shrink).floor() as usize).max(1);
    ImageSize::new(side(size.width()), side(size.height()))
}

/// The largest size in the shape of `shape` that fits into `whole`, to the nearest
/// pixel: one side is that of `whole`.
pub(super) fn largest_within((width, height): (usize, usize), shape: ImageSize) -> ImageSize {
    let side = |of: usize, by: usize, over: usize| ((of * by + over / 2) / over).max(1);
    let (wide, high) = (
        side(height, shape.width(), shape.height()).min(width),
        side(width, shape.height(), shape.width()).min(height),
    );
    // Sides no larger than those of a picture make a size.
    ImageSize::new(wide, high).unwrap_or(shape)
}

/// Whether a picture of `size` lies over one of `shape` when it is scaled to it, to the
/// nearest pixel.
pub(super) fn is_of_shape(size: ImageSize, shape: ImageSize) -> bool {
    largest_within((size.width(), size.height()), shape) == size
}
