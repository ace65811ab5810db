//! Loading checkpoints: what they must have, and what is said when they do not.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{Snapshot, Weights};
use diffuser_api::config::{Config, Sources};
use diffuser_api::domain::{
    GuidanceScale, ImageRequest, OutputSize, Prompt, RgbImage, Seed, Steps, Task, TaskKind,
    TaskKinds,
};
use diffuser_api::model::qwen_image::config::{TextEncoderConfig, TransformerConfig, VaeConfig};
use diffuser_api::model::qwen_image::text_encoder::{TextEncoder, TextEncoderResidency};
use diffuser_api::model::qwen_image::transformer::{Transformer, TransformerResidency};
use diffuser_api::model::qwen_image::vae::Vae;
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, DtypeChoice, EditKind, LoadError, ModelConfig, Unobserved,
};

use crate::support::checkpoints::{copy_folder, load, offline_hub};

// ---- the full-size checkpoint, by its list of tensors -----------------------

/// Every published checkpoint of the family, by the name of its list.
const PUBLISHED: [&str; 6] = [
    "Qwen-Image",
    "Qwen-Image-2512",
    "Qwen-Image-Edit",
    "Qwen-Image-Edit-2509",
    "Qwen-Image-Edit-2511",
    "Qwen-Image-Layered",
];

/// A folder of configuration files with the published values.
fn published_configs(manifest: &serde_json::Value) -> tempfile::TempDir {
    let vae = include_str!("../data/manifest-full/vae_config.json");
    let mut vae: serde_json::Value = serde_json::from_str(vae).unwrap();
    if manifest["pipeline"] == "QwenImageLayeredPipeline" {
        vae["input_channels"] = serde_json::json!(4);
    }
    let folder = tempfile::tempdir().unwrap();
    for (component, config) in [
        ("transformer", manifest["transformer"]["config"].to_string()),
        ("vae", vae.to_string()),
        ("text_encoder", include_str!("../data/manifest-full/text_encoder_config.json").to_owned()),
    ] {
        let path = folder.path().join(component);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("config.json"), config).unwrap();
    }
    folder
}

fn manifest(name: &str) -> serde_json::Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/manifest-full");
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_loader_asks_for_exactly_the_tensors_of_the_published_checkpoints() {
    for name in PUBLISHED {
        assert_asks_for_the_tensors_of(name);
    }
}

fn assert_asks_for_the_tensors_of(name: &str) {
    let manifest = manifest(name);
    let folder = published_configs(&manifest);
    let snapshot = Snapshot::Directory(folder.path().to_owned());
    let weights = |component| Weights::recording(component, DType::BF16);
    let [transformer, vae, text_encoder] = ["transformer", "vae", "text_encoder"].map(weights);

    let config = TransformerConfig::load(&snapshot).unwrap();
    Transformer::load(&transformer, &config, TransformerResidency::RESIDENT).unwrap();
    Vae::load(&vae, &VaeConfig::load(&snapshot).unwrap()).unwrap();
    let config = TextEncoderConfig::load(&snapshot).unwrap();
    TextEncoder::load(&text_encoder, &config, TextEncoderResidency::RESIDENT).unwrap();

    for (component, weights) in
        [("transformer", transformer), ("vae", vae), ("text_encoder", text_encoder)]
    {
        let published: BTreeMap<String, Vec<usize>> =
            serde_json::from_value(manifest[component]["tensors"].clone()).unwrap();
        assert_eq!(weights.requested(), published, "{name}: {component}");
    }
}

// ---- copies of the tiny checkpoint, changed ---------------------------------

