//! Steps that are made in one pass instead of several, and their switches.
//!
//! Each fused step has a composition of candle's operations beside it that gives
//! the same elements to rounding. A benchmark switches fusions off, before the
//! first picture, to see what they bring.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use candle_core::{DType, Tensor};

/// A step that can be made in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusion {
    /// Layer normalisation and what the noise level does to its result.
    LayerNormModulation,
    /// A layer's bias, the gate, and the sum with what was before.
    GatedAdd,
    /// Bias, normalisation and turn of queries and keys, and the way to heads.
    JointHeads,
    /// A layer's bias and the activation after it.
    BiasActivation,
    /// GELU where a layer's product is summed (on a GPU, in bfloat16).
    GeluEpilogue,
    /// silu(gate) · x.
    GatedSilu,
    /// Classifier-free guidance and the Euler step.
    Guidance,
    /// The autoencoder's normalisation and the activation after it.
    ChannelNorm,
    /// Root-mean-square normalisation.
    RmsNorm,
    /// Softmax of 16-bit scores in 32 bits (on a GPU).
    Softmax,
    /// Attention without a score matrix (on a GPU; feature `flash-attn`).
    FlashAttention,
    /// A convolution's padding, unfolding, bias and order (on a GPU).
    Unfolding,
}

impl Fusion {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::LayerNormModulation,
        Self::GatedAdd,
        Self::JointHeads,
        Self::BiasActivation,
        Self::GeluEpilogue,
        Self::GatedSilu,
        Self::Guidance,
        Self::ChannelNorm,
        Self::RmsNorm,
        Self::Softmax,
        Self::FlashAttention,
        Self::Unfolding,
    ];

    /// Its name for people and command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LayerNormModulation => "layer-norm-modulation",
            Self::GatedAdd => "gated-add",
            Self::JointHeads => "joint-heads",
            Self::BiasActivation => "bias-activation",
            Self::GeluEpilogue => "gelu-epilogue",
            Self::GatedSilu => "gated-silu",
            Self::Guidance => "guidance",
            Self::ChannelNorm => "channel-norm",
            Self::RmsNorm => "rms-norm",
            Self::Softmax => "softmax",
            Self::FlashAttention => "flash-attention",
            Self::Unfolding => "unfolding",
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Whether this step shall be made in one pass for a tensor like `x`: not
    /// switched off, and there is a kernel for its device and dtype.
    pub(super) fn applies_to(self, x: &Tensor) -> bool {
        let device = x.device();
        let known_device = device.is_cpu() || (cfg!(feature = "cuda") && device.is_cuda());
        let known_format = matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16);
        known_device && known_format && DISABLED.load(Ordering::Relaxed) & self.bit() == 0
    }
}

/// The bits of the fusions that are switched off.
static DISABLED: AtomicU32 = AtomicU32::new(0);

/// Switches fusions off, for this process and for good.
pub fn disable(fusions: &[Fusion]) {
    let bits = fusions.iter().fold(0, |bits, fusion| bits | fusion.bit());
    DISABLED.fetch_or(bits, Ordering::Relaxed);
}

impl fmt::Display for Fusion {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no fusion of this name.
#[derive(Debug, thiserror::Error)]
#[error("no fusion is called '{name}'; there are {}", Fusion::ALL.map(Fusion::name).join(", "))]
pub struct UnknownFusion {
    /// What was asked for.
    pub name: String,
}

impl FromStr for Fusion {
    type Err = UnknownFusion;

    fn from_str(name: &str) -> Result<Self, UnknownFusion> {
        Self::ALL
            .into_iter()
            .find(|fusion| fusion.name() == name)
            .ok_or_else(|| UnknownFusion { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fusion_is_found_by_its_name_and_has_a_bit_of_its_own() {
        let bits = Fusion::ALL.iter().fold(0, |bits, fusion| bits | fusion.bit());

        assert_eq!(bits.count_ones() as usize, Fusion::ALL.len());
        for fusion in Fusion::ALL {
            assert_eq!(fusion.name().parse::<Fusion>().unwrap(), fusion);
        }
        let message = "tea".parse::<Fusion>().unwrap_err().to_string();
        assert!(message.contains("'tea'") && message.contains("gated-add"), "{message}");
    }
}
