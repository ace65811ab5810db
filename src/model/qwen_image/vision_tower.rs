//! The vision tower of Qwen2.5-VL: patches of pictures → tokens of the language
//! model.
//!
//! Most blocks attend within windows of 4×4 merged tokens, some within a whole
//! picture. The patches are brought into window order once, before the first
//! block, and back after the merger.
//!
//! Source: transformers 5.23, `Qwen2_5_VisionTransformerPretrainedModel`.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope;

use super::config::VisionConfig;
use super::positions::{Grid, vision_rotations};
use crate::checkpoint::Weights;
use crate::interruption;
use crate::model::residency::{Offloadable, Residency, through};
use crate::nn::{AttentionMask, Linear, RmsNorm, attention, gated_silu, gelu_erf, split_heads};

/// Epsilon of all its normalisations; a constant of the reference.
const RMS_NORM_EPS: f64 = 1e-6;

/// The tower with its weights.
pub struct VisionTower {
    patch_embed: Linear,
    blocks: Vec<Offloadable<Block>>,
    merger: Offloadable<Merger>,
    config: VisionConfig,
}

impl VisionTower {
    /// Takes the tensors under `visual`, or checks those that are not to stay: the first
    /// `resident_layers` of its blocks and, after them, its merger are.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &VisionConfig, resident_layers: usize) -> Result<Self> {
        let blocks = weights.at("blocks");
        let block = |place: &Weights, index| {
            let config = config.clone();
            let load = move |weights: &Weights| Block::load(weights, &config);
            Offloadable::new(Residency::of_layer(index, resident_layers), place, load)
        };
        let merger = config.clone();
        let merger = move |weights: &Weights| Merger::load(weights, &merger);
        let (frames, size) = (config.temporal_patch_size, config.patch_size);
        // A convolution whose kernel is its stride: a dense layer on flat patches.
        let kernel = weights
            .at("patch_embed.proj")
            .get("weight", (config.hidden_size, 3, frames, size, size))?
            .reshape((config.hidden_size, config.patch_dim()))?;
        Ok(Self {
            patch_embed: Linear::from_weight(kernel),
            blocks: blocks.load_each(config.depth, block)?,
            merger: Offloadable::new(
                Residency::of_layer(config.depth, resident_layers),
                &weights.at("merger"),
                merger,
            )?,
            config: config.clone(),
        })
    }

    /// Turns the patches of some pictures into tokens.
    ///
    /// `patches`: (patches, `patch_dim`), picture by picture, in each the four
    /// patches of a merged token together. `grids`: each picture's patches.
    /// Returns (tokens, `out_hidden_size`), picture by picture and row by row.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(&self, patches: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        let device = patches.device();
        let layout = WindowLayout::new(grids, &self.config);
        let to_windows = layout.order_tensor(device)?;
        let context = BlockContext::new(&layout, &self.config, device)?;

        let embedded = self.patch_embed.forward(patches)?;
        let count = self.blocks.len();
        let hidden_states = self.regroup(&embedded, &to_windows)?;
        let hidden_states = through(&self.blocks, hidden_states, |block, index, x| {
            interruption::check_layer(index, count)?;
            let whole_picture = self.config.fullatt_block_indexes.contains(&index);
            let reach = if whole_picture { Reach::Picture } else { Reach::Window };
            block.forward(&x, &context, reach)
        })?;
        let merged = self.merger.with(|merger| merger.forward(&hidden_states))?;
        merged.index_select(&layout.inverse_order_tensor(device)?, 0)
    }

    /// Brings the merged tokens' patches, `x`: (patches, width), into `order`.
    fn regroup(&self, x: &Tensor, order: &Tensor) -> Result<Tensor> {
        let (patches, width) = x.dims2()?;
        let together = self.config.patches_per_token();
        x.reshape((patches / together, together, width))?
            .index_select(order, 0)?
            .reshape((patches, width))
    }
}

/// How far a block looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Window,
    Picture,
}

/// Which merged tokens form a window, and in what order they come.
#[derive(Debug, PartialEq, Eq)]
pub struct WindowLayout {
    /// The merged tokens (numbered row by row, picture by picture) in window order.
    pub order: Vec<usize>,
    /// Merged tokens of each window.
    pub window_lengths: Vec<usize>,
    /// Merged tokens of each picture.
    pub picture_lengths: Vec<usize>,
    /// Row and column of each patch in window order.
    patch_places: Vec<(usize, usize)>,
}

