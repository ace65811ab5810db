//! LoRA files: the same change in every style of keys, held against diffusers and
//! against weights that are changed by hand. The files and numbers come from
//! `tests/data/make_lora.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{CheckpointError, Lora, Snapshot, Weights};
use diffuser_api::hub::HubConfig;
use diffuser_api::model::qwen_image::config::TransformerConfig;
use diffuser_api::model::qwen_image::positions::Grid;
use diffuser_api::model::qwen_image::transformer::{
    PromptTokens, Transformer, TransformerResidency,
};
use diffuser_api::model::{DeviceChoice, DtypeChoice, LoraConfig, ModelConfig};

use crate::support::golden::assert_close;

/// What the reference fused with.
const SCALE: f64 = 0.7;
const STYLES: [&str; 3] = ["diffusers", "lightx2v", "kohya"];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn lora_file(style: &str) -> PathBuf {
    data().join(format!("lora/{style}.safetensors"))
}

/// The folder that the LoRA was made for.
fn checkpoint() -> PathBuf {
    data().join("fixtures/ckpt/qwen-image")
}

fn read(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn load_transformer(loras: Vec<Lora>) -> Result<Transformer, CheckpointError> {
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
fn predict(transformer: &Transformer) -> Tensor {
    let inputs = read(&data().join("fixtures/components/dit_qwen-image.safetensors"));
    let shape: Vec<i64> = inputs["img_shapes"].flatten_all().unwrap().to_vec1().unwrap();
    let grid = Grid { height: shape[1] as usize, width: shape[2] as usize };
    let text = &inputs["encoder_hidden_states"];
    let positions = transformer.positions(&[grid], text.dim(1).unwrap()).unwrap();
    let sigma = inputs["timestep"].to_vec1::<f32>().unwrap()[0];
    let modulations = transformer.modulations(&[sigma]).unwrap();
    transformer
        .forward(
            &inputs["hidden_states"],
            PromptTokens { embeds: text, positions: &positions },
            modulations.at(0),
        )
        .unwrap()
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
