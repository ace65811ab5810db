//! What a model's name means: a model inside the program, a folder, or a repository
//! on the hub. What is none of these is told what it is instead.

use std::path::{Path, PathBuf};

use super::file_source::{FileSource, LocalFile};
use super::{LoadError, ModelConfig, embedded, files, published};
use crate::checkpoint::Snapshot;
use crate::hub::{HubConfig, HubError, HubFile, Progress, RepositoryId, fetch_snapshot};

pub(super) const MODEL_INDEX: &str = "model_index.json";

/// What would be a model.
const WANTED: &str = "a model is a folder with a model_index.json, as diffusers saves it, a file \
                      of Qwen-Image's transformer (safetensors or GGUF) with the others beside \
                      it, such a file on the hub (hf:OWNER/NAME/FILE), or a repository there \
                      such as 'Qwen/Qwen-Image-Edit'";

/// The files that `config.id` means, and the name that clients see.
///
/// # Errors
/// [`LoadError`] says what it is instead of a model, or why it could not be fetched.
pub(super) fn find(config: &ModelConfig, hub: &HubConfig) -> Result<(Snapshot, String), LoadError> {
    let id = &config.id;
    let base_of = |id: &str| base(id, hub);
    let file = match config.files.transformer {
        Some(_) => None,
        None => file_of(config, hub)?,
    };
    if config.files.are_named() || file.is_some() {
        let named = config.files.local(hub)?;
        return files::from_choices(&named, file.as_ref(), config, base_of);
    }
    let path = Path::new(id);
    if path.is_dir() && !path.join(MODEL_INDEX).is_file() {
        let unknown = || LoadError::UnknownModel { id: id.clone(), reason: kind_of_folder(path) };
        return files::from_folder(path, config, base_of)?.ok_or_else(unknown);
    }
    let found = whole_checkpoint(config, hub)?;
    refuse_settings_of_files(config)?;
    Ok(found)
}

