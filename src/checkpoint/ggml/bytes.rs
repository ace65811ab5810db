//! Blocks of bytes, and their parts, with lengths that the compiler knows: so that no loop
//! over them checks bounds.

/// Has `decode` write each whole block that both have room for.
#[inline(always)]
pub(super) fn each_block<const BYTES: usize, const ELEMENTS: usize>(
    blocks: &[u8],
    made: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let blocks = blocks.as_chunks::<BYTES>().0;
    for (block, made) in blocks.iter().zip(made.as_chunks_mut::<ELEMENTS>().0) {
        decode(block, made);
    }
}

/// The `LENGTH` bytes of `block` from `START` on.
#[inline(always)]
pub(super) fn part<const START: usize, const LENGTH: usize, const BYTES: usize>(
    block: &[u8; BYTES],
) -> &[u8; LENGTH] {
    const { assert!(START + LENGTH <= BYTES) };
    // There always is one: the assertion says so.
    block[START..].first_chunk().unwrap_or(const { &[0; LENGTH] })
}

/// The number of 16 bits at `START`.
#[inline(always)]
pub(super) fn half_at<const START: usize, const BYTES: usize>(block: &[u8; BYTES]) -> f32 {
    widened(u16::from_le_bytes(*part::<START, 2, BYTES>(block)))
}

/// The number whose 16 bits of IEEE 754 are `bits`. `half` asks at each call what the processor
/// can do, which no loop with it survives.
#[inline(always)]
pub(super) fn widened(bits: u16) -> f32 {
    /// What a subnormal number is a multiple of.
    const SMALLEST: f32 = f32::from_bits((127 - 24) << 23);
    /// The difference of the exponents' biases, 127 - 15.
    const BIAS: u32 = 112 << 23;
    /// What infinity and what is no number have for an exponent, after the shift.
    const LARGEST_EXPONENT: u32 = 31 << 23;

    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Not by a product with what is subnormal in 32 bits, too: that takes a hundred times as long.
    let subnormal = (f32::from(bits & 0x3ff) * SMALLEST).to_bits();
    let finite = if bits & 0x7c00 == 0 { subnormal } else { magnitude + BIAS };
    let infinite = magnitude | 0xff << 23;
    let widened = if magnitude >= LARGEST_EXPONENT { infinite } else { finite };
    f32::from_bits(widened | u32::from(bits & 0x8000) << 16)
}
