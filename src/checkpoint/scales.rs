//! Which numbers of a file are the scales of others.
//!
//! Files of 8 bits keep a matrix and its scales as tensors of two names, in several
//! spellings: `X.scale_weight` beside a tensor `scaled_fp8` (ComfyUI's older files),
//! `X.weight_scale` with a note in the file's header or in `X.comfy_quant` (its newer
//! ones), the same without a note (ModelOpt), `X.weight_scale_inv` by blocks of 128. Here
//! they become one: whoever takes `X.weight` gets numbers that are scaled. A matrix that
//! lacks its scale, a scale that lacks its matrix, and what is quantized in ways that are
//! not known here are faults: read as they lie they make a white picture, or noise.
//!
//! Sources: ComfyUI, `QUANTIZATION.md` and `quant_ops.py`; stable-diffusion.cpp,
//! `docs/int8_convrot.md`.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype;
use serde::Deserialize;

use super::listing::{FileListing, ListedTensor};
use super::rotation;
use super::storage::{EightBitFormat, EightBits, Scale, Storage};

/// The metadata key under which newer files say how layers are quantized.
const HEADER_NOTE: &str = "_quantization_metadata";
/// Tensors of one layer with a note in JSON.
const LAYER_NOTE: &str = ".comfy_quant";
/// The tensor that says that a file is of the older kind.
const OLDER_MARK: &str = "scaled_fp8";
/// The names of a matrix's scales after the layer's name.
const WEIGHT_SCALES: [&str; 3] = [".weight_scale", ".scale_weight", ".weight_scale_inv"];
/// What inputs would be scaled by, if they were rounded too. They are not, here.
const INPUT_SCALES: [&str; 2] = [".input_scale", ".scale_input"];
/// Rows and columns of a block of `weight_scale_inv`.
const BLOCK: usize = 128;
/// The group in which rows are rotated where a note names none.
const ROTATED_GROUP: usize = 256;
/// Bytes of a note on one layer: what is longer is none.
const LONGEST_NOTE: usize = 1 << 16;
/// How many layers a message lists before it only counts.
const LISTED: usize = 5;

/// Names that only tensors of other quantizations have, and those.
const OTHERS: [(&str, &str); 7] = [
    (".qweight", "packed integers of SVDQuant, AWQ or GPTQ"),
    (".wscales", "packed integers of SVDQuant"),
    (".weight_scale_2", "nvfp4"),
    (".pre_quant_scale", "nvfp4 with smoothed inputs"),
    (".absmax", "bitsandbytes' 4 bits"),
    (".quant_map", "bitsandbytes' 4 bits"),
    (".SCB", "bitsandbytes' 8 bits"),
];

/// How a layer is quantized, as a file says.
#[derive(Debug, Clone, Default, Deserialize)]
struct Note {
    #[serde(default)]
    format: String,
    #[serde(default)]
    convrot: bool,
    convrot_groupsize: Option<usize>,
}

/// The note of a whole file.
#[derive(Deserialize)]
struct HeaderNote {
    layers: BTreeMap<String, Note>,
}

/// Makes of matrices and scales in `listing` matrices with scales. `bytes`: the file;
/// `prefix`: what was taken from its names.
///
/// # Errors
/// What is quantized in a way that is not known, or whose scales do not fit.
pub(super) fn attach(listing: &mut FileListing, bytes: &[u8], prefix: &str) -> Result<(), String> {
    refuse_others(listing)?;
    let notes = notes(listing, bytes, prefix)?;
    refuse_unknown(&notes)?;
    let is_marked = listing.tensors.keys().any(|name| name == OLDER_MARK);
    let dropped = |name: &String| {
        name == OLDER_MARK
            || name.ends_with(LAYER_NOTE)
            || INPUT_SCALES.iter().any(|end| name.ends_with(end))
    };
    listing.tensors.retain(|name, _| !dropped(name));
    let scales = take_scales(listing)?;
    let is_scaled = is_marked || !scales.is_empty();
    let mut faults = Vec::new();
    for (name, tensor) in &mut listing.tensors {
        let Some(format) = eight_bits(&tensor.storage) else { continue };
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let note = notes.get(layer).cloned().unwrap_or_default();
        let scale = match scales.get(layer) {
            Some(scale) => scale_in(scale, bytes, &tensor.shape),
            None if tensor.shape.len() > 1 && (is_scaled || format == EightBitFormat::Int8) => {
                Err("has no scale".to_owned())
            }
            None => Ok(Scale::One(1.0)),
        };
        let eight = scale.and_then(|scale| {
            let rotated_by = rotated_by(&note, &tensor.shape)?;
            Ok(EightBits { format, scale, rotated_by })
        });
        match eight {
            Ok(eight) => tensor.storage = Storage::Eight(eight),
            Err(fault) => faults.push(format!("{name} {fault}")),
        }
    }
    faults.extend(lone_scales(listing, &scales));
    if faults.is_empty() { Ok(()) } else { Err(listed(&faults)) }
}

