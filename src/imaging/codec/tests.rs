//! Files that are made here, and read again.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::*;
use crate::domain::{GreyImage, RgbImage};

const LIMITS: DecodeLimits =
    DecodeLimits { max_bytes: 1 << 20, max_side: 1000, max_pixels: 10_000 };

fn gradient(width: usize, height: usize) -> Picture {
    let pixels = (0..width * height * 3).map(|index| u8::try_from(index % 251).unwrap()).collect();
    RgbImage::new(width, height, pixels).unwrap().into()
}

fn png_of(width: u32, height: u32, samples: &[u8], color: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(samples, width, height, color).unwrap();
    bytes
}

#[test]
fn lossless_formats_give_back_the_very_pixels() {
    let image = gradient(7, 5);

    let alpha = GreyImage::new(7, 5, (0..35).collect()).unwrap();
    let glassy = Picture::with_alpha(image.colour().clone(), alpha).unwrap();

    for format in [OutputFormat::Png, OutputFormat::Webp { quality: 100 }] {
        for image in [&image, &glassy] {
            let bytes = encode(image, format).unwrap();
            assert_eq!(decode(&bytes, LIMITS).unwrap().picture, *image, "{format:?}");
        }
    }
}

#[test]
fn more_work_on_a_png_makes_it_smaller_and_changes_no_pixel() {
    let wave = |index: usize| u8::try_from((index * index / 700 + index / 3) % 256).unwrap();
    let pixels = (0..96 * 80 * 3).map(wave).collect();
    let image = Picture::from(RgbImage::new(96, 80, pixels).unwrap());

    let levels = [PngCompression::Fast, PngCompression::Balanced, PngCompression::Best];
    let sizes = levels.map(|level| {
        let bytes = encode_with(&image, OutputFormat::Png, level).unwrap();
        assert_eq!(decode(&bytes, LIMITS).unwrap().picture, image, "{level:?}");
        bytes.len()
    });

    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
    let unsaid = encode(&image, OutputFormat::Png).unwrap();
    assert_eq!(unsaid.len(), sizes[0]);
}

#[test]
fn more_work_on_noise_does_not_make_a_png_larger() {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u8::try_from(state >> 30).unwrap()
    };
    let pixels = (0..200 * 200 * 3).map(|_| 60 + (0..4).map(|_| uniform()).sum::<u8>()).collect();
    let image = Picture::from(RgbImage::new(200, 200, pixels).unwrap());

    let levels = [PngCompression::Fast, PngCompression::Balanced, PngCompression::Best];
    let sizes = levels.map(|level| encode_with(&image, OutputFormat::Png, level).unwrap().len());

    assert!(sizes[1] <= sizes[0] && sizes[2] <= sizes[0], "{sizes:?}");
}

#[test]
fn quality_trades_size_for_likeness() {
    let image = gradient(64, 64);
    let jpeg: fn(u8) -> OutputFormat = |quality| OutputFormat::Jpeg { quality };
    let webp: fn(u8) -> OutputFormat = |quality| OutputFormat::Webp { quality };

    for format in [jpeg, webp] {
        let sizes = [0, 10, 99].map(|quality| {
            let bytes = encode(&image, format(quality)).unwrap();
            assert_eq!(decode(&bytes, LIMITS).unwrap().picture.width(), 64);
            bytes.len()
        });
        assert!(sizes[0] < sizes[1] && sizes[1] < sizes[2], "{sizes:?}");
    }
}

