//! What it takes to make PNG files of pictures: milliseconds (the fastest of some) and bytes.
//!
//! ```text
//! cargo bench --bench pictures            # at each compression
//! cargo bench --bench pictures -- FOLDER  # and leaves the pictures there, for others:
//! python - FOLDER/*.png <<'END'
//! import io, sys, time
//! from PIL import Image
//! for path in sys.argv[1:]:
//!     image = Image.open(path)
//!     image.load()
//!     for level in (1, 6):
//!         seconds = []
//!         for _ in range(3):
//!             file, start = io.BytesIO(), time.perf_counter()
//!             image.save(file, "PNG", compress_level=level)
//!             seconds.append(time.perf_counter() - start)
//!         print(path, level, min(seconds), len(file.getvalue()))
//! END
//! ```
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a program for people, which stops where something is wrong"
)]

use std::path::Path;
use std::time::Instant;

use diffuser_api::allocator::{MiMalloc, keep_freed_memory};
use diffuser_api::domain::{Picture, RgbImage};
use diffuser_api::imaging::codec::{
    DecodeLimits, OutputFormat, PngCompression, decode, encode, encode_with,
};
use diffuser_api::imaging::resample::{Resampler, resize};

const SIDES: [usize; 2] = [1024, 4096];
const RUNS: usize = 3;
const LEVELS: [PngCompression; 3] =
    [PngCompression::Fast, PngCompression::Balanced, PngCompression::Best];

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    keep_freed_memory();
    let folder = std::env::args().skip(1).find(|argument| argument != "--bench");
    println!("| picture | PNG | ms | bytes |\n|---|---|---|---|");
    for side in SIDES {
        let smooth = scaled(side);
        let noisy = with_noise(&smooth);
        for (kind, picture) in [("smooth", smooth), ("noisy", noisy)] {
            let (name, picture) = (format!("{kind}-{side}"), Picture::from(picture));
            if let Some(folder) = &folder {
                let file = encode(&picture, OutputFormat::Png).unwrap();
                std::fs::write(Path::new(folder).join(&name).with_extension("png"), file).unwrap();
            }
            for level in LEVELS {
                let (seconds, bytes) = fastest(&picture, level);
                println!("| {name} | {level:?} | {:.1} | {bytes} |", 1000.0 * seconds);
            }
        }
    }
}

/// The edits of the README, side by side, as a square of `side` pixels.
fn scaled(side: usize) -> RgbImage {
    let file = include_bytes!("../docs/demo.png");
    let limits = DecodeLimits { max_bytes: 1 << 24, max_side: 1 << 12, max_pixels: 1 << 24 };
    let demo = decode(file, limits).unwrap().picture;
    resize(demo.colour(), side, side, Resampler::PillowLanczos)
}

/// With noise of about three of 256 shades, as photographs and unfinished pictures have it.
fn with_noise(image: &RgbImage) -> RgbImage {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let mut noise = || 6.0 * (uniform() + uniform() + uniform());
    let pixels = image.pixels().iter().map(|shade| (f64::from(*shade) + noise()).round() as u8);
    RgbImage::new(image.width(), image.height(), pixels.collect()).unwrap()
}

fn fastest(picture: &Picture, level: PngCompression) -> (f64, usize) {
    let mut least = (f64::INFINITY, 0);
    for _ in 0..RUNS {
        let started = Instant::now();
        let file = encode_with(picture, OutputFormat::Png, level).unwrap();
        least = (least.0.min(started.elapsed().as_secs_f64()), file.len());
    }
    least
}