/// The checkpoint that says itself what it is: inside the program, a folder, or a repository.
fn whole_checkpoint(
    config: &ModelConfig,
    hub: &HubConfig,
) -> Result<(Snapshot, String), LoadError> {
    let id = &config.id;
    let path = Path::new(id);
    if let Some(checkpoint) = embedded::find(id) {
        return Ok((Snapshot::Embedded(checkpoint), id.clone()));
    }
    let unknown = |reason| LoadError::UnknownModel { id: id.clone(), reason };
    if path.is_dir() {
        let name = path.canonicalize().ok();
        let name = name.as_deref().unwrap_or(path).file_name();
        let name = name.map_or_else(|| id.clone(), |name| name.to_string_lossy().into_owned());
        return Ok((Snapshot::Directory(path.to_owned()), name));
    }
    if path.is_file() {
        return Err(unknown(kind_of_file(path)));
    }
    if let Some(reason) = no_such_path(id) {
        return Err(unknown(reason));
    }
    let Ok(repository) = id.parse::<RepositoryId>() else {
        let names = embedded::names().join("', '");
        return Err(unknown(format!(
            "it is no embedded model ('{names}'), no folder here, and no repository id: {WANTED}"
        )));
    };
    let revision = config.revision.as_deref();
    match fetch_snapshot(&repository, revision, hub, Progress::for_terminal()) {
        Ok(folder) => Ok((Snapshot::Directory(folder), id.clone())),
        // Such names are relative paths, too, that may have been mistyped.
        Err(source @ (HubError::NotFound { .. } | HubError::NotCached { .. })) => {
            let source = Box::new(source);
            Err(LoadError::NeitherFolderNorRepository { id: id.clone(), source })
        }
        Err(error @ HubError::NoPipeline { .. }) => Err(unknown(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Refuses what only says something of single files: a whole checkpoint says it itself.
fn refuse_settings_of_files(config: &ModelConfig) -> Result<(), LoadError> {
    let settings = [("model.variant", &config.variant), ("model.files.base", &config.files.base)];
    let Some((setting, _)) = settings.into_iter().find(|(_, value)| value.is_some()) else {
        return Ok(());
    };
    let reason = format!("'{}' is no file of weights: its own files say what it is", config.id);
    Err(LoadError::Setting { setting, reason })
}

/// The file of weights that `config.id` means, if it is one: here or on the hub, from which
/// it is then fetched.
fn file_of(config: &ModelConfig, hub: &HubConfig) -> Result<Option<LocalFile>, LoadError> {
    const SETTING: &str = "model.id";
    let invalid = |source| LoadError::HubFile { setting: SETTING, source: Box::new(source) };
    if HubFile::is_meant_by(&config.id) {
        let file: HubFile = config.id.parse().map_err(invalid)?;
        let revision = file.revision.clone().or(config.revision.clone());
        let file = FileSource::Hub(HubFile { revision, ..file });
        return file.local(SETTING, hub).map(Some);
    }
    let path = PathBuf::from(&config.id);
    let is_one = path.is_file() && files::is_weights(&path);
    Ok(is_one.then_some(LocalFile { path, repository: None }))
}

/// The files that go with weights of the checkpoint `id`: a folder, or the small files of a
/// published one, which are in the program; else what the hub has.
pub(super) fn base(id: &str, hub: &HubConfig) -> Result<Snapshot, LoadError> {
    let path = Path::new(id);
    if path.is_dir() {
        return Ok(Snapshot::Directory(path.to_owned()));
    }
    if let Some(texts) = published::find(id) {
        return Ok(Snapshot::Texts(texts));
    }
    let Ok(repository) = id.parse::<RepositoryId>() else {
        let known = published::ids().join("', '");
        let reason = format!("'{id}' is neither a folder nor one of '{known}'");
        return Err(LoadError::Setting { setting: "model.files.base", reason });
    };
    Ok(Snapshot::Directory(fetch_snapshot(&repository, None, hub, Progress::for_terminal())?))
}

/// Why `id` is nothing, if it can only be meant as a path or an address.
fn no_such_path(id: &str) -> Option<String> {
    if let Some((_, address)) = id.split_once("://") {
        let mut parts = address.split(['/', '?', '#']).skip(1);
        let repository = parts.next().zip(parts.next());
        let hint = repository.map(|(owner, name)| format!("{owner}/{name}"));
        let hint = hint.filter(|hint| hint.parse::<RepositoryId>().is_ok());
        let hint = hint.map(|hint| file_of_address(&hint, address).unwrap_or(hint));
        let hint = hint.map_or_else(|| WANTED.to_owned(), |hint| format!("give '{hint}'"));
        return Some(format!("it is an address: {hint}"));
    }
    let is_drive = id.as_bytes().get(1) == Some(&b':');
    let has_ending = kind_of_ending(Path::new(id)).is_some();
    let is_path = id.starts_with(['/', '.', '~'])
        || id.ends_with('/')
        || id.contains('\\')
        || id.matches('/').count() > 1
        || is_drive
        || has_ending;
    let home = if id.starts_with('~') { " ('~' is not expanded here)" } else { "" };
    let file = format!("hf:{id}");
    if kind_of_ending(Path::new(id)).is_some() && file.parse::<HubFile>().is_ok() {
        return Some(format!("there is no such file here; if it is one on the hub, give '{file}'"));
    }
    is_path.then(|| format!("there is no such folder{home}; {WANTED}"))
}

/// The name of the file on the hub whose page or download is at `address`, if it is one of
/// `repository`.
fn file_of_address(repository: &str, address: &str) -> Option<String> {
    let (_, rest) = address.split_once(&format!("/{repository}/"))?;
    let rest = rest.strip_prefix("blob/").or_else(|| rest.strip_prefix("resolve/"))?;
    let (revision, path) = rest.split(['?', '#']).next()?.split_once('/')?;
    let at = if revision == "main" { String::new() } else { format!("@{revision}") };
    let file = format!("hf:{repository}{at}/{path}");
    file.parse::<HubFile>().is_ok().then_some(file)
}

/// What the file at `path` is.
fn kind_of_file(path: &Path) -> String {
    if path.file_name().is_some_and(|name| name == MODEL_INDEX) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).display();
        return format!("it is a file of a model: give its folder, '{folder}'");
    }
    let kind = kind_of_start(path).or_else(|| kind_of_ending(path)).unwrap_or("a file");
    format!("it is {kind}; {WANTED}")
}

const GGUF: &str = "a GGUF file";
const SAFETENSORS: &str = "a safetensors file";
const PICKLE: &str = "a pickle of PyTorch's, which this program does not read";
const ARCHIVE: &str = "an archive";

/// What a file's first bytes say.
fn kind_of_start(path: &Path) -> Option<&'static str> {
    use std::io::Read;
    let mut start = [0; 4];
    std::fs::File::open(path).ok()?.read_exact(&mut start).ok()?;
    match &start {
        [0x1f, 0x8b, ..] => Some(ARCHIVE),
        _ => None,
    }
}

/// What a file's name says.
fn kind_of_ending(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "gguf" => Some(GGUF),
        "safetensors" | "sft" => Some(SAFETENSORS),
        "ckpt" | "pt" | "pth" | "bin" => Some(PICKLE),
        "zip" | "tar" | "gz" | "tgz" | "7z" => Some(ARCHIVE),
        "onnx" => Some("an ONNX file, which is made for another runtime"),
        "json" | "toml" | "yaml" => Some("a text file"),
        _ => None,
    }
}

