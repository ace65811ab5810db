//! Which of a component's weight files are its weights.
//!
//! Folders gather what was saved at different times and for different programs:
//! one file and shards, half and full precision, pickles. The choice is that of
//! the library that saves and loads the component. Pure: names in, names out.
//!
//! Sources: transformers 5.23, `_get_resolved_checkpoint_files`; diffusers 0.42.1,
//! `ModelMixin.from_pretrained`, `_fetch_index_file` and `_fetch_index_file_legacy`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Variants in the order in which they are preferred; all others come after them.
const PREFERRED_VARIANTS: [&str; 3] = ["fp32", "bf16", "fp16"];

/// What counts where a component has one file and shards, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precedence {
    /// The one file, as in transformers.
    SingleFile,
    /// The shards that an index names, as in diffusers.
    Index,
}

impl Precedence {
    /// That of the library that saves weights as `stem`.
    fn of(stem: &str) -> Self {
        if stem == "model" { Self::SingleFile } else { Self::Index }
    }
}

/// The weights of a component, by their names in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    /// The file to begin with: weights, or the index of their shards.
    pub first: WeightFile,
    /// The word in the names, such as `fp16`, if weights without one are not there.
    pub variant: Option<String>,
    /// What is there, too, and is not taken: one file beside an index, or the
    /// other way round.
    pub passed_over: Option<String>,
}

/// A file that leads to weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFile {
    /// All weights.
    Single(String),
    /// The names of the files that they are in.
    Index(String),
}

impl WeightFiles {
    /// Chooses among `names`, those of the files in the component's folder; `stem`
    /// is `model` for components of transformers, `diffusion_pytorch_model` for those
    /// of diffusers.
    ///
    /// # Errors
    /// A sentence that says which file is missing, what is there instead, and what to
    /// do about it.
    pub fn choose(stem: &str, names: &[String]) -> Result<Self, String> {
        let variants = variants(stem, names);
        let plain = Self::of_variant(stem, None, names);
        let chosen = plain.or_else(|| {
            variants.iter().find_map(|variant| Self::of_variant(stem, Some(variant), names))
        });
        chosen.ok_or_else(|| nothing_to_read(stem, names))
    }

    fn of_variant(stem: &str, variant: Option<&str>, names: &[String]) -> Option<Self> {
        let there = |name: String| names.contains(&name).then_some(name);
        let single = there(match variant {
            None => format!("{stem}.safetensors"),
            Some(variant) => format!("{stem}.{variant}.safetensors"),
        });
        let index = index_names(stem, variant).into_iter().find_map(there);
        let (first, passed_over) = match (single, index, Precedence::of(stem)) {
            (Some(single), index, Precedence::SingleFile) => (WeightFile::Single(single), index),
            (single, Some(index), _) => (WeightFile::Index(index), single),
            (Some(single), None, Precedence::Index) => (WeightFile::Single(single), None),
            (None, None, _) => return None,
        };
        Some(Self { first, variant: variant.map(str::to_owned), passed_over })
    }
}

/// The names that an index may have: those of now first.
fn index_names(stem: &str, variant: Option<&str>) -> Vec<String> {
    match variant {
        None => vec![format!("{stem}.safetensors.index.json")],
        Some(variant) => vec![
            format!("{stem}.safetensors.index.{variant}.json"),
            format!("{stem}.safetensors.{variant}.index.json"),
            format!("{stem}.{variant}.safetensors.index.json"),
        ],
    }
}

/// The variants that `names` are of, the preferred first.
fn variants<'a>(stem: &str, names: &'a [String]) -> Vec<&'a str> {
    let of_name = |name: &'a String| {
        let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
        let parts: Vec<&str> = rest.split('.').collect();
        let variant = match parts[..] {
            [variant, "safetensors"]
            | ["safetensors", "index", variant, "json"]
            | ["safetensors", variant, "index", "json"]
            | [variant, "safetensors", "index", "json"] => variant,
            _ => return None,
        };
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        (!variant.is_empty() && variant.bytes().all(is_word)).then_some(variant)
    };
    let found: BTreeSet<&str> = names.iter().filter_map(of_name).collect();
    let mut found: Vec<&str> = found.into_iter().collect();
    let rank = |variant: &&str| {
        let place = PREFERRED_VARIANTS.iter().position(|known| known == variant);
        place.unwrap_or(PREFERRED_VARIANTS.len())
    };
    found.sort_by_key(rank);
    found
}

/// The files that an index (its `text`) names, each once: they lie beside it.
///
/// # Errors
/// What is wrong with the index.
pub fn shards(text: &str) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_str(text).map_err(|error| format!("is not a shard index: {error}"))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| !is_file_name(name)) {
        return Err(format!("names '{name}', which is not a file in its folder"));
    }
    if let Some(name) = names.iter().find(|name| !name.ends_with(".safetensors")) {
        return Err(format!("names '{name}', which is not a safetensors file"));
    }
    if names.is_empty() {
        return Err("names no file".to_owned());
    }
    Ok(names.into_iter().collect())
}

