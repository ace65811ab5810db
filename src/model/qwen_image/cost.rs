//! What a picture costs: floating-point operations of each stage, counted from
//! the configuration alone.
//!
//! Counted as [`operations`](crate::model::components::operations) says.

use super::config::{TextConfig, TransformerConfig, VaeConfig, VisionConfig};
use super::positions::Grid;
use crate::model::components::operations::{Operations, convolution, middle, residual};

/// One pass of the transformer, of which the flow at `read` of the image tokens is read.
#[must_use]
pub(crate) fn transformer(
    config: &TransformerConfig,
    (image_tokens, read): (usize, usize),
    text_tokens: usize,
) -> Operations {
    let width = config.inner_dim() as f64;
    let (image, text, read) = (image_tokens as f64, text_tokens as f64, read as f64);
    let all = image + text;
    // Queries, keys, values; the way back, and two layers four times as wide, which the
    // last block has for the tokens that are read.
    let (gather, spread) = (2.0 * 3.0 * width * width, 2.0 * (1.0 + 8.0) * width * width);
    let layers = config.num_layers as f64;
    let through = (layers - 1.0) * all + read;
    let ends = 2.0 * width * ((image + read) * config.in_channels as f64)
        + 2.0 * width * text * config.joint_attention_dim as f64;
    Operations {
        linear: layers * all * gather + through * spread + ends,
        attention: 4.0 * through * all * width,
    }
}

/// What two passes of a step with guidance have in common: the image tokens' way in.
#[must_use]
pub(crate) fn image_input(config: &TransformerConfig, image_tokens: usize) -> Operations {
    let linear = 2.0 * (image_tokens * config.in_channels * config.inner_dim()) as f64;
    Operations { linear, attention: 0.0 }
}

/// The modulation of all blocks for `levels` noise levels.
#[must_use]
pub(crate) fn modulation(config: &TransformerConfig, levels: usize) -> Operations {
    let width = config.inner_dim() as f64;
    let layers = 2.0 * config.num_layers as f64;
    let linear = 2.0 * levels as f64 * (layers * 6.0 + 2.0) * width * width;
    Operations { linear, attention: 0.0 }
}

/// The language model over `tokens` tokens; each looks at those before it, half of
/// all on average.
#[must_use]
pub(crate) fn language_model(config: &TextConfig, tokens: usize) -> Operations {
    let (tokens, width) = (tokens as f64, config.hidden_size as f64);
    let key_width = (config.num_key_value_heads * config.head_dim()) as f64;
    let weights = width * (2.0 * width + 2.0 * key_width + 3.0 * config.intermediate_size as f64);
    let layers = config.num_hidden_layers as f64;
    Operations {
        linear: layers * 2.0 * tokens * weights,
        attention: layers * 2.0 * tokens * tokens * width,
    }
}

/// The vision tower over one picture of `grid` patches.
#[must_use]
pub(crate) fn vision_tower(config: &VisionConfig, grid: Grid) -> Operations {
    let (patches, width) = (grid.len() as f64, config.hidden_size as f64);
    let block = width * (4.0 * width + 3.0 * config.intermediate_size as f64);
    let merged = (config.patches_per_token() * config.hidden_size) as f64;
    let merger =
        merged * (merged + config.out_hidden_size as f64) / config.patches_per_token() as f64;
    let embedding = width * config.patch_dim() as f64;
    let window = (config.window_tokens().pow(2) * config.patches_per_token()) as f64;
    let whole = config.fullatt_block_indexes.len() as f64;
    let windowed = config.depth as f64 - whole;
    let keys = whole * patches + windowed * window.min(patches);
    Operations {
        linear: 2.0 * patches * (config.depth as f64 * block + merger + embedding),
        attention: 4.0 * patches * keys * width,
    }
}

/// The autoencoder's halves for a picture of `width` times `height` pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AutoencoderOperations {
    /// Picture to latents.
    pub encode: Operations,
    /// Latents to picture.
    pub decode: Operations,
}

