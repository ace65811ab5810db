//! Settings: where they come from, which one wins, and what is refused.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use diffuser_api::api::{CorsOrigins, KeyHash, Limits, MetricsAddress, PngCompression, Scope};
use diffuser_api::config::{
    Config, ConfigError, Environment, Fault, Flags, KEYS, Sources, load_hub,
};
use diffuser_api::domain::{GuidanceScale, Steps};
use diffuser_api::jobs::JobStoreLocation;
use diffuser_api::model::{DeviceChoice, DtypeChoice, MemoryChoice};
use diffuser_api::pictures::StoreLocation;
use diffuser_api::telemetry::LogFormat;

type Variables<'a> = &'a [(&'a str, &'a str)];

/// Loads from the environment alone; the token file is looked for where none is.
fn load(variables: Variables) -> Result<Config, ConfigError> {
    load_with(variables, Flags::default())
}

fn load_with(variables: Variables, flags: Flags) -> Result<Config, ConfigError> {
    let nowhere = [("HF_HOME", "/nowhere/huggingface")];
    let environment = nowhere.iter().chain(variables).copied().collect();
    Config::load(&Sources { environment, flags })
}

/// Loads from a file with this text, and the path that it had.
fn load_file(text: &str, variables: Variables) -> (Result<Config, ConfigError>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    let flags = Flags { config: Some(path.clone()), ..Flags::default() };
    (load_with(variables, flags), path.display().to_string())
}

fn faults(result: Result<Config, ConfigError>) -> Vec<Fault> {
    result.expect_err("the settings are faulty").faults
}

#[test]
fn without_any_source_the_documented_defaults_hold() {
    let config = load(&[]).unwrap();

    assert_eq!(config.listen.host, "127.0.0.1");
    assert_eq!(config.listen.port, 8000);
    assert_eq!(config.api.api_prefix, "/v1");
    assert_eq!(config.api.app_name, "Diffuser API");
    assert_eq!(config.api.app_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(config.api.max_upload_bytes, 134_217_728);
    assert_eq!(config.api.max_image_pixels, 67_108_864);
    assert_eq!(config.models[0].config.id, "demo");
    assert_eq!(config.models[0].config.name, None);
    assert_eq!(config.models[0].config.device, DeviceChoice::Auto);
    assert_eq!(config.models[0].config.dtype, DtypeChoice::Auto);
    assert_eq!(config.models[0].config.defaults, Default::default());
    assert_eq!(config.models[0].config.capabilities, Default::default());
    assert_eq!(config.threads, None);
    assert_eq!(config.api.png_compression, PngCompression::Fast);
    assert_eq!(config.service.queue_capacity, 64);
    assert!(config.service.metrics);
    assert_eq!(config.api.metrics.port, None);
    assert!(!config.warmup.enabled);
    assert_eq!(config.log_filter, "info");
    assert_eq!(config.hub.endpoint, "https://huggingface.co");
}

#[test]
fn flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults() {
    let file = "[server]\nhost = \"file\"\nport = 1\napp_name = \"file\"\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, file).unwrap();
    let flags = Flags { config: Some(path), host: Some("flag".to_owned()), ..Flags::default() };
    let variables = [("DIFFUSER_HOST", "variable"), ("DIFFUSER_PORT", "2")];

    let config = load_with(&variables, flags).unwrap();

    assert_eq!(config.listen.host, "flag");
    assert_eq!(config.listen.port, 2);
    assert_eq!(config.api.app_name, "file");
    assert_eq!(config.api.api_prefix, "/v1");
}

#[test]
fn metrics_have_a_host_of_their_own_if_they_have_a_port_and_a_faulty_one_is_told_once() {
    let metrics = |variables: Variables| load(variables).unwrap().api.metrics;
    let host = ("DIFFUSER_METRICS_HOST", "[::]");

    assert_eq!(metrics(&[host]), MetricsAddress { host: "::".to_owned(), port: None });
    assert_eq!(metrics(&[("DIFFUSER_METRICS_PORT", "0")]).host, "127.0.0.1");
    let faulty = faults(load(&[("DIFFUSER_HOST", " "), ("DIFFUSER_METRICS_PORT", "9090")]));
    assert_eq!(faulty.len(), 1, "{faulty:?}");
}

#[test]
fn the_file_can_be_named_by_variable_and_the_flag_beats_it() {
    let folder = tempfile::tempdir().unwrap();
    let [by_variable, by_flag] = ["variable", "flag"].map(|name| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("[server]\napp_name = \"{name}\"\n")).unwrap();
        path
    });
    let variables = [("DIFFUSER_CONFIG", by_variable.to_str().unwrap())];
    let flags = Flags { config: Some(by_flag), ..Flags::default() };

    assert_eq!(load(&variables).unwrap().api.app_name, "variable");
    assert_eq!(load_with(&variables, flags).unwrap().api.app_name, "flag");
}

#[test]
fn a_file_that_is_not_there_is_a_fault() {
    let found = faults(load(&[("DIFFUSER_CONFIG", "/nowhere/settings.toml")]));

    let [fault] = found.as_slice() else {
        panic!("{found:?}");
    };
    let message = fault.to_string();
    assert!(message.contains("/nowhere/settings.toml"), "{message}");
    assert!(message.contains("DIFFUSER_CONFIG"), "{message}");
}

