//! The autoencoder's configuration.

use crate::checkpoint::{CheckpointError, ConfigFile, LARGEST_WIDTH, Snapshot};

/// `vae/config.json`: `AutoencoderKLQwenImage`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture: 3, or 4 with transparency.
    pub input_channels: usize,
    /// Channels of the first stage.
    pub base_dim: usize,
    /// Latent channels.
    pub z_dim: usize,
    /// Channels of the stages, as multiples of `base_dim`.
    pub dim_mult: Vec<usize>,
    /// Residual blocks of an encoder stage; a decoder stage has one more.
    pub num_res_blocks: usize,
    /// Which halvings also halve time (the checkpoint's spelling): these have a
    /// `time_conv`, which a single frame never meets.
    pub temperal_downsample: Vec<bool>,
    /// Mean of each latent channel over the training pictures.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f64>,
}

impl VaeConfig {
    /// Colours of a pixel.
    pub const COLOURS: usize = 3;

    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("vae/config.json")?;
        file.only("attn_scales", serde_json::json!([]));
        // Acts in training alone.
        file.inert(&["dropout"]);
        // Of Wan's autoencoder, the same network where these say nothing else.
        file.unsupported(&["is_residual", "patch_size"]);
        file.only("scaling_factor", 1.0);
        file.only("shift_factor", 0.0);
        let config = Self {
            input_channels: file.or("input_channels", Self::COLOURS),
            base_dim: file.count("base_dim"),
            z_dim: file.count("z_dim"),
            dim_mult: file.counts("dim_mult", 1..=LARGEST_WIDTH),
            num_res_blocks: file.layers("num_res_blocks"),
            temperal_downsample: file.required("temperal_downsample"),
            latents_mean: file.required("latents_mean"),
            latents_std: file.required("latents_std"),
        };
        for channels in ["in_channels", "out_channels"] {
            file.only(channels, config.input_channels);
        }
        file.only("decoder_base_dim", config.base_dim);
        config.check(&mut file);
        file.finish()?;
        Ok(config)
    }

    fn check(&self, file: &mut ConfigFile) {
        for (key, values) in
            [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)]
        {
            if values.len() != self.z_dim {
                let (count, z_dim) = (values.len(), self.z_dim);
                file.fault(format!("{key} has {count} values, z_dim is {z_dim}"));
            }
        }
        if !self.latents_std.iter().all(|deviation| (1e-6..=1e6).contains(deviation)) {
            file.fault("latents_std has a value that is not between 10⁻⁶ and 10⁶");
        }
        if !self.latents_mean.iter().all(|mean| (-1e6..=1e6).contains(mean)) {
            file.fault("latents_mean has a value that is not between −10⁶ and 10⁶");
        }
        if ![Self::COLOURS, Self::COLOURS + 1].contains(&self.input_channels) {
            let channels = self.input_channels;
            file.fault(format!("input_channels = {channels} is not supported, only 3 and 4 are"));
        }
        if self.dim_mult.iter().any(|multiple| multiple * self.base_dim > LARGEST_WIDTH) {
            file.fault(format!("dim_mult times base_dim is more than {LARGEST_WIDTH}"));
        }
        if self.dim_mult.len() != self.temperal_downsample.len() + 1 {
            file.fault(format!(
                "dim_mult has {} stages, temperal_downsample {} halvings between them",
                self.dim_mult.len(),
                self.temperal_downsample.len()
            ));
        }
    }

    /// Elements of the largest tensor that a picture of this size becomes on its way: as
    /// large as the picture, with the channels of the last stage but one, and padded.
    #[must_use]
    pub fn most_numbers(&self, width: usize, height: usize) -> usize {
        let widest = self.dim_mult.iter().take(2).max().copied().unwrap_or(1) * self.base_dim;
        widest.saturating_mul((width + 2).saturating_mul(height + 2))
    }

    /// Image pixels of one latent pixel along each axis.
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        1 << self.temperal_downsample.len()
    }
}
