//! Which files are wanted of a repository that is no pipeline: those that match patterns,
//! and what of the same repository goes with them. Pure: names and sizes in, names out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::HubError;

/// Paths of a repository's files, with their bytes where these are known.
pub(super) type Listing = BTreeMap<String, Option<u64>>;

/// The largest file that is fetched without having been asked for, in bytes: above a text
/// encoder in 8 bits (9.4 GB), below one in 16 (16.6 GB).
const LARGEST_COMPANION: u64 = 10_000_000_000;

/// How many names a message lists.
const SHOWN: usize = 20;

/// A pattern of file names as shells have them: `*`, `?`, `[...]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePattern(glob::Pattern);

impl FilePattern {
    /// Whether it is the file's whole path, or its name.
    fn matches(&self, path: &str) -> bool {
        self.0.matches(path) || self.0.matches(name_of(path))
    }
}

impl FromStr for FilePattern {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = glob::Pattern::new(text);
        pattern
            .map(Self)
            .map_err(|error| HubError::InvalidPattern { text: text.to_owned(), reason: error.msg })
    }
}

/// What of a repository is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Each file that matches one of the patterns.
    Matching(Vec<FilePattern>, Companions),
    /// The file of this path.
    File(String),
}

/// Whether files that go with those asked for are wanted, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Companions {
    /// Text encoder, vision tower and VAE, as far as the same repository has them.
    Fetch,
    /// Nothing that was not asked for.
    Leave,
}

/// The files chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    pub(super) files: Vec<String>,
    pub(super) companions: Vec<String>,
}

/// Why nothing can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionFault {
    /// No file is called so.
    #[error("no file matches '{pattern}'; there is {files}")]
    NoMatch {
        /// What was asked for.
        pattern: String,
        /// What there is.
        files: FileNames,
    },
    /// A file is one of several that only together are one.
    #[error(
        "{file} is a part of a GGUF that is split into {parts} files, and this program reads \
         only whole ones: choose another, or fetch the parts otherwise and join them with \
         llama.cpp's `llama-gguf-split --merge`"
    )]
    Split {
        /// The part.
        file: String,
        /// How many there are.
        parts: usize,
    },
}

impl Wanted {
    /// What `listing` has of it.
    pub(super) fn select(&self, listing: &Listing) -> Result<Selected, SelectionFault> {
        let no_match = |pattern: &str| SelectionFault::NoMatch {
            pattern: pattern.to_owned(),
            files: FileNames::of(listing.keys()),
        };
        let files: Vec<String> = match self {
            Self::File(path) if listing.contains_key(path) => vec![path.clone()],
            Self::File(path) => return Err(no_match(path)),
            Self::Matching(patterns, _) => {
                let matching =
                    |pattern: &&FilePattern| listing.keys().any(|path| pattern.matches(path));
                if let Some(pattern) = patterns.iter().find(|pattern| !matching(pattern)) {
                    return Err(no_match(pattern.0.as_str()));
                }
                let is_wanted = |path: &&String| patterns.iter().any(|one| one.matches(path));
                listing.keys().filter(is_wanted).cloned().collect()
            }
        };
        let mut split = files.iter().filter(|file| file.ends_with(".gguf"));
        if let Some((file, parts)) = split.find_map(|file| Some((file, parts_of(file)?))) {
            return Err(SelectionFault::Split { file: file.clone(), parts });
        }
        let companions = match self {
            Self::Matching(_, Companions::Fetch) => companions(listing, &files),
            Self::Matching(_, Companions::Leave) | Self::File(_) => Vec::new(),
        };
        Ok(Selected { files, companions })
    }

    /// What was asked for, for messages.
    pub(super) fn first(&self) -> &str {
        match self {
            Self::File(path) => path,
            Self::Matching(patterns, _) => patterns.first().map_or("*", |one| one.0.as_str()),
        }
    }
}

/// A component that goes with a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Companion {
    TextEncoder,
    VisionTower,
    Vae,
}

/// The companions in `listing` of the files `chosen`, of which it lacks some.
fn companions(listing: &Listing, chosen: &[String]) -> Vec<String> {
    let weights: Vec<&String> = chosen.iter().filter(|path| is_weights(path)).collect();
    let has = |kind| weights.iter().any(|path| companion(path) == kind);
    let (has_transformer, has_text) = (has(None), has(Some(Companion::TextEncoder)));
    let label = weights.iter().find_map(|path| label(path));
    let mut picked = Vec::new();
    if has_transformer && !has_text {
        picked.extend(pick(listing, Companion::TextEncoder, label.as_deref()));
    }
    // A text encoder in safetensors has its vision tower inside.
    let texts = weights.iter().copied().chain(&picked);
    let mut texts = texts.filter(|path| companion(path) == Some(Companion::TextEncoder));
    let has_vision =
        has(Some(Companion::VisionTower)) || texts.any(|path| !path.ends_with(".gguf"));
    if (has_transformer || has_text) && !has_vision {
        picked.extend(pick(listing, Companion::VisionTower, None));
    }
    if has_transformer && !has(Some(Companion::Vae)) {
        picked.extend(pick(listing, Companion::Vae, None));
    }
    picked
}

