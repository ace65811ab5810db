//! Settings that the tensors contradict, by name: instead of every tensor that is missing or
//! misshapen because of them.

use super::config::{TextEncoderConfig, TransformerConfig, VaeConfig};
use crate::checkpoint::{CheckpointError, Weights};

/// Settings of one file, held against one component's tensors.
struct Agreement<'a> {
    weights: &'a Weights,
    faults: Vec<String>,
}

impl<'a> Agreement<'a> {
    fn new(weights: &'a Weights) -> Self {
        Self { weights, faults: Vec::new() }
    }

    /// `expected`, which follows from `setting`, of `what` are below `place`.
    fn count(&mut self, setting: &str, expected: usize, (what, place): (&str, &str)) -> bool {
        let found = self.weights.stored_count(place);
        // Without any, names are at fault, not their number.
        let agrees = found == 0 || found == expected;
        if !agrees {
            let place = place.trim_end_matches(".resnets");
            self.faults.push(format!("{setting}, but the file has {found} {what} in {place}"));
        }
        agrees
    }

    /// Side `axis` of `tensor` is `expected`, which follows from `setting`.
    fn side(&mut self, setting: &str, expected: usize, (tensor, axis): (&str, usize)) -> bool {
        let Some(shape) = self.weights.stored_shape(tensor) else { return true };
        let agrees = shape.get(axis) == Some(&expected);
        if !agrees {
            self.faults.push(format!("{setting}, but {tensor} has shape {shape:?}"));
        }
        agrees
    }

    /// # Errors
    /// [`CheckpointError::Config`] if something of `file` disagrees.
    fn finish(self, file: &str) -> Result<(), CheckpointError> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Config { file: file.to_owned(), faults: self.faults })
    }
}

/// # Errors
/// [`CheckpointError::Config`] naming the settings that the tensors contradict.
pub(super) fn check_transformer(
    weights: &Weights,
    config: &TransformerConfig,
) -> Result<(), CheckpointError> {
    let TransformerConfig { num_layers, attention_head_dim, num_attention_heads, .. } = config;
    let mut agreement = Agreement::new(weights);
    let place = ("blocks", "transformer_blocks");
    agreement.count(&format!("num_layers = {num_layers}"), *num_layers, place);
    let head_dim = format!("attention_head_dim = {attention_head_dim}");
    let norm = ("transformer_blocks.0.attn.norm_q.weight", 0);
    let heads = format!("num_attention_heads = {num_attention_heads}");
    if agreement.side(&head_dim, *attention_head_dim, norm) {
        let heads = format!("{heads} times {head_dim}");
        agreement.side(&heads, config.inner_dim(), ("img_in.weight", 0));
    }
    let channels = format!("in_channels = {}", config.in_channels);
    agreement.side(&channels, config.in_channels, ("img_in.weight", 1));
    let width = format!("joint_attention_dim = {}", config.joint_attention_dim);
    agreement.side(&width, config.joint_attention_dim, ("txt_in.weight", 1));
    agreement.finish("transformer/config.json")
}

/// # Errors
/// As [`check_transformer`].
pub(super) fn check_text_encoder(
    weights: &Weights,
    config: &TextEncoderConfig,
) -> Result<(), CheckpointError> {
    let mut agreement = Agreement::new(weights);
    let text = &config.text;
    let layers = format!("num_hidden_layers = {}", text.num_hidden_layers);
    agreement.count(&layers, text.num_hidden_layers, ("layers", "model.layers"));
    let words = format!("vocab_size = {}", text.vocab_size);
    agreement.side(&words, text.vocab_size, ("model.embed_tokens.weight", 0));
    let width = format!("hidden_size = {}", text.hidden_size);
    let width_agrees = agreement.side(&width, text.hidden_size, ("model.embed_tokens.weight", 1));
    let inner = format!("intermediate_size = {}", text.intermediate_size);
    let tensor = ("model.layers.0.mlp.gate_proj.weight", 0);
    agreement.side(&inner, text.intermediate_size, tensor);
    if width_agrees {
        let heads = format!(
            "num_key_value_heads = {} of num_attention_heads = {}",
            text.num_key_value_heads, text.num_attention_heads
        );
        let key_width = text.num_key_value_heads * text.head_dim();
        agreement.side(&heads, key_width, ("model.layers.0.self_attn.k_proj.weight", 0));
    }
    let vision = &config.vision;
    let depth = format!("vision_config.depth = {}", vision.depth);
    agreement.count(&depth, vision.depth, ("blocks", "visual.blocks"));
    for (key, value, tensor) in [
        ("hidden_size", vision.hidden_size, "visual.patch_embed.proj.weight"),
        ("intermediate_size", vision.intermediate_size, "visual.blocks.0.mlp.gate_proj.weight"),
        ("out_hidden_size", vision.out_hidden_size, "visual.merger.mlp.2.weight"),
    ] {
        agreement.side(&format!("vision_config.{key} = {value}"), value, (tensor, 0));
    }
    agreement.finish("text_encoder/config.json")
}

/// # Errors
/// As [`check_transformer`].
pub(super) fn check_vae(weights: &Weights, config: &VaeConfig) -> Result<(), CheckpointError> {
    let VaeConfig { base_dim, z_dim, dim_mult, num_res_blocks, .. } = config;
    let mut agreement = Agreement::new(weights);
    let multiples = format!("dim_mult = {dim_mult:?}");
    let stages_agree = agreement.count(&multiples, dim_mult.len(), ("stages", "decoder.up_blocks"));
    // A stage of the decoder has one more than one of the encoder.
    let blocks = format!("num_res_blocks = {num_res_blocks}");
    let place = ("residual blocks", "decoder.up_blocks.0.resnets");
    agreement.count(&blocks, num_res_blocks + 1, place);
    let base = format!("base_dim = {base_dim}");
    let base_agrees = agreement.side(&base, *base_dim, ("encoder.conv_in.weight", 0));
    agreement.side(&format!("z_dim = {z_dim}"), *z_dim, ("post_quant_conv.weight", 0));
    if stages_agree && base_agrees {
        for (stage, multiple) in dim_mult.iter().rev().enumerate() {
            let tensor = format!("decoder.up_blocks.{stage}.resnets.0.conv1.weight");
            agreement.side(&format!("{multiples} times {base}"), multiple * base_dim, (&tensor, 0));
        }
    }
    agreement.finish("vae/config.json")
}
