//! The files that people have, at the real size: their names and shapes resolve completely,
//! and what they take is planned, without a weight. The lists are those of
//! `tests/data/manifest-files`; the files made of them are holes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use diffuser_api::model::{ModelConfig, ModelFiles, ModelPlan, inspect};
use serde_json::{Value, json};

use crate::support::checkpoints::offline_hub;

/// A tensor of a list.
struct Listed {
    name: String,
    kind: String,
    shape: Vec<u64>,
}

impl Listed {
    fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().product();
        match self.kind.as_str() {
            "F8_E4M3" | "U8" => elements,
            kind => {
                let (_, of_block, bytes) = ggml(kind);
                elements / of_block * bytes
            }
        }
    }
}

fn manifest(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/manifest-files");
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The tensors of a list: `"TYPE 3072x64": [names]`, "TYPE" for a scalar.
fn tensors(manifest: &Value) -> Vec<Listed> {
    let groups = manifest["tensors"].as_object().unwrap();
    let listed = groups.iter().flat_map(|(group, names)| {
        let (kind, sides) = group.split_once(' ').unwrap_or((group, ""));
        let shape: Vec<u64> =
            sides.split('x').filter(|side| !side.is_empty()).map(|s| s.parse().unwrap()).collect();
        names.as_array().unwrap().iter().map(move |name| Listed {
            name: name.as_str().unwrap().to_owned(),
            kind: kind.to_owned(),
            shape: shape.clone(),
        })
    });
    listed.collect()
}

/// GGML's number of a type, and elements and bytes of its blocks.
fn ggml(kind: &str) -> (u32, u64, u64) {
    match kind {
        "F32" => (0, 1, 4),
        "F16" => (1, 1, 2),
        "BF16" => (30, 1, 2),
        "Q8_0" => (8, 32, 34),
        "Q4_K" => (12, 256, 144),
        "Q5_K" => (13, 256, 176),
        "Q6_K" => (14, 256, 210),
        other => panic!("{other}"),
    }
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

/// The header of a GGUF file, and the bytes after it.
fn gguf(manifest: &Value) -> (Vec<u8>, u64) {
    let tensors = tensors(manifest);
    let metadata = manifest["metadata"].as_object().unwrap();
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut header, key);
        match value {
            Value::String(value) => {
                header.extend(8_u32.to_le_bytes());
                text(&mut header, value);
            }
            Value::Bool(value) => {
                header.extend(7_u32.to_le_bytes());
                header.push((*value).into());
            }
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                header.extend(5_u32.to_le_bytes());
                header.extend((value.as_i64().unwrap() as i32).to_le_bytes());
            }
        }
    }
    let mut end = 0_u64;
    for tensor in &tensors {
        let Listed { name, kind, shape } = tensor;
        let (code, ..) = ggml(kind);
        text(&mut header, name);
        header.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|side| header.extend(side.to_le_bytes()));
        header.extend(code.to_le_bytes());
        header.extend(end.to_le_bytes());
        end = (end + tensor.bytes()).next_multiple_of(32);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    (header, end)
}

/// The same of a safetensors file.
fn safetensors(manifest: &Value) -> (Vec<u8>, u64) {
    let mut entries = serde_json::Map::new();
    let mut end = 0;
    for tensor in tensors(manifest) {
        let begin = end;
        end += tensor.bytes();
        let Listed { name, kind, shape } = tensor;
        let entry = json!({"dtype": kind, "shape": shape, "data_offsets": [begin, end]});
        entries.insert(name, entry);
    }
    let text = Value::Object(entries).to_string();
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.as_bytes());
    (header, end)
}

/// A file of the list `name`, nearly all of it a hole.
fn write(folder: &Path, name: &str) -> PathBuf {
    let manifest = manifest(name);
    let (header, data) = match manifest["format"].as_str().unwrap() {
        "gguf" => gguf(&manifest),
        _ => safetensors(&manifest),
    };
    let path = folder.join(name);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + data).unwrap();
    path
}

const VAE: &str = "qwen_image_vae.safetensors";
const FP8_TEXT: &str = "qwen_2.5_vl_7b_fp8_scaled.safetensors";
const GGUF_TEXT: &str = "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf";
const MMPROJ: &str = "mmproj-F16.gguf";

/// A set of files, each in a folder of its own: the transformer's first.
fn planned(files: &[&str], card_bytes: usize) -> ModelPlan {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = files.iter().map(|name| write(folder.path(), name)).collect();
    let variant = Some("Qwen-Image-Edit-2511".to_owned());
    let config = ModelConfig { variant, ..ModelConfig::of(paths[0].display().to_string()) };
    let files = ModelFiles::find(&config, &offline_hub()).unwrap_or_else(|e| panic!("{e:?}"));
    files.plan_for_card(card_bytes).unwrap_or_else(|e| panic!("{e:?}"))
}

