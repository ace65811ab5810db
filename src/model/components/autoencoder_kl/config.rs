//! What `config.json` of an `AutoencoderKL` may say.
//!
//! Source: diffusers 0.42.1, `AutoencoderKL`.

use crate::checkpoint::{CheckpointError, LARGEST_WIDTH, Snapshot};
use crate::model::components::keys::{SILU, block_types};

/// `vae/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of each level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of a level on the way in; one more on the way out.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group normalisations.
    pub norm_num_groups: usize,
    /// What latents are multiplied by for the U-Net.
    pub scaling_factor: f64,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether it overflows in float16, and must compute in float32 there.
    pub force_upcast: bool,
}

impl VaeConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("vae/config.json")?;
        let block_out_channels = file.counts("block_out_channels", 1..=LARGEST_WIDTH);
        let count = block_out_channels.len();
        for (key, name) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            block_types(&mut file, key, (name, name), count);
        }
        let groups = file.count_or("norm_num_groups", 32, 1..=LARGEST_WIDTH);
        if block_out_channels.iter().any(|channels| channels % groups != 0) {
            file.fault(format!(
                "block_out_channels = {block_out_channels:?} and norm_num_groups = {groups} do not fit"
            ));
        }
        file.one_of("act_fn", SILU);
        file.only("in_channels", 3);
        file.only("out_channels", 3);
        file.only("mid_block_add_attention", true);
        // SDXL's pipelines scale latents by these, where they are there.
        file.unsupported(&["latents_mean", "latents_std"]);
        file.only("shift_factor", 0.0);
        file.inert(&["sample_size"]);
        let config = Self {
            block_out_channels,
            layers_per_block: file.layers("layers_per_block"),
            latent_channels: file.count("latent_channels"),
            norm_num_groups: groups,
            scaling_factor: file.number_or("scaling_factor", 0.18215, 1e-6..=1e6),
            use_quant_conv: file.or("use_quant_conv", true),
            use_post_quant_conv: file.or("use_post_quant_conv", true),
            force_upcast: file.or("force_upcast", true),
        };
        file.finish()?;
        Ok(config)
    }

    /// Pixels that a latent stands for, in each direction.
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }
}