/// A copy of the tiny edit checkpoint that a test may damage.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&tiny_checkpoint(), folder.path());
        Self(folder)
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.0.path().join(file)
    }

    fn remove(&self, file: &str) -> &Self {
        std::fs::remove_file(self.path(file)).unwrap();
        self
    }

    /// Sets the value at `pointer` (JSON pointer) of a file.
    fn set(&self, file: &str, pointer: &str, value: serde_json::Value) -> &Self {
        let text = std::fs::read_to_string(self.path(file)).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        std::fs::write(self.path(file), json.to_string()).unwrap();
        self
    }

    /// Rewrites the tensors of a component, as one file.
    fn rewrite(
        &self,
        component: &str,
        stem: &str,
        change: impl Fn(&mut HashMap<String, Tensor>),
    ) -> &Self {
        let folder = self.path(component);
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                tensors.extend(candle_core::safetensors::load(&path, &Device::Cpu).unwrap());
                std::fs::remove_file(path).unwrap();
            }
        }
        change(&mut tensors);
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        if index.exists() {
            std::fs::remove_file(index).unwrap();
        }
        let file = folder.join(format!("{stem}.safetensors"));
        candle_core::safetensors::save(&tensors, file).unwrap();
        self
    }

    fn load(&self) -> Result<Box<dyn DiffusionModel>, LoadError> {
        load(&self.0.path().display().to_string())
    }

    /// What loading says, with its causes, in one line.
    fn fault(&self) -> String {
        match self.load() {
            Ok(_) => panic!("it loads"),
            Err(error) => error.to_string(),
        }
    }
}

/// The tiny edit checkpoint of the repository.
fn tiny_checkpoint() -> std::path::PathBuf {
    fixture_checkpoint("qwen-image-edit")
}

fn fixture_checkpoint(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/ckpt").join(name)
}

fn picture_of(model: &mut dyn DiffusionModel) -> RgbImage {
    let request = ImageRequest {
        negative_prompt: Some(Prompt::negative(" ").unwrap()),
        steps: Steps::new(2).unwrap(),
        guidance: GuidanceScale::new(4.0).unwrap(),
        seed: Seed::new(7),
        ..ImageRequest::new(
            Task::Edit { images: vec![RgbImage::filled(40, 30, [200, 30, 90]).into()] },
            Prompt::new("make it blue").unwrap(),
        )
    };
    model.generate(&request, &mut Unobserved).unwrap().images.remove(0).image.colour().clone()
}

#[test]
fn the_same_weights_make_the_same_picture_however_they_are_stored() {
    let original = picture_of(Copy::new().load().unwrap().as_mut());

    // One file instead of shards, the newer prefixes, no output layer.
    let renamed = Copy::new();
    renamed.rewrite("transformer", "diffusion_pytorch_model", |_| {});
    renamed.rewrite("text_encoder", "model", |tensors| {
        tensors.remove("lm_head.weight");
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| match name.strip_prefix("model.") {
                Some(rest) => (format!("model.language_model.{rest}"), tensor),
                None => (format!("model.{name}"), tensor),
            })
            .collect();
    });
    // The tokenizer from its parts.
    renamed.remove("processor/tokenizer.json");
    assert!(picture_of(renamed.load().unwrap().as_mut()) == original);

    // The tokenizer from its parts, the added tokens from either file alone.
    for file in ["tokenizer/added_tokens.json", "tokenizer/tokenizer_config.json"] {
        let copy = Copy::new();
        copy.remove("processor/tokenizer.json").remove(file);
        assert!(picture_of(copy.load().unwrap().as_mut()) == original, "without {file}");
    }
}

#[test]
fn missing_misshapen_and_unexpected_tensors_are_named_together() {
    let copy = Copy::new();
    copy.rewrite("transformer", "diffusion_pytorch_model", |tensors| {
        tensors.remove("transformer_blocks.1.attn.norm_q.weight").unwrap();
        tensors.insert("img_in.bias".to_owned(), Tensor::new(&[1_f32, 2.0], &Device::Cpu).unwrap());
        let stranger = Tensor::new(&[1_f32], &Device::Cpu).unwrap();
        tensors.insert("transformer_blocks.7.stranger".to_owned(), stranger);
    });

    let fault = copy.fault();

    assert!(fault.contains("transformer:"), "{fault}");
    assert!(fault.contains("transformer_blocks.1.attn.norm_q.weight is missing"), "{fault}");
    assert!(fault.contains("img_in.bias has shape [2], expected [36]"), "{fault}");
    assert!(fault.contains("transformer_blocks.7.stranger is unexpected"), "{fault}");
}