/// The best file of `kind` in `listing`: one quantized as the transformer is, one in 16 bits,
/// then the largest text encoder, or the smallest of the others.
fn pick(listing: &Listing, kind: Companion, wanted: Option<&str>) -> Option<String> {
    let of_kind = listing.iter().filter_map(|(path, bytes)| {
        let bytes = bytes.filter(|bytes| *bytes <= LARGEST_COMPANION)?;
        let is_one = is_weights(path) && parts_of(path).is_none() && companion(path) == Some(kind);
        is_one.then_some((path, bytes))
    });
    let best = of_kind.max_by_key(|(path, bytes)| {
        let is_wanted = wanted.is_some() && label(path).as_deref() == wanted;
        let is_half = path.to_lowercase().contains("f16");
        match kind {
            Companion::TextEncoder => (is_wanted, false, *bytes, Reverse(0)),
            Companion::VisionTower => (false, is_half, 0, Reverse(*bytes)),
            Companion::Vae => (!path.ends_with(".gguf"), is_half, 0, Reverse(*bytes)),
        }
    });
    best.map(|(path, _)| path.clone())
}

/// What a file of weights is by its folder or name; nothing, if it may be a transformer.
fn companion(path: &str) -> Option<Companion> {
    const TEXT_FOLDERS: [&str; 3] = ["text_encoder", "text_encoders", "clip"];
    const TEXT_NAMES: [&str; 3] = ["qwen2.5vl", "qwen25vl", "qwen2vl"];
    let path = path.to_lowercase();
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let lies_in = |folder: &str| folders.split('/').any(|one| one == folder);
    let letters: String = name.chars().filter(|letter| !"-_ ".contains(*letter)).collect();
    if lies_in("mmproj") || name.contains("mmproj") {
        Some(Companion::VisionTower)
    } else if TEXT_FOLDERS.into_iter().any(lies_in)
        || TEXT_NAMES.iter().any(|one| letters.contains(one))
    {
        Some(Companion::TextEncoder)
    } else if lies_in("vae") || name.contains("vae") {
        Some(Companion::Vae)
    } else {
        None
    }
}

/// The type of quantization in a file's name, such as `Q4_K_M`, in capitals.
fn label(path: &str) -> Option<String> {
    let name = name_of(path).to_uppercase();
    let is_label = |part: &&str| {
        let rest = part.strip_prefix("IQ").or_else(|| part.strip_prefix('Q'));
        rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    name.rsplit(['-', '.']).find(is_label).map(str::to_owned)
}

/// Of how many files `path` is one, if of several: `-00001-of-00003.` is in its name.
fn parts_of(path: &str) -> Option<usize> {
    let (stem, _) = name_of(path).rsplit_once('.')?;
    let (before, parts) = stem.rsplit_once("-of-")?;
    let (_, part) = before.rsplit_once('-')?;
    part.parse::<usize>().ok()?;
    parts.parse().ok().filter(|parts| *parts > 1)
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_weights(path: &str) -> bool {
    let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_lowercase());
    ending.is_some_and(|ending| ["gguf", "safetensors", "sft"].contains(&ending.as_str()))
}

/// Names of files for a message: some, and how many more there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNames {
    shown: Vec<String>,
    more: usize,
}

impl FileNames {
    /// Files of weights first, then the others.
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a String>) -> Self {
        let files: BTreeSet<(bool, &String)> =
            files.map(|path| (!is_weights(path), path)).collect();
        let more = files.len().saturating_sub(SHOWN);
        Self { shown: files.into_iter().take(SHOWN).map(|(_, path)| path.clone()).collect(), more }
    }

    /// The files of weights alone, if there are any.
    pub(super) fn of_weights<'a>(files: impl Iterator<Item = &'a String>) -> Option<Self> {
        let names = Self::of(files.filter(|path| is_weights(path)));
        (!names.shown.is_empty()).then_some(names)
    }
}