impl WindowLayout {
    /// Cuts the pictures into windows, row by row; those at the right and at the
    /// bottom keep only what exists.
    #[must_use]
    pub fn new(grids: &[Grid], config: &VisionConfig) -> Self {
        let mut layout = Self {
            order: Vec::new(),
            window_lengths: Vec::new(),
            picture_lengths: Vec::new(),
            patch_places: Vec::new(),
        };
        for grid in grids {
            layout.add_picture(*grid, config);
        }
        layout
    }

    fn add_picture(&mut self, grid: Grid, config: &VisionConfig) {
        let merge = config.spatial_merge_size;
        let (rows, columns) = (grid.height / merge, grid.width / merge);
        let window = config.window_tokens();
        let first = self.order.len();
        for top in (0..rows).step_by(window) {
            for left in (0..columns).step_by(window) {
                let before = self.order.len();
                for row in top..rows.min(top + window) {
                    for column in left..columns.min(left + window) {
                        self.order.push(first + row * columns + column);
                        self.patch_places.extend((0..merge * merge).map(|patch| {
                            (row * merge + patch / merge, column * merge + patch % merge)
                        }));
                    }
                }
                self.window_lengths.push(self.order.len() - before);
            }
        }
        self.picture_lengths.push(rows * columns);
    }

    fn order_tensor(&self, device: &Device) -> Result<Tensor> {
        index_tensor(self.order.iter().copied(), device)
    }

    /// Where each merged token, numbered row by row, lies in window order.
    fn inverse_order_tensor(&self, device: &Device) -> Result<Tensor> {
        let mut places = vec![0; self.order.len()];
        for (place, token) in self.order.iter().enumerate() {
            places[*token] = place;
        }
        index_tensor(places, device)
    }
}

fn index_tensor(indexes: impl IntoIterator<Item = usize>, device: &Device) -> Result<Tensor> {
    #[expect(clippy::cast_possible_truncation, reason = "a picture has fewer than 2^32 patches")]
    let indexes: Vec<u32> = indexes.into_iter().map(|index| index as u32).collect();
    let count = indexes.len();
    Tensor::from_vec(indexes, count, device)
}

/// What all blocks need to know of the pictures.
struct BlockContext {
    /// (patches, head size / 2), f32.
    cos: Tensor,
    sin: Tensor,
    windows: PaddedWindows,
    /// Patches of each picture.
    picture_patches: Vec<usize>,
}

impl BlockContext {
    fn new(layout: &WindowLayout, config: &VisionConfig, device: &Device) -> Result<Self> {
        let rotations =
            vision_rotations(&layout.patch_places, config.hidden_size / config.num_heads);
        let shape = (layout.patch_places.len(), rotations.width);
        let together = config.patches_per_token();
        let patches = |lengths: &[usize]| lengths.iter().map(|n| n * together).collect::<Vec<_>>();
        Ok(Self {
            cos: Tensor::from_vec(rotations.cos, shape, device)?,
            sin: Tensor::from_vec(rotations.sin, shape, device)?,
            windows: PaddedWindows::new(&patches(&layout.window_lengths), device)?,
            picture_patches: patches(&layout.picture_lengths),
        })
    }
}

/// Windows of different lengths, filled up to the longest so that they make one
/// batch; what was filled in is masked out.
struct PaddedWindows {
    count: usize,
    length: usize,
    /// Patch at each place of each window; patch 0 where there is none.
    gather: Tensor,
    /// (windows, 1, 1, length): −∞ where there is none.
    mask: Tensor,
    /// Place of each patch among all places.
    scatter: Tensor,
}

impl PaddedWindows {
    fn new(lengths: &[usize], device: &Device) -> Result<Self> {
        let length = lengths.iter().copied().max().unwrap_or(0);
        let (mut gather, mut mask, mut scatter) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = 0;
        for (window, &patches) in lengths.iter().enumerate() {
            scatter.extend((0..patches).map(|place| window * length + place));
            gather.extend((0..length).map(|place| if place < patches { first + place } else { 0 }));
            let hidden = |place| {
                if place < patches { 0.0 } else { f32::NEG_INFINITY }
            };
            mask.extend((0..length).map(hidden));
            first += patches;
        }
        Ok(Self {
            count: lengths.len(),
            length,
            gather: index_tensor(gather, device)?,
            mask: Tensor::from_vec(mask, (lengths.len(), 1, 1, length), device)?,
            scatter: index_tensor(scatter, device)?,
        })
    }