#[test]
fn alpha_is_set_apart_and_grey_is_spread() {
    let rgba = png_of(1, 1, &[10, 20, 30, 0], ExtendedColorType::Rgba8);
    let opaque = png_of(1, 1, &[10, 20, 30, 255], ExtendedColorType::Rgba8);
    let grey = png_of(1, 1, &[77], ExtendedColorType::L8);
    let deep = png_of(1, 1, &[0x12, 0xff, 0x34, 0x00, 0x56, 0x80], ExtendedColorType::Rgb16);

    let rgba = decode(&rgba, LIMITS).unwrap().picture;
    assert_eq!(
        (rgba.colour().pixels(), rgba.alpha().unwrap().pixels()),
        ([10, 20, 30].as_slice(), [0].as_slice())
    );
    assert_eq!(decode(&opaque, LIMITS).unwrap().picture.alpha(), None);
    assert_eq!(decode(&grey, LIMITS).unwrap().picture.colour().pixels(), [77, 77, 77]);
    // The encoder takes samples in this machine's byte order.
    let upper =
        if cfg!(target_endian = "little") { [0xff, 0x00, 0x80] } else { [0x12, 0x34, 0x56] };
    assert_eq!(decode(&deep, LIMITS).unwrap().picture.colour().pixels(), upper);
}

/// 60,000 pixels in each direction, as four bytes.
const HUGE: [u8; 4] = 60_000_u32.to_be_bytes();

/// Headers that tell of 60,000 by 60,000 pixels, in files of a few bytes.
fn bombs() -> Vec<Vec<u8>> {
    let mut png = encode(&gradient(8, 8), OutputFormat::Png).unwrap();
    // Width and height stand at bytes 16 to 24, their checksum at 29.
    png[16..24].copy_from_slice(&[HUGE, HUGE].concat());
    png[29..33].copy_from_slice(&0x0fb0_e215_u32.to_be_bytes());
    let mut jpeg = encode(&gradient(8, 8), OutputFormat::Jpeg { quality: 50 }).unwrap();
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[HUGE[2], HUGE[3], HUGE[2], HUGE[3]]);
    let gif = b"GIF89a\x60\xea\x60\xea\x80\0\0\0\0\0\xff\xff\xff\
        ,\0\0\0\0\x60\xea\x60\xea\0\x02\x02\x44\x01\0;";
    let bmp = [
        b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x60\xea\0\0\x60\xea\0\0".as_slice(),
        b"\x01\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ];
    let entry = |tag: u16, value: u32| {
        [&tag.to_le_bytes()[..], &[4, 0, 1, 0, 0, 0], &value.to_le_bytes()].concat()
    };
    let entries = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)];
    let entries = entries.into_iter().chain([(278, 60_000), (279, 4)]);
    let entries: Vec<u8> = entries.flat_map(|(tag, value)| entry(tag, value)).collect();
    let tiff = [b"II*\0\x08\0\0\0\x09\0".as_slice(), &entries, &[0; 4]].concat();
    // An extended WebP says its sides less one, in 24 bits.
    let webp = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x5f\xea\0\x5f\xea\0VP8 \0\0\0\0";
    vec![png, jpeg, gif.to_vec(), bmp.concat(), tiff, webp.to_vec()]
}

#[test]
fn sizes_are_refused_by_the_header_alone() {
    let wide = encode(&gradient(1001, 1), OutputFormat::Png).unwrap();
    let large = encode(&gradient(101, 100), OutputFormat::Jpeg { quality: 50 }).unwrap();

    for file in bombs().into_iter().chain([wide, large]) {
        let refused = decode(&file, LIMITS);
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })), "{refused:?}");
    }
}

#[test]
fn damaged_truncated_and_foreign_files_are_refused() {
    assert!(matches!(decode(b"", LIMITS), Err(DecodeError::Empty)));
    for text in [b"hello".as_slice(), b"<html></html>"] {
        assert!(matches!(decode(text, LIMITS), Err(DecodeError::NotAPicture { .. })));
    }
    let webp = OutputFormat::Webp { quality: 100 };
    for format in [OutputFormat::Png, OutputFormat::Jpeg { quality: 90 }, webp] {
        let bytes = encode(&gradient(60, 60), format).unwrap();
        // A PNG may do without its last 24 bytes: they hold no pixels.
        for length in (4..bytes.len() - 24).step_by(bytes.len() / 50) {
            let cut = decode(&bytes[..length], LIMITS);
            assert!(cut.is_err(), "{format:?} cut to {length} bytes");
        }
    }
}

