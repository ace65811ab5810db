//! How the choices of the settings are written.

use std::num::NonZeroUsize;
use std::path::Path;

use figment::value::Value;

use crate::domain::RequestLora;
use crate::model::LoraConfig;

/// The ways to write a number of threads.
pub(super) const THREADS: &str = "auto, or a whole number from 1 to 1024";

/// Reads a number of threads, or `auto`, which is none. rayon's variable has 0 for that.
pub(super) fn parse_threads(value: &Value) -> Option<Option<NonZeroUsize>> {
    const MOST: usize = 1024;
    let threads = match value.as_str() {
        Some(text) if text.eq_ignore_ascii_case("auto") => 0,
        Some(text) => text.parse().ok()?,
        None => usize::try_from(value.to_i128()?).ok()?,
    };
    (threads <= MOST).then(|| NonZeroUsize::new(threads))
}

/// The ways to write a [`LoraConfig`].
pub(super) const LORAS: &str =
    "FILE, or FILE:SCALE with a finite number such as 0.8 (a point, no comma)";

/// Reads a file or folder, perhaps with a colon and a scale after it. A path may hold
/// colons; a scale that is no number is told from that by what is there, and by how
/// names of such files end.
pub(super) fn parse_lora(text: &str) -> Option<LoraConfig> {
    let whole = || Some(LoraConfig { file: text.into(), scale: 1.0 });
    if Path::new(text).exists() {
        return whole();
    }
    let Some((file, scale)) = text.rsplit_once(':') else {
        // Alone, a number is what a comma has cut off: "style.safetensors:0,8".
        return if text.parse::<f64>().is_ok() { None } else { whole() };
    };
    if let Some(scale) = scale.trim().parse::<f64>().ok().filter(|scale| scale.is_finite()) {
        return (!file.is_empty()).then(|| LoraConfig { file: file.into(), scale });
    }
    let is_path = scale.contains(['/', '\\']) || Path::new(scale).extension().is_some();
    let is_path = is_path && scale.parse::<f64>().is_err() && !is_numeric(scale);
    if is_path && !Path::new(file).exists() { whole() } else { None }
}

/// The ways to write a LoRA of the folder that requests may name.
pub(super) const REQUEST_LORAS: &str = "NAME, or NAME:SCALE with a number from -10 to 10";

/// Reads the name of a LoRA, perhaps with a colon and a scale after it.
pub(super) fn parse_request_lora(text: &str) -> Option<RequestLora> {
    let scaled = text.rsplit_once(':').and_then(|(name, scale)| {
        let scale = scale.trim().parse::<f64>().ok()?;
        Some(RequestLora::new(name, scale))
    });
    scaled.unwrap_or_else(|| RequestLora::new(text, 1.0)).ok()
}

/// Whether `url` is a scheme and a host, perhaps with a port.
pub(super) fn is_web_origin(url: &str) -> bool {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]/_".contains(&byte);
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(is_plain))
}

/// Whether `text` begins as numbers do.
fn is_numeric(text: &str) -> bool {
    text.trim_start_matches(['+', '-', '.', ' ']).starts_with(|first: char| first.is_ascii_digit())
}

/// Reads a yes or no as people write it into environments.
pub(super) fn parse_boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_is_a_file_or_a_file_and_a_finite_scale() {
        let lora = |file: &str, scale| Some(LoraConfig { file: file.into(), scale });
        for (text, expected) in [
            ("/loras/a.safetensors", lora("/loras/a.safetensors", 1.0)),
            ("a.safetensors:0.8", lora("a.safetensors", 0.8)),
            ("a.safetensors:-1", lora("a.safetensors", -1.0)),
            ("a.safetensors:0", lora("a.safetensors", 0.0)),
            ("a.safetensors: .5", lora("a.safetensors", 0.5)),
            ("a.safetensors:1e-1", lora("a.safetensors", 0.1)),
            ("/loras/style:v2/a.safetensors", lora("/loras/style:v2/a.safetensors", 1.0)),
            ("/loras/style:v2/a.safetensors:2", lora("/loras/style:v2/a.safetensors", 2.0)),
            (r"C:\loras\a.safetensors", lora(r"C:\loras\a.safetensors", 1.0)),
            ("style:v2.safetensors", lora("style:v2.safetensors", 1.0)),
            // A comma in the environment cuts here, before the second half is seen.
            ("a.safetensors:0", lora("a.safetensors", 0.0)),
        ] {
            assert_eq!(parse_lora(text), expected, "{text}");
        }
        for text in [
            "a.safetensors:0,8",
            "a.safetensors:x",
            "a.safetensors:nan",
            "a.safetensors:inf",
            "a.safetensors:1e999",
            "a.safetensors:0.8.1",
            "a.safetensors:50%",
            "a.safetensors:0.8x",
            "a.safetensors:",
            "/loras/folder:strong",
            ":0.5",
            "8",
            "0.8",
        ] {
            assert_eq!(parse_lora(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_with_colons_that_is_there_is_a_path() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a:0.5", "a.safetensors:x", "b:1e999"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();

            let lora = parse_lora(&path.display().to_string());

            assert_eq!(lora, Some(LoraConfig { file: path, scale: 1.0 }), "{name}");
        }
    }

    #[test]
    fn booleans_are_words_or_digits_in_any_case() {
        for text in ["true", "TRUE", "1", "yes", "Yes", "on"] {
            assert_eq!(parse_boolean(text), Some(true), "{text}");
        }
        for text in ["false", "False", "0", "no", "NO", "off"] {
            assert_eq!(parse_boolean(text), Some(false), "{text}");
        }
        for text in ["", "2", "maybe", " true"] {
            assert_eq!(parse_boolean(text), None, "{text:?}");
        }
    }
}
