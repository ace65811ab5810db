//! Rotary positions: where a token stands, as angles.
//!
//! Pure arithmetic on lists. Three kinds: frame, row and column in the
//! transformer; time, row and column in the language model; row and column in
//! the vision tower.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the reference rounds each of these doubles to a float"
)]

use std::ops::Range;

/// Cosines and sines of every token's angles, row-major (tokens, `width`).
#[derive(Debug, Clone, PartialEq)]
pub struct Rotations {
    /// Angles of one token.
    pub width: usize,
    /// Their cosines.
    pub cos: Vec<f32>,
    /// Their sines.
    pub sin: Vec<f32>,
}

impl Rotations {
    fn of(angles: Vec<f64>, width: usize) -> Self {
        let cos = angles.iter().map(|angle| angle.cos() as f32).collect();
        let sin = angles.iter().map(|angle| angle.sin() as f32).collect();
        Self { width, cos, sin }
    }
}

/// θ^(−2i/size) for i below size/2, in the reference's single precision.
fn frequencies(theta: f64, size: usize) -> Vec<f64> {
    (0..size / 2)
        .map(|index| {
            let exponent = (2 * index) as f32 / size as f32;
            f64::from(1.0 / (theta as f32).powf(exponent))
        })
        .collect()
}

/// The angle of `position` at `frequency`, rounded as a float32 product is.
fn angle(position: f64, frequency: f64) -> f64 {
    f64::from((position * frequency) as f32)
}

/// Height and width of a picture, counted in tokens (or patches).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Grid {
    /// Rows times columns.
    #[must_use]
    pub fn len(self) -> usize {
        self.height * self.width
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Where pictures stand on the frame axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameOrder {
    /// In the order given.
    Counted,
    /// In the order given, but for the last: that one stands before the first.
    LastBefore,
}

impl FrameOrder {
    /// The frame position of picture `index` of `count`.
    fn of(self, index: usize, count: usize) -> f64 {
        match self {
            Self::LastBefore if index + 1 == count => -1.0,
            Self::Counted | Self::LastBefore => index as f64,
        }
    }
}

/// The transformer's positions.
///
/// `pictures`: those being made first, then the reference pictures; `order`: how
/// they are told apart. `axes`: numbers of a head that turn with frame, row and column.
/// Returns the rotations of all image tokens, picture by picture and row by row,
/// and of `text_tokens` text tokens; adjacent numbers of a head turn together.
///
/// Rows and columns are counted from the picture's centre, so that pictures of
/// different sizes lie on each other; the frame axis tells them apart. Text goes
/// on where the largest picture ends, along the diagonal.
///
/// Source: diffusers 0.42.1, `QwenEmbedRope` and `QwenEmbedLayer3DRope`.
#[must_use]
pub fn transformer_positions(
    pictures: &[Grid],
    order: FrameOrder,
    text_tokens: usize,
    axes: [usize; 3],
) -> (Rotations, Rotations) {
    let frequencies = axes.map(|size| frequencies(10_000.0, size));
    let width = axes.iter().sum::<usize>() / 2;
    let rotate = |position: [f64; 3], angles: &mut Vec<f64>| {
        for (axis, position) in frequencies.iter().zip(position) {
            angles.extend(axis.iter().map(|frequency| angle(position, *frequency)));
        }
    };
    let mut image = Vec::new();
    for (index, grid) in pictures.iter().enumerate() {
        let frame = order.of(index, pictures.len());
        for row in centred(grid.height) {
            for column in centred(grid.width) {
                rotate([frame, row, column], &mut image);
            }
        }
    }
    let start = text_start(pictures, order);
    let mut text = Vec::new();
    for token in 0..text_tokens {
        rotate([(start + token) as f64; 3], &mut text);
    }
    (Rotations::of(image, width), Rotations::of(text, width))
}

/// −(n − ⌊n/2⌋) … ⌊n/2⌋ − 1
fn centred(count: usize) -> impl Iterator<Item = f64> {
    let before = (count - count / 2) as f64;
    (0..count).map(move |index| index as f64 - before)
}

/// The position of the first text token: half of the longest side, and behind
/// the layers' frames.
#[must_use]
pub fn text_start(pictures: &[Grid], order: FrameOrder) -> usize {
    let half = pictures.iter().map(|grid| grid.height.max(grid.width) / 2).max().unwrap_or(0);
    match order {
        FrameOrder::Counted => half,
        FrameOrder::LastBefore => half.max(pictures.len().saturating_sub(1)),
    }
}

/// A stretch of the token sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Words.
    Text(Range<usize>),
    /// The merged tokens of a picture.
    Picture(Range<usize>, Grid),
}

