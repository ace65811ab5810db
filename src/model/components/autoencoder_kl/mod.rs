//! The autoencoder: pixels ↔ latents, from candle-transformers' blocks.
//!
//! candle-transformers' whole `AutoEncoderKL` does not serve: it keeps mean and
//! deviation to itself and draws from candle's own generator.
//!
//! Source: diffusers 0.42.1, `AutoencoderKL`.

mod config;

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{GroupNorm, group_norm};
use candle_transformers::models::stable_diffusion::resnet::{ResnetBlock2D, ResnetBlock2DConfig};
use candle_transformers::models::stable_diffusion::unet_2d_blocks::{
    UNetMidBlock2D, UNetMidBlock2DConfig,
};

pub use config::VaeConfig;

use super::layers::load_conv;
use crate::checkpoint::Weights;
use crate::interruption;
use crate::nn::{Conv2d, Padding, clip, silu};

/// Of all group normalisations.
const EPS: f64 = 1e-6;
const COLOURS: usize = 3;

/// `AutoencoderKL`.
pub struct Vae {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    config: VaeConfig,
    dtype: DType,
}

/// What an encoded picture may be: a normal distribution.
pub struct Posterior {
    /// (1, latent channels, rows, columns), float32.
    pub mean: Tensor,
    /// Standard deviation, likewise.
    pub deviation: Tensor,
}

impl Posterior {
    /// Of what [`Vae::encode_moments`] returns.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn of_moments(moments: &Tensor) -> Result<Self> {
        let channels = moments.dim(1)? / 2;
        let mean = moments.narrow(1, 0, channels)?.contiguous()?;
        let log_variance = clip(&moments.narrow(1, channels, channels)?, -30.0, 20.0)?;
        Ok(Self { mean, deviation: (log_variance * 0.5)?.exp()? })
    }
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: UNetMidBlock2D,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: UNetMidBlock2D,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Vae {
    /// Takes the autoencoder's tensors from `weights`; it computes in their format.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let latents = config.latent_channels;
        let pointwise = |name: &str, channels: usize, wanted: bool| {
            let load = || load_conv(&weights.at(name), channels, channels, (1, 1));
            wanted.then(load).transpose()
        };
        Ok(Self {
            encoder: Encoder::load(&weights.at("encoder"), config)?,
            decoder: Decoder::load(&weights.at("decoder"), config)?,
            quant_conv: pointwise("quant_conv", 2 * latents, config.use_quant_conv)?,
            post_quant_conv: pointwise("post_quant_conv", latents, config.use_post_quant_conv)?,
            config: config.clone(),
            dtype: weights.dtype(),
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// `image`: (1, 3, height, width) in −1…1. Returns the distribution of
    /// unscaled latents, (1, latent channels, height/factor, width/factor).
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn encode(&self, image: &Tensor) -> Result<Posterior> {
        Posterior::of_moments(&self.encode_moments(image)?)
    }

    /// The same as means and logarithms of variances: (1, 2 · latent channels,
    /// height/factor, width/factor), float32.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn encode_moments(&self, image: &Tensor) -> Result<Tensor> {
        let mut moments = self.encoder.forward(&image.to_dtype(self.dtype)?)?;
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(&moments)?;
        }
        moments.to_dtype(DType::F32)
    }

    /// `latents`: (1, latent channels, rows, columns), unscaled. Returns
    /// (1, 3, rows · factor, columns · factor) in about −1…1, float32.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut latents = latents.to_dtype(self.dtype)?;
        if let Some(conv) = &self.post_quant_conv {
            latents = conv.forward(&latents)?;
        }
        self.decoder.forward(&latents)?.to_dtype(DType::F32)
    }
}

/// The block between the ways in and out: one attention of a single head.
fn load_mid_block(weights: &Weights, channels: usize, groups: usize) -> Result<UNetMidBlock2D> {
    let config = UNetMidBlock2DConfig {
        num_layers: 1,
        resnet_eps: EPS,
        resnet_groups: Some(groups),
        attn_num_head_channels: None,
        output_scale_factor: 1.0,
    };
    UNetMidBlock2D::new(weights.at("mid_block").var_builder(), channels, None, config)
}

/// One resolution: residual layers, and the way to the next.
struct Level {
    resnets: Vec<ResnetBlock2D>,
    resample: Option<(Resampling, Conv2d)>,
}

/// Where a level leads.
#[derive(Clone, Copy)]
enum Resampling {
    /// To half the rows and columns.
    Halve,
    /// To twice as many.
    Double,
}

