//! What each component's `config.json` may say.
//!
//! Every key that the reference's classes read is honoured, pinned to the value that
//! is implemented, or without effect on what is computed.
//!
//! Sources: transformers 5.23, `CLIPTextConfig`; diffusers 0.42.1,
//! `UNet2DConditionModel` and `AutoencoderKL`.

use serde::Deserialize;

use crate::checkpoint::{CheckpointError, ConfigFile, LARGEST_WIDTH, MOST_LAYERS, Snapshot};

/// The most latent rows that a network may be said to be trained with.
const LARGEST_SAMPLE: usize = 4096;

/// The names of SiLU.
const SILU: &[&str] = &["silu", "swish"];

/// `text_encoder/config.json` and `text_encoder_2/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderConfig {
    /// Ids that exist.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside a feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each layer's attention.
    pub num_attention_heads: usize,
    /// The longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Inside the feed-forward layers.
    pub hidden_act: Activation,
    /// Of the layer normalisations.
    pub layer_norm_eps: f64,
    /// Which token's state stands for the whole text.
    pub end: EndToken,
    /// Width of the pooled text of `CLIPTextModelWithProjection`.
    pub projection_dim: Option<usize>,
}

/// A feed-forward layer's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(1.702 x).
    QuickGelu,
    /// GELU with the error function.
    Gelu,
}

/// The token that ends a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndToken {
    /// The largest id: what an `eos_token_id` of 2 stands for in CLIP's files.
    Largest,
    /// The first of this id.
    Id(u32),
}

impl TextEncoderConfig {
    /// Reads `component`'s file. `class` is `CLIPTextModel` or
    /// `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(
        snapshot: &Snapshot,
        component: &str,
        class: &str,
    ) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config(&format!("{component}/config.json"))?;
        let hidden_act: String = file.or("hidden_act", "quick_gelu".to_owned());
        let hidden_act = match hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            other => {
                if other != "quick_gelu" {
                    file.fault(format!("hidden_act = \"{other}\" is not supported"));
                }
                Activation::QuickGelu
            }
        };
        let end = match file.or("eos_token_id", 2) {
            2 => EndToken::Largest,
            id => EndToken::Id(id),
        };
        let config = Self {
            vocab_size: file.count("vocab_size"),
            hidden_size: file.count("hidden_size"),
            intermediate_size: file.count("intermediate_size"),
            num_hidden_layers: file.layers("num_hidden_layers"),
            num_attention_heads: file.count("num_attention_heads"),
            max_position_embeddings: file.count("max_position_embeddings"),
            hidden_act,
            layer_norm_eps: file.number_or("layer_norm_eps", 1e-5, 0.0..=1.0),
            end,
            projection_dim: if class == "CLIPTextModelWithProjection" {
                Some(file.count("projection_dim"))
            } else {
                None
            },
        };
        check_heads(&mut file, config.hidden_size, config.num_attention_heads);
        file.only("model_type", "clip_text_model");
        // Names a file of weights that would be taken in place of the usual one.
        // The other is no key of the class's: StableDiffusionPipeline looks for it.
        file.unsupported(&["transformers_weights", "use_attention_mask"]);
        file.inert(INERT_TEXT_KEYS);
        file.finish()?;
        Ok(config)
    }
}

/// Keys of training, of other uses of the class, and the loading library's own.
const INERT_TEXT_KEYS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "projection_dim",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

fn check_heads(file: &mut ConfigFile, width: usize, heads: usize) {
    if heads == 0 || !width.is_multiple_of(heads) {
        file.fault(format!("{heads} attention heads do not divide a width of {width}"));
    }
}

/// One level of the U-Net's resolutions, the finest first.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetBlock {
    /// Channels.
    pub channels: usize,
    /// Heads of its attentions.
    pub heads: usize,
    /// Transformer layers in each of its attentions.
    pub transformer_layers: usize,
    /// Whether its way down has attentions.
    pub attends_down: bool,
    /// Whether its way up has attentions.
    pub attends_up: bool,
}

/// `unet/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Latent rows and columns that it was trained with.
    pub sample_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Width of the text's hidden states.
    pub cross_attention_dim: usize,
    /// The levels, the finest first.
    pub blocks: Vec<UnetBlock>,
    /// Residual layers of a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Groups of the group normalisations.
    pub norm_num_groups: usize,
    /// Of the group normalisations.
    pub norm_eps: f64,
    /// Whether a timestep's cosines come first.
    pub flip_sin_to_cos: bool,
    /// What the count of frequencies is lessened by.
    pub freq_shift: f64,
    /// Whether the attentions' projections are dense layers, not convolutions.
    pub use_linear_projection: bool,
    /// Whether attention scores are 32-bit in 16-bit models.
    pub upcast_attention: bool,
    /// SDXL's further conditions.
    pub text_time: Option<TextTimeConfig>,
}

