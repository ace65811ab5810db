//! Picture files to send, and to read what came back.

use diffuser_api::domain::{Picture, RgbImage};
use diffuser_api::imaging::codec::{self, DecodeLimits, OutputFormat};

/// A picture in which no two rows or columns are alike.
pub(crate) fn picture(width: usize, height: usize) -> RgbImage {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            pixels.extend([x % 256, y % 256, (x + y) % 256].map(|v| u8::try_from(v).unwrap()));
        }
    }
    RgbImage::new(width, height, pixels).unwrap()
}

/// [`picture`] as a file.
pub(crate) fn file(width: usize, height: usize, format: OutputFormat) -> Vec<u8> {
    codec::encode(&picture(width, height).into(), format).unwrap()
}

/// [`picture`] as a PNG file.
pub(crate) fn png(width: usize, height: usize) -> Vec<u8> {
    file(width, height, OutputFormat::Png)
}

/// A white PNG file: a mask of everything.
pub(crate) fn white(width: usize, height: usize) -> Vec<u8> {
    let white = RgbImage::filled(width, height, [255; 3]);
    codec::encode(&white.into(), OutputFormat::Png).unwrap()
}

/// A small file whose header tells of 60,000 by 60,000 pixels.
pub(crate) fn png_bomb() -> Vec<u8> {
    let mut bomb = png(8, 8);
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let checksum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    bomb
}

/// The checksum of PNG chunks (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    for byte in bytes {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = remainder & 1;
            remainder = (remainder >> 1) ^ (0xedb8_8320 * carry);
        }
    }
    !remainder
}

/// Reads a file that the server made, with its transparency.
pub(crate) fn decode_picture(bytes: &[u8]) -> Picture {
    let limits = DecodeLimits { max_bytes: 1 << 30, max_side: 10_000, max_pixels: 10_000_000 };
    codec::decode(bytes, limits).unwrap().picture
}

/// The colours of a file that the server made.
pub(crate) fn decode(bytes: &[u8]) -> RgbImage {
    decode_picture(bytes).colour().clone()
}
