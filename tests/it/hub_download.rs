//! Downloads of pipelines, from a server on this machine that plays the hub.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use diffuser_api::hub::{HubConfig, HubError, Progress, RepositoryId, fetch_snapshot};

use crate::support::fake_hub::{COMMIT, FakeHub, Faults, NEXT_COMMIT, Request};

const MODEL_INDEX: &str = r#"{
    "_class_name": "QwenImageEditPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"]
}"#;

const SHARDS: &str = r#"{"weight_map": {
    "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
    "b": "diffusion_pytorch_model-00002-of-00002.safetensors"
}}"#;

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// What the pipeline needs of [`repository_files`].
const NEEDED: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    VAE,
];

fn repository_files() -> BTreeMap<String, Bytes> {
    let shard = "transformer/diffusion_pytorch_model";
    [
        ("README.md", "# A model"),
        ("assets/picture.png", "not needed"),
        ("model_index.json", MODEL_INDEX),
        ("scheduler/scheduler_config.json", "{}"),
        ("tokenizer/merges.txt", "a b"),
        ("tokenizer/vocab.json", "{}"),
        ("transformer/config.json", "{\"a\": 1}"),
        (&format!("{shard}-00001-of-00002.safetensors"), "first"),
        (&format!("{shard}-00002-of-00002.safetensors"), "second"),
        (&format!("{shard}.fp16.safetensors"), "not needed"),
        (&format!("{shard}.safetensors.index.json"), SHARDS),
        ("vae/config.json", "{\"b\": 2}"),
        ("vae/diffusion_pytorch_model.bin", "not needed"),
        (VAE, "the weights of the VAE"),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), Bytes::copy_from_slice(text.as_bytes())))
    .collect()
}

impl FakeHub {
    fn start() -> Self {
        Self::with(repository_files())
    }

    fn fetch(&self) -> Result<std::path::PathBuf, HubError> {
        fetch(&self.config(), None)
    }
}

fn fetch(config: &HubConfig, revision: Option<&str>) -> Result<std::path::PathBuf, HubError> {
    let repository: RepositoryId = "owner/model".parse().unwrap();
    fetch_snapshot(&repository, revision, config, Progress::Log)
}

pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(files_in(&path).iter().map(|inner| format!("{name}/{inner}")));
        } else {
            files.push(name);
        }
    }
    files.sort();
    files
}

#[test]
fn a_download_brings_the_files_that_a_pipeline_needs_and_no_others() {
    let hub = FakeHub::start();

    let folder = hub.fetch().unwrap();

    assert_eq!(files_in(&folder), NEEDED);
    assert_eq!(hub.files_asked_for(), NEEDED);
    for file in NEEDED {
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), hub.hub.files[*file]);
    }
    assert!(folder.ends_with(format!("models--owner--model/snapshots/{COMMIT}")));
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let hub = FakeHub::start();
    let first = hub.fetch().unwrap();
    hub.files_asked_for();

    let second = hub.fetch().unwrap();

    assert_eq!(first, second);
    assert_eq!(hub.files_asked_for(), Vec::<String>::new());
}

#[test]
fn a_file_of_the_wrong_length_is_fetched_again() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    hub.files_asked_for();
    std::fs::write(folder.join(VAE), "half").unwrap();

    hub.fetch().unwrap();

    assert_eq!(hub.files_asked_for(), [VAE]);
    assert_eq!(std::fs::read(folder.join(VAE)).unwrap(), hub.hub.files[VAE]);
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let mut files = repository_files();
    let large: Bytes = (0..25_000_000_u32).map(|index| index.to_le_bytes()[1]).collect();
    files.insert(VAE.to_owned(), large.clone());
    let hub = FakeHub::with(files);
    hub.fail(Faults { cut_from: Some(20_000_000), ..Faults::default() });
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(VAE), "{error}");
    let asked = hub.ranges_asked_for(VAE);
    assert!(asked.contains(&"bytes=0-9999999".to_owned()), "{asked:?}");

    hub.fail(Faults::default());
    let folder = hub.fetch().unwrap();

    assert_eq!(hub.ranges_asked_for(VAE), ["bytes=20000000-25000000"]);
    assert_eq!(std::fs::read(folder.join(VAE)).unwrap(), large);
}

#[test]
fn a_server_that_recovers_is_waited_for() {
    let hub = FakeHub::start();
    hub.fail(Faults { file_status: Some(("vae/config.json", 500, 2)), ..Faults::default() });

    let folder = hub.fetch().unwrap();

    assert_eq!(files_in(&folder), NEEDED);
}

