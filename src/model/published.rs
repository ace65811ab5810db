//! The small files of the published checkpoints: what a set of weights that comes without
//! them (GGUF files, ComfyUI's) is loaded with.
//!
//! `assets/published` holds them, and tells where they are from. All have the files of
//! `common`, unless they have one of the same path of their own. `vocab.json` is not stored:
//! it follows from `merges.txt`.

use std::collections::BTreeMap;
use std::iter;

use serde_json::{Map, Value};

/// A path inside the checkpoint, and the file's text.
type File = (&'static str, &'static str);

/// Lists files of a folder of `assets/published` by their paths in it.
macro_rules! files {
    ($folder:literal, $($file:literal),+ $(,)?) => {
        &[$((
            $file,
            include_str!(concat!("../../assets/published/", $folder, "/", $file)),
        )),+]
    };
}

/// The files that all have.
const COMMON: &[File] = files!(
    "common",
    "processor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/added_tokens.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "vae/config.json",
);

const MERGES: &str = include_str!("../../assets/published/common/tokenizer/merges.txt");

/// A repository of Qwen's, and the files that it has otherwise than the others.
struct Published {
    id: &'static str,
    own: &'static [File],
}

static CHECKPOINTS: &[Published] = &[
    Published { id: "Qwen/Qwen-Image", own: files!("Qwen-Image", "model_index.json") },
    Published { id: "Qwen/Qwen-Image-2512", own: files!("Qwen-Image-2512", "model_index.json") },
    Published { id: "Qwen/Qwen-Image-Edit", own: files!("Qwen-Image-Edit", "model_index.json") },
    Published {
        id: "Qwen/Qwen-Image-Edit-2509",
        own: files!("Qwen-Image-Edit-2509", "model_index.json"),
    },
    Published {
        id: "Qwen/Qwen-Image-Edit-2511",
        own: files!("Qwen-Image-Edit-2511", "model_index.json", "transformer/config.json"),
    },
    Published {
        id: "Qwen/Qwen-Image-Layered",
        own: files!(
            "Qwen-Image-Layered",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "transformer/config.json",
            "vae/config.json",
        ),
    },
];

impl Published {
    /// Whether `id` asks for it: the whole id, or what follows the owner.
    fn is(&self, id: &str) -> bool {
        self.id == id || self.id.strip_prefix("Qwen/") == Some(id)
    }

    fn texts(&self) -> BTreeMap<String, String> {
        let stored = COMMON.iter().chain(self.own);
        let mut texts: BTreeMap<_, _> =
            stored.map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        texts.insert("tokenizer/merges.txt".to_owned(), MERGES.to_owned());
        texts.insert("tokenizer/vocab.json".to_owned(), vocabulary(MERGES));
        texts
    }
}

/// The ids of all of them.
pub(super) fn ids() -> Vec<&'static str> {
    CHECKPOINTS.iter().map(|checkpoint| checkpoint.id).collect()
}

/// The whole id of the checkpoint that `id` asks for.
pub(super) fn full_id(id: &str) -> Option<&'static str> {
    CHECKPOINTS.iter().find(|checkpoint| checkpoint.is(id)).map(|checkpoint| checkpoint.id)
}

/// The texts of the checkpoint `id` by their paths in it; the owner `Qwen/` may be left out.
pub(super) fn find(id: &str) -> Option<BTreeMap<String, String>> {
    CHECKPOINTS.iter().find(|checkpoint| checkpoint.is(id)).map(Published::texts)
}

/// `vocab.json`: the tokens of single bytes and then what each merge makes, numbered from 0.
fn vocabulary(merges: &str) -> String {
    let made = merges.lines().filter(|line| !line.starts_with("#version"));
    let made = made.map(|line| line.replacen(' ', "", 1));
    let tokens = byte_alphabet().map(String::from).chain(made);
    let numbered: Map<String, Value> = iter::zip(tokens, (0_u32..).map(Value::from)).collect();
    Value::Object(numbered).to_string()
}