/// The sets, by what people call them.
const SETS: [(&str, &[&str]); 4] = [
    ("bf16 with fp8 text encoder", &["qwen_image_edit_2511_bf16.safetensors", FP8_TEXT, VAE]),
    ("fp8 mixed", &["qwen_image_edit_2511_fp8mixed.safetensors", FP8_TEXT, VAE]),
    ("GGUF Q8_0", &["qwen-image-edit-2511-Q8_0.gguf", GGUF_TEXT, MMPROJ, VAE]),
    ("GGUF Q4_K_M", &["qwen-image-edit-2511-Q4_K_M.gguf", GGUF_TEXT, MMPROJ, VAE]),
];

/// What each set takes of each card: the table that the documents show.
fn table() -> String {
    let gib = |bytes: usize| format!("{:.1}", bytes as f64 / f64::from(1 << 30));
    let mut table = String::from(
        "| set | card | transformer blocks | text encoder | VAE, the rest | a picture | in all |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (set, files) in SETS {
        for card in [8_usize, 12, 16, 24, 48, 80] {
            let plan = planned(files, card * 1_000_000_000);
            let of = |names: &[&str]| {
                let parts = plan.components.iter().filter(|part| names.contains(&part.name));
                let sums = parts.fold((0, 0), |(all, stay), part| {
                    (all + part.bytes, stay + part.resident_bytes)
                });
                match sums {
                    (all, stay) if all == stay => gib(all),
                    (all, stay) => format!("{} of {}", gib(stay), gib(all)),
                }
            };
            let blocks = ["transformer blocks"];
            let text = ["text encoder layers", "vision tower layers", "word embeddings"];
            let names = plan.components.iter().map(|part| part.name);
            let rest: Vec<&str> =
                names.filter(|name| !blocks.contains(name) && !text.contains(name)).collect();
            let picture = gib(plan.activation_bytes.unwrap());
            table += &format!(
                "| {set} | {card} GB | {} | {} | {} | {picture} | {} |\n",
                of(&blocks),
                of(&text),
                of(&rest),
                gib(plan.total_bytes),
            );
        }
    }
    table
}

#[test]
fn names_and_shapes_of_every_published_kind_of_file_resolve_completely() {
    for (set, files) in SETS {
        let plan = planned(files, 80_000_000_000);
        // Every tensor was asked for in its shape, and none is left over; bytes as stored.
        // Of quantized words rows are read when they are needed.
        let unused = ["lm_head.weight", "output.weight", "token_embd.weight"];
        let used = |name: &&str| {
            let listed = tensors(&manifest(name));
            let listed = listed.into_iter().filter(|one| !unused.contains(&one.name.as_str()));
            listed.map(|one| one.bytes()).sum::<u64>()
        };
        let expected: u64 = files.iter().map(used).sum();
        // Vectors are computed with in 16 bits, and every row of fp8 gets its scale.
        let ratio = plan.weight_bytes() as f64 / expected as f64;
        assert!((0.99..1.01).contains(&ratio), "{set}: {ratio}");
    }
}

#[test]
fn what_they_are_is_told_by_their_content() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str| {
        let found = inspect(&write(folder.path(), name)).unwrap();
        assert_eq!((found.otherwise, found.fault), (None, None), "{name}");
        (found.components.join(" and "), found.storages)
    };
    let (what, storages) = told("qwen-image-edit-2511-Q4_K_M.gguf");
    assert!(what.contains("Qwen/Qwen-Image-Edit-2511"), "{what}");
    let counts: BTreeMap<&str, usize> =
        storages.iter().map(|(name, (count, _))| (name.as_str(), *count)).collect();
    let expected =
        [("F32", 1087), ("BF16", 6), ("Q4_K", 560), ("Q5_K", 20), ("Q6_K", 258), ("Q8_0", 2)];
    assert_eq!(counts, BTreeMap::from(expected));

    let (what, storages) = told(FP8_TEXT);
    assert_eq!(what, "the text encoder, with its vision tower");
    assert_eq!(storages["F8_E4M3, scaled"].0 + storages.get("F8_E4M3").map_or(0, |one| one.0), 358);
    assert!(told(MMPROJ).0.contains("vision tower"));
    assert_eq!(told(VAE).0, "the autoencoder");
}

#[test]
fn the_table_of_cards_in_the_documents_is_what_is_planned() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/memory.md");
    let document = std::fs::read_to_string(path).unwrap();
    let table = table();
    assert!(document.contains(&table), "docs/memory.md should have:\n{table}");
}