#[test]
fn a_file_that_is_not_toml_is_a_fault_with_its_line() {
    let (result, path) = load_file("[server]\nport = = 1\n", &[]);

    let message = result.unwrap_err().to_string();
    assert!(message.contains(&path), "{message}");
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn every_variable_works() {
    let config = load(&[
        ("DIFFUSER_HOST", "::1"),
        ("DIFFUSER_PORT", "9000"),
        ("DIFFUSER_API_PREFIX", "/images/v2"),
        ("DIFFUSER_APP_NAME", "Mine"),
        ("DIFFUSER_APP_VERSION", "1.0"),
        ("DIFFUSER_MAX_UPLOAD_BYTES", "1000"),
        ("DIFFUSER_MAX_IMAGE_PIXELS", "2000"),
        ("DIFFUSER_MODEL_ID", "Qwen/Qwen-Image-Edit"),
        ("DIFFUSER_MODEL_NAME", "2511"),
        ("DIFFUSER_MODEL_REVISION", "1234567"),
        ("DIFFUSER_DEVICE", "cuda:1"),
        ("DIFFUSER_TORCH_DTYPE", "bfloat16"),
        ("DIFFUSER_IMAGE_AREA", "4096"),
        ("DIFFUSER_CONDITION_AREA", "1024"),
        ("DIFFUSER_DEFAULT_NUM_INFERENCE_STEPS", "20"),
        ("DIFFUSER_DEFAULT_TRUE_CFG_SCALE", "3"),
        ("DIFFUSER_DEFAULT_GUIDANCE_SCALE", "7.5"),
        ("DIFFUSER_DEFAULT_NEGATIVE_PROMPT", "blurry"),
        ("DIFFUSER_MODEL_CAP_SUPPORTS_TEXT_TO_IMAGE", "false"),
        ("DIFFUSER_MODEL_CAP_SUPPORTS_IMAGE_EDIT", "true"),
        ("DIFFUSER_MODEL_CAP_SUPPORTS_IMAGE_VARIATION", "no"),
        ("DIFFUSER_MODEL_CAP_SUPPORTS_INPAINTING", "0"),
        ("DIFFUSER_MODEL_CAP_SUPPORTS_MASK", "YES"),
        ("DIFFUSER_QUEUE_CAPACITY", "3"),
        ("DIFFUSER_LORA", "/a.safetensors:0.5, C:/b.safetensors"),
        ("DIFFUSER_MEMORY", "Stream"),
        ("DIFFUSER_CACHE_BYTES", "0"),
        ("DIFFUSER_EXACT_TIMESTEPS", "false"),
        ("DIFFUSER_THREADS", "3"),
        ("DIFFUSER_PNG_COMPRESSION", "Best"),
        ("DIFFUSER_FP8_ALL_LAYERS", "false"),
        ("DIFFUSER_MODEL_ALIASES", "one,two-*"),
        ("DIFFUSER_API_KEYS", "first, second"),
        ("DIFFUSER_QUALITY_LOW_NUM_INFERENCE_STEPS", "6"),
        ("DIFFUSER_QUALITY_HIGH_GUIDANCE", "2.5"),
        ("DIFFUSER_PICTURES_LIFETIME_S", "9"),
        ("DIFFUSER_PUBLIC_URL", "https://a.test"),
        ("DIFFUSER_ENABLE_WARMUP", "True"),
        ("DIFFUSER_WARMUP_IMAGE_PATH", "/pictures/a.png"),
        ("DIFFUSER_METRICS", "false"),
        ("DIFFUSER_METRICS_PORT", "9090"),
        ("DIFFUSER_LOG_FILTER", "debug"),
    ])
    .unwrap();

    assert_eq!((config.listen.host.as_str(), config.listen.port), ("::1", 9000));
    assert_eq!(config.api.api_prefix, "/images/v2");
    assert_eq!(config.api.app_name, "Mine");
    assert_eq!(config.api.app_version, "1.0");
    assert_eq!(config.api.max_upload_bytes, 1000);
    assert_eq!(config.api.max_image_pixels, 2000);
    assert_eq!(config.models[0].config.id, "Qwen/Qwen-Image-Edit");
    assert_eq!(config.models[0].config.name.as_deref(), Some("2511"));
    assert_eq!(config.models[0].config.revision.as_deref(), Some("1234567"));
    assert_eq!(config.models[0].config.device, DeviceChoice::Cuda(1));
    assert_eq!(config.models[0].config.dtype, DtypeChoice::Bfloat16);
    assert_eq!(config.models[0].config.image_area, Some(4096));
    assert_eq!(config.models[0].config.condition_area, Some(1024));
    let defaults = &config.models[0].config.defaults;
    assert_eq!(defaults.num_inference_steps.map(Steps::get), Some(20));
    assert_eq!(defaults.true_cfg_scale.map(GuidanceScale::get), Some(3.0));
    assert_eq!(defaults.guidance_scale.map(GuidanceScale::get), Some(7.5));
    assert_eq!(defaults.negative_prompt.as_deref(), Some("blurry"));
    let capabilities = config.models[0].config.capabilities;
    assert_eq!(capabilities.text_to_image, Some(false));
    assert_eq!(capabilities.image_edit, Some(true));
    assert_eq!(capabilities.image_variation, Some(false));
    assert_eq!(capabilities.inpainting, Some(false));
    assert_eq!(capabilities.mask, Some(true));
    assert_eq!(config.service.queue_capacity, 3);
    assert!(!config.service.metrics);
    let metrics = MetricsAddress { host: "::1".to_owned(), port: Some(9090) };
    assert_eq!(config.api.metrics, metrics, "on the server's host");
    let lora: Vec<_> = config.models[0]
        .config
        .lora
        .iter()
        .map(|lora| (lora.file.display().to_string(), lora.scale))
        .collect();
    assert_eq!(lora, [("/a.safetensors".to_owned(), 0.5), ("C:/b.safetensors".to_owned(), 1.0)]);
    assert_eq!(config.models[0].config.memory, MemoryChoice::Stream);
    assert_eq!(config.models[0].config.cache_bytes, 0);
    assert!(!config.models[0].config.exact_timesteps);
    assert_eq!(config.threads.map(NonZeroUsize::get), Some(3));
    assert_eq!(config.api.png_compression, PngCompression::Best);
    assert!(!config.models[0].config.fp8_all_layers);
    assert_eq!(config.api.model_aliases, ["one", "two-*"]);
    assert_eq!(format!("{:?}", config.api.api_keys), "ApiKeys(2)");
    assert_eq!(config.models[0].quality.low.num_inference_steps.map(Steps::get), Some(6));
    assert_eq!(config.models[0].quality.high.guidance.map(GuidanceScale::get), Some(2.5));
    assert_eq!(config.api.picture_store.lifetime.as_secs(), 9);
    assert_eq!(config.api.public_url.as_deref(), Some("https://a.test"));
    assert!(config.warmup.enabled);
    assert_eq!(config.warmup.image_path, Some(PathBuf::from("/pictures/a.png")));
    assert_eq!(config.log_filter, "debug");
}

/// Settings whose values are nobody's business.
const SECRETS: [&str; 3] = ["jobs.store", "webhook.url", "webhook.secret"];

#[test]
fn every_variable_of_the_table_reaches_its_setting() {
    for key in KEYS {
        for variable in [Some(key.variable), key.alias].into_iter().flatten() {
            // Only a setting that takes any text takes this.
            let refused = format!("\t={}", "x".repeat(40_000));
            let is_free_text = load(&[(variable, &refused)]).is_ok();
            if is_free_text {
                let changed = load(&[(variable, "other")]).unwrap();
                assert_ne!(changed, load(&[]).unwrap(), "{variable}");
            } else {
                let fault = &faults(load(&[(variable, &refused)]))[0];
                assert_eq!(fault.key, key.path);
                assert_eq!(fault.origin, format!("environment variable {variable}"));
                // What may have a password in it is not shown at all.
                assert_eq!(fault.value.is_none(), SECRETS.contains(&key.path), "{variable}");
                assert!(fault.value.as_deref().unwrap_or_default().len() < 100, "{variable}");
            }
        }
    }
}

#[test]
fn capability_variables_of_the_original_system_work_without_our_prefix() {
    let config = load(&[
        ("MODEL_CAP_SUPPORTS_TEXT_TO_IMAGE", "false"),
        ("MODEL_CAP_SUPPORTS_IMAGE_EDIT", "1"),
        ("MODEL_CAP_SUPPORTS_IMAGE_VARIATION", "0"),
        ("MODEL_CAP_SUPPORTS_INPAINTING", "true"),
        ("MODEL_CAP_SUPPORTS_MASK", "false"),
        ("DIFFUSER_MODEL_CAP_SUPPORTS_MASK", "true"),
    ])
    .unwrap();

    let capabilities = config.models[0].config.capabilities;
    assert_eq!(capabilities.text_to_image, Some(false));
    assert_eq!(capabilities.image_edit, Some(true));
    assert_eq!(capabilities.image_variation, Some(false));
    assert_eq!(capabilities.inpainting, Some(true));
    assert_eq!(capabilities.mask, Some(true), "ours wins");
}

#[test]
fn the_environment_of_the_original_system_starts_this_one() {
    let config = load(&[
        ("DIFFUSER_APP_NAME", "Diffuser API - OpenAI Compatible"),
        ("DIFFUSER_APP_VERSION", "1.0.0"),
        ("DIFFUSER_API_PREFIX", "/v1"),
        ("DIFFUSER_MODEL_ID", "Qwen/Qwen-Image-Edit"),
        ("DIFFUSER_MODEL_NAME", "qwen-image-edit"),
        ("DIFFUSER_TORCH_DTYPE", "bfloat16"),
        ("DIFFUSER_DEVICE", "mps"),
        ("DIFFUSER_DEFAULT_NUM_INFERENCE_STEPS", "50"),
        ("DIFFUSER_DEFAULT_GUIDANCE_SCALE", "7.5"),
        ("DIFFUSER_DEFAULT_TRUE_CFG_SCALE", "4.0"),
        ("DIFFUSER_DEFAULT_NEGATIVE_PROMPT", " "),
        ("DIFFUSER_HOST", "0.0.0.0"),
        ("DIFFUSER_PORT", "8000"),
        ("DIFFUSER_WORKERS", "1"),
        ("DIFFUSER_ENABLE_WARMUP", "false"),
        ("DIFFUSER_WARMUP_IMAGE_PATH", ""),
        ("RAY_MODEL_NUM_GPUS", "1"),
    ])
    .unwrap();

    assert_eq!(config.models[0].config.device, DeviceChoice::Metal);
    assert_eq!(config.warmup.image_path, None);
    assert!(load(&[("DIFFUSER_WORKERS", "4")]).is_err());
}

#[test]
fn threads_are_a_number_in_a_file_and_the_pools_own_variable_sets_them() {
    let threads = |config: Config| config.threads.map(NonZeroUsize::get);
    for (text, expected) in [("4", Some(4)), ("\"7\"", Some(7)), ("\"auto\"", None), ("0", None)] {
        let (config, _) = load_file(&format!("[model]\nthreads = {text}\n"), &[]);
        assert_eq!(threads(config.unwrap()), expected, "{text}");
    }
    assert_eq!(threads(load(&[("RAYON_NUM_THREADS", "6")]).unwrap()), Some(6));
    let both = [("RAYON_NUM_THREADS", "6"), ("DIFFUSER_THREADS", "auto")];
    assert_eq!(threads(load(&both).unwrap()), None, "ours wins");
    let flags = Flags { threads: Some("2".to_owned()), ..Flags::default() };
    assert_eq!(threads(load_with(&both, flags).unwrap()), Some(2));
    for text in ["-1", "1.5", "1025", "\"many\"", "true"] {
        let (config, _) = load_file(&format!("[model]\nthreads = {text}\n"), &[]);
        assert_eq!(faults(config)[0].key, "model.threads", "{text}");
    }
}

#[test]
fn a_single_blank_is_a_negative_prompt_and_so_is_nothing() {
    for prompt in [" ", "", "  two  ", "12", "true", "[1]"] {
        let config = load(&[("DIFFUSER_DEFAULT_NEGATIVE_PROMPT", prompt)]).unwrap();
        assert_eq!(config.models[0].config.defaults.negative_prompt.as_deref(), Some(prompt));
    }
    let (config, _) = load_file("[defaults]\nnegative_prompt = \" \"\n", &[]);
    assert_eq!(config.unwrap().models[0].config.defaults.negative_prompt.as_deref(), Some(" "));
}

#[test]
fn a_lora_scale_that_is_no_number_is_told_with_setting_value_and_origin() {
    let deep = format!("/{}/a.safetensors:nan", "deep/".repeat(30));
    for entry in
        ["a.safetensors:0,8", "b.safetensors:1, a.safetensors:x", "a.safetensors:1e999", &deep]
    {
        let faults = faults(load(&[("DIFFUSER_LORA", entry)]));

        let [fault] = faults.as_slice() else { panic!("{entry}: {faults:?}") };
        let told = fault.to_string();
        for part in ["model.lora", entry, "DIFFUSER_LORA", "FILE:SCALE"] {
            assert!(told.contains(part), "{entry}: {told}");
        }
    }
    let (config, _) = load_file("[model]\nlora = [\"a.safetensors:0,8\", \"b\"]\n", &[]);
    let told = config.unwrap_err().to_string();
    assert!(told.contains("model.lora") && told.contains("a.safetensors:0,8"), "{told}");
    let config = load(&[("DIFFUSER_LORA", "a.safetensors:0.8,b")]).unwrap();
    let loras = &config.models[0].config.lora;
    assert_eq!(loras.iter().map(|lora| lora.scale).collect::<Vec<_>>(), [0.8, 1.0]);
}

#[test]
fn texts_that_look_like_numbers_stay_texts() {
    let config = load(&[
        ("DIFFUSER_APP_VERSION", "1.0"),
        ("DIFFUSER_APP_NAME", "true"),
        ("DIFFUSER_MODEL_NAME", "2511"),
        ("DIFFUSER_MODEL_ID", "007"),
    ])
    .unwrap();

    assert_eq!(config.api.app_version, "1.0");
    assert_eq!(config.api.app_name, "true");
    assert_eq!(config.models[0].config.name.as_deref(), Some("2511"));
    assert_eq!(config.models[0].config.id, "007");
}

#[test]
fn an_empty_variable_is_not_set_except_where_emptiness_means_something() {
    let config = load(&[
        ("DIFFUSER_PORT", ""),
        ("DIFFUSER_MODEL_NAME", ""),
        ("DIFFUSER_ENABLE_WARMUP", ""),
        ("DIFFUSER_API_PREFIX", ""),
    ])
    .unwrap();

    assert_eq!(config.listen.port, 8000);
    assert_eq!(config.models[0].config.name, None);
    assert_eq!(config.api.api_prefix, "");
}

#[test]
fn all_faults_are_told_at_once_with_value_and_origin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(
        &path,
        "[server]\nport = 70000\napp_version = 1.0\nprot = 1\n[queue]\ncapacity = 0\n",
    )
    .unwrap();
    let flags =
        Flags { config: Some(path.clone()), device: Some("gpu".to_owned()), ..Flags::default() };
    let variables = [
        ("DIFFUSER_DEFAULT_NUM_INFERENCE_STEPS", "0"),
        ("DIFFUSER_DEFAULT_TRUE_CFG_SCALE", "nan"),
        ("DIFFUSER_ENABLE_WARMUP", "perhaps"),
        ("DIFFUSER_MODLE_ID", "x"),
        ("HF_HUB_OFFLINE", "sometimes"),
    ];

    let error = load_with(&variables, flags).unwrap_err();

    let keys: BTreeSet<&str> = error.faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(
        keys,
        BTreeSet::from([
            "server.port",
            "server.app_version",
            "server.prot",
            "queue.capacity",
            "model.device",
            "defaults.num_inference_steps",
            "defaults.true_cfg_scale",
            "warmup.enabled",
            "DIFFUSER_MODLE_ID",
            "HF_HUB_OFFLINE",
        ])
    );
    let message = error.to_string();
    let file = path.display();
    for line in [
        format!("server.port: expected a whole number from 0 to 65535, got 70000 (file {file})"),
        "model.device: expected auto, cpu, cuda, cuda:N or metal, or several between commas, \
         got 'gpu' (flag --device)"
            .to_owned(),
        "warmup.enabled: expected true or false, got 'perhaps' \
         (environment variable DIFFUSER_ENABLE_WARMUP)"
            .to_owned(),
        format!("server.prot: no such setting; did you mean server.port? (file {file})"),
        "DIFFUSER_MODLE_ID: no such variable; did you mean DIFFUSER_MODEL_ID? (environment)"
            .to_owned(),
    ] {
        assert!(message.contains(&line), "no\n  {line}\nin\n{message}");
    }
}