/// Whether `name` is one plain name: no path, nothing hidden, nothing upwards.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Says what is there instead of safetensors files, and what to do.
fn nothing_to_read(stem: &str, names: &[String]) -> String {
    let missing = format!("there is no {stem}.safetensors");
    let ending = |name: &&String, endings: &[&str]| {
        let name = name.to_ascii_lowercase();
        endings.iter().any(|ending| name.ends_with(ending))
    };
    let kinds: [(&[&str], &str); 5] = [
        (
            &[".safetensors"],
            "a safetensors file of another name: shards need their index beside them (fetch it, \
             too), and other files are not in diffusers' layout",
        ),
        (
            &[".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"],
            "a pickle, which this program does not read: load the pipeline in diffusers and save \
             it with save_pretrained, which writes safetensors files",
        ),
        (
            &[".gguf"],
            "quantised for other programs: take the repository with the safetensors files that \
             it was made from",
        ),
        (
            &[".onnx", ".onnx_data", ".onnx.data", ".xml", ".engine", ".plan", ".mlmodel"],
            "made for another runtime: take the repository's safetensors files",
        ),
        (
            &[".msgpack", ".h5", ".tflite"],
            "made for Flax or TensorFlow: take the repository's safetensors files",
        ),
    ];
    for (endings, advice) in kinds {
        if let Some(name) = names.iter().find(|name| ending(name, endings)) {
            return format!("{missing}; {name} is there, {advice}");
        }
    }
    format!("{missing}: fetch it, too")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSFORMERS: &str = "model";
    const DIFFUSERS: &str = "diffusion_pytorch_model";

    fn choose(stem: &str, names: &[&str]) -> Result<WeightFiles, String> {
        let names: Vec<String> = names.iter().map(|name| name.replace("STEM", stem)).collect();
        WeightFiles::choose(stem, &names)
    }

    fn chosen(stem: &str, names: &[&str]) -> String {
        match choose(stem, names).unwrap().first {
            WeightFile::Single(name) | WeightFile::Index(name) => name.replace(stem, "STEM"),
        }
    }

    #[test]
    fn one_file_counts_before_an_index_in_transformers_and_after_it_in_diffusers() {
        let both =
            ["STEM-00001-of-00001.safetensors", "STEM.safetensors", "STEM.safetensors.index.json"];

        assert_eq!(chosen(TRANSFORMERS, &both), "STEM.safetensors");
        assert_eq!(chosen(DIFFUSERS, &both), "STEM.safetensors.index.json");
        let passed_over = |stem| choose(stem, &both).unwrap().passed_over.unwrap();
        assert_eq!(passed_over(TRANSFORMERS), "model.safetensors.index.json");
        assert_eq!(passed_over(DIFFUSERS), "diffusion_pytorch_model.safetensors");
    }

    #[test]
    fn a_variant_is_taken_where_nothing_else_is_there() {
        for stem in [TRANSFORMERS, DIFFUSERS] {
            for names in [
                &["STEM.fp16.safetensors"][..],
                &["STEM.safetensors.index.fp16.json", "STEM.fp16-00001-of-00002.safetensors"],
                &["STEM.safetensors.fp16.index.json", "STEM-00001-of-00002.fp16.safetensors"],
                &["STEM.fp16.safetensors.index.json", "STEM-00001-of-00002.fp16.safetensors"],
            ] {
                let files = choose(stem, names).unwrap();
                assert_eq!(files.variant.as_deref(), Some("fp16"), "{names:?}");
                assert_eq!(chosen(stem, names), names[0]);
            }
            let mixed =
                ["STEM.non_ema.safetensors", "STEM.fp16.safetensors", "STEM.bf16.safetensors"];
            assert_eq!(chosen(stem, &mixed), "STEM.bf16.safetensors");
            assert_eq!(chosen(stem, &["STEM.non_ema.safetensors"]), "STEM.non_ema.safetensors");
            assert_eq!(
                chosen(stem, &["STEM.fp16.safetensors", "STEM.safetensors"]),
                "STEM.safetensors"
            );
        }
    }

    #[test]
    fn files_that_are_not_read_are_named_with_what_to_do() {
        for (names, said) in [
            (&["config.json", "pytorch_model.bin"][..], "pytorch_model.bin is there, a pickle"),
            (&["STEM.onnx"], "another runtime"),
            (&["STEM-Q4_K_M.gguf"], "quantised"),
            (&["flax_model.msgpack"], "Flax"),
            (&["STEM-00001-of-00002.safetensors"], "shards need their index"),
            (&["config.json"], "fetch it"),
        ] {
            let reason = choose(DIFFUSERS, names).unwrap_err();
            assert!(reason.starts_with("there is no diffusion_pytorch_model.safetensors"));
            assert!(reason.contains(said), "{reason}");
        }
    }

    #[test]
    fn shards_are_named_once_and_stay_in_their_folder() {
        let text = r#"{"weight_map": {
            "a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"
        }}"#;
        assert_eq!(shards(text).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        for wrong in [
            "{",
            "{}",
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": {"a": 1}}"#,
            r#"{"weight_map": {"a": "../m.safetensors"}}"#,
            r#"{"weight_map": {"a": "/etc/m.safetensors"}}"#,
            r#"{"weight_map": {"a": "m.bin"}}"#,
        ] {
            assert!(shards(wrong).is_err(), "{wrong}");
        }
    }
}
