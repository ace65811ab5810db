//! The U-Net: noisy latents, timestep and text → the prediction.
//!
//! Its residual layers and time embeddings are candle-transformers' own. The
//! rest is not: candle's attention layers approximate GELU, its timesteps are
//! rounded to the model's format, its way up ignores the number of groups, and it
//! has no place for SDXL's pooled text and sizes.
//!
//! Source: diffusers 0.42.1, `UNet2DConditionModel`, `Transformer2DModel`.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{GroupNorm, LayerNorm, group_norm, layer_norm};
use candle_transformers::models::stable_diffusion::embeddings::TimestepEmbedding;
use candle_transformers::models::stable_diffusion::resnet::{ResnetBlock2D, ResnetBlock2DConfig};

use super::config::{UnetBlock, UnetConfig};
use crate::checkpoint::Weights;
use crate::interruption;
use crate::model::components::layers::load_conv;
use crate::nn::{
    AttentionMask, Conv2d, Linear, attention, gelu_erf, merge_heads, silu, split_heads,
};

/// `UNet2DConditionModel`.
pub struct Unet {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UnetConfig,
    dtype: DType,
}

/// One resolution, on the way down or up.
struct Level {
    resnets: Vec<ResnetBlock2D>,
    /// As many as `resnets`, or none.
    attentions: Vec<SpatialTransformer>,
    /// To the next level: a convolution of stride 2 (down), or after doubling (up).
    resample: Option<Conv2d>,
}

struct MidBlock {
    before: ResnetBlock2D,
    attention: SpatialTransformer,
    after: ResnetBlock2D,
}

/// What a picture shall show, as the U-Net takes it.
#[derive(Clone)]
pub struct Conditioning {
    /// Hidden states of the text: (1, tokens, `cross_attention_dim`).
    pub embeds: Tensor,
    /// SDXL's further conditions, embedded: (1, time width).
    pub added: Option<Tensor>,
}

