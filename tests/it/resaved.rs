//! Checkpoints as people have them: saved again by other versions of the libraries,
//! in other precisions, over older files, half fetched.
//!
//! What the libraries write comes from `tests/data/make_resaved.py` and
//! `make_token_ids.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::Snapshot;
use diffuser_api::domain::{
    GuidanceScale, ImageRequest, LayerCount, Prompt, RgbImage, Seed, Steps, Task,
};
use diffuser_api::model::components::clip::tokenizer::ClipTokenizer;
use diffuser_api::model::qwen_image::prompt::PromptTokenizer;
use diffuser_api::model::{DiffusionModel, EditKind, LoadError, Unobserved};
use serde_json::{Value, json};

use crate::support::checkpoints::{copy_folder, load};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn original(name: &str) -> PathBuf {
    match name {
        "demo" => Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo"),
        "sd" | "sdxl" => data().join("stable_diffusion").join(name),
        _ => data().join("fixtures/ckpt").join(name),
    }
}

/// A copy of a checkpoint that a test may change.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&original(name), folder.path());
        Self(folder)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(file), content).unwrap();
        self
    }

    fn remove(&self, file: &str) -> &Self {
        std::fs::remove_file(self.path(file)).unwrap();
        self
    }

    fn rename(&self, from: &str, to: &str) -> &Self {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
        self
    }

    /// Sets the value at `pointer` (JSON pointer) of a file.
    fn set(&self, file: &str, pointer: &str, value: Value) -> &Self {
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(self.path(file)).unwrap()).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        self.write(file, json.to_string())
    }

    /// Lays `files` over the copy: new contents by path, null for no such file.
    fn lay_over(&self, files: &serde_json::Map<String, Value>) -> &Self {
        for (file, content) in files {
            match (content, content.as_str()) {
                (Value::Null, _) => self.remove(file),
                (_, Some(text)) => self.write(file, text),
                (json, None) => self.write(file, json.to_string()),
            };
        }
        self
    }

    fn tensors(&self, file: &str) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path(file), &Device::Cpu).unwrap()
    }

    fn load(&self) -> Result<Box<dyn DiffusionModel>, LoadError> {
        load(&self.0.path().display().to_string())
    }

    fn picture(&self) -> RgbImage {
        picture_of(self.load().unwrap().as_mut())
    }

    fn fault(&self) -> String {
        fault_of(&self.0.path().display().to_string())
    }
}

/// What loading says, with its causes, in one line.
fn fault_of(id: &str) -> String {
    match load(id) {
        Ok(_) => panic!("{id} loads"),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    }
}

fn picture_of(model: &mut dyn DiffusionModel) -> RgbImage {
    let image = || RgbImage::filled(64, 64, [200, 30, 90]).into();
    let task = match model.card().edit_kind {
        EditKind::Instruction => Task::Edit { images: vec![image()] },
        EditKind::Layers => Task::Decompose { image: image(), layers: LayerCount::new(2).unwrap() },
        EditKind::ImageToImage => Task::Generate,
    };
    let request = ImageRequest {
        negative_prompt: Some(Prompt::negative(" ").unwrap()),
        steps: Steps::new(1).unwrap(),
        guidance: GuidanceScale::new(4.0).unwrap(),
        seed: Seed::new(7),
        ..ImageRequest::new(task, Prompt::new("a red boat on a quiet lake, 12 birds").unwrap())
    };
    model.generate(&request, &mut Unobserved).unwrap().images.remove(0).image.colour().clone()
}

fn read_json(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data().join(file)).unwrap()).unwrap()
}

// ---- other versions of the libraries --------------------------------------------

#[test]
fn a_pipeline_that_was_saved_again_makes_the_same_pictures() {
    let versions = ["4.57.6", "5.23.0"]
        .map(|version| (version, read_json(&format!("resaved/transformers-{version}.json"))));
    let names: Vec<&String> = versions[0].1.as_object().unwrap().keys().collect();
    for name in names {
        let original = Copy::of(name).picture();
        for (version, resaved) in &versions {
            let files = resaved[name].as_object().unwrap();
            let same = Copy::of(name).lay_over(files).picture() == original;
            assert!(same, "{name}, saved by {version}");
        }
    }
}

