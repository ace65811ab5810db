//! What a picture costs: floating-point operations of each network, counted from the
//! configurations alone. Timestep embeddings are next to nothing, and left out.

use super::config::{UnetBlock, UnetConfig};
use crate::model::components::autoencoder_kl::VaeConfig;
use crate::model::components::clip::TextEncoderConfig;
use crate::model::components::operations::{Operations, convolution, middle, residual};

/// Colours of a picture.
const COLOURS: f64 = 3.0;

/// One pass of the U-Net over `places` latent pixels with a text of `tokens` tokens.
#[must_use]
pub(super) fn unet(config: &UnetConfig, places: usize, tokens: usize) -> Operations {
    let text = Text { tokens: tokens as f64, width: config.cross_attention_dim as f64 };
    let (mut places, finest) = (places as f64, config.blocks[0].channels as f64);
    let ends = config.in_channels + config.out_channels;
    let mut all = convolution_of(ends as f64, finest, places);
    for depth in 0..config.blocks.len() {
        let block = &config.blocks[depth];
        let channels = block.channels as f64;
        all = all + layers(&config.down_inputs(depth), block, (block.attends_down, places), text);
        if depth + 1 < config.blocks.len() {
            places /= 4.0;
            all = all + convolution_of(channels, channels, places);
        } else {
            let around = 2.0 * residual(channels, channels, places);
            all = all + linear(around) + attention(block, places, text);
        }
    }
    for depth in (0..config.blocks.len()).rev() {
        let block = &config.blocks[depth];
        let channels = block.channels as f64;
        all = all + layers(&config.up_inputs(depth), block, (block.attends_up, places), text);
        if depth > 0 {
            places *= 4.0;
            all = all + convolution_of(channels, channels, places);
        }
    }
    all
}

/// A text as the U-Net sees it.
#[derive(Clone, Copy)]
struct Text {
    tokens: f64,
    width: f64,
}

fn linear(linear: f64) -> Operations {
    Operations { linear, attention: 0.0 }
}

fn convolution_of(inputs: f64, outputs: f64, places: f64) -> Operations {
    linear(convolution(inputs, outputs, 3.0, places))
}

/// Residual layers from each of `inputs`, each with an attention if the level `attends`.
fn layers(
    inputs: &[usize],
    block: &UnetBlock,
    (attends, places): (bool, f64),
    text: Text,
) -> Operations {
    let layer = |inputs: &usize| {
        let residual = linear(residual(*inputs as f64, block.channels as f64, places));
        if attends { residual + attention(block, places, text) } else { residual }
    };
    inputs.iter().map(layer).fold(Operations::default(), |sum, layer| sum + layer)
}

/// Attention of all places to themselves and to the text, and what follows it, layer by layer.
fn attention(block: &UnetBlock, places: f64, text: Text) -> Operations {
    let (channels, count) = (block.channels as f64, block.transformer_layers as f64);
    // Queries, keys, values and the way back; queries and the way back; 4 times as wide with
    // gates, and back.
    let of_places = (4.0 + 2.0 + 12.0) * channels * channels;
    let of_text = 2.0 * channels * text.width;
    let projections = 2.0 * convolution(channels, channels, 1.0, places);
    Operations {
        linear: projections + count * 2.0 * (places * of_places + text.tokens * of_text),
        attention: count * 4.0 * places * (places + text.tokens) * channels,
    }
}

/// A text encoder over `tokens` tokens.
#[must_use]
pub(super) fn text_encoder(config: &TextEncoderConfig, tokens: usize) -> Operations {
    let (tokens, width) = (tokens as f64, config.hidden_size as f64);
    let weights = 4.0 * width * width + 2.0 * width * config.intermediate_size as f64;
    let layers = config.num_hidden_layers as f64;
    Operations {
        linear: layers * 2.0 * tokens * weights,
        attention: layers * 4.0 * tokens * tokens * width,
    }
}

/// The autoencoder from latents to a picture of `pixels`.
#[must_use]
pub(super) fn decode(config: &VaeConfig, pixels: usize) -> Operations {
    let channels = channels(config);
    let mut pixels = pixels as f64 / config.spatial_factor().pow(2) as f64;
    let latents = config.latent_channels as f64;
    let mut inputs = channels[channels.len() - 1];
    let mut all = convolution(latents, inputs, 3.0, pixels);
    if config.use_post_quant_conv {
        all += convolution(latents, latents, 1.0, pixels);
    }
    let middle = middle(inputs, pixels);
    for (level, &outputs) in channels.iter().enumerate().rev() {
        for _ in 0..=config.layers_per_block {
            all += residual(inputs, outputs, pixels);
            inputs = outputs;
        }
        if level > 0 {
            pixels *= 4.0;
            all += convolution(outputs, outputs, 3.0, pixels);
        }
    }
    linear(all + convolution(inputs, COLOURS, 3.0, pixels)) + middle
}

fn channels(config: &VaeConfig) -> Vec<f64> {
    config.block_out_channels.iter().map(|channels| *channels as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::components::clip::{Activation, EndToken};

    /// Torch 2.11 counted these on diffusers' networks (`FlopCounterMode` on the meta device,
    /// tests/data/count_stable_diffusion.py); what is left out here is below a thousandth.
    fn assert_counted(operations: Operations, counted: f64) {
        let off = operations.total() / counted - 1.0;
        assert!(off.abs() < 1e-3, "{operations:?} is not {counted}: off by {off}");
    }

    fn level(channels: usize, transformer_layers: usize, (down, up): (bool, bool)) -> UnetBlock {
        UnetBlock { channels, heads: 8, transformer_layers, attends_down: down, attends_up: up }
    }

    fn network(blocks: Vec<UnetBlock>, cross_attention_dim: usize) -> UnetConfig {
        UnetConfig {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            cross_attention_dim,
            blocks,
            layers_per_block: 2,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            use_linear_projection: false,
            upcast_attention: false,
            text_time: None,
        }
    }

    #[test]
    fn passes_of_the_published_networks_cost_what_torch_counts() {
        let (both, none) = ((true, true), (false, false));
        let levels = [(320, both), (640, both), (1280, both), (1280, none)];
        let plain = levels.map(|(channels, attends)| level(channels, 1, attends));
        let xl = vec![level(320, 1, none), level(640, 2, both), level(1280, 10, both)];

        assert_counted(unet(&network(plain.into(), 768), 64 * 64, 77), 803_273_441_280.0);
        assert_counted(unet(&network(xl, 2048), 128 * 128, 77), 6_761_236_398_080.0);
    }

    #[test]
    fn the_autoencoder_and_the_text_encoder_cost_what_torch_counts() {
        let autoencoder = VaeConfig {
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 1.0,
            use_quant_conv: true,
            use_post_quant_conv: true,
            force_upcast: false,
        };
        let text = TextEncoderConfig {
            vocab_size: 49_408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            end: EndToken::Largest,
            projection_dim: None,
        };

        assert_counted(decode(&autoencoder, 512 * 512), 2_514_518_933_504.0);
        assert_counted(text_encoder(&text, 77), 13_298_503_680.0);
    }
}