impl Unet {
    /// Takes the network's tensors from `weights`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &UnetConfig) -> Result<Self> {
        let finest = config.blocks[0].channels;
        let time_width = 4 * finest;
        let embedding = |name: &str, inputs| {
            TimestepEmbedding::new(weights.at(name).var_builder(), inputs, time_width)
        };
        let added = config
            .text_time
            .map(|added| embedding("add_embedding", added.projection_class_embeddings_input_dim));
        let loader = Loader { config, time_width };
        let norm = weights.at("conv_norm_out").var_builder();
        let conv_in = weights.at("conv_in");
        Ok(Self {
            conv_in: load_conv(&conv_in, config.in_channels, finest, (3, 1))?,
            time_embedding: embedding("time_embedding", finest)?,
            add_embedding: added.transpose()?,
            down_blocks: loader.down_blocks(&weights.at("down_blocks"))?,
            mid_block: loader.mid_block(&weights.at("mid_block"))?,
            up_blocks: loader.up_blocks(&weights.at("up_blocks"))?,
            conv_norm_out: group_norm(config.norm_num_groups, finest, config.norm_eps, norm)?,
            conv_out: load_conv(&weights.at("conv_out"), finest, config.out_channels, (3, 1))?,
            config: config.clone(),
            dtype: weights.dtype(),
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// SDXL's further conditions, embedded; `None` for networks without them.
    ///
    /// `pooled`: (1, pooled width); `sizes`: height and width of the source, top
    /// and left of its crop, height and width of the picture. Returns (1, time width).
    ///
    /// # Errors
    /// A candle error if the widths do not fit.
    pub fn embed_added(&self, pooled: &Tensor, sizes: &[usize; 6]) -> Result<Option<Tensor>> {
        let (Some(embedding), Some(added)) = (&self.add_embedding, self.config.text_time) else {
            return Ok(None);
        };
        let numbers: Vec<f32> = sizes
            .iter()
            .flat_map(|size| self.sinusoids(*size as f64, added.addition_time_embed_dim))
            .collect();
        let sizes =
            Tensor::from_vec(numbers, (1, 6 * added.addition_time_embed_dim), pooled.device())?;
        let joined = Tensor::cat(&[pooled, &sizes.to_dtype(self.dtype)?], 1)?;
        embedding.forward(&joined.contiguous()?).map(Some)
    }

    /// `sample`: (1, in channels, rows, columns), float32. Returns the prediction,
    /// (1, out channels, rows, columns), float32.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
    ) -> Result<Tensor> {
        let time = self.embed_time(timestep, conditioning, sample)?;
        let text = &conditioning.embeds;
        let mut x = self.conv_in.forward(&sample.to_dtype(self.dtype)?)?;
        let mut skipped = vec![x.clone()];
        for level in &self.down_blocks {
            for at in 0..level.resnets.len() {
                x = level.layer(at, &x, &time, text)?;
                skipped.push(x.clone());
            }
            if let Some(downsample) = &level.resample {
                x = downsample.forward(&x)?;
                skipped.push(x.clone());
            }
        }
        x = self.mid_block.forward(&x, &time, text)?;
        for level in &self.up_blocks {
            for at in 0..level.resnets.len() {
                let skip = skipped.pop().ok_or_else(|| candle_core::Error::msg("no skip"))?;
                x = level.layer(at, &Tensor::cat(&[&x, &skip], 1)?.contiguous()?, &time, text)?;
            }
            if let (Some(upsample), Some(next)) = (&level.resample, skipped.last()) {
                // Twice the size, or one less where the way down had rounded up.
                let (_, _, rows, columns) = next.dims4()?;
                x = upsample.forward(&x.upsample_nearest2d(rows, columns)?)?;
            }
        }
        let x = self.conv_out.forward(&silu(&self.conv_norm_out.forward(&x)?)?)?;
        x.to_dtype(DType::F32)
    }

    /// (1, time width)
    fn embed_time(
        &self,
        timestep: f64,
        conditioning: &Conditioning,
        sample: &Tensor,
    ) -> Result<Tensor> {
        let width = self.config.blocks[0].channels;
        let numbers = self.sinusoids(timestep, width);
        let numbers = Tensor::from_vec(numbers, (1, width), sample.device())?;
        let time = self.time_embedding.forward(&numbers.to_dtype(self.dtype)?)?;
        match &conditioning.added {
            Some(added) => time + added,
            None => Ok(time),
        }
    }

    /// Cosines and sines of `number` at `width`/2 frequencies, in 32 bits, as the
    /// reference computes them.
    #[expect(clippy::cast_possible_truncation, reason = "the reference computes in 32 bits")]
    fn sinusoids(&self, number: f64, width: usize) -> Vec<f32> {
        let half = width / 2;
        let scale = (half as f64 - self.config.freq_shift) as f32;
        let angles = (0..half).map(|at| {
            let exponent = -(10_000_f64.ln() as f32) * at as f32 / scale;
            number as f32 * exponent.exp()
        });
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let mut numbers = match self.config.flip_sin_to_cos {
            true => [cosines, sines].concat(),
            false => [sines, cosines].concat(),
        };
        numbers.resize(width, 0.0);
        numbers
    }
}

impl Level {
    /// Residual layer `at` with its attention.
    fn layer(&self, at: usize, x: &Tensor, time: &Tensor, text: &Tensor) -> Result<Tensor> {
        interruption::check()?;
        let x = self.resnets[at].forward(x, Some(time))?;
        match self.attentions.get(at) {
            Some(attention) => attention.forward(&x, text),
            None => Ok(x),
        }
    }
}

impl MidBlock {
    fn forward(&self, x: &Tensor, time: &Tensor, text: &Tensor) -> Result<Tensor> {
        interruption::check()?;
        let x = self.before.forward(x, Some(time))?;
        self.after.forward(&self.attention.forward(&x, text)?, Some(time))
    }
}

/// Loads the levels.
struct Loader<'a> {
    config: &'a UnetConfig,
    time_width: usize,
}

