//! The diffusion transformer: a stream of text tokens and a stream of image
//! tokens that meet in every block's attention.
//!
//! Source: diffusers 0.42.1, `QwenImageTransformer2DModel`.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::config::TransformerConfig;
use super::modulation::{Modulation, ModulationLayers, ModulationTable, StepModulation};
use super::passes::{PassInputs, PromptTokens};
use super::positions::{FrameOrder, Grid, Rotations, transformer_positions};
use crate::checkpoint::{AdapterSlot, Adapters, Weights};
use crate::interruption;
use crate::model::residency::{Offloadable, Residency};
use crate::nn::{
    AttentionMask, Factors, HeadStream, LayerInput, LayerNorm, Linear, RmsNorm, attention, clip,
    joint_heads, merge_heads, modulated_norm, silu,
};

/// Epsilon of all its normalisations; a constant of the reference.
const NORM_EPS: f32 = 1e-6;
/// Elements that a timestep is spread over: half cosines, half sines.
const TIMESTEP_CHANNELS: usize = 256;
/// Widening of the feed-forward layers.
const MLP_RATIO: usize = 4;
/// Kinds of pictures that an additional condition tells apart.
const ADDITIONAL_CONDITIONS: usize = 2;
/// The largest finite half-precision number.
const F16_MAX: f64 = 65_504.0;

/// The transformer with its weights.
pub struct Transformer {
    timestep_embedder: TimestepEmbedder,
    /// What is added for a picture of layers, and for one of colours alone.
    addition_t_embedding: Option<AdditionEmbedding>,
    pub(super) txt_norm: RmsNorm,
    pub(super) img_in: Linear,
    pub(super) txt_in: Linear,
    modulation_layers: Vec<Offloadable<ModulationLayers>>,
    pub(super) transformer_blocks: Vec<Offloadable<Block>>,
    pub(super) norm_out: OutputNorm,
    pub(super) proj_out: Linear,
    /// What may change its layers for a request.
    adapters: Arc<Adapters>,
    config: TransformerConfig,
    dtype: DType,
    device: Device,
}

/// Which of its weights stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformerResidency {
    /// How many of the layers that only a new schedule needs, a third of all: the first
    /// ones.
    pub resident_modulation: usize,
    /// How many of the blocks, which every step needs: the first ones.
    pub resident_blocks: usize,
}

impl TransformerResidency {
    /// All of them.
    pub const RESIDENT: Self =
        Self { resident_modulation: usize::MAX, resident_blocks: usize::MAX };
}

/// What stays the same over all steps of a picture: where the tokens stand.
pub struct TokenPositions {
    image: RotationTensors,
    text: RotationTensors,
    /// Tokens of the first picture.
    pub(super) first_picture: usize,
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

    fn angles(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }
}