fn eight_bits(storage: &Storage) -> Option<EightBitFormat> {
    let Storage::Plain(dtype) = storage else { return None };
    let formats = [
        (Dtype::F8_E4M3, EightBitFormat::E4m3),
        (Dtype::F8_E5M2, EightBitFormat::E5m2),
        (Dtype::I8, EightBitFormat::Int8),
    ];
    formats.iter().find(|(known, _)| known == dtype).map(|(_, format)| *format)
}

fn refuse_others(listing: &FileListing) -> Result<(), String> {
    let kind_of = |name: &String| {
        let other = OTHERS.iter().find(|(ending, _)| name.ends_with(ending));
        other.map(|(_, kind)| format!("is quantized as {kind}, which is not supported ({name})"))
    };
    listing.tensors.keys().find_map(kind_of).map_or(Ok(()), Err)
}

/// What the file says of its layers, by their names without `prefix`.
fn notes(
    listing: &FileListing,
    bytes: &[u8],
    prefix: &str,
) -> Result<BTreeMap<String, Note>, String> {
    let mut notes = BTreeMap::new();
    if let Some(text) = listing.metadata.get(HEADER_NOTE) {
        let note: HeaderNote = serde_json::from_str(text)
            .map_err(|error| format!("has a {HEADER_NOTE} that cannot be read: {error}"))?;
        let own = |(name, note): (String, Note)| {
            (name.strip_prefix(prefix).map_or(name.clone(), str::to_owned), note)
        };
        notes.extend(note.layers.into_iter().map(own));
    }
    for (name, tensor) in &listing.tensors {
        let Some(layer) = name.strip_suffix(LAYER_NOTE) else { continue };
        let text = bytes.get(tensor.range.clone()).unwrap_or_default();
        if text.len() > LONGEST_NOTE {
            return Err(format!("has {name} of {} bytes", text.len()));
        }
        // Some are filled up with zeros.
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        let note = serde_json::from_slice(&text[..end])
            .map_err(|error| format!("has {name}, which cannot be read: {error}"))?;
        notes.insert(layer.to_owned(), note);
    }
    Ok(notes)
}

fn refuse_unknown(notes: &BTreeMap<String, Note>) -> Result<(), String> {
    let known = ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise"];
    let mut unknown = notes.iter().filter(|(_, note)| !known.contains(&note.format.as_str()));
    let Some((layer, note)) = unknown.next() else { return Ok(()) };
    let more = unknown.count();
    let and = if more > 0 { format!(" and {more} more layers") } else { String::new() };
    Err(format!("is quantized as '{}', which is not supported ({layer}{and})", note.format))
}

/// Takes the scales of matrices from `listing`, by their layers.
fn take_scales(listing: &mut FileListing) -> Result<BTreeMap<String, ListedTensor>, String> {
    let is_scale = |name: &String, _: &mut ListedTensor| layer_of(name).is_some();
    let mut scales = BTreeMap::new();
    for (name, tensor) in listing.tensors.extract_if(.., is_scale) {
        let layer = layer_of(&name).unwrap_or_default().to_owned();
        if scales.insert(layer, tensor).is_some() {
            return Err(format!("has two scales for one weight ({name})"));
        }
    }
    Ok(scales)
}

/// The layer whose scale is called `name`.
fn layer_of(name: &str) -> Option<&str> {
    WEIGHT_SCALES.iter().find_map(|end| name.strip_suffix(end))
}

