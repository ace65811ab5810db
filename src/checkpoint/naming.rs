//! The names that files of other programs have for the tensors of a component, and ours.
//!
//! Sources: stable-diffusion.cpp, `name_conversion.cpp` (Wan's names of the autoencoder);
//! llama.cpp, `gguf-py/gguf/constants.py` (names of the language model and the vision
//! tower).

use super::FileListing;

/// Whose names a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Those of the published checkpoint.
    Published,
    /// llama.cpp's, of the language model.
    Llama,
    /// llama.cpp's, of the vision tower and what joins it to the language model.
    VisionProjector,
    /// Wan's, of the autoencoder.
    Wan {
        /// Blocks of its decoder between one that enlarges the picture and the next.
        period: usize,
    },
}

/// What a stored tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// A tensor of ours.
    Whole(String),
    /// Rows of one, the parts in order.
    Rows(String, usize),
    /// One of the slices, in order, that lie side by side along the third axis of one.
    Slice(String, usize),
    /// Nothing that computes.
    Mark,
}

/// Tensors that only say something of the file.
const MARKS: [&str; 5] =
    ["__index_timestep_zero__", "__x0__", "__32x32__", "scaled_fp8", "comfy_attention.config"];

impl Naming {
    /// Wan's, of the autoencoder whose names start with `prefix` in the file of `listing`.
    #[must_use]
    pub fn of_autoencoder(listing: &FileListing, prefix: &str) -> Self {
        let names = listing.names();
        let enlarging = |name: &String| {
            let name = name.strip_prefix(prefix)?;
            let (number, inner) = inside_block(name, "decoder.upsamples.")?;
            let number: usize = number.parse().ok()?;
            inner.starts_with("resample.").then_some(number)
        };
        let first = names.filter_map(enlarging).min();
        // The published one has three residual blocks before it.
        Self::Wan { period: first.map_or(4, |first| first.saturating_add(1)) }
    }