impl Transformer {
    /// Takes all tensors of the component, or checks those that are not to stay.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        config: &TransformerConfig,
        residency: TransformerResidency,
    ) -> Result<Self> {
        let width = config.inner_dim();
        let text_width = config.joint_attention_dim;
        let adapters = Arc::new(Adapters::default());
        let weights = &weights.adaptable(&adapters);
        let blocks = weights.at("transformer_blocks");
        let block = |place: &Weights, index| {
            let is_outermost = index == 0 || index + 1 == config.num_layers;
            let place = &if is_outermost { place.sensitive() } else { place.clone() };
            let config = config.clone();
            let load = move |weights: &Weights| Block::load(weights, &config);
            Offloadable::new(Residency::of_layer(index, residency.resident_blocks), place, load)
        };
        let modulation = |place: &Weights, index| {
            let load = move |weights: &Weights| ModulationLayers::load(weights, width);
            Offloadable::new(Residency::of_layer(index, residency.resident_modulation), place, load)
        };
        Ok(Self {
            timestep_embedder: TimestepEmbedder::load(
                &weights.at("time_text_embed.timestep_embedder"),
                width,
            )?,
            addition_t_embedding: config
                .use_additional_t_cond
                .then(|| {
                    let weights = weights.at("time_text_embed.addition_t_embedding");
                    AdditionEmbedding::load(&weights, width)
                })
                .transpose()?,
            txt_norm: RmsNorm::load(&weights.at("txt_norm"), text_width, NORM_EPS.into())?,
            img_in: Linear::load(&weights.at("img_in"), config.in_channels, width)?,
            txt_in: Linear::load(&weights.at("txt_in"), text_width, width)?,
            modulation_layers: blocks.load_each(config.num_layers, modulation)?,
            transformer_blocks: blocks.load_each(config.num_layers, block)?,
            norm_out: OutputNorm::load(&weights.at("norm_out"), width)?,
            proj_out: Linear::load(&weights.at("proj_out"), width, config.in_channels)?,
            adapters,
            config: config.clone(),
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// What can change its layers while they compute. Whatever is made by it and kept
    /// belongs to [`Adapters::active_key`].
    #[must_use]
    pub fn adapters(&self) -> &Arc<Adapters> {
        &self.adapters
    }

    /// What it computes in, and where.
    #[must_use]
    pub fn tensor_kind(&self) -> (DType, &Device) {
        (self.dtype, &self.device)
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Whether no block is loaded for each step.
    #[must_use]
    pub fn blocks_stay(&self) -> bool {
        self.transformer_blocks.iter().all(Offloadable::stays)
    }

    /// How pictures are told apart on the frame axis.
    #[must_use]
    pub fn frame_order(&self) -> FrameOrder {
        if self.config.use_layer3d_rope { FrameOrder::LastBefore } else { FrameOrder::Counted }
    }

    /// Where the tokens of `pictures` (those being made first) and of a text
    /// stand.
    ///
    /// # Errors
    /// A candle error if the device refuses memory.
    pub fn positions(&self, pictures: &[Grid], text_tokens: usize) -> Result<TokenPositions> {
        let axes = self.config.axes_dims_rope;
        let (image, text) = transformer_positions(pictures, self.frame_order(), text_tokens, axes);
        Ok(TokenPositions {
            image: RotationTensors::new(image, &self.device)?,
            text: RotationTensors::new(text, &self.device)?,
            first_picture: pictures.first().map_or(0, |grid| grid.len()),
        })
    }

    /// What the noise levels `sigmas`, each 0 to 1, do to the tokens: a row each.
    ///
    /// # Errors
    /// A candle error if weights that do not stay cannot be read, or out of memory.
    pub fn modulations(&self, sigmas: &[f32]) -> Result<ModulationTable> {
        let mut levels = sigmas.to_vec();
        let reference_level = self.config.zero_cond_t.then_some(levels.len());
        levels.extend(reference_level.map(|_| 0.0));
        let embedded = self.temb(&levels)?;
        let blocks = self.modulation_layers.iter().enumerate().map(|(index, layers)| {
            if let Some(next) = self.modulation_layers.get(index + 1) {
                next.read_ahead();
            }
            interruption::check()?;
            layers.with(|layers| layers.forward(&embedded))
        });
        Ok(ModulationTable {
            blocks: blocks.collect::<Result<_>>()?,
            output: self.norm_out.linear.forward(&embedded)?,
            reference_level,
        })
    }

    /// Predicts the flow (noise minus picture) at every image token.
    ///
    /// `latents`: (batch, image tokens, in channels), the picture being made
    /// first, then the references. `modulation`: of the noise level, from
    /// [`Transformer::modulations`]. Returns the shape of `latents`.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(
        &self,
        latents: &Tensor,
        prompt: PromptTokens,
        modulation: StepModulation,
    ) -> Result<Tensor> {
        let read = latents.dim(1)?;
        let inputs = PassInputs { latents, read, prompts: vec![prompt], caches: &mut [] };
        let flows = self.forward_each(vec![inputs], modulation)?;
        flows.into_iter().next().ok_or_else(|| Error::msg("a pass makes a flow"))
    }

    /// (levels, width)
    fn temb(&self, sigmas: &[f32]) -> Result<Tensor> {
        let mut temb = self.timestep_embedder.forward(sigmas, self.dtype, &self.device)?;
        if let Some(additions) = &self.addition_t_embedding {
            temb = temb.broadcast_add(&additions.of(0)?)?;
        }
        silu(&temb) // the first layer of every modulation
    }
}

/// A row for each kind of picture.
struct AdditionEmbedding {
    /// (kinds, width)
    weight: Tensor,
    adapter: Option<AdapterSlot>,
}

impl AdditionEmbedding {
    fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self {
            weight: weights.get("weight", (ADDITIONAL_CONDITIONS, width))?,
            adapter: weights.adapter_slot(ADDITIONAL_CONDITIONS, width),
        })
    }

    /// (1, width), of pictures of kind `kind`.
    fn of(&self, kind: usize) -> Result<Tensor> {
        let row = self.weight.narrow(0, kind, 1)?;
        let changes = self.adapter.as_ref().and_then(AdapterSlot::changes);
        changes.iter().flat_map(|changes| changes.iter()).try_fold(row, |row, change| {
            row + (change.up.narrow(0, kind, 1)?.matmul(&change.down)? * change.factor)?
        })
    }
}

