//! Sums by AVX-512 VNNI: one instruction multiplies 64 pairs of bytes and adds fours of them.

use std::arch::x86_64::{
    __m512, __m512i, _mm256_loadu_si256, _mm512_cvtepi16_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32,
    _mm512_storeu_ps, _mm512_sub_epi32,
};

use half::f16;

use super::product::{Row, Sums};
use super::{Group, PANEL, PanelBlock};

/// What 128 is the power of two of: it was added to each number of a row.
const OFFSET_BITS: u32 = 7;

/// Whether the processor has the instructions.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// What [`super::product::plain_sums`] returns, if the processor has the instructions.
pub(super) fn sums<const ROWS: usize, const PANELS: usize>(
    rows: [Row; ROWS],
    panels: [&[PanelBlock]; PANELS],
) -> Option<Sums<ROWS, PANELS>> {
    if !is_there() {
        return None;
    }
    #[expect(unsafe_code, reason = "instructions that not every processor has")]
    // SAFETY: this one has them.
    Some(unsafe { sums_of(rows, panels) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums_of<const ROWS: usize, const PANELS: usize>(
    rows: [Row; ROWS],
    panels: [&[PanelBlock]; PANELS],
) -> Sums<ROWS, PANELS> {
    let count = rows.first().map_or(0, |row| row.quants.len());
    // All of one length, which need not be asked for again at each block.
    let quants = rows.map(|row| &row.quants[..count]);
    let scales = rows.map(|row| &row.scales[..count]);
    let panels = panels.map(|panel| &panel[..count]);
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for block in 0..count {
        let mut products = [[_mm512_setzero_si512(); PANELS]; ROWS];
        for (panel, blocks) in panels.iter().enumerate() {
            let offset = offset(&blocks[block].sums);
            for products in &mut products {
                products[panel] = offset;
            }
        }
        for group in 0..quants.first().map_or(0, |quants| quants[block].as_chunks::<4>().0.len()) {
            let weights = panels.map(|blocks| load(&blocks[block].groups[group]));
            for (products, quants) in products.iter_mut().zip(quants) {
                let four = quants[block].as_chunks::<4>().0[group];
                let x = _mm512_set1_epi32(i32::from_le_bytes(four));
                for (product, weights) in products.iter_mut().zip(weights) {
                    *product = _mm512_dpbusd_epi32(*product, x, weights);
                }
            }
        }
        let steps = panels.map(|blocks| load_scales(&blocks[block].scales));
        for ((sums, products), scales) in sums.iter_mut().zip(products).zip(scales) {
            let scale = _mm512_set1_ps(scales[block]);
            for ((sum, product), step) in sums.iter_mut().zip(products).zip(steps) {
                let scale = _mm512_mul_ps(scale, step);
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, *sum);
            }
        }
    }
    sums.map(|sums| sums.map(|sum| store(sum)))
}

/// Where sums begin: at what the 128 that was added to each factor makes too much.
#[target_feature(enable = "avx512f")]
fn offset(sums: &[i16; PANEL]) -> __m512i {
    #[expect(unsafe_code, reason = "a load through a pointer")]
    // SAFETY: 32 bytes, at any address.
    let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
    let much = _mm512_slli_epi32::<OFFSET_BITS>(_mm512_cvtepi16_epi32(sums));
    _mm512_sub_epi32(_mm512_setzero_si512(), much)
}

#[target_feature(enable = "avx512f")]
fn load(group: &Group) -> __m512i {
    #[expect(unsafe_code, reason = "a load through a pointer")]
    // SAFETY: 64 bytes, at any address.
    unsafe {
        _mm512_loadu_si512(group.as_ptr().cast())
    }
}

#[target_feature(enable = "avx512f")]
fn load_scales(scales: &[f16; PANEL]) -> __m512 {
    #[expect(unsafe_code, reason = "a load through a pointer")]
    // SAFETY: 32 bytes, at any address; a `f16` is its 16 bits.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f")]
fn store(sum: __m512) -> [f32; PANEL] {
    let mut made = [0.0; PANEL];
    #[expect(unsafe_code, reason = "a store through a pointer")]
    // SAFETY: 64 bytes, at any address.
    unsafe {
        _mm512_storeu_ps(made.as_mut_ptr(), sum);
    }
    made
}
