//! Qwen2.5-VL as an encoder: words and pictures → hidden states.
//!
//! The whole published model but for its output layer, which would only predict
//! words.
//!
//! Source: transformers 5.23, `Qwen2_5_VLModel`.

use candle_core::{Error, Result, Tensor};
use candle_nn::rotary_emb::rope;

use super::config::{TextConfig, TextEncoderConfig};
use super::positions::{Grid, Segment, language_positions, language_rotations};
use super::vision_tower::VisionTower;
use crate::checkpoint::Weights;
use crate::interruption;
use crate::model::residency::{Offloadable, Residency, through};
use crate::nn::{AttentionMask, Linear, RmsNorm, attention, gated_silu, merge_heads, split_heads};

/// The encoder with its weights.
pub struct TextEncoder {
    /// Absent, if it need not see and its files have no vision tower.
    visual: Option<VisionTower>,
    embed_tokens: Embedding,
    layers: Vec<Offloadable<Layer>>,
    norm: RmsNorm,
    config: TextConfig,
}

/// Which of its weights stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextEncoderResidency {
    /// How many of the language model's layers: the first ones.
    pub resident_layers: usize,
    /// How many of the vision tower's, whose last one is its merger.
    pub resident_vision_layers: usize,
    /// The table of words; if it does not stay, a prompt's rows are read from its file.
    pub embedding: Residency,
}

impl TextEncoderResidency {
    /// All of them.
    pub const RESIDENT: Self = Self {
        resident_layers: usize::MAX,
        resident_vision_layers: usize::MAX,
        embedding: Residency::Resident,
    };
    /// None of them.
    pub const ON_DEMAND: Self =
        Self { resident_layers: 0, resident_vision_layers: 0, embedding: Residency::OnDemand };
}

/// A prompt as the encoder takes it.
#[derive(Debug, Clone, Copy)]
pub struct PromptInput<'a> {
    /// The whole sequence, with one placeholder for each picture token.
    pub token_ids: &'a [u32],
    /// Its words and pictures in order.
    pub segments: &'a [Segment],
}

/// A prompt between two layers.
struct Pass {
    /// (1, sequence, width)
    hidden_states: Tensor,
    /// (sequence, head size / 2) each.
    cos: Tensor,
    sin: Tensor,
}

impl TextEncoder {
    /// Takes the tensors under `visual` and `model`, or checks those that are not to stay.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        config: &TextEncoderConfig,
        residency: TextEncoderResidency,
    ) -> Result<Self> {
        let text = &config.text;
        let model = weights.at("model");
        let layers = model.at("layers");
        weights.skip("lm_head.weight", (text.vocab_size, text.hidden_size));
        let layer = |place: &Weights, index| {
            let config = text.clone();
            let load = move |weights: &Weights| Layer::load(weights, &config);
            Offloadable::new(Residency::of_layer(index, residency.resident_layers), place, load)
        };
        let tower = weights.at("visual");
        let has_tower = config.needs_vision || tower.has_any();
        let visual = has_tower
            .then(|| VisionTower::load(&tower, &config.vision, residency.resident_vision_layers));
        Ok(Self {
            visual: visual.transpose()?,
            embed_tokens: Embedding::load(
                &model.at("embed_tokens"),
                (text.vocab_size, text.hidden_size),
                residency.embedding,
            )?,
            layers: layers.load_each(text.num_hidden_layers, layer)?,
            norm: RmsNorm::load(&model.at("norm"), text.hidden_size, text.rms_norm_eps)?,
            config: text.clone(),
        })
    }

    /// The stored name of a tensor in the published layout, whichever layout a file
    /// has: libraries since 2025 write `model.language_model.` for `model.` and
    /// `model.visual.` for `visual.`; saved without its output layer, the encoder has
    /// `language_model.` and `visual.`.
    #[must_use]
    pub fn canonical_name(stored: &str) -> String {
        let inner = stored.strip_prefix("model.").unwrap_or(stored);
        if inner.starts_with("visual.") {
            return inner.to_owned();
        }
        let Some(language) = inner.strip_prefix("language_model.") else {
            return stored.to_owned();
        };
        if language.starts_with("model.") || language.starts_with("lm_head.") {
            return language.to_owned();
        }
        format!("model.{language}")
    }

    /// Rows of the embedding: ids must be smaller.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// Tokens of pictures. See [`VisionTower::forward`].
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn encode_pictures(&self, patches: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        let visual = self.visual.as_ref();
        visual.ok_or_else(|| Error::msg("there is no vision tower"))?.forward(patches, grids)
    }

    /// Hidden states after the final norm.
    ///
    /// `token_ids`: the whole sequence, with one placeholder for each picture
    /// token. `segments`: its words and pictures in order. `picture_tokens`:
    /// (tokens, hidden size), taken in order for the placeholders.
    /// Returns (1, sequence, hidden size).
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(
        &self,
        token_ids: &[u32],
        segments: &[Segment],
        picture_tokens: Option<&Tensor>,
    ) -> Result<Tensor> {
        let made = self.forward_each(&[PromptInput { token_ids, segments }], picture_tokens)?;
        made.into_iter().next().ok_or_else(|| Error::msg("a prompt makes hidden states"))
    }

    /// The same for each of `prompts`, which show the same pictures: layer by layer, so that
    /// one that does not stay is loaded once.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_each(
        &self,
        prompts: &[PromptInput],
        picture_tokens: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let begin = |prompt: &PromptInput| self.begin(prompt, picture_tokens);
        let passes = prompts.iter().map(begin).collect::<Result<Vec<_>>>()?;
        let count = self.layers.len();
        let passes = through(&self.layers, passes, |layer, index, mut passes: Vec<Pass>| {
            for Pass { hidden_states, cos, sin } in &mut passes {
                interruption::check_layer(index, count)?;
                *hidden_states = layer.forward(hidden_states, cos, sin)?;
            }
            Ok(passes)
        })?;
        passes.iter().map(|pass| self.norm.forward(&pass.hidden_states)).collect()
    }

    /// `prompt` before the first layer.
    fn begin(&self, prompt: &PromptInput, picture_tokens: Option<&Tensor>) -> Result<Pass> {
        let hidden_states = self.embed(prompt, picture_tokens)?;
        let rotations = language_rotations(
            &language_positions(prompt.segments),
            self.config.rope_theta,
            self.config.mrope_section,
        );
        let shape = (prompt.token_ids.len(), rotations.width);
        let (dtype, device) = (hidden_states.dtype(), hidden_states.device().clone());
        // In 16-bit formats the reference rounds the rotations, too.
        let cos = Tensor::from_vec(rotations.cos, shape, &device)?.to_dtype(dtype)?;
        let sin = Tensor::from_vec(rotations.sin, shape, &device)?.to_dtype(dtype)?;
        Ok(Pass { hidden_states, cos, sin })
    }

    /// Word embeddings, with the pictures' tokens in their places.
    fn embed(&self, prompt: &PromptInput, picture_tokens: Option<&Tensor>) -> Result<Tensor> {
        let PromptInput { token_ids, segments } = prompt;
        let mut taken = 0;
        let mut parts = Vec::with_capacity(segments.len());
        for segment in *segments {
            match (segment, picture_tokens) {
                (Segment::Picture(_, grid), Some(pictures)) => {
                    parts.push(pictures.narrow(0, taken, grid.len())?);
                    taken += grid.len();
                }
                (Segment::Text(tokens) | Segment::Picture(tokens, _), _) => {
                    parts.push(self.embed_tokens.of(&token_ids[tokens.clone()])?);
                }
            }
        }
        Tensor::cat(&parts, 0)?.unsqueeze(0)
    }
}