/// Noise levels → (levels, width).
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

    fn forward(&self, sigmas: &[f32], dtype: DType, device: &Device) -> Result<Tensor> {
        let waves = sigmas.iter().flat_map(|sigma| timestep_waves(*sigma)).collect();
        let waves = Tensor::from_vec(waves, (sigmas.len(), TIMESTEP_CHANNELS), device)?;
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

/// One of the two streams of a block: what is done to its tokens alone.
struct Stream {
    norm: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
}

impl Stream {
    /// Takes the tensors of stream `name`: `img` or `txt`.
    fn load(weights: &Weights, name: &str, width: usize) -> Result<Self> {
        let mlp = weights.at(format!("{name}_mlp.net"));
        let inner = MLP_RATIO * width;
        let last = mlp.at("2");
        // What reaches it in the image stream has the largest numbers of all.
        let last = if name == "img" { last.sensitive() } else { last };
        Ok(Self {
            norm: LayerNorm::new(width, NORM_EPS, weights.dtype(), weights.device())?,
            mlp_in: Linear::load_quantizable(&mlp.at("0.proj"), width, inner)?,
            mlp_out: Linear::load_quantizable(&last, inner, width)?,
        })
    }

    /// x + gate · mlp(modulated norm of x)
    fn feed_forward(&self, x: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let modulated = modulation.modulated_norm(&self.norm, x)?;
        let hidden = self.mlp_in.gelu_tanh(&modulated)?;
        modulation.gated_add(x, &self.mlp_out, &hidden)
    }
}

/// Of the attention half and of the feed-forward half of a block's streams.
pub(super) struct BlockModulations {
    pub(super) image: (Modulation, Modulation),
    pub(super) text: (Modulation, Modulation),
}

/// Both streams, and where they meet.
pub(super) struct Block {
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
    pub(super) fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        modulations: &BlockModulations,
        positions: &TokenPositions,
    ) -> Result<(Tensor, Tensor)> {
        let (image_attn, image_mlp) = &modulations.image;
        let (text_attn, text_mlp) = &modulations.text;
        let image_modulated = image_attn.modulated_norm(&self.img.norm, image)?;
        let text_modulated = text_attn.modulated_norm(&self.txt.norm, text)?;
        let (text_attended, image_attended) =
            self.attn.forward(&text_modulated, &image_modulated, positions)?;
        let image = image_attn.gated_add(image, &self.attn.image.out, &image_attended)?;
        let text = text_attn.gated_add(text, &self.attn.text.out, &text_attended)?;
        let image = self.img.feed_forward(&image, image_mlp)?;
        let text = self.txt.feed_forward(&text, text_mlp)?;
        Ok((clip_f16(text)?, clip_f16(image)?))
    }

    /// The first `read` image tokens of what [`Block::forward`] returns, and nothing else:
    /// of the other tokens, after the last block, nobody reads more than keys and values.
    pub(super) fn forward_last(
        &self,
        (text, image): (&Tensor, &Tensor),
        read: usize,
        modulations: &BlockModulations,
        positions: &TokenPositions,
    ) -> Result<Tensor> {
        let (image_attn, image_mlp) = &modulations.image;
        let image_modulated = image_attn.modulated_norm(&self.img.norm, image)?;
        let text_modulated = modulations.text.0.modulated_norm(&self.txt.norm, text)?;
        let attended = self.attn.of_image(&text_modulated, &image_modulated, read, positions)?;
        let image = image.narrow(1, 0, read)?.contiguous()?;
        let image = image_attn.gated_add(&image, &self.attn.image.out, &attended)?;
        clip_f16(self.img.feed_forward(&image, image_mlp)?)
    }
}

