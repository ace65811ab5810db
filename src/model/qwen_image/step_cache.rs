//! Steps that reuse what an earlier step computed.
//!
//! From a step to the next, a guidance branch often changes little. The first block is
//! always computed; where what it adds to the image tokens is near to what it added in the
//! last full pass, what the other blocks added then is added once more, and they are
//! skipped. Each branch of each picture has a state of its own and decides by itself.
//!
//! The measure, mean |earlier − now| / mean |earlier| over all image tokens, is that of
//! ParaAttention's first-block cache and of cache-dit's DBCache with one block compared;
//! the numbers are those that cache-dit's guide gives for it.

use std::ops::AddAssign;

use candle_core::{D, DType, Result, Tensor};

use super::transformer::clip_f16;
use crate::domain::CacheThreshold;
use crate::nn::trace::{self, Kind};

/// The first steps make the picture's outlines: they are computed.
pub const WARM_UP_STEPS: usize = 4;
/// After so many skipped steps one is computed, whatever the first block says.
pub const MOST_IN_A_ROW: usize = 2;

/// What a guidance branch of a picture knows of its earlier steps.
///
/// Between steps it keeps two tensors of the dtype computed in, of all image tokens and of
/// those of the picture made; during a full pass two of all of them. For an edit of a
/// megapixel with one reference picture, in bfloat16, these are 72 and 96 MiB a branch: half
/// of it, or less, of what is free at that time of the room that the memory plan leaves for
/// the autoencoder's feature maps.
pub struct StepCache {
    threshold: f64,
    passes: usize,
    skipped: usize,
    in_a_row: usize,
    last_full: Option<Residuals>,
    under_way: Option<UnderWay>,
}

/// What blocks added to the image tokens in a full pass: (batch, tokens, width).
struct Residuals {
    /// The first one, of all tokens.
    first: Tensor,
    /// All others, of the tokens that are read.
    others: Tensor,
}

/// A full pass behind its first block.
struct UnderWay {
    first: Tensor,
    /// The image tokens after it.
    image: Tensor,
}

impl StepCache {
    /// Of a picture that has not begun. 0 skips nothing; 1 skips whenever it is allowed,
    /// however much the first block changes.
    #[must_use]
    pub fn new(threshold: CacheThreshold) -> Self {
        Self {
            threshold: threshold.get(),
            passes: 0,
            skipped: 0,
            in_a_row: 0,
            last_full: None,
            under_way: None,
        }
    }

    /// Whether the next pass may skip blocks.
    #[must_use]
    pub fn may_skip(&self) -> bool {
        let is_warm = self.passes >= WARM_UP_STEPS && self.last_full.is_some();
        is_warm && self.in_a_row < MOST_IN_A_ROW && self.threshold > 0.0
    }

    /// How many of `blocks` a pass its passes have gone through so far.
    #[must_use]
    pub fn blocks(&self, blocks: usize) -> BlockCount {
        BlockCount { all: self.passes * blocks, skipped: self.skipped * blocks.saturating_sub(1) }
    }

    /// The first block made `after` of the image tokens `before`. Returns what the last one
    /// would leave of the first `read` of them, if the others are to be skipped.
    pub(super) fn after_first(
        &mut self,
        (before, after): (&Tensor, &Tensor),
        read: usize,
    ) -> Result<Option<Tensor>> {
        let _span = trace::span(Kind::Elementwise, "step cache");
        let may_skip = self.may_skip();
        self.passes += 1;
        let first = (after - before)?;
        if let Some(earlier) = self.last_full.as_ref().filter(|_| may_skip)
            && self.is_near(&earlier.first, &first)?
        {
            self.skipped += 1;
            self.in_a_row += 1;
            let image = (after.narrow(1, 0, read)? + &earlier.others)?;
            return clip_f16(image).map(Some);
        }
        self.in_a_row = 0;
        self.last_full = None; // before there is another one
        self.under_way = Some(UnderWay { first, image: after.clone() });
        Ok(None)
    }

    /// The last block made `image` of the tokens that are read.
    pub(super) fn after_last(&mut self, image: &Tensor) -> Result<()> {
        let _span = trace::span(Kind::Elementwise, "step cache");
        if let Some(UnderWay { first, image: before }) = self.under_way.take() {
            let others = clip_f16((image - before.narrow(1, 0, image.dim(1)?)?)?)?;
            self.last_full = Some(Residuals { first, others });
        }
        Ok(())
    }

    fn is_near(&self, earlier: &Tensor, now: &Tensor) -> Result<bool> {
        if self.threshold >= CacheThreshold::MAX {
            return Ok(true);
        }
        // Rows first, so that no long sum in 32 bits loses digits.
        let mean = |x: Tensor| x.abs()?.to_dtype(DType::F32)?.mean(D::Minus1)?.mean_all();
        let change = (mean((earlier - now)?)? / mean(earlier.clone())?)?;
        // What is not a number is not near.
        Ok(f64::from(change.to_scalar::<f32>()?) < self.threshold)
    }
}

/// Blocks that passes went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCount {
    /// Computed or not.
    pub all: usize,
    /// Those that were not computed.
    pub skipped: usize,
}

