//! Which files of a repository a pipeline needs. Pure: names in, names out.

use std::collections::BTreeSet;

use serde_json::Value;

/// The file that makes a folder a pipeline.
pub(super) const MODEL_INDEX: &str = "model_index.json";

/// Files that may sit beside the weights and are worth their few bytes.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Names of weights, as diffusers and transformers save them. Variants have a
/// further word (`model.fp16.safetensors`) and are not asked for.
const WEIGHTS: &[&str] = &["diffusion_pytorch_model.safetensors", "model.safetensors"];

/// Components that no pipeline here runs, though repositories name them: Stable
/// Diffusion 1.x's screening of pictures (1.2 GB).
const UNUSED_COMPONENTS: &[&str] = &["safety_checker", "feature_extractor"];

/// Files to fetch first; the indices among them name the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Configurations, tokenizer, indices, and weights that are one file.
    pub files: Vec<String>,
    /// Those of `files` that say which shards the weights are in.
    pub indices: Vec<String>,
}

/// Why a list of files makes no pipeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanFault {
    /// A file that the pipeline needs is not there.
    #[error("there is no {file}")]
    Missing {
        /// The file.
        file: String,
    },
    /// A file does not say what it should.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

/// Chooses from `listing` what the pipeline of `model_index` (the text of
/// `model_index.json`) needs.
///
/// # Errors
/// [`PlanFault`] if a component lacks a file, or the text is not an index.
pub fn plan_files(listing: &BTreeSet<String>, model_index: &str) -> Result<Plan, PlanFault> {
    let mut plan = Plan { files: vec![MODEL_INDEX.to_owned()], indices: Vec::new() };
    for (folder, class) in components(model_index)? {
        let has = |name: &str| listing.contains(&format!("{folder}/{name}"));
        let missing = |name: &str| PlanFault::Missing { file: format!("{folder}/{name}") };
        let small = SMALL_FILES.iter().filter(|name| has(name));
        plan.files.extend(small.map(|name| format!("{folder}/{name}")));

        if class.ends_with("Scheduler") {
            has("scheduler_config.json")
                .then_some(())
                .ok_or_else(|| missing("scheduler_config.json"))?;
        } else if class.contains("Tokenizer") {
            let has_parts = has("vocab.json") && has("merges.txt");
            (has("tokenizer.json") || has_parts)
                .then_some(())
                .ok_or_else(|| missing("tokenizer.json"))?;
        } else if class.ends_with("Processor") || class.ends_with("FeatureExtractor") {
            (has("preprocessor_config.json") || has("processor_config.json"))
                .then_some(())
                .ok_or_else(|| missing("preprocessor_config.json"))?;
        } else {
            has("config.json").then_some(()).ok_or_else(|| missing("config.json"))?;
            let index = |name: &&str| has(&format!("{name}.index.json"));
            if let Some(name) = WEIGHTS.iter().copied().find(index) {
                let index = format!("{folder}/{name}.index.json");
                plan.files.push(index.clone());
                plan.indices.push(index);
            } else if let Some(name) = WEIGHTS.iter().copied().find(|name| has(name)) {
                plan.files.push(format!("{folder}/{name}"));
            } else {
                return Err(missing(WEIGHTS[0]));
            }
        }
    }
    Ok(plan)
}

/// The weight files that an index names: `path` is its path, `text` what it
/// says.
///
/// # Errors
/// [`PlanFault`] if it is no index, or names a file outside its folder.
pub fn plan_shards(path: &str, text: &str) -> Result<Vec<String>, PlanFault> {
    let malformed = |reason: String| PlanFault::Malformed { file: path.to_owned(), reason };
    let index: Value = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(malformed("there is no weight_map".to_owned()));
    };
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut shards = BTreeSet::new();
    for file in map.values() {
        match file.as_str() {
            Some(name) if is_file_name(name) && name.ends_with(".safetensors") => {
                shards.insert(format!("{folder}/{name}"));
            }
            _ => return Err(malformed(format!("{file} is no weight file beside it"))),
        }
    }
    if shards.is_empty() {
        return Err(malformed("it names no file".to_owned()));
    }
    Ok(shards.into_iter().collect())
}

