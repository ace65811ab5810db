//! Models from the files that people have: GGUF, ComfyUI's sets, 8-bit files. Each is asked
//! for one edit over HTTP, which is held against the picture that diffusers makes of the
//! same weights, dequantized by another program. `tests/data/make_files.py` made them all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{ComponentFile, FileSet, Naming, Snapshot, Weights};
use diffuser_api::hub::HubConfig;
use diffuser_api::model::{
    DeviceChoice, DtypeChoice, FileChoices, FileSource, LoadError, LoraConfig, MemoryChoice,
    ModelConfig, ModelFiles,
};
use diffuser_api::service::PooledModel;
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::Value;

use crate::support::checkpoints::{copy_folder, offline_hub};
use crate::support::golden::assert_same_picture;
use crate::support::server::{Setup, image_bytes, json_of, pooled};

pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files")
}

pub(crate) fn recorded() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data().join("golden.json")).unwrap()).unwrap()
}

pub(crate) fn goldens() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data().join("golden.safetensors"), &Device::Cpu).unwrap()
}

/// The model of `layout`, at the recorded areas.
pub(crate) fn config_of(recorded: &Value, layout: &str) -> ModelConfig {
    let parts = &recorded["layouts"][layout];
    let path = |name: &str| Some(data().join(parts[name].as_str()?));
    let id = path("folder").or(path("file"));
    let id = id.map_or_else(|| "unused".to_owned(), |path| path.display().to_string());
    let area = |name: &str| recorded[name].as_u64().map(|area| area as usize);
    ModelConfig {
        device: DeviceChoice::Cpu,
        image_area: area("image_area"),
        condition_area: area("condition_area"),
        files: FileChoices {
            transformer: path("transformer").map(FileSource::from),
            text_encoder: path("text_encoder").map(FileSource::from),
            mmproj: path("mmproj").map(FileSource::from),
            vae: path("vae").map(FileSource::from),
            base: Some(data().join("base").display().to_string()),
        },
        ..ModelConfig::of(id)
    }
}

fn form_of(recorded: &Value) -> Form {
    let request = &recorded["request"];
    let text = |name: &str| {
        let value = &request[name];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut form = Form::new()
        .text("seed", recorded["generator_seed"].to_string())
        .text("size", format!("{}x{}", request["width"], request["height"]));
    for name in ["prompt", "negative_prompt", "num_inference_steps", "true_cfg_scale"] {
        form = form.text(name, text(name));
    }
    let picture = std::fs::read(data().join(recorded["input"].as_str().unwrap())).unwrap();
    form.part("image", Part::bytes(picture).file_name("input.png"))
}

/// The recorded edit by the model of `config`: rows of RGB.
pub(crate) async fn edited(recorded: &Value, config: &ModelConfig) -> Vec<u8> {
    edited_by(recorded, pooled(config)).await
}

/// The recorded edit by `model`: rows of RGB.
pub(crate) async fn edited_by(recorded: &Value, model: PooledModel) -> Vec<u8> {
    let server = Setup::default().start_with(vec![model]).await;
    let reply = server.edit_in_background(form_of(recorded)).await.unwrap();
    let status = reply.status();
    let reply = json_of(reply).await;
    assert_eq!(status, 200, "{reply}");
    let png = image_bytes(&reply, 0);
    image::load_from_memory_with_format(&png, ImageFormat::Png).unwrap().to_rgb8().into_raw()
}

/// Holds every layout whose name begins so against its golden.
async fn assert_layouts(prefix: &str, at_least: usize) {
    let (recorded, goldens) = (recorded(), goldens());
    let layouts = recorded["layouts"].as_object().unwrap();
    let layouts: Vec<&String> = layouts.keys().filter(|name| name.starts_with(prefix)).collect();
    assert!(layouts.len() >= at_least, "{layouts:?}");
    for layout in layouts {
        let ours = edited(&recorded, &config_of(&recorded, layout)).await;
        // One level: the same numbers, summed in another order.
        assert_same_picture(layout, &ours, &goldens[layout]);
    }
}

#[tokio::test]
async fn every_type_of_gguf_makes_the_picture_of_its_dequantized_weights() {
    assert_layouts("gguf/", 16).await;
}

#[tokio::test]
async fn every_spelling_of_fp8_is_scaled_as_it_says() {
    assert_layouts("fp8/", 7).await;
}

#[tokio::test]
async fn int8_is_scaled_by_row_and_rotated_back() {
    assert_layouts("int8/", 2).await;
}

#[tokio::test]
async fn the_text_encoder_of_llama_cpp_and_its_vision_tower_see_and_read() {
    assert_layouts("llama", 1).await;
}

#[tokio::test]
async fn a_folder_of_comfyui_and_a_file_with_all_in_it_are_models() {
    assert_layouts("comfy", 1).await;
    assert_layouts("all_in_one", 1).await;
    assert_layouts("plain", 1).await;
}

#[tokio::test]
async fn widened_streamed_or_used_where_they_lie_weights_make_the_same_picture() {
    let recorded = recorded();
    for layout in ["plain", "gguf/mixed-2511", "fp8/mixed_metadata", "int8/convrot", "llama"] {
        let config = config_of(&recorded, layout);
        let stored = edited(&recorded, &config).await;

        let widened = ModelConfig { dtype: DtypeChoice::Float32, ..config.clone() };
        let streamed = ModelConfig { memory: MemoryChoice::Stream, ..config };

        assert_eq!(stored, edited(&recorded, &streamed).await, "{layout}");
        // The same products, by another kernel, in another order.
        let widened = edited(&recorded, &widened).await;
        assert!(farthest(&stored, &widened) <= 1, "{layout}");
    }
}

#[tokio::test]
async fn a_lora_acts_on_quantized_weights_as_if_it_were_merged_into_what_they_mean() {
    let recorded = recorded();
    let lora = LoraConfig { file: data().join("comfy/loras/d.safetensors"), scale: 4.0 };
    for layout in ["gguf/Q8_0", "int8/convrot", "fp8/scaled_old"] {
        let plain = config_of(&recorded, layout);
        let beside = ModelConfig { lora: vec![lora.clone()], ..plain.clone() };
        let merged = ModelConfig { dtype: DtypeChoice::Float32, ..beside.clone() };

        let (plain, beside) = (edited(&recorded, &plain).await, edited(&recorded, &beside).await);
        let merged = edited(&recorded, &merged).await;

        assert!(farthest(&plain, &beside) > 3, "{layout}: the LoRA does nothing");
        // The same sums in another order.
        assert!(farthest(&beside, &merged) <= 1, "{layout}");
    }
}

fn farthest(left: &[u8], right: &[u8]) -> u8 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// A copy of the base in which `from` in a file is `to`.
fn base_with(file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&data().join("base"), folder.path());
    let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(folder.path().join(file), text.replace(from, to)).unwrap();
    folder
}

