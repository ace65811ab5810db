//! The autoencoder: pictures ↔ latents.
//!
//! A causal 3-D network of video, used for one frame. Nothing lies before the
//! first frame, so of each kernel three frames deep only the last slice acts:
//! the network is folded to two dimensions while it is loaded, and the
//! convolutions over time are never met.
//!
//! Source: diffusers 0.42.1, `AutoencoderKLQwenImage`.

use candle_core::{DType, Device, Result, Tensor};

use super::config::VaeConfig;
use crate::checkpoint::Weights;
use crate::interruption;
use crate::nn::{After, AttentionMask, Conv2d, Padding, attention, channel_norm, clip};

/// The autoencoder with its weights.
pub struct Vae {
    encoder: Encoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Decoder,
    /// (1, z, 1, 1) each.
    latents_mean: Tensor,
    latents_std: Tensor,
    z_dim: usize,
    image_channels: usize,
    spatial_factor: usize,
    dtype: DType,
}

impl Vae {
    /// Takes all tensors of the component.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let z_dim = config.z_dim;
        let per_channel = |values: &[f64]| {
            Tensor::from_slice(values, (1, z_dim, 1, 1), &Device::Cpu)?
                .to_dtype(weights.dtype())?
                .to_device(weights.device())
        };
        Ok(Self {
            encoder: Encoder::load(&weights.at("encoder"), config)?,
            quant_conv: causal_conv(&weights.at("quant_conv"), 2 * z_dim, 2 * z_dim, 1)?,
            post_quant_conv: causal_conv(&weights.at("post_quant_conv"), z_dim, z_dim, 1)?,
            decoder: Decoder::load(&weights.at("decoder"), config)?,
            latents_mean: per_channel(&config.latents_mean)?,
            latents_std: per_channel(&config.latents_std)?,
            z_dim,
            image_channels: config.input_channels,
            spatial_factor: config.spatial_factor(),
            dtype: weights.dtype(),
        })
    }

    /// Latent channels.
    #[must_use]
    pub fn z_dim(&self) -> usize {
        self.z_dim
    }

    /// Channels of a picture: 3, or 4 with transparency.
    #[must_use]
    pub fn image_channels(&self) -> usize {
        self.image_channels
    }

    /// Image pixels of one latent pixel along each axis.
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        self.spatial_factor
    }

    /// Dtype that it computes in, and wants its inputs in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Mean and log-variance of the latents of a picture.
    ///
    /// `image`: (batch, channels, height, width) in −1…1. Returns (batch, 2 z, h, w)
    /// with the sides divided by the spatial factor.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn encode(&self, image: &Tensor) -> Result<Tensor> {
        self.quant_conv.forward(&self.encoder.forward(image)?)
    }

    /// The most likely latents of a picture, scaled to mean 0 and deviation 1.
    ///
    /// `parameters`: what [`Vae::encode`] returns. Returns that with z channels.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn most_likely(&self, parameters: &Tensor) -> Result<Tensor> {
        let mean = parameters.narrow(1, 0, self.z_dim)?;
        mean.broadcast_sub(&self.latents_mean)?.broadcast_div(&self.latents_std)
    }

    /// Latents of a picture drawn at random, scaled to mean 0 and deviation 1.
    ///
    /// `parameters`: what [`Vae::encode`] returns. `noise`: standard normal, with z
    /// channels. Returns the shape of `noise`.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    ///
    /// Source: diffusers 0.42.1, `DiagonalGaussianDistribution.sample`.
    pub fn sample(&self, parameters: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let mean = parameters.narrow(1, 0, self.z_dim)?;
        let log_variance = parameters.narrow(1, self.z_dim, self.z_dim)?;
        let log_variance = clip(&log_variance, -30.0, 20.0)?;
        let deviation = (log_variance * 0.5)?.exp()?;
        let sample = (mean + (deviation * noise)?)?;
        sample.broadcast_sub(&self.latents_mean)?.broadcast_mul(&self.latents_std.recip()?)
    }

    /// The picture of latents in the network's own scale.
    ///
    /// `latents`: (batch, z, h, w). Returns (batch, channels, height, width) in about
    /// −1…1. The reference bounds it here; we do where it becomes bytes, so that numbers
    /// that are not finite can still be seen.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.post_quant_conv.forward(latents)?)
    }

    /// The picture of latents of mean 0 and deviation 1. Shapes as [`Vae::decode`].
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        // The reference divides by the reciprocal; in 16 bits that rounds twice.
        let scaled = latents.broadcast_div(&self.latents_std.recip()?)?;
        self.decode(&scaled.broadcast_add(&self.latents_mean)?)
    }
}