#[test]
fn unknown_sections_and_misplaced_settings_are_refused_with_a_hint() {
    let (result, _) = load_file("port = 1\nserver = 2\n[modle]\nid = \"x\"\n", &[]);

    let found = faults(result);
    let message = format!("{:?}", found.iter().map(Fault::to_string).collect::<Vec<_>>());
    assert!(message.contains("port: no such setting; did you mean server.port?"), "{message}");
    assert!(message.contains("server: expected a section"), "{message}");
    assert!(message.contains("modle: no such setting"), "{message}");
    assert_eq!(found.len(), 3);
}

#[test]
fn an_unknown_capability_is_refused_without_our_prefix_too() {
    let found = faults(load(&[("MODEL_CAP_SUPPORTS_MASKS", "true")]));

    assert_eq!(found.len(), 1);
    assert!(found[0].expected.contains("MODEL_CAP_SUPPORTS_MASK?"));
}

#[test]
fn addresses_that_kubernetes_adds_are_no_settings() {
    let config = load(&[
        ("DIFFUSER_API_SERVICE_HOST", "10.0.0.7"),
        ("DIFFUSER_API_SERVICE_PORT", "8000"),
        ("DIFFUSER_API_SERVICE_PORT_HTTP", "8000"),
        ("DIFFUSER_API_PORT", "tcp://10.0.0.7:8000"),
        ("DIFFUSER_API_PORT_8000_TCP", "tcp://10.0.0.7:8000"),
        ("DIFFUSER_API_PORT_8000_TCP_ADDR", "10.0.0.7"),
        ("DIFFUSER_API_PORT_8000_TCP_PORT", "8000"),
        ("DIFFUSER_API_PORT_8000_TCP_PROTO", "tcp"),
        ("DIFFUSER_PORT", "tcp://10.0.0.7:8000"),
    ])
    .unwrap();

    assert_eq!(config.listen.port, 8000);
    assert_eq!(config, load(&[]).unwrap());
}

