//! The text encoder's configuration: a language model, and a tower that sees.

use super::{VaeConfig, sum_of};
use crate::checkpoint::{CheckpointError, ConfigFile, Snapshot};

/// `text_encoder/config.json`: `Qwen2_5_VLForConditionalGeneration`.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderConfig {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The token that stands for a patch of a picture.
    pub image_token_id: u32,
    /// Whether it must see: some files of the language model come without a vision tower,
    /// and some pipelines show it nothing.
    pub needs_vision: bool,
}

/// The language model of Qwen2.5-VL.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Epsilon of the normalisations.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Rotary frequencies that turn with time, row and column.
    pub mrope_section: [usize; 3],
}

/// The vision tower of Qwen2.5-VL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionConfig {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads.
    pub num_heads: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Width of the merged tokens: that of the language model.
    pub out_hidden_size: usize,
    /// Pixels of a patch along each axis.
    pub patch_size: usize,
    /// Frames of a patch; a still picture is shown that many times.
    pub temporal_patch_size: usize,
    /// Patches merged into one token along each axis.
    pub spatial_merge_size: usize,
    /// Pixels of an attention window along each axis.
    pub window_size: usize,
    /// Blocks that attend to the whole picture.
    pub fullatt_block_indexes: Vec<usize>,
}

/// Keys of `text_encoder/config.json` that do not change the hidden states: of
/// training, of the generation of words and of video, the loading library's own, and
/// names of tokens that the tokenizer knows.
const INERT_ENCODER_KEYS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "image_token_id",
    "initializer_range",
    "label2id",
    "max_position_embeddings",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "tie_word_embeddings",
    "tokens_per_second",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "video_token_id",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
];

/// Keys that newer files have under `text_config`, older ones at the top, some both.
const TEXT_KEYS: &[&str] = &[
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "use_sliding_window",
    "vocab_size",
];

/// The class's own value of `image_token_id`, which some versions of the library do
/// not write.
const IMAGE_TOKEN_ID: u32 = 151_655;

/// The longest side of a patch in pixels, frames, or tokens that are merged.
const LARGEST_PATCH: usize = 256;

/// The names of SiLU.
const SILU: &[&str] = &["silu", "swish"];

impl TextEncoderConfig {
    /// Reads the file, in any of the styles that versions of the library have saved.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("text_encoder/config.json")?;
        file.only("model_type", "qwen2_5_vl");
        // Names a file of weights that would be taken in place of the usual one.
        file.unsupported(&["transformers_weights"]);
        let mut image_token_id: Option<u32> = file.optional("image_token_id");
        let mut vision = file.section("vision_config");
        let vision_config = VisionConfig::read(&mut vision);
        file.close(vision);
        let text_config = if file.has("text_config") {
            let mut text = file.section("text_config");
            // Of transformers 4.57, which writes it here alone.
            image_token_id = image_token_id.or(text.optional("image_token_id"));
            let config = TextConfig::read(&mut text);
            file.close(text);
            // The same values once more, for older readers.
            file.inert(TEXT_KEYS);
            config
        } else {
            TextConfig::read(&mut file)
        };
        if vision_config.out_hidden_size != text_config.hidden_size {
            file.fault(format!(
                "vision_config.out_hidden_size = {} differs from hidden_size = {}",
                vision_config.out_hidden_size, text_config.hidden_size
            ));
        }
        file.inert(INERT_ENCODER_KEYS);
        let image_token_id = image_token_id.unwrap_or(IMAGE_TOKEN_ID);
        file.finish()?;
        Ok(Self { text: text_config, vision: vision_config, image_token_id, needs_vision: true })
    }
}

impl TextConfig {
    fn read(file: &mut ConfigFile) -> Self {
        // The class's own value.
        const RMS_NORM_EPS: f64 = 1e-5;
        file.one_of("hidden_act", SILU);
        let (rope_theta, mrope_section) = Self::read_rope(file);
        let num_attention_heads = file.count("num_attention_heads");
        let config = Self {
            hidden_size: file.count("hidden_size"),
            num_hidden_layers: file.layers("num_hidden_layers"),
            num_attention_heads,
            num_key_value_heads: if file.has("num_key_value_heads") {
                file.count("num_key_value_heads")
            } else {
                num_attention_heads
            },
            intermediate_size: file.count("intermediate_size"),
            vocab_size: file.count("vocab_size"),
            rms_norm_eps: file.number_or("rms_norm_eps", RMS_NORM_EPS, 0.0..=1.0),
            rope_theta,
            mrope_section,
        };
        Self::refuse_sliding(file, config.num_hidden_layers);
        file.only("head_dim", config.head_dim());
        file.inert(INERT_ENCODER_KEYS);
        config.check(file);
        config
    }

