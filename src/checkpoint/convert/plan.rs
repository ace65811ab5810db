//! What will be written: each tensor's name, shape and encoding, before one is read.

use std::collections::{BTreeMap, BTreeSet};

use super::format::Encoding;
use super::{ComponentLayout, ConvertError, OutputFormat};

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) encoding: Encoding,
    /// Bytes that it takes, a scale aside.
    pub(super) bytes: usize,
}

/// Plans what becomes of `tensors` (name and shape) as `format`, by name.
///
/// # Errors
/// A [`ConvertError`] if the format does not go with the component, or if that is not whole.
pub(super) fn plan(
    tensors: &BTreeMap<&str, &[usize]>,
    layout: &ComponentLayout,
    format: OutputFormat,
) -> Result<Vec<Planned>, ConvertError> {
    let component = layout.folder;
    if format.is_gguf() && layout.gguf_architecture.is_none() {
        return Err(ConvertError::NoGguf { component, format });
    }
    if let Some(reason) = gap(tensors.keys().copied(), layout) {
        return Err(ConvertError::Incomplete { component, reason });
    }
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|(name, shape)| planned(name, shape, format.encoding(layout, name, shape)))
        .collect::<Result<_, _>>()?;
    let is_quantized = |tensor: &Planned| tensor.encoding == Encoding::Fp8;
    if format == OutputFormat::Fp8 && !planned.iter().any(is_quantized) {
        return Err(ConvertError::NothingToQuantize { component, format });
    }
    Ok(planned)
}

fn planned(name: &str, shape: &[usize], encoding: Encoding) -> Result<Planned, ConvertError> {
    let bytes = encoding.bytes_of(shape).ok_or_else(|| ConvertError::Tensor {
        name: name.to_owned(),
        reason: format!("of shape {shape:?} cannot be written as {encoding}"),
    })?;
    Ok(Planned { name: name.to_owned(), shape: shape.to_vec(), encoding, bytes })
}

/// What is missing among `names`: blocks are counted from 0 without a gap, and have the same
/// tensors each. A file that is one of several would lack some.
fn gap<'a>(names: impl Iterator<Item = &'a str>, layout: &ComponentLayout) -> Option<String> {
    let mut blocks: BTreeMap<&str, BTreeMap<usize, BTreeSet<&str>>> = BTreeMap::new();
    for name in names {
        let Some((prefix, block, inner)) = layout.place_of(name) else { continue };
        blocks.entry(prefix).or_default().entry(block).or_default().insert(inner);
    }
    layout.blocks.iter().find_map(|prefix| {
        let blocks = blocks.get(prefix)?;
        let all: BTreeSet<&str> = blocks.values().flatten().copied().collect();
        let last = blocks.keys().next_back().copied().unwrap_or(0);
        (0..=last).find_map(|block| {
            let missing = match blocks.get(&block) {
                Some(inner) => all.difference(inner).next()?,
                None => "",
            };
            Some(format!("there is no {prefix}{block}.{missing}"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::ggml::GgmlType;
    use super::*;

    const LAYOUT: ComponentLayout = ComponentLayout {
        folder: "transformer",
        stem: "diffusion_pytorch_model",
        canonical: str::to_owned,
        blocks: &["transformer_blocks."],
        gguf_architecture: Some("qwen_image"),
    };

    const TENSORS: [(&str, &[usize]); 8] = [
        ("img_in.weight", &[3072, 64]),
        ("img_in.bias", &[3072]),
        ("transformer_blocks.0.attn.to_q.weight", &[3072, 3072]),
        ("transformer_blocks.0.attn.to_q.bias", &[3072]),
        ("transformer_blocks.0.attn.norm_q.weight", &[128]),
        ("transformer_blocks.0.narrow.weight", &[64, 32]),
        ("transformer_blocks.0.odd.weight", &[64, 33]),
        ("transformer_blocks.0.kernel.weight", &[64, 32, 3, 3]),
    ];

    fn encodings(format: OutputFormat) -> Vec<String> {
        let planned = plan(&BTreeMap::from(TENSORS), &LAYOUT, format).unwrap();
        let of = |name: &str| planned.iter().find(|tensor| tensor.name == name).unwrap();
        TENSORS.iter().map(|(name, _)| of(name).encoding.to_string()).collect()
    }

    #[test]
    fn matrices_of_blocks_are_quantized_and_nothing_else() {
        let gguf = |wide, narrow| {
            ["BF16", "F32", wide, "F32", "F32", narrow, "F16", "BF16"].map(str::to_owned)
        };

        assert_eq!(encodings(OutputFormat::Q8_0), gguf("Q8_0", "Q8_0"));
        assert_eq!(encodings(OutputFormat::Q4K), gguf("Q4_K", "Q8_0"));
        let fp8 = encodings(OutputFormat::Fp8);
        let (matrix, other) = ("F8_E4M3", "BF16");
        assert_eq!(fp8, [other, other, matrix, other, other, matrix, matrix, other]);
        for (format, name) in
            [(OutputFormat::Bf16, "BF16"), (OutputFormat::F16, "F16"), (OutputFormat::F32, "F32")]
        {
            assert!(encodings(format).iter().all(|encoding| encoding == name), "{format}");
        }
    }

    #[test]
    fn sizes_are_those_of_blocks() {
        let bytes = |kind, shape: &[usize]| Encoding::Ggml(kind).bytes_of(shape);

        assert_eq!(bytes(GgmlType::Q4K, &[2, 512]), Some(2 * 2 * 144));
        assert_eq!(bytes(GgmlType::Q4K, &[2, 100]), None);
        assert_eq!(bytes(GgmlType::F32, &[]), Some(4));
        assert_eq!(bytes(GgmlType::Bf16, &[0]), Some(0));
        assert_eq!(bytes(GgmlType::F32, &[usize::MAX, 2]), None);
        assert_eq!(Encoding::Fp8.bytes_of(&[2, 100]), Some(200));
    }

    #[test]
    fn what_does_not_go_with_a_component_is_refused() {
        let other = ComponentLayout { folder: "vae", gguf_architecture: None, ..LAYOUT };
        let fault = |tensors: &[(&'static str, &'static [usize])], layout, format| {
            let tensors = tensors.iter().copied().collect();
            plan(&tensors, layout, format).unwrap_err().to_string()
        };

        assert!(fault(&TENSORS, &other, OutputFormat::Q8_0).contains("q8_0 is GGUF"));
        let vectors = &TENSORS[3..5];
        assert!(fault(vectors, &LAYOUT, OutputFormat::Fp8).contains("no matrices"));
    }

    #[test]
    fn a_part_of_a_component_is_not_taken_for_all_of_it() {
        let gap = |names: &[&str]| gap(names.iter().copied(), &LAYOUT).unwrap_or_default();

        let whole = ["a", "transformer_blocks.0.b", "transformer_blocks.1.b"];
        assert_eq!(gap(&whole), "");
        assert_eq!(gap(&whole[2..]), "there is no transformer_blocks.0.");
        let uneven = [&whole[..], &["transformer_blocks.0.c"]].concat();
        assert_eq!(gap(&uneven), "there is no transformer_blocks.1.c");
    }
}
