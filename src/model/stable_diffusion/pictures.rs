//! Pictures ↔ tensors.
//!
//! Source: diffusers 0.42.1, `VaeImageProcessor`.

use candle_core::{Device, Result, Tensor};

use crate::domain::{ImageSize, RgbImage};
use crate::imaging::resample::{Resampler, resize};
use crate::model::ModelError;

/// `image` brought to `size` with Pillow's Lanczos filter, as
/// (1, 3, height, width) in −1…1, float32.
///
/// # Errors
/// A candle error if the device refuses memory.
pub(super) fn to_tensor(image: &RgbImage, size: ImageSize, device: &Device) -> Result<Tensor> {
    let (width, height) = (size.width(), size.height());
    let resized;
    let image = if (image.width(), image.height()) == (width, height) {
        image
    } else {
        resized = resize(image, width, height, Resampler::PillowLanczos);
        &resized
    };
    let numbers = image.pixels().iter().map(|byte| f32::from(*byte) / 255.0 * 2.0 - 1.0);
    Tensor::from_vec(numbers.collect::<Vec<f32>>(), (1, height, width, 3), &Device::Cpu)?
        .permute((0, 3, 1, 2))?
        .contiguous()?
        .to_device(device)
}

/// The picture in `pixels`: (1, 3, height, width), −1…1, float32, finite. Halves are
/// rounded to even, as numpy does.
///
/// # Errors
/// A candle error, or [`ModelError::BadOutput`] if there is no pixel.
pub(super) fn to_picture(pixels: &Tensor) -> std::result::Result<RgbImage, ModelError> {
    let (_, _, height, width) = pixels.dims4()?;
    let shares = ((pixels * 0.5)? + 0.5)?.clamp(0.0, 1.0)?;
    let shares = shares.to_device(&Device::Cpu)?.squeeze(0)?.permute((1, 2, 0))?;
    let numbers = shares.flatten_all()?.to_vec1::<f32>()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255")]
    let bytes = numbers.iter().map(|share| (share * 255.0).round_ties_even() as u8).collect();
    RgbImage::new(width, height, bytes).map_err(|error| ModelError::BadOutput(error.to_string()))
}
