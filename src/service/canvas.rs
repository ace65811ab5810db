//! Between the sizes of clients and the grid of the model.
//!
//! A client wants its own picture's size back, or a size of its choice; a model
//! makes sizes on a grid, near the area that it was trained on. [`Canvas::plan`]
//! decides how to get from the one to the other, [`Canvas::prepare`] gives the
//! model its pictures, and [`Canvas::finish`] makes of its picture what was asked
//! for. Where the model can work at the client's size, no pixel is resampled:
//! the input is continued past its edges up to the grid, and the result is cut.

use std::borrow::Cow;

use super::mask::Seam;
use crate::domain::{GreyImage, ImageSize, OutputSize, Picture, RgbImage, Task, ValidationError};
use crate::imaging::resample::{Resampler, resize_grey, resize_picture};
use crate::model::ModelInfo;

/// The model works at a picture's own size if that has at least this share of
/// the area that it was made for …
const SMALLEST_SHARE: f64 = 0.5;
/// … and at most this one. (Qwen-Image was trained up to 1328x1328: 1.7.)
const LARGEST_SHARE: f64 = 1.75;

/// Sides of pictures scaled to an area are multiples of this, as in the reference …
const AREA_GRID: usize = 32;
/// … for models of at least this area. On the short sides of smaller ones it would
/// turn circles into ellipses, so theirs are on their own grid.
const LEAST_AREA_ON_GRID: usize = 512 * 512;

/// The size that a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeChoice {
    /// That of the input picture, and lying over it; without an input, the model's own.
    Auto,
    /// That of the reference pipeline.
    Reference,
    /// This one.
    Exact(ImageSize),
}

/// How a client wants a picture to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Its size.
    pub size: SizeChoice,
    /// Whether the pixels that a mask spares come back as they were.
    pub preserve_unmasked: bool,
}

/// What is done to pictures on their way to the model and back.
#[derive(Debug)]
pub(super) struct Canvas {
    /// What is asked of the model.
    pub(super) model_size: OutputSize,
    /// What is done to the input pictures before it.
    before: Fit,
    /// What is done to its picture.
    after: Fit,
    /// The input, where it shall show through.
    seam: Option<Seam>,
    /// The size of the reply, if the seam left another one.
    last: Fit,
    /// What the client did not ask for, in sentences.
    pub(super) notes: Vec<String>,
}

/// How a picture is brought to a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Left as it is.
    Keep,
    /// Continued past all edges alike by repeating the last pixels, so that a model
    /// that mirrors the picture leaves it where it was.
    Continue(ImageSize),
    /// Cut down, keeping the centre.
    CutCentre(ImageSize),
    /// Resampled.
    Scale(ImageSize),
}

impl Canvas {
    /// Decides for a task, a model and a wish.
    ///
    /// # Errors
    /// [`ValidationError`] on `size` if the model makes nothing that could become it.
    pub(super) fn plan(
        task: &Task,
        model: &ModelInfo,
        framing: Framing,
    ) -> Result<Self, ValidationError> {
        let input = first_picture(task).map(size_of).transpose()?;
        let mut canvas = match (framing.size, input) {
            (SizeChoice::Reference, _) | (SizeChoice::Auto, None) => Self::of_reference(),
            (SizeChoice::Auto, Some(input)) => Self::over_input(input, model)?,
            (SizeChoice::Exact(size), input) => Self::exact(size, input, model)?,
        };
        if let (Task::Inpaint { image, mask, .. }, true) = (task, framing.preserve_unmasked) {
            canvas.show_input_through(image, mask, framing.size)?;
        }
        Ok(canvas)
    }

    fn of_reference() -> Self {
        Self {
            model_size: OutputSize::Reference,
            before: Fit::Keep,
            after: Fit::Keep,
            seam: None,
            last: Fit::Keep,
            notes: Vec::new(),
        }
    }

