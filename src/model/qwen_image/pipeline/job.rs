//! What a request comes to for a model: sizes, and pictures at those sizes.

use std::ops::Range;

use super::{Pipeline, PixelSize, Shown, preprocess};
use crate::domain::{
    GreyImage, ImageRequest, LayerCount, OutputSize, Picture, RgbImage, Strength, Task, TaskKind,
};
use crate::imaging::region::{self, Region};
use crate::imaging::resample::{Resampler, resize, resize_grey, resize_picture};
use crate::model::qwen_image::config::VaeConfig;
use crate::model::{EditKind, ModelError};

/// The most elongated picture that the encoder's processor accepts.
const MAX_ASPECT_RATIO: usize = 200;

/// A request in pixels.
pub(in crate::model::qwen_image) struct Job {
    /// Of the picture being made: on the model's grid.
    pub(super) output: PixelSize,
    /// What the encoder sees, in order.
    pub(super) shown: Vec<RgbImage>,
    /// What the transformer looks at, in order.
    pub(super) references: Vec<Picture>,
    /// What the picture is made from, if not from noise alone.
    pub(super) source: Option<Source>,
    /// Into how many layers the reference is taken apart.
    layers: Option<usize>,
}

/// A picture that another one is made from.
pub(super) struct Source {
    /// Of the output's size.
    pub(super) picture: Picture,
    /// How far to go from it: 0 to 1.
    pub(super) strength: f64,
    /// Of the output's size: bright where the picture is made anew.
    pub(super) mask: Option<GreyImage>,
    /// Whether the transformer looks at it, too.
    pub(super) is_reference: bool,
    /// What the output is laid into, if `picture` is a part only.
    pub(super) whole: Option<Whole>,
}

/// A picture of which only a part is made anew.
pub(super) struct Whole {
    pub(super) image: RgbImage,
    /// Of the image's size.
    pub(super) mask: GreyImage,
    /// The part.
    pub(super) region: Region,
}

/// A mask with the model's attention drawn to it, or not.
#[derive(Clone, Copy)]
struct Masking<'a> {
    mask: &'a GreyImage,
    crop_padding: Option<usize>,
}

impl Job {
    /// Pictures that are denoised together: a picture taken apart is made again as
    /// a whole, too.
    pub(super) fn frames(&self) -> usize {
        self.layers.map_or(1, |layers| layers + 1)
    }

    /// Those of them that are handed out.
    pub(in crate::model::qwen_image) fn made_frames(&self) -> Range<usize> {
        self.frames() - self.layers.unwrap_or(1)..self.frames()
    }
}

impl PixelSize {
    pub(super) fn of(picture: &Picture) -> Self {
        Self { width: picture.width(), height: picture.height() }
    }
}

fn unsuitable(field: &'static str, reason: impl Into<String>) -> ModelError {
    ModelError::Unsuitable { field, reason: reason.into() }
}

/// The kernels that candle brings for a GPU count the numbers of a tensor in 32 bits:
/// beyond that they leave out some, or never end.
fn expect_countable(vae: &VaeConfig, size: PixelSize) -> Result<(), ModelError> {
    let PixelSize { width, height } = size;
    if u32::try_from(vae.most_numbers(width, height)).is_ok() {
        return Ok(());
    }
    let most = u32::MAX as usize / vae.most_numbers(0, 0).max(1) * 4;
    Err(unsuitable(
        "size",
        format!("{width}x{height} is too large for a card: about {most} pixels are the most."),
    ))
}

impl Pipeline {
    /// Finds what `request` comes to.
    ///
    /// # Errors
    /// [`ModelError::Unsuitable`] if this model cannot serve it.
    pub(super) fn plan(&self, request: &ImageRequest) -> Result<Job, ModelError> {
        let size = request.size;
        let can_inpaint = self.variant.tasks.contains(TaskKind::Inpainting);
        let job = match (&request.task, self.variant.edit_kind) {
            (Task::Generate, EditKind::ImageToImage) => Job {
                output: self.asked(size, None).floored_to(self.card.size_multiple),
                shown: Vec::new(),
                references: Vec::new(),
                source: None,
                layers: None,
            },
            (Task::Edit { images }, EditKind::Instruction) => self.plan_edit(images, size)?,
            (Task::ImageToImage { image, strength }, EditKind::ImageToImage) => {
                self.plan_from_source(image, None, *strength, size)?
            }
            (Task::Inpaint { image, mask, strength, crop_padding }, _) if can_inpaint => {
                let masking = Masking { mask, crop_padding: *crop_padding };
                self.plan_from_source(image, Some(masking), *strength, size)?
            }
            (Task::Decompose { image, layers }, EditKind::Layers) => {
                if request.prompt.as_str().trim().is_empty() {
                    return Err(unsuitable(
                        "prompt",
                        "This model needs a prompt that describes the whole picture.",
                    ));
                }
                self.plan_layers(image, *layers, size)?
            }
            (task, _) => return Err(self.refuse(task)),
        };
        let least = self.card.size_multiple;
        if job.output.width < least || job.output.height < least {
            return Err(unsuitable("size", format!("Both sides must be at least {least} pixels.")));
        }
        if !self.components.device.is_cpu() {
            let sizes = job.references.iter().map(PixelSize::of).chain([job.output]);
            sizes
                .into_iter()
                .try_for_each(|size| expect_countable(&self.components.vae_config, size))?;
        }
        Ok(job)
    }

