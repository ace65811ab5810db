//! Writes planned tensors one after another, whichever format the file has.

use std::collections::BTreeMap;
use std::io::{BufWriter, Seek, Write};

use ::safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::super::ggml::GgmlType;
use super::super::gguf::{GgufValue, GgufWriteError, GgufWriter, PlannedTensor};
use super::super::tensor_files::{Stored, TensorFiles};
use super::encode::{each_rows, encode, largest_of, scale_for};
use super::format::Encoding;
use super::output::OutputFile;
use super::plan::Planned;
use super::safetensors::{Entry, SafetensorsWriter};
use super::{Conversion, ConvertError};

/// What is read and written at a time by the system.
const BUFFER_BYTES: usize = 1 << 20;

/// What the name of a matrix's scale has in the place of `weight`.
const SCALE: &str = "weight_scale";

/// A file in the making.
enum Sink<W> {
    Safetensors(SafetensorsWriter<W>),
    Gguf(GgufWriter<W>),
}

/// Writes the tensors that are `planned`, out of `files`; `on_bytes` is told of each piece.
pub(super) fn write(
    files: &TensorFiles,
    planned: &[Planned],
    conversion: &Conversion,
    file: &OutputFile,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), ConvertError> {
    let out = BufWriter::with_capacity(BUFFER_BYTES, file.file());
    let cannot = |error| fault(error, file);
    let mut sink = Sink::start(out, planned, conversion).map_err(cannot)?;
    if let (Sink::Gguf(writer), Some(mark)) = (&mut sink, conversion.mark) {
        writer.append(mark, &0.0_f32.to_le_bytes()).map_err(cannot)?;
    }
    let mut bytes = Vec::new();
    for tensor in planned {
        let stored = stored(files, tensor)?;
        let scale = match tensor.encoding {
            Encoding::Fp8 => scale_for(largest_of(stored, tensor)?),
            Encoding::Ggml(_) => 1.0,
        };
        if tensor.encoding == Encoding::Fp8 {
            sink.append(&scale_name(&tensor.name), &scale.to_le_bytes()).map_err(cannot)?;
        }
        each_rows(stored, |numbers, width| {
            encode(numbers, (width, scale), tensor, &mut bytes)?;
            sink.append(&tensor.name, &bytes).map_err(cannot)?;
            on_bytes(bytes.len() as u64);
            Ok(())
        })?;
    }
    sink.finish().map_err(cannot)
}

fn stored<'a>(files: &'a TensorFiles, tensor: &Planned) -> Result<Stored<'a>, ConvertError> {
    let fault = |reason| ConvertError::Tensor { name: tensor.name.clone(), reason };
    let found = files.find(&tensor.name, &tensor.shape);
    found.unwrap_or_else(|| Err("is missing".to_owned())).map_err(fault)
}

fn fault(error: GgufWriteError, file: &OutputFile) -> ConvertError {
    if let GgufWriteError::Io(source) = error {
        return file.cannot(source);
    }
    ConvertError::Gguf(error)
}

impl<W: Write + Seek> Sink<W> {
    fn start(out: W, planned: &[Planned], conversion: &Conversion) -> Result<Self, GgufWriteError> {
        let Conversion { layout, format, mark, .. } = conversion;
        if let (Some(architecture), Some(file_type)) =
            (layout.gguf_architecture, format.file_type())
        {
            let metadata = [
                ("general.architecture", GgufValue::Text(architecture.to_owned())),
                ("general.quantization_version", GgufValue::Integer(2)),
                ("general.file_type", GgufValue::Integer(file_type)),
            ];
            // One element: programs of ggml's expect tensors to have some.
            let mark = mark.map(|name| PlannedTensor {
                name: name.to_owned(),
                kind: GgmlType::F32,
                shape: vec![1],
            });
            let tensors: Vec<_> =
                mark.into_iter().chain(planned.iter().filter_map(in_gguf)).collect();
            return GgufWriter::start(out, &metadata, &tensors).map(Self::Gguf);
        }
        // None, as ComfyUI's own files have it.
        let mark = mark.map(|name| Entry {
            name: name.to_owned(),
            dtype: Dtype::BF16,
            shape: vec![0],
            bytes: 0,
        });
        let entries = planned.iter().flat_map(in_safetensors).chain(mark).collect();
        Ok(Self::Safetensors(SafetensorsWriter::start(out, &metadata(planned), entries)?))
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufWriteError> {
        match self {
            Self::Safetensors(writer) => Ok(writer.append(name, bytes)?),
            Self::Gguf(writer) => writer.append(name, bytes),
        }
    }

    fn finish(self) -> Result<(), GgufWriteError> {
        match self {
            Self::Safetensors(writer) => Ok(writer.finish().map(drop)?),
            Self::Gguf(writer) => writer.finish().map(drop),
        }
    }
}

fn in_gguf(tensor: &Planned) -> Option<PlannedTensor> {
    let Encoding::Ggml(kind) = tensor.encoding else { return None };
    Some(PlannedTensor { name: tensor.name.clone(), kind, shape: tensor.shape.clone() })
}

/// The tensor, and its scale.
fn in_safetensors(tensor: &Planned) -> Vec<Entry> {
    let Planned { name, shape, bytes, encoding } = tensor;
    let dtype = match encoding {
        Encoding::Fp8 => Dtype::F8_E4M3,
        Encoding::Ggml(GgmlType::F32) => Dtype::F32,
        Encoding::Ggml(GgmlType::F16) => Dtype::F16,
        // No blocks are planned for safetensors.
        Encoding::Ggml(_) => Dtype::BF16,
    };
    let own = Entry { name: name.clone(), dtype, shape: shape.clone(), bytes: *bytes };
    let scale = (*encoding == Encoding::Fp8).then(|| Entry {
        name: scale_name(name),
        dtype: Dtype::F32,
        shape: Vec::new(),
        bytes: 4,
    });
    [own].into_iter().chain(scale).collect()
}

fn layer_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn scale_name(name: &str) -> String {
    format!("{}.{SCALE}", layer_of(name))
}

/// What the file says of itself: whose tensors they are, as diffusers has it, and which layers
/// are quantized, as ComfyUI has.
fn metadata(planned: &[Planned]) -> BTreeMap<&'static str, String> {
    let mut said = BTreeMap::from([("format", "pt".to_owned())]);
    let quantized = planned.iter().filter(|tensor| tensor.encoding == Encoding::Fp8);
    let note = |tensor: &Planned| {
        (layer_of(&tensor.name).to_owned(), json!({ "format": "float8_e4m3fn" }))
    };
    let layers: Map<String, Value> = quantized.map(note).collect();
    if !layers.is_empty() {
        let note = json!({ "format_version": "1.0", "layers": layers });
        said.insert("_quantization_metadata", note.to_string());
    }
    said
}
