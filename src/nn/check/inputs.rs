//! What the steps are made of: the same elements on every device.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::super::{Factors, HeadStream, LayerNorm, RmsNorm, joint_heads};

/// How large tensors are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) batch: usize,
    pub(super) image_tokens: usize,
    pub(super) text_tokens: usize,
    pub(super) heads: usize,
    /// Channels, height, width.
    pub(super) picture: (usize, usize, usize),
    /// Length of rows that no pack divides.
    pub(super) odd: usize,
}

/// Of a head: the one that flash attention knows.
pub(super) const SIZE: usize = 128;

pub(super) const SMALL: [Extent; 1] =
    [Extent { batch: 1, image_tokens: 9, text_tokens: 3, heads: 1, picture: (4, 5, 7), odd: 33 }];
pub(super) const ODD: [Extent; 2] = [
    Extent {
        batch: 2,
        image_tokens: 333,
        text_tokens: 5,
        heads: 3,
        picture: (20, 16, 21),
        odd: 333,
    },
    Extent {
        batch: 1,
        image_tokens: 129,
        text_tokens: 66,
        heads: 2,
        picture: (3, 33, 18),
        odd: 1030,
    },
];
/// A megapixel with two references, 24 heads, the autoencoder's largest picture.
pub(super) const FULL: [Extent; 1] = [Extent {
    batch: 1,
    image_tokens: 3 * 4096,
    text_tokens: 1400,
    heads: 24,
    picture: (96, 1024, 1024),
    odd: 3420,
}];

impl Extent {
    pub(super) fn width(&self) -> usize {
        self.heads * SIZE
    }
}

/// Tensors of an extent, made when they are asked for.
pub(super) struct Inputs<'a> {
    pub(super) extent: &'a Extent,
    dtype: DType,
    device: &'a Device,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(extent: &'a Extent, dtype: DType, device: &'a Device) -> Self {
        Self { extent, dtype, device }
    }

    /// Elements between −1 and 1, others for each `seed`.
    fn wide(shape: &[usize], seed: u64) -> Result<Tensor> {
        let count = shape.iter().product::<usize>() as u64;
        let numbers: Vec<f32> =
            (0..count).into_par_iter().map(|place| mixed(seed << 40 | place)).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu)
    }

    pub(super) fn numbers(&self, shape: &[usize], seed: u64) -> Result<Tensor> {
        Self::wide(shape, seed)?.to_dtype(self.dtype)?.to_device(self.device)
    }

    pub(super) fn image(&self) -> Result<Tensor> {
        let Extent { batch, image_tokens, .. } = *self.extent;
        self.numbers(&[batch, image_tokens, self.extent.width()], 1)
    }

    pub(super) fn text(&self) -> Result<Tensor> {
        let Extent { batch, text_tokens, .. } = *self.extent;
        self.numbers(&[batch, text_tokens, self.extent.width()], 2)
    }

    pub(super) fn bias(&self, width: usize) -> Result<Tensor> {
        self.numbers(&[width], 3)
    }

    pub(super) fn norm(&self) -> Result<LayerNorm> {
        LayerNorm::new(self.extent.width(), 1e-6, self.dtype, self.device)
    }

    /// With a weight for rows of `width` elements.
    pub(super) fn row_norm(&self, width: usize) -> Result<RmsNorm> {
        Ok(RmsNorm::new(self.numbers(&[width], 4)?, 1e-6))
    }

    /// Latents of 64 channels, and flows.
    pub(super) fn flow(&self, seed: u64) -> Result<Tensor> {
        let Extent { batch, image_tokens, .. } = *self.extent;
        self.numbers(&[batch, image_tokens, 64], seed)
    }

    pub(super) fn picture(&self) -> Result<Tensor> {
        let (channels, height, width) = self.extent.picture;
        self.numbers(&[self.extent.batch, channels, height, width], 5)
    }

    /// Rows that no pack divides.
    pub(super) fn odd(&self) -> Result<Tensor> {
        self.numbers(&[self.extent.batch, 7, self.extent.odd], 6)
    }

    /// (outputs, inputs), so small that products are of about 1.
    pub(super) fn matrix(&self, outputs: usize, inputs: usize) -> Result<Tensor> {
        self.numbers(&[outputs, inputs], 7)? * (inputs as f64).powf(-0.5)
    }

    /// A vector for each entry of the batch, and one for the tokens from the eleventh on,
    /// as views into a larger tensor: what `action` makes of them.
    pub(super) fn with_factors<T>(
        &self,
        action: impl FnOnce([Factors; 2]) -> Result<T>,
    ) -> Result<T> {
        let width = self.extent.width();
        let chunks = self.numbers(&[self.extent.batch, 1, 2 * width], 8)?;
        let early = [chunks.narrow(2, 0, width)?, chunks.narrow(2, width, width)?];
        let late = self.numbers(&[self.extent.batch, 1, width], 9)?;
        action([0, 1].map(|index| Factors { early: &early[index], late: Some((10, &late)) }))
    }

    /// Heads of text and image, normalised and turned, or neither.
    pub(super) fn heads(&self, is_normalised: bool, seed: u64) -> Result<Tensor> {
        let (image, text) = (self.image()?, (self.text()? * (1.0 / seed as f64))?);
        let bias = self.bias(self.extent.width())?;
        let norm = self.row_norm(SIZE)?;
        let angles = |tokens| -> Result<[Tensor; 2]> {
            let angle = Self::wide(&[tokens, SIZE / 2], seed)?;
            Ok([angle.cos()?.to_device(self.device)?, angle.sin()?.to_device(self.device)?])
        };
        let turns = [angles(text.dim(1)?)?, angles(image.dim(1)?)?];
        let norm = is_normalised.then_some(&norm);
        let [text, image] = [(&text, &turns[0]), (&image, &turns[1])].map(|(x, [cos, sin])| {
            let rotation = is_normalised.then_some((cos, sin));
            HeadStream { x, bias: Some(&bias), norm, rotation }
        });
        joint_heads(text, image, self.extent.heads)
    }
}

/// A number between −1 and 1 for each `place`, no two neighbours alike.
///
/// Source: SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(place: u64) -> f32 {
    let x = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let bits = (x ^ (x >> 31)) >> 40;
    bits as f32 / (1_u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_their_range_and_differ_by_seed() {
        let list = |seed| Inputs::wide(&[1000], seed).unwrap().to_vec1::<f32>().unwrap();
        let numbers = list(1);

        let least = numbers.iter().copied().fold(f32::INFINITY, f32::min);
        let most = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!((-1.0..-0.98).contains(&least) && (0.98..1.0).contains(&most), "{least} {most}");
        assert_ne!(numbers, list(2));
    }
}
