//! Checkpoints whose files hold absurd numbers: each number of each file, in both
//! families, is refused in a message that names the file or the tensor, or does no harm.
//! Likewise files that are absurd themselves: endless, nested, or no files at all.
//!
//! Nothing may allocate by such a number either: a child of this program with little
//! address space loads some of the worst.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use diffuser_api::domain::{
    ImageRequest, LayerCount, Prompt, RgbImage, Seed, Steps, Strength, Task, TaskKind,
};
use diffuser_api::hub::HubConfig;
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, LoadError, ModelConfig, StepObserver, StepProgress,
};
use serde_json::{Value, json};

const EDIT: &str = "fixtures/ckpt/qwen-image-edit";
const LAYERED: &str = "fixtures/ckpt/qwen-image-layered";
const XL: &str = "stable_diffusion/sdxl";

fn absurd() -> [Value; 5] {
    [json!(0), json!(-1), json!(1_000_000), json!(u64::MAX), json!(1e308)]
}

/// A checkpoint whose files may be altered; those that are not are links.
struct Altered(tempfile::TempDir);

impl Altered {
    fn of(checkpoint: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(checkpoint);
        let folder = tempfile::tempdir().unwrap();
        copy(&from, folder.path());
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The JSON files with their contents.
    fn files(&self) -> Vec<(String, Value)> {
        let mut files = Vec::new();
        let top = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        for path in top.filter(|path| path.is_dir()) {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.0.path()).unwrap().display().to_string();
                let is_read = ["config.json", "scheduler_config.json", "tokenizer_config.json"]
                    .iter()
                    .any(|end| name.ends_with(end));
                if is_read {
                    let text = std::fs::read_to_string(&path).unwrap();
                    files.push((name, serde_json::from_str(&text).unwrap()));
                }
            }
        }
        files.sort_by(|(one, _), (other, _)| one.cmp(other));
        files
    }

    fn load(&self) -> Result<Box<dyn DiffusionModel>, LoadError> {
        let config = ModelConfig {
            device: DeviceChoice::Cpu,
            image_area: Some(64 * 64),
            ..ModelConfig::of(self.0.path().display().to_string())
        };
        let hub = HubConfig {
            endpoint: "http://127.0.0.1:9".to_owned(),
            cache: std::env::temp_dir().join("no-such-cache"),
            token: None,
            offline: true,
        };
        diffuser_api::model::load(&config, &hub)
    }

    /// What the program says of it and ends with, in 4 GiB of address space.
    fn start(&self) -> std::process::Output {
        Command::new("sh")
            .args(["-c", "ulimit -v 4194304; exec timeout 60 \"$0\" --port 0"])
            .arg(env!("CARGO_BIN_EXE_diffuser-api"))
            .env("DIFFUSER_MODEL_ID", self.0.path())
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap()
    }

    /// Loads it, and has it make a picture. Returns why not, if not.
    fn attempt(&self) -> Option<String> {
        let model = self.load();
        match model {
            Ok(mut model) => {
                let request = request(model.as_ref());
                model.generate(&request, &mut OneStep).err().map(|error| error.to_string())
            }
            Err(error) => Some(error.to_string()),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy(&from, &to);
        } else if from.extension().is_some_and(|extension| extension == "json") {
            std::fs::copy(&from, &to).unwrap();
        } else {
            std::os::unix::fs::symlink(&from, &to).unwrap();
        }
    }
}

/// Stops after the first step.
struct OneStep;

