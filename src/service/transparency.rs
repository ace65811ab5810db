//! The ground that transparent inputs lie on, for models that know no transparency.
//!
//! Such a model would see the colours that a file holds where nothing of them is to be
//! seen, and files that look alike would give different results. This is the one place
//! where transparency is taken from inputs; what a mask spares keeps it (`mask`).

use super::held::is_large;
use super::size_plan::Framing;
use crate::domain::{Picture, RgbImage, Task};
use crate::model::ModelCard;

/// What browsers and viewers show behind a picture.
const WHITE: [u8; 3] = [255; 3];

/// What is done about the transparency of a task's pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// Nothing: there is none, or the model takes it.
    NotNeeded,
    /// They are laid on white, and the reply is opaque.
    White,
    /// They are laid on white, and outside the mask the reply is transparent as before.
    WhiteWithinMask,
}

impl Ground {
    pub(super) fn for_task(task: &Task, model: &ModelCard, framing: Framing) -> Self {
        let is_glassy = pictures(task).iter().any(|picture| picture.alpha().is_some());
        if !is_glassy || model.takes_transparency {
            Self::NotNeeded
        } else if matches!(task, Task::Inpaint { .. }) && framing.preserve_unmasked {
            Self::WhiteWithinMask
        } else {
            Self::White
        }
    }

    /// What the client should know.
    pub(super) fn note(self) -> Option<String> {
        let rest = match self {
            Self::NotNeeded => return None,
            Self::White => "what comes back is opaque",
            Self::WhiteWithinMask => "outside the mask it comes back as it was",
        };
        Some(format!(
            "'image' is transparent in places, and this model knows no transparency: it was shown \
             the picture on white, and {rest}."
        ))
    }

    /// The task as the model is shown it.
    pub(super) fn lay_under(self, mut task: Task) -> Task {
        if self == Self::NotNeeded {
            return task;
        }
        pictures_mut(&mut task).iter_mut().for_each(lay);
        task
    }

    /// As [`Self::lay_under`], of large pictures only, where nothing is to show through
    /// them: their transparency would be too much to scale.
    pub(super) fn lay_under_large(self, mut task: Task) -> Task {
        if self == Self::White {
            pictures_mut(&mut task).iter_mut().filter(|picture| is_large(picture)).for_each(lay);
        }
        task
    }
}

fn lay(picture: &mut Picture) {
    let taken = std::mem::replace(picture, RgbImage::filled(1, 1, WHITE).into());
    *picture = taken.laid_on(WHITE).into();
}

fn pictures_mut(task: &mut Task) -> &mut [Picture] {
    match task {
        Task::Generate => &mut [],
        Task::Edit { images } => images,
        Task::ImageToImage { image, .. }
        | Task::Inpaint { image, .. }
        | Task::Decompose { image, .. } => std::slice::from_mut(image),
    }
}

fn pictures(task: &Task) -> &[Picture] {
    match task {
        Task::Generate => &[],
        Task::Edit { images } => images,
        Task::ImageToImage { image, .. }
        | Task::Inpaint { image, .. }
        | Task::Decompose { image, .. } => std::slice::from_ref(image),
    }
}
