//! The formats that are written, and which of them each tensor gets.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use super::super::ggml::GgmlType;
use super::ComponentLayout;

/// What a component is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Safetensors in 16 bits with the range of 32.
    Bf16,
    /// Safetensors in 16 bits.
    F16,
    /// Safetensors in 32 bits.
    F32,
    /// Safetensors with the matrices of the blocks in 8-bit floats, each with a scale.
    Fp8,
    /// GGUF with the matrices of the blocks in 8 bits.
    Q8_0,
    /// GGUF with them in 4 bits, where their rows can be.
    Q4K,
}

/// The format is none of those that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {}", OutputFormat::ALL.map(OutputFormat::name).join(", "))]
pub struct UnknownFormat;

/// How one tensor is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As GGML writes it; safetensors have the plain types, too.
    Ggml(GgmlType),
    /// In e4m3, with a scale.
    Fp8,
}

impl OutputFormat {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Bf16, Self::F16, Self::F32, Self::Fp8, Self::Q8_0, Self::Q4K];

    /// How it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Fp8 => "fp8",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// Whether it is a GGUF file; else it is safetensors.
    #[must_use]
    pub const fn is_gguf(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4K)
    }

    /// How names of such files end.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        if self.is_gguf() { "gguf" } else { "safetensors" }
    }

    /// How the tensor `name` of `shape` is written.
    pub(super) fn encoding(
        self,
        layout: &ComponentLayout,
        name: &str,
        shape: &[usize],
    ) -> Encoding {
        let matrix_width = match shape {
            [_, width] if name.ends_with(".weight") && layout.is_in_block(name) => Some(*width),
            _ => None,
        };
        match self {
            Self::F32 => Encoding::Ggml(GgmlType::F32),
            Self::F16 => Encoding::Ggml(GgmlType::F16),
            Self::Bf16 => Encoding::Ggml(GgmlType::Bf16),
            Self::Fp8 if matrix_width.is_some() => Encoding::Fp8,
            Self::Fp8 => Encoding::Ggml(GgmlType::Bf16),
            Self::Q8_0 | Self::Q4K => Encoding::Ggml(self.ggml_type(shape, matrix_width)),
        }
    }

    /// As city96's converter decides, and llama-quantize where rows do not divide.
    fn ggml_type(self, shape: &[usize], matrix_width: Option<usize>) -> GgmlType {
        let Some(width) = matrix_width else {
            return if shape.len() < 2 { GgmlType::F32 } else { GgmlType::Bf16 };
        };
        let wanted = if self == Self::Q4K { GgmlType::Q4K } else { GgmlType::Q8_0 };
        let fits = |kind: &GgmlType| kind.row_bytes(width).is_some();
        [wanted, GgmlType::Q8_0].into_iter().find(fits).unwrap_or(GgmlType::F16)
    }

    /// `general.file_type` of a GGUF file: `LlamaFileType` of the `gguf` package.
    pub(super) const fn file_type(self) -> Option<i128> {
        match self {
            Self::Q8_0 => Some(7),
            // All matrices alike, which llama.cpp calls Q4_K_S.
            Self::Q4K => Some(14),
            Self::Bf16 | Self::F16 | Self::F32 | Self::Fp8 => None,
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for OutputFormat {
    type Err = UnknownFormat;

    /// Reads a name in any case of letters, and torch's for the plain ones.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let known = match lower.as_str() {
            "bfloat16" => Some(Self::Bf16),
            "float16" | "fp16" => Some(Self::F16),
            "float32" | "fp32" => Some(Self::F32),
            name => Self::ALL.into_iter().find(|format| format.name() == name),
        };
        known.ok_or(UnknownFormat)
    }
}

impl Encoding {
    /// Bytes of `shape`, if there can be such a tensor.
    pub(super) fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let (width, rows) = shape.split_last().map_or((1, shape), |(width, rows)| (*width, rows));
        let of_row = match self {
            Self::Ggml(kind) => kind.row_bytes(width)?,
            Self::Fp8 => width,
        };
        rows.iter().try_fold(of_row, |bytes, side| bytes.checked_mul(*side))
    }

    /// The largest number that it keeps: a larger one would become infinite.
    pub(super) fn largest(self) -> f32 {
        match self {
            Self::Ggml(GgmlType::Bf16) => bf16::MAX.to_f32(),
            Self::Ggml(GgmlType::F32) | Self::Fp8 => f32::MAX,
            // Others have scales of such.
            Self::Ggml(_) => f16::MAX.to_f32(),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ggml(kind) => kind.name(),
            Self::Fp8 => "F8_E4M3",
        })
    }
}