impl StepObserver for OneStep {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        if progress.step > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn request(model: &dyn DiffusionModel) -> ImageRequest {
    let tasks = model.card().tasks;
    let picture = RgbImage::filled(64, 64, [200, 90, 30]).into();
    let task = if model.card().pipeline.contains("Layered") {
        Task::Decompose { image: picture, layers: LayerCount::new(2).unwrap() }
    } else if model.card().pipeline.contains("Edit") {
        Task::Edit { images: vec![picture] }
    } else if tasks.contains(TaskKind::Variation) {
        Task::ImageToImage { image: picture, strength: Strength::new(1.0).unwrap() }
    } else {
        Task::Generate
    };
    ImageRequest {
        steps: Steps::new(3).unwrap(),
        seed: Seed::new(7),
        ..ImageRequest::new(task, Prompt::new("a cat").unwrap())
    }
}

/// The places of all numbers in `value`, as JSON pointers; of long lists the first.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Array(items) => {
            for (index, item) in items.iter().take(2).enumerate() {
                numbers(item, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(items) => {
            for (key, item) in items {
                numbers(item, &format!("{at}/{key}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Every number of `checkpoint` replaced by each absurd one in turn.
fn assert_harmless(checkpoint: &str) {
    let altered = Altered::of(checkpoint);
    let mut seen = 0;
    for (file, tree) in altered.files() {
        let mut places = Vec::new();
        numbers(&tree, "", &mut places);
        for place in places {
            for value in absurd() {
                let mut changed = tree.clone();
                *changed.pointer_mut(&place).unwrap() = value.clone();
                std::fs::write(altered.file(&file), changed.to_string()).unwrap();
                let outcome = catch_unwind(AssertUnwindSafe(|| altered.attempt()));
                let said = outcome.unwrap_or_else(|_| panic!("{file}{place} = {value} panics"));
                if let Some(said) = said {
                    let is_clear = !said.contains("tensor operation failed");
                    assert!(is_clear, "{checkpoint} {file}{place} = {value}: {said}");
                }
                seen += 1;
            }
        }
        std::fs::write(altered.file(&file), tree.to_string()).unwrap();
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn no_absurd_number_of_an_editing_checkpoint_does_harm() {
    assert_harmless(EDIT);
}

#[test]
fn no_absurd_number_of_a_layered_checkpoint_does_harm() {
    assert_harmless(LAYERED);
}

#[test]
fn no_absurd_number_of_a_stable_diffusion_checkpoint_does_harm() {
    assert_harmless(XL);
}

/// What a start with `value` at `place` of `file` ends with, in 4 GiB of address space.
fn start(checkpoint: &str, file: &str, place: &str, value: &Value) -> std::process::Output {
    let altered = Altered::of(checkpoint);
    alter(&altered, file, place, value);
    altered.start()
}

fn alter(altered: &Altered, file: &str, place: &str, value: &Value) {
    let path = altered.file(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
    let mut tree: Value = serde_json::from_str(&text).unwrap();
    match tree.pointer_mut(place) {
        Some(number) => *number = value.clone(),
        None => tree[&place[1..]] = value.clone(),
    }
    std::fs::write(&path, tree.to_string()).unwrap();
}

#[test]
fn sizes_that_no_memory_holds_are_refused_by_name_and_not_allocated() {
    let text_encoder = "text_encoder/config.json";
    for (checkpoint, file, place, value) in [
        (LAYERED, text_encoder, "/vision_config/temporal_patch_size", json!(1_000_000)),
        (LAYERED, text_encoder, "/vision_config/temporal_patch_size", json!(256)),
        (LAYERED, text_encoder, "/vision_config/patch_size", json!(256)),
        (EDIT, text_encoder, "/vision_config/spatial_merge_size", json!(256)),
        (EDIT, text_encoder, "/vision_config/depth", json!(1000)),
        (EDIT, "transformer/config.json", "/num_layers", json!(1_000_000)),
        (EDIT, "transformer/config.json", "/num_layers", json!(1000)),
        (EDIT, "vae/config.json", "/base_dim", json!(100_000)),
        (EDIT, "vae/config.json", "/num_res_blocks", json!(1000)),
        (XL, "unet/config.json", "/block_out_channels/1", json!(999_936)),
        (XL, "unet/config.json", "/layers_per_block", json!(1000)),
        (XL, "vae/config.json", "/block_out_channels/1", json!(999_936)),
        (XL, "unet/config.json", "/sample_size", json!(1_000_000)),
        (XL, "diffuser.json", "/image_area", json!(1_u64 << 62)),
    ] {
        let output = start(checkpoint, file, place, &value);

        let component = file.split('/').next().unwrap();
        assert_refused(&output, &format!("{file}{place}"), component);
    }
}

/// The program ended by itself, naming `named`.
fn assert_refused(output: &std::process::Output, what: &str, named: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    // Not by a signal, which the shell's command would report as 128 or more, or not
    // at all.
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    assert!(said.contains(named), "{what}: {said}");
    assert!(said.len() < 20_000, "{what}: {} letters", said.len());
}

/// Puts something at a path.
type Put = fn(&Path);

/// What else may stand in the place of a file, and what to call it.
const INSTEAD_OF_A_FILE: [(&str, Put); 4] = [
    ("an endless one", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
    ("one that nobody writes to", |path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }),
    ("one of gigabytes", |path| {
        std::fs::File::create(path).unwrap().set_len(8_000_000_000).unwrap();
    }),
    ("a nest", |path| std::fs::write(path, "{\"a\":".to_owned() + &"[".repeat(1 << 20)).unwrap()),
];

#[test]
fn what_stands_in_the_place_of_a_text_is_refused_and_not_read_to_its_end() {
    for file in [
        "model_index.json",
        "transformer/config.json",
        "scheduler/scheduler_config.json",
        "processor/preprocessor_config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "text_encoder/model.safetensors.index.json",
    ] {
        for (what, put) in INSTEAD_OF_A_FILE {
            let altered = Altered::of(EDIT);
            std::fs::remove_file(altered.file(file)).unwrap();
            put(&altered.file(file));

            let component = file.split('/').next().unwrap();
            assert_refused(&altered.start(), &format!("{file}: {what}"), component);
        }
    }
}

#[test]
fn names_and_values_of_any_length_are_not_said_in_full() {
    let long = "x".repeat(3_000_000);
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    for (file, place, value) in [
        (index, "/weight_map/long", json!(long.clone() + ".safetensors")),
        ("processor/preprocessor_config.json", "/image_mean", json!(vec![0.5; 100_000])),
        ("transformer/config.json", "/patch_size", json!(long)),
    ] {
        let altered = Altered::of(EDIT);
        let tree = std::fs::read_to_string(altered.file(file)).unwrap();
        let mut tree: Value = serde_json::from_str(&tree).unwrap();
        let (parent, key) = place.rsplit_once('/').unwrap();
        tree.pointer_mut(parent).unwrap()[key] = value;
        std::fs::write(altered.file(file), tree.to_string()).unwrap();

        assert_refused(&altered.start(), &format!("{file}{place}"), "diffuser-api");
    }
}

#[test]
fn what_a_tokenizer_would_do_to_texts_beyond_its_kind_is_refused_by_name() {
    let replaced = json!({"type": "Replace", "pattern": {"String": ""}, "content": "xxxx"});
    let prepended = json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)});
    let nested = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replaced.clone()]});
    for (value, named) in [(replaced, "Replace"), (prepended, "Prepend"), (nested, "Replace")] {
        let output = start(EDIT, "processor/tokenizer.json", "/normalizer", &value);

        assert_refused(&output, named, &format!("normalizer '{named}'"));
    }
}

/// `table` in the place of a safetensors file's.
fn with_table(path: &Path, table: &[u8]) {
    let file = std::fs::read(path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    let bytes = [&(table.len() as u64).to_le_bytes(), table, &file[8 + length..]].concat();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn absurd_tables_of_weights_are_refused_by_the_name_of_their_file() {
    let file = "vae/diffusion_pytorch_model.safetensors";
    let max = u64::MAX;
    for entry in [
        json!({"dtype": "F32", "shape": [1_u64 << 40, 1_u64 << 40], "data_offsets": [0, 4]}),
        json!({"dtype": "F32", "shape": [max], "data_offsets": [0, 4]}),
        json!({"dtype": "F32", "shape": vec![1; 5000], "data_offsets": [0, 8]}),
        json!({"dtype": "F32", "shape": [1], "data_offsets": [0, 1_u64 << 62]}),
        json!({"dtype": "F32", "shape": [1], "data_offsets": [max - 4, max]}),
        json!({"dtype": "F32", "shape": [1], "data_offsets": [100, 0]}),
        json!({"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}),
    ] {
        let altered = Altered::of(EDIT);
        let table = json!({"decoder.conv_in.bias": entry}).to_string();
        with_table(&altered.file(file), table.as_bytes());

        assert_refused(&altered.start(), &table[..80.min(table.len())], file);
    }
    // A table that says that it is longer than the file, or than memory.
    for length in [0, 1 << 40, u64::MAX] {
        let altered = Altered::of(EDIT);
        let path = altered.file(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();

        assert_refused(&altered.start(), &length.to_string(), file);
    }
}
