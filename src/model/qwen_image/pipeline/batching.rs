//! How many pictures of a request are made together, and whether as one batch.
//!
//! Where blocks are loaded for each step, pictures take that step together, each by itself:
//! a block is loaded once for all of them, and they are the same to the bit. Elsewhere they
//! are one batch where that was measured to save time, else one is made after another.

use std::ops::Range;

use candle_core::{Device, Result as TensorResult};

use super::Pipeline;
use super::conditioning::Guidance;
use crate::domain::ImageRequest;
use crate::model::qwen_image::positions::Grid;

/// Room for the tokens of pictures that are made together: of the 3 GiB and more that the
/// memory plan leaves for a picture, slices of attention scores take half at most.
const ROOM_BYTES: usize = 1 << 30;
/// Tensors of all tokens that a waiting pass holds: the tokens themselves, and some that are
/// made of them before and after the blocks.
const OF_WAITING: usize = 2;
/// Those that its step cache holds.
const OF_CACHE: usize = 3;
/// Those of a batch within a block: queries, keys, values, what they gather, the widened
/// tokens of the feed-forward layer before and after its activation.
const OF_BATCH: usize = 16;
/// A batch has to take less than this part of the time of pictures one after another.
const WORTH_IT: f64 = 0.95;

/// Whether what is predicted in one step goes through the blocks as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model::qwen_image) enum Joining {
    /// Each picture with each prompt is a pass of its own.
    Separate,
    /// All pictures are one pass, with both prompts if they are equally long.
    Joined,
}

/// How the pictures of a request go through the transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model::qwen_image) struct Batching {
    /// How many are made together, step by step.
    pub(in crate::model::qwen_image) at_once: usize,
    /// Whether they are one batch.
    pub(in crate::model::qwen_image) joining: Joining,
}

/// A kind of device, whose batches are measured apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeviceKind {
    Cpu,
    Cuda,
    Metal,
}

/// What a batch was measured to take.
struct Measured {
    device: DeviceKind,
    /// Of a pass for one picture, at most.
    tokens: usize,
    pictures: usize,
    /// Seconds of a step of one of the pictures, over those of a picture by itself.
    time: f64,
}

/// By `cargo bench --bench steps -- batches SIZE` at the published width; in
/// docs/performance.md. A device that is not here makes one picture after another.
const MEASURED: &[Measured] = &[];

/// All that the choice depends on.
struct Load {
    device: DeviceKind,
    pictures: usize,
    /// Of a pass for one picture.
    tokens: usize,
    /// Of the tensor of these tokens.
    bytes: usize,
    /// Passes of a picture.
    prompts: usize,
    /// Whether blocks are loaded for each step.
    is_streamed: bool,
    /// Whether steps may skip blocks: each picture decides by itself.
    is_cached: bool,
}

impl Load {
    /// From the fastest of `measured`.
    fn batching(&self, measured: &[Measured]) -> Batching {
        let fitting = |tensors: usize| ROOM_BYTES / (tensors * self.bytes * self.prompts).max(1);
        if self.is_streamed {
            let tensors = OF_WAITING + if self.is_cached { OF_CACHE } else { 0 };
            let at_once = fitting(tensors).clamp(1, self.pictures.max(1));
            return Batching { at_once, joining: Joining::Separate };
        }
        let is_possible = |batch: &&Measured| {
            let is_alike = batch.device == self.device && self.tokens <= batch.tokens;
            let has_room = batch.pictures <= self.pictures.min(fitting(OF_BATCH));
            is_alike && has_room && batch.time < WORTH_IT && !self.is_cached
        };
        let fastest = measured.iter().filter(is_possible).min_by(|a, b| a.time.total_cmp(&b.time));
        fastest.map_or(Batching::SINGLY, |batch| Batching {
            at_once: batch.pictures,
            joining: Joining::Joined,
        })
    }
}

impl Batching {
    /// One after another.
    const SINGLY: Self = Self { at_once: 1, joining: Joining::Separate };

    /// Which of `count` pictures are made together.
    pub(super) fn groups(self, count: usize) -> impl Iterator<Item = Range<usize>> {
        let at_once = self.at_once.max(1);
        (0..count).step_by(at_once).map(move |first| first..count.min(first + at_once))
    }
}