#[test]
fn an_encoder_is_found_under_any_of_its_names() {
    let single = "text_encoder/model.safetensors";
    let original = Copy::of("qwen-image").picture();
    for (words, pictures) in [
        ("model.language_model.", "model.visual."),
        ("language_model.", "visual."),
        ("language_model.model.", "visual."),
    ] {
        let copy = Copy::of("qwen-image");
        let rename = |(name, tensor): (String, Tensor)| {
            let renamed = match (name.strip_prefix("model."), name.strip_prefix("visual.")) {
                (Some(rest), _) => format!("{words}{rest}"),
                (_, Some(rest)) => format!("{pictures}{rest}"),
                _ => name,
            };
            (renamed, tensor)
        };
        let tensors: HashMap<String, Tensor> =
            copy.tensors(single).into_iter().map(rename).collect();
        candle_core::safetensors::save(&tensors, copy.path(single)).unwrap();

        assert!(copy.picture() == original, "{words}, {pictures}");
    }
}

#[test]
fn keys_that_the_reference_ignores_do_not_stop_the_load() {
    let copy = Copy::of("qwen-image-edit");
    let original = copy.picture();
    for file in [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "processor/preprocessor_config.json",
    ] {
        copy.set(file, "/_name_or_path", json!("/home/user/merged"));
        copy.set(file, "/attention_backend", json!("native"));
        copy.set(file, "/merged_from", json!({"lora": "lightning", "steps": 8}));
    }
    copy.set("text_encoder/config.json", "/id2label", json!({"0": "LABEL_0"}));
    copy.set("text_encoder/config.json", "/text_config/return_dict", json!(true));
    copy.set("model_index.json", "/safety_checker", json!([null, null]));
    copy.set("model_index.json", "/controlnet", json!(["diffusers", "QwenImageControlNetModel"]));

    assert!(copy.picture() == original);
}

#[test]
fn keys_that_change_the_picture_are_refused_by_name() {
    let quantised = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    for (name, file, pointer, value) in [
        ("qwen-image", "transformer/config.json", "/quantization_config", quantised.clone()),
        ("qwen-image", "text_encoder/config.json", "/quantization_config", quantised.clone()),
        ("sd", "unet/config.json", "/quantization_config", quantised),
        ("qwen-image", "vae/config.json", "/is_residual", json!(true)),
        ("qwen-image", "vae/config.json", "/patch_size", json!(2)),
        ("qwen-image", "vae/config.json", "/scaling_factor", json!(0.5)),
        ("qwen-image", "text_encoder/config.json", "/model_type", json!("qwen2_vl")),
        ("qwen-image", "text_encoder/config.json", "/text_config/head_dim", json!(16)),
        ("qwen-image", "text_encoder/config.json", "/text_config/hidden_act", json!("gelu")),
        (
            "qwen-image",
            "text_encoder/config.json",
            "/text_config/layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        (
            "qwen-image",
            "text_encoder/config.json",
            "/vision_config/rope_parameters",
            json!({"rope_type": "yarn"}),
        ),
        (
            "qwen-image",
            "text_encoder/config.json",
            "/vision_config/rope_parameters",
            json!({"rope_type": "axial", "rope_theta": 500.0}),
        ),
        (
            "qwen-image-edit",
            "processor/preprocessor_config.json",
            "/size",
            json!({"height": 224, "width": 224}),
        ),
        (
            "qwen-image-edit",
            "processor/preprocessor_config.json",
            "/image_processor_type",
            json!("CLIPImageProcessor"),
        ),
        ("qwen-image", "scheduler/scheduler_config.json", "/invert_sigmas", json!(true)),
        ("sd", "text_encoder/config.json", "/use_attention_mask", json!(true)),
        ("sd", "text_encoder/config.json", "/hidden_act", json!("gelu_new")),
        ("sd", "unet/config.json", "/time_cond_proj_dim", json!(256)),
        ("sd", "unet/config.json", "/class_embed_type", json!("timestep")),
        ("sd", "unet/config.json", "/encoder_hid_dim", json!(64)),
        ("sd", "unet/config.json", "/mid_block_type", json!(null)),
        ("sd", "unet/config.json", "/only_cross_attention", json!([true, false])),
        ("sd", "vae/config.json", "/shift_factor", json!(0.06)),
        ("sdxl", "vae/config.json", "/latents_mean", json!([0.0, 0.0, 0.0, 0.0])),
        ("sdxl", "scheduler/scheduler_config.json", "/use_beta_sigmas", json!(true)),
        ("sdxl", "tokenizer/tokenizer_config.json", "/padding_side", json!("left")),
    ] {
        let copy = Copy::of(name);
        copy.set(file, pointer, value.clone());
        let key = pointer.rsplit('/').next().unwrap();

        let fault = copy.fault();

        assert!(fault.contains(key), "{name}: {file}{pointer} = {value}: {fault}");
    }
}