    fn refuse(&self, task: &Task) -> ModelError {
        let (field, cannot) = match task {
            Task::Generate => ("image", "make pictures without one to begin with"),
            Task::Edit { .. } => ("image", "edit as instructed"),
            Task::ImageToImage { .. } => ("image", "make a picture anew from another one"),
            Task::Inpaint { .. } => ("mask", "make a part of a picture anew"),
            Task::Decompose { .. } => ("layers", "take a picture apart into layers"),
        };
        unsuitable(field, format!("This model ({}) cannot {cannot}.", self.variant.class_name))
    }

    /// An edit: every picture is scaled to the model's area.
    fn plan_edit(&self, images: &[Picture], size: OutputSize) -> Result<Job, ModelError> {
        let most = self.variant.max_input_images;
        if images.is_empty() || images.len() > most {
            let count = images.len();
            let reason = format!("This model edits 1 to {most} pictures at once, got {count}.");
            return Err(unsuitable("image", reason));
        }
        let mut shown = Vec::with_capacity(images.len());
        let mut references = Vec::with_capacity(images.len());
        for (index, image) in images.iter().enumerate() {
            let reference = if index == 0 && size == OutputSize::AsInput {
                PixelSize::of(image).floored_to(self.card.size_multiple)
            } else {
                self.size_of_area(self.card.image_area, image)?
            };
            let reference = self.scaled(image, reference);
            shown.extend(self.shown(image, &reference)?);
            references.push(reference);
        }
        // Without a size, the output is as large as the last picture.
        let output = match (size, references.as_slice()) {
            (OutputSize::Exact(size), _) => {
                PixelSize { width: size.width(), height: size.height() }
            }
            (OutputSize::AsInput, [chosen, ..]) | (OutputSize::Reference, [.., chosen]) => {
                PixelSize::of(chosen)
            }
            (OutputSize::AsInput | OutputSize::Reference, []) => self.asked(size, None),
        };
        let output = output.floored_to(self.card.size_multiple);
        Ok(Job { output, shown, references, source: None, layers: None })
    }

    /// A picture made from `image`, as a whole or where the mask is bright.
    fn plan_from_source(
        &self,
        image: &Picture,
        masking: Option<Masking>,
        strength: Strength,
        size: OutputSize,
    ) -> Result<Job, ModelError> {
        let is_reference = self.variant.edit_kind == EditKind::Instruction;
        let wanted =
            if is_reference { self.own_size(size, image)? } else { self.asked(size, Some(image)) };
        let output = wanted.floored_to(self.card.size_multiple);
        if let Some(masking) = masking
            && (masking.mask.width(), masking.mask.height()) != (image.width(), image.height())
        {
            return Err(unsuitable("mask", "The mask must have the size of the picture."));
        }
        let mut whole = image.clone();
        let mut mask = masking.map(|masking| masking.mask.clone());
        if is_reference {
            // Instructions are about the whole picture, as large as the output.
            whole = self.scaled(&whole, output);
            mask = mask.map(|mask| scaled_mask(&mask, output));
        }
        let shown = self.shown(&whole, &whole)?.into_iter().collect();
        let crop = masking.and_then(|masking| masking.crop_padding);
        let (picture, mask, whole) = match (mask, crop) {
            (Some(mask), Some(padding)) => {
                let region = Region::around(&mask, wanted.width, wanted.height, padding);
                let Some(region) = region else {
                    return Err(unsuitable("mask", "The mask leaves nothing to be made anew."));
                };
                let part = region.cut(whole.colour());
                let picture = region::fill(&part, output.width, output.height);
                let part = region.cut_grey(&mask);
                let part_mask = region::fill_grey(&part, output.width, output.height);
                let whole = Whole { image: whole.colour().clone(), mask, region };
                (picture.into(), Some(part_mask), Some(whole))
            }
            (mask, _) => {
                let mask = mask.map(|mask| scaled_mask(&mask, output));
                (self.scaled(&whole, output), mask, None)
            }
        };
        let strength = strength.get();
        let source = Source { picture, strength, mask, is_reference, whole };
        Ok(Job { output, shown, references: Vec::new(), source: Some(source), layers: None })
    }

