//! What is to be done: kinds of work, by which models and endpoints are matched, and one
//! piece of it, with its pictures.

use super::{GreyImage, LayerCount, Picture, Strength};

/// A kind of work that can be asked for; what it is to a model is a [`Task`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Pictures from words alone.
    TextToImage,
    /// Pictures changed as a prompt says.
    Edit,
    /// Pictures like a given one.
    Variation,
    /// A part of a picture made anew, as a mask says.
    Inpainting,
}

impl TaskKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TextToImage, Self::Edit, Self::Variation, Self::Inpainting];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of [`TaskKind`]s: what a model offers. The server answers 501 for the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskKinds(u8);

impl TaskKinds {
    /// The set of `kinds`.
    #[must_use]
    pub const fn of(kinds: &[TaskKind]) -> Self {
        let (mut bits, mut index) = (0, 0);
        while index < kinds.len() {
            bits |= kinds[index].bit();
            index += 1;
        }
        Self(bits)
    }

    /// Whether `kind` is in it.
    #[must_use]
    pub const fn contains(self, kind: TaskKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// The same with `kind`.
    #[must_use]
    pub const fn with(self, kind: TaskKind) -> Self {
        Self(self.0 | kind.bit())
    }

    /// The same without `kind`.
    #[must_use]
    pub const fn without(self, kind: TaskKind) -> Self {
        Self(self.0 & !kind.bit())
    }
}

/// What is to be done, with the pictures it is done to.
#[derive(Debug, Clone)]
pub enum Task {
    /// A picture from words alone.
    Generate,
    /// Pictures changed as the prompt says, by a model made for that.
    Edit {
        /// The input pictures in the order given; at least one.
        images: Vec<Picture>,
    },
    /// A picture made anew from one that noise has half covered.
    ImageToImage {
        /// The input picture.
        image: Picture,
        /// How much noise: how far to go from it.
        strength: Strength,
    },
    /// A part of a picture made anew.
    Inpaint {
        /// The input picture.
        image: Picture,
        /// Of the size of `image`; bright where it is to be made anew (the
        /// reference's threshold is half).
        mask: GreyImage,
        /// How much noise: how far to go from the input under the mask.
        strength: Strength,
        /// Look only at the mask's surroundings, this many pixels around it, in
        /// the model's full resolution: the reference's `padding_mask_crop`.
        crop_padding: Option<usize>,
    },
    /// A picture taken apart into transparent layers.
    Decompose {
        /// The input picture.
        image: Picture,
        /// How many.
        layers: LayerCount,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it_and_nothing_else() {
        for kind in TaskKind::ALL {
            let (alone, rest) =
                (TaskKinds::of(&[kind]), TaskKinds::of(&TaskKind::ALL).without(kind));

            for other in TaskKind::ALL {
                assert_eq!(alone.contains(other), other == kind);
                assert_eq!(rest.contains(other), other != kind);
            }
            assert_eq!(rest.with(kind), TaskKinds::of(&TaskKind::ALL));
            assert_eq!(alone.without(kind), TaskKinds::default());
        }
    }
}