impl BlockCount {
    /// Which part was skipped: 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        self.skipped as f64 / self.all.max(1) as f64
    }
}

impl AddAssign for BlockCount {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Image tokens, and those of them that are read.
    const TOKENS: usize = 3;
    const READ: usize = 2;
    const WIDTH: usize = 5;

    fn cache(threshold: f64) -> StepCache {
        StepCache::new(CacheThreshold::new(threshold).unwrap())
    }

    fn alike(number: f32, tokens: usize, dtype: DType) -> Tensor {
        let tensor = Tensor::full(number, (1, tokens, WIDTH), &Device::Cpu);
        tensor.unwrap().to_dtype(dtype).unwrap()
    }

    /// A pass in which the first block adds `first` to tokens of 2, and the others add
    /// `others`. What it leaves, if blocks were skipped.
    fn pass(cache: &mut StepCache, first: f32, others: f32) -> Option<f32> {
        let (before, after) =
            (alike(2.0, TOKENS, DType::F32), alike(2.0 + first, TOKENS, DType::F32));
        let skipped = cache.after_first((&before, &after), READ).unwrap();
        let Some(image) = skipped else {
            cache.after_last(&alike(2.0 + first + others, READ, DType::F32)).unwrap();
            return None;
        };
        assert_eq!(image.dims(), [1, READ, WIDTH]);
        Some(image.mean_all().unwrap().to_scalar().unwrap())
    }

    fn warmed_up(threshold: f64) -> StepCache {
        let mut cache = cache(threshold);
        for _ in 0..WARM_UP_STEPS {
            assert!(!cache.may_skip());
            assert_eq!(pass(&mut cache, 1.0, 10.0), None);
        }
        assert_eq!(cache.may_skip(), threshold > 0.0);
        cache
    }

    #[test]
    fn what_the_other_blocks_added_is_added_again_where_the_first_one_changes_little() {
        let mut cache = warmed_up(0.12);

        let image = pass(&mut cache, 1.1, f32::NAN).unwrap();

        // In 32 bits.
        assert!((image - (2.0 + 1.1 + 10.0)).abs() < 1e-5, "{image}");
        let BlockCount { all, skipped } = cache.blocks(3);
        assert_eq!((all, skipped), (5 * 3, 2));
        // A fifth more than in the last full pass, if a tenth more than in the last one.
        assert_eq!(pass(&mut cache, 1.2, 20.0), None);
        let image = pass(&mut cache, 1.3, f32::NAN).unwrap();
        assert!((image - (2.0 + 1.3 + 20.0)).abs() < 1e-5, "{image}");
    }

    #[test]
    fn the_change_is_relative_to_what_the_first_block_added_before() {
        for (threshold, first, skips) in
            [(0.2, 1.19, true), (0.2, 1.21, false), (0.2, 0.81, true), (0.2, 0.79, false)]
        {
            let mut cache = warmed_up(threshold);

            assert_eq!(pass(&mut cache, first, 0.0).is_some(), skips, "{threshold} {first}");
        }
    }

    #[test]
    fn some_first_steps_are_computed_and_then_one_of_three_at_least() {
        let mut cache = cache(0.06);

        let skipped: Vec<bool> = (0..11).map(|_| pass(&mut cache, 1.0, 1.0).is_some()).collect();

        let (yes, no) = (true, false);
        assert_eq!(skipped, [no, no, no, no, yes, yes, no, yes, yes, no, yes]);
    }

    #[test]
    fn a_threshold_of_0_never_skips_and_one_of_1_whenever_it_may() {
        assert_eq!(pass(&mut warmed_up(0.0), 1.0, 10.0), None);
        assert!(pass(&mut warmed_up(1.0), 7.0, 10.0).is_some());
        assert_eq!(pass(&mut warmed_up(0.99), 7.0, 10.0), None);
    }

    #[test]
    fn what_is_no_number_is_near_to_nothing() {
        assert_eq!(pass(&mut warmed_up(0.5), f32::NAN, 10.0), None);
        assert_eq!(pass(&mut warmed_up(0.5), f32::INFINITY, 10.0), None);
    }

    #[test]
    fn half_precision_is_clipped_as_blocks_clip_it() {
        let mut cache = cache(1.0);
        let half = |number, tokens| alike(number, tokens, DType::F16);
        for _ in 0..WARM_UP_STEPS {
            let first = (&half(0.0, TOKENS), &half(-60_000.0, TOKENS));
            assert!(cache.after_first(first, READ).unwrap().is_none());
            cache.after_last(&half(60_000.0, READ)).unwrap();
        }

        // Where all blocks would leave 60000 + 120000, and −60000 + 120000.
        for (after, expected) in [(60_000.0, 65_504.0), (-60_000.0, 5_504.0)] {
            let first = (&half(0.0, TOKENS), &half(after, TOKENS));
            let image = cache.after_first(first, READ).unwrap().unwrap();

            let numbers = image.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            let numbers = numbers.to_vec1::<f32>().unwrap();
            assert!(numbers.iter().all(|number| *number == expected), "{after}: {numbers:?}");
        }
    }
}
