//! What a model will take: `diffuser-api plan`, without loading it, and what is told once it
//! is loaded.

use std::path::Path;
use std::process::{Command, Output};

use diffuser_api::model::{
    DeviceChoice, Estimate, MemoryChoice, ModelConfig, ModelFiles, ModelPlan, PlannedComponent,
};
use serde_json::Value;

use crate::support::checkpoints::offline_hub;

fn config(id: &str, memory: MemoryChoice) -> ModelConfig {
    ModelConfig { device: DeviceChoice::Cpu, memory, ..ModelConfig::of(id) }
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

fn plan(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_diffuser-api");
    Command::new(program).arg("plan").args(arguments).env_remove("HF_HOME").output().unwrap()
}

#[test]
fn what_is_planned_is_what_the_loaded_model_takes() {
    let names = ["fixtures/ckpt/qwen-image-edit", "stable_diffusion/sd", "stable_diffusion/sdxl"];
    for name in names {
        let files =
            ModelFiles::find(&config(&fixture(name), MemoryChoice::Auto), &offline_hub()).unwrap();

        let plan = files.plan().unwrap();
        let loaded = files.load_onto(DeviceChoice::Cpu).unwrap();

        assert_eq!(plan.resident_bytes(), loaded.loaded().weight_bytes, "{name}: {plan:?}");
        assert_eq!(plan.weight_bytes(), plan.resident_bytes(), "{name}");
        assert!(plan.total_bytes >= plan.weight_bytes(), "{name}");
        assert_eq!(plan.dtype, loaded.loaded().dtype, "{name}");
    }
}

#[test]
fn what_streams_is_planned_not_to_stay() {
    let id = fixture("fixtures/ckpt/qwen-image-edit");
    let of =
        |memory| ModelFiles::find(&config(&id, memory), &offline_hub()).unwrap().plan().unwrap();

    let (resident, stream) = (of(MemoryChoice::Resident), of(MemoryChoice::Stream));

    // What is in no layer, and small, stays.
    let comes_and_goes = |part: &&PlannedComponent| part.name != "others";
    let stays = stream.components.iter().filter(comes_and_goes).map(|part| part.resident_bytes);
    assert_eq!(stays.sum::<usize>(), 0);
    assert!(stream.resident_bytes() < resident.resident_bytes() / 2);
    assert_eq!(stream.weight_bytes(), resident.weight_bytes());
    assert!(stream.total_bytes < resident.total_bytes);
}

#[test]
fn the_program_prints_the_plan_for_a_size_as_a_table_and_as_json() {
    let table = plan(&["demo", "--device", "cpu"]);
    let json = |size: &str| -> Value {
        let printed = plan(&["demo", "--device", "cpu", "--size", size, "--json"]);
        serde_json::from_slice(&printed.stdout).unwrap()
    };

    let table = String::from_utf8(table.stdout).unwrap();
    for part in ["demo (", "| transformer blocks |", "| vae |", "| in all |", "| free |"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let (small, large) = (json("256x256"), json("512x512"));
    assert_eq!(small["image_area"], 256 * 256);
    let bytes = |plan: &Value| plan["activation_bytes"].as_u64().unwrap();
    assert!(bytes(&large) > bytes(&small), "{small} {large}");
    assert_eq!(small["components"][0]["name"], "transformer blocks");
}

#[test]
fn a_model_that_is_not_at_hand_is_refused_and_not_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_diffuser-api");
    let mut command = Command::new(program);
    command.args(["plan", "no-such/model"]).env("HF_HUB_CACHE", cache.path());
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");

    let refused = command.output().unwrap();

    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("no-such/model") && !said.contains("127.0.0.1"), "{said}");
}

/// The parts of `plan`, of which nothing stays.
fn streamed(plan: &ModelPlan) -> Vec<PlannedComponent> {
    let streamed = |part: &PlannedComponent| PlannedComponent { resident_bytes: 0, ..part.clone() };
    plan.components.iter().map(streamed).collect()
}

#[test]
fn a_large_picture_is_timed_with_advice_and_a_small_one_is_not() {
    let load = |id: &str, image_area| {
        let config = ModelConfig { image_area, ..config(id, MemoryChoice::Auto) };
        diffuser_api::model::load(&config, &offline_hub()).unwrap()
    };

    let small = load("demo", None).estimate().unwrap();
    let large = load(&fixture("fixtures/ckpt/qwen-image"), Some(2048 * 2048)).estimate().unwrap();

    assert_eq!((small.seconds, small.duration()), (None, None));
    assert!(small.faster.is_empty(), "{small:?}");
    assert_eq!((large.width, large.height, large.steps), (2048, 2048, 50));
    assert!(large.seconds.is_some_and(|seconds| seconds > 0.0 && seconds.is_finite()));
    assert!(large.faster[0].contains("Lightning LoRA (4 or 8 steps for 50)"), "{large:?}");
    assert!(large.faster.last().unwrap().starts_with("a GPU"), "{large:?}");
    assert!(large.weights().ends_with(" on cpu"), "{}", large.weights());
    let streamed = ModelPlan { components: streamed(&large.plan), ..large.plan.clone() };
    let whereabouts = Estimate { plan: streamed, ..large }.weights();
    assert!(whereabouts.ends_with("read from their files when needed"), "{whereabouts}");
    let other = load(&fixture("stable_diffusion/sd"), Some(1024 * 1024)).estimate().unwrap();
    assert_eq!((other.width, other.height, other.steps), (1024, 1024, 50));
    assert!(other.weights().ends_with(" on cpu"), "{}", other.weights());
}