/// The language model's positions: time, row and column of every token.
///
/// Words count on in all three. A picture stands still in time and counts rows
/// and columns from where it starts; afterwards words go on behind its longer side.
///
/// Source: transformers 5.23, `Qwen2_5_VLModel.get_rope_index`. (diffusers up to
/// 0.42.1 loses these positions; the published models were trained with them.)
#[must_use]
pub fn language_positions(segments: &[Segment]) -> Vec<[usize; 3]> {
    let mut positions = Vec::new();
    let mut next = 0;
    for segment in segments {
        match segment {
            Segment::Text(tokens) => {
                positions.extend((next..next + tokens.len()).map(|position| [position; 3]));
                next += tokens.len();
            }
            Segment::Picture(_, grid) => {
                let token =
                    |index: usize| [next, next + index / grid.width, next + index % grid.width];
                positions.extend((0..grid.len()).map(token));
                next += grid.height.max(grid.width);
            }
        }
    }
    positions
}

/// Rotations of the language model: of each head's `2 · Σ section` numbers, the
/// first frequencies turn with time, the next with the row, the last with the column.
#[must_use]
pub fn language_rotations(positions: &[[usize; 3]], theta: f64, section: [usize; 3]) -> Rotations {
    let width = section.iter().sum();
    let frequencies = frequencies(theta, 2 * width);
    let axis_of: Vec<usize> =
        section.iter().enumerate().flat_map(|(axis, count)| vec![axis; *count]).collect();
    let angles = positions
        .iter()
        .flat_map(|position| {
            frequencies
                .iter()
                .zip(&axis_of)
                .map(|(frequency, axis)| angle(position[*axis] as f64, *frequency))
        })
        .collect();
    Rotations::of(angles, width)
}

/// Rotations of the vision tower for the patches at `places` (row, column), for
/// heads of `head_dim` numbers: half of the angles turn with the row, half with the column.
///
/// Source: transformers 5.23, `Qwen2_5_VisionRotaryEmbedding`.
#[must_use]
pub fn vision_rotations(places: &[(usize, usize)], head_dim: usize) -> Rotations {
    let frequencies = frequencies(10_000.0, head_dim / 2);
    let angles = places
        .iter()
        .flat_map(|&(row, column)| {
            [row, column].into_iter().flat_map(|place| {
                frequencies.iter().map(move |frequency| angle(place as f64, *frequency))
            })
        })
        .collect();
    Rotations::of(angles, head_dim / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_counted_from_the_centre() {
        assert_eq!(centred(5).collect::<Vec<_>>(), [-3.0, -2.0, -1.0, 0.0, 1.0]);
        assert_eq!(centred(4).collect::<Vec<_>>(), [-2.0, -1.0, 0.0, 1.0]);
        let grids = [Grid { height: 6, width: 9 }, Grid { height: 11, width: 2 }];
        assert_eq!(text_start(&grids, FrameOrder::Counted), 5);
        assert_eq!(text_start(&[grids[0]; 8], FrameOrder::LastBefore), 7);
    }

    #[test]
    fn a_picture_stands_still_in_time_and_words_go_on_behind_its_longer_side() {
        let grid = Grid { height: 3, width: 6 };
        let segments =
            [Segment::Text(0..65), Segment::Picture(65..83, grid), Segment::Text(83..85)];

        let positions = language_positions(&segments);

        assert_eq!(positions[64], [64, 64, 64]);
        assert_eq!(positions[65], [65, 65, 65]);
        assert_eq!(positions[82], [65, 67, 70]);
        assert_eq!(positions[83], [71, 71, 71]);
        assert_eq!(positions[84], [72, 72, 72]);
    }
}