/// Each component's folder and class, from lines such as
/// `"vae": ["diffusers", "AutoencoderKLQwenImage"]`.
fn components(model_index: &str) -> Result<Vec<(String, String)>, PlanFault> {
    let malformed = |reason: String| PlanFault::Malformed { file: MODEL_INDEX.to_owned(), reason };
    let index: Value =
        serde_json::from_str(model_index).map_err(|error| malformed(error.to_string()))?;
    let Some(entries) = index.as_object() else {
        return Err(malformed("it is no object".to_owned()));
    };
    let mut components = Vec::new();
    for (folder, entry) in entries {
        // Components that are switched off are [null, null]; other entries are
        // settings of the pipeline.
        let class = entry.get(1).and_then(Value::as_str);
        let unused = folder.starts_with('_') || UNUSED_COMPONENTS.contains(&folder.as_str());
        if let (Some(class), false) = (class, unused) {
            if !is_file_name(folder) {
                return Err(malformed(format!("'{folder}' is no folder's name")));
            }
            components.push((folder.clone(), class.to_owned()));
        }
    }
    if components.is_empty() {
        return Err(malformed("it names no component".to_owned()));
    }
    Ok(components)
}

/// Whether `name` is one plain name: no path, nothing hidden, nothing upwards.
fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDIT_INDEX: &str = r#"{
        "_class_name": "QwenImageEditPipeline",
        "_diffusers_version": "0.35.0.dev0",
        "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        "safety_checker": [null, null],
        "force_zeros": true
    }"#;

    /// The shape of Qwen/Qwen-Image-Edit, with things that nobody needs.
    fn listing() -> BTreeSet<String> {
        [
            ".gitattributes",
            "README.md",
            "assets/showcase.png",
            "model_index.json",
            "processor/chat_template.jinja",
            "processor/merges.txt",
            "processor/preprocessor_config.json",
            "processor/tokenizer.json",
            "processor/vocab.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/generation_config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.safetensors.index.json",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
            "transformer/diffusion_pytorch_model.fp16.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "transformer/model.onnx",
            "vae/config.json",
            "vae/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ]
        .map(str::to_owned)
        .into()
    }

    #[test]
    fn only_what_the_pipeline_needs_is_chosen() {
        let plan = plan_files(&listing(), EDIT_INDEX).unwrap();

        assert_eq!(
            plan.files,
            [
                "model_index.json",
                "processor/preprocessor_config.json",
                "processor/tokenizer.json",
                "processor/vocab.json",
                "processor/merges.txt",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors.index.json",
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
                "tokenizer/tokenizer_config.json",
                "transformer/config.json",
                "transformer/diffusion_pytorch_model.safetensors.index.json",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors",
            ]
        );
        assert_eq!(
            plan.indices,
            [
                "text_encoder/model.safetensors.index.json",
                "transformer/diffusion_pytorch_model.safetensors.index.json",
            ]
        );
    }

    #[test]
    fn components_that_nothing_runs_are_left_out() {
        let index = EDIT_INDEX.replace(
            r#""safety_checker": [null, null]"#,
            r#""safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
               "feature_extractor": ["transformers", "CLIPImageProcessor"]"#,
        );

        assert_eq!(plan_files(&listing(), &index), plan_files(&listing(), EDIT_INDEX));
    }

    #[test]
    fn each_component_must_be_whole() {
        for file in [
            "processor/preprocessor_config.json",
            "scheduler/scheduler_config.json",
            "transformer/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ] {
            let mut incomplete = listing();
            incomplete.remove(file);

            let fault = plan_files(&incomplete, EDIT_INDEX).unwrap_err();

            let file = file.to_owned();
            assert_eq!(fault, PlanFault::Missing { file });
        }
    }

    #[test]
    fn a_tokenizer_is_one_file_or_its_parts() {
        let mut parts_gone = listing();
        parts_gone.remove("tokenizer/merges.txt");
        assert!(plan_files(&parts_gone, EDIT_INDEX).is_err());

        parts_gone.insert("tokenizer/tokenizer.json".to_owned());
        assert!(plan_files(&parts_gone, EDIT_INDEX).is_ok());
    }

    #[test]
    fn an_index_that_is_none_is_refused() {
        for text in ["", "[]", "{}", r#"{"_class_name": "X"}"#, r#"{"../up": ["a", "B"]}"#] {
            assert!(
                matches!(plan_files(&listing(), text), Err(PlanFault::Malformed { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn shards_are_named_once_and_stay_in_their_folder() {
        let text = r#"{"weight_map": {
            "a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"
        }}"#;
        assert_eq!(
            plan_shards("vae/m.safetensors.index.json", text).unwrap(),
            ["vae/m-1.safetensors", "vae/m-2.safetensors"]
        );

        for wrong in [
            "{",
            "{}",
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": {"a": 1}}"#,
            r#"{"weight_map": {"a": "../m.safetensors"}}"#,
            r#"{"weight_map": {"a": "/etc/m.safetensors"}}"#,
            r#"{"weight_map": {"a": "m.bin"}}"#,
        ] {
            assert!(plan_shards("vae/i.json", wrong).is_err(), "{wrong}");
        }
    }
}
