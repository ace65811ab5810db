//! Configurations to measure, with the numbers of layers that are wanted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::checkpoint::{CheckpointError, Snapshot};
use crate::model::LoadError;
use crate::model::benchmark::LayerCounts;

/// A published model, by its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model::qwen_image) enum Published {
    /// Qwen/Qwen-Image.
    TextToImage,
    /// Qwen/Qwen-Image-Edit.
    Edit,
    /// Qwen/Qwen-Image-Edit-2511.
    Edit2511,
}

const TEXT_ENCODER: &str =
    include_str!("../../../../tests/data/manifest-full/text_encoder_config.json");
const VAE: &str = include_str!("../../../../tests/data/manifest-full/vae_config.json");
/// Of the miniature; its files say the same as the published ones.
const SCHEDULER: &str = include_str!(
    "../../../../tests/data/fixtures/ckpt/qwen-image-edit/scheduler/scheduler_config.json"
);
const PROCESSOR: &str = include_str!(
    "../../../../tests/data/fixtures/ckpt/qwen-image-edit/processor/preprocessor_config.json"
);
/// Of the miniature: the published vocabulary is larger, which no time depends on.
const TOKENIZER: &str =
    include_str!("../../../../tests/data/fixtures/ckpt/qwen-image-edit/processor/tokenizer.json");
const TOKENIZER_IMAGE_PAD: &str = "<|image_pad|>";

impl Published {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::TextToImage, Self::Edit, Self::Edit2511];

    /// The name that asks for it, as on the hub.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TextToImage => "qwen-image",
            Self::Edit => "qwen-image-edit",
            Self::Edit2511 => "qwen-image-edit-2511",
        }
    }

    fn class_name(self) -> &'static str {
        match self {
            Self::TextToImage => "QwenImagePipeline",
            Self::Edit => "QwenImageEditPipeline",
            Self::Edit2511 => "QwenImageEditPlusPipeline",
        }
    }

    /// The checkpoint's texts.
    pub(in crate::model::qwen_image) fn snapshot(self) -> Result<Snapshot, LoadError> {
        let mut text_encoder = parse("text_encoder/config.json", TEXT_ENCODER)?;
        text_encoder["image_token_id"] = image_token_id()?;
        let texts = [
            ("model_index.json", self.model_index().to_string()),
            ("processor/preprocessor_config.json", PROCESSOR.to_owned()),
            ("processor/tokenizer.json", TOKENIZER.to_owned()),
            ("scheduler/scheduler_config.json", SCHEDULER.to_owned()),
            ("text_encoder/config.json", text_encoder.to_string()),
            ("transformer/config.json", self.transformer().to_string()),
            ("vae/config.json", VAE.to_owned()),
        ];
        let texts = texts.map(|(file, text)| (file.to_owned(), text));
        Ok(Snapshot::Texts(BTreeMap::from(texts)))
    }

    fn model_index(self) -> Value {
        json!({
            "_class_name": self.class_name(),
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
            "transformer": ["diffusers", "QwenImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKLQwenImage"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "processor": ["transformers", "Qwen2VLProcessor"],
        })
    }

    fn transformer(self) -> Value {
        json!({
            "_class_name": "QwenImageTransformer2DModel",
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 60,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3584,
            "guidance_embeds": false,
            "axes_dims_rope": [16, 56, 56],
            "zero_cond_t": self == Self::Edit2511,
        })
    }
}

/// Texts that a pipeline is put together from.
const TEXT_FILES: &[&str] = &[
    "model_index.json",
    "diffuser.json",
    "processor/preprocessor_config.json",
    "processor/tokenizer.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/added_tokens.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "vae/config.json",
];

/// The texts of `snapshot`, with the numbers of layers changed.
pub(super) fn with_layers(snapshot: &Snapshot, layers: LayerCounts) -> Result<Snapshot, LoadError> {
    let mut texts = BTreeMap::new();
    for file in TEXT_FILES.iter().filter(|file| snapshot.has(file)) {
        texts.insert((*file).to_owned(), snapshot.text(file)?);
    }
    let mut change = |file: &str, pointers: &[&str], count: Option<usize>| {
        let (Some(count), Some(text)) = (count, texts.get_mut(file)) else {
            return Ok::<_, CheckpointError>(());
        };
        let mut config = parse(file, text)?;
        if let Some(place) = pointers.iter().find(|pointer| config.pointer(pointer).is_some()) {
            config.pointer_mut(place).into_iter().for_each(|value| *value = json!(count));
        }
        // The list names layers, too.
        config.as_object_mut().into_iter().for_each(|keys| drop(keys.remove("layer_types")));
        *text = config.to_string();
        Ok(())
    };
    change("transformer/config.json", &["/num_layers"], layers.transformer)?;
    let text = ["/text_config/num_hidden_layers", "/num_hidden_layers"];
    change("text_encoder/config.json", &text, layers.text)?;
    change("text_encoder/config.json", &["/vision_config/depth"], layers.vision)?;
    Ok(Snapshot::Texts(texts))
}

fn parse(file: &str, text: &str) -> Result<Value, CheckpointError> {
    serde_json::from_str(text).map_err(|error| CheckpointError::Malformed {
        file: file.to_owned(),
        reason: error.to_string(),
    })
}

/// The number of the tokenizer's placeholder for a picture.
fn image_token_id() -> Result<Value, CheckpointError> {
    let file = "processor/tokenizer.json";
    let tokenizer = parse(file, TOKENIZER)?;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let token = added.into_iter().find(|token| token["content"] == TOKENIZER_IMAGE_PAD);
    token.map(|token| token["id"].clone()).ok_or_else(|| CheckpointError::Malformed {
        file: file.to_owned(),
        reason: format!("has no {TOKENIZER_IMAGE_PAD}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_configurations_are_those_of_their_lists() {
        for (published, list) in [
            (Published::TextToImage, "Qwen-Image"),
            (Published::Edit, "Qwen-Image-Edit"),
            (Published::Edit2511, "Qwen-Image-Edit-2511"),
        ] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
            let list = folder.join(format!("tests/data/manifest-full/{list}.json"));
            let list: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(list).unwrap()).unwrap();
            let snapshot = published.snapshot().unwrap();
            let ours: serde_json::Value =
                serde_json::from_str(&snapshot.text("transformer/config.json").unwrap()).unwrap();

            for (key, value) in list["transformer"]["config"].as_object().unwrap() {
                assert_eq!(&ours[key], value, "{}: {key}", published.name());
            }
            let class_name: String =
                snapshot.config("model_index.json").unwrap().required("_class_name");
            assert_eq!(class_name, list["pipeline"]);
        }
    }
}