/// A causal 3-D convolution on one frame: the last slice of its kernel.
fn causal_conv(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Result<Conv2d> {
    let weight = weights.get("weight", (outputs, inputs, kernel, kernel, kernel))?;
    let bias = weights.get("bias", outputs)?;
    let last_frame = weight.narrow(2, kernel - 1, 1)?.squeeze(2)?;
    Conv2d::new(&last_frame, &bias, Padding::Around(kernel / 2), 1)
}

/// A plain 2-D convolution of the checkpoint.
fn plain_conv(
    weights: &Weights,
    (inputs, outputs, kernel): (usize, usize, usize),
    padding: Padding,
    stride: usize,
) -> Result<Conv2d> {
    let weight = weights.get("weight", (outputs, inputs, kernel, kernel))?;
    Conv2d::new(&weight, &weights.get("bias", outputs)?, padding, stride)
}

/// Divides each pixel's channel vector by its length, times √channels · gamma.
struct ChannelNorm {
    /// (1, channels, 1, 1), times √channels.
    scale: Tensor,
}

impl ChannelNorm {
    /// Takes `gamma`: (channels, 1, 1, 1), or (channels, 1, 1) in attention blocks.
    fn load(weights: &Weights, channels: usize, trailing_ones: usize) -> Result<Self> {
        let mut shape = vec![channels];
        shape.resize(1 + trailing_ones, 1);
        let gamma = weights.get("gamma", shape)?.reshape((1, channels, 1, 1))?;
        Ok(Self { scale: (gamma * (channels as f64).sqrt())? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        channel_norm(x, &self.scale, After::Nothing)
    }

    /// silu(norm(x))
    fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        channel_norm(x, &self.scale, After::Silu)
    }
}

/// shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))
struct ResidualBlock {
    norm1: ChannelNorm,
    conv1: Conv2d,
    norm2: ChannelNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let shortcut = || causal_conv(&weights.at("conv_shortcut"), inputs, outputs, 1);
        Ok(Self {
            norm1: ChannelNorm::load(&weights.at("norm1"), inputs, 3)?,
            conv1: causal_conv(&weights.at("conv1"), inputs, outputs, 3)?,
            norm2: ChannelNorm::load(&weights.at("norm2"), outputs, 3)?,
            conv2: causal_conv(&weights.at("conv2"), outputs, outputs, 3)?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        interruption::check()?;
        let hidden = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let hidden = self.norm2.forward_silu(&hidden)?;
        match &self.conv_shortcut {
            Some(conv) => conv.forward_onto(&self.conv2.forward(&hidden)?, x),
            None => self.conv2.forward_onto(x, &hidden),
        }
    }
}

/// One head over all pixels of a picture.
struct AttentionBlock {
    norm: ChannelNorm,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl AttentionBlock {
    fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let conv = |name, outputs| {
            plain_conv(&weights.at(name), (channels, outputs, 1), Padding::Around(0), 1)
        };
        Ok(Self {
            norm: ChannelNorm::load(&weights.at("norm"), channels, 2)?,
            to_qkv: conv("to_qkv", 3 * channels)?,
            proj: conv("proj", channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let pixels = self
            .to_qkv
            .forward(&self.norm.forward(x)?)?
            .reshape((batch, 1, 3 * channels, height * width))?
            .transpose(2, 3)?; // (batch, 1 head, pixels, 3 channels)
        let part = |index: usize| pixels.narrow(3, index * channels, channels)?.contiguous();
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, AttentionMask::None)?;
        let attended =
            attended.transpose(2, 3)?.contiguous()?.reshape((batch, channels, height, width))?;
        x + self.proj.forward(&attended)?
    }
}

/// Residual, attention, residual: the narrowest place of either half.
struct MidBlock {
    first: ResidualBlock,
    attention: AttentionBlock,
    last: ResidualBlock,
}

impl MidBlock {
    fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let resnets = weights.at("resnets");
        Ok(Self {
            first: ResidualBlock::load(&resnets.at(0), channels, channels)?,
            attention: AttentionBlock::load(&weights.at("attentions.0"), channels)?,
            last: ResidualBlock::load(&resnets.at(1), channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.last.forward(&self.attention.forward(&self.first.forward(x)?)?)
    }
}

/// An entry of the encoder's flat list of blocks.
enum DownBlock {
    Residual(ResidualBlock),
    /// Halves height and width.
    Resample(Conv2d),
}

impl DownBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Residual(block) => block.forward(x),
            Self::Resample(conv) => conv.forward(x),
        }
    }
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    norm_out: ChannelNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<usize> =
            config.dim_mult.iter().map(|multiple| multiple * config.base_dim).collect();
        let deepest = *channels.last().unwrap_or(&config.base_dim);
        Ok(Self {
            conv_in: causal_conv(
                &weights.at("conv_in"),
                config.input_channels,
                config.base_dim,
                3,
            )?,
            down_blocks: Self::load_down_blocks(&weights.at("down_blocks"), config, &channels)?,
            mid_block: MidBlock::load(&weights.at("mid_block"), deepest)?,
            norm_out: ChannelNorm::load(&weights.at("norm_out"), deepest, 3)?,
            conv_out: causal_conv(&weights.at("conv_out"), deepest, 2 * config.z_dim, 3)?,
        })
    }

    fn load_down_blocks(
        weights: &Weights,
        config: &VaeConfig,
        channels: &[usize],
    ) -> Result<Vec<DownBlock>> {
        let mut blocks = Vec::new();
        let mut inputs = config.base_dim;
        for (stage, &outputs) in channels.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                let block = ResidualBlock::load(&weights.at(blocks.len()), inputs, outputs)?;
                blocks.push(DownBlock::Residual(block));
                inputs = outputs;
            }
            if let Some(&halves_time) = config.temperal_downsample.get(stage) {
                let place = weights.at(blocks.len());
                let conv = (outputs, outputs, 3);
                let resample = plain_conv(&place.at("resample.1"), conv, Padding::RightBottom, 2)?;
                if halves_time {
                    skip_time_conv(&place, outputs, outputs);
                }
                blocks.push(DownBlock::Resample(resample));
            }
        }
        Ok(blocks)
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for block in &self.down_blocks {
            x = block.forward(&x)?;
        }
        let x = self.mid_block.forward(&x)?;
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}

/// The convolution over time of a resampling step, which one frame never meets.
fn skip_time_conv(weights: &Weights, inputs: usize, outputs: usize) {
    let time_conv = weights.at("time_conv");
    time_conv.skip("weight", (outputs, inputs, 3, 1, 1));
    time_conv.skip("bias", outputs);
}

/// A stage of the decoder.
struct UpBlock {
    resnets: Vec<ResidualBlock>,
    /// Doubles height and width, halves the channels.
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for block in &self.resnets {
            x = block.forward(&x)?;
        }
        match &self.upsampler {
            Some(conv) => conv.forward_doubled(&x),
            None => Ok(x),
        }
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: ChannelNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<usize> =
            config.dim_mult.iter().rev().map(|multiple| multiple * config.base_dim).collect();
        let deepest = *channels.first().unwrap_or(&config.base_dim);
        let last = *channels.last().unwrap_or(&config.base_dim);
        Ok(Self {
            conv_in: causal_conv(&weights.at("conv_in"), config.z_dim, deepest, 3)?,
            mid_block: MidBlock::load(&weights.at("mid_block"), deepest)?,
            up_blocks: Self::load_up_blocks(&weights.at("up_blocks"), config, &channels)?,
            norm_out: ChannelNorm::load(&weights.at("norm_out"), last, 3)?,
            conv_out: causal_conv(&weights.at("conv_out"), last, config.input_channels, 3)?,
        })
    }

    fn load_up_blocks(
        weights: &Weights,
        config: &VaeConfig,
        channels: &[usize],
    ) -> Result<Vec<UpBlock>> {
        let doublings = config.temperal_downsample.len();
        let mut blocks = Vec::with_capacity(channels.len());
        let mut inputs = *channels.first().unwrap_or(&config.base_dim);
        for (stage, &outputs) in channels.iter().enumerate() {
            let place = weights.at(stage);
            let mut resnets = Vec::with_capacity(config.num_res_blocks + 1);
            for index in 0..=config.num_res_blocks {
                let place = place.at("resnets").at(index);
                resnets.push(ResidualBlock::load(&place, inputs, outputs)?);
                inputs = outputs;
            }
            let mut upsampler = None;
            if stage < doublings {
                let place = place.at("upsamplers.0");
                let conv = (outputs, outputs / 2, 3);
                upsampler = Some(plain_conv(&place.at("resample.1"), conv, Padding::Around(1), 1)?);
                if config.temperal_downsample[doublings - 1 - stage] {
                    skip_time_conv(&place, outputs, 2 * outputs);
                }
                inputs = outputs / 2;
            }
            blocks.push(UpBlock { resnets, upsampler });
        }
        Ok(blocks)
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.mid_block.forward(&self.conv_in.forward(latents)?)?;
        for block in &self.up_blocks {
            x = block.forward(&x)?;
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}
