//! The types in which GGML stores tensors: their names, their sizes, and their numbers.
//!
//! A row is a run of blocks, each of them some bytes for some elements ([`GgmlType::row_bytes`]).
//! [`GgmlType::decode`] gives numbers equal to the bit with those of the `gguf` package of PyPI,
//! from whose `quants.py` the layouts are known. Nothing here knows of files or tensors.

mod bytes;
mod encode;
mod iq4;
mod k_blocks;
mod names;
mod plain;
mod short_blocks;
#[cfg(test)]
mod tests;

pub use encode::NotEncoded;
pub use names::name_of_code;

/// A type of GGML that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// 32 bits.
    F32,
    /// 16 bits, of IEEE 754.
    F16,
    /// The upper 16 of 32 bits.
    Bf16,
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32.
    Q4_1,
    /// 5 bits, a scale for 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 2 bits, scales and minima of 4 bits for 16.
    Q2K,
    /// 3 bits, scales of 6 bits for 16.
    Q3K,
    /// 4 bits, scales and minima of 6 bits for 32.
    Q4K,
    /// 5 bits, scales and minima of 6 bits for 32.
    Q5K,
    /// 6 bits, scales of 8 bits for 16.
    Q6K,
    /// 4 bits that name one of 16 uneven levels, a scale for 32.
    Iq4Nl,
    /// The same with scales of 6 bits for 32.
    Iq4Xs,
}

impl GgmlType {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Bf16,
    ];

    /// The type that files call `code`. [`name_of_code`] says what others are.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its number in files: `GGMLQuantizationType`.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Iq4Xs => 23,
            Self::Bf16 => 30,
        }
    }

    /// GGML's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        name_of_code(self.code()).unwrap_or("unknown")
    }

    /// How many elements a block holds.
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// How many bytes a block takes.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// How many bytes a row of `width` elements takes, if those are whole blocks.
    #[must_use]
    pub fn row_bytes(self, width: usize) -> Option<usize> {
        let whole = width.is_multiple_of(self.block_elements());
        whole.then(|| (width / self.block_elements()).checked_mul(self.block_bytes())).flatten()
    }

    /// Writes the numbers that `blocks` hold: as many whole blocks as both have room for.
    ///
    /// Inlined, so that the loops are compiled for the vectors of whoever calls it.
    #[inline(always)]
    pub fn decode(self, blocks: &[u8], made: &mut [f32]) {
        match self {
            Self::F32 => plain::f32s(blocks, made),
            Self::F16 => plain::f16s(blocks, made),
            Self::Bf16 => plain::bf16s(blocks, made),
            Self::Q4_0 => bytes::each_block(blocks, made, short_blocks::q4_0),
            Self::Q4_1 => bytes::each_block(blocks, made, short_blocks::q4_1),
            Self::Q5_0 => bytes::each_block(blocks, made, short_blocks::q5_0),
            Self::Q5_1 => bytes::each_block(blocks, made, short_blocks::q5_1),
            Self::Q8_0 => bytes::each_block(blocks, made, short_blocks::q8_0),
            Self::Q2K => bytes::each_block(blocks, made, k_blocks::q2),
            Self::Q3K => bytes::each_block(blocks, made, k_blocks::q3),
            Self::Q4K => bytes::each_block(blocks, made, k_blocks::q4),
            Self::Q5K => bytes::each_block(blocks, made, k_blocks::q5),
            Self::Q6K => bytes::each_block(blocks, made, k_blocks::q6),
            Self::Iq4Nl => bytes::each_block(blocks, made, iq4::nl),
            Self::Iq4Xs => bytes::each_block(blocks, made, iq4::xs),
        }
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}
