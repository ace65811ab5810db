//! Floating-point operations of parts of networks, counted from their widths alone.
//!
//! A multiplication with its addition counts as two. Only products of matrices and
//! convolutions are counted; all else is bound by memory.

/// Floating-point operations of a network, or of a part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Operations {
    /// In products with weights.
    pub linear: f64,
    /// In products of queries with keys, and of scores with values.
    pub attention: f64,
}

impl Operations {
    /// All of them.
    #[must_use]
    pub(in crate::model) fn total(self) -> f64 {
        self.linear + self.attention
    }
}

impl std::ops::Add for Operations {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { linear: self.linear + other.linear, attention: self.attention + other.attention }
    }
}

/// A convolution of square kernels that makes `pixels` pixels.
#[must_use]
pub(in crate::model) fn convolution(inputs: f64, outputs: f64, kernel: f64, pixels: f64) -> f64 {
    2.0 * inputs * outputs * kernel * kernel * pixels
}

/// A residual block: two convolutions, and one of single pixels where the channels change.
#[must_use]
pub(in crate::model) fn residual(inputs: f64, outputs: f64, pixels: f64) -> f64 {
    let shortcut = if inputs == outputs { 0.0 } else { convolution(inputs, outputs, 1.0, pixels) };
    convolution(inputs, outputs, 3.0, pixels)
        + convolution(outputs, outputs, 3.0, pixels)
        + shortcut
}

/// The middle of an autoencoder: two residual blocks around one head of attention over all
/// pixels.
#[must_use]
pub(in crate::model) fn middle(channels: f64, pixels: f64) -> Operations {
    Operations {
        linear: 2.0 * residual(channels, channels, pixels)
            + convolution(channels, 4.0 * channels, 1.0, pixels),
        attention: 4.0 * pixels * pixels * channels,
    }
}
