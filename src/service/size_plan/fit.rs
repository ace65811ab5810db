//! How a picture is brought to a size.

use std::borrow::Cow;

use super::sizes::largest_within;
use crate::domain::{GreyImage, ImageSize, Picture, RgbImage};
use crate::imaging::resample::{Resampler, resize_grey, resize_picture};

/// How a picture is brought to a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// Left as it is.
    Keep,
    /// Continued past all edges alike by repeating the last pixels, so that a model
    /// that mirrors the picture leaves it where it was.
    Continue(ImageSize),
    /// Cut down, keeping the centre.
    CutCentre(ImageSize),
    /// Resampled.
    Scale(ImageSize),
    /// Cut to the proportions of the size, keeping the centre, then resampled to it.
    Cover(ImageSize),
}

impl Fit {
    pub(super) fn apply(self, picture: &Picture) -> Cow<'_, Picture> {
        match self {
            Self::Keep => Cow::Borrowed(picture),
            Self::Scale(size) => Cow::Owned(scaled(picture, size)),
            Self::Continue(size) | Self::CutCentre(size) => Cow::Owned(centred(picture, size)),
            Self::Cover(size) => {
                let part = largest_within((picture.width(), picture.height()), size);
                Cow::Owned(scaled(&centred(picture, part), size))
            }
        }
    }

    pub(super) fn apply_grey(self, image: &GreyImage) -> GreyImage {
        match self {
            Self::Keep => image.clone(),
            Self::Scale(size) => grey_scaled(image, size),
            Self::Continue(size) | Self::CutCentre(size) => grey_centred(image, size),
            Self::Cover(size) => {
                let part = largest_within((image.width(), image.height()), size);
                grey_scaled(&grey_centred(image, part), size)
            }
        }
    }
}

/// The same picture where it has that size already.
fn scaled(picture: &Picture, size: ImageSize) -> Picture {
    if (picture.width(), picture.height()) == (size.width(), size.height()) {
        return picture.clone();
    }
    resize_picture(picture, size.width(), size.height(), Resampler::PillowLanczos)
}

fn grey_scaled(image: &GreyImage, size: ImageSize) -> GreyImage {
    resize_grey(image, size.width(), size.height(), Resampler::PillowLanczos)
}

fn centred(picture: &Picture, size: ImageSize) -> Picture {
    let colour = picture.colour();
    let pixels = copied::<3>(colour.pixels(), (colour.width(), colour.height()), size);
    // A size has at least one pixel, and `copied` gives all of them.
    let colour = RgbImage::new(size.width(), size.height(), pixels);
    let colour = colour.unwrap_or_else(|_| picture.colour().clone());
    let alpha = picture.alpha().map(|alpha| grey_centred(alpha, size));
    let whole = |alpha| Picture::with_alpha(colour.clone(), alpha).ok();
    alpha.and_then(whole).unwrap_or_else(|| colour.into())
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
