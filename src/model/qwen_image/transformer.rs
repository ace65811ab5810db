//! The diffusion transformer: a stream of text tokens and a stream of image
//! tokens that meet in every block's attention.
//!
//! Source: diffusers 0.42.1, `QwenImageTransformer2DModel`.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_i;

use super::config::TransformerConfig;
use super::positions::{Grid, Rotations, transformer_positions};
use crate::checkpoint::Weights;
use crate::nn::{
    AttentionMask, LayerNorm, Linear, RmsNorm, attention, gelu_tanh, merge_heads, silu, split_heads,
};

/// Epsilon of all its normalisations; a constant of the reference.
const NORM_EPS: f32 = 1e-6;
/// Numbers that a timestep is spread over: half cosines, half sines.
const TIMESTEP_CHANNELS: usize = 256;
/// Widening of the feed-forward layers.
const MLP_RATIO: usize = 4;
/// The largest finite half-precision number.
const F16_MAX: f64 = 65_504.0;

/// The transformer with its weights.
pub struct Transformer {
    timestep_embedder: TimestepEmbedder,
    txt_norm: RmsNorm,
    img_in: Linear,
    txt_in: Linear,
    transformer_blocks: Vec<Block>,
    norm_out: OutputNorm,
    proj_out: Linear,
    config: TransformerConfig,
    dtype: DType,
    device: Device,
}

/// What stays the same over all steps of a picture: where the tokens stand.
pub struct TokenPositions {
    image: RotationTensors,
    text: RotationTensors,
}

/// Cosines and sines, each (tokens, head size / 2), f32.
struct RotationTensors {
    cos: Tensor,
    sin: Tensor,
}

impl RotationTensors {
    fn new(rotations: Rotations, device: &Device) -> Result<Self> {
        let shape = (rotations.cos.len() / rotations.width, rotations.width);
        Ok(Self {
            cos: Tensor::from_vec(rotations.cos, shape, device)?,
            sin: Tensor::from_vec(rotations.sin, shape, device)?,
        })
    }

    /// Turns adjacent numbers of `x`: (batch, heads, tokens, size), in 32 bits.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        rope_i(&wide, &self.cos, &self.sin)?.to_dtype(x.dtype())
    }
}

impl Transformer {
    /// Takes all tensors of the component.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &TransformerConfig) -> Result<Self> {
        let width = config.inner_dim();
        let text_width = config.joint_attention_dim;
        let blocks = weights.at("transformer_blocks");
        Ok(Self {
            timestep_embedder: TimestepEmbedder::load(
                &weights.at("time_text_embed.timestep_embedder"),
                width,
            )?,
            txt_norm: RmsNorm::load(&weights.at("txt_norm"), text_width, NORM_EPS.into())?,
            img_in: Linear::load(&weights.at("img_in"), config.in_channels, width)?,
            txt_in: Linear::load(&weights.at("txt_in"), text_width, width)?,
            transformer_blocks: (0..config.num_layers)
                .map(|index| Block::load(&blocks.at(index), config))
                .collect::<Result<_>>()?,
            norm_out: OutputNorm::load(&weights.at("norm_out"), width)?,
            proj_out: Linear::load(&weights.at("proj_out"), width, config.in_channels)?,
            config: config.clone(),
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// Where the tokens of `pictures` (the one being made first) and of a text
    /// stand.
    ///
    /// # Errors
    /// A candle error if the device refuses memory.
    pub fn positions(&self, pictures: &[Grid], text_tokens: usize) -> Result<TokenPositions> {
        let (image, text) =
            transformer_positions(pictures, text_tokens, self.config.axes_dims_rope);
        Ok(TokenPositions {
            image: RotationTensors::new(image, &self.device)?,
            text: RotationTensors::new(text, &self.device)?,
        })
    }

    /// Predicts the flow (noise minus picture) at every image token.
    ///
    /// `latents`: (batch, image tokens, in channels), the picture being made
    /// first, then the references. `prompt_embeds`: (batch, text tokens, text
    /// width). `sigma`: the noise level, 0 to 1. Returns the shape of `latents`.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(
        &self,
        latents: &Tensor,
        prompt_embeds: &Tensor,
        sigma: f32,
        positions: &TokenPositions,
    ) -> Result<Tensor> {
        let mut image = self.img_in.forward(latents)?;
        let mut text = self.txt_in.forward(&self.txt_norm.forward(prompt_embeds)?)?;
        let temb = self.timestep_embedder.forward(sigma, self.dtype, &self.device)?;
        let temb = silu(&temb)?; // the first layer of every modulation
        for block in &self.transformer_blocks {
            (text, image) = block.forward(&text, &image, &temb, positions)?;
        }
        self.proj_out.forward(&self.norm_out.forward(&image, &temb)?)
    }
}

/// A noise level → (1, width).
struct TimestepEmbedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedder {
    fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&weights.at("linear_1"), TIMESTEP_CHANNELS, width)?,
            linear_2: Linear::load(&weights.at("linear_2"), width, width)?,
        })
    }

    fn forward(&self, sigma: f32, dtype: DType, device: &Device) -> Result<Tensor> {
        let waves = Tensor::from_vec(timestep_waves(sigma), (1, TIMESTEP_CHANNELS), device)?;
        let hidden = self.linear_1.forward(&waves.to_dtype(dtype)?)?;
        self.linear_2.forward(&silu(&hidden)?)
    }
}

