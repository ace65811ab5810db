//! Single files of the hub: `pull --file`, and `hf:` as a model's id or among its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use axum::body::Bytes;
use diffuser_api::config::{Config, Environment, Flags, Sources};
use diffuser_api::hub::{
    Companions, FetchedFiles, FilePattern, HubConfig, HubError, Progress, SelectionFault,
    fetch_files,
};
use diffuser_api::model::{FileSource, ModelConfig, ModelFiles};

use crate::hub_download::files_in;
use crate::support::fake_hub::{COMMIT, FakeHub, Faults};
use crate::support::server::pooled_files;
use crate::weight_files::{config_of, data, edited_by, recorded};

const TRANSFORMER: &str = "qwen-image-edit-2511-Q8_0.gguf";
const OTHER: &str = "qwen-image-edit-2511-Q4_0.gguf";
const TEXT_ENCODER: &str = "text_encoder/Qwen2.5-VL-7B-Instruct-Q8_0.gguf";
const MMPROJ: &str = "mmproj/Qwen2.5-VL-7B-Instruct-mmproj-F16.gguf";
const VAE: &str = "VAE/Qwen_Image-VAE.safetensors";

/// A repository as publishers of GGUF files have them.
fn repository() -> BTreeMap<String, Bytes> {
    let of = |path: &str| Bytes::from(std::fs::read(data().join(path)).unwrap());
    [
        ("README.md", Bytes::from_static(b"# Files")),
        (TRANSFORMER, of("gguf/Q8_0.gguf")),
        (OTHER, of("gguf/Q4_0.gguf")),
        (TEXT_ENCODER, of("llama/text_encoder.gguf")),
        (MMPROJ, of("llama/mmproj.gguf")),
        (VAE, of("plain/vae.safetensors")),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

/// Files of these names with a few bytes each.
fn stubs(names: &[&str]) -> BTreeMap<String, Bytes> {
    names.iter().map(|name| ((*name).to_owned(), Bytes::from((*name).to_owned()))).collect()
}

fn fetch(
    config: &HubConfig,
    patterns: &[&str],
    companions: Companions,
) -> Result<FetchedFiles, HubError> {
    let patterns: Vec<FilePattern> = patterns.iter().map(|one| one.parse().unwrap()).collect();
    let repository = "owner/model".parse().unwrap();
    fetch_files(&repository, None, &patterns, companions, config, Progress::Log)
}

fn names(fetched: &FetchedFiles, paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| path.strip_prefix(&fetched.folder).unwrap().display().to_string();
    paths.iter().map(name).collect()
}

fn message(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Why there is no model of `config`.
fn fault(config: &ModelConfig, hub: &HubConfig) -> String {
    message(&ModelFiles::find(config, hub).map(drop).unwrap_err())
}

/// The recorded edit by the model of `config`: rows of RGB.
fn picture(config: &ModelConfig, hub: &HubConfig) -> Vec<u8> {
    let files = ModelFiles::find(config, hub).unwrap_or_else(|error| panic!("{}", message(&error)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(edited_by(&recorded(), pooled_files(files)))
}

/// The model `id`, with the small configurations of the tiny files.
fn model(id: &str) -> ModelConfig {
    let tiny = config_of(&recorded(), "gguf/Q8_0");
    let mut config = ModelConfig { id: id.to_owned(), ..tiny };
    config.files.transformer = None;
    config.files.text_encoder = None;
    config.files.vae = None;
    config
}

fn on_the_hub(repository: &str, file: &str) -> FileSource {
    format!("hf:{repository}/{file}").parse().unwrap()
}

/// The picture of the same files where they lie here.
fn picture_of_local_files() -> Vec<u8> {
    let here = |path: &str| Some(FileSource::from(data().join(path)));
    let mut config = model("unused");
    config.files.transformer = here("gguf/Q8_0.gguf");
    config.files.text_encoder = here("llama/text_encoder.gguf");
    config.files.mmproj = here("llama/mmproj.gguf");
    config.files.vae = here("plain/vae.safetensors");
    picture(&config, &crate::support::checkpoints::offline_hub())
}

#[test]
fn patterns_bring_the_files_that_match_and_no_others() {
    let hub = FakeHub::with(stubs(&["a-Q4_K_M.gguf", "b/c-Q4_K_M.gguf", "d-Q8_0.gguf", "e/f.txt"]));

    let fetched = fetch(&hub.config(), &["*Q4_K_?.gguf", "e/*"], Companions::Leave).unwrap();

    let expected = ["a-Q4_K_M.gguf", "b/c-Q4_K_M.gguf", "e/f.txt"];
    assert_eq!(names(&fetched, &fetched.files), expected);
    assert_eq!(hub.files_asked_for(), expected);
    assert_eq!(files_in(&fetched.folder), expected);
    assert_eq!(std::fs::read(&fetched.files[1]).unwrap(), b"b/c-Q4_K_M.gguf");
    assert!(fetched.folder.ends_with(format!("models--owner--model/snapshots/{COMMIT}")));
    // Again, or without the hub: from the cache.
    assert_eq!(fetch(&hub.config(), &["*Q4*", "e/*"], Companions::Leave).unwrap(), fetched);
    let unreachable = HubConfig { endpoint: "http://127.0.0.1:9".to_owned(), ..hub.config() };
    for config in [hub.offline(), unreachable] {
        assert_eq!(fetch(&config, &["*Q4*", "e/*"], Companions::Leave).unwrap(), fetched);
    }
    assert!(hub.files_asked_for().is_empty());
}

#[test]
fn a_file_that_was_cut_goes_on_where_it_stopped() {
    let large: Bytes = (0..25_000_000_u32).map(|index| index.to_le_bytes()[1]).collect();
    let hub = FakeHub::with([("a-Q4_0.gguf".to_owned(), large.clone())].into());
    hub.fail(Faults { cut_from: Some(20_000_000), ..Faults::default() });
    let error = fetch(&hub.config(), &["*Q4_0*"], Companions::Fetch).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    hub.ranges_asked_for("a-Q4_0.gguf");

    hub.fail(Faults::default());
    let fetched = fetch(&hub.config(), &["*Q4_0*"], Companions::Fetch).unwrap();

    // On a busy machine less than the 20 MB before the cut may be through by then.
    let asked = hub.ranges_asked_for("a-Q4_0.gguf");
    assert!(!asked.is_empty(), "{asked:?}");
    assert!(asked.iter().all(|range| !range.starts_with("bytes=0-")), "{asked:?}");
    assert_eq!(std::fs::read(&fetched.files[0]).unwrap(), large);
}

#[test]
fn bytes_other_than_those_announced_are_thrown_away() {
    let hub = FakeHub::with(stubs(&["a.gguf"]));
    hub.fail(Faults { altered: Some("a.gguf"), ..Faults::default() });

    let error = fetch(&hub.config(), &["a.gguf"], Companions::Leave).unwrap_err();

    assert!(matches!(error, HubError::WrongChecksum { .. }), "{error:?}");
    let gone = fetch(&hub.offline(), &["a.gguf"], Companions::Leave).unwrap_err();
    assert!(matches!(gone, HubError::NotCached { .. }), "{gone:?}");
}

#[test]
fn a_pattern_that_matches_nothing_is_answered_with_what_there_is() {
    let hub = FakeHub::with(stubs(&["README.md", "a-Q4_0.gguf", "b.safetensors"]));

    // Also if another one matches.
    let error = fetch(&hub.config(), &["*Q4_0*", "*Q9*"], Companions::Fetch).unwrap_err();

    assert_eq!(
        error.to_string(),
        "owner/model: no file matches '*Q9*'; there is 'a-Q4_0.gguf', 'b.safetensors', 'README.md'"
    );
    assert!(hub.files_asked_for().is_empty());
    let offline = fetch(&hub.offline(), &["*Q9*"], Companions::Fetch).unwrap_err().to_string();
    assert!(offline.contains("HF_HUB_OFFLINE") && offline.contains("*Q9*"), "{offline}");
}

#[test]
fn a_split_file_is_refused_before_anything_is_fetched() {
    let hub = FakeHub::with(stubs(&["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]));

    let error = fetch(&hub.config(), &["a-*"], Companions::Fetch).unwrap_err();

    let is_split = |fault: &SelectionFault| matches!(fault, SelectionFault::Split { parts: 2, .. });
    assert!(matches!(&error, HubError::Selection { fault, .. } if is_split(fault)), "{error:?}");
    assert!(hub.files_asked_for().is_empty());
}

#[test]
fn what_goes_with_a_transformer_comes_along_unless_it_is_not_wanted() {
    let hub = FakeHub::with(repository());

    let alone = fetch(&hub.config(), &["*2511-Q8_0*"], Companions::Leave).unwrap();
    assert_eq!(
        (names(&alone, &alone.files), alone.companions.len()),
        (vec![TRANSFORMER.to_owned()], 0)
    );
    assert_eq!(hub.files_asked_for(), [TRANSFORMER]);

    let set = fetch(&hub.config(), &["*2511-Q8_0*"], Companions::Fetch).unwrap();
    assert_eq!(names(&set, &set.files), [TRANSFORMER]);
    assert_eq!(names(&set, &set.companions), [TEXT_ENCODER, MMPROJ, VAE]);
    assert_eq!(hub.files_asked_for(), [VAE, MMPROJ, TEXT_ENCODER]);
}

#[test]
fn names_that_lead_out_of_the_cache_are_no_files() {
    let hub =
        FakeHub::with(stubs(&["../../../../evil.gguf", "/evil.gguf", "a\\evil.gguf", "a.gguf"]));

    let fetched = fetch(&hub.config(), &["*"], Companions::Leave).unwrap();

    assert_eq!(names(&fetched, &fetched.files), ["a.gguf"]);
    assert_eq!(hub.files_asked_for(), ["a.gguf"]);
}

#[test]
fn a_pulled_set_is_served_by_the_name_of_its_transformer_without_the_hub() {
    let hub = FakeHub::with(repository());
    fetch(&hub.config(), &["*2511-Q8_0*"], Companions::Fetch).unwrap();
    hub.files_asked_for();

    let ours = picture(&model(&format!("hf:owner/model/{TRANSFORMER}")), &hub.offline());

    assert_eq!(ours, picture_of_local_files());
    // What is here is not asked for again.
    picture(&model(&format!("hf:owner/model/{TRANSFORMER}")), &hub.config());
    assert!(hub.hub.requests.lock().unwrap().is_empty());
}

#[test]
fn files_of_several_repositories_are_fetched_and_served_together() {
    let hub = FakeHub::with(repository());
    let mut config = model(&format!("hf:owner/model@v1/{TRANSFORMER}"));
    config.files.text_encoder = Some(on_the_hub("owner/encoder", TEXT_ENCODER));
    config.files.mmproj = Some(on_the_hub("owner/encoder@next", MMPROJ));
    config.files.vae = Some(on_the_hub("owner/vae", VAE));

    let ours = picture(&config, &hub.config());

    assert_eq!(ours, picture_of_local_files());
    assert_eq!(hub.files_asked_for(), [VAE, MMPROJ, TRANSFORMER, TEXT_ENCODER]);
    let encoders = hub.cache.path().join("models--owner--encoder/snapshots");
    assert_eq!(std::fs::read_dir(encoders).unwrap().count(), 2);
    // As a setting of its own, the transformer is the same.
    let mut named = ModelConfig { id: "unused".to_owned(), ..config };
    named.files.transformer = Some(on_the_hub("owner/model@v1", TRANSFORMER));
    assert_eq!(picture(&named, &hub.offline()), ours);
}

#[test]
fn what_lies_in_the_cached_repository_goes_with_a_file_in_any_folder_of_it() {
    let mut files = repository();
    let transformer = files.remove(TRANSFORMER).unwrap();
    files.insert(format!("Q8_0/{TRANSFORMER}"), transformer);
    let hub = FakeHub::with(files);
    fetch(&hub.config(), &["Q8_0/*"], Companions::Fetch).unwrap();

    let found =
        ModelFiles::find(&model(&format!("hf:owner/model/Q8_0/{TRANSFORMER}")), &hub.offline());

    assert_eq!(
        found.unwrap_or_else(|error| panic!("{}", message(&error))).card().id,
        TRANSFORMER[..25]
    );
}

#[test]
fn a_file_beside_two_that_are_named_is_one_file() {
    let hub = FakeHub::with(repository());
    let fetched = fetch(&hub.config(), &["*"], Companions::Leave).unwrap();
    let flat = tempfile::tempdir().unwrap();
    for path in &fetched.files {
        std::fs::copy(path, flat.path().join(path.file_name().unwrap())).unwrap();
    }
    let here =
        |path: &str| Some(FileSource::from(flat.path().join(Path::new(path).file_name().unwrap())));
    let mut config = model("unused");
    config.files.transformer = here(TRANSFORMER);
    config.files.text_encoder = here(TEXT_ENCODER);

    // Vision tower and VAE lie beside both.
    ModelFiles::find(&config, &hub.offline()).unwrap_or_else(|error| panic!("{}", message(&error)));
}

#[test]
fn offline_a_file_that_is_not_here_is_told_with_the_setting_that_names_it() {
    let hub = FakeHub::with(repository());
    let id = format!("hf:owner/model/{TRANSFORMER}");

    let said = fault(&model(&id), &hub.offline());
    assert!(said.starts_with("model.id: "), "{said}");
    assert!(said.contains("HF_HUB_OFFLINE") && said.contains(TRANSFORMER), "{said}");

    fetch(&hub.config(), &[TRANSFORMER], Companions::Leave).unwrap();
    let mut config = model(&id);
    config.files.vae = Some(on_the_hub("owner/model", VAE));
    let said = fault(&config, &hub.offline());
    assert!(said.starts_with("model.files.vae: ") && said.contains(VAE), "{said}");
    // A file that nothing names is told with an example.
    let said = fault(&model(&id), &hub.offline());
    assert!(
        said.starts_with("model.files.text_encoder: ") && said.contains("hf:unsloth/"),
        "{said}"
    );
    assert!(hub.files_asked_for() == [TRANSFORMER]);
}

#[test]
fn what_is_no_file_of_the_hub_is_told_as_such() {
    let hub = FakeHub::with(repository());

    let said = fault(&model("hf:owner/model"), &hub.config());
    assert!(said.starts_with("model.id: ") && said.contains("hf:OWNER/NAME/PATH"), "{said}");
    let said = fault(&model("hf:owner/model/no.gguf"), &hub.config());
    assert!(said.contains("no file matches 'no.gguf'") && said.contains(TRANSFORMER), "{said}");

    let environment = [("DIFFUSER_FILES_VAE", "hf:owner"), ("DIFFUSER_MODEL_ID", "demo")];
    let environment = Environment::from_iter(environment.to_vec());
    let said =
        Config::load(&Sources { environment, flags: Flags::default() }).unwrap_err().to_string();
    assert!(said.contains("model.files.vae") && said.contains("hf:OWNER/NAME/FILE"), "{said}");
}

#[test]
fn a_repository_of_files_says_which_it_has_and_how_to_name_one() {
    let hub = FakeHub::with(repository());
    let config = model("owner/model");

    let online = fault(&config, &hub.config());
    for part in [TRANSFORMER, OTHER, VAE, "hf:owner/model/FILE", "pull owner/model --file"] {
        assert!(online.contains(part), "{part}: {online}");
    }
    assert!(!online.contains("README"), "{online}");

    fetch(&hub.config(), &[OTHER], Companions::Leave).unwrap();
    let offline = fault(&config, &hub.offline());
    assert!(offline.contains(OTHER) && offline.contains("hf:owner/model/FILE"), "{offline}");
    assert!(!offline.contains(TRANSFORMER), "{offline}");
}

#[test]
fn what_is_meant_as_a_file_of_the_hub_but_written_otherwise_is_told_how_to_write_it() {
    let hub = FakeHub::with(repository());
    let page = "https://huggingface.co/owner/model";
    for (id, hint) in [
        ("owner/model/a.gguf".to_owned(), "'hf:owner/model/a.gguf'"),
        (format!("{page}/blob/main/b/a.gguf"), "'hf:owner/model/b/a.gguf'"),
        (format!("{page}/resolve/v1/a.gguf?download=true"), "'hf:owner/model@v1/a.gguf'"),
        (format!("{page}/tree/main"), "'owner/model'"),
    ] {
        let said = fault(&model(&id), &hub.offline());

        assert!(said.ends_with(&format!("give {hint}")), "{id}: {said}");
    }
}

fn pull(hub: &FakeHub, arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
        .args([&["pull", "owner/model"], arguments].concat())
        .env("HF_ENDPOINT", hub.config().endpoint)
        .env("HF_HUB_CACHE", hub.cache.path())
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap()
}

#[test]
fn pull_prints_the_paths_and_apart_from_them_what_is_missing() {
    let hub = FakeHub::with(repository());
    let snapshot = hub.cache.path().join(format!("models--owner--model/snapshots/{COMMIT}"));
    let lines = |names: &[&str]| -> String {
        names.iter().map(|name| format!("{}\n", snapshot.join(name).display())).collect()
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();

    let alone = pull(&hub, &["--file", "*2511-Q8_0*", "--no-companions"]);
    assert_eq!(text(alone.stdout), lines(&[TRANSFORMER]));
    let said = text(alone.stderr);
    for setting in ["text_encoder", "mmproj", "vae"] {
        let example = format!("model.files.{setting} = \"hf:");
        let naming = said.lines().filter(|line| line.contains(&example));
        assert_eq!(naming.count(), 1, "{said}");
    }

    let set = pull(&hub, &["--file", "*2511-Q8_0*"]);
    assert_eq!(text(set.stdout), lines(&[TRANSFORMER, TEXT_ENCODER, MMPROJ, VAE]));
    let said = text(set.stderr);
    assert!(set.status.success() && !said.contains("missing"), "{said}");

    let refused = pull(&hub, &["--file", "["]);
    assert!(!refused.status.success() && text(refused.stderr).contains("no pattern of file names"));
}
