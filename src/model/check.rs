//! Whole pictures on a device, held against those that the CPU makes in 32 bits,
//! which the tests hold against the reference.

use super::registry::{find_embedded, load_from};
use super::{DeviceChoice, DtypeChoice, LoadError, ModelConfig, ModelError, Unobserved};
use crate::domain::{
    GuidanceScale, ImageCount, ImageRequest, OutputSize, Prompt, RgbImage, Seed, Steps, Task,
    ValidationError,
};

/// One edit, made twice.
#[derive(Debug, Clone)]
pub struct PictureCheck {
    /// The embedded model.
    pub model: &'static str,
    /// Number format on the device.
    pub dtype: DtypeChoice,
    /// The largest difference of two colours, in levels of 255.
    pub largest_difference: u8,
    /// Peak signal to noise ratio, in decibels; infinite if nothing differs.
    pub decibels: f64,
    /// The least that is right.
    pub least_decibels: f64,
}

impl PictureCheck {
    /// Whether the device is right.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.decibels >= self.least_decibels
    }
}

/// Why a check was not made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The model cannot be loaded.
    #[error("the model cannot be loaded")]
    Load(#[from] LoadError),
    /// A picture was not made.
    #[error("no picture was made")]
    Model(#[from] ModelError),
    /// The request is faulty.
    #[error(transparent)]
    Request(#[from] ValidationError),
}

/// What is checked: the embedded model, its number format, and the least decibels.
///
/// In 32 bits other kernels sum in another order, which the reference itself shows by
/// a level here and there: 60 dB are reached if one colour in sixteen is off by one. In
/// 16 bits the CPU reaches 39 dB (bfloat16) and more than 40 (float16).
/// With layers of 8 bits, where random weights make the most of every rounding, 20 are wanted.
const CHECKS: [(&str, DtypeChoice, f64); 5] = [
    ("tiny-random", DtypeChoice::Float32, 60.0),
    ("demo", DtypeChoice::Float32, 60.0),
    ("tiny-random", DtypeChoice::Bfloat16, 30.0),
    ("tiny-random", DtypeChoice::Float16, 40.0),
    ("tiny-random", DtypeChoice::Fp8, 20.0),
];

/// Edits a picture with embedded models on `device` and on the CPU.
///
/// # Errors
/// [`CheckError`]: no such device, or a model fails on it.
pub fn check_device(device: DeviceChoice) -> Result<Vec<PictureCheck>, CheckError> {
    CHECKS
        .into_iter()
        .map(|(model, dtype, least_decibels)| {
            let expected = edit(model, DeviceChoice::Cpu, DtypeChoice::Float32)?;
            let ours = edit(model, device, dtype)?;
            let pairs = || ours.pixels().iter().zip(expected.pixels());
            let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
            let error = pairs().map(square).sum::<f64>() / pairs().count() as f64;
            Ok(PictureCheck {
                model,
                dtype,
                largest_difference: pairs().map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0),
                decibels: 10.0 * (255.0_f64.powi(2) / error).log10(),
                least_decibels,
            })
        })
        .collect()
}

/// The picture that an embedded model makes of stripes.
fn edit(model: &str, device: DeviceChoice, dtype: DtypeChoice) -> Result<RgbImage, CheckError> {
    let snapshot = find_embedded(model).ok_or_else(|| LoadError::UnknownModel {
        id: model.to_owned(),
        reason: "it is no embedded model".to_owned(),
    })?;
    let config =
        ModelConfig { device, dtype, image_area: Some(SIDE * SIDE), ..ModelConfig::of(model) };
    let mut model = load_from(&snapshot, model.to_owned(), &config)?;
    let request = ImageRequest {
        task: Task::Edit { images: vec![stripes().into()] },
        prompt: Prompt::new("make it black and white")?,
        negative_prompt: Some(Prompt::negative(" ")?),
        count: ImageCount::new(1)?,
        size: OutputSize::Reference,
        steps: Steps::new(4)?,
        guidance: GuidanceScale::new(2.0)?,
        seed: Seed::new(7),
    };
    let generation = model.generate(&request, &mut Unobserved)?;
    let made = generation.images.into_iter().next();
    let made = made.ok_or_else(|| ModelError::BadOutput("no picture".to_owned()))?;
    Ok(made.image.colour().clone())
}

/// Side of the picture, in pixels.
const SIDE: usize = 128;

fn stripes() -> RgbImage {
    let mut pixels = Vec::with_capacity(SIDE * SIDE * 3);
    for row in 0..SIDE {
        for column in 0..SIDE {
            let band = u8::try_from((row + 2 * column) / 16 % 8).unwrap_or(0);
            pixels.extend([255 - 30 * band, 30 * band, 100 + 15 * band]);
        }
    }
    RgbImage::new(SIDE, SIDE, pixels).unwrap_or_else(|_| RgbImage::filled(SIDE, SIDE, [128; 3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_right_in_every_format() {
        for check in check_device(DeviceChoice::Cpu).unwrap() {
            assert!(check.passed(), "{check:?}");
            if check.dtype == DtypeChoice::Float32 {
                assert_eq!(check.largest_difference, 0, "{check:?}");
            } else {
                assert!(check.largest_difference > 0, "{check:?}: the same arithmetic twice");
            }
        }
    }
}