/// Cosines, then sines, of 1000 · `sigma` at 128 frequencies from 1 down to
/// nearly 1/10000; in 32 bits and in the reference's order.
fn timestep_waves(sigma: f32) -> Vec<f32> {
    let half = TIMESTEP_CHANNELS / 2;
    let angles = (0..half).map(|index| {
        let exponent = -(10_000_f32.ln()) * index as f32 / half as f32;
        1000.0 * (sigma * exponent.exp())
    });
    let angles: Vec<f32> = angles.collect();
    angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect()
}

/// Shift, scale and gate of one half of a block, each (batch, 1, width).
struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    /// x · (1 + scale) + shift
    fn modulate(&self, x: &Tensor) -> Result<Tensor> {
        x.broadcast_mul(&(&self.scale + 1.0)?)?.broadcast_add(&self.shift)
    }

    /// x + gate · update
    fn gated_add(&self, x: &Tensor, update: &Tensor) -> Result<Tensor> {
        x + update.broadcast_mul(&self.gate)?
    }
}

/// One of the two streams of a block: what is done to its tokens alone.
struct Stream {
    modulation: Linear,
    norm: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
}

impl Stream {
    /// Takes the tensors of stream `name`: `img` or `txt`.
    fn load(weights: &Weights, name: &str, width: usize) -> Result<Self> {
        let mlp = weights.at(format!("{name}_mlp.net"));
        let inner = MLP_RATIO * width;
        Ok(Self {
            modulation: Linear::load(&weights.at(format!("{name}_mod.1")), width, 6 * width)?,
            norm: LayerNorm::new(width, NORM_EPS, weights.dtype(), weights.device())?,
            mlp_in: Linear::load(&mlp.at("0.proj"), width, inner)?,
            mlp_out: Linear::load(&mlp.at("2"), inner, width)?,
        })
    }

    /// The modulations of the attention half and of the feed-forward half.
    /// `temb`: (batch, width), SiLU applied.
    fn modulations(&self, temb: &Tensor) -> Result<(Modulation, Modulation)> {
        let parts = self.modulation.forward(temb)?.unsqueeze(1)?.chunk(6, D::Minus1)?;
        let half = |first: usize| Modulation {
            shift: parts[first].clone(),
            scale: parts[first + 1].clone(),
            gate: parts[first + 2].clone(),
        };
        Ok((half(0), half(3)))
    }

    /// x + gate · mlp(modulated norm of x)
    fn feed_forward(&self, x: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let modulated = modulation.modulate(&self.norm.forward(x)?)?;
        let hidden = gelu_tanh(&self.mlp_in.forward(&modulated)?)?;
        modulation.gated_add(x, &self.mlp_out.forward(&hidden)?)
    }
}

struct Block {
    img: Stream,
    txt: Stream,
    attn: JointAttention,
}

impl Block {
    fn load(weights: &Weights, config: &TransformerConfig) -> Result<Self> {
        let width = config.inner_dim();
        Ok(Self {
            img: Stream::load(weights, "img", width)?,
            txt: Stream::load(weights, "txt", width)?,
            attn: JointAttention::load(&weights.at("attn"), config)?,
        })
    }