    /// A result that lies over the input, pixel by pixel.
    fn over_input(input: ImageSize, model: &ModelInfo) -> Result<Self, ValidationError> {
        let on_grid = next_on_grid(input, model)?;
        let share = on_grid.area() as f64 / model.image_area as f64;
        let fits = (SMALLEST_SHARE..=LARGEST_SHARE).contains(&share) && model.accepts(on_grid);
        if fits {
            return Ok(Self::continued(input, on_grid));
        }
        let Some(work) = size_of_area(model.image_area, input, model) else {
            // Too long and narrow: let the model say so.
            return Ok(Self::of_reference());
        };
        let (reply, notes) = if input.area() <= model.max_output_area {
            (input, Vec::new())
        } else {
            let reply = within(model.max_output_area, input)?;
            let note = format!(
                "The input has {input} pixels, more than this model gives back; the picture is {reply}."
            );
            (reply, vec![note])
        };
        Ok(Self {
            model_size: OutputSize::AsInput,
            before: Fit::Scale(work),
            after: Fit::Scale(reply),
            notes,
            ..Self::of_reference()
        })
    }

    /// The model works at the input's size, continued up to the grid.
    fn continued(input: ImageSize, on_grid: ImageSize) -> Self {
        let (before, after) = if input == on_grid {
            (Fit::Keep, Fit::Keep)
        } else {
            (Fit::Continue(on_grid), Fit::CutCentre(input))
        };
        Self { model_size: OutputSize::AsInput, before, after, ..Self::of_reference() }
    }

    /// A size of the client's choice: the reference's picture of that size if it
    /// lies on the grid, else cut out of the next larger one.
    fn exact(
        size: ImageSize,
        input: Option<ImageSize>,
        model: &ModelInfo,
    ) -> Result<Self, ValidationError> {
        let on_grid = next_on_grid(size, model)?;
        if !model.accepts(on_grid) {
            let message = format!(
                "Invalid 'size': {size} is more than this model makes. Width times height is at \
                 most {}.",
                model.max_output_area
            );
            return Err(ValidationError::new("size", "invalid_value", message));
        }
        if on_grid == size {
            return Ok(Self { model_size: OutputSize::Exact(size), ..Self::of_reference() });
        }
        if input == Some(size) {
            return Ok(Self::continued(size, on_grid));
        }
        let (model_size, after) = (OutputSize::Exact(on_grid), Fit::CutCentre(size));
        Ok(Self { model_size, after, ..Self::of_reference() })
    }

    /// Lays the input over the result where the mask spares it, at the input's
    /// full resolution.
    fn show_input_through(
        &mut self,
        image: &Picture,
        mask: &GreyImage,
        wish: SizeChoice,
    ) -> Result<(), ValidationError> {
        let input = size_of(image)?;
        self.seam = Some(Seam::new(image.clone(), mask));
        self.last = match (wish, self.after) {
            (SizeChoice::Auto, Fit::Scale(size)) if size != input => Fit::Scale(size),
            (SizeChoice::Exact(size), _) if size != input => Fit::Scale(size),
            _ => Fit::Keep,
        };
        // What the model was shown was the whole input, so its whole picture
        // lies over the whole input.
        if !matches!(self.before, Fit::Continue(_)) {
            self.after = Fit::Scale(input);
        }
        Ok(())
    }

    /// The task with its pictures as the model takes them. Takes milliseconds to
    /// seconds: not for the async runtime.
    pub(super) fn prepare(&self, task: Task) -> Task {
        match task {
            Task::Generate => Task::Generate,
            Task::Edit { mut images } => {
                // The others are shown to the model as they are: it scales them.
                if let Some(first) = images.first_mut() {
                    *first = self.before.apply(first).into_owned();
                }
                Task::Edit { images }
            }
            Task::ImageToImage { image, strength } => {
                Task::ImageToImage { image: self.before.apply(&image).into_owned(), strength }
            }
            Task::Inpaint { image, mask, strength, crop_padding } => Task::Inpaint {
                image: self.before.apply(&image).into_owned(),
                mask: self.before.apply_grey(&mask),
                strength,
                crop_padding,
            },
            Task::Decompose { image, layers } => {
                Task::Decompose { image: self.before.apply(&image).into_owned(), layers }
            }
        }
    }

    /// What was asked for, of what the model made. Not for the async runtime.
    pub(super) fn finish(&self, made: Picture) -> Picture {
        let made = self.after.apply(&made).into_owned();
        let made = match &self.seam {
            Some(seam) => seam.lay_over(made),
            None => made,
        };
        self.last.apply(&made).into_owned()
    }
}

