//! The transformer's configuration.

use super::sum_of;
use crate::checkpoint::{CheckpointError, ConfigFile, LARGEST_WIDTH, Snapshot};

/// `transformer/config.json`: `QwenImageTransformer2DModel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Features of an image token: latent channels times four.
    pub in_channels: usize,
    /// Latent channels of the prediction.
    pub out_channels: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Elements in a head.
    pub attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the prompt embeddings.
    pub joint_attention_dim: usize,
    /// Elements of a head that turn with frame, row and column.
    pub axes_dims_rope: [usize; 3],
    /// Whether reference pictures are modulated as at noise level 0. The class's
    /// own value, false, is what the files of before 2511 mean by saying nothing.
    pub zero_cond_t: bool,
    /// Whether the noise level's embedding has an addition that says what kind of
    /// picture is made.
    pub use_additional_t_cond: bool,
    /// Whether the last picture is what all others are layers of.
    pub use_layer3d_rope: bool,
}

impl TransformerConfig {
    /// Image pixels of the latent picture that make one token, along each axis.
    pub const PATCH_SIZE: usize = 2;

    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("transformer/config.json")?;
        file.only("patch_size", Self::PATCH_SIZE);
        file.only("guidance_embeds", false);
        // Of an earlier draft of the class; no tensor depends on it.
        file.inert(&["pooled_projection_dim"]);
        let config = Self {
            in_channels: file.count("in_channels"),
            out_channels: file.count("out_channels"),
            num_layers: file.layers("num_layers"),
            attention_head_dim: file.count("attention_head_dim"),
            num_attention_heads: file.count("num_attention_heads"),
            joint_attention_dim: file.count("joint_attention_dim"),
            axes_dims_rope: file.required("axes_dims_rope"),
            zero_cond_t: file.or("zero_cond_t", false),
            use_additional_t_cond: file.or("use_additional_t_cond", false),
            use_layer3d_rope: file.or("use_layer3d_rope", false),
        };
        config.check(&mut file);
        file.finish()?;
        Ok(config)
    }

    fn check(&self, file: &mut ConfigFile) {
        let patch = Self::PATCH_SIZE * Self::PATCH_SIZE;
        if self.in_channels != self.out_channels * patch {
            file.fault(format!(
                "in_channels = {} is not out_channels = {} times {patch}",
                self.in_channels, self.out_channels
            ));
        }
        let width = self.inner_dim();
        if width > LARGEST_WIDTH {
            file.fault(format!(
                "attention_head_dim times num_attention_heads = {width} is more than {LARGEST_WIDTH}"
            ));
        }
        let axes = self.axes_dims_rope;
        if sum_of(axes) != Some(self.attention_head_dim) || axes.iter().any(|axis| axis % 2 != 0) {
            file.fault(format!(
                "axes_dims_rope = {axes:?} are not even numbers that add up to \
                 attention_head_dim = {}",
                self.attention_head_dim
            ));
        }
    }

    /// Width of the hidden states: a million million at most.
    #[must_use]
    pub fn inner_dim(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }
}

#[cfg(test)]
impl TransformerConfig {
    /// Of every published checkpoint before 2511.
    pub(in crate::model::qwen_image) fn published() -> Self {
        Self {
            in_channels: 64,
            out_channels: 16,
            num_layers: 60,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 3584,
            axes_dims_rope: [16, 56, 56],
            zero_cond_t: false,
            use_additional_t_cond: false,
            use_layer3d_rope: false,
        }
    }
}