    /// What the tensor `stored` is.
    pub(super) fn named(self, stored: &str) -> Named {
        let is_mark = |mark: &str| {
            stored.strip_suffix(mark).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if MARKS.iter().any(|mark| is_mark(mark)) {
            return Named::Mark;
        }
        match self {
            Self::Published => Named::Whole(stored.to_owned()),
            Self::Llama => Named::Whole(language_name(stored)),
            Self::VisionProjector => vision_name(stored),
            Self::Wan { period } => Named::Whole(autoencoder_name(stored, period)),
        }
    }
}

/// Parts of names and ours: the first that fits.
type Table = &'static [(&'static str, &'static str)];

const LANGUAGE: Table = &[
    ("token_embd.", "model.embed_tokens."),
    ("output_norm.", "model.norm."),
    ("output.", "lm_head."),
];

const LANGUAGE_LAYER: Table = &[
    ("attn_norm.", "input_layernorm."),
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_output.", "self_attn.o_proj."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("ffn_gate.", "mlp.gate_proj."),
    ("ffn_up.", "mlp.up_proj."),
    ("ffn_down.", "mlp.down_proj."),
];

const VISION: Table = &[
    ("v.post_ln.", "visual.merger.ln_q."),
    ("mm.0.", "visual.merger.mlp.0."),
    ("mm.2.", "visual.merger.mlp.2."),
];

const VISION_BLOCK: Table = &[
    ("attn_out.", "attn.proj."),
    ("attn_qkv.", "attn.qkv."),
    ("ln1.", "norm1."),
    ("ln2.", "norm2."),
    ("ffn_gate.", "mlp.gate_proj."),
    ("ffn_up.", "mlp.up_proj."),
    ("ffn_down.", "mlp.down_proj."),
];

/// Queries, keys and values, which are one layer of ours, in this order.
const VISION_QKV: [&str; 3] = ["attn_q.", "attn_k.", "attn_v."];

fn renamed(table: Table, name: &str) -> Option<String> {
    table.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// A block's number and the name inside it.
fn inside_block<'a>(name: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    name.strip_prefix(prefix)?.split_once('.')
}

fn language_name(stored: &str) -> String {
    let inner = inside_block(stored, "blk.").and_then(|(layer, inner)| {
        Some(format!("model.layers.{layer}.{}", renamed(LANGUAGE_LAYER, inner)?))
    });
    inner.or_else(|| renamed(LANGUAGE, stored)).unwrap_or_else(|| stored.to_owned())
}

fn vision_name(stored: &str) -> Named {
    let patches = "visual.patch_embed.proj.weight";
    match stored {
        "v.patch_embd.weight" => return Named::Slice(patches.to_owned(), 0),
        "v.patch_embd.weight.1" => return Named::Slice(patches.to_owned(), 1),
        _ => {}
    }
    if let Some((block, inner)) = inside_block(stored, "v.blk.") {
        let parts = VISION_QKV.iter().enumerate();
        let part = parts.map(|(part, from)| Some((part, inner.strip_prefix(from)?)));
        if let Some((part, rest)) = part.flatten().next() {
            return Named::Rows(format!("visual.blocks.{block}.attn.qkv.{rest}"), part);
        }
        if let Some(inner) = renamed(VISION_BLOCK, inner) {
            return Named::Whole(format!("visual.blocks.{block}.{inner}"));
        }
    }
    Named::Whole(renamed(VISION, stored).unwrap_or_else(|| stored.to_owned()))
}

fn autoencoder_name(stored: &str, period: usize) -> String {
    let whole: Table = &[("conv1.", "quant_conv."), ("conv2.", "post_quant_conv.")];
    if let Some(name) = renamed(whole, stored) {
        return name;
    }
    let half = ["encoder.", "decoder."].into_iter().find(|half| stored.starts_with(half));
    let inner = half.and_then(|half| {
        let inner = stored.strip_prefix(half)?;
        let period = (half == "decoder.").then_some(period);
        Some(format!("{half}{}", half_name(period, inner)?))
    });
    inner.unwrap_or_else(|| stored.to_owned())
}

/// A name inside one half of the autoencoder: the decoder has a `period`.
fn half_name(period: Option<usize>, stored: &str) -> Option<String> {
    let ends: Table = &[
        ("conv1.", "conv_in."),
        ("head.0.", "norm_out."),
        ("head.2.", "conv_out."),
        ("middle.1.", "mid_block.attentions.0."),
    ];
    if let Some(name) = renamed(ends, stored) {
        return Some(name);
    }
    let middle: Table = &[
        ("middle.0.residual.", "mid_block.resnets.0."),
        ("middle.2.residual.", "mid_block.resnets.1."),
    ];
    let block = middle.iter().find_map(|(from, to)| Some((*to, stored.strip_prefix(from)?)));
    if let Some((block, inner)) = block {
        return Some(format!("{block}{}", residual_name(inner)?));
    }
    let (place, inner) = match period {
        Some(period) => decoder_place(inside_block(stored, "upsamples.")?, period)?,
        None => {
            let (number, inner) = inside_block(stored, "downsamples.")?;
            (format!("down_blocks.{number}"), inner)
        }
    };
    let inner = match inner.strip_prefix("residual.") {
        Some(inner) => residual_name(inner)?,
        None => renamed(&[("shortcut.", "conv_shortcut.")], inner).unwrap_or(inner.to_owned()),
    };
    Some(format!("{place}.{inner}"))
}

/// The decoder's blocks are counted through there; here every `period` of them are one, whose
/// last enlarges the picture.
fn decoder_place<'a>(
    (number, inner): (&str, &'a str),
    period: usize,
) -> Option<(String, &'a str)> {
    let number: usize = number.parse().ok()?;
    let (block, place) = (number.checked_div(period)?, number.checked_rem(period)?);
    let name = match place + 1 == period {
        true => format!("up_blocks.{block}.upsamplers.0"),
        false => format!("up_blocks.{block}.resnets.{place}"),
    };
    Some((name, inner))
}

/// The layers of a residual block are counted there.
fn residual_name(inner: &str) -> Option<String> {
    renamed(&[("0.", "norm1."), ("2.", "conv1."), ("3.", "norm2."), ("6.", "conv2.")], inner)
}
