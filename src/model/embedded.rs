//! The checkpoints inside the program.

use crate::checkpoint::EmbeddedCheckpoint;

/// Lists files of a folder, given from this source file, by their paths in the
/// checkpoint; `diffuser.json` may lie elsewhere.
macro_rules! checkpoint_files {
    ($folder:literal, $defaults:literal, $($file:literal),+ $(,)?) => {
        &[
            ("diffuser.json", include_bytes!($defaults)),
            $(($file, include_bytes!(concat!($folder, $file)))),+
        ]
    };
}

/// Qwen-Image-Edit in small, which follows a fixed list of instructions: what a
/// server serves that was told nothing. `tools/demo-model` makes it.
static DEMO: EmbeddedCheckpoint = EmbeddedCheckpoint {
    name: "demo",
    files: checkpoint_files!(
        "../../assets/demo/",
        "../../assets/demo/diffuser.json",
        "model_index.json",
        "processor/preprocessor_config.json",
        "processor/tokenizer.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ),
};

/// Qwen-Image-Edit in miniature, with random weights: it makes coloured noise.
/// The tests hold it against diffusers; clients can be tested with it.
static TINY_RANDOM: EmbeddedCheckpoint = EmbeddedCheckpoint {
    name: "tiny-random",
    files: checkpoint_files!(
        "../../tests/data/fixtures/ckpt/qwen-image-edit/",
        "tiny_random.json",
        "model_index.json",
        "processor/preprocessor_config.json",
        "processor/tokenizer.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00003.safetensors",
        "text_encoder/model-00002-of-00003.safetensors",
        "text_encoder/model-00003-of-00003.safetensors",
        "text_encoder/model.safetensors.index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ),
};

static CHECKPOINTS: &[&EmbeddedCheckpoint] = &[&DEMO, &TINY_RANDOM];

/// The checkpoint called `name`.
pub(super) fn find(name: &str) -> Option<&'static EmbeddedCheckpoint> {
    CHECKPOINTS.iter().find(|checkpoint| checkpoint.name == name).copied()
}

/// The names of all of them.
pub(super) fn names() -> Vec<&'static str> {
    CHECKPOINTS.iter().map(|checkpoint| checkpoint.name).collect()
}