/// What the folder at `path` is, which has no `model_index.json`.
fn kind_of_folder(path: &Path) -> String {
    let has = |name: &str| path.join(name).exists();
    let lacks = format!("its folder has no {MODEL_INDEX}");
    if let Some(inner) = inner_pipelines(path).first() {
        return format!("{lacks}, but '{}' has one: give that", inner.display());
    }
    let parent = path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
    if let Some(parent) = parent.filter(|parent| parent.join(MODEL_INDEX).is_file()) {
        let parent = parent.display();
        return format!("{lacks}: it is one component of the model in '{parent}': give that");
    }
    let loras = ["adapter_config.json", "pytorch_lora_weights.safetensors"];
    if loras.iter().any(|name| has(name)) {
        return format!(
            "{lacks}: it is a LoRA: give the model that it was made for, and name it in the \
             settings' [[model.lora]]"
        );
    }
    if has("modular_model_index.json") {
        return format!("{lacks}: it is a modular pipeline, which is not supported");
    }
    let comfy = ["checkpoints", "diffusion_models", "loras", "split_files", "text_encoders"];
    let inside = |name: &&str| has(name) || path.join("models").join(name).exists();
    if comfy.iter().any(inside) {
        return format!(
            "{lacks}: it is a folder of ComfyUI's in which no file is a transformer of Qwen-Image; \
             {WANTED}"
        );
    }
    if has("config.json") || has("scheduler_config.json") || has("tokenizer_config.json") {
        return format!("{lacks}: it is one component of a model, or a model of words; {WANTED}");
    }
    format!("{lacks}{}; {WANTED}", contents(path))
}

/// What there is in a folder, in a few words.
fn contents(path: &Path) -> String {
    let mut names = entries(path);
    names.sort();
    let first = names.iter().find(|name| kind_of_ending(name).is_some()).or(names.first());
    match first.and_then(|name| name.file_name()) {
        None => ": it is empty".to_owned(),
        Some(name) => {
            let kind = first.and_then(|path| kind_of_ending(path));
            let kind = kind.map_or_else(String::new, |kind| format!(", {kind}"));
            format!(": there is '{}'{kind}", name.to_string_lossy())
        }
    }
}

/// Folders below `path` that are pipelines: right in it, or a hub cache's snapshots.
fn inner_pipelines(path: &Path) -> Vec<PathBuf> {
    let snapshots = entries(&path.join("snapshots"));
    let mut folders: Vec<PathBuf> = entries(path).into_iter().chain(snapshots).collect();
    folders.retain(|folder| folder.join(MODEL_INDEX).is_file());
    folders.sort();
    folders
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
