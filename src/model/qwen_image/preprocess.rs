//! Which size for whom, and pictures as tensors.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sides are below 2^32 and never negative, colours are clamped to a byte"
)]

use candle_core::{DType, Device, Result, Tensor};

use super::config::{ProcessorConfig, VaeConfig, VisionConfig};
use super::positions::Grid;
use crate::domain::{GreyImage, ImageError, Picture, RgbImage};
use crate::imaging::dimensions::{REFERENCE_MULTIPLE, dimensions_of_area};
use crate::imaging::resample::{Resampler, resize};
use crate::model::components::latents::pack_latents;

/// A width and a height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelSize {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl PixelSize {
    /// Both sides floored to multiples of `multiple`.
    #[must_use]
    pub fn floored_to(self, multiple: usize) -> Self {
        let floor = |side: usize| side / multiple * multiple;
        Self { width: floor(self.width), height: floor(self.height) }
    }
}

/// The size of about `area` pixels with the shape of `width` by `height`, both
/// sides multiples of 32 (0 for a side that would be nearer to 0).
#[must_use]
pub fn size_of_area(area: usize, width: usize, height: usize) -> PixelSize {
    let (width, height) = dimensions_of_area(area, (width, height), REFERENCE_MULTIPLE);
    PixelSize { width, height }
}

/// The size in which the encoder sees a picture: sides are multiples of
/// `factor`, the area lies between `min_pixels` and `max_pixels`.
///
/// Source: transformers 5.23, `smart_resize` of the Qwen2-VL image processor.
#[must_use]
pub fn smart_resize(
    size: PixelSize,
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> PixelSize {
    let factor_f = factor as f64;
    let (width, height) = (size.width as f64, size.height as f64);
    let nearest = |side: f64| (side / factor_f).round_ties_even() as usize * factor;
    let rounded = PixelSize { width: nearest(width), height: nearest(height) };
    let area = rounded.width * rounded.height;
    if area > max_pixels {
        let shrink = (width * height / max_pixels as f64).sqrt();
        let floor = |side: f64| ((side / shrink / factor_f).floor() as usize * factor).max(factor);
        return PixelSize { width: floor(width), height: floor(height) };
    }
    if area < min_pixels {
        let grow = (min_pixels as f64 / (width * height)).sqrt();
        let ceil = |side: f64| (side * grow / factor_f).ceil() as usize * factor;
        return PixelSize { width: ceil(width), height: ceil(height) };
    }
    rounded
}

/// A picture as the vision tower takes it.
pub struct EncoderInput {
    /// (patches, `patch_dim`).
    pub patches: Tensor,
    /// Rows and columns of patches.
    pub grid: Grid,
}

/// Cuts a picture into the vision tower's patches.
///
/// The picture is brought to its [`smart_resize`] size with torchvision's
/// bicubic filter (even if that changes little), normalised, and cut so that the
/// four patches of a merged token lie together. A patch's numbers are ordered by
/// colour, frame, row and column; all frames of a still picture are alike.
///
/// # Errors
/// A candle error if the device refuses memory.
///
/// Source: transformers 5.23, `Qwen2VLImageProcessor`.
pub fn encoder_input(
    image: &RgbImage,
    processor: &ProcessorConfig,
    vision: &VisionConfig,
    (dtype, device): (DType, &Device),
) -> Result<EncoderInput> {
    let grid = encoder_grid(image, processor, vision);
    let (width, height) = (grid.width * vision.patch_size, grid.height * vision.patch_size);
    let image = resize(image, width, height, Resampler::TorchvisionBicubic);
    let numbers = patch_numbers(&image, grid, processor, vision);
    let shape = (grid.len(), vision.patch_dim());
    let patches = Tensor::from_vec(numbers, shape, &Device::Cpu)?;
    Ok(EncoderInput { patches: patches.to_dtype(dtype)?.to_device(device)?, grid })
}

/// Patches of `image` along each axis when the encoder sees it.
#[must_use]
pub fn encoder_grid(image: &RgbImage, processor: &ProcessorConfig, vision: &VisionConfig) -> Grid {
    let factor = vision.patch_size * vision.spatial_merge_size;
    let size = PixelSize { width: image.width(), height: image.height() };
    let size = smart_resize(size, factor, processor.min_pixels, processor.max_pixels);
    Grid { height: size.height / vision.patch_size, width: size.width / vision.patch_size }
}

fn patch_numbers(
    image: &RgbImage,
    grid: Grid,
    processor: &ProcessorConfig,
    vision: &VisionConfig,
) -> Vec<f32> {
    let (merge, patch) = (vision.spatial_merge_size, vision.patch_size);
    // (value − 255 · mean) / (255 · deviation): the reference folds the scaling
    // of bytes to 0…1 into mean and deviation.
    let normalised: Vec<[f32; 256]> = (0..3)
        .map(|colour| {
            let mean = processor.image_mean[colour] * 255.0;
            let deviation = processor.image_std[colour] * 255.0;
            std::array::from_fn(|value| (value as f32 - mean) / deviation)
        })
        .collect();
    let mut numbers = Vec::with_capacity(grid.len() * vision.patch_dim());
    for place in patch_places(grid, merge) {
        let (top, left) = (place.0 * patch, place.1 * patch);
        for (colour, normalised) in normalised.iter().enumerate() {
            for _frame in 0..vision.temporal_patch_size {
                for row in top..top + patch {
                    let first = (row * image.width() + left) * 3 + colour;
                    let pixels = image.pixels()[first..].iter().step_by(3).take(patch);
                    numbers.extend(pixels.map(|value| normalised[usize::from(*value)]));
                }
            }
        }
    }
    numbers
}

/// Row and column of every patch: merged token by merged token, row by row.
fn patch_places(grid: Grid, merge: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..grid.height / merge).flat_map(move |block_row| {
        (0..grid.width / merge).flat_map(move |block_column| {
            (0..merge * merge).map(move |inner| {
                (block_row * merge + inner / merge, block_column * merge + inner % merge)
            })
        })
    })
}