/// The characters that stand for the 256 bytes, as GPT-2 orders them: first the printable
/// ones of Latin-1, which stand for themselves, then others for the bytes between those.
fn byte_alphabet() -> impl Iterator<Item = char> {
    ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('\u{100}'..='\u{143}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Snapshot;
    use crate::model::components::flow_match::{SchedulerConfig, Shift, TimeShift};
    use crate::model::qwen_image::config::{
        ProcessorConfig, TextEncoderConfig, TransformerConfig, VaeConfig,
    };
    use crate::model::qwen_image::prompt::{PromptTemplate, PromptTokenizer};

    fn snapshot(id: &str) -> Snapshot {
        Snapshot::Texts(find(id).expect(id))
    }

    #[test]
    fn a_checkpoint_is_found_by_its_id_with_and_without_its_owner_and_by_no_other_name() {
        assert_eq!(ids().len(), 6);
        for id in ids() {
            let name = id.strip_prefix("Qwen/").unwrap();

            assert!(find(id).is_some(), "{id}");
            assert_eq!(find(name), find(id), "{name}");
        }
        for other in ["", "Qwen/", "Qwen", "Qwen-Image-Edit-25", "unsloth/Qwen-Image-Edit-2511"] {
            assert_eq!(find(other), None, "{other}");
        }
    }

    #[test]
    fn every_checkpoint_has_the_files_of_its_pipeline_and_their_published_sizes() {
        for id in ids() {
            let snapshot = snapshot(id);

            let transformer = TransformerConfig::load(&snapshot).unwrap();
            let text_encoder = TextEncoderConfig::load(&snapshot).unwrap();
            let vae = VaeConfig::load(&snapshot).unwrap();
            let processor = ProcessorConfig::load(&snapshot, &text_encoder.vision).unwrap();
            let scheduler = SchedulerConfig::load(&snapshot).unwrap();

            assert_eq!((transformer.num_layers, transformer.inner_dim()), (60, 3072), "{id}");
            assert_eq!(transformer.joint_attention_dim, text_encoder.text.hidden_size, "{id}");
            assert_eq!(transformer.out_channels, vae.z_dim, "{id}");
            assert_eq!(text_encoder.text.vocab_size, 152_064, "{id}");
            assert_eq!((processor.min_pixels, processor.max_pixels), (3136, 12_845_056), "{id}");
            assert_eq!(scheduler.num_train_timesteps, 1000, "{id}");
        }
    }

    #[test]
    fn each_checkpoint_is_of_its_pipeline() {
        let expected = [
            ("Qwen-Image", "QwenImagePipeline"),
            ("Qwen-Image-2512", "QwenImagePipeline"),
            ("Qwen-Image-Edit", "QwenImageEditPipeline"),
            ("Qwen-Image-Edit-2509", "QwenImageEditPlusPipeline"),
            ("Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline"),
            ("Qwen-Image-Layered", "QwenImageLayeredPipeline"),
        ];
        for (name, class_name) in expected {
            let index = snapshot(name).config("model_index.json").unwrap();

            assert_eq!(index.peek("_class_name"), Some(&Value::from(class_name)), "{name}");
            assert_eq!(index.has("processor"), class_name != "QwenImagePipeline", "{name}");
        }
    }

    #[test]
    fn what_no_tensor_tells_is_of_one_checkpoint_alone() {
        for id in ids() {
            let snapshot = snapshot(id);
            let transformer = TransformerConfig::load(&snapshot).unwrap();
            let vae = VaeConfig::load(&snapshot).unwrap();
            let scheduler = SchedulerConfig::load(&snapshot).unwrap();

            assert_eq!(transformer.zero_cond_t, id == "Qwen/Qwen-Image-Edit-2511", "{id}");
            let is_layered = id == "Qwen/Qwen-Image-Layered";
            assert_eq!(transformer.use_additional_t_cond, is_layered, "{id}");
            assert_eq!(transformer.use_layer3d_rope, is_layered, "{id}");
            assert_eq!(vae.input_channels, if is_layered { 4 } else { 3 }, "{id}");
            let terminal = if is_layered { None } else { Some(0.02) };
            assert_eq!(scheduler.shift_terminal, terminal, "{id}");
            let expected = if is_layered { TimeShift::Linear } else { TimeShift::Exponential };
            assert!(
                matches!(scheduler.shift, Shift::Dynamic { kind, .. } if kind == expected),
                "{id}: {:?}",
                scheduler.shift
            );
        }
    }

    #[test]
    fn the_vocabulary_is_that_of_qwen2_5() {
        let text = vocabulary(MERGES);
        let vocab: BTreeMap<String, u32> = serde_json::from_str(&text).unwrap();

        assert_eq!(vocab.len(), 151_643);
        let ids: std::collections::BTreeSet<u32> = vocab.values().copied().collect();
        assert_eq!(ids.last(), Some(&151_642));
        assert_eq!(ids.len(), vocab.len());
        // Of the published file: the first bytes, the first merge, the last.
        for (token, id) in [("!", 0), ("\u{143}", 255), ("ĠĠ", 256), ("â½Ĺ", 151_642)] {
            assert_eq!(vocab.get(token), Some(&id), "{token}");
        }
        // As long as it is published, too, in whatever order.
        assert_eq!(text.len(), 2_776_833);
    }

    #[test]
    fn words_become_the_ids_that_the_published_tokenizer_gives_them() {
        let snapshot = snapshot("Qwen-Image-Edit-2511");
        let image_token_id = TextEncoderConfig::load(&snapshot).unwrap().image_token_id;
        let tokenizer = PromptTokenizer::load(&snapshot, image_token_id).unwrap();

        tokenizer.check_ids(152_064).unwrap();
        tokenizer.check(&PromptTemplate::TEXT).unwrap();
        tokenizer.check(&PromptTemplate::EDIT).unwrap();
        // tiktoken 0.14 with the ranks that the files were made from.
        let expected: &[(&str, &[u32])] = &[
            ("Hello, world!", &[9707, 11, 1879, 0]),
            ("把背景换成雪山", &[99_360, 102_193, 113_552, 112_642]),
            (
                "Ersetze den Himmel über dem Haus",
                &[19_462, 746, 2986, 3371, 472, 64_864, 13_785, 2429, 47_375],
            ),
            ("하늘을 노을로", &[16_186, 127_478, 17_877, 127_042, 17_877, 17_380]),
            ("غيّر الخلفية", &[125_313, 73_771, 11_071, 124_147, 124_284, 73_441]),
            ("🐱 e\u{301}\r\n\t  x", &[146_110, 3958, 319, 3677, 856]),
            ("it's 7:45pm", &[275, 594, 220, 22, 25, 19, 20, 5187]),
            (
                "<|im_start|>user\n<|image_pad|><tool_call><|file_sep|>",
                &[151_644, 872, 198, 151_655, 151_657, 151_664],
            ),
        ];
        for (text, ids) in expected {
            assert_eq!(tokenizer.ids(text).unwrap(), *ids, "{text}");
        }
    }
}
