//! Which weights stay on the device: a plan from what there is and what they take.

use super::config::TransformerConfig;
use super::transformer::TransformerResidency;
use crate::model::{MemoryChoice, PlannedComponent, Residency};

/// Bytes of the weights in the format that they are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightBytes {
    /// Of the text encoder with its vision tower.
    pub text_encoder: usize,
    /// Of the transformer.
    pub transformer: usize,
    /// Of those of the transformer that only a new schedule needs.
    pub modulation: usize,
    /// Of one block of the transformer, without its modulation.
    pub block: usize,
    /// Of the autoencoder.
    pub vae: usize,
}

impl WeightBytes {
    /// What the transformer of `config` splits `transformer` bytes into.
    #[must_use]
    pub fn new(
        [text_encoder, transformer, vae]: [usize; 3],
        config: &TransformerConfig,
        number_bytes: usize,
    ) -> Self {
        let modulation = modulation_parameters(config) * number_bytes;
        let block = transformer.saturating_sub(modulation) / config.num_layers.max(1);
        Self { text_encoder, transformer, modulation, block, vae }
    }

    /// Of the transformer but for its modulation.
    fn all_blocks(&self) -> usize {
        self.transformer.saturating_sub(self.modulation)
    }

    /// Of all weights.
    #[must_use]
    pub fn total(&self) -> usize {
        self.text_encoder + self.transformer + self.vae
    }
}

/// Weights and biases of the layers behind shift, scale and gate of all blocks.
fn modulation_parameters(config: &TransformerConfig) -> usize {
    let width = config.inner_dim();
    config.num_layers * 2 * (6 * width * width + 6 * width)
}

/// Which components stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The text encoder with its vision tower.
    pub text_encoder: Residency,
    /// The autoencoder.
    pub vae: Residency,
    /// The parts of the transformer.
    pub transformer: TransformerResidency,
}

impl MemoryPlan {
    /// All of them.
    pub const RESIDENT: Self = Self {
        text_encoder: Residency::Resident,
        vae: Residency::Resident,
        transformer: TransformerResidency::RESIDENT,
    };

    /// What a request needs at its start and its end, only then.
    const OFFLOAD: Self = Self {
        text_encoder: Residency::OnDemand,
        vae: Residency::OnDemand,
        transformer: TransformerResidency {
            modulation: Residency::OnDemand,
            ..TransformerResidency::RESIDENT
        },
    };

    /// From the fastest to the smallest that has the whole transformer.
    const LADDER: [Self; 3] = [
        Self::RESIDENT,
        Self { text_encoder: Residency::Resident, vae: Residency::Resident, ..Self::OFFLOAD },
        Self::OFFLOAD,
    ];

    /// The plan that `choice` means; where it is up to us, the fastest that leaves
    /// `working` bytes of the `free` ones. If it is not known how many are free,
    /// everything stays.
    #[must_use]
    pub fn new(
        choice: MemoryChoice,
        weights: &WeightBytes,
        free: Option<usize>,
        working: usize,
    ) -> Self {
        match (choice, free) {
            (MemoryChoice::Resident, _) | (MemoryChoice::Auto, None) => Self::RESIDENT,
            (MemoryChoice::Offload, _) => Self::OFFLOAD,
            (MemoryChoice::Stream, _) => Self::with_blocks(0),
            (MemoryChoice::Auto, Some(free)) => {
                let fits = |plan: &Self| plan.peak_bytes(weights) + working <= free;
                Self::LADDER.into_iter().find(fits).unwrap_or_else(|| {
                    let without = Self::with_blocks(0).peak_bytes(weights) + working;
                    Self::with_blocks(free.saturating_sub(without) / weights.block.max(1))
                })
            }
        }
    }

    /// Nothing stays but the first `resident_blocks` blocks.
    fn with_blocks(resident_blocks: usize) -> Self {
        let modulation = Residency::OnDemand;
        let transformer = TransformerResidency { modulation, resident_blocks };
        Self { transformer, ..Self::OFFLOAD }
    }

    /// The most bytes of weights that are on the device at a time: what stays, and
    /// the largest of those that come and go, which are never there together.
    #[must_use]
    pub fn peak_bytes(&self, weights: &WeightBytes) -> usize {
        let passing = |(residency, _, at_a_time)| match residency {
            Residency::Resident => 0,
            Residency::OnDemand => at_a_time,
        };
        let block = if self.resident_block_bytes(weights) < weights.all_blocks() {
            // One is computed with while the next one is loaded.
            2 * weights.block
        } else {
            0
        };
        let largest = self.parts(weights).into_iter().map(passing).max().unwrap_or(0);
        self.resident_bytes(weights) + largest.max(block)
    }

    /// Bytes of the weights that stay.
    #[must_use]
    pub fn resident_bytes(&self, weights: &WeightBytes) -> usize {
        let stays = |(residency, whole, _)| match residency {
            Residency::Resident => whole,
            Residency::OnDemand => 0,
        };
        let parts: usize = self.parts(weights).into_iter().map(stays).sum();
        parts + self.resident_block_bytes(weights)
    }

    fn resident_block_bytes(&self, weights: &WeightBytes) -> usize {
        let bytes = self.transformer.resident_blocks.saturating_mul(weights.block);
        bytes.min(weights.all_blocks())
    }

