//! The configuration files of the components, held against what is implemented.
//!
//! Accounted for is every key that the reference's classes read, and keys of their
//! relatives that would change what is computed; libraries add others when they save
//! a pipeline again.
//!
//! Sources: the published `config.json` files, and diffusers 0.42.1 and
//! transformers 5.23 for what each key does.

use crate::checkpoint::{CheckpointError, ConfigFile, LARGEST_WIDTH, Snapshot};

/// `transformer/config.json`: `QwenImageTransformer2DModel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Features of an image token: latent channels times four.
    pub in_channels: usize,
    /// Latent channels of the prediction.
    pub out_channels: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Numbers in a head.
    pub attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the prompt embeddings.
    pub joint_attention_dim: usize,
    /// Numbers of a head that turn with frame, row and column.
    pub axes_dims_rope: [usize; 3],
    /// Whether reference pictures are modulated as at noise level 0. The class's
    /// own value, false, is what the files of before 2511 mean by saying nothing.
    pub zero_cond_t: bool,
    /// Whether the noise level's embedding has an addition that says what kind of
    /// picture is made.
    pub use_additional_t_cond: bool,
    /// Whether the last picture is what all others are layers of.
    pub use_layer3d_rope: bool,
}

impl TransformerConfig {
    /// Image pixels of the latent picture that make one token, along each axis.
    pub const PATCH_SIZE: usize = 2;

    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("transformer/config.json")?;
        file.only("patch_size", Self::PATCH_SIZE);
        file.only("guidance_embeds", false);
        // Of an earlier draft of the class; no tensor depends on it.
        file.inert(&["pooled_projection_dim"]);
        let config = Self {
            in_channels: file.count("in_channels"),
            out_channels: file.count("out_channels"),
            num_layers: file.layers("num_layers"),
            attention_head_dim: file.count("attention_head_dim"),
            num_attention_heads: file.count("num_attention_heads"),
            joint_attention_dim: file.count("joint_attention_dim"),
            axes_dims_rope: file.required("axes_dims_rope"),
            zero_cond_t: file.or("zero_cond_t", false),
            use_additional_t_cond: file.or("use_additional_t_cond", false),
            use_layer3d_rope: file.or("use_layer3d_rope", false),
        };
        config.check(&mut file);
        file.finish()?;
        Ok(config)
    }

    fn check(&self, file: &mut ConfigFile) {
        let patch = Self::PATCH_SIZE * Self::PATCH_SIZE;
        if self.in_channels != self.out_channels * patch {
            file.fault(format!(
                "in_channels = {} is not out_channels = {} times {patch}",
                self.in_channels, self.out_channels
            ));
        }
        let width = self.inner_dim();
        if width > LARGEST_WIDTH {
            file.fault(format!(
                "attention_head_dim times num_attention_heads = {width} is more than {LARGEST_WIDTH}"
            ));
        }
        let axes = self.axes_dims_rope;
        if sum_of(axes) != Some(self.attention_head_dim) || axes.iter().any(|axis| axis % 2 != 0) {
            file.fault(format!(
                "axes_dims_rope = {axes:?} are not even numbers that add up to \
                 attention_head_dim = {}",
                self.attention_head_dim
            ));
        }
    }

    /// Width of the hidden states: a million million at most.
    #[must_use]
    pub fn inner_dim(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }
}

/// What `numbers` add up to, if that is a number.
fn sum_of(numbers: [usize; 3]) -> Option<usize> {
    numbers.iter().try_fold(0, |sum: usize, number| sum.checked_add(*number))
}

/// `vae/config.json`: `AutoencoderKLQwenImage`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture: 3, or 4 with transparency.
    pub input_channels: usize,
    /// Channels of the first stage.
    pub base_dim: usize,
    /// Latent channels.
    pub z_dim: usize,
    /// Channels of the stages, as multiples of `base_dim`.
    pub dim_mult: Vec<usize>,
    /// Residual blocks of an encoder stage; a decoder stage has one more.
    pub num_res_blocks: usize,
    /// Which halvings also halve time (the checkpoint's spelling): these have a
    /// `time_conv`, which a single frame never meets.
    pub temperal_downsample: Vec<bool>,
    /// Mean of each latent channel over the training pictures.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f64>,
}

