//! `diffuser-api keys`: makes keys, and writes what the settings are to say of them.
//!
//! A key is printed once and stored nowhere; what is written has its hash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use rand::rngs::OsRng;

pub use crate::api::{Expiry, KeyHash, KeyName, Limits, Scope};
use crate::config::{ConfigError, parse_key_file};

/// How a key begins: whoever finds one knows what it is.
const PREFIX: &str = "sk-diffuser-";
/// Bytes that nobody guesses.
const RANDOM_BYTES: usize = 32;

/// What a new key is to be good for.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// What logs call it.
    pub name: KeyName,
    /// What it is good for.
    pub scopes: Vec<Scope>,
    /// From when on it is not good any more.
    pub expires: Option<Expiry>,
    /// The models that it may use; all if empty.
    pub models: Vec<String>,
    /// How much it may ask for.
    pub limits: Limits,
}

/// Where what is said of a key is to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the configuration.
    Configuration,
    /// In a file of keys.
    KeyFile,
}

/// Why a file of keys was not written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error("cannot write {path}")]
    Io {
        /// The file, or the one that was to take its place.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another program writes it, or was ended while it did.
    #[error("{path} is there: another program writes the keys; if none does, remove it")]
    InUse {
        /// What takes the file's place when it is done.
        path: PathBuf,
    },
    /// What is in it, or would be, is faulty.
    #[error(transparent)]
    Faulty(#[from] ConfigError),
    /// It has a key of this name.
    #[error("{path} has a key called {name} already")]
    NameTaken {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

/// A key that nobody has had before.
///
/// # Errors
/// If the system gives no random bytes.
pub fn random_key() -> Result<String, rand::rand_core::OsError> {
    let mut bytes = [0; RANDOM_BYTES];
    OsRng.try_fill_bytes(&mut bytes)?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

impl NewKey {
    /// What is to be said of it, whose text is `key`, in TOML.
    #[must_use]
    pub fn entry(&self, key: &str, place: Place) -> String {
        let head = match place {
            Place::Configuration => "[[keys.key]]",
            Place::KeyFile => "[[key]]",
        };
        let list = |names: Vec<&str>| {
            let quoted: Vec<String> = names.into_iter().map(quoted).collect();
            format!("[{}]", quoted.join(", "))
        };
        let mut lines = vec![
            head.to_owned(),
            format!("name = {}", quoted(self.name.as_str())),
            format!("sha256 = \"{}\"", KeyHash::of(key)),
            format!("scopes = {}", list(self.scopes.iter().map(|scope| scope.name()).collect())),
        ];
        lines.extend(self.expires.map(|expires| format!("expires = \"{expires}\"")));
        if !self.models.is_empty() {
            let names = self.models.iter().map(String::as_str).collect();
            lines.push(format!("models = {}", list(names)));
        }
        let Limits { requests_per_minute, concurrent_requests, pictures_per_day } = self.limits;
        for (name, limit) in [
            ("requests_per_minute", requests_per_minute),
            ("concurrent_requests", concurrent_requests),
            ("pictures_per_day", pictures_per_day),
        ] {
            lines.extend(limit.map(|limit: NonZeroU32| format!("{name} = {limit}")));
        }
        lines.join("\n") + "\n"
    }

    /// Appends what is to be said of it to the file of keys, or begins one. All that is in
    /// the file stays; whoever reads it meanwhile sees it before or after.
    ///
    /// # Errors
    /// [`KeyFileError`]; the file is then as it was.
    pub fn append_to(&self, file: &Path, key: &str) -> Result<(), KeyFileError> {
        // A link stays one: what it leads to is replaced.
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let part = part_of(&file);
        let created = create(&part).map_err(|source| {
            let path = part.clone();
            if source.kind() == io::ErrorKind::AlreadyExists {
                return KeyFileError::InUse { path };
            }
            KeyFileError::Io { path, source }
        })?;
        let written = self.write_whole(&file, created, key);
        let failed = |source| KeyFileError::Io { path: file.clone(), source };
        let written = written.and_then(|()| fs::rename(&part, &file).map_err(failed));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written
    }

    /// Writes what is in `file` and this key into `part`.
    fn write_whole(&self, file: &Path, mut part: File, key: &str) -> Result<(), KeyFileError> {
        let failed = |source| KeyFileError::Io { path: file.to_owned(), source };
        let before = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(error)),
        };
        let origin = format!("file {}", file.display());
        if parse_key_file(&before, &origin)?.iter().any(|known| known.name == self.name) {
            let (path, name) = (file.to_owned(), self.name.as_str().to_owned());
            return Err(KeyFileError::NameTaken { path, name });
        }
        let gap = match before.as_str() {
            "" => "",
            text if text.ends_with('\n') => "\n",
            _ => "\n\n",
        };
        let whole = format!("{before}{gap}{}", self.entry(key, Place::KeyFile));
        parse_key_file(&whole, &origin)?;
        part.write_all(whole.as_bytes()).and_then(|()| part.sync_all()).map_err(failed)
    }
}

/// `text` as TOML has it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What takes the place of `file` when it is done.
fn part_of(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.part"))
}

/// A new file that only its owner reads.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_key(name: &str) -> NewKey {
        NewKey {
            name: name.parse().unwrap(),
            scopes: vec![Scope::Images, Scope::Metrics],
            expires: Some("2027-01-31".parse().unwrap()),
            models: vec!["house/edit".to_owned(), "odd \"name\" *".to_owned()],
            limits: Limits { pictures_per_day: NonZeroU32::new(7), ..Limits::default() },
        }
    }

    #[test]
    fn keys_are_long_and_never_the_same() {
        let keys = [random_key().unwrap(), random_key().unwrap()];

        assert_ne!(keys[0], keys[1]);
        for key in keys {
            let random = key.strip_prefix("sk-diffuser-").unwrap();
            assert_eq!(URL_SAFE_NO_PAD.decode(random).unwrap().len(), 32);
        }
    }

    #[test]
    fn what_is_written_is_what_was_asked_for_and_not_the_key() {
        let new = new_key("ann");
        let entry = new.entry("sk-text", Place::KeyFile);

        let keys = parse_key_file(&entry, "test").unwrap();

        assert!(!entry.contains("sk-text"), "{entry}");
        assert_eq!((&keys[0].name, keys[0].hash), (&new.name, KeyHash::of("sk-text")));
        assert!(keys[0].scopes.contain(Scope::Metrics) && !keys[0].scopes.contain(Scope::Admin));
        assert_eq!(keys[0].expires, new.expires);
        assert_eq!(keys[0].models.as_ref(), Some(&new.models));
        assert_eq!(keys[0].limits, new.limits);
        assert!(new.entry("sk-text", Place::Configuration).starts_with("[[keys.key]]\n"));
    }

    #[test]
    fn a_file_grows_keeps_its_comments_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        new_key("ann").append_to(&file, "one").unwrap();
        let first = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("# ours\n{first}# bob's is below")).unwrap();

        new_key("bob").append_to(&file, "two").unwrap();

        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with(&format!("# ours\n{first}# bob's is below\n\n[[key]]\n")),
            "{text}"
        );
        assert_eq!(parse_key_file(&text, "test").unwrap().len(), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_name_twice_a_faulty_file_and_another_writer_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        new_key("ann").append_to(&file, "one").unwrap();
        let before = fs::read_to_string(&file).unwrap();
        let append = |name| new_key(name).append_to(&file, "two");

        assert!(matches!(append("ann"), Err(KeyFileError::NameTaken { .. })));
        fs::write(part_of(&file), "").unwrap();
        assert!(matches!(append("bob"), Err(KeyFileError::InUse { .. })));
        assert!(part_of(&file).exists(), "it is another's");
        fs::remove_file(part_of(&file)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        fs::write(&file, "[[key]\n").unwrap();
        assert!(matches!(append("bob"), Err(KeyFileError::Faulty(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), "[[key]\n");
        assert!(!part_of(&file).exists());
    }
}
