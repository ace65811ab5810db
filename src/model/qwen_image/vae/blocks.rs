//! What both halves of the autoencoder are made of.

use candle_core::{Error, Result, Tensor};

use crate::checkpoint::Weights;
use crate::interruption;
use crate::nn::{
    After, AttentionMask, Band, Conv2d, Padding, RollingConv, WaitingRows, attention, channel_norm,
};

/// A causal 3-D convolution on one frame: the last slice of its kernel.
pub(super) fn causal_conv(
    weights: &Weights,
    inputs: usize,
    outputs: usize,
    kernel: usize,
) -> Result<Conv2d> {
    let weight = weights.get("weight", (outputs, inputs, kernel, kernel, kernel))?;
    let bias = weights.get("bias", outputs)?;
    let last_frame = weight.narrow(2, kernel - 1, 1)?.squeeze(2)?;
    Conv2d::new(&last_frame, &bias, Padding::Around(kernel / 2), 1)
}

/// A plain 2-D convolution of the checkpoint.
pub(super) fn plain_conv(
    weights: &Weights,
    (inputs, outputs, kernel): (usize, usize, usize),
    padding: Padding,
    stride: usize,
) -> Result<Conv2d> {
    let weight = weights.get("weight", (outputs, inputs, kernel, kernel))?;
    Conv2d::new(&weight, &weights.get("bias", outputs)?, padding, stride)
}

/// Divides each pixel's channel vector by its length, times √channels · gamma.
pub(super) struct ChannelNorm {
    /// (1, channels, 1, 1), times √channels.
    scale: Tensor,
}

impl ChannelNorm {
    /// Takes `gamma`: (channels, 1, 1, 1), or (channels, 1, 1) in attention blocks.
    pub(super) fn load(weights: &Weights, channels: usize, trailing_ones: usize) -> Result<Self> {
        let mut shape = vec![channels];
        shape.resize(1 + trailing_ones, 1);
        let gamma = weights.get("gamma", shape)?.reshape((1, channels, 1, 1))?;
        Ok(Self { scale: (gamma * (channels as f64).sqrt())? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        channel_norm(x, &self.scale, After::Nothing)
    }

    /// silu(norm(x))
    pub(super) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        channel_norm(x, &self.scale, After::Silu)
    }
}

/// shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))
pub(super) struct ResidualBlock {
    norm1: ChannelNorm,
    conv1: Conv2d,
    norm2: ChannelNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    pub(super) fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let shortcut = || causal_conv(&weights.at("conv_shortcut"), inputs, outputs, 1);
        Ok(Self {
            norm1: ChannelNorm::load(&weights.at("norm1"), inputs, 3)?,
            conv1: causal_conv(&weights.at("conv1"), inputs, outputs, 3)?,
            norm2: ChannelNorm::load(&weights.at("norm2"), outputs, 3)?,
            conv2: causal_conv(&weights.at("conv2"), outputs, outputs, 3)?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    /// Its way over a picture whose rows come band by band.
    pub(super) fn rolling(&self) -> RollingBlock<'_> {
        RollingBlock {
            block: self,
            conv1: RollingConv::new(&self.conv1),
            conv2: RollingConv::new(&self.conv2),
            waiting: WaitingRows::default(),
        }
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        whole(self.rolling().push(Band { rows: Some(x), is_last: true })?)
    }
}

/// A residual block on its way down a picture.
pub(super) struct RollingBlock<'a> {
    block: &'a ResidualBlock,
    conv1: RollingConv<'a>,
    conv2: RollingConv<'a>,
    /// What the shortcut takes of the rows that the convolutions have not yet made.
    waiting: WaitingRows,
}

impl RollingBlock<'_> {
    pub(super) fn push(&mut self, x: Band) -> Result<Band> {
        interruption::check()?;
        let Self { block, conv1, conv2, waiting } = self;
        waiting.add(&x)?;
        let hidden = conv1.push(x.map(|x| block.norm1.forward_silu(x))?)?;
        let hidden = hidden.map(|hidden| block.norm2.forward_silu(hidden))?;
        match &block.conv_shortcut {
            Some(conv) => conv2
                .push(hidden)?
                .map(|hidden| conv.forward_onto(hidden, &waiting.take(hidden.dim(2)?)?)),
            None => conv2.push_onto(Some(waiting), hidden),
        }
    }
}

/// The rows of a picture that is one band.
fn whole(band: Band) -> Result<Tensor> {
    band.rows.ok_or_else(|| Error::msg("a picture has rows"))
}

/// One head over all pixels of a picture.
pub(super) struct AttentionBlock {
    norm: ChannelNorm,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl AttentionBlock {
    pub(super) fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let conv = |name, outputs| {
            plain_conv(&weights.at(name), (channels, outputs, 1), Padding::Around(0), 1)
        };
        Ok(Self {
            norm: ChannelNorm::load(&weights.at("norm"), channels, 2)?,
            to_qkv: conv("to_qkv", 3 * channels)?,
            proj: conv("proj", channels)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let pixels = self
            .to_qkv
            .forward(&self.norm.forward(x)?)?
            .reshape((batch, 1, 3 * channels, height * width))?
            .transpose(2, 3)?; // (batch, 1 head, pixels, 3 channels)
        let part = |index: usize| pixels.narrow(3, index * channels, channels)?.contiguous();
        let [q, k, v] = [part(0)?, part(1)?, part(2)?];
        drop(pixels);
        let attended = attention(&q, &k, &v, AttentionMask::None)?;
        drop([q, k, v]);
        let attended =
            attended.transpose(2, 3)?.contiguous()?.reshape((batch, channels, height, width))?;
        x + self.proj.forward(&attended)?
    }
}

/// Residual, attention, residual: the narrowest place of either half.
pub(super) struct MidBlock {
    first: ResidualBlock,
    attention: AttentionBlock,
    last: ResidualBlock,
}

impl MidBlock {
    pub(super) fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let resnets = weights.at("resnets");
        Ok(Self {
            first: ResidualBlock::load(&resnets.at(0), channels, channels)?,
            attention: AttentionBlock::load(&weights.at("attentions.0"), channels)?,
            last: ResidualBlock::load(&resnets.at(1), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: Tensor) -> Result<Tensor> {
        let x = self.first.forward(x)?;
        let x = self.attention.forward(&x)?;
        self.last.forward(x)
    }
}

/// The convolution over time of a resampling step, which one frame never meets.
pub(super) fn skip_time_conv(weights: &Weights, inputs: usize, outputs: usize) {
    let time_conv = weights.at("time_conv");
    time_conv.skip("weight", (outputs, inputs, 3, 1, 1));
    time_conv.skip("bias", outputs);
}
