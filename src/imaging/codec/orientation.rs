//! How a picture is to be turned: EXIF's orientation, else XMP's.

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};

use crate::domain::{GreyImage, ImageError, Picture, RgbImage};

/// Bytes of an XMP packet that are looked through.
const MAX_XMP_BYTES: usize = 4 << 20;

/// The property in XMP, as an attribute or as an element.
const PROPERTY: &[u8] = b"tiff:Orientation";

/// What EXIF says wins, as in Pillow; unreadable metadata say nothing.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let of_exif = |exif: &[u8]| {
        let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        Orientation::from_exif_chunk(tiff)
    };
    exif.and_then(of_exif).or_else(|| xmp.and_then(of_xmp)).unwrap_or(Orientation::NoTransforms)
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6</tiff:Orientation>`.
fn of_xmp(xmp: &[u8]) -> Option<Orientation> {
    let xmp = &xmp[..xmp.len().min(MAX_XMP_BYTES)];
    let mut places = xmp.windows(PROPERTY.len()).enumerate().filter(|(_, part)| *part == PROPERTY);
    places.find_map(|(at, _)| value_of(&xmp[at + PROPERTY.len()..]))
}

/// The digit behind the property's name and what parts the two.
fn value_of(rest: &[u8]) -> Option<Orientation> {
    let between = |byte: &u8| byte.is_ascii_whitespace() || b"=>'\"".contains(byte);
    let digit = *rest.iter().find(|byte| !between(byte))?;
    Orientation::from_exif(digit.checked_sub(b'0')?)
}

/// `picture` as it is meant to be seen.
pub(super) fn turned(picture: Picture, orientation: Orientation) -> Result<Picture, ImageError> {
    if orientation == Orientation::NoTransforms {
        return Ok(picture);
    }
    let sides = |width: usize, height: usize| {
        (u32::try_from(width).unwrap_or(u32::MAX), u32::try_from(height).unwrap_or(u32::MAX))
    };
    let (width, height) = sides(picture.width(), picture.height());
    // A buffer of the very sides: it is never refused.
    let (stored_width, stored_height) = (picture.width(), picture.height());
    let empty = || ImageError::Empty { width: stored_width, height: stored_height };
    let (colour, alpha) = picture.into_parts();
    let colour = ImageBuffer::from_raw(width, height, colour.into_pixels());
    let mut colour = DynamicImage::ImageRgb8(colour.ok_or_else(empty)?);
    colour.apply_orientation(orientation);
    let (turned_width, turned_height) = (colour.width() as usize, colour.height() as usize);
    let whole = RgbImage::new(turned_width, turned_height, colour.into_rgb8().into_raw())?;
    let Some(alpha) = alpha else {
        return Ok(whole.into());
    };
    let alpha = ImageBuffer::from_raw(width, height, alpha.into_pixels());
    let mut alpha = DynamicImage::ImageLuma8(alpha.ok_or_else(empty)?);
    alpha.apply_orientation(orientation);
    let alpha = GreyImage::new(turned_width, turned_height, alpha.into_luma8().into_raw())?;
    Picture::with_alpha(whole, alpha)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TIFF header, one entry: tag 0x0112 (orientation), SHORT, one value.
    fn exif(value: u8) -> Vec<u8> {
        let entry = [0x12, 1, 3, 0, 1, 0, 0, 0, value, 0, 0, 0, 0, 0, 0, 0];
        [b"II*\0\x08\0\0\0\x01\0".as_slice(), &entry].concat()
    }

    #[test]
    fn xmp_is_heard_as_attribute_and_element_and_exif_wins() {
        let attribute = b"<rdf:Description xmlns:tiff='x' tiff:Orientation=\"6\"/>".as_slice();
        let quoted = b"<rdf:Description tiff:Orientation = '6'/>".as_slice();
        let element = b"<tiff:Orientation>6</tiff:Orientation>".as_slice();
        for xmp in [attribute, quoted, element] {
            assert_eq!(orientation(None, Some(xmp)), Orientation::Rotate90);
            assert_eq!(orientation(Some(&exif(1)), Some(xmp)), Orientation::NoTransforms);
            assert_eq!(orientation(Some(&exif(3)), Some(xmp)), Orientation::Rotate180);
            assert_eq!(orientation(Some(b"II*\0broken"), Some(xmp)), Orientation::Rotate90);
        }
        for xmp in [b"".as_slice(), b"tiff:Orientation", b"tiff:Orientation=\"9\"", b"\0\xff"] {
            assert_eq!(orientation(None, Some(xmp)), Orientation::NoTransforms);
        }
    }

    #[test]
    fn transparency_turns_with_the_colours() {
        let colour = RgbImage::new(2, 1, vec![1, 1, 1, 2, 2, 2]).unwrap();
        let alpha = GreyImage::new(2, 1, vec![0, 255]).unwrap();
        let picture = Picture::with_alpha(colour, alpha).unwrap();

        let turned = turned(picture, Orientation::Rotate90FlipH).unwrap();

        assert_eq!((turned.width(), turned.height()), (1, 2));
        assert_eq!(turned.colour().pixels(), [1, 1, 1, 2, 2, 2]);
        assert_eq!(turned.alpha().unwrap().pixels(), [0, 255]);
    }
}