#[test]
fn the_prefix_is_a_path_or_nothing() {
    for right in ["", "/v1", "/a/b-c_d.e~f"] {
        let config = load(&[("DIFFUSER_API_PREFIX", right)]).unwrap();
        assert_eq!(config.api.api_prefix, right);
    }
    for wrong in ["v1", "/", "/v1/", "//v1", "/v 1", "/{a}", "/a?b", "/*"] {
        assert!(load(&[("DIFFUSER_API_PREFIX", wrong)]).is_err(), "{wrong}");
    }
}

#[test]
fn numbers_are_checked_by_the_limits_of_requests() {
    for (variable, right, wrong) in [
        ("DIFFUSER_DEFAULT_NUM_INFERENCE_STEPS", ["1", "150"], ["151", "2.5"]),
        ("DIFFUSER_DEFAULT_TRUE_CFG_SCALE", ["0", "20"], ["20.5", "inf"]),
        ("DIFFUSER_DEFAULT_GUIDANCE_SCALE", ["0.0", "20.0"], ["-1", "four"]),
        ("DIFFUSER_PORT", ["0", "65535"], ["65536", "-1"]),
        ("DIFFUSER_QUEUE_CAPACITY", ["1", "64"], ["0", "1e3"]),
    ] {
        for value in right {
            assert!(load(&[(variable, value)]).is_ok(), "{variable}={value}");
        }
        for value in wrong {
            assert!(load(&[(variable, value)]).is_err(), "{variable}={value}");
        }
    }
}

