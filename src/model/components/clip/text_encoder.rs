//! CLIP's text model: token ids → hidden states, and the pooled text.
//!
//! candle-transformers has one, too, but only with the sizes of the published
//! models, with GELU approximated, and without the pooled text that SDXL needs.
//!
//! Source: transformers 5.23, `modeling_clip.py`.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::LayerNorm;

use super::{Activation, EndToken, TextEncoderConfig};
use crate::checkpoint::Weights;
use crate::interruption;
use crate::nn::{AttentionMask, Linear, attention, gelu_erf, merge_heads, split_heads};

/// CLIP's text model.
pub struct TextEncoder {
    /// (ids, width)
    token_embedding: Tensor,
    /// (positions, width)
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    /// Of `CLIPTextModelWithProjection`.
    text_projection: Option<Linear>,
    end: EndToken,
}

struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: Activation,
}

/// What became of a text.
pub struct EncodedText {
    /// After the last layer and its normalisation: (1, tokens, width).
    pub last: Tensor,
    /// What the last layer is given: (1, tokens, width).
    pub penultimate: Tensor,
    /// The whole text as one vector, (1, `projection_dim`), if the model has a
    /// projection for it.
    pub pooled: Option<Tensor>,
}

impl TextEncoder {
    /// The name without the prefix `text_model.`, which older files have.
    #[must_use]
    pub fn canonical_name(name: &str) -> String {
        name.strip_prefix("text_model.").unwrap_or(name).to_owned()
    }

    /// Takes the model's tensors from `weights`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        let width = config.hidden_size;
        let embeddings = weights.at("embeddings");
        embeddings.ignore("position_ids");
        let layers = (0..config.num_hidden_layers)
            .map(|at| Layer::load(&weights.at("encoder.layers").at(at), config))
            .collect::<Result<_>>()?;
        let positions = (config.max_position_embeddings, width);
        let text_projection = config
            .projection_dim
            .map(|size| Linear::load_without_bias(&weights.at("text_projection"), width, size));
        Ok(Self {
            token_embedding: embeddings
                .get("token_embedding.weight", (config.vocab_size, width))?,
            position_embedding: embeddings.get("position_embedding.weight", positions)?,
            layers,
            final_layer_norm: layer_norm(&weights.at("final_layer_norm"), config)?,
            text_projection: text_projection.transpose()?,
            end: config.end,
        })
    }

    /// `ids`: as many as the model has positions.
    ///
    /// # Errors
    /// A candle error if an id is not in the vocabulary, or out of memory.
    pub fn forward(&self, ids: &[u32]) -> Result<EncodedText> {
        let device = self.token_embedding.device();
        let tokens = self.token_embedding.embedding(&Tensor::new(ids, device)?)?;
        let mut state =
            (tokens + self.position_embedding.narrow(0, 0, ids.len())?)?.unsqueeze(0)?;
        let mut penultimate = state.clone();
        for layer in &self.layers {
            interruption::check()?;
            penultimate = state;
            state = layer.forward(&penultimate)?;
        }
        let last = self.final_layer_norm.forward(&state)?;
        let end = last.narrow(1, self.end.position(ids), 1)?.squeeze(1)?.contiguous()?;
        let pooled = self.text_projection.as_ref().map(|projection| projection.forward(&end));
        Ok(EncodedText { last, penultimate, pooled: pooled.transpose()? })
    }
}

impl EndToken {
    /// Where the text ends.
    fn position(self, ids: &[u32]) -> usize {
        let id = match self {
            Self::Largest => ids.iter().copied().max().unwrap_or(0),
            Self::Id(id) => id,
        };
        ids.iter().position(|other| *other == id).unwrap_or(0)
    }
}

impl Layer {
    fn load(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let projection = |name| Linear::load(&weights.at("self_attn").at(name), width, width);
        Ok(Self {
            layer_norm1: layer_norm(&weights.at("layer_norm1"), config)?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            layer_norm2: layer_norm(&weights.at("layer_norm2"), config)?,
            fc1: Linear::load(&weights.at("mlp.fc1"), width, inner)?,
            fc2: Linear::load(&weights.at("mlp.fc2"), inner, width)?,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
        })
    }

    /// (1, tokens, width) → (1, tokens, width)
    fn forward(&self, state: &Tensor) -> Result<Tensor> {
        let x = self.layer_norm1.forward(state)?;
        let heads = |projection: &Linear| split_heads(&projection.forward(&x)?, self.heads);
        let (q, k, v) = (heads(&self.q_proj)?, heads(&self.k_proj)?, heads(&self.v_proj)?);
        let x = merge_heads(&attention(&q, &k, &v, AttentionMask::Causal)?)?;
        let state = (state + self.out_proj.forward(&x)?)?;
        let x = self.fc1.forward(&self.layer_norm2.forward(&state)?)?;
        state + self.fc2.forward(&self.activation.apply(&x)?)?
    }
}

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => gelu_erf(x),
            Self::QuickGelu => {
                let wide = x.to_dtype(DType::F32)?;
                let gate = candle_nn::ops::sigmoid(&(&wide * 1.702)?)?;
                (wide * gate)?.to_dtype(x.dtype())
            }
        }
    }
}

fn layer_norm(weights: &Weights, config: &TextEncoderConfig) -> Result<LayerNorm> {
    let (width, eps) = (config.hidden_size, config.layer_norm_eps);
    Ok(LayerNorm::new(weights.get("weight", width)?, weights.get("bias", width)?, eps))
}