#[test]
fn a_number_format_that_is_not_read_is_named() {
    let copy = Copy::new();
    copy.rewrite("vae", "diffusion_pytorch_model", |tensors| {
        let bias = tensors["quant_conv.bias"].to_dtype(DType::F64).unwrap();
        tensors.insert("quant_conv.bias".to_owned(), bias);
    });

    let fault = copy.fault();

    assert!(fault.contains("quant_conv.bias is stored as F64"), "{fault}");
}

#[test]
fn missing_files_are_named() {
    for file in [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "processor/preprocessor_config.json",
    ] {
        let fault = Copy::new().remove(file).fault();
        assert!(fault.contains(file), "{file}: {fault}");
    }
    let without_vocabulary = Copy::new();
    without_vocabulary.remove("processor/tokenizer.json").remove("tokenizer/vocab.json");
    assert!(without_vocabulary.fault().contains("tokenizer/vocab.json"));
}

#[test]
fn a_cut_or_foreign_weights_file_is_refused() {
    let vae = "vae/diffusion_pytorch_model.safetensors";
    let copy = Copy::new();
    let whole = std::fs::read(copy.path(vae)).unwrap();
    for broken in [&whole[..whole.len() - 1], &whole[..100], &whole[..0], b"not a tensor at all"] {
        std::fs::write(copy.path(vae), broken).unwrap();

        let fault = copy.fault();

        assert!(fault.contains(vae) && fault.contains("safetensors"), "{fault}");
    }
}

#[test]
fn configuration_values_that_are_not_implemented_are_refused_by_name() {
    use serde_json::json;
    for (file, pointer, value) in [
        ("transformer/config.json", "/guidance_embeds", json!(true)),
        ("transformer/config.json", "/patch_size", json!(4)),
        ("transformer/config.json", "/zero_cond_t", json!("yes")),
        ("transformer/config.json", "/use_layer3d_rope", json!(true)),
        ("transformer/config.json", "/axes_dims_rope", json!([4, 4, 6])),
        ("transformer/config.json", "/num_layers", json!("two")),
        ("transformer/config.json", "/num_layers", json!(null)),
        ("transformer/config.json", "/num_attention_heads", json!(0)),
        ("transformer/config.json", "/joint_attention_dim", json!(48)),
        ("vae/config.json", "/attn_scales", json!([1.0])),
        ("vae/config.json", "/input_channels", json!(4)),
        ("vae/config.json", "/dim_mult", json!([1, 0, 2, 2])),
        ("vae/config.json", "/z_dim", json!(-16)),
        ("text_encoder/config.json", "/vision_config/patch_size", json!(0)),
        ("text_encoder/config.json", "/vision_config/window_size", json!(13)),
        ("vae/config.json", "/latents_std", json!([1.0, 2.0])),
        ("scheduler/scheduler_config.json", "/use_karras_sigmas", json!(true)),
        ("scheduler/scheduler_config.json", "/time_shift_type", json!("cosine")),
        ("scheduler/scheduler_config.json", "/shift_terminal", json!("late")),
        ("text_encoder/config.json", "/text_config/layer_types", json!(["sliding_attention"])),
        ("text_encoder/config.json", "/text_config/hidden_act", json!("gelu")),
        ("text_encoder/config.json", "/text_config/rope_scaling/type", json!("yarn")),
        ("text_encoder/config.json", "/vision_config/in_channels", json!(4)),
        ("processor/preprocessor_config.json", "/do_resize", json!(false)),
        ("processor/preprocessor_config.json", "/resample", json!(2)),
        ("processor/preprocessor_config.json", "/rescale_factor", json!(0.5)),
        ("model_index.json", "/vae", json!(["diffusers", "AutoencoderKL"])),
    ] {
        let copy = Copy::new();
        copy.set(file, pointer, value.clone());
        let key = pointer.rsplit('/').next().unwrap();

        let fault = copy.fault();

        assert!(fault.contains(file) && fault.contains(key), "{file}{pointer} = {value}: {fault}");
    }
}