/// Found by fuzzing: its colours lie behind the end, where a last row may be filled up.
#[test]
fn a_bmp_whose_colours_are_cut_off_is_truncated_for_decoding_as_for_its_estimate() {
    let mut file =
        b"BM\0\0\0\0\0\0\0\0\x3e\0\0\0\x28\0\0\0\x08\0\0\0\x01\0\0\0\x01\0\x01\0".to_vec();
    file.resize(54, 0);
    file.extend([0, 0, 0, 0, 255, 255, 255]);

    let (estimate, decoded) = (bytes_to_decode(&file, LIMITS), decode(&file, LIMITS));

    assert!(matches!(estimate, Err(DecodeError::Truncated)), "{estimate:?}");
    assert!(matches!(decoded, Err(DecodeError::Truncated)), "{decoded:?}");
    // Whole colours, and a last row of one byte instead of four.
    file.extend([0, 0b1010_1010]);
    assert!(bytes_to_decode(&file, LIMITS).is_ok() && decode(&file, LIMITS).is_ok());
}

/// A JPEG of some size with `segment` behind its start.
fn jpeg_with(marker: u8, content: &[u8]) -> Vec<u8> {
    let jpeg = encode(&gradient(8, 8), OutputFormat::Jpeg { quality: 90 }).unwrap();
    let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, marker], &length, content, &jpeg[2..]].concat()
}

#[test]
fn a_jpeg_without_its_end_is_truncated_whatever_its_metadata_hold() {
    let whole = jpeg_with(0xe1, b"Exif\0\0\xff\xd8\xff\xda\0\x02\xff\xd9");

    assert!(decode(&whole, LIMITS).is_ok());
    for missing in 1..40 {
        let cut = decode(&whole[..whole.len() - missing], LIMITS);
        assert!(matches!(cut, Err(DecodeError::Truncated)), "{missing}: {cut:?}");
    }
}

#[test]
fn a_jpeg_of_endless_scans_is_refused() {
    let scan = [0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0].repeat(5000);
    let jpeg = encode(&gradient(8, 8), OutputFormat::Jpeg { quality: 90 }).unwrap();
    let bomb = [&jpeg[..jpeg.len() - 2], &scan, &jpeg[jpeg.len() - 2..]].concat();

    assert!(matches!(decode(&bomb, LIMITS), Err(DecodeError::TooManyScans { .. })));
}

/// To us a restart stands alone; the decoder skips as much as comes behind it as a length, and
/// with that the segment that to us holds the frame.
#[test]
fn a_jpeg_is_not_decoded_by_another_frame_than_the_one_that_memory_was_taken_for() {
    let mut whole = Vec::new();
    let grey = image::GrayImage::from_pixel(64, 64, image::Luma([90]));
    grey.write_to(&mut std::io::Cursor::new(&mut whole), image::ImageFormat::Jpeg).unwrap();
    let frame = whole.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let (head, tail) = whole.split_at(frame);
    let one_pixel: &[u8] = &[0xff, 0xc0, 0, 11, 8, 0, 1, 0, 1, 1, 1, 0x11, 0];
    let with_frame = |seen_by_us: &[u8]| {
        let skipped = [seen_by_us, &[0xff, 0xe3, 0, 15]].concat();
        let length = u8::try_from(2 + skipped.len()).unwrap();
        [head, &[0xff, 0xd3, 0, length], &skipped, tail].concat()
    };

    let small = with_frame(one_pixel);

    let known = bytes_to_decode(&small, LIMITS).unwrap();
    assert!(known < bytes_to_decode(&whole, LIMITS).unwrap(), "one pixel is expected");
    assert_eq!(decode(&whole, LIMITS).unwrap().picture.width(), 64);
    for refused in [small, with_frame(&[])] {
        assert!(matches!(decode(&refused, LIMITS), Err(DecodeError::Damaged(_))));
    }
}

#[test]
fn kinds_of_jpeg_that_are_not_read_are_named() {
    for (frame, kind) in [(0xc3, "lossless"), (0xc9, "arithmetic")] {
        let mut jpeg = encode(&gradient(8, 8), OutputFormat::Jpeg { quality: 90 }).unwrap();
        let at = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[at + 1] = frame;
        let message = decode(&jpeg, LIMITS).unwrap_err().to_string();
        assert!(message.contains(kind), "{message}");
    }
}