/// `addition_embed_type` = `text_time`: the pooled text, and six sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextTimeConfig {
    /// Numbers that each size becomes.
    pub addition_time_embed_dim: usize,
    /// Width of pooled text and sizes together.
    pub projection_class_embeddings_input_dim: usize,
}

/// A number for all levels, or one for each.
#[derive(Deserialize)]
#[serde(untagged)]
enum PerBlock {
    Same(usize),
    Each(Vec<usize>),
}

/// Takes `key`, which is one number of at most `most`, or the same one several times.
fn same_count(file: &mut ConfigFile, key: &str, most: usize) -> usize {
    if !matches!(file.peek(key), Some(serde_json::Value::Array(_))) {
        return file.count_within(key, 1..=most);
    }
    let numbers = file.counts(key, 1..=most);
    match numbers.first() {
        Some(first) if numbers.iter().all(|number| number == first) => *first,
        _ => {
            file.fault(format!("{key} = {numbers:?}: only one number for all is supported"));
            1
        }
    }
}

/// Takes `key` as one number a level, of at most `most`.
fn per_block(
    file: &mut ConfigFile,
    key: &str,
    (default, most): (usize, usize),
    blocks: usize,
) -> Vec<usize> {
    let numbers = match file.or(key, PerBlock::Same(default)) {
        PerBlock::Same(number) => vec![number; blocks],
        PerBlock::Each(numbers) => numbers,
    };
    if numbers.len() == blocks && numbers.iter().all(|number| (1..=most).contains(number)) {
        return numbers;
    }
    file.fault(format!(
        "{key} = {numbers:?} does not fit {blocks} blocks, or is not between 1 and {most}"
    ));
    vec![1; blocks]
}

/// Takes `key` as one block type a level, and says which of them are `special`.
fn block_types(
    file: &mut ConfigFile,
    key: &str,
    (plain, special): (&str, &str),
    blocks: usize,
) -> Vec<bool> {
    let names: Vec<String> = file.required(key);
    for name in names.iter().filter(|name| *name != plain && *name != special) {
        file.fault(format!("{key} has \"{name}\"; only {plain} and {special} are supported"));
    }
    if names.len() != blocks {
        file.fault(format!("{key} has {} entries for {blocks} blocks", names.len()));
        return vec![false; blocks];
    }
    names.iter().map(|name| name == special).collect()
}

impl UnetConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("unet/config.json")?;
        pin_unet_values(&mut file);
        let config = Self {
            sample_size: same_count(&mut file, "sample_size", LARGEST_SAMPLE),
            in_channels: file.count("in_channels"),
            out_channels: file.count("out_channels"),
            cross_attention_dim: same_count(&mut file, "cross_attention_dim", LARGEST_WIDTH),
            blocks: read_blocks(&mut file),
            layers_per_block: same_count(&mut file, "layers_per_block", MOST_LAYERS),
            norm_num_groups: file.count_or("norm_num_groups", 32, 1..=LARGEST_WIDTH),
            norm_eps: file.number_or("norm_eps", 1e-5, 0.0..=1.0),
            flip_sin_to_cos: file.or("flip_sin_to_cos", true),
            freq_shift: file.number_or("freq_shift", 0.0, 0.0..=1.0),
            use_linear_projection: file.or("use_linear_projection", false),
            upcast_attention: file.or("upcast_attention", false),
            text_time: read_text_time(&mut file),
        };
        let groups = config.norm_num_groups;
        for block in &config.blocks {
            check_heads(&mut file, block.channels, block.heads);
            if groups == 0 || !block.channels.is_multiple_of(groups) {
                let channels = block.channels;
                file.fault(format!("norm_num_groups = {groups} does not divide {channels}"));
            }
        }
        file.finish()?;
        Ok(config)
    }
}