#[test]
fn rope_parameters_yield_to_rope_scaling_as_in_transformers() {
    let original = Copy::of("qwen-image").picture();
    let copy = Copy::of("qwen-image");
    let other = json!({"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 7.0});
    copy.set("text_encoder/config.json", "/text_config/rope_parameters", other);

    assert!(copy.picture() == original);
}

#[test]
fn the_plain_pipeline_corrects_the_values_of_old_schedulers() {
    let original = Copy::of("sd").picture();
    let copy = Copy::of("sd");
    copy.set("scheduler/scheduler_config.json", "/steps_offset", json!(0));

    // StableDiffusionPipeline sets it to 1, whatever the file says.
    assert!(copy.picture() == original);
}

// ---- tokenizers ---------------------------------------------------------------

#[test]
fn what_a_call_left_in_a_tokenizer_is_forgotten() {
    let golden = read_json("token_ids.json");
    let resaved = read_json("resaved/transformers-5.23.0.json");
    for (place, theirs) in golden["ids"].as_object().unwrap() {
        let (name, folder) = place.split_once('/').unwrap();
        let copy = Copy::of(name);
        copy.lay_over(resaved[name].as_object().unwrap());
        for key in ["truncation", "padding"] {
            let pointer = format!("/{key}");
            copy.set(
                &format!("{folder}/tokenizer.json"),
                &pointer,
                golden["left_behind"][key].clone(),
            );
        }
        let pointer = "/model/dropout";
        copy.set(&format!("{folder}/tokenizer.json"), pointer, json!(0.9));
        let snapshot = Snapshot::Directory(copy.path(""));
        let prompts = golden["prompts"].as_array().unwrap();
        for (prompt, theirs) in prompts.iter().zip(theirs.as_array().unwrap()) {
            let prompt = prompt.as_str().unwrap();
            let ours = if name == "sdxl" {
                let tokenizer = ClipTokenizer::load(&snapshot, folder, 24).unwrap();
                tokenizer.tokenise(prompt).unwrap().ids
            } else {
                PromptTokenizer::load(&snapshot, 481).unwrap().ids(prompt).unwrap()
            };
            assert_eq!(json!(ours), *theirs, "{place}: {prompt}");
        }
    }
}

#[test]
fn texts_are_as_long_as_the_tokenizer_says_up_to_the_encoders_positions() {
    let golden = read_json("token_ids.json");
    let prompt = golden["prompts"][1].as_str().unwrap();
    let copy = Copy::of("sdxl");
    for folder in ["tokenizer", "tokenizer_2"] {
        copy.set(&format!("{folder}/tokenizer_config.json"), "/model_max_length", json!(12));
    }
    let snapshot = Snapshot::Directory(copy.path(""));

    let ids =
        ClipTokenizer::load(&snapshot, "tokenizer", 24).unwrap().tokenise(prompt).unwrap().ids;

    let whole = golden["ids"]["sdxl/tokenizer"][1].as_array().unwrap();
    let mut theirs = whole[..11].to_vec();
    theirs.push(whole[23].clone());
    assert_eq!(json!(ids), json!(theirs));
    copy.load().unwrap();
    copy.set("tokenizer/tokenizer_config.json", "/model_max_length", json!(24));
    assert!(copy.fault().contains("model_max_length"), "{}", copy.fault());
}

#[test]
fn words_that_were_added_to_a_vocabulary_are_one_token() {
    let copy = Copy::of("sd");
    let vocabulary = read_json("stable_diffusion/sd/tokenizer/vocab.json");
    let next = vocabulary.as_object().unwrap().len();
    copy.write("tokenizer/added_tokens.json", json!({"<cat-toy>": next}).to_string());
    let snapshot = Snapshot::Directory(copy.path(""));

    let text =
        ClipTokenizer::load(&snapshot, "tokenizer", 24).unwrap().tokenise("<cat-toy>").unwrap();

    assert_eq!((text.length, text.ids[1] as usize), (3, next));
}

// ---- weights ------------------------------------------------------------------

/// Writes the weights in `file` as they are in `sound`, times two, and an index that
/// names them.
fn leave_old_shards(copy: &Copy, folder: &str, stem: &str) {
    let tensors = copy.tensors(&format!("{folder}/{stem}.safetensors"));
    let shard = format!("{stem}-00001-of-00001.safetensors");
    let map: HashMap<&String, &String> = tensors.keys().map(|name| (name, &shard)).collect();
    let index = json!({"metadata": {}, "weight_map": map});
    copy.write(&format!("{folder}/{stem}.safetensors.index.json"), index.to_string());
    let doubled: HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| (name.clone(), (tensor * 2.0).unwrap())).collect();
    candle_core::safetensors::save(&doubled, copy.path(&format!("{folder}/{shard}"))).unwrap();
}

#[test]
fn of_two_sets_of_weights_the_one_is_taken_that_the_library_takes() {
    let original = Copy::of("qwen-image").picture();

    // transformers takes the one file, diffusers what the index names.
    let encoder = Copy::of("qwen-image");
    leave_old_shards(&encoder, "text_encoder", "model");
    assert!(encoder.picture() == original);
    let vae = Copy::of("qwen-image");
    leave_old_shards(&vae, "vae", "diffusion_pytorch_model");
    assert!(vae.picture() != original);

    // An index whose shards are gone counts for nothing where there is one file.
    vae.remove("vae/diffusion_pytorch_model-00001-of-00001.safetensors");
    assert!(vae.picture() == original);
    // Old shards that no index names are left alone.
    encoder.remove("text_encoder/model.safetensors.index.json");
    assert!(encoder.picture() == original);
}

#[test]
fn weights_in_half_precision_alone_are_taken() {
    let copy = Copy::of("sd");
    let original = copy.picture();
    for (from, to) in [
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"),
        ("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.bf16.safetensors",
        ),
    ] {
        copy.rename(from, to);
    }
    assert!(copy.picture() == original);

    let edit = Copy::of("qwen-image-edit");
    let original = edit.picture();
    for (old, new) in [
        (
            "text_encoder/model.safetensors.index.json",
            "text_encoder/model.safetensors.index.fp16.json",
        ),
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "transformer/diffusion_pytorch_model.fp16.safetensors.index.json",
        ),
    ] {
        edit.rename(old, new);
    }
    assert!(edit.picture() == original);
}

