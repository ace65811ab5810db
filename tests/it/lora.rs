//! LoRA files: the same change in every style of keys, held against diffusers and
//! against weights that are changed by hand. The files and numbers come from
//! `tests/data/make_lora.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{CheckpointError, Lora, Snapshot, Weights};
use diffuser_api::hub::HubConfig;
use diffuser_api::model::qwen_image::config::TransformerConfig;
use diffuser_api::model::qwen_image::passes::PromptTokens;
use diffuser_api::model::qwen_image::positions::Grid;
use diffuser_api::model::qwen_image::transformer::{Transformer, TransformerResidency};
use diffuser_api::model::{DeviceChoice, DtypeChoice, LoraConfig, ModelConfig};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::support::golden::assert_close;

/// What the reference fused with.
pub(super) const SCALE: f64 = 0.7;
pub(super) const STYLES: [&str; 3] = ["diffusers", "lightx2v", "kohya"];

pub(super) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

pub(super) fn lora_file(style: &str) -> PathBuf {
    data().join(format!("lora/{style}.safetensors"))
}

/// The folder that the LoRA was made for.
pub(super) fn checkpoint() -> PathBuf {
    data().join("fixtures/ckpt/qwen-image")
}

pub(super) fn read(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub(super) fn load_transformer(loras: Vec<Lora>) -> Result<Transformer, CheckpointError> {
    let snapshot = Snapshot::Directory(checkpoint());
    let config = TransformerConfig::load(&snapshot)?;
    let kind = (DType::F32, &Device::Cpu);
    let stem = "diffusion_pytorch_model";
    let weights = Weights::open(&snapshot, "transformer", stem, kind, str::to_owned)?;
    let weights = weights.merging(loras);
    let transformer = Transformer::load(&weights, &config, TransformerResidency::RESIDENT).unwrap();
    weights.finish()?;
    Ok(transformer)
}

/// The transformer's output for the recorded inputs.
pub(super) fn predict(transformer: &Transformer) -> Tensor {
    let inputs = read(&data().join("fixtures/components/dit_qwen-image.safetensors"));
    let shape: Vec<i64> = inputs["img_shapes"].flatten_all().unwrap().to_vec1().unwrap();
    let grid = Grid { height: shape[1] as usize, width: shape[2] as usize };
    let text = &inputs["encoder_hidden_states"];
    let positions = transformer.positions(&[grid], text.dim(1).unwrap()).unwrap();
    let sigma = inputs["timestep"].to_vec1::<f32>().unwrap()[0];
    let modulations = transformer.modulations(&[sigma]).unwrap();
    // Each picture with the text of its own.
    let latents = &inputs["hidden_states"];
    let flow = |sample| {
        let embeds = &text.narrow(0, sample, 1)?;
        let prompt = PromptTokens { embeds, positions: &positions };
        transformer.forward(&latents.narrow(0, sample, 1)?, prompt, modulations.at(0))
    };
    let flows = (0..latents.dim(0).unwrap()).map(flow).collect::<candle_core::Result<Vec<_>>>();
    Tensor::cat(&flows.unwrap(), 0).unwrap()
}

fn open(path: &Path, scale: f64) -> Lora {
    Lora::open(path, scale).unwrap()
}

/// What loading with a file of `tensors` says.
fn fault_of(tensors: &HashMap<String, Tensor>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    let result = Lora::open(&path, 1.0).and_then(|lora| load_transformer(vec![lora]));
    result.err().expect("it is refused").to_string()
}

#[test]
fn every_style_changes_the_transformer_as_in_the_reference() {
    let expected = read(&data().join("lora/expected.safetensors"));
    let plain = load_transformer(Vec::new()).unwrap();
    assert_close("without", &predict(&plain), &expected["plain"], 1e-4);
    for style in STYLES {
        let lora = open(&lora_file(style), SCALE);
        assert_eq!(lora.len(), 10);

        let transformer = load_transformer(vec![lora]).unwrap();

        assert_close(style, &predict(&transformer), &expected["out"], 1e-4);
    }
}

/// A tensor as a safetensors file stores it.
pub(super) type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn stored(tensor: &Tensor) -> Stored {
    let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let bytes = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
    (Dtype::F32, tensor.dims().to_vec(), bytes)
}

/// The one number `value` in the format that torch calls `dtype`, with or without a
/// dimension.
fn stored_number(value: f64, dtype: &str, has_dimension: bool) -> Stored {
    let (dtype, bytes) = match dtype {
        "int64" => (Dtype::I64, (value as i64).to_le_bytes().to_vec()),
        "int32" => (Dtype::I32, (value as i32).to_le_bytes().to_vec()),
        "float64" => (Dtype::F64, value.to_le_bytes().to_vec()),
        "float32" => (Dtype::F32, (value as f32).to_le_bytes().to_vec()),
        "float16" => (Dtype::F16, f16::from_f64(value).to_le_bytes().to_vec()),
        "bfloat16" => (Dtype::BF16, bf16::from_f64(value).to_le_bytes().to_vec()),
        other => panic!("{other}"),
    };
    (dtype, if has_dimension { vec![1] } else { vec![] }, bytes)
}

pub(super) fn write(path: &Path, tensors: &HashMap<String, Stored>, metadata: &[(&str, String)]) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let metadata = metadata.iter().map(|(key, text)| ((*key).to_owned(), text.clone()));
    let metadata = Some(metadata.collect::<HashMap<_, _>>());
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), metadata, path).unwrap();
}

