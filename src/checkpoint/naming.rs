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
fn decoder_place<'a>((number, inner): (&str, &'a str), period: usize) -> Option<(String, &'a str)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(naming: Naming, stored: &str) -> String {
        let Named::Whole(name) = naming.named(stored) else { panic!("{stored} is a part") };
        name
    }

    #[test]
    fn names_of_the_language_model_are_llama_cpps() {
        for (stored, ours) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.27.attn_norm.weight", "model.layers.27.input_layernorm.weight"),
            ("blk.3.attn_k.bias", "model.layers.3.self_attn.k_proj.bias"),
            ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
        ] {
            assert_eq!(whole(Naming::Llama, stored), ours);
        }
    }

    #[test]
    fn queries_keys_and_values_are_rows_and_slices_of_time_lie_side_by_side() {
        let named = |stored| Naming::VisionProjector.named(stored);
        let qkv = || "visual.blocks.5.attn.qkv.weight".to_owned();
        let patches = || "visual.patch_embed.proj.weight".to_owned();

        assert_eq!(named("v.blk.5.attn_q.weight"), Named::Rows(qkv(), 0));
        assert_eq!(named("v.blk.5.attn_k.weight"), Named::Rows(qkv(), 1));
        assert_eq!(named("v.blk.5.attn_v.weight"), Named::Rows(qkv(), 2));
        assert_eq!(named("v.patch_embd.weight"), Named::Slice(patches(), 0));
        assert_eq!(named("v.patch_embd.weight.1"), Named::Slice(patches(), 1));
        let out = whole(Naming::VisionProjector, "v.blk.5.attn_out.bias");
        assert_eq!(out, "visual.blocks.5.attn.proj.bias");
        assert_eq!(whole(Naming::VisionProjector, "v.post_ln.weight"), "visual.merger.ln_q.weight");
    }

    #[test]
    fn what_only_marks_a_file_is_no_tensor() {
        for stored in ["__index_timestep_zero__", "a.b.__x0__", "blocks.1.comfy_attention.config"] {
            assert_eq!(Naming::Published.named(stored), Named::Mark, "{stored}");
        }
        assert_ne!(Naming::Published.named("my__x0__"), Named::Mark);
    }

    #[test]
    fn blocks_of_wans_decoder_are_counted_through() {
        let name = |stored| whole(Naming::Wan { period: 4 }, stored);
        for (stored, ours) in [
            ("conv1.weight", "quant_conv.weight"),
            ("encoder.downsamples.2.resample.1.bias", "encoder.down_blocks.2.resample.1.bias"),
            ("encoder.downsamples.3.shortcut.weight", "encoder.down_blocks.3.conv_shortcut.weight"),
            ("encoder.head.0.gamma", "encoder.norm_out.gamma"),
            ("decoder.middle.2.residual.6.bias", "decoder.mid_block.resnets.1.conv2.bias"),
            ("decoder.middle.1.to_qkv.weight", "decoder.mid_block.attentions.0.to_qkv.weight"),
            (
                "decoder.upsamples.7.time_conv.bias",
                "decoder.up_blocks.1.upsamplers.0.time_conv.bias",
            ),
            ("decoder.upsamples.14.residual.3.gamma", "decoder.up_blocks.3.resnets.2.norm2.gamma"),
        ] {
            assert_eq!(name(stored), ours);
        }
    }
}
