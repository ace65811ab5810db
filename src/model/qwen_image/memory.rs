//! Which weights stay on the device: a plan from what there is and what they take.

use super::text_encoder::TextEncoderResidency;
use super::transformer::TransformerResidency;
use crate::checkpoint::CheckedTensors;
use crate::model::{MemoryChoice, PlannedComponent, Residency};

/// A group of weights, of layers that are alike: some of them stay, the others come and go
/// one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightGroup {
    /// The transformer's blocks, without their modulation.
    Blocks,
    /// The autoencoder, in one piece.
    Vae,
    /// The layers of the language model.
    TextEncoder,
    /// The blocks of the vision tower, and its merger.
    VisionTower,
    /// Those layers of the transformer that only a new schedule needs.
    Modulation,
    /// The table of words, of which a prompt needs a few rows.
    Embedding,
}

impl WeightGroup {
    /// All of them, those first that get room first: what is read most often for its bytes.
    const ALL: [Self; 6] = [
        Self::Blocks,
        Self::Vae,
        Self::TextEncoder,
        Self::VisionTower,
        Self::Modulation,
        Self::Embedding,
    ];

    /// For people: of what there are several, or what it is.
    fn name(self) -> &'static str {
        match self {
            Self::Blocks => "transformer blocks",
            Self::Vae => "vae",
            Self::TextEncoder => "text encoder layers",
            Self::VisionTower => "vision tower layers",
            Self::Modulation => "modulation layers",
            Self::Embedding => "word embeddings",
        }
    }

    /// Bytes that are on the device at a time of `layers` that come and go.
    fn passing(self, layers: &[usize]) -> usize {
        match self {
            // Rows alone.
            Self::Embedding => 0,
            // One is computed with while the next one is loaded.
            Self::Blocks | Self::Vae | Self::TextEncoder | Self::VisionTower | Self::Modulation => {
                let pairs = layers.windows(2).map(|pair| pair[0] + pair[1]);
                pairs.chain(layers.first().copied()).max().unwrap_or(0)
            }
        }
    }
}

/// Bytes of the weights in the format that they are kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    /// Of each layer of each of [`WeightGroup::ALL`].
    parts: [Vec<usize>; WeightGroup::ALL.len()],
    /// Of the few that are in no part, and always stay.
    others: usize,
}

/// How many layers the components have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayersOfComponents {
    /// Blocks of the transformer.
    pub transformer: usize,
    /// Of the language model.
    pub text: usize,
    /// Blocks of the vision tower.
    pub vision: usize,
}

impl WeightBytes {
    /// Of text encoder, transformer and VAE, all of whose tensors were checked.
    #[must_use]
    pub(crate) fn new(
        [text_encoder, transformer, vae]: &[CheckedTensors; 3],
        layers: LayersOfComponents,
    ) -> Self {
        let each = |component: &CheckedTensors, place: &str, count: usize| -> Vec<usize> {
            (0..count).map(|index| component.bytes_at(&format!("{place}.{index}."))).collect()
        };
        let stream = |stream: &str, index: usize| {
            transformer.bytes_at(&format!("transformer_blocks.{index}.{stream}_mod."))
        };
        let modulation: Vec<usize> =
            (0..layers.transformer).map(|i| stream("img", i) + stream("txt", i)).collect();
        let mut blocks = each(transformer, "transformer_blocks", layers.transformer);
        blocks.iter_mut().zip(&modulation).for_each(|(block, part)| *block -= part);
        let mut vision = each(text_encoder, "visual.blocks", layers.vision);
        vision.push(text_encoder.bytes_at("visual.merger."));
        let parts = [
            blocks,
            vec![vae.bytes()],
            each(text_encoder, "model.layers", layers.text),
            vision,
            modulation,
            vec![text_encoder.bytes_at("model.embed_tokens.")],
        ];
        let all = text_encoder.bytes() + transformer.bytes() + vae.bytes();
        let in_parts: usize = parts.iter().flatten().sum();
        Self { others: all - in_parts, parts }
    }

    fn layers(&self, part: WeightGroup) -> &[usize] {
        &self.parts[part as usize]
    }

    /// Of all layers of `part`.
    #[must_use]
    pub(crate) fn of(&self, part: WeightGroup) -> usize {
        self.layers(part).iter().sum()
    }

    /// Of all weights.
    #[must_use]
    pub(crate) fn total(&self) -> usize {
        self.others + self.parts.iter().flatten().sum::<usize>()
    }
}

/// How many layers of each part stay on the device: the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    resident: [usize; WeightGroup::ALL.len()],
}

impl MemoryPlan {
    /// All of them.
    pub(crate) const RESIDENT: Self = Self { resident: [usize::MAX; WeightGroup::ALL.len()] };

    /// None of them.
    const STREAM: Self = Self { resident: [0; WeightGroup::ALL.len()] };