#[test]
fn the_log_filter_is_checked_and_ours_beats_rust_log() {
    let filter = |variables: Variables| load(variables).map(|config| config.log_filter);

    assert_eq!(filter(&[("RUST_LOG", "warn")]).unwrap(), "warn");
    let both = [("RUST_LOG", "warn"), ("DIFFUSER_LOG_FILTER", "debug")];
    assert_eq!(filter(&both).unwrap(), "debug");
    let fault = &faults(load(&[("RUST_LOG", "a=b=c")]))[0];
    assert_eq!(fault.origin, "environment variable RUST_LOG");
}

#[test]
fn the_hub_goes_by_the_variables_of_its_own_tools() {
    let hub = |variables: Variables| load_hub(&variables.iter().copied().collect()).unwrap();

    assert_eq!(hub(&[("HOME", "/home/me")]).cache, Path::new("/home/me/.cache/huggingface/hub"));
    let elsewhere = [("HOME", "/home/me"), ("XDG_CACHE_HOME", "/cache")];
    assert_eq!(hub(&elsewhere).cache, Path::new("/cache/huggingface/hub"));
    assert_eq!(hub(&[("HF_HOME", "/hf")]).cache, Path::new("/hf/hub"));
    let both = [("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/data")];
    assert_eq!(hub(&both).cache, Path::new("/data"));
    let tilde = [("HOME", "/home/me"), ("HF_HOME", "~/hf")];
    assert_eq!(hub(&tilde).cache, Path::new("/home/me/hf/hub"));

    let mirror = [("HF_ENDPOINT", "https://mirror.example/"), ("HF_HUB_OFFLINE", "1")];
    assert_eq!(hub(&mirror).endpoint, "https://mirror.example");
    assert!(hub(&mirror).offline);
    assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);
    assert!(load_hub(&Environment::from_iter([("HF_ENDPOINT", "mirror")])).is_err());
}

#[test]
fn the_token_is_a_variable_or_a_file_and_never_printed() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_from_file\n").unwrap();
    let home = home.path().to_str().unwrap();
    let token =
        |variables: Variables| load_hub(&variables.iter().copied().collect()).unwrap().token;

    assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_from_file"));
    let both = [("HF_HOME", home), ("HF_TOKEN", "hf_from_variable")];
    assert_eq!(token(&both).as_deref(), Some("hf_from_variable"));
    assert_eq!(token(&[("HF_HOME", "/nowhere")]), None);
    let printed = format!("{:?}", load(&[("HF_TOKEN", "hf_secret")]).unwrap());
    assert!(!printed.contains("hf_secret"), "{printed}");
}

