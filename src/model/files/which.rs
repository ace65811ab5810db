//! Which published checkpoint a transformer is of.
//!
//! Edit, 2509 and 2511 have the same tensors. Some files carry a mark; else their names may
//! tell; else somebody must say so: read as another, a model makes worse pictures without
//! an error.

use std::path::Path;

use super::contents::Kind;

/// A published checkpoint, and how it was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Which {
    pub(super) id: &'static str,
    pub(super) because: String,
}

const IMAGE: &str = "Qwen/Qwen-Image";
const IMAGE_2512: &str = "Qwen/Qwen-Image-2512";
const EDIT_2509: &str = "Qwen/Qwen-Image-Edit-2509";
const EDIT_2511: &str = "Qwen/Qwen-Image-Edit-2511";
const LAYERED: &str = "Qwen/Qwen-Image-Layered";

/// Which checkpoint the transformer of `kind` in the file `path` is of, if that can be told.
pub(super) fn which(kind: Kind, path: &Path) -> Option<Which> {
    let Kind::Transformer { is_marked, is_layered } = kind else { return None };
    let by_tensor = |id| Some(Which { id, because: "a tensor of its own marks it".to_owned() });
    if is_layered {
        return by_tensor(LAYERED);
    }
    if is_marked {
        return by_tensor(EDIT_2511);
    }
    let file = path.file_name()?.to_string_lossy().to_lowercase();
    let folder = path.parent().and_then(Path::file_name);
    let folder = folder.map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    [file, folder].iter().find_map(|name| {
        let id = by_name(name)?;
        Some(Which { id, because: format!("it is called '{name}'") })
    })
}

/// Which checkpoint a file or folder of this name in small letters holds, if it says so.
fn by_name(name: &str) -> Option<&'static str> {
    let is_family =
        ["qwen-image", "qwen_image", "qwenimage"].iter().any(|part| name.contains(part));
    match () {
        () if name.contains("2511") => Some(EDIT_2511),
        () if name.contains("2509") => Some(EDIT_2509),
        // Of which month is not said: the three differ by what no tensor shows.
        () if name.contains("edit") => None,
        () if name.contains("2512") => Some(IMAGE_2512),
        () if is_family && name.contains("layered") => Some(LAYERED),
        () if is_family => Some(IMAGE),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Kind = Kind::Transformer { is_marked: false, is_layered: false };

    #[test]
    fn a_mark_counts_before_a_name_and_a_files_name_before_its_folders() {
        let id = |kind, path: &str| which(kind, Path::new(path)).map(|which| which.id);
        let marked = Kind::Transformer { is_marked: true, is_layered: false };
        let layered = Kind::Transformer { is_marked: false, is_layered: true };

        assert_eq!(id(marked, "qwen_image_edit_2509.safetensors"), Some(EDIT_2511));
        assert_eq!(id(layered, "a.gguf"), Some(LAYERED));
        assert_eq!(id(PLAIN, "qwen-image-edit-2511-Q4_K_M.gguf"), Some(EDIT_2511));
        assert_eq!(id(PLAIN, "Qwen-Image-Edit-2509-GGUF/Q4_0.gguf"), Some(EDIT_2509));
        assert_eq!(id(PLAIN, "2509/Qwen-Image-Edit-2511.gguf"), Some(EDIT_2511));
        assert_eq!(id(PLAIN, "Qwen_Image-Q4_K_M.gguf"), Some(IMAGE));
        assert_eq!(id(PLAIN, "qwen-image-2512-Q2_K.gguf"), Some(IMAGE_2512));
    }

    #[test]
    fn a_name_that_may_mean_several_means_none() {
        for path in ["Qwen_Image_Edit-Q4_K_M.gguf", "model.gguf", "unet/a.safetensors"] {
            assert_eq!(which(PLAIN, Path::new(path)), None, "{path}");
        }
    }
}
