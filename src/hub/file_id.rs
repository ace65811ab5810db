//! The name of one file on the hub: `hf:OWNER/NAME/PATH`, with `@REVISION` after the
//! repository's name where it is not the main branch's.

use std::fmt;
use std::str::FromStr;

use super::{HubError, RepositoryId, checked_revision};

/// What such names begin with.
const SCHEME: &str = "hf:";

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// The repository.
    pub repository: RepositoryId,
    /// Commit, tag or branch; `main` if absent.
    pub revision: Option<String>,
    /// Its path inside the repository.
    pub path: String,
}

impl HubFile {
    /// Whether `text` is meant as such a name.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with(SCHEME)
    }
}

impl FromStr for HubFile {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = parse(text).filter(|file| is_plain_path(&file.path));
        let file = parsed.ok_or_else(|| HubError::InvalidFile { text: text.to_owned() })?;
        if let Some(revision) = &file.revision {
            checked_revision(revision)?;
        }
        Ok(file)
    }
}

fn parse(text: &str) -> Option<HubFile> {
    let text = text.strip_prefix(SCHEME)?;
    // Hugging Face's own tools write hf://.
    let (owner, rest) = text.strip_prefix("//").unwrap_or(text).split_once('/')?;
    let end = rest.find(['/', '@'])?;
    let repository = format!("{owner}/{}", &rest[..end]).parse().ok()?;
    let rest = &rest[end..];
    let Some(rest) = rest.strip_prefix('@') else {
        return Some(HubFile { repository, revision: None, path: rest[1..].to_owned() });
    };
    // A branch may hold slashes. Those of pull requests and of the hub's own conversions
    // are told apart, as huggingface_hub does (`HfFileSystem.resolve_path`).
    let parts =
        if rest.starts_with("refs/pr/") || rest.starts_with("refs/convert/") { 3 } else { 1 };
    let (end, _) = rest.match_indices('/').nth(parts - 1)?;
    let revision = Some(rest[..end].to_owned());
    Some(HubFile { repository, revision, path: rest[end + 1..].to_owned() })
}

impl fmt::Display for HubFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(formatter, "@{revision}")?;
        }
        write!(formatter, "/{}", self.path)
    }
}

/// Whether `path` leads to a place inside a folder, and means nothing else in an address.
pub(super) fn is_plain_path(path: &str) -> bool {
    let is_special = |character: char| "\\:?#%".contains(character) || character.is_control();
    let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(is_part) && !path.contains(is_special)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_repository_perhaps_a_revision_and_a_path() {
        for (text, repository, revision, path) in [
            ("hf:a/b/c.gguf", "a/b", None, "c.gguf"),
            ("hf:a/b/c/d.gguf", "a/b", None, "c/d.gguf"),
            ("hf:a/b@v1/c.gguf", "a/b", Some("v1"), "c.gguf"),
            ("hf:a/b@refs/pr/3/c/d.gguf", "a/b", Some("refs/pr/3"), "c/d.gguf"),
            ("hf:a/b/c@2.gguf", "a/b", None, "c@2.gguf"),
            ("hf://a/b/c.gguf", "a/b", None, "c.gguf"),
        ] {
            let file: HubFile = text.parse().unwrap();

            assert_eq!(file.repository.as_str(), repository, "{text}");
            assert_eq!(file.revision.as_deref(), revision, "{text}");
            assert_eq!(file.path, path, "{text}");
            assert_eq!(file.to_string(), text.replace("//", ""));
        }
    }

    #[test]
    fn what_leads_elsewhere_or_to_no_file_is_refused() {
        for text in [
            "hf:",
            "hf:a",
            "hf:a/b",
            "hf:a/b/",
            "hf:a/b@v1",
            "hf:a/b@/c.gguf",
            "hf:a/b@../c.gguf",
            "hf:a/b/../c.gguf",
            "hf:a/b//c.gguf",
            "hf:../b/c.gguf",
            "hf:a/b/c?d",
            "hf:a/b/c\\d",
            "a/b/c.gguf",
        ] {
            assert!(text.parse::<HubFile>().is_err(), "{text}");
        }
    }
}
