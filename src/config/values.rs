//! How the choices of the settings are written.

use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;

use figment::value::Value;

use crate::api::{DefaultResponseFormat, PngCompression};
use crate::model::{DeviceChoice, DtypeChoice, LoraConfig, MemoryChoice};

/// A text that names none of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct UnknownChoice {
    /// The choices there are.
    pub expected: &'static str,
}

/// The ways to write a [`DeviceChoice`].
pub(super) const DEVICES: &str = "auto, cpu, cuda, cuda:N or metal";

/// The ways to write a [`DtypeChoice`].
pub(super) const DTYPES: &str = "auto, float32, bfloat16, float16, fp8, fp8-weights or q8_0";

/// The ways to write a [`MemoryChoice`].
pub(super) const MEMORIES: &str = "auto, resident, offload or stream";

/// The ways to write a [`DefaultResponseFormat`].
pub(super) const RESPONSE_FORMATS: &str = "auto, b64_json or url";

impl FromStr for DefaultResponseFormat {
    type Err = UnknownChoice;

    /// Reads OpenAI's names, or `auto`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::ByModelName),
            "b64_json" => Ok(Self::Base64),
            "url" => Ok(Self::Url),
            _ => Err(UnknownChoice { expected: RESPONSE_FORMATS }),
        }
    }
}

/// The ways to write a [`PngCompression`].
pub(super) const PNG_COMPRESSIONS: &str = "fast, balanced or best";

impl FromStr for PngCompression {
    type Err = UnknownChoice;

    /// Reads the choice's name, in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "fast" => Ok(Self::Fast),
            "balanced" => Ok(Self::Balanced),
            "best" => Ok(Self::Best),
            _ => Err(UnknownChoice { expected: PNG_COMPRESSIONS }),
        }
    }
}

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

impl FromStr for MemoryChoice {
    type Err = UnknownChoice;

    /// Reads the choice's name, in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "resident" => Ok(Self::Resident),
            "offload" => Ok(Self::Offload),
            "stream" => Ok(Self::Stream),
            _ => Err(UnknownChoice { expected: MEMORIES }),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = UnknownChoice;

    /// Reads `auto`, `cpu`, `cuda` (the first card), `cuda:N`, or `metal`, which
    /// torch calls `mps`; in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = UnknownChoice { expected: DEVICES };
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" | "mps" => Ok(Self::Metal),
            other => {
                let number = other.strip_prefix("cuda:").ok_or(unknown.clone())?;
                number.parse().map(Self::Cuda).map_err(|_| unknown)
            }
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = UnknownChoice;

    /// Reads torch's names and their short forms, in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("torch.").unwrap_or(&lower) {
            "auto" => Ok(Self::Auto),
            "float32" | "fp32" | "f32" | "float" => Ok(Self::Float32),
            "bfloat16" | "bf16" => Ok(Self::Bfloat16),
            "float16" | "fp16" | "f16" | "half" => Ok(Self::Float16),
            "fp8" | "float8_e4m3fn" => Ok(Self::Fp8),
            "fp8-weights" => Ok(Self::Fp8Weights),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(UnknownChoice { expected: DTYPES }),
        }
    }
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
    fn devices_are_named_as_torch_names_them() {
        for (text, device) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal", DeviceChoice::Metal),
            ("mps", DeviceChoice::Metal),
        ] {
            assert_eq!(text.parse(), Ok(device), "{text}");
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", " cpu"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn dtypes_have_long_and_short_names() {
        for (text, dtype) in [
            ("auto", DtypeChoice::Auto),
            ("float32", DtypeChoice::Float32),
            ("fp32", DtypeChoice::Float32),
            ("f32", DtypeChoice::Float32),
            ("torch.bfloat16", DtypeChoice::Bfloat16),
            ("BF16", DtypeChoice::Bfloat16),
            ("float16", DtypeChoice::Float16),
            ("fp16", DtypeChoice::Float16),
            ("f16", DtypeChoice::Float16),
            ("fp8", DtypeChoice::Fp8),
            ("FP8-weights", DtypeChoice::Fp8Weights),
            ("Q8_0", DtypeChoice::Q8_0),
        ] {
            assert_eq!(text.parse(), Ok(dtype), "{text}");
        }
        assert!("float64".parse::<DtypeChoice>().is_err());
    }

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