#[tokio::test]
async fn a_mark_in_the_file_counts_whatever_the_base_says() {
    let base =
        base_with("transformer/config.json", "\"zero_cond_t\": true", "\"zero_cond_t\": false");
    let (recorded, goldens) = (recorded(), goldens());
    let with_base = |layout: &str| {
        let mut config = config_of(&recorded, layout);
        config.files.base = Some(base.path().display().to_string());
        config
    };

    let marked = edited(&recorded, &with_base("gguf/mixed-2511")).await;
    assert_same_picture("marked", &marked, &goldens["gguf/mixed-2511"]);
    // Without a mark the base is believed, and the picture is another one.
    let unmarked = edited(&recorded, &with_base("gguf/Q8_0")).await;
    let golden = goldens["gguf/Q8_0"].flatten_all().unwrap().to_vec1::<u8>().unwrap();
    assert!(farthest(&unmarked, &golden) > 3);
}

#[tokio::test]
async fn words_alone_need_no_vision_tower() {
    let base = base_with("model_index.json", "QwenImageEditPlusPipeline", "QwenImagePipeline");
    let folder = tempfile::tempdir().unwrap();
    let language = folder.path().join("text_encoder.gguf");
    std::fs::copy(data().join("llama/text_encoder.gguf"), &language).unwrap();

    let config = with(|files| {
        files.text_encoder = Some(FileSource::Path(language));
        files.base = Some(base.path().display().to_string());
    });

    let files = ModelFiles::find(&config, &offline_hub()).unwrap();
    files.load_onto(DeviceChoice::Cpu).unwrap();
}