#[test]
fn statuses_are_told_apart() {
    let hub = FakeHub::start();
    let failing = |status, error_code| {
        hub.fail(Faults { list_status: Some(status), error_code, ..Faults::default() });
        hub.fetch().unwrap_err()
    };

    let missing = failing(404, Some("RepoNotFound"));
    assert!(matches!(missing, HubError::NotFound { .. }), "{missing:?}");
    assert!(missing.to_string().contains("owner/model"), "{missing}");
    // So the real hub answers unknown_keys who ask for what is not there.
    let hidden = failing(401, Some("RepoNotFound"));
    assert!(matches!(hidden, HubError::NotFound { .. }), "{hidden:?}");
    let unknown = failing(401, None);
    assert!(matches!(unknown, HubError::Denied { status: 401, .. }), "{unknown:?}");
    let gated = failing(403, Some("GatedRepo"));
    assert!(matches!(gated, HubError::Denied { status: 403, .. }), "{gated:?}");
    assert!(gated.to_string().contains("set HF_TOKEN"), "{gated}");
    let broken = failing(500, None);
    assert!(matches!(broken, HubError::Status { status: 500, .. }), "{broken:?}");
    assert!(broken.to_string().contains("/api/models/owner/model"), "{broken}");
}

#[test]
fn a_refused_file_is_an_error_and_never_content() {
    let hub = FakeHub::start();
    for (status, tries) in [(403, 1), (404, 1), (500, 4)] {
        hub.files_asked_for();
        hub.fail(Faults { file_status: Some((VAE, status, usize::MAX)), ..Faults::default() });

        let error = hub.fetch().unwrap_err();

        let requests = hub.hub.requests.lock().unwrap();
        let asked = requests.iter().filter(|request| request.path.ends_with(VAE));
        assert_eq!(asked.count(), tries, "{error}");
        drop(requests);
        let is_told = matches!(
            (status, &error),
            (403, HubError::Denied { status: 403, .. })
                | (404, HubError::Repository { .. })
                | (500, HubError::Status { status: 500, .. })
        );
        assert!(is_told, "{error:?}");
        assert!(hub.offline_lacks(VAE));
    }
}

impl FakeHub {
    /// Whether the cache says that it lacks `file`.
    fn offline_lacks(&self, file: &str) -> bool {
        // The name is noted at the end of a download, so the commit is asked for.
        match fetch(&self.offline(), Some(COMMIT)) {
            Err(HubError::NotCached { file: lacking, .. }) => lacking == file,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_token_is_sent_if_there_is_one() {
    let hub = FakeHub::start();
    let with_token = HubConfig { token: Some("hf_secret".to_owned()), ..hub.config() };

    fetch(&with_token, None).unwrap();

    let requests = std::mem::take(&mut *hub.hub.requests.lock().unwrap());
    let to_the_hub = |request: &&Request| !request.path.starts_with("/content/");
    for request in requests.iter().filter(to_the_hub) {
        assert_eq!(request.token.as_deref(), Some("Bearer hf_secret"), "{}", request.path);
    }
    std::fs::remove_dir_all(hub.cache.path()).unwrap();
    hub.fetch().unwrap();
    let requests = hub.hub.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.token.is_none()));
}

#[test]
fn a_token_that_is_refused_is_told_apart_from_none() {
    let hub = FakeHub::start();
    hub.fail(Faults { list_status: Some(401), ..Faults::default() });
    let with_token = HubConfig { token: Some("hf_secret".to_owned()), ..hub.config() };

    let message = fetch(&with_token, None).unwrap_err().to_string();

    assert!(message.contains("not a valid one"), "{message}");
    assert!(!message.contains("hf_secret"), "{message}");
}

#[test]
fn offline_the_cache_is_used_and_nobody_is_asked() {
    let hub = FakeHub::start();
    let online = hub.fetch().unwrap();
    hub.hub.requests.lock().unwrap().clear();

    let offline = fetch(&hub.offline(), None).unwrap();

    assert_eq!(online, offline);
    assert!(hub.hub.requests.lock().unwrap().is_empty());
}

#[test]
fn offline_the_first_missing_file_is_named() {
    let hub = FakeHub::start();
    let message = fetch(&hub.offline(), None).unwrap_err().to_string();
    assert!(message.contains("model_index.json"), "{message}");
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");

    let folder = hub.fetch().unwrap();
    let shard = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
    std::fs::remove_file(folder.join(shard)).unwrap();

    let message = fetch(&hub.offline(), None).unwrap_err().to_string();
    assert!(message.contains(shard), "{message}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_replaced_by_a_whole_cache_only() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    let unreachable = HubConfig {
        // Nobody listens on the port of the discard service.
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..hub.config()
    };

    assert_eq!(fetch(&unreachable, None).unwrap(), folder);

    std::fs::remove_file(folder.join(VAE)).unwrap();
    let error = fetch(&unreachable, None).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("http://127.0.0.1:9/"), "{error}");
}

