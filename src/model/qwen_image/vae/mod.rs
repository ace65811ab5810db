//! The autoencoder: pictures ↔ latents.
//!
//! A causal 3-D network of video, used for one frame. Nothing lies before the
//! first frame, so of each kernel three frames deep only the last slice acts:
//! the network is folded to two dimensions while it is loaded, and the
//! convolutions over time are never met.
//!
//! All of it is local but the attention at the size of the latents. So pictures that are
//! large pass through it in `bands`, the same to the bit.
//!
//! Source: diffusers 0.42.1, `AutoencoderKLQwenImage`.

mod bands;
mod blocks;
mod decoder;
mod encoder;

use candle_core::{DType, Device, Result, Tensor};

use self::blocks::causal_conv;
use self::decoder::Decoder;
use self::encoder::Encoder;
use super::config::VaeConfig;
use crate::checkpoint::Weights;
use crate::nn::{Conv2d, clip};

/// The autoencoder with its weights.
pub struct Vae {
    encoder: Encoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Decoder,
    /// (1, z, 1, 1) each.
    latents_mean: Tensor,
    latents_std: Tensor,
    config: VaeConfig,
    dtype: DType,
    /// Rows of latents of a band, if that is not left to how large they are.
    band_rows: Option<usize>,
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
            config: config.clone(),
            dtype: weights.dtype(),
            band_rows: None,
        })
    }

    /// Latent channels.
    #[must_use]
    pub fn z_dim(&self) -> usize {
        self.config.z_dim
    }

    /// Channels of a picture: 3, or 4 with transparency.
    #[must_use]
    pub fn image_channels(&self) -> usize {
        self.config.input_channels
    }

    /// Image pixels of one latent pixel along each axis.
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        self.config.spatial_factor()
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
        let factor = self.config.spatial_factor();
        let (batch, _, _, width) = image.dims4()?;
        let rows = factor * self.band_rows(batch, width.div_ceil(factor));
        self.quant_conv.forward(&self.encoder.forward(bands::bands(image.clone(), rows))?)
    }

    /// The most likely latents of a picture, scaled to mean 0 and deviation 1.
    ///
    /// `parameters`: what [`Vae::encode`] returns. Returns that with z channels.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn most_likely(&self, parameters: &Tensor) -> Result<Tensor> {
        let mean = parameters.narrow(1, 0, self.config.z_dim)?;
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
        let mean = parameters.narrow(1, 0, self.config.z_dim)?;
        let log_variance = parameters.narrow(1, self.config.z_dim, self.config.z_dim)?;
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
        let (batch, _, _, width) = latents.dims4()?;
        let rows = self.band_rows(batch, width);
        self.decoder.forward(&self.post_quant_conv.forward(latents)?, rows)
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

    /// Rows of latents of a band, for a picture of latents of `width`.
    fn band_rows(&self, batch: usize, width: usize) -> usize {
        let by_size = || bands::latent_rows(&self.config, self.dtype, (batch, width));
        self.band_rows.unwrap_or_else(by_size)
    }
}

#[cfg(test)]
mod tests;