impl VaeConfig {
    /// Colours of a pixel.
    pub const COLOURS: usize = 3;

    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("vae/config.json")?;
        file.only("attn_scales", serde_json::json!([]));
        // Acts in training alone.
        file.inert(&["dropout"]);
        // Of Wan's autoencoder, the same network where these say nothing else.
        file.unsupported(&["is_residual", "patch_size"]);
        file.only("scaling_factor", 1.0);
        file.only("shift_factor", 0.0);
        let config = Self {
            input_channels: file.or("input_channels", Self::COLOURS),
            base_dim: file.count("base_dim"),
            z_dim: file.count("z_dim"),
            dim_mult: file.counts("dim_mult", 1..=LARGEST_WIDTH),
            num_res_blocks: file.layers("num_res_blocks"),
            temperal_downsample: file.required("temperal_downsample"),
            latents_mean: file.required("latents_mean"),
            latents_std: file.required("latents_std"),
        };
        for channels in ["in_channels", "out_channels"] {
            file.only(channels, config.input_channels);
        }
        file.only("decoder_base_dim", config.base_dim);
        config.check(&mut file);
        file.finish()?;
        Ok(config)
    }

    fn check(&self, file: &mut ConfigFile) {
        for (key, values) in
            [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)]
        {
            if values.len() != self.z_dim {
                let (count, z_dim) = (values.len(), self.z_dim);
                file.fault(format!("{key} has {count} values, z_dim is {z_dim}"));
            }
        }
        if !self.latents_std.iter().all(|deviation| (1e-6..=1e6).contains(deviation)) {
            file.fault("latents_std has a value that is not between 10⁻⁶ and 10⁶");
        }
        if !self.latents_mean.iter().all(|mean| (-1e6..=1e6).contains(mean)) {
            file.fault("latents_mean has a value that is not between −10⁶ and 10⁶");
        }
        if ![Self::COLOURS, Self::COLOURS + 1].contains(&self.input_channels) {
            let channels = self.input_channels;
            file.fault(format!("input_channels = {channels} is not supported, only 3 and 4 are"));
        }
        if self.dim_mult.iter().any(|multiple| multiple * self.base_dim > LARGEST_WIDTH) {
            file.fault(format!("dim_mult times base_dim is more than {LARGEST_WIDTH}"));
        }
        if self.dim_mult.len() != self.temperal_downsample.len() + 1 {
            file.fault(format!(
                "dim_mult has {} stages, temperal_downsample {} halvings between them",
                self.dim_mult.len(),
                self.temperal_downsample.len()
            ));
        }
    }

    /// Image pixels of one latent pixel along each axis.
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        1 << self.temperal_downsample.len()
    }
}

/// `text_encoder/config.json`: `Qwen2_5_VLForConditionalGeneration`.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderConfig {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The token that stands for a patch of a picture.
    pub image_token_id: u32,
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
/// The most that [`ProcessorConfig::min_pixels`] may be: pictures are made as large.
const LARGEST_MIN_PIXELS: usize = 1 << 22;

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
        Ok(Self { text: text_config, vision: vision_config, image_token_id })
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

    /// Numbers in a head.
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

    /// Numbers of one patch: channels, frames, rows, columns.
    #[must_use]
    pub fn patch_dim(&self) -> usize {
        VaeConfig::COLOURS * self.temporal_patch_size * self.patch_size * self.patch_size
    }
}

/// The configuration of `Qwen2VLImageProcessor`: `processor/preprocessor_config.json`,
/// or `image_processor` in `processor/processor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorConfig {
    /// Mean of each colour over the training pictures, in 0…1.
    pub image_mean: [f32; 3],
    /// Standard deviation of each colour.
    pub image_std: [f32; 3],
    /// The fewest pixels that the encoder is shown.
    pub min_pixels: usize,
    /// The most.
    pub max_pixels: usize,
}