/// The hash of a key.
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn keys_stand_in_the_configuration_and_in_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let other = HASH.replace('b', "c");
    std::fs::write(&file, format!("[[key]]\nname = \"bob\"\nsha256 = \"{other}\"\n")).unwrap();
    let text = format!(
        "[keys]\nfile = {file:?}\n[[keys.key]]\nname = \"ann\"\nsha256 = \"{HASH}\"\n\
         scopes = [\"admin\"]\nexpires = 2027-01-31\nmodels = [\"a\", \"b-*\"]\n\
         requests_per_minute = 60\nconcurrent_requests = 2\npictures_per_day = 9\n"
    );

    let config = load_file(&text, &[]).0.unwrap().api;

    let [ann, bob] = config.named_keys.as_slice() else { panic!("{:?}", config.named_keys) };
    assert_eq!((ann.name.as_str(), ann.hash), ("ann", KeyHash::of("abc")));
    assert!(ann.scopes.contain(Scope::Admin) && ann.scopes.contain(Scope::Images));
    assert_eq!(ann.expires, Some("2027-01-31".parse().unwrap()));
    assert_eq!(ann.models.as_deref(), Some(&["a".to_owned(), "b-*".to_owned()][..]));
    let limits = ann.limits;
    let numbers = [limits.requests_per_minute, limits.concurrent_requests, limits.pictures_per_day];
    assert_eq!(numbers.map(|limit| limit.unwrap().get()), [60, 2, 9]);
    assert_eq!((bob.name.as_str(), bob.expires, &bob.models), ("bob", None, &None));
    assert!(bob.scopes.contain(Scope::Images) && !bob.scopes.contain(Scope::Admin));
    assert_eq!(bob.limits, Limits::default());
}

#[test]
fn faulty_keys_are_all_told_and_never_shown() {
    let text = format!(
        "[[keys.key]]\nname = \"ann\"\nsha256 = \"sk-the-key-itself\"\nscopes = [\"all\"]\n\
         expires = \"soon\"\nmodel = \"a\"\npictures_per_day = 0\n\
         [[keys.key]]\nname = \"two words\"\n\
         [[keys.key]]\nname = \"bob\"\nsha256 = \"{HASH}\"\n\
         [[keys.key]]\nname = \"bob\"\nsha256 = \"{HASH}\"\n"
    );

    let faults = faults(load_file(&text, &[("DIFFUSER_KEYS_FILE", "/nowhere/keys.toml")]).0);

    let mut keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "keys.file",
            "keys.key[2].name",
            "keys.key[2].sha256",
            "keys.key[ann].expires",
            "keys.key[ann].model",
            "keys.key[ann].pictures_per_day",
            "keys.key[ann].scopes",
            "keys.key[ann].sha256",
            "keys.key[bob].name",
            "keys.key[bob].sha256",
        ]
    );
    let printed = format!("{faults:?}");
    assert!(!printed.contains("itself"), "{printed}");
    assert!(printed.contains("did you mean models"), "{printed}");
}

#[test]
fn a_file_of_keys_has_nothing_else_and_its_text_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    for (text, key) in
        [("key = 7", "keys.key"), ("[server]\nport = 1", "server"), ("sk-secret", "keys.file")]
    {
        std::fs::write(&file, text).unwrap();
        let path = file.display().to_string();

        let faults = faults(load(&[("DIFFUSER_KEYS_FILE", &path)]));

        assert_eq!(faults[0].key, key);
        assert_eq!(faults[0].origin, format!("file {path}"));
        assert!(!format!("{faults:?}").contains("sk-secret"), "{faults:?}");
    }
}

#[test]
fn keys_without_names_are_not_shown_either() {
    let faults = faults(load_file("[server]\napi_keys = [1, \"sk-secret\"]\n", &[]).0);

    assert_eq!((faults[0].key.as_str(), &faults[0].value), ("server.api_keys", &None));
}

#[test]
fn limits_proxies_and_origins_are_read_from_the_environment() {
    let config = load(&[
        ("DIFFUSER_LIMITS_REQUESTS_PER_MINUTE", "60"),
        ("DIFFUSER_LIMITS_CONCURRENT_REQUESTS", "2"),
        ("DIFFUSER_LIMITS_PICTURES_PER_DAY", "9"),
        ("DIFFUSER_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8,::1"),
        ("DIFFUSER_CORS_ORIGINS", "https://A.test,http://b.test:8080"),
        ("DIFFUSER_MAX_REQUEST_PIXELS", "7"),
        ("DIFFUSER_MAX_PARTS", "8"),
    ]);
    let config = config.unwrap().api;

    let limits = config.limits;
    let numbers = [limits.requests_per_minute, limits.concurrent_requests, limits.pictures_per_day];
    assert_eq!(numbers.map(|limit| limit.unwrap().get()), [60, 2, 9]);
    let proxies: Vec<String> = config.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["127.0.0.1/32", "10.0.0.0/8", "::1/128"]);
    let origins = ["https://a.test", "http://b.test:8080"].map(str::to_owned);
    assert_eq!(config.cors_origins, CorsOrigins::These(origins.into()));
    assert_eq!((config.max_request_pixels, config.max_parts), (7, 8));
    let defaults = load(&[]).unwrap().api;
    assert_eq!((defaults.limits, defaults.cors_origins), (Limits::default(), CorsOrigins::Any));
    assert_eq!((defaults.named_keys, defaults.trusted_proxies), (Vec::new(), Vec::new()));
    let none = load(&[("DIFFUSER_CORS_ORIGINS", "")]).unwrap().api.cors_origins;
    assert_eq!(none, CorsOrigins::These(Vec::new()));
    for (variable, wrong) in [
        ("DIFFUSER_TRUSTED_PROXIES", "127.0.0.1,proxy.test"),
        ("DIFFUSER_CORS_ORIGINS", "https://a.test/path"),
        ("DIFFUSER_CORS_ORIGINS", "a.test"),
        ("DIFFUSER_LIMITS_PICTURES_PER_DAY", "0"),
    ] {
        assert_eq!(faults(load(&[(variable, wrong)])).len(), 1, "{variable}={wrong}");
    }
}