/// A row for each word.
enum Embedding {
    /// (words, width)
    Resident(Tensor),
    /// In its file; of this shape.
    InFile(Box<Weights>, (usize, usize)),
}

impl Embedding {
    fn load(weights: &Weights, shape: (usize, usize), residency: Residency) -> Result<Self> {
        if weights.has_rows_at_hand("weight", shape) {
            return Ok(Self::InFile(Box::new(weights.clone()), shape));
        }
        match residency {
            Residency::Resident => Ok(Self::Resident(weights.get("weight", shape)?)),
            Residency::OnDemand => {
                weights.checking().get("weight", shape)?;
                Ok(Self::InFile(Box::new(weights.clone()), shape))
            }
        }
    }

    /// (ids, width)
    fn of(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Resident(table) => table.index_select(&Tensor::new(ids, table.device())?, 0),
            Self::InFile(weights, shape) => weights.get_rows("weight", *shape, ids),
        }
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Layer {
    fn load(weights: &Weights, config: &TextConfig) -> Result<Self> {
        let norm = |name| RmsNorm::load(&weights.at(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(&weights.at("self_attn"), config)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&weights.at("mlp"), config)?,
        })
    }

    /// `x`: (1, sequence, width); `cos`, `sin`: (sequence, head size / 2).
    fn forward(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x)?, cos, sin)?;
        let x = (x + attended)?;
        &x + self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?
    }
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
}

impl Attention {
    fn load(weights: &Weights, config: &TextConfig) -> Result<Self> {
        let width = config.hidden_size;
        let kv_width = config.num_key_value_heads * config.head_dim();
        Ok(Self {
            q_proj: Linear::load_quantizable(&weights.at("q_proj"), width, width)?,
            k_proj: Linear::load_quantizable(&weights.at("k_proj"), width, kv_width)?,
            v_proj: Linear::load_quantizable(&weights.at("v_proj"), width, kv_width)?,
            o_proj: Linear::load_quantizable_without_bias(&weights.at("o_proj"), width, width)?,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
        })
    }

    fn forward(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let x = &self.q_proj.input(x)?;
        let q = rope(&split_heads(&self.q_proj.forward_of(x)?, self.heads)?, cos, sin)?;
        let k = rope(&split_heads(&self.k_proj.forward_of(x)?, self.kv_heads)?, cos, sin)?;
        let v = split_heads(&self.v_proj.forward_of(x)?, self.kv_heads)?;
        let attended = attention(&q, &k, &v, AttentionMask::Causal)?;
        self.o_proj.forward(&merge_heads(&attended)?)
    }
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(weights: &Weights, config: &TextConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load_quantizable_without_bias(
                &weights.at("gate_proj"),
                width,
                inner,
            )?,
            up_proj: Linear::load_quantizable_without_bias(&weights.at("up_proj"), width, inner)?,
            down_proj: Linear::load_quantizable_without_bias(
                &weights.at("down_proj"),
                inner,
                width,
            )?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = &self.gate_proj.input(x)?;
        let gated = gated_silu(&self.gate_proj.forward_of(x)?, &self.up_proj.forward_of(x)?)?;
        self.down_proj.forward(&gated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_published_layouts_of_the_names_are_read() {
        let canonical = TextEncoder::canonical_name;

        assert_eq!(canonical("model.language_model.norm.weight"), "model.norm.weight");
        assert_eq!(canonical("model.visual.merger.ln_q.weight"), "visual.merger.ln_q.weight");
        assert_eq!(
            canonical("model.layers.0.mlp.up_proj.weight"),
            "model.layers.0.mlp.up_proj.weight"
        );
        assert_eq!(canonical("lm_head.weight"), "lm_head.weight");
    }
}
