//! The rotation of rows that ConvRot quantizes, and undoes when it multiplies.
//!
//! A row is rotated in groups, whose size is a power of four, by the Kronecker power of
//! H₄ = ½ [[1,1,1,-1],[1,1,-1,1],[1,-1,1,1],[-1,1,1,1]]: symmetric and orthogonal, so that
//! rotating twice changes nothing. Source: stable-diffusion.cpp, `docs/int8_convrot.md`.

/// Whether groups of so many elements can be rotated.
pub(super) fn is_group(size: usize) -> bool {
    size > 1 && size.is_power_of_two() && size.trailing_zeros().is_multiple_of(2)
}

/// Rotates `row` in groups of `group` elements: what is no whole group stays.
#[inline(always)]
pub(super) fn rotate(row: &mut [f32], group: usize) {
    for group in row.chunks_exact_mut(group.max(1)) {
        let mut stride = 1;
        while stride < group.len() {
            group.chunks_exact_mut(4 * stride).for_each(|four| rotate_fours(four, stride));
            stride *= 4;
        }
    }
}

/// Multiplies the elements that lie `stride` apart, four by four, by H₄.
#[inline(always)]
fn rotate_fours(four: &mut [f32], stride: usize) {
    let (first, rest) = four.split_at_mut(stride);
    let (second, rest) = rest.split_at_mut(stride);
    let (third, fourth) = rest.split_at_mut(stride);
    let firsts = first.iter_mut().zip(second).zip(third.iter_mut().zip(fourth));
    for ((a, b), (c, d)) in firsts {
        // Each is half of the sum of all, less one of them.
        let half = (*a + *b + *c + *d) / 2.0;
        (*a, *b, *c, *d) = (half - *d, half - *c, half - *b, half - *a);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of H₄.
    const H4: [[f32; 4]; 4] = [
        [0.5, 0.5, 0.5, -0.5],
        [0.5, 0.5, -0.5, 0.5],
        [0.5, -0.5, 0.5, 0.5],
        [-0.5, 0.5, 0.5, 0.5],
    ];

    #[test]
    fn a_group_is_multiplied_by_the_kronecker_power() {
        let row: Vec<f32> = (0..32).map(|place| (place * place % 11) as f32).collect();
        let element = |group: &[f32], at: usize| -> f32 {
            let weight = |from: usize| H4[at / 4][from / 4] * H4[at % 4][from % 4];
            group.iter().enumerate().map(|(from, x)| weight(from) * x).sum()
        };
        let expected: Vec<f32> =
            row.chunks(16).flat_map(|group| (0..16).map(move |at| element(group, at))).collect();

        let mut made = row.clone();
        rotate(&mut made, 16);

        // Exact: halves of sums of small integers.
        assert_eq!(made, expected);
        rotate(&mut made, 16);
        assert_eq!(made, row);
    }

    #[test]
    fn groups_are_powers_of_four() {
        let groups: Vec<usize> = (0..=1024).filter(|size| is_group(*size)).collect();
        assert_eq!(groups, [4, 16, 64, 256, 1024]);
    }
}