/// The scales in `tensor` of a matrix of `shape`.
fn scale_in(tensor: &ListedTensor, bytes: &[u8], shape: &[usize]) -> Result<Scale, String> {
    let bytes = bytes.get(tensor.range.clone()).unwrap_or_default();
    if eight_bits(&tensor.storage).is_some() || !tensor.storage.is_known() {
        return Err(format!("has a scale stored as {}", tensor.storage.name()));
    }
    let mut numbers = vec![0.0; tensor.shape.iter().product()];
    tensor.storage.decode_row(bytes, 0, &mut numbers);
    if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
        return Err(format!("has a scale of {number}"));
    }
    let (rows, columns) = match shape {
        [] | [_] => (0, 0),
        [rows, inner @ ..] => (*rows, inner.iter().product::<usize>()),
    };
    let blocks = [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)];
    match (&tensor.shape[..], &numbers[..]) {
        (_, [number]) => Ok(Scale::One(*number)),
        ([count] | [count, 1], _) if *count == rows => Ok(Scale::Rows(numbers.into())),
        (dims, _) if *dims == blocks => {
            Ok(Scale::Blocks { block: (BLOCK, BLOCK), columns: blocks[1], scales: numbers.into() })
        }
        (dims, _) => Err(format!("of shape {shape:?} has scales of shape {dims:?}")),
    }
}

/// Elements of the groups in which rows of a matrix of `shape` were rotated.
fn rotated_by(note: &Note, shape: &[usize]) -> Result<Option<usize>, String> {
    if !note.convrot {
        return Ok(None);
    }
    let group = note.convrot_groupsize.unwrap_or(ROTATED_GROUP);
    let width = shape.last().copied().unwrap_or(0);
    if !rotation::is_group(group) || !width.is_multiple_of(group) {
        return Err(format!("of shape {shape:?} cannot be rotated in groups of {group}"));
    }
    Ok(Some(group))
}

/// Scales whose matrices are not there, or not in 8 bits.
fn lone_scales(listing: &FileListing, scales: &BTreeMap<String, ListedTensor>) -> Vec<String> {
    let scaled: BTreeSet<&str> = listing
        .tensors
        .iter()
        .filter(|(_, tensor)| matches!(tensor.storage, Storage::Eight(_)))
        .map(|(name, _)| name.strip_suffix(".weight").unwrap_or(name))
        .collect();
    let lone = scales.keys().filter(|layer| !scaled.contains(layer.as_str()));
    lone.map(|layer| format!("{layer} has a scale, but no weight of 8 bits")).collect()
}

fn listed(faults: &[String]) -> String {
    let more = faults.len().saturating_sub(LISTED);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    let first: Vec<&str> = faults.iter().take(LISTED).map(String::as_str).collect();
    format!("has tensors that cannot be read: {}{rest}", first.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::FileFormat;

    /// A file of such tensors, of a byte or four each.
    fn listing(tensors: &[(&str, Dtype, &[usize])]) -> FileListing {
        let listed = tensors.iter().map(|(name, dtype, shape)| {
            let (shape, storage) = (shape.to_vec(), Storage::Plain(*dtype));
            ((*name).to_owned(), ListedTensor { shape, storage, range: 0..4 })
        });
        let tensors = listed.collect();
        FileListing { format: FileFormat::Safetensors, tensors, metadata: BTreeMap::new() }
    }

    fn fault(tensors: &[(&str, Dtype, &[usize])]) -> String {
        attach(&mut listing(tensors), &1.5_f32.to_le_bytes(), "").unwrap_err()
    }

    #[test]
    fn a_weight_has_one_scale_and_a_scale_one_weight() {
        let weight = ("a.weight", Dtype::F8_E4M3, &[2_usize, 2][..]);
        let scale = |name| (name, Dtype::F32, &[][..]);

        let mut sound = listing(&[weight, scale("a.weight_scale"), scale("a.input_scale")]);
        attach(&mut sound, &1.5_f32.to_le_bytes(), "").unwrap();
        let names: Vec<&String> = sound.tensors.keys().collect();
        assert_eq!(names, ["a.weight"]);
        let Storage::Eight(eight) = &sound.tensors["a.weight"].storage else { panic!() };
        assert_eq!(eight.scale, Scale::One(1.5));

        let said = fault(&[weight, scale("a.weight_scale"), scale("a.scale_weight")]);
        assert!(said.contains("two scales"), "{said}");
        let said = fault(&[weight, ("b.weight", Dtype::F8_E4M3, &[2, 2]), scale("a.weight_scale")]);
        assert!(said.contains("b.weight has no scale"), "{said}");
        let said = fault(&[("a.weight", Dtype::BF16, &[1, 2]), scale("a.weight_scale")]);
        assert!(said.contains("no weight of 8 bits"), "{said}");
        let said = fault(&[weight, ("a.weight_scale", Dtype::F32, &[3])]);
        assert!(said.contains("scales of shape [3]"), "{said}");
        let said = fault(&[weight, ("a.weight_scale", Dtype::I32, &[])]);
        assert!(said.contains("scale stored as I32"), "{said}");
    }
}
