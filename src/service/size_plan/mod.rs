//! Between the sizes of clients and the grid of the model.
//!
//! A client wants its own picture's size back, or a size of its choice; a model
//! makes sizes on a grid, near the area that it was trained on. [`SizePlan::plan`]
//! decides how to get from the one to the other and gives the model its pictures,
//! and [`SizePlan::finish`] makes of its picture what was asked for.
//!
//! * Where the model can work at the client's size, no pixel is resampled: the input
//!   is continued past its edges up to the grid, and the result is cut.
//! * A size at which it does not work is made at the model's own area, in the
//!   proportions asked for, and scaled.
//! * A model that paints nothing beyond its input is given a part of the input in the
//!   proportions asked for.

mod fit;
mod sizes;

use super::mask::MaskBlend;
use crate::domain::{FaultKind, GreyImage, ImageSize, OutputSize, Picture, Task, ValidationError};
use crate::model::{AreaRange, ModelCard};
use fit::Fit;
use sizes::{is_of_shape, largest_within, next_on_grid, size_of_area, within};

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
pub(super) struct SizePlan {
    /// What is asked of the model.
    pub(super) model_size: OutputSize,
    /// What is done to the input picture before it.
    before: Fit,
    /// What is done to its picture.
    after: Fit,
    /// The input, where it shall show through.
    seam: Option<MaskBlend>,
    /// The size of the reply, if the seam left another one.
    last: Fit,
    /// What the client did not ask for, in sentences.
    pub(super) notes: Vec<String>,
}

