//! What `config.json` of a CLIP text encoder may say.
//!
//! Every key that the reference's class reads is honoured, pinned to the value that is
//! implemented, or without effect on what is computed.
//!
//! Source: transformers 5.23, `CLIPTextConfig`.

use crate::checkpoint::{CheckpointError, Snapshot};
use crate::model::components::keys::check_heads;

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
