//! Which pixels a mask means.
//!
//! OpenAI's clients make a mask transparent where a picture is to be made anew; most
//! other programs send white there, and black elsewhere. Which of the two it is, is told
//! by shares of the mask, never by a pixel: programs leave stray pixels, soft edges and
//! the noise of lossy files. In doubt it is OpenAI's.

use crate::domain::{FaultKind, GreyImage, Picture, ValidationError};

/// From here on a level counts as made anew: the reference's threshold.
const THRESHOLD: u8 = 128;
/// Levels this near to an end are at it: the noise of lossy files, and of masks that
/// were resized. The reference's crop would take them for a part of what is marked.
const NOISE: u8 = 16;
/// Fewer pixels than these are a speck: no brush is so small …
const SPECK_PIXELS: usize = 4;
/// … unless they are more than one in so many, in a tiny picture.
const SPECK_ONE_IN: usize = 64;
/// A black and white mask of which one pixel in so many, or fewer, is transparent is a
/// black and white mask: those pixels are not what it is about.
const FEW_ONE_IN: usize = 1000;

/// Up to here a tone is black, and from there on it is white, in a mask of two tones …
const BLACK: u8 = 64;
const WHITE: u8 = 191;
/// … of which at least nine in ten pixels are either: the rest are edges. Photographs
/// have far fewer.
const TWO_TONED_TENTHS: usize = 9;
/// A pixel is coloured if its channels are further apart than JPEG leaves greys …
const COLOURED: u8 = 40;
/// … and a picture is if one pixel in so many is.
const COLOURED_ONE_IN: usize = 20;

/// What to send, for those whose mask says nothing.
const ADVICE: &str = "Make it transparent where the picture is to be made anew (as OpenAI's masks \
                      are), or send an opaque one that is white there and black elsewhere.";

/// Where a mask says that a picture is to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaskConvention {
    /// Where it is transparent: OpenAI's.
    Transparent,
    /// Where it is white: that of most other programs.
    White,
}

/// A mask that has been understood.
#[derive(Debug)]
pub(super) struct ReadMask {
    /// Bright where the picture is made anew.
    pub(super) bright: GreyImage,
    pub(super) convention: MaskConvention,
    /// A sentence, where the mask could have been meant otherwise.
    pub(super) doubt: Option<String>,
}

/// Finds out what `mask` means.
///
/// # Errors
/// [`ValidationError`] on `mask` if nothing would be made anew, or everything by a mask
/// that does not clearly say so.
pub(super) fn read(mask: &Picture) -> Result<ReadMask, ValidationError> {
    let tones = Tones::of(mask);
    let transparency = mask.alpha().map(|alpha| {
        let levels = alpha.pixels().iter().map(|alpha| u8::MAX - alpha);
        Selection::of(levels.collect())
    });
    let says_nothing =
        |selection: &Selection| selection.is_nothing() || is_beside_the_point(selection, &tones);
    match transparency {
        None => by_tones(mask, &tones, None),
        Some(selection) if says_nothing(&selection) => by_tones(mask, &tones, Some(&selection)),
        Some(selection) => by_transparency(mask, selection, &tones),
    }
}

/// Whether some transparent pixels say little beside clear black and white.
fn is_beside_the_point(selection: &Selection, tones: &Tones) -> bool {
    selection.selected * FEW_ONE_IN <= selection.levels.len() && tones.is_black_and_white()
}

fn by_transparency(
    mask: &Picture,
    selection: Selection,
    tones: &Tones,
) -> Result<ReadMask, ValidationError> {
    if selection.is_everything() && !selection.is_clear() {
        return Err(refused("it is half transparent throughout, so that it marks no part"));
    }
    // White strokes on nothing, or black and white with a transparent border.
    let could_be_white = !selection.is_everything() && tones.is_two_toned() && tones.has_white();
    let doubt = could_be_white.then(|| {
        "'mask' has transparent and white pixels: as in OpenAI's masks, the picture was made anew \
         where it is transparent, and kept where it is white. For the other way round send it \
         without transparency, black where nothing is to change."
            .to_owned()
    });
    Ok(ReadMask {
        bright: grey(mask, selection.levels),
        convention: MaskConvention::Transparent,
        doubt,
    })
}