/// Runs `diffuser-api keys`.
fn run_keys(arguments: &[&str], input: &str) -> std::process::Output {
    use std::io::Write;
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
        .arg("keys")
        .args(arguments)
        .env_clear()
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    program.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    program.wait_with_output().unwrap()
}

#[test]
fn the_program_makes_keys_that_its_settings_take() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml").display().to_string();
    let text = |output: std::process::Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    let key = text(run_keys(&["new", "ann", "--file", &file], ""));
    let pasted = text(run_keys(&["new", "bob", "--scope", "metrics"], ""));
    let hash = text(run_keys(&["hash"], &key));
    let twice = run_keys(&["new", "ann", "--file", &file], "");

    let (other, entry) = pasted.split_once("\n\n").unwrap();
    let config = load_file(entry, &[("DIFFUSER_KEYS_FILE", &file)]).0.unwrap();
    let hashes: Vec<_> = config.api.named_keys.iter().map(|key| key.hash).collect();
    assert_eq!(hashes, [other, key.trim()].map(KeyHash::of));
    assert_eq!(hash.trim(), KeyHash::of(key.trim()).to_string());
    assert!(!twice.status.success() && twice.stdout.is_empty(), "{twice:?}");
}

#[test]
fn every_configuration_file_of_the_project_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let flags = Flags { config: Some(path.clone()), ..Flags::default() };
        let config = load_with(&[], flags).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "qwen-image-edit-cuda.toml" {
            assert_eq!(config.models[0].config.id, "Qwen/Qwen-Image-Edit");
            assert_eq!(config.models[0].config.device, DeviceChoice::Cuda(0));
            assert_eq!(config.models[0].config.dtype, DtypeChoice::Bfloat16);
            assert_eq!(config.models[0].config.defaults.negative_prompt.as_deref(), Some(" "));
            assert!(config.warmup.enabled);
        }
        names.insert(name);
    }
    assert!(names.contains("default.toml"), "{names:?}");
    assert!(names.contains("tiny-random.toml"), "{names:?}");
    assert!(names.contains("qwen-image-edit-cuda.toml"), "{names:?}");
}

#[test]
fn the_default_file_documents_every_setting_and_its_variable() {
    let text = include_str!("../../config/default.toml");
    let with_all_settings: String = text
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();

    let (config, _) = load_file(&with_all_settings, &[]);

    config.expect("the settings behind a # are valid, too");
    for key in KEYS {
        let (section, name) = key.path.rsplit_once('.').unwrap();
        let section = with_all_settings.split(&format!("[{section}]\n")).nth(1).unwrap();
        let section = section.split("\n[").next().unwrap();
        assert!(section.contains(&format!("\n{name} = ")), "{}", key.path);
        assert!(section.contains(key.variable), "{}", key.variable);
    }
}

/// Whether a comment is a setting that was commented out.
fn is_setting(comment: &str) -> bool {
    comment
        .split_once(" = ")
        .is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
}

#[test]
fn the_program_tells_its_faults_on_standard_error_and_fails() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
        .args(["--device", "gpu", "--port", "-1"])
        .env_clear()
        .env("DIFFUSER_TORCH_DTYPE", "int4")
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "diffuser-api: 3 faulty settings:
  server.port: expected a whole number from 0 to 65535, got '-1' (flag --port)
  model.device: expected auto, cpu, cuda, cuda:N or metal, or several between commas, got 'gpu' \
(flag --device)
  model.dtype: expected auto, float32, bfloat16, float16, fp8, fp8-weights or q8_0, got 'int4' \
(environment variable DIFFUSER_TORCH_DTYPE)
"
    );
}