impl Pipeline {
    /// How the pictures of `request` go through the transformer, which sees `grids`.
    pub(super) fn batching(
        &self,
        request: &ImageRequest,
        guidance: &Guidance,
        grids: &[Grid],
    ) -> TensorResult<Batching> {
        if let Some(chosen) = self.batching {
            return Ok(chosen);
        }
        let transformer = &self.components.transformer;
        let (dtype, device) = self.tensor_kind();
        let mut text_tokens = 0;
        for prompt in std::iter::once(&guidance.positive).chain(&guidance.negative) {
            text_tokens = text_tokens.max(prompt.embeds.dim(1)?);
        }
        let tokens = text_tokens + grids.iter().map(|grid| grid.len()).sum::<usize>();
        let load = Load {
            device: match device {
                Device::Cpu => DeviceKind::Cpu,
                Device::Cuda(_) => DeviceKind::Cuda,
                Device::Metal(_) => DeviceKind::Metal,
            },
            pictures: request.count.get(),
            tokens,
            bytes: tokens * transformer.config().inner_dim() * dtype.size_in_bytes(),
            prompts: 1 + usize::from(guidance.negative.is_some()),
            is_streamed: !transformer.blocks_stay(),
            is_cached: request.cache_threshold.is_some(),
        };
        Ok(load.batching(MEASURED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            device: DeviceKind::Cuda,
            pictures: 10,
            tokens: 1000,
            bytes: 1000 * 3072 * 2,
            prompts: 2,
            is_streamed: false,
            is_cached: false,
        }
    }

    fn measured(tokens: usize, pictures: usize, time: f64) -> Measured {
        Measured { device: DeviceKind::Cuda, tokens, pictures, time }
    }

    fn joined(at_once: usize) -> Batching {
        Batching { at_once, joining: Joining::Joined }
    }

    #[test]
    fn pictures_are_a_batch_only_where_that_was_measured_to_save_time() {
        let measured = [
            measured(1000, 2, 0.8),
            measured(1000, 4, 0.7),
            measured(4000, 2, 0.94),
            measured(4000, 4, 0.96),
        ];
        let batching = |load: Load| load.batching(&measured);

        assert_eq!(batching(load()), joined(4));
        assert_eq!(batching(Load { pictures: 3, ..load() }), joined(2));
        assert_eq!(batching(Load { pictures: 1, ..load() }), Batching::SINGLY);
        assert_eq!(batching(Load { tokens: 1001, ..load() }), joined(2));
        assert_eq!(batching(Load { tokens: 4001, ..load() }), Batching::SINGLY);
        for device in [DeviceKind::Cpu, DeviceKind::Metal] {
            assert_eq!(batching(Load { device, ..load() }), Batching::SINGLY);
        }
        assert_eq!(batching(Load { is_cached: true, ..load() }), Batching::SINGLY);
    }

    #[test]
    fn a_batch_keeps_to_its_room() {
        let measured = [measured(usize::MAX, 2, 0.8), measured(usize::MAX, 4, 0.7)];
        let of_bytes = |bytes| Load { bytes, ..load() }.batching(&measured);

        let most = ROOM_BYTES / OF_BATCH / 2 / 4;
        assert_eq!(of_bytes(most), joined(4));
        assert_eq!(of_bytes(most + 1), joined(2));
        assert_eq!(of_bytes(usize::MAX / 1024), Batching::SINGLY);
    }

    #[test]
    fn pictures_share_the_blocks_that_are_loaded_for_a_step() {
        let streamed = |load: Load| Load { is_streamed: true, ..load }.batching(&[]);
        let together = |at_once| Batching { at_once, joining: Joining::Separate };

        assert_eq!(streamed(load()), together(10));
        assert_eq!(streamed(Load { is_cached: true, ..load() }), together(10));
        let bytes = ROOM_BYTES / 2 / 2 / 5;
        assert_eq!(streamed(Load { bytes, ..load() }), together(5));
        assert_eq!(streamed(Load { bytes, is_cached: true, ..load() }), together(2));
        assert_eq!(streamed(Load { bytes: usize::MAX / 1024, ..load() }), together(1));
    }

    #[test]
    fn every_picture_is_in_one_group() {
        for (at_once, count, expected) in [
            (1, 3, vec![0..1, 1..2, 2..3]),
            (2, 3, vec![0..2, 2..3]),
            (4, 3, std::iter::once(0..3).collect()),
        ] {
            let groups: Vec<_> = joined(at_once).groups(count).collect();

            assert_eq!(groups, expected);
        }
    }
}