    fn plan_layers(
        &self,
        image: &Picture,
        layers: LayerCount,
        size: OutputSize,
    ) -> Result<Job, ModelError> {
        let output = self.own_size(size, image)?.floored_to(self.card.size_multiple);
        let reference = self.scaled(image, output);
        Ok(Job {
            output,
            shown: self.shown(image, &reference)?.into_iter().collect(),
            references: vec![reference],
            source: None,
            layers: Some(layers.get()),
        })
    }

    /// What the encoder sees of `image`, of which the autoencoder sees `reference`.
    fn shown(&self, image: &Picture, reference: &Picture) -> Result<Option<RgbImage>, ModelError> {
        Ok(match self.variant.shown {
            Shown::Nothing => None,
            Shown::Reference => Some(reference.colour().clone()),
            Shown::Copy { area } => {
                let size = self.size_of_area(area, image)?;
                let copy =
                    resize(image.colour(), size.width, size.height, Resampler::PillowLanczos);
                Some(copy)
            }
        })
    }

    /// `image` at another size, with its transparency if this model knows of any.
    fn scaled(&self, image: &Picture, size: PixelSize) -> Picture {
        if self.components.vae_config.input_channels > 3 {
            return resize_picture(image, size.width, size.height, Resampler::PillowLanczos);
        }
        resize(image.colour(), size.width, size.height, Resampler::PillowLanczos).into()
    }

    /// The size of about `area` pixels with the shape of `image`.
    fn size_of_area(&self, area: usize, image: &Picture) -> Result<PixelSize, ModelError> {
        let (width, height) = (image.width(), image.height());
        let size = preprocess::size_of_area(area, width, height);
        let (short, long) = (size.width.min(size.height), size.width.max(size.height));
        if short == 0 || long > MAX_ASPECT_RATIO * short {
            return Err(unsuitable(
                "image",
                format!(
                    "A picture of {width}x{height} pixels is too long and narrow for this model."
                ),
            ));
        }
        Ok(size)
    }

    /// The size that a picture is brought to where the output has the same.
    fn own_size(&self, size: OutputSize, image: &Picture) -> Result<PixelSize, ModelError> {
        match size {
            OutputSize::Reference => self.size_of_area(self.card.image_area, image),
            OutputSize::Exact(_) | OutputSize::AsInput => Ok(self.asked(size, Some(image))),
        }
    }

    /// What is asked for; the model's own square if nothing is.
    fn asked(&self, size: OutputSize, image: Option<&Picture>) -> PixelSize {
        match (size, image) {
            (OutputSize::Exact(size), _) => {
                PixelSize { width: size.width(), height: size.height() }
            }
            (OutputSize::AsInput, Some(image)) => PixelSize::of(image),
            (OutputSize::AsInput | OutputSize::Reference, _) => {
                preprocess::size_of_area(self.card.image_area, 1, 1)
            }
        }
    }
}

fn scaled_mask(mask: &GreyImage, size: PixelSize) -> GreyImage {
    resize_grey(mask, size.width, size.height, Resampler::PillowLanczos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_more_numbers_than_candle_counts_on_a_card_are_refused() {
        // As published: 192 channels at the picture's full size.
        let vae = VaeConfig {
            input_channels: 3,
            base_dim: 96,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            temperal_downsample: vec![false, true, true],
            latents_mean: vec![0.0; 16],
            latents_std: vec![1.0; 16],
        };
        let check = |width, height| expect_countable(&vae, PixelSize { width, height });

        assert!(check(1024, 1024).is_ok() && check(4720, 4720).is_ok());
        assert_eq!(vae.most_numbers(8192, 8192), 192 * 8194 * 8194);
        let error = check(8192, 8192).unwrap_err().to_string();
        assert!(error.contains("8192x8192") && error.contains("22369620 pixels"), "{error}");
        assert!(check(4736, 4736).is_err());
    }
}