/// A picture as the autoencoder takes it: (1, `channels`, height, width) in −1…1,
/// with its transparency as the fourth of four channels.
///
/// # Errors
/// A candle error if the device refuses memory.
///
/// Source: diffusers 0.42.1, `VaeImageProcessor.preprocess`.
pub fn vae_input(
    picture: &Picture,
    channels: usize,
    (dtype, device): (DType, &Device),
) -> Result<Tensor> {
    let colours = picture.colour().pixels();
    let bytes = if channels == VaeConfig::COLOURS {
        colours.to_vec()
    } else {
        let opacity = |pixel: usize| picture.alpha().map_or(255, |alpha| alpha.pixels()[pixel]);
        let pixels = colours.chunks_exact(VaeConfig::COLOURS).enumerate();
        pixels.flat_map(|(index, rgb)| [rgb[0], rgb[1], rgb[2], opacity(index)]).collect()
    };
    let numbers: Vec<f32> =
        bytes.iter().map(|value| 2.0 * (f32::from(*value) / 255.0) - 1.0).collect();
    let shape = (1, picture.height(), picture.width(), channels);
    Tensor::from_vec(numbers, shape, &Device::Cpu)?
        .permute((0, 3, 1, 2))?
        .contiguous()?
        .to_dtype(dtype)?
        .to_device(device)
}

/// Where a picture is to be made anew, token by token: 1 there, 0 elsewhere.
///
/// `mask`: of the picture's size; bright, from the middle on, is anew. Of each
/// latent pixel's `factor` by `factor` pixels the first one decides. Returns
/// (1, tokens, `numbers`), `numbers` being those of a token.
///
/// # Errors
/// A candle error if the device refuses memory.
///
/// Source: diffusers 0.42.1, `QwenImageInpaintPipeline.prepare_mask_latents`.
pub fn mask_tokens(
    mask: &GreyImage,
    factor: usize,
    numbers: usize,
    (dtype, device): (DType, &Device),
) -> Result<Tensor> {
    let (rows, columns) = (mask.height() / factor, mask.width() / factor);
    let at =
        |row: usize, column: usize| mask.pixels()[row * factor * mask.width() + column * factor];
    let anew: Vec<f32> = (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| if at(row, column) >= 128 { 1.0 } else { 0.0 })
        .collect();
    let pixels = Tensor::from_vec(anew, (1, 1, rows, columns), &Device::Cpu)?;
    pack_latents(&pixels.repeat((1, numbers / 4, 1, 1))?)?.to_dtype(dtype)?.to_device(device)
}

/// A finished picture.
///
/// `image`: (1, 3 or 4, height, width), bounded here to −1…1, and finite. Halves are rounded to even, as numpy does.
///
/// # Errors
/// A candle error if the shapes do not fit.
///
/// Source: diffusers 0.42.1, `VaeImageProcessor.postprocess`.
pub fn output_picture(image: &Tensor) -> Result<Picture> {
    let (_, channels, height, width) = image.dims4()?;
    let image = ((image * 0.5)? + 0.5)?.clamp(0.0, 1.0)?;
    let numbers = image
        .to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .squeeze(0)?
        .permute((1, 2, 0))?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let bytes: Vec<u8> =
        numbers.iter().map(|value| (value * 255.0).round_ties_even() as u8).collect();
    let refused = |error: ImageError| candle_core::Error::Msg(error.to_string());
    let transparent = channels > VaeConfig::COLOURS;
    let pixels = bytes.chunks_exact(channels);
    let colours = pixels.flat_map(|pixel| &pixel[..VaeConfig::COLOURS]).copied().collect();
    let colour = RgbImage::new(width, height, colours).map_err(refused)?;
    if !transparent {
        return Ok(colour.into());
    }
    let opacity = bytes.iter().skip(VaeConfig::COLOURS).step_by(channels).copied().collect();
    let alpha = GreyImage::new(width, height, opacity).map_err(refused)?;
    Picture::with_alpha(colour, alpha).map_err(refused)
}