impl SizePlan {
    /// Decides for a task, a model and a wish; gives the task with its pictures as the
    /// model takes them. Takes milliseconds to seconds: not for the async runtime.
    ///
    /// # Errors
    /// [`ValidationError`] on `size` if the model makes nothing that could become it.
    pub(super) fn plan(
        task: Task,
        model: &ModelCard,
        framing: Framing,
    ) -> Result<(Self, Task), ValidationError> {
        let (task, notes) = framed(task, model, framing)?;
        let input = first_picture(&task).map(size_of).transpose()?;
        let mut size_plan = match (framing.size, input) {
            (SizeChoice::Reference, _) | (SizeChoice::Auto, None) => Self::of_reference(),
            (SizeChoice::Auto, Some(input)) => Self::over_input(input, model)?,
            (SizeChoice::Exact(size), input) => Self::exact(size, input, model)?,
        };
        size_plan.notes.splice(..0, notes);
        if let (Task::Inpaint { image, mask, .. }, true) = (&task, framing.preserve_unmasked) {
            size_plan.show_input_through(image, mask, framing.size)?;
        }
        let task = with_first_picture(task, size_plan.before);
        Ok((size_plan, task))
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
    fn over_input(input: ImageSize, model: &ModelCard) -> Result<Self, ValidationError> {
        let on_grid = next_on_grid(input, model)?;
        let range = model.area_range.unwrap_or_else(|| AreaRange::around(model.image_area));
        if range.contains(on_grid.area()) && model.accepts(on_grid) {
            return Ok(Self::continued(input, on_grid));
        }
        let Some(work) = size_of_area(model.image_area, input, model) else {
            // Too long and narrow: let the model say so.
            return Ok(Self::of_reference());
        };
        if input.area() <= model.max_output_area {
            return Ok(Self::scaled_over(work, input));
        }
        let reply = within(model.max_output_area, input)?;
        let note = format!(
            "The input has {input} pixels, more than this model gives back; the picture is {reply}."
        );
        Ok(Self { notes: vec![note], ..Self::scaled_over(work, reply) })
    }

    /// The model works on the whole input, scaled to `work`; the result has the size `reply`.
    fn scaled_over(work: ImageSize, reply: ImageSize) -> Self {
        Self {
            model_size: OutputSize::AsInput,
            before: Fit::Scale(work),
            after: Fit::Scale(reply),
            ..Self::of_reference()
        }
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

    /// A size of the client's choice, at which the model works or not.
    fn exact(
        size: ImageSize,
        input: Option<ImageSize>,
        model: &ModelCard,
    ) -> Result<Self, ValidationError> {
        let on_grid = accepted(size, model)?;
        let works = model.area_range.is_none_or(|range| range.contains(on_grid.area()));
        let work = size_of_area(model.image_area, size, model);
        Ok(match (work, input) {
            (Some(work), input) if !works => Self {
                notes: vec![elsewhere_note(size, work, model)],
                ..Self::elsewhere(size, input, work)
            },
            (_, Some(input)) if input == size && !model.fills_beyond_input => {
                Self::continued(size, on_grid)
            }
            _ => Self::at_size(size, input, on_grid),
        })
    }

    /// The reference's picture of that size if it lies on the grid, else cut out of the
    /// next larger one.
    fn at_size(size: ImageSize, input: Option<ImageSize>, on_grid: ImageSize) -> Self {
        if on_grid == size {
            return Self { model_size: OutputSize::Exact(size), ..Self::of_reference() };
        }
        if input == Some(size) {
            return Self::continued(size, on_grid);
        }
        let (model_size, after) = (OutputSize::Exact(on_grid), Fit::CutCentre(size));
        Self { model_size, after, ..Self::of_reference() }
    }

    /// A size at which the model does not work: made at `work`, and scaled.
    fn elsewhere(size: ImageSize, input: Option<ImageSize>, work: ImageSize) -> Self {
        if input.is_some_and(|input| is_of_shape(input, size)) {
            return Self::scaled_over(work, size);
        }
        let (model_size, after) = (OutputSize::Exact(work), Fit::Scale(size));
        Self { model_size, after, ..Self::of_reference() }
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
        self.seam = Some(MaskBlend::new(image.clone(), mask));
        self.last = match (wish, self.after) {
            (SizeChoice::Auto, Fit::Scale(size)) if size != input => Fit::Scale(size),
            _ => Fit::Keep,
        };
        // What the model was shown was the whole input, so its whole picture
        // lies over the whole input.
        if !matches!(self.before, Fit::Continue(_)) {
            self.after = Fit::Scale(input);
        }
        Ok(())
    }

    /// Bytes of the pictures in it.
    pub(super) fn held_bytes(&self) -> usize {
        self.seam.as_ref().map_or(0, MaskBlend::held_bytes)
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

/// The task with its input in the proportions of a named size, where the result is to lie
/// over it: for a model that paints nothing beyond its input, and under a mask. Says so
/// if something was cut off.
fn framed(
    task: Task,
    model: &ModelCard,
    framing: Framing,
) -> Result<(Task, Vec<String>), ValidationError> {
    let spares = matches!(task, Task::Inpaint { .. }) && framing.preserve_unmasked;
    let input = first_picture(&task).map(size_of).transpose()?;
    let (SizeChoice::Exact(size), Some(input)) = (framing.size, input) else {
        return Ok((task, Vec::new()));
    };
    accepted(size, model)?;
    let part = largest_within((input.width(), input.height()), size);
    let differs = format!("'size' {size} has other proportions than the picture ({input}): ");
    let (fit, note) = match task {
        _ if spares || !model.fills_beyond_input => {
            (Fit::Cover(size), format!("{differs}the {part} pixels in its middle were used."))
        }
        Task::Generate | Task::Edit { .. } => return Ok((task, Vec::new())),
        // As the reference does it.
        Task::ImageToImage { .. } | Task::Inpaint { .. } | Task::Decompose { .. } => {
            (Fit::Keep, format!("{differs}the picture was stretched to it."))
        }
    };
    let notes = if part == input { Vec::new() } else { vec![note] };
    Ok((with_first_picture(task, fit), notes))
}

/// `size` on the model's grid.
///
/// # Errors
/// [`ValidationError`] on `size` if the model does not make it.
fn accepted(size: ImageSize, model: &ModelCard) -> Result<ImageSize, ValidationError> {
    let on_grid = next_on_grid(size, model)?;
    if model.accepts(on_grid) {
        return Ok(on_grid);
    }
    let message = format!(
        "Invalid 'size': {size} is more than this model makes. Width times height is at most {}.",
        model.max_output_area
    );
    Err(ValidationError::new("size", FaultKind::Invalid, message))
}

fn elsewhere_note(size: ImageSize, work: ImageSize, model: &ModelCard) -> String {
    let AreaRange { least, most } =
        model.area_range.unwrap_or_else(|| AreaRange::around(model.image_area));
    format!(
        "'size' {size} is not what this model works at, which is {least} to {most} pixels in all: \
         the picture was made at {work} and scaled."
    )
}

/// The task with its first picture, and the mask, brought to a size. Further pictures are
/// shown to the model as they are: it scales them.
fn with_first_picture(task: Task, fit: Fit) -> Task {
    if fit == Fit::Keep {
        return task;
    }
    let fitted = |image: Picture| fit.apply(&image).into_owned();
    match task {
        Task::Generate => Task::Generate,
        Task::Edit { mut images } => {
            if let Some(first) = images.first_mut() {
                *first = fit.apply(first).into_owned();
            }
            Task::Edit { images }
        }
        Task::ImageToImage { image, strength } => {
            Task::ImageToImage { image: fitted(image), strength }
        }
        Task::Inpaint { image, mask, strength, crop_padding } => Task::Inpaint {
            image: fitted(image),
            mask: fit.apply_grey(&mask),
            strength,
            crop_padding,
        },
        Task::Decompose { image, layers } => Task::Decompose { image: fitted(image), layers },
    }
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

#[cfg(test)]
mod tests;
