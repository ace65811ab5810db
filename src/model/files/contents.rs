//! What a file of weights is, by the names of its tensors and what it says of itself: its
//! own name may say anything.

use crate::checkpoint::{FileFormat, FileListing, Naming};

/// The folders of components in the published layout.
pub(in crate::model) const TRANSFORMER: &str = "transformer";
pub(in crate::model) const TEXT_ENCODER: &str = "text_encoder";
pub(in crate::model) const VAE: &str = "vae";

/// The tensor by which files say that reference pictures are at noise level 0, as those of
/// Qwen-Image-Edit-2511 are. Source: ComfyUI, `model_detection.py`.
pub(in crate::model) const ZERO_COND_MARK: &str = "__index_timestep_zero__";

/// What names of a transformer may start with.
const TRANSFORMER_PREFIXES: [&str; 6] =
    ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "net."];
const TEXT_ENCODER_PREFIXES: [&str; 3] =
    ["", "text_encoders.qwen25_7b.transformer.", "text_encoder."];
const VAE_PREFIXES: [&str; 3] = ["", "vae.", "first_stage_model."];

/// A component in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its folder in the published layout.
    pub(super) component: &'static str,
    pub(super) prefix: String,
    pub(super) naming: Naming,
    pub(super) kind: Kind,
}

/// What is to be known of it besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Transformer {
        /// Whether it is marked as having `zero_cond_t`.
        is_marked: bool,
        /// Whether it takes pictures apart into layers.
        is_layered: bool,
    },
    /// A language model: with its vision tower, or without.
    TextEncoder {
        has_vision: bool,
    },
    /// A vision tower alone.
    VisionTower,
    Vae,
}

/// The components in the file of `listing`: several, where it is all in one.
///
/// # Errors
/// What the file is instead.
pub(super) fn components(listing: &FileListing) -> Result<Vec<Found>, String> {
    if let Some(architecture) = listing.said("general.architecture")
        && listing.format() == FileFormat::Gguf
        && let Some(found) = of_language_model(listing, architecture)?
    {
        return Ok(vec![found]);
    }
    let found = [transformer(listing), text_encoder(listing), vae(listing)?];
    let found: Vec<Found> = found.into_iter().flatten().collect();
    if found.is_empty() { Err(something_else(listing)) } else { Ok(found) }
}

/// A language model or a vision tower as llama.cpp writes it, if the file is one.
fn of_language_model(listing: &FileListing, architecture: &str) -> Result<Option<Found>, String> {
    let said = |key| listing.said(key).unwrap_or_default();
    let is_vision = ["mmproj", "clip-vision"].contains(&said("general.type"));
    if architecture == "clip" || is_vision {
        let projector = said("clip.projector_type");
        if projector != "qwen2.5vl_merger" {
            return Err(format!(
                "is a vision tower of another model (clip.projector_type = '{projector}'): \
                 Qwen2.5-VL's is 'qwen2.5vl_merger'"
            ));
        }
        let (naming, kind) = (Naming::VisionProjector, Kind::VisionTower);
        return Ok(Some(Found { component: TEXT_ENCODER, prefix: String::new(), naming, kind }));
    }
    if ["qwen2vl", "qwen25vl"].contains(&architecture) {
        let (naming, kind) = (Naming::Llama, Kind::TextEncoder { has_vision: false });
        return Ok(Some(Found { component: TEXT_ENCODER, prefix: String::new(), naming, kind }));
    }
    if listing.names().any(|name| name.starts_with("blk.") || name.starts_with("token_embd.")) {
        let text_only =
            if architecture == "qwen2" { ", which has never seen a picture" } else { "" };
        return Err(format!(
            "is a language model of architecture '{architecture}'{text_only}: Qwen-Image reads \
             prompts with Qwen2.5-VL ('qwen2vl')"
        ));
    }
    Ok(None)
}