/// Keeps half-precision hidden states from infinity, as the reference does.
pub(super) fn clip_f16(x: Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F16 { clip(&x, -F16_MAX, F16_MAX) } else { Ok(x) }
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
        let linear = |name| Linear::load_quantizable(&weights.at(name), width, width);
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

    /// Returns what text and image have gathered, shaped like them; `out` is left to
    /// the caller.
    fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        positions: &TokenPositions,
    ) -> Result<(Tensor, Tensor)> {
        let (text_tokens, image_tokens) = (text.dim(1)?, image.dim(1)?);
        let [q, k, v] = self.queries_keys_values(text, image, positions)?;
        let attended = attention(&q, &k, &v, AttentionMask::None)?;
        let text_half = merge_heads(&attended.narrow(2, 0, text_tokens)?)?;
        let image_half = merge_heads(&attended.narrow(2, text_tokens, image_tokens)?)?;
        Ok((text_half, image_half))
    }

    /// What the first `read` tokens of the image have gathered.
    fn of_image(
        &self,
        text: &Tensor,
        image: &Tensor,
        read: usize,
        positions: &TokenPositions,
    ) -> Result<Tensor> {
        let [q, k, v] = self.queries_keys_values(text, image, positions)?;
        let q = q.narrow(2, text.dim(1)?, read)?.contiguous()?;
        merge_heads(&attention(&q, &k, &v, AttentionMask::None)?)
    }

    /// Each (batch, heads, tokens of text and image, size).
    fn queries_keys_values(
        &self,
        text: &Tensor,
        image: &Tensor,
        positions: &TokenPositions,
    ) -> Result<[Tensor; 3]> {
        let (text, image) = (&self.text.q.input(text)?, &self.image.q.input(image)?);
        let q = self.join(text, image, |of| (&of.q, Some(&of.norm_q)), positions)?;
        let k = self.join(text, image, |of| (&of.k, Some(&of.norm_k)), positions)?;
        let v = self.join(text, image, |of| (&of.v, None), positions)?;
        Ok([q, k, v])
    }

    /// (batch, heads, tokens of text and image, size) of one projection of either
    /// stream; where it is normalised, turned to the tokens' positions, too.
    fn join<'a>(
        &'a self,
        text: &LayerInput,
        image: &LayerInput,
        part: impl Fn(&'a Projections) -> (&'a Linear, Option<&'a RmsNorm>),
        positions: &TokenPositions,
    ) -> Result<Tensor> {
        let (text_linear, text_norm) = part(&self.text);
        let (image_linear, image_norm) = part(&self.image);
        let (text, image) = (text_linear.product_of(text)?, image_linear.product_of(image)?);
        let turned = text_norm.is_some();
        let text = HeadStream {
            x: &text,
            bias: text_linear.bias(),
            norm: text_norm,
            rotation: turned.then(|| positions.text.angles()),
        };
        let image = HeadStream {
            x: &image,
            bias: image_linear.bias(),
            norm: image_norm,
            rotation: turned.then(|| positions.image.angles()),
        };
        joint_heads(text, image, self.heads)
    }
}

/// The last normalisation, modulated by the noise level.
pub(super) struct OutputNorm {
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

    /// `x`: (batch, tokens, width).
    pub(super) fn forward(&self, x: &Tensor, modulation: StepModulation) -> Result<Tensor> {
        let (scale, shift) = modulation.of_output()?;
        modulated_norm(x, &self.norm, Factors::of_all(&scale), Factors::of_all(&shift))
    }
}