impl ProcessorConfig {
    /// Reads the file, which must agree with the tower about its patches. Where both
    /// files are there, the one that holds the whole processor counts.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot, vision: &VisionConfig) -> Result<Self, CheckpointError> {
        const WHOLE: &str = "processor/processor_config.json";
        if snapshot.has(WHOLE) {
            let mut file = snapshot.config(WHOLE)?;
            if file.has("image_processor") {
                let mut section = file.section("image_processor");
                let config = Self::read(&mut section, vision);
                file.close(section);
                // What video is brought to; names.
                file.inert(&["auto_map", "chat_template", "processor_class", "video_processor"]);
                file.finish()?;
                return Ok(config);
            }
        }
        let mut file = snapshot.config("processor/preprocessor_config.json")?;
        let config = Self::read(&mut file, vision);
        file.finish()?;
        Ok(config)
    }

    fn read(file: &mut ConfigFile, vision: &VisionConfig) -> Self {
        Self::pin(file, vision);
        let mut size = file.section("size");
        let shortest: Option<usize> = size.optional("shortest_edge");
        let longest: Option<usize> = size.optional("longest_edge");
        let size_min: Option<usize> = size.optional("min_pixels");
        let size_max: Option<usize> = size.optional("max_pixels");
        size.unsupported(&["height", "width", "max_height", "max_width"]);
        file.close(size);
        let config = Self {
            image_mean: file.required("image_mean"),
            image_std: file.required("image_std"),
            // The defaults are the class's own.
            min_pixels: file.optional("min_pixels").or(size_min).or(shortest).unwrap_or(56 * 56),
            max_pixels: file
                .optional("max_pixels")
                .or(size_max)
                .or(longest)
                .unwrap_or(28 * 28 * 1280),
        };
        config.check(file);
        config
    }

    fn check(&self, file: &mut ConfigFile) {
        let (least, most) = (self.min_pixels, self.max_pixels);
        if least > most {
            file.fault("min_pixels is larger than max_pixels");
        }
        if most == 0 {
            file.fault("max_pixels is 0");
        }
        if least > LARGEST_MIN_PIXELS {
            file.fault(format!("min_pixels = {least} is more than {LARGEST_MIN_PIXELS}"));
        }
        if !self.image_mean.iter().all(|mean| (-1e3..=1e3).contains(mean)) {
            file.fault("image_mean has a value that is not between −1000 and 1000");
        }
        if !self.image_std.iter().all(|deviation| (1e-6..=1e3).contains(deviation)) {
            file.fault("image_std has a value that is not between 10⁻⁶ and 1000");
        }
    }

    fn pin(file: &mut ConfigFile, vision: &VisionConfig) {
        for step in ["do_convert_rgb", "do_normalize", "do_rescale", "do_resize"] {
            file.only(step, true);
        }
        file.only("resample", 3); // PIL's number for bicubic
        let rescale: f64 = file.or("rescale_factor", 1.0 / 255.0);
        if (rescale * 255.0 - 1.0).abs() > 1e-6 {
            file.fault(format!("rescale_factor = {rescale} is not supported, only 1/255 is"));
        }
        file.only("patch_size", vision.patch_size);
        file.only("merge_size", vision.spatial_merge_size);
        file.only("temporal_patch_size", vision.temporal_patch_size);
        file.one_of(
            "image_processor_type",
            &[
                "Qwen2VLImageProcessor",
                "Qwen2VLImageProcessorFast",
                "Qwen2_5_VLImageProcessor",
                "Qwen2_5_VLImageProcessorFast",
            ],
        );
        // The class takes these of its base class and does not look at them.
        file.inert(&[
            "crop_size",
            "data_format",
            "default_to_square",
            "device",
            "disable_grouping",
            "do_center_crop",
            "do_pad",
            "image_seq_length",
            "input_data_format",
            "pad_size",
            "processor_class",
            "return_tensors",
        ]);
    }
}

#[cfg(test)]
impl TransformerConfig {
    /// Of every published checkpoint before 2511.
    pub(super) fn published() -> Self {
        Self {
            in_channels: 64,
            out_channels: 16,
            num_layers: 60,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 3584,
            axes_dims_rope: [16, 56, 56],
            zero_cond_t: false,
            use_additional_t_cond: false,
            use_layer3d_rope: false,
        }
    }
}
