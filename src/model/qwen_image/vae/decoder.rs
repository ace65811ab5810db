//! The half that decodes.

use candle_core::{Result, Tensor};

use super::bands::{bands, joined};
use super::blocks::{
    ChannelNorm, MidBlock, ResidualBlock, RollingBlock, causal_conv, plain_conv, skip_time_conv,
};
use crate::checkpoint::Weights;
use crate::model::qwen_image::config::VaeConfig;
use crate::nn::{Band, Conv2d, Padding, RollingConv};

/// A stage of the decoder.
struct UpBlock {
    resnets: Vec<ResidualBlock>,
    /// Doubles height and width, halves the channels.
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    fn rolling(&self) -> RollingUpBlock<'_> {
        RollingUpBlock {
            resnets: self.resnets.iter().map(ResidualBlock::rolling).collect(),
            upsampler: self.upsampler.as_ref().map(RollingConv::doubled),
        }
    }
}

/// A stage on its way down a picture.
struct RollingUpBlock<'a> {
    resnets: Vec<RollingBlock<'a>>,
    upsampler: Option<RollingConv<'a>>,
}

impl RollingUpBlock<'_> {
    fn push(&mut self, x: Band) -> Result<Band> {
        let x = self.resnets.iter_mut().try_fold(x, |x, block| block.push(x))?;
        match &mut self.upsampler {
            Some(conv) => conv.push(x),
            None => Ok(x),
        }
    }
}

/// Latents → pictures.
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: ChannelNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
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

    /// `rows`: of latents, which become a band of the picture at a time. What is as large
    /// as the latents, where every pixel looks at every other, is made as a whole.
    pub(super) fn forward(&self, latents: &Tensor, rows: usize) -> Result<Tensor> {
        let x = self.mid_block.forward(self.conv_in.forward(latents)?)?;
        let mut blocks: Vec<_> = self.up_blocks.iter().map(UpBlock::rolling).collect();
        let mut conv_out = RollingConv::new(&self.conv_out);
        joined(bands(x, rows), |band| {
            let x = blocks.iter_mut().try_fold(band, |x, block| block.push(x))?;
            conv_out.push(x.map(|x| self.norm_out.forward_silu(x))?)
        })
    }
}