    /// `text`, `image`: (batch, tokens, width); returns both, changed.
    fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        temb: &Tensor,
        positions: &TokenPositions,
    ) -> Result<(Tensor, Tensor)> {
        let (image_attn, image_mlp) = self.img.modulations(temb)?;
        let (text_attn, text_mlp) = self.txt.modulations(temb)?;
        let image_modulated = image_attn.modulate(&self.img.norm.forward(image)?)?;
        let text_modulated = text_attn.modulate(&self.txt.norm.forward(text)?)?;
        let (text_update, image_update) =
            self.attn.forward(&text_modulated, &image_modulated, positions)?;
        let image = image_attn.gated_add(image, &image_update)?;
        let text = text_attn.gated_add(text, &text_update)?;
        let image = self.img.feed_forward(&image, &image_mlp)?;
        let text = self.txt.feed_forward(&text, &text_mlp)?;
        Ok((clip_f16(text)?, clip_f16(image)?))
    }
}

/// Keeps half-precision hidden states finite, as the reference does.
fn clip_f16(x: Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F16 { x.clamp(-F16_MAX, F16_MAX) } else { Ok(x) }
}

/// Queries, keys and values of one stream, and the way back.
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    out: Linear,
}

impl Projections {
    /// (queries, keys, values), each (batch, heads, tokens, size); queries and
    /// keys normalised per head and turned to their positions.
    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        positions: &RotationTensors,
    ) -> Result<[Tensor; 3]> {
        let q = self.norm_q.forward(&split_heads(&self.q.forward(x)?, heads)?)?;
        let k = self.norm_k.forward(&split_heads(&self.k.forward(x)?, heads)?)?;
        let v = split_heads(&self.v.forward(x)?, heads)?;
        Ok([positions.apply(&q)?, positions.apply(&k)?, v])
    }
}

/// Attention over the text and the image tokens together.
struct JointAttention {
    image: Projections,
    text: Projections,
    heads: usize,
}

impl JointAttention {
    fn load(weights: &Weights, config: &TransformerConfig) -> Result<Self> {
        let width = config.inner_dim();
        let head_dim = config.attention_head_dim;
        let linear = |name| Linear::load(&weights.at(name), width, width);
        let norm = |name| RmsNorm::load(&weights.at(name), head_dim, NORM_EPS.into());
        Ok(Self {
            image: Projections {
                q: linear("to_q")?,
                k: linear("to_k")?,
                v: linear("to_v")?,
                norm_q: norm("norm_q")?,
                norm_k: norm("norm_k")?,
                out: linear("to_out.0")?,
            },
            text: Projections {
                q: linear("add_q_proj")?,
                k: linear("add_k_proj")?,
                v: linear("add_v_proj")?,
                norm_q: norm("norm_added_q")?,
                norm_k: norm("norm_added_k")?,
                out: linear("to_add_out")?,
            },
            heads: config.num_attention_heads,
        })
    }

    /// Returns the updates of text and image, shaped like them.
    fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        positions: &TokenPositions,
    ) -> Result<(Tensor, Tensor)> {
        let text_parts = self.text.forward(text, self.heads, &positions.text)?;
        let image_parts = self.image.forward(image, self.heads, &positions.image)?;
        let joined = |part: usize| Tensor::cat(&[&text_parts[part], &image_parts[part]], 2);
        let attended = attention(&joined(0)?, &joined(1)?, &joined(2)?, AttentionMask::None)?;
        let (text_tokens, image_tokens) = (text.dim(1)?, image.dim(1)?);
        let text_half = merge_heads(&attended.narrow(2, 0, text_tokens)?)?;
        let image_half = merge_heads(&attended.narrow(2, text_tokens, image_tokens)?)?;
        Ok((self.text.out.forward(&text_half)?, self.image.out.forward(&image_half)?))
    }
}

/// The last normalisation, modulated by the noise level.
struct OutputNorm {
    linear: Linear,
    norm: LayerNorm,
}

impl OutputNorm {
    fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self {
            linear: Linear::load(&weights.at("linear"), width, 2 * width)?,
            norm: LayerNorm::new(width, NORM_EPS, weights.dtype(), weights.device())?,
        })
    }

    /// Here the scale comes first, then the shift: the other way round than in the blocks.
    fn forward(&self, x: &Tensor, temb: &Tensor) -> Result<Tensor> {
        let parts = self.linear.forward(temb)?.unsqueeze(1)?.chunk(2, D::Minus1)?;
        let scale = (&parts[0] + 1.0)?;
        self.norm.forward(x)?.broadcast_mul(&scale)?.broadcast_add(&parts[1])
    }
}
