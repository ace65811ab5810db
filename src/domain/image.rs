//! Pictures as the project passes them round: 8-bit RGB, row by row.

/// An 8-bit RGB picture in memory.
///
/// Pixels are row-major, three bytes each, top left first. Both sides are at
/// least one pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// Why bytes do not make an [`RgbImage`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// A side is zero.
    #[error("a picture needs at least one pixel, got {width}x{height}")]
    Empty {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// The number of bytes is not width · height · 3.
    #[error("a {width}x{height} RGB picture has {expected} bytes, got {actual}")]
    WrongLength {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes that such a picture has.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
}

impl RgbImage {
    /// Takes `pixels` (row-major RGB) as a picture of `width` by `height`.
    ///
    /// # Errors
    /// [`ImageError`] if a side is zero or the length does not fit.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        let expected = width * height * 3;
        if pixels.len() != expected {
            return Err(ImageError::WrongLength { width, height, expected, actual: pixels.len() });
        }
        Ok(Self { width, height, pixels })
    }

    /// A picture of one colour; sides of zero become one.
    #[must_use]
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        Self { width, height, pixels: colour.repeat(width * height) }
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, row-major RGB.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for RgbImage {
    /// Prints the size, never the pixels: pictures do not belong in logs.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RgbImage({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_knows_its_size_and_refuses_the_wrong_number_of_bytes() {
        let image = RgbImage::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();

        assert_eq!((image.width(), image.height()), (2, 1));
        assert!(matches!(RgbImage::new(2, 1, vec![0; 5]), Err(ImageError::WrongLength { .. })));
        assert!(matches!(RgbImage::new(0, 1, vec![]), Err(ImageError::Empty { .. })));
    }

    #[test]
    fn debug_output_has_no_pixels() {
        assert_eq!(format!("{:?}", RgbImage::filled(3, 2, [9, 9, 9])), "RgbImage(3x2)");
    }
}
