//! Some parts of a picture's way alone, to measure them: what the others would have made
//! is drawn at random.

use candle_core::{Result as TensorResult, Tensor};

use super::conditioning::{Conditioning, Guidance};
use super::denoise::{Denoising, StepInputs, Watch};
use super::job::Job;
use super::{InputLatents, Pipeline, observe};
use crate::domain::ImageRequest;
use crate::model::benchmark::Part;
use crate::model::components::finite::Arithmetic;
use crate::model::components::noise::TorchGenerator;
use crate::model::{ModelError, StepObserver, StepProgress};
use crate::nn::trace;

impl Pipeline {
    /// The way of `request` as [`Pipeline::make`] goes it, but only `parts` of it.
    /// `text_tokens`: of each prompt that the transformer sees.
    pub(in crate::model::qwen_image) fn make_parts(
        &self,
        request: &ImageRequest,
        parts: &[Part],
        text_tokens: &[usize],
        observer: &mut dyn StepObserver,
    ) -> Result<(), ModelError> {
        let mut stage = trace::stage("plan");
        let job = self.plan(request)?;
        let grids = self.grids(&job);
        let total_steps = self.schedule(&job, &grids, request)?.steps();
        let progress = StepProgress { image: 0, step: 0, total_steps };
        observe(observer, progress)?;
        stage.next("text encoder");
        if parts.contains(&Part::TextEncoder) {
            self.encode_prompts(&job.shown, request, &grids)?;
        }
        observe(observer, progress)?;
        stage.next("vae encoder");
        if parts.contains(&Part::VaeEncoder) {
            self.encode_pictures(&job)?;
        }
        observe(observer, progress)?;
        stage.next("modulation");
        if parts.contains(&Part::Transformer) {
            let guidance = self.random_guidance(request, text_tokens)?;
            self.denoise_random((request, &job), &guidance, &mut stage, observer)?;
        } else {
            observe(observer, progress)?;
        }
        stage.next("vae decoder");
        if parts.contains(&Part::VaeDecoder) {
            let noise =
                self.noise(&mut TorchGenerator::new(0), self.grid(job.output), job.frames())?;
            self.decode(&Self::pack_frames(&noise)?, &job, job.made_frames())?;
        }
        Ok(())
    }

    fn denoise_random(
        &self,
        (request, job): (&ImageRequest, &Job),
        guidance: &Guidance,
        stage: &mut trace::Span,
        observer: &mut dyn StepObserver,
    ) -> Result<(), ModelError> {
        let grids = self.grids(job);
        let schedule = self.schedule(job, &grids, request)?;
        let transformer = &self.components.transformer;
        let modulations = self.cache.modulations(transformer, &self.noise_levels(&schedule))?;
        let batching = self.batching(request, guidance, &grids)?;
        let step_inputs = StepInputs {
            guidance,
            cfg_rescale: self.variant.cfg_rescale,
            modulations: &modulations,
            cache_threshold: request.cache_threshold,
            joining: batching.joining,
        };
        let denoising = Denoising::new(transformer, step_inputs, &grids, &schedule)?;
        stage.next("steps");
        let tokens = grids[job.frames()..].iter().map(|grid| grid.len()).sum();
        let width = transformer.config().in_channels;
        let references = (tokens > 0).then(|| self.random(tokens, width)).transpose()?;
        let inputs = InputLatents { references, source: None, arithmetic: Arithmetic::OfModel };
        let decode = &|latents: &Tensor| self.preview(latents, job);
        let total_steps = schedule.steps();
        for together in batching.groups(request.count.get()) {
            let start =
                |index| self.start(request.seed.of_image(index).get(), job, &inputs, &schedule);
            let starts = together.clone().map(start).collect::<TensorResult<_>>()?;
            let first_image = together.start;
            let mut watch = Watch { observer: &mut *observer, first_image, total_steps, decode };
            denoising.run(starts, &mut watch)?;
        }
        Ok(())
    }

    fn random_guidance(
        &self,
        request: &ImageRequest,
        text_tokens: &[usize],
    ) -> TensorResult<Guidance> {
        let width = self.components.transformer.config().joint_attention_dim;
        let conditioning = |tokens: usize| {
            Ok::<_, candle_core::Error>(Conditioning {
                embeds: self.random(tokens, width)?,
                words: tokens,
            })
        };
        let mut prompts = text_tokens.iter().map(|tokens| conditioning(*tokens));
        Ok(Guidance {
            positive: prompts.next().unwrap_or_else(|| conditioning(1))?,
            negative: prompts.next().transpose()?,
            scale: request.guidance.get(),
            warnings: Vec::new(),
        })
    }

    /// (1, tokens, width)
    fn random(&self, tokens: usize, width: usize) -> TensorResult<Tensor> {
        let (dtype, device) = self.tensor_kind();
        Tensor::randn(0f32, 1.0, (1, tokens, width), device)?.to_dtype(dtype)
    }
}