#[test]
fn a_transparent_picture_lies_on_white_in_a_jpeg() {
    let colour = RgbImage::filled(8, 8, [255, 0, 0]);
    let glassy = Picture::with_alpha(colour, GreyImage::new(8, 8, vec![0; 64]).unwrap()).unwrap();

    let jpeg = encode(&glassy, OutputFormat::Jpeg { quality: 95 }).unwrap();

    let picture = decode(&jpeg, LIMITS).unwrap().picture;
    assert!(picture.colour().pixels().iter().all(|level| *level >= 253));
}

/// A PNG of one pixel whose profile is `icc`, which is called `name`.
fn png_with_profile(name: &str, icc: &[u8]) -> Vec<u8> {
    let png = encode(&gradient(1, 1), OutputFormat::Png).unwrap();
    let compressed = fdeflate::compress_to_vec(icc);
    let content = [name.as_bytes(), b"\0\0", &compressed].concat();
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    // The checksum of a chunk that may be skipped does not count.
    [&png[..33], &length, b"iCCP", &content, &[0; 4], &png[33..]].concat()
}

#[test]
fn profiles_that_cannot_be_used_are_dropped_and_named() {
    let srgb = moxcms::ColorProfile::new_srgb().encode().unwrap();
    let grey = moxcms::ColorProfile::new_gray_with_gamma(1.8).encode().unwrap();
    let mut link = srgb.clone();
    link[12..16].copy_from_slice(b"link");
    let huge = vec![0; profile::MAX_PROFILE_BYTES + 1];
    let cases: [(&[u8], ProfileFault); 5] = [
        (b"no profile", ProfileFault::Damaged),
        (&srgb[..200], ProfileFault::Damaged),
        (&link, ProfileFault::OtherPurpose),
        (&huge, ProfileFault::TooLarge),
        (&grey, ProfileFault::OtherColours { profile: "grey", picture: "RGB" }),
    ];
    for (icc, reason) in cases {
        let decoded = decode(&png_with_profile("Name", icc), LIMITS).unwrap();

        assert_eq!(decoded.dropped_profile.map(|dropped| dropped.reason), Some(reason));
        assert_eq!(decoded.picture, gradient(1, 1), "{reason:?}");
    }
    let sane = decode(&png_with_profile("Name", &srgb), LIMITS).unwrap();
    assert_eq!((sane.dropped_profile, sane.picture), (None, gradient(1, 1)));
}

#[test]
fn every_byte_of_a_profile_may_be_wrong_without_harm() {
    let srgb = moxcms::ColorProfile::new_srgb().encode().unwrap();
    for at in 0..srgb.len() {
        let mut broken = srgb.clone();
        broken[at] ^= 0xff;
        assert!(decode(&png_with_profile("Name", &broken), LIMITS).is_ok(), "byte {at}");
    }
}

/// Limits that the two files below are within.
const WIDE: DecodeLimits = DecodeLimits { max_side: 4096, max_pixels: 1 << 22, ..LIMITS };

#[test]
fn the_lengths_that_a_webp_file_claims_are_counted_before_they_are_believed() {
    // 8x1604 pixels in two partitions, the first of which claims to have nearly 16 MiB. Found
    // by fuzzing.
    let file = include_bytes!("../../../fuzz/seeds/picture_decode/partitions.webp");

    let bytes = bytes_to_decode(file, WIDE).unwrap();

    assert!(bytes > 1 << 24, "{bytes}");
}

#[test]
fn a_gifs_first_frame_is_counted_and_limited_also_where_it_is_larger_than_the_whole() {
    // 1799x1799 pixels in a picture of 8x6. Found by fuzzing.
    let file = include_bytes!("../../../fuzz/seeds/picture_decode/large_frame.gif");

    let bytes = bytes_to_decode(file, WIDE).unwrap();

    assert!(bytes > 5 * 1799 * 1799, "{bytes}");
    let error = decode(file, LIMITS).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { width: 1799, height: 1799, .. }), "{error}");
}