/// Everything that may come in place of the list of files.
fn refusals() -> Vec<Faults> {
    let status = |list_status, error_code| Faults {
        list_status: Some(list_status),
        error_code,
        ..Faults::default()
    };
    let body = |body| Faults { list_body: Some(body), ..Faults::default() };
    vec![
        status(401, None),
        status(401, Some("RepoNotFound")),
        status(403, Some("GatedRepo")),
        status(404, None),
        status(407, None),
        status(429, None),
        status(500, None),
        status(503, None),
        body("<!DOCTYPE html><html>Welcome to the hotel</html>"),
        body("{}"),
        body("[]"),
        body(r#"{"sha": "main", "siblings": []}"#),
        Faults { login_page: true, ..Faults::default() },
    ]
}

#[test]
fn a_hub_that_refuses_is_replaced_by_a_whole_cache_only() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    for faults in refusals() {
        let what = format!("{:?} {:?}", faults.list_status, faults.list_body);
        hub.fail(faults);
        hub.files_asked_for();

        assert_eq!(hub.fetch().unwrap(), folder, "{what}");
        assert!(hub.files_asked_for().is_empty(), "{what}");
    }

    std::fs::remove_file(folder.join(VAE)).unwrap();
    for faults in refusals().into_iter().filter(|faults| faults.list_status < Some(429)) {
        hub.fail(faults);
        hub.fetch().unwrap_err();
    }
}

#[test]
fn a_hub_that_says_nothing_is_not_waited_for_long_where_the_cache_is_whole() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    hub.fail(Faults { silent: true, ..Faults::default() });
    let start = std::time::Instant::now();

    assert_eq!(hub.fetch().unwrap(), folder);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn new_files_that_are_refused_leave_those_of_the_last_download() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    // Upstream goes on: the same branch, another commit, whose files are gated.
    let mut moved = repository_files();
    moved.insert("vae/config.json".to_owned(), Bytes::from_static(b"{\"b\": 3}"));
    let next = FakeHub::with(moved);
    next.fail(Faults {
        file_status: Some(("vae/config.json", 403, usize::MAX)),
        ..Faults::default()
    });
    let config = HubConfig { endpoint: next.config().endpoint, ..hub.config() };
    let listed_as_next = folder.parent().unwrap().join(NEXT_COMMIT);
    std::fs::rename(&folder, &listed_as_next).unwrap();
    let refs = folder.parent().unwrap().parent().unwrap().join("refs/main");
    std::fs::write(refs, NEXT_COMMIT).unwrap();

    assert_eq!(fetch(&config, None).unwrap(), listed_as_next);
}

#[test]
fn a_revision_that_the_hub_does_not_have_is_a_mistake_even_if_it_was_here() {
    let hub = FakeHub::start();
    hub.fetch().unwrap();
    hub.fail(Faults {
        list_status: Some(404),
        error_code: Some("RevisionNotFound"),
        ..Faults::default()
    });

    let error = hub.fetch().unwrap_err();

    assert!(matches!(error, HubError::NotFound { .. }), "{error:?}");
}

#[test]
fn a_refusal_says_what_to_do() {
    let hub = FakeHub::start();
    let said = |faults| {
        hub.fail(faults);
        hub.fetch().unwrap_err().to_string()
    };
    let status = |status| Faults { list_status: Some(status), ..Faults::default() };

    assert!(said(status(429)).contains("429") && said(status(429)).contains("later"));
    assert!(said(status(503)).contains("503") && said(status(503)).contains("later"));
    assert!(said(status(401)).contains("401") && said(status(401)).contains("HF_TOKEN"));
    let page = said(Faults { login_page: true, ..Faults::default() });
    assert!(page.contains("login page"), "{page}");
}