fn by_tones(
    mask: &Picture,
    tones: &Tones,
    transparency: Option<&Selection>,
) -> Result<ReadMask, ValidationError> {
    let is_glassy = transparency.is_some_and(|selection| selection.is_glassy());
    let opacity = if is_glassy { "nowhere more than half transparent" } else { "opaque" };
    if !tones.is_two_toned() && tones.is_coloured() {
        return Err(refused(&format!("it is {opacity}, and not black and white")));
    }
    let selection = Selection::of(mask.colour().pixels().chunks_exact(3).map(luminance).collect());
    if selection.is_nothing() {
        return Err(refused(&format!("it is {opacity} and dark throughout")));
    }
    if selection.is_everything() && !selection.is_clear() {
        return Err(refused(&format!("it is {opacity} and of one bright tone, but not white")));
    }
    let because = if is_glassy {
        Some("is nowhere more than half transparent")
    } else if selection.is_everything() {
        Some("is white throughout")
    } else if !tones.is_two_toned() {
        Some("is opaque and grey")
    } else {
        None
    };
    let doubt = because.map(|because| {
        format!("'mask' {because}: the picture was made anew where the mask is brighter than half.")
    });
    Ok(ReadMask { bright: grey(mask, selection.levels), convention: MaskConvention::White, doubt })
}

fn refused(understood: &str) -> ValidationError {
    let message =
        format!("Invalid 'mask': {understood}: nothing tells what is to be made anew. {ADVICE}");
    ValidationError::new("mask", FaultKind::Invalid, message)
}

fn grey(mask: &Picture, levels: Vec<u8>) -> GreyImage {
    let levels = levels.into_iter().map(|level| match level {
        ..=NOISE => 0,
        level if level >= u8::MAX - NOISE => u8::MAX,
        level => level,
    });
    let grey = GreyImage::new(mask.width(), mask.height(), levels.collect());
    // A grey picture of the same sides has a byte a pixel, as made above.
    grey.unwrap_or_else(|_| unreachable!("a picture has at least one pixel"))
}

/// Pillow's conversion to `L`.
fn luminance(pixel: &[u8]) -> u8 {
    const WEIGHTS: [u32; 3] = [19_595, 38_470, 7_471];
    let sum: u32 =
        pixel.iter().zip(WEIGHTS).map(|(value, weight)| u32::from(*value) * weight).sum();
    u8::try_from((sum + 0x8000) >> 16).unwrap_or(u8::MAX)
}

fn is_speck(pixels: usize, area: usize) -> bool {
    pixels == 0 || (pixels < SPECK_PIXELS && pixels * SPECK_ONE_IN < area)
}

/// How much each pixel is marked.
struct Selection {
    levels: Vec<u8>,
    /// Pixels that are, from the threshold on.
    selected: usize,
}

impl Selection {
    fn of(levels: Vec<u8>) -> Self {
        let selected = levels.iter().filter(|level| **level >= THRESHOLD).count();
        Self { levels, selected }
    }

    fn is_nothing(&self) -> bool {
        is_speck(self.selected, self.levels.len())
    }

    fn is_everything(&self) -> bool {
        is_speck(self.levels.len() - self.selected, self.levels.len())
    }

    /// Whether what is marked is so without doubt, but for a speck.
    fn is_clear(&self) -> bool {
        let doubtful = self.levels.iter().filter(|level| **level < u8::MAX - NOISE).count();
        is_speck(doubtful, self.levels.len())
    }

    /// Whether pixels are marked by more than noise, however little.
    fn is_glassy(&self) -> bool {
        let marked = self.levels.iter().filter(|level| **level > NOISE).count();
        !is_speck(marked, self.levels.len())
    }
}

/// What the colours of a mask's opaque pixels are like.
#[derive(Default)]
struct Tones {
    black: usize,
    white: usize,
    coloured: usize,
    area: usize,
}

impl Tones {
    fn of(mask: &Picture) -> Self {
        let is_seen = |at: usize| mask.alpha().is_none_or(|alpha| alpha.pixels()[at] >= THRESHOLD);
        let pixels = mask.colour().pixels().chunks_exact(3).enumerate();
        let mut tones = Self::default();
        for (_, pixel) in pixels.filter(|(at, _)| is_seen(*at)) {
            let tone = luminance(pixel);
            let (least, most) = (pixel.iter().min(), pixel.iter().max());
            let distance = most.zip(least).map_or(0, |(most, least)| most - least);
            tones.area += 1;
            tones.black += usize::from(tone <= BLACK);
            tones.white += usize::from(tone >= WHITE);
            tones.coloured += usize::from(distance > COLOURED);
        }
        tones
    }

    fn is_two_toned(&self) -> bool {
        (self.black + self.white) * 10 >= self.area * TWO_TONED_TENTHS
    }

    fn has_white(&self) -> bool {
        !is_speck(self.white, self.area)
    }

    fn is_black_and_white(&self) -> bool {
        self.is_two_toned() && self.has_white() && !is_speck(self.black, self.area)
    }

    fn is_coloured(&self) -> bool {
        self.coloured * COLOURED_ONE_IN > self.area
    }
}

#[cfg(test)]
#[path = "masks_tests.rs"]
mod tests;