#[test]
fn pictures_are_kept_where_the_settings_say() {
    let store = |variables: Variables| load(variables).unwrap().api.picture_store;
    assert_eq!(store(&[]).location, StoreLocation::Memory);
    let folder = store(&[("DIFFUSER_PICTURES_STORE", "file:///srv/pictures")]).location;
    assert_eq!(folder, StoreLocation::Folder("/srv/pictures".into()));

    let bucket = store(&[
        ("DIFFUSER_PICTURES_STORE", "s3://bucket/below"),
        ("DIFFUSER_PICTURES_SIGNED_URLS", "true"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("AWS_SESSION_TOKEN", ""),
        ("GOOGLE_SERVICE_ACCOUNT", "/another"),
    ]);

    assert!(bucket.signed_urls);
    let names: Vec<_> = bucket.options.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"]);
    assert!(!format!("{bucket:?}").contains("hidden"), "a secret is printed");
}

#[test]
fn jobs_are_in_memory_in_the_folder_for_data_or_where_the_settings_say() {
    let location = |variables: Variables| load(variables).unwrap().api.jobs.location;
    let data = ("DIFFUSER_DATA_DIR", "/srv/data");
    let file = |path: &str| JobStoreLocation::Sqlite(path.into());

    assert_eq!(location(&[]), JobStoreLocation::Memory);
    assert_eq!(location(&[data]), file("/srv/data/jobs.db"));
    let elsewhere = ("DIFFUSER_JOBS_STORE", "sqlite:///srv/other.db");
    assert_eq!(location(&[data, elsewhere]), file("/srv/other.db"));
    assert_eq!(location(&[data, ("DIFFUSER_JOBS_STORE", "memory")]), JobStoreLocation::Memory);
    let jobs = load(&[]).unwrap().api.jobs;
    assert_eq!((jobs.max_tries, jobs.lifetime.as_secs(), jobs.capacity), (3, 86_400, 1000));
    let batches = load(&[("DIFFUSER_BATCHES_IN_FLIGHT", "3")]).unwrap().api.batches;
    assert_eq!((batches.in_flight, batches.max_requests), (3, 50_000));
    assert_eq!((batches.max_file_bytes, batches.window.as_secs()), (200 << 20, 86_400));
    assert_eq!(batches.lifetime.as_secs(), 30 * 86_400);
    let found = faults(load(&[("DIFFUSER_BATCHES_IN_FLIGHT", "0")]));
    assert_eq!(found[0].key, "batches.in_flight");
    let found = faults(load(&[("DIFFUSER_JOBS_STORE", "/srv/jobs.db")]));
    assert_eq!(found[0].key, "jobs.store");
    assert!(found[0].expected.contains("sqlite://FILE"), "{}", found[0].expected);
}

#[test]
fn a_role_needs_jobs_that_are_shared_and_these_a_place_for_files() {
    let store = ("DIFFUSER_JOBS_STORE", "postgres://me:hidden@here/jobs");
    let (files, role) = (("DIFFUSER_JOBS_FILES", "file:///srv/jobs"), ("DIFFUSER_ROLE", "gateway"));
    for (variables, at_fault) in [
        (vec![role], "server.role"),
        (vec![store, role], "jobs.store"),
        (vec![files], "jobs.files"),
        (vec![("DIFFUSER_ROLE", "boss")], "server.role"),
    ] {
        let found = faults(load(&variables));
        assert_eq!(found[0].key, at_fault, "{found:?}");
        assert!(!format!("{found:?}").contains("hidden"), "{found:?}");
    }

    let config = load(&[store, files, role]).unwrap();

    // Pictures by url are where all have them.
    assert_eq!(config.api.picture_store.location.to_string(), "file:///srv/jobs/pictures");
    assert!(!format!("{config:?}").contains("hidden"));
}

#[test]
fn places_that_are_none_and_addresses_that_nobody_signs_are_faults() {
    let refused: [Variables; 4] = [
        &[("DIFFUSER_PICTURES_STORE", "/srv/pictures")],
        &[("DIFFUSER_PICTURES_STORE", "file://relative")],
        &[("DIFFUSER_PICTURES_SIGNED_URLS", "true")],
        &[
            ("DIFFUSER_PICTURES_STORE", "s3://bucket"),
            ("DIFFUSER_PICTURES_SIGNED_URLS", "true"),
            ("DIFFUSER_PICTURES_LIFETIME_S", "604801"),
        ],
    ];
    let keys = ["store", "store", "signed_urls", "lifetime_s"];
    for (variables, key) in refused.into_iter().zip(keys) {
        let found = faults(load(variables));

        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].key, format!("pictures.{key}"));
    }
}

#[test]
fn logs_are_text_with_a_line_for_each_request_unless_the_settings_say_otherwise() {
    let plain = load(&[]).unwrap();
    assert_eq!((plain.log_format, plain.api.access_log), (LogFormat::Text, true));
    let variables = [("DIFFUSER_LOG_FORMAT", "JSON"), ("DIFFUSER_LOG_ACCESS", "off")];
    let config = load(&variables).unwrap();
    assert_eq!((config.log_format, config.api.access_log), (LogFormat::Json, false));
    assert_eq!(faults(load(&[("DIFFUSER_LOG_FORMAT", "xml")]))[0].key, "log.format");
}

#[test]
fn there_are_traces_if_there_is_a_collector_and_they_bear_the_services_name() {
    let traces = |variables: Variables| load(variables).unwrap().traces;
    let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    assert_eq!(traces(&[("DIFFUSER_TRACES_SAMPLE_RATIO", "0.5")]), None);
    let plain = traces(&[general]).unwrap();
    assert_eq!((plain.endpoint.as_str(), plain.sample_ratio), ("http://collector:4318", 1.0));
    assert_eq!(plain.service_name, "Diffuser API");
    assert_eq!(plain.service_version, env!("CARGO_PKG_VERSION"));
    let own = [
        general,
        ("DIFFUSER_TRACES_ENDPOINT", "https://own/otlp"),
        ("DIFFUSER_TRACES_SAMPLE_RATIO", "0.25"),
        ("DIFFUSER_APP_NAME", "Mine"),
    ];
    let own = traces(&own).unwrap();
    assert_eq!((own.endpoint.as_str(), own.sample_ratio), ("https://own/otlp", 0.25), "ours wins");
    assert_eq!(own.service_name, "Mine");
    let named = [general, ("OTEL_SERVICE_NAME", "edits"), ("DIFFUSER_APP_NAME", "Mine")];
    assert_eq!(traces(&named).unwrap().service_name, "edits");
}

#[test]
fn collectors_without_an_address_and_shares_that_are_none_are_faults() {
    for endpoint in ["collector:4318", "grpc://collector", "http://", "http://a/?b=c", "/v1"] {
        let found = faults(load(&[("DIFFUSER_TRACES_ENDPOINT", endpoint)]));
        assert_eq!(found[0].key, "traces.endpoint", "{endpoint}");
    }
    for ratio in ["-0.1", "1.5", "nan", "half"] {
        let found = faults(load(&[("DIFFUSER_TRACES_SAMPLE_RATIO", ratio)]));
        assert_eq!(found[0].key, "traces.sample_ratio", "{ratio}");
    }
}