/// The adapter of `tests/data/lora`, with `prefix` in the place of PEFT's.
pub(super) fn adapter(prefix: &str) -> HashMap<String, Stored> {
    let tensors = read(&data().join("lora/adapter.safetensors")).into_iter();
    let renamed =
        tensors.map(|(key, tensor)| (key.replace("base_model.model.", prefix), stored(&tensor)));
    renamed.collect()
}

/// Writes the files of a recorded case. Returns the path that a setting would name.
pub(super) fn write_case(case: &Value, folder: &Path) -> PathBuf {
    let file = folder.join("adapter_model.safetensors");
    let config = &case["config"];
    if case["kind"] == "peft" {
        write(&file, &adapter("base_model.model."), &[]);
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        return folder.to_owned();
    }
    let alphas = case["alphas"].as_object().unwrap();
    let mut tensors = adapter("transformer.");
    for (index, (module, alpha)) in alphas.iter().enumerate() {
        let number =
            stored_number(alpha[0].as_f64().unwrap(), alpha[1].as_str().unwrap(), index % 2 == 1);
        tensors.insert(format!("transformer.{module}.alpha"), number);
    }
    let header = config.as_object().unwrap().iter();
    let header: Map<String, Value> =
        header.map(|(key, value)| (format!("transformer.{key}"), value.clone())).collect();
    let header = ("lora_adapter_metadata", Value::Object(header).to_string());
    let metadata = if case["kind"] == "header" { vec![header] } else { vec![] };
    write(&file, &tensors, &metadata);
    file
}

