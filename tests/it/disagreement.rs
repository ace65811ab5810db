//! Checkpoints whose configuration says something else than their tensors: the message
//! names the setting.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::checkpoints::{copy_folder, load};

/// What is said of qwen-image-edit whose `file` has other values at some pointers.
fn fault(file: &str, changes: &[(&str, Value)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let original = "tests/data/fixtures/ckpt/qwen-image-edit";
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join(original), folder.path());
    let path = folder.path().join(file);
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    // The text encoder's files say some things twice.
    for (pointer, value) in changes {
        for place in [(*pointer).to_owned(), format!("/text_config{pointer}")] {
            if let Some(known) = config.pointer_mut(&place) {
                *known = value.clone();
            }
        }
    }
    std::fs::write(&path, config.to_string()).unwrap();
    match load(&folder.path().display().to_string()) {
        Ok(_) => panic!("{changes:?} load"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_setting_that_the_tensors_contradict_is_named_and_they_are_not() {
    let (transformer, text, vae) =
        ("transformer/config.json", "text_encoder/config.json", "vae/config.json");
    for (file, pointer, value, expected) in [
        (
            vae,
            "/num_res_blocks",
            json!(1),
            "num_res_blocks = 1, but the file has 3 residual blocks in decoder.up_blocks.0",
        ),
        (
            vae,
            "/base_dim",
            json!(8),
            "base_dim = 8, but encoder.conv_in.weight has shape [4, 3, 3, 3, 3]",
        ),
        (
            vae,
            "/dim_mult",
            json!([1, 2, 4, 2]),
            "dim_mult = [1, 2, 4, 2] times base_dim = 4, but \
             decoder.up_blocks.1.resnets.0.conv1.weight has shape [8, 4, 3, 3, 3]",
        ),
        (
            transformer,
            "/num_layers",
            json!(3),
            "num_layers = 3, but the file has 2 blocks in transformer_blocks",
        ),
        (
            transformer,
            "/num_layers",
            json!(1),
            "num_layers = 1, but the file has 2 blocks in transformer_blocks",
        ),
        (
            transformer,
            "/num_attention_heads",
            json!(4),
            "num_attention_heads = 4 times attention_head_dim = 12, but img_in.weight has shape \
             [36, 64]",
        ),
        (
            text,
            "/num_hidden_layers",
            json!(4),
            "num_hidden_layers = 4, but the file has 2 layers in model.layers",
        ),
        (
            text,
            "/intermediate_size",
            json!(64),
            "intermediate_size = 64, but model.layers.0.mlp.gate_proj.weight has shape [56, 40]",
        ),
        (
            text,
            "/num_key_value_heads",
            json!(5),
            "num_key_value_heads = 5 of num_attention_heads = 5, but \
             model.layers.0.self_attn.k_proj.weight has shape [8, 40]",
        ),
        (
            text,
            "/vocab_size",
            json!(500),
            "vocab_size = 500, but model.embed_tokens.weight has shape [496, 40]",
        ),
        (
            text,
            "/vision_config/depth",
            json!(6),
            "vision_config.depth = 6, but the file has 4 blocks in visual.blocks",
        ),
        (
            text,
            "/vision_config/hidden_size",
            json!(24),
            "vision_config.hidden_size = 24, but visual.patch_embed.proj.weight has shape \
             [16, 3, 2, 14, 14]",
        ),
        (
            text,
            "/vision_config/intermediate_size",
            json!(40),
            "vision_config.intermediate_size = 40, but visual.blocks.0.mlp.gate_proj.weight has \
             shape [44, 16]",
        ),
    ] {
        assert_eq!(fault(file, &[(pointer, value)]), format!("{file}: {expected}"));
    }
}

#[test]
fn stages_of_the_vae_are_counted() {
    let changes = [("/dim_mult", json!([1, 2, 2])), ("/temperal_downsample", json!([false, true]))];

    let said = fault("vae/config.json", &changes);

    let expected = "dim_mult = [1, 2, 2], but the file has 4 stages in decoder.up_blocks";
    assert_eq!(said, format!("vae/config.json: {expected}"));
}