impl Loader<'_> {
    fn resnet(&self, weights: &Weights, inputs: usize, outputs: usize) -> Result<ResnetBlock2D> {
        let config = ResnetBlock2DConfig {
            out_channels: Some(outputs),
            temb_channels: Some(self.time_width),
            groups: self.config.norm_num_groups,
            groups_out: None,
            eps: self.config.norm_eps,
            use_in_shortcut: None,
            output_scale_factor: 1.0,
        };
        ResnetBlock2D::new(weights.var_builder(), inputs, config)
    }

    /// Residual layers from each of `inputs` to the block's channels, and as many
    /// attentions if it `attends`.
    fn layers(
        &self,
        weights: &Weights,
        inputs: &[usize],
        block: &UnetBlock,
        attends: bool,
    ) -> Result<(Vec<ResnetBlock2D>, Vec<SpatialTransformer>)> {
        let resnets = inputs.iter().enumerate().map(|(at, inputs)| {
            self.resnet(&weights.at("resnets").at(at), *inputs, block.channels)
        });
        let attending = if attends { inputs.len() } else { 0 };
        let attentions = (0..attending).map(|at| {
            SpatialTransformer::load(&weights.at("attentions").at(at), block, self.config)
        });
        Ok((resnets.collect::<Result<_>>()?, attentions.collect::<Result<_>>()?))
    }

    fn down_blocks(&self, weights: &Weights) -> Result<Vec<Level>> {
        let blocks = &self.config.blocks;
        let load = |(at, block): (usize, &UnetBlock)| {
            let weights = weights.at(at);
            let channels = block.channels;
            let inputs = self.config.down_inputs(at);
            let (resnets, attentions) =
                self.layers(&weights, &inputs, block, block.attends_down)?;
            let conv = weights.at("downsamplers.0.conv");
            let resample = (at + 1 < blocks.len())
                .then(|| load_conv(&conv, channels, channels, (3, 2)))
                .transpose()?;
            Ok(Level { resnets, attentions, resample })
        };
        blocks.iter().enumerate().map(load).collect()
    }

    fn mid_block(&self, weights: &Weights) -> Result<MidBlock> {
        let coarsest = &self.config.blocks[self.config.blocks.len() - 1];
        let resnet = |name| self.resnet(&weights.at(name), coarsest.channels, coarsest.channels);
        Ok(MidBlock {
            before: resnet("resnets.0")?,
            attention: SpatialTransformer::load(
                &weights.at("attentions.0"),
                coarsest,
                self.config,
            )?,
            after: resnet("resnets.1")?,
        })
    }

    fn up_blocks(&self, weights: &Weights) -> Result<Vec<Level>> {
        let blocks = &self.config.blocks;
        let count = blocks.len();
        let load = |at: usize| {
            let weights = weights.at(at);
            let depth = count - 1 - at;
            let block = &blocks[depth];
            let channels = block.channels;
            let inputs = self.config.up_inputs(depth);
            let (resnets, attentions) = self.layers(&weights, &inputs, block, block.attends_up)?;
            let conv = weights.at("upsamplers.0.conv");
            let resample =
                (depth > 0).then(|| load_conv(&conv, channels, channels, (3, 1))).transpose()?;
            Ok(Level { resnets, attentions, resample })
        };
        (0..count).map(load).collect()
    }
}

/// Attention over all places of a picture, and from them to the text.
struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: candle_nn::Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: candle_nn::Linear,
}