#[test]
fn configurations_act_as_in_peft_and_numbers_as_in_diffusers() {
    let expected = read(&data().join("lora/cases.safetensors"));
    let cases = std::fs::read_to_string(data().join("lora/cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() >= 14);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = write_case(&case, folder.path());

        let made = predict(&load_transformer(vec![open(&path, 1.0)]).unwrap());

        let tokens: Vec<u32> = (0..made.dim(1).unwrap() as u32).step_by(4).collect();
        let tokens = Tensor::new(tokens, &Device::Cpu).unwrap();
        let made = made.index_select(&tokens, 1).unwrap();
        assert_close(name, &made, &expected[name], 1e-4);
    }
}

/// What opening `path` says.
fn refusal(path: &Path) -> String {
    Lora::open(path, 1.0).err().unwrap_or_else(|| panic!("{path:?} is refused")).to_string()
}

#[test]
fn a_folder_stands_for_the_file_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(refusal(folder.path()).contains("adapter_model.safetensors"));

    std::fs::write(at("adapter_model.bin"), "PK").unwrap();
    for path in [folder.path(), &at("adapter_model.bin")] {
        let fault = refusal(path);
        assert!(fault.contains("adapter_model.bin") && fault.contains("safetensors"), "{fault}");
    }
    for name in ["first.safetensors", "second.safetensors"] {
        write(&at(name), &adapter("transformer."), &[]);
        if name.starts_with("first") {
            assert!(open(folder.path(), 1.0).file().ends_with(name));
        }
    }
    let fault = refusal(folder.path());
    assert!(fault.contains("first.safetensors") && fault.contains("second"), "{fault}");
    write(&at("pytorch_lora_weights.safetensors"), &adapter("transformer."), &[]);
    assert!(open(folder.path(), 1.0).file().ends_with("pytorch_lora_weights.safetensors"));
}

#[test]
fn what_a_configuration_asks_for_and_is_not_done_is_refused_by_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("adapter_config.json");
    write(&folder.path().join("adapter_model.safetensors"), &adapter("base_model.model."), &[]);
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["proj_out"])),
        ("target_modules", json!(["nothing"])),
        ("alpha_pattern", json!({"to_(q": 1})),
    ] {
        std::fs::write(&config, json!({"r": 4, "lora_alpha": 2, key: value}).to_string()).unwrap();

        let fault = refusal(folder.path());

        assert!(fault.contains(key) && fault.contains("adapter_"), "{key}: {fault}");
    }
    std::fs::write(&config, "{").unwrap();
    assert!(refusal(folder.path()).contains("adapter_config.json"));
    // A rank that its tensors do not have.
    std::fs::write(&config, json!({"r": 8, "lora_alpha": 2}).to_string()).unwrap();
    let fault = load_transformer(vec![open(folder.path(), 1.0)]).err().unwrap().to_string();
    assert!(fault.contains("rank") && fault.contains('8'), "{fault}");
}

#[test]
fn changes_that_are_no_lora_and_alphas_that_are_no_number_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    let one = || stored_number(1.0, "float32", true);
    for (key, named) in [
        ("transformer.img_in.lora_magnitude_vector", "DoRA"),
        ("transformer.img_in.dora_scale", "DoRA"),
        ("lycoris_img_in.lokr_w1", "LoKr"),
        ("transformer.img_in.hada_w1_a", "LoHa"),
        ("base_model.model.img_in.lora_B.bias", "bias"),
        ("base_model.model.proj_out.weight", "modules_to_save"),
    ] {
        let mut tensors = adapter("transformer.");
        tensors.insert(key.to_owned(), one());
        write(&path, &tensors, &[]);

        let fault = refusal(&path);

        assert!(fault.contains(key) && fault.contains(named), "{key}: {fault}");
    }
    for (alpha, named) in [
        ((Dtype::F32, vec![2], vec![0; 8]), "one number"),
        (stored_number(f64::NAN, "float32", false), "finite"),
        (stored_number(f64::INFINITY, "float64", false), "finite"),
    ] {
        let mut tensors = adapter("transformer.");
        tensors.insert("transformer.img_in.alpha".to_owned(), alpha);
        write(&path, &tensors, &[]);

        let fault = refusal(&path);

        assert!(fault.contains("img_in.alpha") && fault.contains(named), "{fault}");
    }
}

#[test]
fn several_files_add_up_and_scale_zero_changes_nothing() {
    let expected = read(&data().join("lora/expected.safetensors"));
    let parts = |scales: [f64; 2]| {
        let loras = scales.map(|scale| open(&lora_file("kohya"), scale)).into();
        predict(&load_transformer(loras).unwrap())
    };

    assert_close("0.3 + 0.4", &parts([0.3, 0.4]), &expected["out"], 1e-4);
    assert_close("0", &parts([0.0, 0.0]), &expected["plain"], 1e-4);
}