#[test]
fn keys_without_effect_and_another_style_of_the_encoders_configuration_are_read() {
    use serde_json::json;
    let original = picture_of(Copy::new().load().unwrap().as_mut());
    let copy = Copy::new();
    copy.set("transformer/config.json", "/pooled_projection_dim", json!(768));
    copy.set("transformer/config.json", "/_note", json!("x"));
    copy.set("transformer/config.json", "/zero_cond_t", json!(false));
    // Older files have the language model's values at the top alone.
    let file = copy.path("text_encoder/config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("text_config");
    std::fs::write(&file, config.to_string()).unwrap();

    assert!(picture_of(copy.load().unwrap().as_mut()) == original);
}

#[test]
fn each_class_says_what_it_can_do() {
    let edit = TaskKinds::of(&[TaskKind::Edit]);
    let edit_and_inpaint = edit.with(TaskKind::Inpainting);
    let all = TaskKinds::of(&TaskKind::ALL);
    let instruction = EditKind::Instruction;
    for (name, class_name, tasks, edit_kind, images, copies, steps) in [
        ("qwen-image", "QwenImagePipeline", all, EditKind::ImageToImage, 1, false, 50),
        ("qwen-image-edit", "QwenImageEditPipeline", edit_and_inpaint, instruction, 3, false, 50),
        ("qwen-image-edit-plus", "QwenImageEditPlusPipeline", edit, instruction, 16, true, 40),
        ("qwen-image-edit-2511", "QwenImageEditPlusPipeline", edit, instruction, 16, true, 40),
        ("qwen-image-layered", "QwenImageLayeredPipeline", edit, EditKind::Layers, 1, false, 50),
    ] {
        let model = load(&fixture_checkpoint(name).display().to_string()).unwrap();
        let info = model.card();
        assert_eq!(info.pipeline, class_name);
        assert_eq!(info.tasks, tasks, "{name}");
        assert_eq!((info.edit_kind, info.max_input_images), (edit_kind, images), "{name}");
        assert_eq!(info.has_condition_picture, copies, "{name}");
        assert_eq!(info.defaults.num_inference_steps.get(), steps, "{name}");
    }
}

#[test]
fn components_of_another_pipeline_are_refused() {
    for (file, pointer, value) in [
        ("model_index.json", "/_class_name", serde_json::json!("QwenImageLayeredPipeline")),
        ("transformer/config.json", "/use_additional_t_cond", serde_json::json!(true)),
    ] {
        let copy = Copy::new();
        copy.set(file, pointer, value);

        let fault = copy.fault();

        assert!(fault.contains("use_additional_t_cond"), "{fault}");
    }
}

#[test]
fn a_pipeline_class_that_is_not_served_is_named_with_those_that_are() {
    let copy = Copy::new();
    copy.set("model_index.json", "/_class_name", serde_json::json!("FluxPipeline"));

    let fault = copy.fault();

    assert!(fault.contains("FluxPipeline") && fault.contains("QwenImageEditPipeline"), "{fault}");
}

#[test]
fn a_checkpoint_says_what_it_computes_in_unless_the_settings_do() {
    let copy = Copy::new();
    let asks_for = |dtype: &str| {
        let defaults = serde_json::json!({ "dtype": dtype }).to_string();
        std::fs::write(copy.path("diffuser.json"), defaults).unwrap();
    };
    let dtype_of = |dtype| {
        let device = DeviceChoice::Cpu;
        let id = copy.path("").display().to_string();
        let config = ModelConfig { device, dtype, ..ModelConfig::of(id) };
        diffuser_api::model::load(&config, &offline_hub()).map(|model| model.loaded().dtype.clone())
    };

    asks_for("bfloat16");
    assert_eq!(dtype_of(DtypeChoice::Auto).unwrap(), "bfloat16");
    assert_eq!(dtype_of(DtypeChoice::Float32).unwrap(), "float32");
    asks_for("float7");
    let fault = dtype_of(DtypeChoice::Auto).unwrap_err().to_string();
    assert!(fault.contains("diffuser.json") && fault.contains("float7"), "{fault}");
}

#[test]
fn a_checkpoint_may_make_sizes_on_a_coarser_grid_than_its_layers_demand() {
    let copy = Copy::new();
    let with_multiple = |multiple: usize| {
        let defaults = serde_json::json!({ "size_multiple": multiple }).to_string();
        std::fs::write(copy.path("diffuser.json"), defaults).unwrap();
        load(&copy.path("").display().to_string())
    };
    let own = load(&copy.path("").display().to_string()).unwrap().card().size_multiple;

    assert_eq!(with_multiple(3 * own).unwrap().card().size_multiple, 3 * own);
    let fault = with_multiple(own + 1).err().unwrap().to_string();
    assert!(fault.contains("diffuser.json") && fault.contains("size_multiple"), "{fault}");
}

#[test]
fn a_name_that_is_no_model_is_answered_with_what_would_be_one() {
    let fault = load("no such thing").err().unwrap().to_string();

    assert!(fault.contains("no such thing") && fault.contains("'demo', 'tiny-random'"), "{fault}");
}

#[test]
fn the_embedded_model_edits() {
    let mut model = load("tiny-random").unwrap();

    assert_eq!(model.card().id, "tiny-random");
    assert_eq!(model.card().tasks, TaskKinds::of(&[TaskKind::Edit, TaskKind::Inpainting]));
    let picture = picture_of(model.as_mut());
    assert_eq!((picture.width(), picture.height()), (64, 64));
}

/// How far apart the colours of a pixel are, on average over a picture.
fn colourfulness(picture: &RgbImage) -> f64 {
    let spread = |pixel: &[u8]| {
        let (low, high) = (pixel.iter().min().unwrap(), pixel.iter().max().unwrap());
        f64::from(high - low)
    };
    let pixels = picture.pixels().chunks_exact(3);
    pixels.map(spread).sum::<f64>() / (picture.width() * picture.height()) as f64
}

/// The model that is embedded as `demo`, at its defaults.
struct Demo(Box<dyn DiffusionModel>);

impl Demo {
    fn load() -> Self {
        let config = Config::load(&Sources::default()).unwrap();
        let model = diffuser_api::model::load(&config.models[0].config, &config.hub).unwrap();
        assert_eq!((model.card().id.as_str(), model.card().image_area), ("demo", 128 * 128));
        Self(model)
    }

    /// An edit by one of the instructions that the model says it knows.
    fn edit(&mut self, input: &RgbImage, prompt: &str) -> RgbImage {
        let info = self.0.card().clone();
        assert!(info.instructions.iter().any(|known| known == prompt), "{prompt}");
        let request = ImageRequest {
            size: OutputSize::AsInput,
            steps: info.defaults.num_inference_steps,
            guidance: info.defaults.guidance,
            seed: Seed::new(1),
            ..ImageRequest::new(
                Task::Edit { images: vec![input.clone().into()] },
                Prompt::new(prompt).unwrap(),
            )
        };
        let generation = self.0.generate(&request, &mut Unobserved).unwrap();
        generation.images[0].image.colour().clone()
    }
}

/// A picture of 128x128 pixels.
fn drawn(pixel: impl Fn(i32, i32) -> [u8; 3]) -> RgbImage {
    drawn_of(128, 128, pixel)
}

fn drawn_of(width: i32, height: i32, pixel: impl Fn(i32, i32) -> [u8; 3]) -> RgbImage {
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = places.flat_map(|(x, y)| pixel(x, y)).collect();
    RgbImage::new(width as usize, height as usize, pixels).unwrap()
}

/// How far apart two pictures are, in levels, on average.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let pairs = a.pixels().iter().zip(b.pixels());
    pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.pixels().len() as f64
}