    /// Refuses layers that attend to the last tokens alone. The class lets those from
    /// `max_window_layers` on do that, if `use_sliding_window` is set.
    fn refuse_sliding(file: &mut ConfigFile, layers: usize) {
        let types: Option<Vec<String>> = file.optional("layer_types");
        let switched_on = file.or("use_sliding_window", false);
        let window: Option<usize> = file.optional("sliding_window");
        let first = file.or("max_window_layers", 80);
        if let Some(types) = types {
            if let Some(other) = types.iter().find(|name| *name != "full_attention") {
                file.fault(format!(
                    "layer_types has \"{other}\": only full_attention is supported"
                ));
            }
        } else if switched_on && window.is_some() && first < layers {
            file.fault(format!(
                "use_sliding_window = true with max_window_layers = {first} of {layers} is not \
                 supported"
            ));
        }
    }

    /// Old style: `rope_theta` and `rope_scaling`, which count where they are there;
    /// new style: `rope_parameters`.
    fn read_rope(file: &mut ConfigFile) -> (f64, [usize; 3]) {
        // The class's own value.
        const ROPE_THETA: f64 = 1e6;
        let outer_theta: Option<f64> = file.optional("rope_theta");
        let key = if file.has("rope_scaling") { "rope_scaling" } else { "rope_parameters" };
        let mut rope = file.section(key);
        file.inert(&["rope_parameters"]);
        for kind in ["rope_type", "type"] {
            rope.one_of(kind, &["default", "mrope"]);
        }
        // Each kind of layer may have parameters of its own.
        rope.unsupported(&["full_attention", "sliding_attention"]);
        rope.only("partial_rotary_factor", 1.0);
        file.only("partial_rotary_factor", 1.0);
        let mrope_section = rope.or("mrope_section", [16, 24, 24]);
        let inner_theta: Option<f64> = rope.optional("rope_theta");
        file.close(rope);
        let rope_theta = inner_theta.or(outer_theta).unwrap_or(ROPE_THETA);
        if !(1.0..=1e12).contains(&rope_theta) {
            file.fault(format!("rope_theta = {rope_theta} is not between 1 and 10¹²"));
        }
        (rope_theta, mrope_section)
    }

    fn check(&self, file: &mut ConfigFile) {
        let heads = (self.num_attention_heads, self.num_key_value_heads);
        if !self.hidden_size.is_multiple_of(heads.0) || !heads.0.is_multiple_of(heads.1) {
            let size = self.hidden_size;
            file.fault(format!(
                "{size} numbers, {} heads and {} kv heads do not divide",
                heads.0, heads.1
            ));
        }
        if sum_of(self.mrope_section).and_then(|sum| sum.checked_mul(2)) != Some(self.head_dim()) {
            let (section, size) = (self.mrope_section, self.head_dim());
            file.fault(format!("mrope_section = {section:?} is not half a head of {size}"));
        }
    }

    /// Elements in a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

impl VisionConfig {
    fn read(file: &mut ConfigFile) -> Self {
        file.one_of("hidden_act", SILU);
        file.only("in_channels", VaeConfig::COLOURS);
        file.only("in_chans", VaeConfig::COLOURS);
        Self::check_rope(file);
        // A second name of patch_size.
        file.inert(&["spatial_patch_size"]);
        file.inert(INERT_ENCODER_KEYS);
        let config = Self {
            hidden_size: file.count("hidden_size"),
            depth: file.layers("depth"),
            num_heads: file.count("num_heads"),
            intermediate_size: file.count("intermediate_size"),
            out_hidden_size: file.count("out_hidden_size"),
            patch_size: file.count_within("patch_size", 1..=LARGEST_PATCH),
            temporal_patch_size: file.count_within("temporal_patch_size", 1..=LARGEST_PATCH),
            spatial_merge_size: file.count_within("spatial_merge_size", 1..=LARGEST_PATCH),
            window_size: file.count("window_size"),
            fullatt_block_indexes: file.required("fullatt_block_indexes"),
        };
        // Second names of the class's.
        file.only("num_attention_heads", config.num_heads);
        file.only("num_hidden_layers", config.depth);
        file.only("head_dim", config.hidden_size / config.num_heads);
        let token = config.patch_size * config.spatial_merge_size;
        if config.window_size < token {
            file.fault("window_size is smaller than patch_size times spatial_merge_size");
        }
        if !config.hidden_size.is_multiple_of(4 * config.num_heads) {
            file.fault("hidden_size does not divide by four times num_heads");
        }
        config
    }

    /// Rows and columns turn by frequencies of one fixed base.
    fn check_rope(file: &mut ConfigFile) {
        const ROPE_THETA: f64 = 10_000.0;
        file.only("rope_theta", ROPE_THETA);
        for key in ["rope_scaling", "rope_parameters"] {
            let mut rope = file.section(key);
            for kind in ["rope_type", "type"] {
                rope.one_of(kind, &["axial", "default"]);
            }
            rope.only("rope_theta", ROPE_THETA);
            rope.only("partial_rotary_factor", 1.0);
            file.close(rope);
        }
    }

    /// Merged tokens of an attention window along each axis.
    #[must_use]
    pub fn window_tokens(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }

    /// Patches of one merged token.
    #[must_use]
    pub fn patches_per_token(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Elements of one patch: channels, frames, rows, columns.
    #[must_use]
    pub fn patch_dim(&self) -> usize {
        VaeConfig::COLOURS * self.temporal_patch_size * self.patch_size * self.patch_size
    }
}