#[test]
fn what_is_there_instead_of_weights_is_named() {
    let vae = "vae/diffusion_pytorch_model.safetensors";
    for (name, said) in [
        ("vae/diffusion_pytorch_model.bin", "save_pretrained"),
        ("vae/model.onnx", "another runtime"),
        ("vae/wan-vae-Q4.gguf", "quantised"),
        ("vae/qwen_image_vae.safetensors", "qwen_image_vae.safetensors"),
    ] {
        let copy = Copy::of("qwen-image");
        copy.rename(vae, name);
        let fault = copy.fault();
        let file = name.strip_prefix("vae/").unwrap();
        assert!(fault.contains("vae/") && fault.contains(file) && fault.contains(said), "{fault}");
    }
    let sound = std::fs::read(original("qwen-image").join(vae)).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 358452\n";
    for (content, said) in [
        (pointer.as_bytes(), "git-lfs"),
        (b"<!doctype html><title>Sign in</title>", "HTML"),
        (b"", "is empty"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "GGUF"),
        (b"PK\x03\x04\0\0\0\0\0\0\0\0", "zip"),
        (b"Entry not found", "Entry not found"),
        (&sound[..sound.len() / 2], "is cut short"),
        (&sound[..1000], "is cut short"),
    ] {
        let fault = Copy::of("qwen-image").write(vae, content).fault();
        assert!(fault.contains(vae) && fault.contains(said), "{said}: {fault}");
    }
}