#[test]
fn the_demo_model_follows_an_instruction_and_leaves_a_picture_alone_when_told() {
    let mut demo = Demo::load();
    let input = drawn(|x, y| [(x * 2) as u8, y as u8, 60]);

    let grey = demo.edit(&input, "make it black and white");
    let untouched = demo.edit(&input, "leave it as it is");

    assert!(colourfulness(&input) > 80.0);
    assert!(colourfulness(&grey) < 6.0, "{}", colourfulness(&grey));
    let changed = difference(&input, &untouched);
    assert!(changed < 1.5, "{changed}");
}

/// A circle of `circle` and a square of `square` on a light ground.
fn circle_and_square(circle: [u8; 3], square: [u8; 3]) -> RgbImage {
    sized_circle_and_square(22.0, circle, square)
}

fn sized_circle_and_square(radius: f64, circle: [u8; 3], square: [u8; 3]) -> RgbImage {
    drawn(|x, y| match (x, y) {
        _ if f64::from((x - 40).pow(2) + (y - 44).pow(2)) < radius.powi(2) => circle,
        _ if (x - 90).abs() < 18 && (y - 84).abs() < 18 => square,
        _ => GROUND,
    })
}

const GROUND: [u8; 3] = [225, 215, 200];

#[test]
fn the_demo_model_finds_a_shape_by_its_name_in_whatever_colour_it_is() {
    let mut demo = Demo::load();
    let (blue, yellow, red) = ([26, 38, 235], [247, 224, 26], [235, 20, 20]);
    for (circle, square) in [(blue, yellow), (yellow, blue)] {
        let input = circle_and_square(circle, square);

        let recoloured = demo.edit(&input, "make the circle red");
        let removed = demo.edit(&input, "remove the square");

        let apart = difference(&recoloured, &circle_and_square(red, square));
        assert!(apart < 4.0, "{circle:?} to red: {apart}");
        let apart = difference(&removed, &circle_and_square(circle, GROUND));
        assert!(apart < 4.0, "{square:?} removed: {apart}");
    }
}

