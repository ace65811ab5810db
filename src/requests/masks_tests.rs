//! Masks as programs send them.

use super::*;
use crate::domain::RgbImage;

const SIDE: usize = 32;
const AREA: usize = SIDE * SIDE;

/// Whether a pixel is in the left quarter.
fn is_left(at: usize) -> bool {
    at % SIDE < SIDE / 4
}

fn picture(colour: impl Fn(usize) -> [u8; 3], alpha: Option<&dyn Fn(usize) -> u8>) -> Picture {
    let colours = RgbImage::new(SIDE, SIDE, (0..AREA).flat_map(colour).collect()).unwrap();
    match alpha {
        None => colours.into(),
        Some(alpha) => {
            let alpha = GreyImage::new(SIDE, SIDE, (0..AREA).map(alpha).collect()).unwrap();
            Picture::with_alpha(colours, alpha).unwrap()
        }
    }
}

/// White in the left quarter of a black picture.
fn black_and_white(at: usize) -> [u8; 3] {
    if is_left(at) { [255; 3] } else { [0; 3] }
}

/// A photograph, as far as its tones go.
fn photograph(at: usize) -> [u8; 3] {
    let (x, y) = (at % SIDE, at / SIDE);
    [40 + 5 * x, 200 - 4 * y, 60 + 3 * ((x * y) % 32)].map(|level| u8::try_from(level).unwrap())
}

/// Noise of up to `most` levels.
fn noise(at: usize, most: usize) -> u8 {
    u8::try_from(at * 7919 % 1009 % (most + 1)).unwrap()
}

fn shares(mask: &ReadMask) -> (bool, bool) {
    let pixels = mask.bright.pixels();
    let left = (0..AREA).filter(|at| is_left(*at)).all(|at| pixels[at] == 255);
    let rest = (0..AREA).filter(|at| !is_left(*at)).all(|at| pixels[at] == 0);
    (left, rest)
}

#[test]
fn both_conventions_are_told_apart_by_shares_of_the_mask() {
    use MaskConvention::{Transparent, White};
    let noisy_black_and_white = |at: usize| {
        let level = if is_left(at) { 255 - noise(at, 12) } else { noise(at, 12) };
        [level, level.saturating_sub(2), level]
    };
    let hole = |at: usize| if is_left(at) { 0 } else { 255 };
    let lossy_hole = |at: usize| if is_left(at) { noise(at, 9) } else { 255 - noise(at, 9) };
    let stray = |at: usize| if at == 77 { 254 } else { 255 };
    let stray_hole = |at: usize| if at == 77 { 0 } else { 255 };
    let lossy_opaque = |at: usize| 255 - noise(at, 9);
    let opaque = |_: usize| 255;
    let half = |_: usize| 128;
    let cases: [(&str, Picture, MaskConvention, bool); 11] = [
        ("black and white", picture(black_and_white, None), White, false),
        ("as JPEG", picture(noisy_black_and_white, None), White, false),
        ("with opaque alpha", picture(black_and_white, Some(&opaque)), White, false),
        ("one pixel of 254", picture(black_and_white, Some(&stray)), White, false),
        ("one pixel of 0", picture(black_and_white, Some(&stray_hole)), White, false),
        ("lossy opaque alpha", picture(black_and_white, Some(&lossy_opaque)), White, false),
        ("alpha 128 everywhere", picture(black_and_white, Some(&half)), White, true),
        ("photograph with a hole", picture(photograph, Some(&hole)), Transparent, false),
        ("lossy hole", picture(photograph, Some(&lossy_hole)), Transparent, false),
        ("black with a hole", picture(|_| [0; 3], Some(&hole)), Transparent, false),
        ("white with a hole", picture(|_| [255; 3], Some(&hole)), Transparent, true),
    ];
    for (name, mask, convention, is_doubtful) in cases {
        let read = read(&mask).unwrap();
        assert_eq!(read.convention, convention, "{name}");
        assert_eq!(shares(&read), (true, true), "{name}");
        assert_eq!(read.doubt.is_some(), is_doubtful, "{name}: {:?}", read.doubt);
    }
}

#[test]
fn a_mask_whose_alpha_is_a_copy_of_its_tones_is_openais_and_in_doubt() {
    let copy = |at: usize| if is_left(at) { 255 } else { 0 };

    let read = read(&picture(black_and_white, Some(&copy))).unwrap();

    assert_eq!(read.convention, MaskConvention::Transparent);
    assert_eq!((read.bright.pixels()[0], read.bright.pixels()[SIDE - 1]), (0, 255));
    assert!(read.doubt.is_some());
}

#[test]
fn a_mask_that_marks_nothing_or_everything_without_saying_so_is_refused() {
    let opaque = |_: usize| 255;
    let nearly = |at: usize| if at == 77 { 254 } else { 255 };
    let half = |_: usize| 128;
    let more_than_half = |_: usize| 100;
    for (name, mask) in [
        ("black", picture(|_| [0; 3], None)),
        ("dark", picture(|at| [noise(at, 30); 3], None)),
        ("light grey", picture(|_| [200; 3], None)),
        ("photograph", picture(photograph, None)),
        ("photograph of opaque RGBA", picture(photograph, Some(&opaque))),
        ("photograph with one pixel of 254", picture(photograph, Some(&nearly))),
        ("half transparent photograph", picture(photograph, Some(&half))),
        ("more than half transparent photograph", picture(photograph, Some(&more_than_half))),
        ("black, half transparent", picture(|_| [0; 3], Some(&half))),
    ] {
        let error = read(&mask).unwrap_err();
        assert_eq!((error.field, error.kind), ("mask", FaultKind::Invalid), "{name}");
        assert!(error.to_string().contains("transparent"), "{name}: {error}");
    }
}

#[test]
fn a_mask_that_clearly_marks_everything_is_taken() {
    let clear = |_: usize| 0_u8;
    let stray = |at: usize| if at == 77 { 255_u8 } else { 0 };
    for alpha in [&clear as &dyn Fn(usize) -> u8, &stray] {
        let read = read(&picture(photograph, Some(alpha))).unwrap();
        assert_eq!(read.convention, MaskConvention::Transparent);
    }
    let white = read(&picture(|_| [255; 3], None)).unwrap();
    assert_eq!(white.convention, MaskConvention::White);
    assert!(white.doubt.is_some());
}

#[test]
fn soft_edges_stay_soft_and_small_strokes_count() {
    let soft = |at: usize| u8::try_from(at % SIDE * 8).unwrap();
    let read_soft = read(&picture(photograph, Some(&soft))).unwrap();
    assert_eq!(read_soft.bright.pixels()[10], 255 - 80);
    let gradient = read(&picture(|at| [soft(at); 3], None)).unwrap();
    assert_eq!(gradient.convention, MaskConvention::White);
    assert!(gradient.doubt.is_some());

    let dot = |at: usize| if at % SIDE < 2 && at / SIDE < 2 { 0 } else { 255 };
    let read_dot = read(&picture(photograph, Some(&dot))).unwrap();
    assert_eq!(read_dot.bright.pixels().iter().filter(|level| **level == 255).count(), 4);
}