    /// All but the blocks: where they are, their bytes, and the bytes that are there
    /// at a time if they come and go.
    fn parts(&self, weights: &WeightBytes) -> [(Residency, usize, usize); 3] {
        [
            (self.text_encoder, weights.text_encoder, weights.text_encoder),
            (self.vae, weights.vae, weights.vae),
            // Read block by block; it has half as many weights as the rest of one.
            (self.transformer.modulation, weights.modulation, weights.block / 2),
        ]
    }

    /// The parts with their bytes, and those that stay.
    #[must_use]
    pub fn components(&self, weights: &WeightBytes) -> Vec<PlannedComponent> {
        let names = ["text encoder", "vae", "modulation"];
        let part = |(name, (residency, bytes, _))| match residency {
            Residency::Resident => PlannedComponent::resident(name, bytes),
            Residency::OnDemand => PlannedComponent { name, bytes, resident_bytes: 0 },
        };
        let mut parts: Vec<_> = names.into_iter().zip(self.parts(weights)).map(part).collect();
        let (bytes, resident_bytes) = (weights.all_blocks(), self.resident_block_bytes(weights));
        parts.push(PlannedComponent { name: "transformer", bytes, resident_bytes });
        parts
    }

    /// What does not stay, for people; `blocks`: how many the transformer has.
    #[must_use]
    pub fn on_demand(&self, blocks: usize) -> String {
        let parts = [
            ("text encoder", self.text_encoder),
            ("vae", self.vae),
            ("modulation", self.transformer.modulation),
        ];
        let mut names: Vec<String> = parts
            .into_iter()
            .filter(|(_, residency)| *residency == Residency::OnDemand)
            .map(|(name, _)| name.to_owned())
            .collect();
        let streamed = blocks.saturating_sub(self.transformer.resident_blocks);
        if streamed > 0 {
            names.push(format!("{streamed} of {blocks} transformer blocks"));
        }
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    /// Qwen-Image-Edit in bfloat16, by its published lists of tensors.
    fn published() -> WeightBytes {
        let config = TransformerConfig::published();
        WeightBytes::new([15_494_338_560, 40_860_802_176, 253_785_062], &config, 2)
    }

    fn plan(free: usize) -> MemoryPlan {
        MemoryPlan::new(MemoryChoice::Auto, &published(), Some(free), 4 * GIB)
    }

    #[test]
    fn a_third_of_the_transformer_is_modulation() {
        let weights = published();

        assert_eq!(weights.modulation, 60 * 2 * (6 * 3072 * 3072 + 6 * 3072) * 2);
        assert_eq!(weights.modulation / 100_000_000, 135); // 13.5 GB
    }

    #[test]
    fn the_more_room_there_is_the_more_stays() {
        for (free, on_demand) in [
            (140, "nothing"),
            (50, "modulation"),
            (24, "text encoder, vae, modulation, 47 of 60 transformer blocks"),
            (12, "text encoder, vae, modulation, 60 of 60 transformer blocks"),
        ] {
            assert_eq!(plan(free * GIB).on_demand(60), on_demand, "{free} GiB");
        }
    }

    #[test]
    fn layers_of_8_bits_leave_room_for_more() {
        // The layers of the blocks in a byte a weight, as `bench --estimate` counts them.
        let weights = published();
        let saved = 60 * 2 * 12 * 3072 * 3072;
        let transformer = weights.transformer - saved;
        let rounded = WeightBytes::new(
            [weights.text_encoder, transformer, weights.vae],
            &TransformerConfig::published(),
            2,
        );
        for (free, on_demand) in [
            (48, "nothing"),
            (40, "modulation"),
            (24, "text encoder, vae, modulation, 34 of 60 transformer blocks"),
        ] {
            let plan = MemoryPlan::new(MemoryChoice::Auto, &rounded, Some(free * GIB), 4 * GIB);

            assert_eq!(plan.on_demand(60), on_demand, "{free} GiB");
        }
    }

    #[test]
    fn a_plan_that_we_made_fits_if_any_does() {
        let smallest = plan(0).peak_bytes(&published()) + 4 * GIB;
        for free in (smallest..80 * GIB).step_by(GIB / 2) {
            let plan = plan(free);

            assert!(plan.peak_bytes(&published()) + 4 * GIB <= free, "{free}: {plan:?}");
        }
    }

    #[test]
    fn what_was_chosen_is_not_outdone_by_what_is_free() {
        for (choice, expected) in [
            (MemoryChoice::Resident, "nothing"),
            (MemoryChoice::Offload, "text encoder, vae, modulation"),
            (MemoryChoice::Stream, "text encoder, vae, modulation, 60 of 60 transformer blocks"),
        ] {
            for free in [Some(0), Some(usize::MAX), None] {
                let plan = MemoryPlan::new(choice, &published(), free, 0);

                assert_eq!(plan.on_demand(60), expected, "{choice:?} {free:?}");
            }
        }
    }

    #[test]
    fn no_two_components_that_come_and_go_are_there_together() {
        let weights = published();
        let stream = MemoryPlan::new(MemoryChoice::Stream, &weights, None, 0);

        assert_eq!(stream.peak_bytes(&weights), weights.text_encoder);
        assert_eq!(MemoryPlan::RESIDENT.peak_bytes(&weights), weights.total());
    }
}