impl Level {
    /// `layers` layers whose normalisations have `groups` groups, from `before` to
    /// `after` channels.
    fn load(
        weights: &Weights,
        (before, after): (usize, usize),
        (layers, groups): (usize, usize),
        resampling: Option<Resampling>,
    ) -> Result<Self> {
        let config = ResnetBlock2DConfig {
            out_channels: Some(after),
            temb_channels: None,
            groups,
            groups_out: None,
            eps: EPS,
            use_in_shortcut: None,
            output_scale_factor: 1.0,
        };
        let resnets = (0..layers).map(|at| {
            let inputs = if at == 0 { before } else { after };
            ResnetBlock2D::new(weights.at("resnets").at(at).var_builder(), inputs, config)
        });
        let resnets = resnets.collect::<Result<_>>()?;
        let resample = resampling.map(|resampling| {
            let conv = match resampling {
                Resampling::Halve => load_halving(&weights.at("downsamplers.0.conv"), after),
                Resampling::Double => {
                    load_conv(&weights.at("upsamplers.0.conv"), after, after, (3, 1))
                }
            };
            Ok::<_, candle_core::Error>((resampling, conv?))
        });
        Ok(Self { resnets, resample: resample.transpose()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            interruption::check()?;
            x = resnet.forward(&x, None)?;
        }
        match &self.resample {
            Some((Resampling::Halve, conv)) => conv.forward(&x),
            Some((Resampling::Double, conv)) => conv.forward_doubled(&x),
            None => Ok(x),
        }
    }
}

/// A 3×3 convolution that halves both sides, with zeros on the right and at the bottom.
fn load_halving(weights: &Weights, channels: usize) -> Result<Conv2d> {
    let weight = weights.get("weight", (channels, channels, 3, 3))?;
    Conv2d::new(&weight, &weights.get("bias", channels)?, Padding::RightBottom, 2)
}

/// Each level's channels before and after it.
fn level_channels(channels: impl Iterator<Item = usize>) -> Vec<(usize, usize)> {
    let mut before = None;
    channels.map(|after| (before.replace(after).unwrap_or(after), after)).collect()
}

impl Encoder {
    fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let coarsest = channels[channels.len() - 1];
        let down_blocks = level_channels(channels.iter().copied()).into_iter().enumerate();
        let down_blocks = down_blocks.map(|(at, widths)| {
            let place = weights.at("down_blocks").at(at);
            let halved = (at + 1 < channels.len()).then_some(Resampling::Halve);
            Level::load(&place, widths, (config.layers_per_block, groups), halved)
        });
        let norm = weights.at("conv_norm_out").var_builder();
        let latents = 2 * config.latent_channels;
        Ok(Self {
            conv_in: load_conv(&weights.at("conv_in"), COLOURS, channels[0], (3, 1))?,
            down_blocks: down_blocks.collect::<Result<_>>()?,
            mid_block: load_mid_block(weights, coarsest, groups)?,
            conv_norm_out: group_norm(groups, coarsest, EPS, norm)?,
            conv_out: load_conv(&weights.at("conv_out"), coarsest, latents, (3, 1))?,
        })
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for block in &self.down_blocks {
            x = block.forward(&x)?;
        }
        interruption::check()?;
        let x = self.mid_block.forward(&x, None)?;
        self.conv_out.forward(&silu(&self.conv_norm_out.forward(&x)?)?)
    }
}

impl Decoder {
    fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (finest, coarsest) = (channels[0], channels[channels.len() - 1]);
        let up_blocks = level_channels(channels.iter().rev().copied()).into_iter().enumerate();
        let up_blocks = up_blocks.map(|(at, widths)| {
            let place = weights.at("up_blocks").at(at);
            let doubled = (at + 1 < channels.len()).then_some(Resampling::Double);
            Level::load(&place, widths, (config.layers_per_block + 1, groups), doubled)
        });
        let norm = weights.at("conv_norm_out").var_builder();
        let conv_in = weights.at("conv_in");
        Ok(Self {
            conv_in: load_conv(&conv_in, config.latent_channels, coarsest, (3, 1))?,
            mid_block: load_mid_block(weights, coarsest, groups)?,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: group_norm(groups, finest, EPS, norm)?,
            conv_out: load_conv(&weights.at("conv_out"), finest, COLOURS, (3, 1))?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        interruption::check()?;
        let mut x = self.mid_block.forward(&self.conv_in.forward(latents)?, None)?;
        for block in &self.up_blocks {
            x = block.forward(&x)?;
        }
        self.conv_out.forward(&silu(&self.conv_norm_out.forward(&x)?)?)
    }
}
