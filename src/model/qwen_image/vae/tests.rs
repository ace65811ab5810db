//! Pictures in bands are the same, to the bit, as whole ones.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::checkpoint::Snapshot;
use crate::interruption;

const PUBLISHED: &str = include_str!("../../../../tests/data/manifest-full/vae_config.json");

/// The VAE of a miniature.
fn miniature(name: &str) -> Vae {
    miniature_in(name, DType::F32)
}

fn miniature_in(name: &str, dtype: DType) -> Vae {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/ckpt").join(name);
    let snapshot = Snapshot::Directory(folder);
    let kind = (dtype, &Device::Cpu);
    let stem = "diffusion_pytorch_model";
    let weights = Weights::open(&snapshot, "vae", stem, kind, str::to_owned).unwrap();
    Vae::load(&weights, &VaeConfig::load(&snapshot).unwrap()).unwrap()
}

fn published_config() -> VaeConfig {
    let file = ("vae/config.json".to_owned(), PUBLISHED.to_owned());
    VaeConfig::load(&Snapshot::Texts(BTreeMap::from([file]))).unwrap()
}

fn random(shape: (usize, usize, usize, usize), dtype: DType) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Holds what `vae` makes in bands of some numbers of rows of latents against what it makes
/// of the whole, both ways, for latents of `height` and `width`.
fn assert_same_in_bands(
    mut vae: Vae,
    batch: usize,
    (height, width): (usize, usize),
    band_rows: &[usize],
) {
    let (factor, dtype) = (vae.spatial_factor(), vae.dtype());
    let image = random((batch, vae.image_channels(), factor * height, factor * width), dtype);
    let latents = random((batch, vae.z_dim(), height, width), dtype);
    vae.band_rows = Some(height);
    let (encoded, decoded) = (vae.encode(&image).unwrap(), vae.decode(&latents).unwrap());
    assert!(numbers(&decoded).iter().all(|number| number.is_finite()));
    for rows in band_rows {
        vae.band_rows = Some(*rows);

        assert!(numbers(&vae.encode(&image).unwrap()) == numbers(&encoded), "{rows} rows");
        assert!(numbers(&vae.decode(&latents).unwrap()) == numbers(&decoded), "{rows} rows");
    }
}

#[test]
fn bands_of_any_height_make_the_same_picture_to_the_bit() {
    for name in ["qwen-image", "qwen-image-layered"] {
        for size in [(7, 5), (12, 3), (1, 4), (2, 2)] {
            assert_same_in_bands(miniature(name), 1, size, &[1, 2, 3, 5, 6]);
        }
        assert_same_in_bands(miniature(name), 2, (5, 3), &[1, 2, 4]);
    }
}

#[test]
fn bands_of_the_published_widths_make_the_same_picture_to_the_bit() {
    // Its two first stages, a block of each: all of them take minutes without optimisation.
    let config = VaeConfig {
        num_res_blocks: 1,
        dim_mult: vec![1, 2],
        temperal_downsample: vec![true],
        ..published_config()
    };
    let weights = Weights::random("vae", (DType::F32, &Device::Cpu));
    let vae = Vae::load(&weights, &config).unwrap();

    assert_same_in_bands(vae, 1, (13, 9), &[1, 5]);
}

#[test]
fn bands_of_16_bits_make_the_same_picture_to_the_bit() {
    for dtype in [DType::BF16, DType::F16] {
        let vae = miniature_in("qwen-image", dtype);

        assert_same_in_bands(vae, 1, (7, 5), &[1, 2, 4]);
    }
}

#[test]
fn only_what_is_large_is_cut_and_no_band_is_larger_than_the_bound() {
    let config = published_config();
    let rows = |dtype, side: usize| bands::latent_rows(&config, dtype, (1, side / 8));
    // 96 channels of every pixel.
    let bytes = |rows: usize, side: usize| rows * 8 * side * 96 * 4;

    assert!(rows(DType::F32, 512) >= 512 / 8);
    assert!(rows(DType::BF16, 640) >= 640 / 8);
    for side in [1024, 2048, 4096] {
        let rows = rows(DType::F32, side);
        assert!(rows < side / 8 && bytes(rows, side) <= 128 << 20, "{rows} rows of {side}");
        assert!(bytes(rows + 1, side) > 128 << 20, "{rows} rows of {side}");
    }
    assert_eq!(bands::latent_rows(&config, DType::F32, (1, usize::MAX >> 20)), 1);
}

#[test]
fn each_band_can_be_broken_off() {
    let mut vae = miniature("qwen-image");
    let latents = random((1, vae.z_dim(), 6, 4), DType::F32);
    let mut asked_in = |rows| {
        vae.band_rows = Some(rows);
        let asked = Cell::new(0);
        let never = || {
            asked.set(asked.get() + 1);
            false
        };
        interruption::watched(&never, || vae.decode(&latents)).unwrap();
        asked.get()
    };
    let (whole, six) = (asked_in(6), asked_in(1));

    // As often in each band as in the whole picture, but for what is made as a whole.
    assert!(six > 2 * whole, "{whole} and {six}");
    let (asked, stops_at) = (Cell::new(0), six / 2);
    let stops = || {
        asked.set(asked.get() + 1);
        asked.get() >= stops_at
    };
    vae.band_rows = Some(1);
    let stopped = interruption::watched(&stops, || vae.decode(&latents));
    assert!(stopped.is_err());
    assert_eq!(asked.get(), stops_at);
}