/// A still picture is in both slices of time alike: the pictures cannot tell them apart.
#[test]
fn slices_and_parts_of_the_vision_tower_are_put_together_in_order() {
    let file = |name: &str, naming| ComponentFile {
        component: "text_encoder",
        path: data().join(name),
        naming,
        prefix: String::new(),
    };
    let open = |file: ComponentFile| {
        let set = FileSet {
            name: "test".to_owned(),
            base: Snapshot::Directory(data().join("base")),
            texts: std::collections::BTreeMap::new(),
            files: vec![file],
        };
        let snapshot = Snapshot::Set(Arc::new(set));
        let kind = (DType::F32, &Device::Cpu);
        Weights::open(&snapshot, "text_encoder", "model", kind, str::to_owned).unwrap()
    };
    let theirs = open(file("llama/mmproj.gguf", Naming::VisionProjector));
    let ours = open(file("plain/text_encoder.safetensors", Naming::Published));
    for name in [
        "visual.patch_embed.proj.weight",
        "visual.blocks.0.attn.qkv.weight",
        "visual.blocks.0.attn.qkv.bias",
        "visual.merger.mlp.2.weight",
    ] {
        let shape = ours.stored_shape(name).unwrap().to_vec();
        let numbers = |weights: &Weights| {
            let tensor = weights.get(name, shape.clone()).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let pairs = numbers(&theirs).into_iter().zip(numbers(&ours));
        let far = pairs.map(|(a, b)| (a - b).abs());
        // 16 bits against 16 bits, of numbers below two.
        let far = far.fold(0.0, f32::max);
        assert!(far < 1e-3, "{name}: {far}");
    }
}

/// Why there is no model of `config`.
fn fault(config: &ModelConfig) -> String {
    let hub: HubConfig = offline_hub();
    let found = ModelFiles::find(config, &hub).and_then(|files| files.plan().map(drop));
    let error: LoadError = found.expect_err("it is a model");
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The set of `layout` with its transformer or text encoder replaced.
fn with(replaced: impl FnOnce(&mut FileChoices)) -> ModelConfig {
    let mut config = config_of(&recorded(), "plain");
    replaced(&mut config.files);
    config
}

#[test]
fn what_is_quantized_in_unknown_ways_is_refused_by_name() {
    let of = |file: &str| with(|files| files.transformer = Some(data().join(file).into()));

    let said = fault(&of("fp8/unknown.safetensors"));
    assert!(said.contains("nvfp4"), "{said}");
    let said = fault(&of("gguf/unsupported.gguf"));
    assert!(said.contains("IQ2_XXS"), "{said}");
}

#[test]
fn a_language_model_that_does_not_see_or_is_another_is_told_as_such() {
    let alone = with(|files| files.text_encoder = Some(data().join("llama/text_only.gguf").into()));
    let said = fault(&alone);
    assert!(said.contains("'qwen2'") && said.contains("qwen2vl"), "{said}");

    let folder = tempfile::tempdir().unwrap();
    let language = folder.path().join("text_encoder.gguf");
    std::fs::copy(data().join("llama/text_encoder.gguf"), &language).unwrap();
    let blind = with(|files| files.text_encoder = Some(language.into()));
    let said = fault(&blind);
    assert!(said.starts_with("model.files.mmproj: "), "{said}");
}

#[test]
fn which_model_it_is_is_never_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let unnamed = folder.path().join("model.gguf");
    std::fs::copy(data().join("gguf/Q8_0.gguf"), &unnamed).unwrap();

    let said = fault(&ModelConfig::of(unnamed.display().to_string()));
    assert!(said.starts_with("model.variant: ") && said.contains("2511"), "{said}");
    let wrong = ModelConfig {
        variant: Some("Qwen-Image-Edit-2510".to_owned()),
        ..ModelConfig::of(unnamed.display().to_string())
    };
    assert!(fault(&wrong).contains("'Qwen-Image-Edit-2510' is no published checkpoint"));
    // Told, what is missing is told next.
    let told = ModelConfig { variant: Some("Qwen-Image-Edit-2511".to_owned()), ..wrong };
    let said = fault(&told);
    assert!(said.starts_with("model.files.text_encoder: "), "{said}");
}

#[test]
fn what_says_something_of_files_alone_is_refused_elsewhere_and_said_once() {
    let variant = Some("Qwen-Image-Edit-2511".to_owned());
    for id in [
        "demo".to_owned(),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").display().to_string(),
    ] {
        let named = ModelConfig { variant: variant.clone(), ..ModelConfig::of(id.clone()) };
        assert!(fault(&named).starts_with("model.variant: "), "{id}");
        let mut based = ModelConfig::of(id.clone());
        based.files.base = Some("Qwen/Qwen-Image".to_owned());
        assert!(fault(&based).starts_with("model.files.base: "), "{id}");
    }
    let both = ModelConfig { variant, ..config_of(&recorded(), "plain") };
    let said = fault(&both);
    assert!(said.starts_with("model.variant: ") && said.contains("model.files.base"), "{said}");
}
