//! Picture files as people send them, against what Pillow shows of each. The numbers
//! come from `tests/data/make_pictures.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use diffuser_api::domain::Picture;
use diffuser_api::imaging::codec::{DecodeLimits, decode};

const LIMITS: DecodeLimits =
    DecodeLimits { max_bytes: 1 << 20, max_side: 1000, max_pixels: 100_000 };

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// RGBA of what is seen: hidden colours do not count.
fn visible(pixels: impl Iterator<Item = [u8; 4]>) -> Vec<u8> {
    pixels.flat_map(|pixel| if pixel[3] == 0 { [0; 4] } else { pixel }).collect()
}

fn pixels_of(picture: &Picture) -> Vec<u8> {
    let alpha = |at: usize| picture.alpha().map_or(255, |alpha| alpha.pixels()[at]);
    let pixels = picture.colour().pixels().chunks_exact(3).enumerate();
    visible(pixels.map(|(at, colour)| [colour[0], colour[1], colour[2], alpha(at)]))
}

/// Width, height and pixels of what Pillow shows.
fn pillow(tensor: &Tensor) -> (usize, usize, Vec<u8>) {
    let &[height, width, channels] = tensor.dims() else { panic!("three dimensions") };
    let whole = |pixel: &[u8]| [pixel[0], pixel[1], pixel[2], *pixel.get(3).unwrap_or(&255)];
    (width, height, visible(bytes(tensor).chunks_exact(channels).map(whole)))
}

/// How far a level may be from Pillow's.
fn tolerance(name: &str) -> u8 {
    match name {
        // Other decoders round the inverse cosine transform and the colours by
        // themselves; both are within the standards.
        _ if name.contains("jpeg") || name.starts_with("webp_lossy") => 3,
        // Both libraries first bring tables to a grid of their own, and interpolate on it
        // in their own ways: here from only five points for each ink or channel.
        "icc_tiff_cmyk" | "icc_png_scanner" => 4,
        // Little CMS takes 8 bits of 16 before it converts.
        "icc_png_16" => 2,
        // Little CMS has 15 bits in between.
        _ if name.starts_with("icc") => 1,
        _ => 0,
    }
}

#[test]
fn what_pillow_shows_of_a_file_is_what_is_read() {
    let golden = golden();
    let mut names: Vec<&str> = golden.keys().filter_map(|key| key.strip_suffix(".file")).collect();
    names.sort_unstable();
    assert!(names.len() > 90, "only {}", names.len());
    let mut faults = Vec::new();
    for name in names {
        let file = bytes(&golden[&format!("{name}.file")]);
        let (width, height, theirs) = pillow(&golden[&format!("{name}.seen")]);
        let decoded = match decode(&file, LIMITS) {
            Ok(decoded) => decoded,
            Err(error) => {
                faults.push(format!("{name}: {error} ({error:?})"));
                continue;
            }
        };
        let ours = pixels_of(&decoded.picture);
        if (decoded.picture.width(), decoded.picture.height()) != (width, height) {
            faults.push(format!("{name}: another size"));
            continue;
        }
        let most = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        if most > tolerance(name) {
            faults.push(format!("{name}: {most} levels"));
        }
        if let Some(dropped) = decoded.dropped_profile {
            faults.push(format!("{name}: {dropped:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Elements that look random, the same ones each time.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

#[test]
fn a_damaged_file_is_refused_or_shown_and_never_larger_than_allowed() {
    let mut noise = Noise(7);
    for (name, tensor) in golden().iter().filter(|(name, _)| name.ends_with(".file")) {
        for _ in 0..10 {
            let mut file = bytes(tensor);
            for _ in 0..3 {
                let at = noise.below(file.len());
                file[at] = u8::try_from(noise.below(256)).unwrap();
            }
            file.truncate(file.len() - noise.below(file.len() / 4));
            if let Ok(decoded) = decode(&file, LIMITS) {
                let (width, height) = (decoded.picture.width(), decoded.picture.height());
                assert!(width * height <= LIMITS.max_pixels, "{name}: {width}x{height}");
            }
        }
    }
}