fn prefix_of<'a>(listing: &FileListing, prefixes: &[&'a str], names: &[&str]) -> Option<&'a str> {
    let has_all = |prefix: &&&str| names.iter().all(|name| listing.has(&format!("{prefix}{name}")));
    prefixes.iter().find(has_all).copied()
}

fn transformer(listing: &FileListing) -> Option<Found> {
    let names = ["txt_norm.weight", "img_in.weight"];
    let prefix = prefix_of(listing, &TRANSFORMER_PREFIXES, &names)?;
    let has = |name: &str| listing.has(&format!("{prefix}{name}"));
    let is_marked = has(ZERO_COND_MARK) || listing.has(ZERO_COND_MARK);
    let is_layered = has("time_text_embed.addition_t_embedding.weight");
    Some(Found {
        component: TRANSFORMER,
        prefix: prefix.to_owned(),
        naming: Naming::Published,
        kind: Kind::Transformer { is_marked, is_layered },
    })
}

fn text_encoder(listing: &FileListing) -> Option<Found> {
    let language = ["model.embed_tokens.weight", "model.language_model.embed_tokens.weight"];
    let prefix =
        language.iter().find_map(|name| prefix_of(listing, &TEXT_ENCODER_PREFIXES, &[name]))?;
    let vision = ["visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight"];
    let has_vision = vision.iter().any(|name| listing.has(&format!("{prefix}{name}")));
    Some(Found {
        component: TEXT_ENCODER,
        prefix: prefix.to_owned(),
        naming: Naming::Published,
        kind: Kind::TextEncoder { has_vision },
    })
}

fn vae(listing: &FileListing) -> Result<Option<Found>, String> {
    let found = |prefix: &str, naming| {
        Ok(Some(Found { component: VAE, prefix: prefix.to_owned(), naming, kind: Kind::Vae }))
    };
    let published = ["decoder.mid_block.resnets.0.norm1.gamma"];
    if let Some(prefix) = prefix_of(listing, &VAE_PREFIXES, &published) {
        return found(prefix, Naming::Published);
    }
    let later = ["decoder.upsamples.0.upsamples.0.residual.2.weight"];
    if prefix_of(listing, &VAE_PREFIXES, &later).is_some() {
        return Err("is the autoencoder of Wan 2.2: Qwen-Image's is that of Wan 2.1".to_owned());
    }
    let wan = ["decoder.middle.0.residual.0.gamma"];
    match prefix_of(listing, &VAE_PREFIXES, &wan) {
        Some(prefix) => found(prefix, Naming::of_autoencoder(listing, prefix)),
        None => Ok(None),
    }
}

/// What a file is in which no component was found.
fn something_else(listing: &FileListing) -> String {
    let has_part = |part: &str| listing.names().any(|name| name.contains(part));
    let kinds = [
        (".lora_", "is a LoRA: name it in the settings' [[model.lora]]"),
        ("lora_unet_", "is a LoRA: name it in the settings' [[model.lora]]"),
        ("double_blocks.", "is a transformer of FLUX"),
        ("blocks.0.cross_attn.", "is a transformer of Wan"),
        ("model.diffusion_model.input_blocks.", "is a checkpoint of Stable Diffusion in one file"),
        ("first_stage_model.", "is an autoencoder of another family"),
        ("decoder.mid.block_1.", "is an autoencoder of another family"),
        ("text_model.encoder.", "is a text encoder of another family"),
        ("encoder.block.0.", "is a text encoder of another family"),
    ];
    let known = kinds.iter().find(|(part, _)| has_part(part)).map(|(_, kind)| *kind);
    let architecture = listing.said("general.architecture");
    match (known, architecture) {
        (Some(known), _) => known.to_owned(),
        (None, Some(architecture)) => {
            format!("is a GGUF file of architecture '{architecture}', which this program has not")
        }
        (None, None) => "holds no component of Qwen-Image".to_owned(),
    }
}
