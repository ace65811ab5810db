//! Pictures as the project passes them round: 8 bits a channel, row by row.

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
    /// The number of bytes is not that of the pixels.
    #[error("a {width}x{height} picture of this kind has {expected} bytes, got {actual}")]
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

    /// The bytes alone, row-major RGB.
    #[must_use]
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
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

/// One byte a pixel, row-major: a mask, or how opaque a picture is.
#[derive(Clone, PartialEq, Eq)]
pub struct GreyImage {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl GreyImage {
    /// Takes `pixels` (row-major) as a picture of `width` by `height`.
    ///
    /// # Errors
    /// [`ImageError`] if a side is zero or the length does not fit.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        let expected = width * height;
        if pixels.len() != expected {
            return Err(ImageError::WrongLength { width, height, expected, actual: pixels.len() });
        }
        Ok(Self { width, height, pixels })
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

    /// The bytes alone, row-major.
    #[must_use]
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The bytes, row-major.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for GreyImage {
    /// Prints the size, never the pixels.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "GreyImage({}x{})", self.width, self.height)
    }
}

/// An RGB picture that may be transparent in places.
///
/// The colours are not premultiplied, and are those that the file holds also
/// where nothing of them is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    colour: RgbImage,
    /// 0: transparent, 255: opaque. `None`: opaque throughout.
    alpha: Option<GreyImage>,
}

impl Picture {
    /// Joins colours and transparency.
    ///
    /// # Errors
    /// [`ImageError::WrongLength`] if the two differ in size.
    pub fn with_alpha(colour: RgbImage, alpha: GreyImage) -> Result<Self, ImageError> {
        let (width, height) = (colour.width(), colour.height());
        if (alpha.width(), alpha.height()) != (width, height) {
            let (expected, actual) = (width * height, alpha.pixels().len());
            return Err(ImageError::WrongLength { width, height, expected, actual });
        }
        Ok(Self { colour, alpha: Some(alpha) })
    }

    /// Its colours and its transparency.
    #[must_use]
    pub fn into_parts(self) -> (RgbImage, Option<GreyImage>) {
        (self.colour, self.alpha)
    }

    /// What is seen of it on a ground of one colour.
    ///
    /// Source: Pillow 13.0, `Image.paste` with a mask (`Paste.c`, `BLEND`).
    #[must_use]
    pub fn over(&self, ground: [u8; 3]) -> RgbImage {
        let Some(alpha) = &self.alpha else {
            return self.colour.clone();
        };
        let pixels = self.colour.pixels.chunks_exact(3).zip(&alpha.pixels);
        let mixed = pixels.flat_map(|(colour, alpha)| {
            [0, 1, 2].map(|channel| blend(ground[channel], colour[channel], *alpha))
        });
        let (width, height) = (self.colour.width, self.colour.height);
        RgbImage { width, height, pixels: mixed.collect() }
    }

    /// As [`Self::over`], without another picture in memory.
    #[must_use]
    pub fn laid_on(self, ground: [u8; 3]) -> RgbImage {
        let Self { mut colour, alpha } = self;
        for (colour, alpha) in
            colour.pixels.chunks_exact_mut(3).zip(alpha.iter().flat_map(|alpha| &alpha.pixels))
        {
            for (channel, ground) in colour.iter_mut().zip(ground) {
                *channel = blend(ground, *channel, *alpha);
            }
        }
        colour
    }

    /// Bytes of its pixels.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.colour.pixels.len() + self.alpha.as_ref().map_or(0, |alpha| alpha.pixels.len())
    }

    /// The colours, with transparency disregarded as PIL's `convert("RGB")` does.
    #[must_use]
    pub fn colour(&self) -> &RgbImage {
        &self.colour
    }

    /// The transparency, if there is any.
    #[must_use]
    pub fn alpha(&self) -> Option<&GreyImage> {
        self.alpha.as_ref()
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.colour.width()
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.colour.height()
    }
}

/// `over`, as much as `share` of 255 says, on `under`; rounded.
fn blend(under: u8, over: u8, share: u8) -> u8 {
    let sum = u32::from(under) * u32::from(u8::MAX - share) + u32::from(over) * u32::from(share);
    u8::try_from((sum + 127) / 255).unwrap_or(u8::MAX)
}

impl From<RgbImage> for Picture {
    fn from(colour: RgbImage) -> Self {
        Self { colour, alpha: None }
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
    fn transparency_has_the_size_of_the_colours() {
        let colour = RgbImage::filled(2, 1, [9, 9, 9]);
        let alpha = |width, height| GreyImage::new(width, height, vec![7; width * height]).unwrap();

        assert!(Picture::with_alpha(colour.clone(), alpha(2, 1)).unwrap().alpha().is_some());
        assert!(Picture::with_alpha(colour.clone(), alpha(1, 2)).is_err());
        assert_eq!(Picture::from(colour).alpha(), None);
    }

    #[test]
    fn of_what_is_transparent_the_ground_is_seen() {
        let colour = RgbImage::new(3, 1, vec![9, 8, 7, 200, 100, 0, 9, 8, 7]).unwrap();
        let alpha = GreyImage::new(3, 1, vec![0, 128, 255]).unwrap();
        let picture = Picture::with_alpha(colour, alpha).unwrap();

        let seen = picture.over([255, 255, 255]);

        assert_eq!(seen.pixels(), [255, 255, 255, 227, 177, 127, 9, 8, 7]);
        assert_eq!(picture.bytes(), 12);
        assert_eq!(picture.laid_on([255, 255, 255]), seen);
    }

    #[test]
    fn debug_output_has_no_pixels() {
        assert_eq!(format!("{:?}", RgbImage::filled(3, 2, [9, 9, 9])), "RgbImage(3x2)");
    }
}