#[test]
fn texts_that_are_none_are_named_and_a_byte_order_mark_is_no_matter() {
    let files = [
        ("qwen-image", "model_index.json"),
        ("qwen-image", "transformer/config.json"),
        ("qwen-image", "tokenizer/vocab.json"),
        ("qwen-image", "tokenizer/merges.txt"),
        ("qwen-image", "scheduler/scheduler_config.json"),
        ("qwen-image-edit", "processor/tokenizer.json"),
        ("qwen-image-edit", "text_encoder/model.safetensors.index.json"),
    ];
    for (name, file) in files {
        let sound = std::fs::read_to_string(original(name).join(file)).unwrap();
        let wide: Vec<u8> = sound.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let wide = [b"\xff\xfe", &wide[..]].concat();
        for (content, said) in [
            (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git-lfs"),
            (b"<html>502 Bad Gateway</html>", "HTML"),
            (b"", "is empty"),
            (&wide, "UTF-16"),
        ] {
            let fault = Copy::of(name).write(file, content).fault();
            assert!(fault.contains(file) && fault.contains(said), "{file}: {fault}");
        }
        let marked = format!("\u{feff}{sound}");
        assert!(Copy::of(name).write(file, marked).load().is_ok(), "{file}");
    }
}

// ---- places that are no pipeline ----------------------------------------------

#[test]
fn what_is_no_pipeline_is_told_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    copy_folder(&original("qwen-image"), &at("pipeline"));
    std::fs::write(at("model.gguf"), b"GGUF\x03\0\0\0").unwrap();
    std::fs::write(at("disguised.safetensors"), b"GGUF\x03\0\0\0").unwrap();
    for name in ["flux.safetensors", "sd-v1-5.ckpt", "model.zip", "notes.txt"] {
        std::fs::write(at(name), b"12345678").unwrap();
    }
    for name in ["comfy/models/diffusion_models", "split/split_files", "empty", "weights", "lora"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    std::fs::write(at("weights/qwen_image_fp8.safetensors"), "").unwrap();
    std::fs::write(at("lora/adapter_config.json"), "{}").unwrap();
    for (name, said) in [
        ("", "pipeline' has one: give that"),
        ("pipeline/vae", "is one component of the model in"),
        ("pipeline/model_index.json", "give its folder"),
        ("model.gguf", "GGUF"),
        ("disguised.safetensors", "GGUF"),
        ("flux.safetensors", "is a text ('12345678')"),
        ("sd-v1-5.ckpt", "pickle"),
        ("model.zip", "archive"),
        ("notes.txt", "a file"),
        ("comfy", "ComfyUI"),
        ("comfy/models", "ComfyUI"),
        ("split", "ComfyUI"),
        ("lora", "is a LoRA"),
        ("weights", "qwen_image_fp8.safetensors"),
        ("empty", "it is empty"),
        ("missing", "no such folder"),
    ] {
        let fault = fault_of(&at(name).display().to_string());
        assert!(fault.contains(said), "{name}: {fault}");
    }
}

#[test]
fn a_name_that_is_only_a_path_is_not_looked_for_on_the_hub() {
    for (id, said) in [
        ("./models/qwen", "no such folder"),
        ("models/qwen/image", "no such folder"),
        ("models/qwen.gguf", "no such folder"),
        ("~/models/qwen", "'~' is not expanded"),
        ("C:\\models\\qwen", "no such folder"),
        ("https://huggingface.co/Qwen/Qwen-Image-Edit/tree/main", "give 'Qwen/Qwen-Image-Edit'"),
        ("hf://", "'hf://' is no file on the hub"),
        // Could be both.
        ("models/qwen", "there is no folder 'models/qwen' here"),
    ] {
        let fault = fault_of(id);
        assert!(fault.contains(said), "{id}: {fault}");
    }
}

#[test]
fn the_numbers_of_a_variant_are_the_models() {
    let copy = Copy::of("sd");
    let file = "vae/diffusion_pytorch_model.safetensors";
    let half: HashMap<String, Tensor> = copy
        .tensors(file)
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F16).unwrap()))
        .collect();
    candle_core::safetensors::save(&half, copy.path(file)).unwrap();
    let under_the_plain_name = copy.picture();
    copy.rename(file, "vae/diffusion_pytorch_model.fp16.safetensors");

    assert!(copy.picture() == under_the_plain_name);
}