#[test]
fn the_change_of_a_tensor_is_up_times_down_times_alpha_over_rank() {
    let lora = read(&lora_file("lightx2v"));
    let stored = checkpoint().join("transformer/diffusion_pytorch_model.safetensors");
    let stored = read(&stored).remove("img_in.weight").unwrap();
    let (up, down) = (&lora["img_in.lora_up.weight"], &lora["img_in.lora_down.weight"]);
    let alpha = lora["img_in.alpha"].to_scalar::<f32>().unwrap();
    let factor = f64::from(alpha) / 3.0 * 0.5;
    let by_hand = (stored + (up.matmul(down).unwrap() * factor).unwrap()).unwrap();
    let snapshot = Snapshot::Directory(checkpoint());
    let kind = (DType::F32, &Device::Cpu);
    let stem = "diffusion_pytorch_model";
    let weights = Weights::open(&snapshot, "transformer", stem, kind, str::to_owned).unwrap();
    let weights = weights.merging(vec![open(&lora_file("lightx2v"), 0.5)]);

    let merged = weights.at("img_in").get("weight", by_hand.dims()).unwrap();

    assert_close("img_in", &merged, &by_hand, 1e-6);
}

#[test]
fn keys_that_match_nothing_and_keys_of_no_style_are_named() {
    let mut unmatched = read(&lora_file("diffusers"));
    for part in ["lora_A", "lora_B"] {
        let tensor = unmatched[&format!("transformer.img_in.{part}.weight")].clone();
        unmatched
            .insert(format!("transformer.transformer_blocks.9.attn.to_q.{part}.weight"), tensor);
    }
    let fault = fault_of(&unmatched);
    assert!(fault.contains("transformer_blocks.9.attn.to_q.lora_A.weight"), "{fault}");
    assert!(
        fault.contains("matches no tensor") && fault.contains("changed.safetensors"),
        "{fault}"
    );

    let mut stranger = read(&lora_file("lightx2v"));
    stranger.insert("img_in.diff".to_owned(), stranger["img_in.alpha"].clone());
    let fault = fault_of(&stranger);
    assert!(fault.contains("img_in.diff"), "{fault}");

    let mut half = read(&lora_file("kohya"));
    half.remove("lora_unet_img_in.lora_up.weight").unwrap();
    let fault = fault_of(&half);
    assert!(fault.contains("lora_unet_img_in.lora_down.weight"), "{fault}");
}

#[test]
fn a_change_of_the_wrong_shape_is_named() {
    let mut lora = read(&lora_file("lightx2v"));
    let narrow = lora["img_in.lora_down.weight"].narrow(1, 0, 5).unwrap().contiguous().unwrap();
    lora.insert("img_in.lora_down.weight".to_owned(), narrow);

    let fault = fault_of(&lora);

    assert!(
        fault.contains("img_in.lora_down.weight") && fault.contains("img_in.weight"),
        "{fault}"
    );
}

#[test]
fn a_model_loads_with_the_files_of_its_settings_or_says_which_is_missing() {
    let load = |file: PathBuf| {
        let config = ModelConfig {
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::Float32,
            image_area: Some(64 * 64),
            lora: vec![LoraConfig { file, scale: 1.0 }],
            ..ModelConfig::of(checkpoint().display().to_string())
        };
        let hub = HubConfig {
            endpoint: "http://127.0.0.1:9".to_owned(),
            cache: std::env::temp_dir(),
            token: None,
            offline: true,
        };
        diffuser_api::model::load(&config, &hub)
    };

    assert!(load(lora_file("kohya")).is_ok());
    let fault = load(lora_file("no-such")).err().unwrap().to_string();
    assert!(fault.contains("no-such.safetensors"), "{fault}");
}