/// What the autoencoder takes for a picture of `width` times `height` pixels.
#[must_use]
pub(crate) fn autoencoder(
    config: &VaeConfig,
    width: usize,
    height: usize,
) -> AutoencoderOperations {
    let pixels = (width * height) as f64;
    let channels: Vec<f64> =
        config.dim_mult.iter().map(|multiple| (multiple * config.base_dim) as f64).collect();
    let (base, deepest) = (channels[0], channels[channels.len() - 1]);
    let base_dim = config.base_dim as f64;
    let (input, z_dim) = (config.input_channels as f64, config.z_dim as f64);
    let blocks = config.num_res_blocks;
    let latent_pixels = pixels / config.spatial_factor().pow(2) as f64;
    let middle = middle(deepest, latent_pixels);

    let mut encode = convolution(input, base_dim, 3.0, pixels);
    let (mut inputs, mut area) = (base_dim, pixels);
    for (stage, &outputs) in channels.iter().enumerate() {
        for _ in 0..blocks {
            encode += residual(inputs, outputs, area);
            inputs = outputs;
        }
        if stage < config.temperal_downsample.len() {
            area /= 4.0;
            encode += convolution(outputs, outputs, 3.0, area);
        }
    }
    encode += convolution(deepest, 2.0 * z_dim, 3.0, area);
    encode += convolution(2.0 * z_dim, 2.0 * z_dim, 1.0, area);

    let mut decode = convolution(z_dim, z_dim, 1.0, area) + convolution(z_dim, deepest, 3.0, area);
    let mut inputs = deepest;
    for (stage, &outputs) in channels.iter().rev().enumerate() {
        for _ in 0..=blocks {
            decode += residual(inputs, outputs, area);
            inputs = outputs;
        }
        if stage < config.temperal_downsample.len() {
            area *= 4.0;
            decode += convolution(outputs, outputs / 2.0, 3.0, area);
            inputs = outputs / 2.0;
        }
    }
    decode += convolution(base, input, 3.0, area);

    let with_middle = |linear| Operations { linear, attention: 0.0 } + middle;
    AutoencoderOperations { encode: with_middle(encode), decode: with_middle(decode) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERA: f64 = 1e12;

    #[test]
    fn an_edit_of_a_megapixel_costs_what_was_estimated_for_it_elsewhere() {
        // 115 TFLOP of linear layers and 53 of attention for 4096 + 4096 image and
        // about 260 text tokens: an estimate from the architecture, not ours.
        let cost = transformer(&TransformerConfig::published(), (8192, 8192), 260);

        assert!((cost.linear / TERA - 115.0).abs() < 1.0, "{}", cost.linear / TERA);
        assert!((cost.attention / TERA - 53.0).abs() < 1.0, "{}", cost.attention / TERA);
    }

    #[test]
    fn each_token_meets_each_weight_of_its_stream_once() {
        let config = TransformerConfig::published();
        let one = transformer(&config, (1, 1), 0).linear;

        // 6.8 billion weights act on an image token: a third of the transformer's.
        assert!((one / 2.0 / 1e9 - 6.8).abs() < 0.05, "{one}");
        assert!((modulation(&config, 1).linear / 2.0 / 1e9 - 6.8).abs() < 0.05);
    }

    #[test]
    fn the_cost_of_a_convolution_is_that_of_its_weights_at_every_pixel() {
        let config = VaeConfig {
            input_channels: 3,
            base_dim: 8,
            z_dim: 4,
            dim_mult: vec![1, 2],
            num_res_blocks: 1,
            temperal_downsample: vec![false],
            latents_mean: vec![0.0; 4],
            latents_std: vec![1.0; 4],
        };

        let cost = autoencoder(&config, 4, 4);

        // By hand, weights times pixels: encoder 3·8·9·16, residual 8·8·9·2·16,
        // halving 8·8·9·4, residual 8→16 (8·16·9 + 16·16·9 + 8·16)·4, middle
        // (4·16·16·9 + 4·16·16)·4, out (16·8·9 + 8·8)·4.
        let weights = 3 * 8 * 9 * 16
            + 2 * 8 * 8 * 9 * 16
            + 8 * 8 * 9 * 4
            + (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16) * 4
            + (4 * 16 * 16 * 9 + 4 * 16 * 16) * 4
            + (16 * 8 * 9 + 8 * 8) * 4;
        assert_eq!(cost.encode.linear, 2.0 * f64::from(weights));
        assert_eq!(cost.encode.attention, 4.0 * 4.0 * 4.0 * 16.0);
        assert!(cost.decode.linear > cost.encode.linear);
    }
}