impl Fit {
    fn apply(self, picture: &Picture) -> Cow<'_, Picture> {
        match self {
            Self::Keep => Cow::Borrowed(picture),
            Self::Scale(size) => Cow::Owned(resize_picture(
                picture,
                size.width(),
                size.height(),
                Resampler::PillowLanczos,
            )),
            Self::Continue(size) | Self::CutCentre(size) => {
                let colour = centred(picture.colour(), size);
                let alpha = picture.alpha().map(|alpha| grey_centred(alpha, size));
                let whole = |alpha| Picture::with_alpha(colour.clone(), alpha).ok();
                Cow::Owned(alpha.and_then(whole).unwrap_or_else(|| colour.into()))
            }
        }
    }

    fn apply_grey(self, image: &GreyImage) -> GreyImage {
        match self {
            Self::Keep => image.clone(),
            Self::Scale(size) => {
                resize_grey(image, size.width(), size.height(), Resampler::PillowLanczos)
            }
            Self::Continue(size) | Self::CutCentre(size) => grey_centred(image, size),
        }
    }
}

fn centred(image: &RgbImage, size: ImageSize) -> RgbImage {
    let pixels = copied::<3>(image.pixels(), (image.width(), image.height()), size);
    // A size has at least one pixel, and `copied` gives all of them.
    RgbImage::new(size.width(), size.height(), pixels).unwrap_or_else(|_| image.clone())
}

fn grey_centred(image: &GreyImage, size: ImageSize) -> GreyImage {
    let pixels = copied::<1>(image.pixels(), (image.width(), image.height()), size);
    GreyImage::new(size.width(), size.height(), pixels).unwrap_or_else(|_| image.clone())
}

/// The part of `size` about the centre; past an edge its last pixels repeat. What is
/// continued and then cut, or cut and then continued, lies where it was.
fn copied<const CHANNELS: usize>(
    pixels: &[u8],
    (width, height): (usize, usize),
    size: ImageSize,
) -> Vec<u8> {
    // Where pixel `at` of a side of `wanted` pixels comes from, in one of `whole` pixels.
    let source = |at: usize, whole: usize, wanted: usize| {
        let (cut, added) = (whole.saturating_sub(wanted) / 2, wanted.saturating_sub(whole) / 2);
        (at + cut).saturating_sub(added).min(whole - 1)
    };
    let columns: Vec<usize> = (0..size.width()).map(|x| source(x, width, size.width())).collect();
    let mut copy = Vec::with_capacity(size.area() * CHANNELS);
    for y in 0..size.height() {
        let row = source(y, height, size.height()) * width;
        for column in &columns {
            let at = (row + column) * CHANNELS;
            copy.extend_from_slice(&pixels[at..at + CHANNELS]);
        }
    }
    copy
}

/// The picture whose size counts.
fn first_picture(task: &Task) -> Option<&Picture> {
    match task {
        Task::Generate => None,
        Task::Edit { images } => images.first(),
        Task::ImageToImage { image, .. }
        | Task::Inpaint { image, .. }
        | Task::Decompose { image, .. } => Some(image),
    }
}

fn size_of(picture: &Picture) -> Result<ImageSize, ValidationError> {
    ImageSize::new(picture.width(), picture.height()).map_err(|error| error.about("image"))
}

/// The smallest size on the model's grid that `size` fits into.
fn next_on_grid(size: ImageSize, model: &ModelInfo) -> Result<ImageSize, ValidationError> {
    let up = |side: usize| side.next_multiple_of(model.size_multiple.max(1));
    ImageSize::new(up(size.width()), up(size.height()))
}

/// The size of about `area` pixels in the shape of `input`, as the reference
/// rounds it; `None` if a side would vanish or the model does not make it.
///
/// Source: diffusers 0.42.1, `calculate_dimensions` of the Qwen-Image edit pipelines.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are positive and far below 2^32"
)]
fn size_of_area(area: usize, input: ImageSize, model: &ModelInfo) -> Option<ImageSize> {
    let own = model.size_multiple.max(1);
    let grid = if area < LEAST_AREA_ON_GRID { own } else { AREA_GRID.next_multiple_of(own) };
    let ratio = input.width() as f64 / input.height() as f64;
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
fn within(area: usize, size: ImageSize) -> Result<ImageSize, ValidationError> {
    let shrink = (area as f64 / size.area() as f64).sqrt();
    let side = |side: usize| ((side as f64 * shrink).floor() as usize).max(1);
    ImageSize::new(side(size.width()), side(size.height()))
}

#[cfg(test)]
#[path = "canvas_tests.rs"]
mod tests;
