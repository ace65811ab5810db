//! What the keys of a LoRA file say: which module, and which part of its change.

/// What precedes names that have underscores for dots.
pub(super) const FLAT_PREFIX: &str = "lora_unet_";

/// What precedes a module's name, by style.
const PREFIXES: &[&str] = &[
    "base_model.model.",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    FLAT_PREFIX,
];

/// What a key's tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// (rank, inputs).
    Down,
    /// (outputs, rank).
    Up,
    /// One number.
    Alpha,
}

/// Endings of keys. PEFT writes its adapter's name before the last word of some.
const PARTS: [(&str, Part); 6] = [
    (".lora_A", Part::Down),
    (".lora_down", Part::Down),
    (".lora.down", Part::Down),
    (".lora_B", Part::Up),
    (".lora_up", Part::Up),
    (".lora.up", Part::Up),
];

/// Marks of keys that make a change of another kind, and its name.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("lora_magnitude_vector", "a DoRA"),
    ("dora_scale", "a DoRA"),
    (".lokr_", "a LoKr"),
    (".hada_", "a LoHa"),
    (".oft_", "an OFT"),
    (".boft_", "a BOFT"),
    (".vera_", "a VeRA"),
    (".ia3_", "an IA3"),
    ("lora_embedding_", "a LoRA of an embedding"),
    (".lora_mid.", "a LoCon with a middle layer"),
    ("modules_to_save.", "whole modules beside a LoRA (modules_to_save)"),
];

/// Endings of keys of changes that are no product of two matrices, and their name.
const OTHER_ENDINGS: &[(&str, &str)] = &[
    (".bias", "biases beside a LoRA (bias, or lora_bias)"),
    (".diff_b", "biases beside a LoRA"),
    (".diff", "whole changes of tensors"),
    (".weight", "whole tensors beside a LoRA (modules_to_save)"),
];

/// A key's module, without the prefix of its style, and part.
pub(super) fn split_key(key: &str) -> Option<(String, Part)> {
    let (module, part) = match key.strip_suffix(".alpha") {
        Some(module) => (module, Part::Alpha),
        None => matrix_of(key.strip_suffix(".weight")?)?,
    };
    let mut module = module;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)) {
        module = rest;
    }
    Some((module.to_owned(), part))
}

/// Of a key without its last word.
fn matrix_of(key: &str) -> Option<(&str, Part)> {
    fn part_of(key: &str) -> Option<(&str, Part)> {
        PARTS.into_iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, part)))
    }
    part_of(key).or_else(|| part_of(key.rsplit_once('.')?.0))
}

/// What a key is of that is no part of a LoRA, if that is known.
pub(super) fn other_kind(key: &str) -> Option<&'static str> {
    let inside = OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark));
    let at_end = || OTHER_ENDINGS.iter().find(|(end, _)| key.ends_with(end));
    inside.or_else(at_end).map(|(_, name)| *name)
}

/// A module's name with underscores for dots: the one form that every style can be
/// brought to.
pub(super) fn flat_name(module: &str) -> String {
    module.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_of_key_names_the_same_module() {
        for key in [
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            "transformer_blocks.0.attn.to_q.lora_A.default.weight",
            "transformer_blocks.0.attn.to_q.lora_A.my-adapter_2.weight",
            "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
            "base_model.model.transformer.transformer_blocks.0.attn.to_q.lora_B.default.weight",
            "diffusion_model.transformer_blocks.0.attn.to_q.lora_down.weight",
            "transformer_blocks.0.attn.to_q.lora_down.weight",
            "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
            "lora_unet_transformer_blocks_0_attn_to_q.alpha",
        ] {
            let (module, _) = split_key(key).unwrap();
            assert_eq!(flat_name(&module), "transformer_blocks_0_attn_to_q", "{key}");
        }
    }

    #[test]
    fn keys_of_other_kinds_of_changes_are_known_by_name() {
        for (stranger, name) in [
            ("transformer_blocks.0.attn.to_q.diff", "whole changes"),
            ("x.lora_B.bias", "biases"),
            ("x.lora_B.default.bias", "biases"),
            ("base_model.model.x.base_layer.bias", "biases"),
            ("x.dora_scale", "DoRA"),
            ("x.lora_magnitude_vector.weight", "DoRA"),
            ("x.lora_magnitude_vector.default.weight", "DoRA"),
            ("lycoris_x.lokr_w1", "LoKr"),
            ("x.hada_w1_a", "LoHa"),
            ("x.oft_R.weight", "OFT"),
            ("base_model.model.proj_out.weight", "modules_to_save"),
        ] {
            assert!(split_key(stranger).is_none(), "{stranger}");
            assert!(other_kind(stranger).unwrap().contains(name), "{stranger}");
        }
        assert_eq!(other_kind("x.novel"), None);
    }
}
