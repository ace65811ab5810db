//! Which files of a repository a pipeline needs. Pure: names in, names out. Which
//! weights those are is what the loader will choose: [`WeightFiles`].

use std::collections::BTreeSet;

use serde_json::Value;

use crate::checkpoint::{self, CheckpointError, WeightFile, WeightFiles};

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

/// What a checkpoint says of itself to this program, if it does.
const DEFAULTS: &str = "diffuser.json";

/// The components that pipelines here run. Repositories name others, such as Stable
/// Diffusion 1.x's screening of pictures (1.2 GB).
const COMPONENTS: &[&str] = &[
    "processor",
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "transformer",
    "unet",
    "vae",
];

/// File stem of the weights of components that transformers saves.
const TRANSFORMERS_STEM: &str = "model";
/// The same of diffusers.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

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
    /// A component has no weights that the loader reads.
    #[error("{file}: {reason}")]
    NoWeights {
        /// The file that they would be in.
        file: String,
        /// What is missing, what is there instead, and what to do.
        reason: String,
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
    if listing.contains(DEFAULTS) {
        plan.files.push(DEFAULTS.to_owned());
    }
    for Component { folder, library, class } in components(model_index)? {
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
            let stem = if library == "transformers" { TRANSFORMERS_STEM } else { DIFFUSERS_STEM };
            let (WeightFile::Single(file) | WeightFile::Index(file)) =
                weight_files(listing, &folder, stem)?.first;
            let path = format!("{folder}/{file}");
            plan.files.push(path.clone());
            if file.ends_with(".json") {
                plan.indices.push(path);
            }
        }
    }
    Ok(plan)
}

fn weight_files(
    listing: &BTreeSet<String>,
    folder: &str,
    stem: &str,
) -> Result<WeightFiles, PlanFault> {
    let inner = |path: &String| path.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned);
    let names: Vec<String> = listing.iter().filter_map(inner).collect();
    let no_weights =
        |reason| PlanFault::NoWeights { file: format!("{folder}/{stem}.safetensors"), reason };
    WeightFiles::choose(stem, &names).map_err(no_weights)
}

/// The weight files that an index names: `path` is its path, `text` what it says.
/// Where one of them is not in `listing`, the one file beside the index will do.
///
/// # Errors
/// [`PlanFault`] if it is no index, names a file outside its folder, or names one
/// that is not there.
pub fn plan_shards(
    path: &str,
    text: &str,
    listing: &BTreeSet<String>,
) -> Result<Vec<String>, PlanFault> {
    let malformed = |reason: String| PlanFault::Malformed { file: path.to_owned(), reason };
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let shards = checkpoint::shards(text).map_err(malformed)?;
    let shards: Vec<String> = shards.iter().map(|shard| format!("{folder}/{shard}")).collect();
    let Some(missing) = shards.iter().find(|shard| !listing.contains(*shard)) else {
        return Ok(shards);
    };
    let stem = name.split('.').next().unwrap_or_default();
    match weight_files(listing, folder, stem)?.passed_over {
        Some(single) => Ok(vec![format!("{folder}/{single}")]),
        None => Err(PlanFault::Missing { file: missing.clone() }),
    }
}

/// The text of `file`, which has `bytes`.
///
/// # Errors
/// [`PlanFault::Malformed`] if it is none.
pub(super) fn text_of(file: &str, bytes: Vec<u8>) -> Result<String, PlanFault> {
    checkpoint::text(file, bytes).map_err(|error| {
        let reason = if let CheckpointError::Malformed { reason, .. } = error {
            reason
        } else {
            error.to_string()
        };
        PlanFault::Malformed { file: file.to_owned(), reason }
    })
}

/// A line of `model_index.json`, such as
/// `"vae": ["diffusers", "AutoencoderKLQwenImage"]`.
struct Component {
    folder: String,
    library: String,
    class: String,
}

/// The components that are run.
fn components(model_index: &str) -> Result<Vec<Component>, PlanFault> {
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
        let word = |place: usize| Some(entry.get(place)?.as_str()?.to_owned());
        let is_run = COMPONENTS.contains(&folder.as_str());
        if let (Some(class), true) = (word(1), is_run) {
            let library = word(0).unwrap_or_default();
            components.push(Component { folder: folder.clone(), library, class });
        }
    }
    if components.is_empty() {
        return Err(malformed("it names no component".to_owned()));
    }
    Ok(components)
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
               "feature_extractor": ["transformers", "CLIPImageProcessor"],
               "controlnet": ["diffusers", "ControlNetModel"]"#,
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
            incomplete.remove("vae/diffusion_pytorch_model.fp16.safetensors");

            let fault = plan_files(&incomplete, EDIT_INDEX).unwrap_err();

            let (PlanFault::Missing { file: lacking } | PlanFault::NoWeights { file: lacking, .. }) =
                fault
            else {
                panic!("{fault}")
            };
            assert_eq!(lacking, file);
        }
    }

    #[test]
    fn what_the_loader_takes_is_what_is_fetched() {
        let mut both = listing();
        both.insert("text_encoder/model.safetensors".to_owned());
        both.insert("transformer/diffusion_pytorch_model.safetensors".to_owned());
        both.remove("vae/diffusion_pytorch_model.safetensors");
        both.remove("processor/preprocessor_config.json");
        both.insert("processor/processor_config.json".to_owned());
        both.insert("diffuser.json".to_owned());

        let plan = plan_files(&both, EDIT_INDEX).unwrap();

        for fetched in [
            "diffuser.json",
            "processor/processor_config.json",
            "text_encoder/model.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ] {
            assert!(plan.files.iter().any(|file| file == fetched), "{fetched}: {plan:?}");
        }
        assert_eq!(plan.indices, ["transformer/diffusion_pytorch_model.safetensors.index.json"]);
    }

    #[test]
    fn weights_that_are_not_read_are_named_before_anything_is_fetched() {
        let mut pickles = listing();
        pickles.retain(|file| !(file.starts_with("vae/") && file.ends_with(".safetensors")));

        let fault = plan_files(&pickles, EDIT_INDEX).unwrap_err().to_string();

        assert!(fault.contains("vae/") && fault.contains("diffusion_pytorch_model.bin"), "{fault}");
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
    fn shards_lie_beside_their_index_or_one_file_does() {
        let index = "vae/diffusion_pytorch_model.safetensors.index.json";
        let text = r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}}"#;
        let listing = |names: &[&str]| {
            let names = names.iter().chain(&["diffusion_pytorch_model.safetensors.index.json"]);
            names.map(|name| format!("vae/{name}")).collect::<BTreeSet<String>>()
        };
        let shards = ["m-1.safetensors", "m-2.safetensors"];
        let single = "diffusion_pytorch_model.safetensors";

        let whole = plan_shards(index, text, &listing(&shards)).unwrap();
        assert_eq!(whole, ["vae/m-1.safetensors", "vae/m-2.safetensors"]);
        let stale = plan_shards(index, text, &listing(&["m-1.safetensors", single])).unwrap();
        assert_eq!(stale, ["vae/diffusion_pytorch_model.safetensors"]);
        let lacking = plan_shards(index, text, &listing(&["m-1.safetensors"])).unwrap_err();
        assert_eq!(lacking, PlanFault::Missing { file: "vae/m-2.safetensors".to_owned() });
        assert!(plan_shards(index, "{", &listing(&shards)).is_err());
    }
}