    /// The plan that `choice` means; where it is up to us, the fastest that leaves
    /// `working` bytes of the `free` ones. If it is not known how many are free,
    /// everything stays.
    #[must_use]
    pub(crate) fn new(
        choice: MemoryChoice,
        weights: &WeightBytes,
        free: Option<usize>,
        working: usize,
    ) -> Self {
        match (choice, free) {
            (MemoryChoice::Resident, _) | (MemoryChoice::Auto, None) => Self::RESIDENT,
            (MemoryChoice::Offload, _) => Self::STREAM.with(WeightGroup::Blocks, usize::MAX),
            (MemoryChoice::Stream, _) => Self::STREAM,
            (MemoryChoice::Auto, Some(free)) => {
                Self::fitting(weights, free.saturating_sub(working))
            }
        }
    }

    /// As much as `room` bytes hold, part by part.
    fn fitting(weights: &WeightBytes, room: usize) -> Self {
        let fits = |plan: &Self| plan.peak_bytes(weights) <= room;
        if fits(&Self::RESIDENT) {
            return Self::RESIDENT;
        }
        WeightGroup::ALL.into_iter().fold(Self::STREAM, |plan, part| {
            let counts = (0..=weights.layers(part).len()).rev();
            let mut plans = counts.map(|count| plan.with(part, count));
            plans.find(fits).unwrap_or(plan)
        })
    }

    /// The same, of which `count` layers of `part` stay.
    fn with(mut self, part: WeightGroup, count: usize) -> Self {
        self.resident[part as usize] = count;
        self
    }

    fn resident(&self, part: WeightGroup) -> usize {
        self.resident[part as usize]
    }

    /// Of the autoencoder.
    #[must_use]
    pub(crate) fn vae(&self) -> Residency {
        Residency::of_layer(0, self.resident(WeightGroup::Vae))
    }

    /// Of the text encoder with its vision tower.
    #[must_use]
    pub(crate) fn text_encoder(&self) -> TextEncoderResidency {
        TextEncoderResidency {
            resident_layers: self.resident(WeightGroup::TextEncoder),
            resident_vision_layers: self.resident(WeightGroup::VisionTower),
            embedding: Residency::of_layer(0, self.resident(WeightGroup::Embedding)),
        }
    }

    /// Of the transformer.
    #[must_use]
    pub(crate) fn transformer(&self) -> TransformerResidency {
        TransformerResidency {
            resident_modulation: self.resident(WeightGroup::Modulation),
            resident_blocks: self.resident(WeightGroup::Blocks),
        }
    }

    /// The most bytes of weights that are on the device at a time: what stays, and
    /// the largest of those that come and go, which are never there together.
    #[must_use]
    pub(crate) fn peak_bytes(&self, weights: &WeightBytes) -> usize {
        let passing = |part: WeightGroup| part.passing(self.split(part, weights).1);
        self.resident_bytes(weights) + WeightGroup::ALL.into_iter().map(passing).max().unwrap_or(0)
    }

    /// Bytes of the weights that stay.
    #[must_use]
    pub(crate) fn resident_bytes(&self, weights: &WeightBytes) -> usize {
        let stay = |part: WeightGroup| self.split(part, weights).0.iter().sum::<usize>();
        weights.others + WeightGroup::ALL.into_iter().map(stay).sum::<usize>()
    }

