//! Numbers as blocks of GGML: of the types that this program writes.

mod plain;
mod q4_k;
mod q8_0;
#[cfg(test)]
mod tests;

use super::GgmlType;

/// A type is read, but not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is read, but not written; F32, F16, BF16, Q8_0 and Q4_K are")]
pub struct NotEncoded(pub GgmlType);

impl GgmlType {
    /// Writes the blocks of `numbers`: as many whole ones as both have room for.
    ///
    /// Inlined, as [`decode`](Self::decode) is.
    ///
    /// # Errors
    /// [`NotEncoded`] for types that are only read.
    #[inline(always)]
    pub fn encode(self, numbers: &[f32], blocks: &mut [u8]) -> Result<(), NotEncoded> {
        match self {
            Self::F32 => plain::f32s(numbers, blocks),
            Self::F16 => plain::f16s(numbers, blocks),
            Self::Bf16 => plain::bf16s(numbers, blocks),
            Self::Q8_0 => each_block(numbers, blocks, q8_0::encode),
            Self::Q4K => each_block(numbers, blocks, q4_k::encode),
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q2K | Self::Q3K => {
                return Err(NotEncoded(self));
            }
            Self::Q5K | Self::Q6K | Self::Iq4Nl | Self::Iq4Xs => return Err(NotEncoded(self)),
        }
        Ok(())
    }
}

#[inline(always)]
fn each_block<const ELEMENTS: usize, const BYTES: usize>(
    numbers: &[f32],
    blocks: &mut [u8],
    encode: impl Fn(&[f32; ELEMENTS]) -> [u8; BYTES],
) {
    let blocks = blocks.as_chunks_mut::<BYTES>().0;
    for (numbers, block) in numbers.as_chunks().0.iter().zip(blocks) {
        *block = encode(numbers);
    }
}

/// The whole number next to `number`, which is below 2²²: beside 1.5 · 2²³ there is no room for
/// a fraction.
#[inline(always)]
fn nearest(number: f32) -> f32 {
    const LARGE: f32 = 12_582_912.0;
    number + LARGE - LARGE
}