impl SpatialTransformer {
    fn load(weights: &Weights, block: &UnetBlock, config: &UnetConfig) -> Result<Self> {
        let channels = block.channels;
        // A 1×1 convolution is a dense layer at every place.
        let projection = |name: &str| -> Result<candle_nn::Linear> {
            let weights = weights.at(name);
            let weight = if config.use_linear_projection {
                weights.get("weight", (channels, channels))?
            } else {
                weights.get("weight", (channels, channels, 1, 1))?.reshape((channels, channels))?
            };
            Ok(candle_nn::Linear::new(weight, Some(weights.get("bias", channels)?)))
        };
        let transformer_blocks = (0..block.transformer_layers)
            .map(|at| {
                TransformerBlock::load(&weights.at("transformer_blocks").at(at), block, config)
            })
            .collect::<Result<_>>()?;
        let norm = weights.at("norm").var_builder();
        Ok(Self {
            norm: group_norm(config.norm_num_groups, channels, 1e-6, norm)?,
            proj_in: projection("proj_in")?,
            transformer_blocks,
            proj_out: projection("proj_out")?,
        })
    }

    /// `x`: (1, channels, rows, columns); `text`: (1, tokens, text width).
    fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let shape = x.dims4()?;
        let places = self.norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let mut places = self.proj_in.forward(&places)?; // (1, rows · columns, channels)
        for block in &self.transformer_blocks {
            interruption::check()?;
            places = block.forward(&places, text)?;
        }
        let places = self.proj_out.forward(&places)?;
        x + places.transpose(1, 2)?.contiguous()?.reshape(shape)?
    }
}

struct TransformerBlock {
    norm1: LayerNorm,
    attn1: CrossAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    /// Values and gates side by side.
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn load(weights: &Weights, block: &UnetBlock, config: &UnetConfig) -> Result<Self> {
        let channels = block.channels;
        let norm = |name| layer_norm(channels, 1e-5, weights.at(name).var_builder());
        let attention = |name, width| {
            CrossAttention::load(&weights.at(name), width, block, config.upcast_attention)
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", channels)?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", config.cross_attention_dim)?,
            norm3: norm("norm3")?,
            ff_in: Linear::load(&weights.at("ff.net.0.proj"), channels, 8 * channels)?,
            ff_out: Linear::load(&weights.at("ff.net.2"), 4 * channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let inner = self.norm1.forward(x)?;
        let x = (self.attn1.forward(&inner, &inner)? + x)?;
        let x = (self.attn2.forward(&self.norm2.forward(&x)?, text)? + x)?;
        let joined = self.ff_in.forward(&self.norm3.forward(&x)?)?;
        let width = joined.dim(2)? / 2;
        let (values, gates) = (joined.narrow(2, 0, width)?, joined.narrow(2, width, width)?);
        self.ff_out.forward(&(values * gelu_erf(&gates.contiguous()?)?)?)? + x
    }
}

/// Attention from a picture's places to themselves or to a text.
struct CrossAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    upcast: bool,
}

impl CrossAttention {
    fn load(weights: &Weights, width: usize, block: &UnetBlock, upcast: bool) -> Result<Self> {
        let channels = block.channels;
        let project = |name, inputs| Linear::load_without_bias(&weights.at(name), inputs, channels);
        Ok(Self {
            to_q: project("to_q", channels)?,
            to_k: project("to_k", width)?,
            to_v: project("to_v", width)?,
            to_out: Linear::load(&weights.at("to_out.0"), channels, channels)?,
            heads: block.heads,
            upcast,
        })
    }

    /// `x`: (1, places, channels); `seen`: (1, tokens, width).
    fn forward(&self, x: &Tensor, seen: &Tensor) -> Result<Tensor> {
        let dtype = if self.upcast { DType::F32 } else { x.dtype() };
        let heads = |projection: &Linear, from: &Tensor| {
            split_heads(&projection.forward(from)?.to_dtype(dtype)?, self.heads)
        };
        let (q, k, v) = (heads(&self.to_q, x)?, heads(&self.to_k, seen)?, heads(&self.to_v, seen)?);
        let mixed = merge_heads(&attention(&q, &k, &v, AttentionMask::None)?)?;
        self.to_out.forward(&mixed.to_dtype(x.dtype())?)
    }
}
