//! Sizes that follow from other sizes, the grid of the model and its areas.

use crate::domain::{ImageSize, ValidationError};
use crate::imaging::dimensions::{REFERENCE_MULTIPLE, dimensions_of_area};
use crate::model::ModelCard;

/// Models of less than this area have their own grid where the reference has a coarser one:
/// on short sides that would turn circles into ellipses.
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
pub(super) fn size_of_area(area: usize, shape: ImageSize, model: &ModelCard) -> Option<ImageSize> {
    let own = model.size_multiple.max(1);
    let is_small = area < LEAST_AREA_ON_GRID;
    let multiple = if is_small { own } else { REFERENCE_MULTIPLE.next_multiple_of(own) };
    let (width, height) = dimensions_of_area(area, (shape.width(), shape.height()), multiple);
    let size = ImageSize::new(width, height).ok()?;
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
