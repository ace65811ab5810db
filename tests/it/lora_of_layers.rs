//! LoRA files that change layers which are loaded already: held against diffusers and
//! PEFT, as files that are merged while loading are (`lora.rs`), and against those.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{ActiveAdapters, Lora, Snapshot, Weights};
use diffuser_api::model::qwen_image::config::TransformerConfig;
use diffuser_api::model::qwen_image::passes::PromptTokens;
use diffuser_api::model::qwen_image::positions::Grid;
use diffuser_api::model::qwen_image::transformer::{Transformer, TransformerResidency};
use diffuser_api::nn::trace;

use super::lora::{SCALE, STYLES, data, load_transformer, lora_file, predict, read, write_case};
use crate::support::golden::assert_close;

/// Has `file` change `transformer` until what is returned is dropped.
fn change(transformer: &Transformer, file: &Path, scale: f64) -> Result<ActiveAdapters, String> {
    let lora = Lora::open(file, 1.0).map_err(|error| error.to_string())?;
    let adapters = transformer.adapters();
    let layers = lora.layers(&adapters.layers(), transformer.tensor_kind()).unwrap()?;
    Ok(adapters.activate(&[(Arc::new(layers), scale)], "key"))
}

fn expected() -> HashMap<String, Tensor> {
    read(&data().join("lora/expected.safetensors"))
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_style_changes_loaded_layers_as_in_the_reference_and_only_while_it_is_asked_for() {
    let expected = expected();
    let transformer = load_transformer(Vec::new()).unwrap();
    let plain = predict(&transformer);
    for style in STYLES {
        let changed = change(&transformer, &lora_file(style), SCALE).unwrap();
        assert_eq!(transformer.adapters().active_key().as_deref(), Some("key"));
        assert_close(style, &predict(&transformer), &expected["out"], 1e-4);

        drop(changed);

        assert_eq!(transformer.adapters().active_key(), None);
        assert_eq!(numbers(&predict(&transformer)), numbers(&plain), "{style}");
    }
}

#[test]
fn configurations_act_on_loaded_layers_as_in_peft() {
    let expected = read(&data().join("lora/cases.safetensors"));
    let cases = std::fs::read_to_string(data().join("lora/cases.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).unwrap();
    let transformer = load_transformer(Vec::new()).unwrap();
    assert!(cases.len() >= 14);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = write_case(&case, folder.path());

        let _changed = change(&transformer, &path, 1.0).unwrap();

        let made = predict(&transformer);
        let tokens: Vec<u32> = (0..made.dim(1).unwrap() as u32).step_by(4).collect();
        let made = made.index_select(&Tensor::new(tokens, &Device::Cpu).unwrap(), 1).unwrap();
        assert_close(name, &made, &expected[name], 1e-4);
    }
}

fn folder_of(checkpoint: &str) -> PathBuf {
    data().join("fixtures/ckpt").join(checkpoint)
}

fn load(checkpoint: &str, loras: Vec<Lora>, residency: TransformerResidency) -> Transformer {
    let snapshot = Snapshot::Directory(folder_of(checkpoint));
    let config = TransformerConfig::load(&snapshot).unwrap();
    let kind = (DType::F32, &Device::Cpu);
    let stem = "diffusion_pytorch_model";
    let weights = Weights::open(&snapshot, "transformer", stem, kind, str::to_owned).unwrap();
    let weights = weights.merging(loras);
    let transformer = Transformer::load(&weights, &config, residency).unwrap();
    weights.finish().unwrap();
    transformer
}

/// What it predicts for a picture and a reference of 4 by 4 tokens each.
fn flow(transformer: &Transformer) -> Tensor {
    let drawn = |tokens, width, step: f64| {
        let numbers = (0..tokens * width).map(|i| (f64::from(i) * step).sin() as f32);
        let shape = (1, tokens as usize, width as usize);
        Tensor::from_vec(numbers.collect(), shape, &Device::Cpu).unwrap()
    };
    let config = transformer.config();
    let latents = drawn(32, config.in_channels as u32, 0.37);
    let text = drawn(5, config.joint_attention_dim as u32, 0.73);
    let positions = transformer.positions(&[Grid { height: 4, width: 4 }; 2], 5).unwrap();
    let modulations = transformer.modulations(&[0.7]).unwrap();
    let prompt = PromptTokens { embeds: &text, positions: &positions };
    transformer.forward(&latents, prompt, modulations.at(0)).unwrap()
}

/// Writes a LoRA of every matrix of the transformer's files. Returns how many there are.
fn write_lora_of_everything(checkpoint: &str, file: &Path) -> usize {
    let mut tensors = HashMap::new();
    let files = std::fs::read_dir(folder_of(checkpoint).join("transformer")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.extension().is_some_and(|end| end == "safetensors")) {
        for (name, tensor) in read(&file) {
            let (Some(layer), [outputs, inputs]) = (name.strip_suffix(".weight"), tensor.dims())
            else {
                continue;
            };
            let drawn = |rows: usize, columns: usize, step: f64| {
                let seed = name.len() as f64;
                let numbers = (0..rows * columns).map(|i| (seed + i as f64 * step).sin() as f32);
                let matrix =
                    Tensor::from_vec(numbers.collect(), (rows, columns), &Device::Cpu).unwrap();
                (matrix * 0.1).unwrap()
            };
            tensors.insert(format!("{layer}.lora_down.weight"), drawn(2, *inputs, 0.59));
            tensors.insert(format!("{layer}.lora_up.weight"), drawn(*outputs, 2, 0.83));
        }
    }
    candle_core::safetensors::save(&tensors, file).unwrap();
    tensors.len() / 2
}

#[test]
fn every_matrix_that_merging_changes_is_changed_in_loaded_layers_streamed_or_not() {
    let streamed = TransformerResidency { resident_modulation: 0, resident_blocks: 1 };
    for checkpoint in [
        "qwen-image",
        "qwen-image-edit",
        "qwen-image-edit-plus",
        "qwen-image-edit-2511",
        "qwen-image-layered",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("everything.safetensors");
        let count = write_lora_of_everything(checkpoint, &file);
        assert!(count > 30, "{checkpoint}: {count}");
        let merged = load(
            checkpoint,
            vec![Lora::open(&file, -0.8).unwrap()],
            TransformerResidency::RESIDENT,
        );
        let transformer = load(checkpoint, Vec::new(), TransformerResidency::RESIDENT);
        let plain = flow(&transformer);

        let _changed = change(&transformer, &file, -0.8).unwrap();

        let (made, expected) = (flow(&transformer), flow(&merged));
        assert_close(checkpoint, &made, &expected, 1e-4);
        let moved = (&expected - plain).unwrap().abs().unwrap().mean_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.01, "{checkpoint}");
        let streamed = load(checkpoint, Vec::new(), streamed);
        let _changed = change(&streamed, &file, -0.8).unwrap();
        assert_eq!(numbers(&flow(&streamed)), numbers(&made), "{checkpoint}");
    }
}

#[test]
fn layers_that_nothing_changes_make_no_more_products_than_before() {
    let transformer = load_transformer(Vec::new()).unwrap();
    let products = || {
        let (_, trace) = trace::record(&Device::Cpu, || predict(&transformer)).unwrap();
        let count = |name| trace.spans.iter().filter(|span| span.name == name).count();
        (count("product"), count("low-rank product"), trace.spans.len())
    };
    let plain = products();

    let changed = change(&transformer, &lora_file("kohya"), 1.0).unwrap();
    let with = products();
    drop(changed);

    // Of nine layers (in the last block, what text becomes behind attention is not asked for):
    // three before the blocks, once, and six for each of two pictures.
    assert_eq!((plain.1, with), (0, (plain.0, 15, plain.2 + 15)));
    assert_eq!(products(), plain);
}