impl fmt::Display for FileNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.shown[..], self.more) {
            ([], _) => write!(formatter, "no file"),
            (shown, 0) => write!(formatter, "'{}'", shown.join("', '")),
            (shown, more) => write!(formatter, "'{}' and {more} more", shown.join("', '")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn listing(files: &[(&str, u64)]) -> Listing {
        files.iter().map(|(path, bytes)| ((*path).to_owned(), Some(*bytes))).collect()
    }

    fn selected(files: &[(&str, u64)], pattern: &str) -> Result<Selected, SelectionFault> {
        Wanted::Matching(vec![pattern.parse().unwrap()], Companions::Fetch).select(&listing(files))
    }

    #[test]
    fn patterns_are_held_against_paths_and_names() {
        let matches = |pattern: &str, path| pattern.parse::<FilePattern>().unwrap().matches(path);

        assert!(matches("*Q4_K_M*", "a/model-Q4_K_M.gguf"));
        assert!(matches("a/*", "a/b/c.gguf"));
        assert!(matches("model-Q?_0.gguf", "a/model-Q8_0.gguf"));
        assert!(!matches("Q4_K_M", "model-Q4_K_M.gguf"));
        assert!(!matches("model-Q?_0.gguf", "model-Q10_0.gguf"));
        assert!("[".parse::<FilePattern>().is_err());
    }

    #[test]
    fn a_transformer_brings_what_goes_with_it_in_the_same_quantization() {
        let files = [
            ("Qwen_Image_Edit-Q4_K_M.gguf", 13 * GB),
            ("Qwen_Image_Edit-Q8_0.gguf", 22 * GB),
            ("VAE/Qwen_Image-VAE.safetensors", GB / 4),
            ("VAE/Qwen_Image-VAE-fp32.safetensors", GB / 2),
            ("mmproj/Qwen2.5-VL-7B-Instruct-mmproj-BF16.gguf", 2 * GB),
            ("mmproj/Qwen2.5-VL-7B-Instruct-mmproj-F32.gguf", 3 * GB),
            ("text_encoder/Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", 5 * GB),
            ("text_encoder/Qwen2.5-VL-7B-Instruct-Q8_0.gguf", 8 * GB),
        ];

        let chosen = selected(&files, "Qwen_Image_Edit-Q4_K_M.gguf").unwrap();

        assert_eq!(chosen.files, ["Qwen_Image_Edit-Q4_K_M.gguf"]);
        assert_eq!(
            chosen.companions,
            [
                "text_encoder/Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf",
                "mmproj/Qwen2.5-VL-7B-Instruct-mmproj-BF16.gguf",
                "VAE/Qwen_Image-VAE.safetensors",
            ]
        );
    }

    #[test]
    fn a_text_encoder_is_not_brought_in_sixteen_bits_or_in_parts_or_if_its_size_is_unknown() {
        let transformer = ("split_files/diffusion_models/a_fp8.safetensors", 20 * GB);
        let files = [
            transformer,
            ("split_files/text_encoders/b.safetensors", 16 * GB),
            ("split_files/text_encoders/b_fp8_scaled.safetensors", 9 * GB),
            ("text_encoder/model-00001-of-00004.safetensors", 5 * GB),
            ("mmproj-F16.gguf", GB),
        ];
        let companions = |files: &[_]| selected(files, "a_fp8.safetensors").unwrap().companions;

        // It has its vision tower inside.
        assert_eq!(companions(&files), ["split_files/text_encoders/b_fp8_scaled.safetensors"]);
        assert!(companions(&files[..2]).is_empty());
        assert!(companions(&[files[0], files[1], files[3]]).is_empty());
        let unsized_listing = files.map(|(path, _)| (path.to_owned(), None)).into();
        let wanted = Wanted::Matching(vec!["a_*".parse().unwrap()], Companions::Fetch);
        assert!(wanted.select(&unsized_listing).unwrap().companions.is_empty());
    }

    #[test]
    fn what_was_asked_for_is_not_brought_twice_and_a_companion_brings_no_other_kind() {
        let files = [
            ("Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", 5 * GB),
            ("Qwen2.5-VL-7B-Instruct-Q8_0.gguf", 8 * GB),
            ("mmproj-BF16.gguf", GB),
            ("mmproj-F32.gguf", 2 * GB),
            ("vae.safetensors", GB),
        ];
        let companions = |pattern| selected(&files, pattern).unwrap().companions;

        assert_eq!(companions("*Q4_K_M*"), ["mmproj-BF16.gguf"]);
        assert!(companions("mmproj-F32*").is_empty());
        assert!(companions("*").is_empty());
    }

    #[test]
    fn parts_of_a_split_file_are_refused_and_an_only_part_is_whole() {
        let files = [("a-00001-of-00003.gguf", GB), ("b-00001-of-00001.gguf", GB)];

        let fault = selected(&files, "a-*").unwrap_err();
        assert!(matches!(fault, SelectionFault::Split { parts: 3, .. }), "{fault}");
        assert!(selected(&files, "b-*").is_ok());
    }

    #[test]
    fn what_there_is_instead_is_listed_weights_first_and_not_without_end() {
        let names: Vec<String> = (10..35).map(|index| format!("w{index}.gguf")).collect();
        let readme = "README.md".to_owned();

        let all = FileNames::of(names.iter().chain([&readme])).to_string();
        assert!(all.starts_with("'w10.gguf', 'w11.gguf'"), "{all}");
        assert!(all.ends_with("'w29.gguf' and 6 more"), "{all}");
        assert_eq!(FileNames::of_weights([&readme].into_iter()), None);
    }
}
