//! Settings of several models: `[models.NAME]`, `--model` given several times, the pool.

use std::time::Duration;

use diffuser_api::config::{Config, ConfigError, Environment, Flags, Sources};
use diffuser_api::model::{DeviceChoice, DtypeChoice};

fn load(toml: &str, models: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, toml).unwrap();
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    let flags = Flags { config: Some(path), models, ..Flags::default() };
    Config::load(&Sources { environment: Environment::from_iter(variables.to_vec()), flags })
}

const TWO: &str = r#"
[model]
dtype = "bfloat16"
aliases = ["any-model"]
[defaults]
num_inference_steps = 30

[models.draw]
id = "Qwen/Qwen-Image"
keep_alive_s = 60
preload = false
device = "cuda:0, cuda:1"
aliases = ["painter"]
[models.draw.defaults]
num_inference_steps = 8
[models.draw.quality]
low_num_inference_steps = 4

[models."tiny-random"]
dtype = "float32"
"#;

#[test]
fn a_section_begins_with_what_all_models_have_and_says_the_rest_itself() {
    let config = load(TWO, &[], &[]).unwrap();

    let [draw, tiny] = &config.models[..] else { panic!("{:?}", config.models) };
    assert_eq!(
        (draw.config.id.as_str(), draw.config.name.as_deref()),
        ("Qwen/Qwen-Image", Some("draw"))
    );
    assert_eq!(draw.config.dtype, DtypeChoice::Bfloat16);
    assert_eq!(draw.devices, [DeviceChoice::Cuda(0), DeviceChoice::Cuda(1)]);
    assert_eq!((draw.preload, draw.keep_alive), (false, Some(Duration::from_secs(60))));
    assert_eq!(draw.aliases, ["painter"]);
    assert_eq!(draw.config.defaults.num_inference_steps.unwrap().get(), 8);
    assert_eq!(draw.quality.low.num_inference_steps.unwrap().get(), 4);
    assert_eq!(
        (tiny.config.id.as_str(), tiny.config.name.as_deref()),
        ("tiny-random", Some("tiny-random"))
    );
    assert_eq!(tiny.config.dtype, DtypeChoice::Float32);
    assert_eq!((tiny.preload, tiny.keep_alive), (true, None));
    assert_eq!(tiny.config.defaults.num_inference_steps.unwrap().get(), 30);
    assert_eq!(tiny.quality.low.num_inference_steps, None);
    assert!(tiny.aliases.is_empty(), "names for any model are no model's own");
    assert_eq!(config.api.model_aliases, ["any-model"]);
}

#[test]
fn flags_name_the_models_that_are_served_the_first_one_first() {
    let ids = |models: &[&str]| -> Vec<String> {
        let config = load(TWO, models, &[]).unwrap();
        config.models.into_iter().map(|model| model.config.id).collect()
    };

    assert_eq!(ids(&["tiny-random"]), ["tiny-random"]);
    assert_eq!(ids(&["tiny-random", "draw"]), ["tiny-random", "Qwen/Qwen-Image"]);
    assert_eq!(ids(&["./folder", "draw"]), ["./folder", "Qwen/Qwen-Image"]);
    let config = load("", &["demo", "tiny-random"], &[]).unwrap();
    assert_eq!(config.models.len(), 2);
    assert_eq!(config.models[1].config.name, None, "it has its own name");
}

#[test]
fn without_sections_there_is_the_one_model_as_ever() {
    let config = load("[model]\nid = \"demo\"\nname = \"mine\"", &[], &[]).unwrap();

    let [only] = &config.models[..] else { panic!() };
    assert_eq!((only.config.id.as_str(), only.config.name.as_deref()), ("demo", Some("mine")));
    let by_flag = load("[model]\nname = \"mine\"", &["tiny-random"], &[]).unwrap();
    assert_eq!(by_flag.models[0].config.id, "tiny-random");
    assert_eq!(by_flag.models[0].config.name.as_deref(), Some("mine"));
}

#[test]
fn the_default_model_and_the_budget_are_settings_of_the_pool() {
    let variables = [
        ("DIFFUSER_DEFAULT_MODEL", "tiny-random"),
        ("DIFFUSER_POOL_MEMORY_BYTES", "1000"),
        ("DIFFUSER_POOL_MAX_LOADED", "2"),
        ("DIFFUSER_KEEP_ALIVE_S", "5"),
    ];
    let config = load(TWO, &[], &variables).unwrap();

    assert_eq!(config.models[0].config.id, "tiny-random");
    assert_eq!(config.models[0].keep_alive, Some(Duration::from_secs(5)));
    assert_eq!(config.models[1].keep_alive, Some(Duration::from_secs(60)), "a section is nearer");
    let budget = config.service.budget;
    assert_eq!((budget.memory_bytes, budget.max_loaded.unwrap().get()), (Some(1000), 2));
}

#[test]
fn faults_of_sections_name_them_and_their_neighbours() {
    for (toml, parts) in [
        ("[models.a]\ndtype = \"float7\"", &["models.a.dtype", "float7"][..]),
        ("[models.a]\ndtpye = \"float32\"", &["models.a.dtpye", "did you mean dtype"]),
        (
            "[models.a.defaults]\nnum_inference_steps = 0",
            &["models.a.defaults.num_inference_steps"],
        ),
        ("[models.a]\nthreads = 3", &["models.a.threads"]),
        ("[models]\na = 3", &["models.a", "section"]),
        ("models = 3", &["models", "section"]),
        ("[models.a]\nkeep_alive_s = -2", &["models.a.keep_alive_s"]),
        ("[models.a]\ndevice = \"cpu,moon\"", &["models.a.device", "between commas"]),
        ("[models.a]\n[pool]\ndefault = \"b\"", &["pool.default", "'a'"]),
        ("[pool]\nmax_loaded = 0", &["pool.max_loaded"]),
    ] {
        let told = load(toml, &[], &[]).unwrap_err().to_string();

        assert_eq!(told.lines().count(), 1, "told once: {told}");
        for part in parts {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