#[test]
fn the_demo_model_draws_shapes_and_resizes_those_that_it_sees() {
    let mut demo = Demo::load();
    let (blue, green, red) = ([26, 38, 235], [26, 166, 51], [235, 20, 20]);
    let input = circle_and_square(red, green);

    let added = demo.edit(&input, "add a blue triangle");
    let bigger = demo.edit(&input, "make the circle bigger");
    let smaller = demo.edit(&input, "make the circle smaller");

    // What tools/demo-model/pictures.py calls a triangle of 0.15, in the middle.
    let triangle = |x: i32, y: i32| {
        let (across, down) = (f64::from(2 * x - 127) / 2.0, f64::from(2 * y - 127) / 2.0);
        let radius = 0.15 * 128.0;
        down < 0.8 * radius && 0.894 * across.abs() - 0.447 * down < 0.447 * radius
    };
    let wanted = drawn(|x, y| match triangle(x, y) {
        true => blue,
        false => *input.pixels().as_chunks().0.get((y * 128 + x) as usize).unwrap(),
    });
    let apart = difference(&added, &wanted);
    assert!(apart < 3.0, "added: {apart}, unedited {}", difference(&input, &wanted));
    for (name, edited, factor) in [("bigger", bigger, 1.4), ("smaller", smaller, 0.65)] {
        let wanted = sized_circle_and_square(factor * 22.0, red, green);
        let (apart, unedited) = (difference(&edited, &wanted), difference(&input, &wanted));
        assert!(apart < 0.5 * unedited, "{name}: {apart}, unedited {unedited}");
    }
}

#[test]
fn the_demo_model_mirrors_pictures_of_any_shape() {
    let mut demo = Demo::load();
    for (width, height) in [(128, 128), (160, 96), (96, 160)] {
        let bars = |x: i32| match 16 * x / width {
            0..4 => [26, 38, 235],
            9 | 10 => [235, 20, 20],
            _ => GROUND,
        };
        let input = drawn_of(width, height, |x, _| bars(x));

        let mirrored = demo.edit(&input, "mirror it");

        let wanted = drawn_of(width, height, |x, _| bars(width - 1 - x));
        let apart = difference(&mirrored, &wanted);
        assert!(apart < 4.0, "{width}x{height}: {apart}");
    }
}
