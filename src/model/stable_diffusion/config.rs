//! What the U-Net's `config.json` may say.
//!
//! Every key that the reference's classes read is honoured, pinned to the value that
//! is implemented, or without effect on what is computed.
//!
//! Source: diffusers 0.42.1, `UNet2DConditionModel`.

use serde::Deserialize;

use crate::checkpoint::{CheckpointError, ConfigFile, LARGEST_WIDTH, MOST_LAYERS, Snapshot};
use crate::model::components::keys::{SILU, block_types, check_heads};

/// The most latent rows that a network may be said to be trained with.
const LARGEST_SAMPLE: usize = 4096;

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
    /// Elements that each size becomes.
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

    /// Channels that the residual layers of level `depth` (0: the finest) are given on the way
    /// down.
    #[must_use]
    pub fn down_inputs(&self, depth: usize) -> Vec<usize> {
        let before = self.blocks[depth.saturating_sub(1)].channels;
        let channels = self.blocks[depth].channels;
        let inputs = |layer| if layer == 0 { before } else { channels };
        (0..self.layers_per_block).map(inputs).collect()
    }

    /// The same on the way up. Each level takes what the way down kept: its own outputs, and
    /// last the one that the level had been given.
    #[must_use]
    pub fn up_inputs(&self, depth: usize) -> Vec<usize> {
        let channels = self.blocks[depth].channels;
        let below = self.blocks[(depth + 1).min(self.blocks.len() - 1)].channels;
        let given = self.blocks[depth.saturating_sub(1)].channels;
        let inputs = |layer| {
            let from = if layer == 0 { below } else { channels };
            let skipped = if layer == self.layers_per_block { given } else { channels };
            from + skipped
        };
        (0..=self.layers_per_block).map(inputs).collect()
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