    /// (1, heads, patches, size) → (windows, heads, length, size)
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (_, heads, _, size) = x.dims4()?;
        x.squeeze(0)?
            .index_select(&self.gather, 1)?
            .reshape((heads, self.count, self.length, size))?
            .transpose(0, 1)?
            .contiguous()
    }

    /// (windows, heads, length, size) → (patches, heads · size)
    fn join(&self, x: &Tensor) -> Result<Tensor> {
        let (windows, heads, length, size) = x.dims4()?;
        x.transpose(1, 2)?.reshape((windows * length, heads * size))?.index_select(&self.scatter, 0)
    }
}

struct Block {
    norm1: RmsNorm,
    norm2: RmsNorm,
    attn: Attention,
    mlp: Mlp,
}

impl Block {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let norm = |name| RmsNorm::load(&weights.at(name), config.hidden_size, RMS_NORM_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            attn: Attention::load(&weights.at("attn"), config)?,
            mlp: Mlp::load(&weights.at("mlp"), config)?,
        })
    }

    /// `x`: (patches, width), in window order.
    fn forward(&self, x: &Tensor, context: &BlockContext, reach: Reach) -> Result<Tensor> {
        let x = (x + self.attn.forward(&self.norm1.forward(x)?, context, reach)?)?;
        &x + self.mlp.forward(&self.norm2.forward(&x)?)?
    }
}

struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self {
            qkv: Linear::load(&weights.at("qkv"), width, 3 * width)?,
            proj: Linear::load(&weights.at("proj"), width, width)?,
            heads: config.num_heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &BlockContext, reach: Reach) -> Result<Tensor> {
        let parts = self.qkv.forward(x)?.unsqueeze(0)?.chunk(3, D::Minus1)?;
        let head = |part: &Tensor| split_heads(&part.contiguous()?, self.heads);
        let rotate = |x: &Tensor| {
            let wide = x.to_dtype(DType::F32)?;
            rope(&wide, &context.cos, &context.sin)?.to_dtype(x.dtype())
        };
        let q = rotate(&head(&parts[0])?)?; // (1, heads, patches, size)
        let k = rotate(&head(&parts[1])?)?;
        let v = head(&parts[2])?;
        let attended = match reach {
            Reach::Window => Self::in_windows(&q, &k, &v, &context.windows)?,
            Reach::Picture => Self::in_pictures(&q, &k, &v, &context.picture_patches)?,
        };
        self.proj.forward(&attended)
    }

    fn in_windows(q: &Tensor, k: &Tensor, v: &Tensor, windows: &PaddedWindows) -> Result<Tensor> {
        let (q, k, v) = (windows.split(q)?, windows.split(k)?, windows.split(v)?);
        windows.join(&attention(&q, &k, &v, AttentionMask::Keys(&windows.mask))?)
    }

    fn in_pictures(q: &Tensor, k: &Tensor, v: &Tensor, patches: &[usize]) -> Result<Tensor> {
        let mut first = 0;
        let mut pictures = Vec::with_capacity(patches.len());
        for &count in patches {
            let part = |x: &Tensor| x.narrow(2, first, count)?.contiguous();
            pictures.push(attention(&part(q)?, &part(k)?, &part(v)?, AttentionMask::None)?);
            first += count;
        }
        crate::nn::merge_heads(&Tensor::cat(&pictures, 2)?)?.squeeze(0)
    }
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(&weights.at("gate_proj"), width, inner)?,
            up_proj: Linear::load(&weights.at("up_proj"), width, inner)?,
            down_proj: Linear::load(&weights.at("down_proj"), inner, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = gated_silu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }
}

/// Joins the patches of a merged token.
struct Merger {
    ln_q: RmsNorm,
    mlp_0: Linear,
    mlp_2: Linear,
    joined_width: usize,
}

impl Merger {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let joined = config.hidden_size * config.patches_per_token();
        Ok(Self {
            ln_q: RmsNorm::load(&weights.at("ln_q"), config.hidden_size, RMS_NORM_EPS)?,
            mlp_0: Linear::load(&weights.at("mlp.0"), joined, joined)?,
            mlp_2: Linear::load(&weights.at("mlp.2"), joined, config.out_hidden_size)?,
            joined_width: joined,
        })
    }

    /// (patches, width) → (tokens, out width)
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let joined = self.ln_q.forward(x)?.reshape(((), self.joined_width))?;
        self.mlp_2.forward(&gelu_erf(&self.mlp_0.forward(&joined)?)?)
    }
}
