//! The half that encodes.

use candle_core::{Result, Tensor};

use super::bands::joined;
use super::blocks::{
    ChannelNorm, MidBlock, ResidualBlock, RollingBlock, causal_conv, plain_conv, skip_time_conv,
};
use crate::checkpoint::Weights;
use crate::model::qwen_image::config::VaeConfig;
use crate::nn::{Band, Conv2d, Padding, RollingConv};

/// An entry of the encoder's flat list of blocks.
enum DownBlock {
    Residual(ResidualBlock),
    /// Halves height and width.
    Resample(Conv2d),
}

impl DownBlock {
    fn rolling(&self) -> RollingDownBlock<'_> {
        match self {
            Self::Residual(block) => RollingDownBlock::Residual(block.rolling()),
            Self::Resample(conv) => RollingDownBlock::Resample(RollingConv::new(conv)),
        }
    }
}

/// Such an entry on its way down a picture.
enum RollingDownBlock<'a> {
    Residual(RollingBlock<'a>),
    Resample(RollingConv<'a>),
}

impl RollingDownBlock<'_> {
    fn push(&mut self, x: Band) -> Result<Band> {
        match self {
            Self::Residual(block) => block.push(x),
            Self::Resample(conv) => conv.push(x),
        }
    }
}

/// Pictures → what the latents are drawn from.
pub(super) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    norm_out: ChannelNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
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

    /// `bands`: the picture's. What is as large as the picture is made in these; what is as
    /// large as the latents, where every pixel looks at every other, as a whole.
    pub(super) fn forward(&self, bands: impl Iterator<Item = Result<Band>>) -> Result<Tensor> {
        let mut conv_in = RollingConv::new(&self.conv_in);
        let mut blocks: Vec<_> = self.down_blocks.iter().map(DownBlock::rolling).collect();
        let x = joined(bands, |band| {
            let x = conv_in.push(band)?;
            blocks.iter_mut().try_fold(x, |x, block| block.push(x))
        })?;
        let x = self.mid_block.forward(x)?;
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}
