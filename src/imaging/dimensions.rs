//! Which sides a picture of an area has.

/// Sides of pictures that are scaled to an area are multiples of this in the reference.
pub(crate) const REFERENCE_MULTIPLE: usize = 32;

/// Width and height of about `area` pixels in the proportions of `shape`, each rounded to a
/// multiple of `multiple`: 0 for a side that would be nearer to 0.
///
/// Source: diffusers 0.42.1, `calculate_dimensions` of the Qwen-Image edit pipelines, whose
/// multiple is [`REFERENCE_MULTIPLE`].
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are positive and far below 2^32"
)]
pub(crate) fn dimensions_of_area(
    area: usize,
    shape: (usize, usize),
    multiple: usize,
) -> (usize, usize) {
    let ratio = shape.0 as f64 / shape.1 as f64;
    let width = (area as f64 * ratio).sqrt();
    let round = |side: f64| (side / multiple as f64).round_ties_even() as usize * multiple;
    (round(width), round(width / ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_kept_in_the_proportions_asked_for_and_sides_are_on_the_grid() {
        let of = |width, height| dimensions_of_area(1024 * 1024, (width, height), 32);

        assert_eq!(of(1, 1), (1024, 1024));
        assert_eq!(of(1600, 900), (1376, 768));
        assert_eq!(of(900, 1600), (768, 1376));
        assert_eq!(dimensions_of_area(128 * 128, (4, 3), 8), (144, 112));
        assert_eq!(of(16_384, 1), (131_072, 0), "a side that vanishes");
    }
}