    /// The bytes of those layers of `part` that stay, and of the others.
    fn split<'a>(&self, part: WeightGroup, weights: &'a WeightBytes) -> (&'a [usize], &'a [usize]) {
        let layers = weights.layers(part);
        layers.split_at(self.resident(part).min(layers.len()))
    }

    /// The groups with their bytes, and those that stay.
    #[must_use]
    pub(crate) fn components(&self, weights: &WeightBytes) -> Vec<PlannedComponent> {
        let group = |group: WeightGroup| PlannedComponent {
            name: group.name(),
            bytes: weights.of(group),
            resident_bytes: self.split(group, weights).0.iter().sum(),
        };
        let others = PlannedComponent::resident("others", weights.others);
        WeightGroup::ALL.into_iter().map(group).chain([others]).collect()
    }

    /// What does not stay, for people.
    #[must_use]
    pub(crate) fn on_demand(&self, weights: &WeightBytes) -> String {
        let told = |part: WeightGroup| {
            let (all, name) = (weights.layers(part).len(), part.name());
            let streamed = self.split(part, weights).1.len();
            match all {
                _ if streamed == 0 => None,
                1 => Some(name.to_owned()),
                _ => Some(format!("{streamed} of {all} {name}")),
            }
        };
        let names: Vec<String> = WeightGroup::ALL.into_iter().filter_map(told).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::benchmark::Published;
    use super::super::loading::weight_bytes;
    use super::super::variant;
    use super::*;
    use crate::model::loading::{LoadContext, WeightSource};
    use crate::model::{DtypeChoice, ModelConfig};

    const GIB: usize = 1 << 30;

    /// Qwen-Image-Edit, by its configuration.
    fn published(dtype: DtypeChoice) -> WeightBytes {
        let snapshot = Published::Edit.snapshot().unwrap();
        let config = ModelConfig { dtype, ..ModelConfig::of("published".to_owned()) };
        let context = LoadContext {
            snapshot: &snapshot,
            config: &config,
            id: "published",
            device: Device::Cpu,
            dtype: DType::BF16,
            weights: WeightSource::Placeholders,
            card_bytes: None,
        };
        weight_bytes(&context, &variant::EDIT).unwrap()
    }

    fn plan(weights: &WeightBytes, free: usize) -> MemoryPlan {
        MemoryPlan::new(MemoryChoice::Auto, weights, Some(free), 4 * GIB)
    }

    #[test]
    fn the_parts_are_all_of_the_published_model() {
        let weights = published(DtypeChoice::Bfloat16);

        let autoencoder = weights.of(WeightGroup::Vae);
        // Those of its list of tensors, without the output layer that only predicts words.
        assert_eq!(weights.total() - autoencoder, 15_494_338_560 + 40_860_802_176);
        // And without convolutions over time.
        assert!(autoencoder < 253_785_062 && autoencoder > 240_000_000, "{autoencoder}");
        let modulation = 60 * 2 * (6 * 3072 * 3072 + 6 * 3072) * 2;
        assert_eq!(weights.of(WeightGroup::Modulation), modulation); // 13.5 GB, a third
        assert_eq!(weights.of(WeightGroup::Embedding), 152_064 * 3584 * 2);
        assert_eq!(WeightGroup::ALL.map(|part| weights.layers(part).len()), [60, 1, 28, 33, 60, 1]);
        // What is in no part is small.
        assert!(weights.others < GIB / 8, "{}", weights.others);
        for part in WeightGroup::ALL {
            assert_eq!(WeightGroup::ALL[part as usize], part);
        }
    }

    #[test]
    fn the_more_room_there_is_the_more_stays() {
        let weights = published(DtypeChoice::Bfloat16);
        let encoder = "28 of 28 text encoder layers, 32 of 33 vision tower layers";
        let schedule = "60 of 60 modulation layers, word embeddings";
        for (free, on_demand) in [
            (140, "nothing".to_owned()),
            (50, "30 of 60 modulation layers, word embeddings".to_owned()),
            (40, format!("7 of 28 text encoder layers, 23 of 33 vision tower layers, {schedule}")),
            (24, format!("15 of 60 transformer blocks, vae, {encoder}, {schedule}")),
            (12, format!("44 of 60 transformer blocks, {encoder}, {schedule}")),
            (5, format!("60 of 60 transformer blocks, vae, {encoder}, {schedule}")),
        ] {
            let plan = plan(&weights, free * GIB);

            assert_eq!(plan.on_demand(&weights), on_demand, "{free} GiB");
        }
    }

    #[test]
    fn layers_of_8_bits_leave_room_for_more() {
        let (exact, rounded) =
            (published(DtypeChoice::Bfloat16), published(DtypeChoice::Fp8Weights));
        for free in [12, 24] {
            let blocks = |weights| plan(weights, free * GIB).transformer().resident_blocks;

            assert!(blocks(&rounded) > blocks(&exact), "{free} GiB");
        }
    }

    #[test]
    fn a_plan_that_we_made_fits_if_any_does_and_more_room_never_means_that_less_stays() {
        for dtype in [DtypeChoice::Bfloat16, DtypeChoice::Fp8] {
            let weights = published(dtype);
            let smallest = plan(&weights, 0).peak_bytes(&weights) + 4 * GIB;
            let mut stayed = 0;
            for free in (smallest..80 * GIB).step_by(GIB / 4) {
                let plan = plan(&weights, free);

                assert!(plan.peak_bytes(&weights) + 4 * GIB <= free, "{free}: {plan:?}");
                assert!(plan.resident_bytes(&weights) >= stayed, "{free}: {plan:?}");
                stayed = plan.resident_bytes(&weights);
            }
            assert_eq!(stayed, weights.total());
        }
    }

    #[test]
    fn what_was_chosen_is_not_outdone_by_what_is_free() {
        let weights = published(DtypeChoice::Bfloat16);
        let offload = "vae, 28 of 28 text encoder layers, 33 of 33 vision tower layers, 60 of \
                       60 modulation layers, word embeddings";
        let stream = format!("60 of 60 transformer blocks, {offload}");
        for (choice, expected) in [
            (MemoryChoice::Resident, "nothing"),
            (MemoryChoice::Offload, offload),
            (MemoryChoice::Stream, &stream),
        ] {
            for free in [Some(0), Some(usize::MAX), None] {
                let plan = MemoryPlan::new(choice, &weights, free, 0);

                assert_eq!(plan.on_demand(&weights), expected, "{choice:?} {free:?}");
            }
        }
    }

    #[test]
    fn of_what_comes_and_goes_two_layers_are_there_at_a_time() {
        let weights = published(DtypeChoice::Bfloat16);
        let stream = MemoryPlan::new(MemoryChoice::Stream, &weights, None, 0);
        let layer = weights.layers(WeightGroup::TextEncoder)[0];
        let block = weights.layers(WeightGroup::Blocks)[0];

        assert_eq!(stream.resident_bytes(&weights), weights.others);
        assert_eq!(stream.peak_bytes(&weights), weights.others + 2 * layer.max(block));
        assert!(stream.peak_bytes(&weights) < GIB);
        assert_eq!(MemoryPlan::RESIDENT.peak_bytes(&weights), weights.total());
    }
}