#[test]
fn a_pinned_revision_is_the_one_that_is_fetched() {
    let hub = FakeHub::start();

    let folder = fetch(&hub.config(), Some("next")).unwrap();

    assert!(folder.ends_with(NEXT_COMMIT));
    let requests = std::mem::take(&mut *hub.hub.requests.lock().unwrap());
    assert!(requests[0].path.ends_with("/revision/next"));
    let of_hub = requests[1..].iter().filter(|request| request.path.contains("/resolve/"));
    for request in of_hub {
        // By commit, so that a branch that moves meanwhile mixes nothing.
        assert!(request.path.contains(NEXT_COMMIT), "{}", request.path);
    }
    let unknown = fetch(&hub.config(), Some("v9")).unwrap_err();
    assert!(unknown.to_string().contains("'v9'"), "{unknown}");
}

#[test]
fn a_pinned_commit_that_is_here_needs_no_hub() {
    let hub = FakeHub::start();
    let first = fetch(&hub.config(), Some(COMMIT)).unwrap();
    hub.hub.requests.lock().unwrap().clear();

    let second = fetch(&hub.config(), Some(COMMIT)).unwrap();

    assert_eq!(first, second);
    assert!(hub.hub.requests.lock().unwrap().is_empty());
}

#[test]
#[cfg(unix)]
fn content_that_two_revisions_share_is_fetched_once() {
    let hub = FakeHub::start();
    let first = hub.fetch().unwrap();
    assert!(!hub.ranges_asked_for(VAE).is_empty());

    let second = fetch(&hub.config(), Some("next")).unwrap();

    assert_ne!(first, second);
    assert_eq!(hub.ranges_asked_for(VAE), Vec::<String>::new());
    assert_eq!(files_in(&second), NEEDED);
    assert_eq!(std::fs::read(second.join(VAE)).unwrap(), hub.hub.files[VAE]);
}

#[test]
fn wrong_bytes_are_refused_and_thrown_away() {
    for bare_list in [false, true] {
        let hub = FakeHub::start();
        hub.fail(Faults { altered: Some(VAE), bare_list, ..Faults::default() });

        let error = hub.fetch().unwrap_err();

        assert!(matches!(&error, HubError::WrongChecksum { file, .. } if file == VAE), "{error:?}");
        assert!(hub.offline_lacks(VAE));
        hub.fail(Faults::default());
        hub.fetch().unwrap();
    }
}

#[test]
fn a_body_that_ends_early_is_refused_even_if_it_says_so() {
    for file in [VAE, "tokenizer/merges.txt"] {
        let hub = FakeHub::start();
        hub.fail(Faults { short: Some(file), ..Faults::default() });

        let error = hub.fetch().unwrap_err();

        assert!(matches!(&error, HubError::WrongSize { file: it, .. } if it == file), "{error:?}");
        hub.fail(Faults::default());
        let folder = hub.fetch().unwrap();
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), hub.hub.files[file]);
    }
}

#[test]
fn a_mirror_that_knows_no_sizes_will_do() {
    let hub = FakeHub::start();
    hub.fail(Faults { bare_list: true, ..Faults::default() });

    let folder = hub.fetch().unwrap();

    assert_eq!(files_in(&folder), NEEDED);
}

#[test]
fn a_repository_without_a_part_of_its_pipeline_is_refused_before_the_weights() {
    let mut files = repository_files();
    files.remove("vae/config.json");
    let hub = FakeHub::with(files);

    let message = hub.fetch().unwrap_err().to_string();

    assert!(message.contains("there is no vae/config.json"), "{message}");
    assert_eq!(hub.files_asked_for(), ["model_index.json"]);
}

#[test]
fn a_repository_that_is_no_pipeline_says_so() {
    let mut files = repository_files();
    files.remove("model_index.json");
    files.retain(|name, _| !name.ends_with(".safetensors"));
    let hub = FakeHub::with(files);

    let message = hub.fetch().unwrap_err().to_string();

    assert_eq!(message, "owner/model: there is no model_index.json");
}

#[test]
fn pull_prints_the_folder_and_nothing_else() {
    let hub = FakeHub::start();
    let pull = |model| {
        std::process::Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["pull", model])
            .env("HF_ENDPOINT", hub.config().endpoint)
            .env("HF_HUB_CACHE", hub.cache.path())
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap()
    };

    let done = pull("owner/model");

    let printed = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{printed}");
    let folder = fetch(&hub.offline(), None).unwrap();
    assert_eq!(printed, format!("{}\n", folder.display()));

    let refused = pull("no-owner");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(refused.stdout.is_empty());
    assert_eq!(
        message,
        "diffuser-api: 'no-owner' is no repository: \
         expected owner/name, such as Qwen/Qwen-Image-Edit\n"
    );
}