fn pin_unet_values(file: &mut ConfigFile) {
    file.unsupported(&[
        "center_input_sample",
        "class_embed_type",
        "class_embeddings_concat",
        "cross_attention_norm",
        "dual_cross_attention",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "mid_block_only_cross_attention",
        "num_class_embeds",
        "resnet_skip_time_act",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "time_embedding_dim",
        "timestep_post_act",
    ]);
    let only_cross_attention: Option<serde_json::Value> = file.optional("only_cross_attention");
    let switches = match only_cross_attention {
        Some(serde_json::Value::Array(switches)) => switches,
        other => other.into_iter().collect(),
    };
    if switches.iter().any(|switch| *switch != false) {
        file.fault("only_cross_attention: only false is supported");
    }
    for key in ["downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"] {
        file.only(key, 1);
    }
    file.one_of("act_fn", SILU);
    file.only("attention_type", "default");
    file.only("conv_in_kernel", 3);
    file.only("conv_out_kernel", 3);
    // Null stands for no such block, not for the class's own value.
    if file.peek("mid_block_type").is_some_and(serde_json::Value::is_null) {
        file.fault("mid_block_type = null is not supported, only UNetMidBlock2DCrossAttn");
    }
    file.only("mid_block_type", "UNetMidBlock2DCrossAttn");
    file.only("resnet_time_scale_shift", "default");
    file.only("time_embedding_type", "positional");
    file.inert(&["addition_embed_type_num_heads", "dropout"]);
}

fn read_blocks(file: &mut ConfigFile) -> Vec<UnetBlock> {
    let channels = file.counts("block_out_channels", 1..=LARGEST_WIDTH);
    let count = channels.len();
    if count == 0 {
        return Vec::new();
    }
    // attention_head_dim counts heads: the published files bear the wrong name.
    let key = "attention_head_dim";
    let heads = if file.has("num_attention_heads") { "num_attention_heads" } else { key };
    let heads = per_block(file, heads, (8, LARGEST_WIDTH), count);
    file.inert(&[key]);
    let layers = per_block(file, "transformer_layers_per_block", (1, MOST_LAYERS), count);
    let types = ("DownBlock2D", "CrossAttnDownBlock2D");
    let down = block_types(file, "down_block_types", types, count);
    let mut up = block_types(file, "up_block_types", ("UpBlock2D", "CrossAttnUpBlock2D"), count);
    up.reverse(); // the file lists them from the coarsest
    (0..count)
        .map(|at| UnetBlock {
            channels: channels[at],
            heads: heads[at],
            transformer_layers: layers[at],
            attends_down: down[at],
            attends_up: up[at],
        })
        .collect()
}

fn read_text_time(file: &mut ConfigFile) -> Option<TextTimeConfig> {
    let kind: Option<String> = file.optional("addition_embed_type");
    let Some(kind) = kind else {
        file.inert(&["addition_time_embed_dim", "projection_class_embeddings_input_dim"]);
        return None;
    };
    if kind != "text_time" {
        file.fault(format!("addition_embed_type = \"{kind}\" is not supported"));
    }
    Some(TextTimeConfig {
        addition_time_embed_dim: file.count("addition_time_embed_dim"),
        projection_class_embeddings_input_dim: file.count("projection_class_embeddings_input_dim"),
    })
}

/// `vae/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of each level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of a level on the way in; one more on the way out.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group normalisations.
    pub norm_num_groups: usize,
    /// What latents are multiplied by for the U-Net.
    pub scaling_factor: f64,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether it overflows in float16, and must compute in float32 there.
    pub force_upcast: bool,
}

impl VaeConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("vae/config.json")?;
        let block_out_channels = file.counts("block_out_channels", 1..=LARGEST_WIDTH);
        let count = block_out_channels.len();
        for (key, name) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            block_types(&mut file, key, (name, name), count);
        }
        let groups = file.count_or("norm_num_groups", 32, 1..=LARGEST_WIDTH);
        if block_out_channels.iter().any(|channels| channels % groups != 0) {
            file.fault(format!(
                "block_out_channels = {block_out_channels:?} and norm_num_groups = {groups} do not fit"
            ));
        }
        file.one_of("act_fn", SILU);
        file.only("in_channels", 3);
        file.only("out_channels", 3);
        file.only("mid_block_add_attention", true);
        // SDXL's pipelines scale latents by these, where they are there.
        file.unsupported(&["latents_mean", "latents_std"]);
        file.only("shift_factor", 0.0);
        file.inert(&["sample_size"]);
        let config = Self {
            block_out_channels,
            layers_per_block: file.layers("layers_per_block"),
            latent_channels: file.count("latent_channels"),
            norm_num_groups: groups,
            scaling_factor: file.number_or("scaling_factor", 0.18215, 1e-6..=1e6),
            use_quant_conv: file.or("use_quant_conv", true),
            use_post_quant_conv: file.or("use_post_quant_conv", true),
            force_upcast: file.or("force_upcast", true),
        };
        file.finish()?;
        Ok(config)
    }

    /// Pixels that a latent stands for, in each direction.
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }
}
