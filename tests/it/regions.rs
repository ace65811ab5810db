//! Parts of pictures and transparency, byte for byte as diffusers and Pillow make
//! them. The numbers come from `tests/data/make_regions.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use diffuser_api::domain::{GreyImage, Picture, RgbImage};
use diffuser_api::imaging::region::{Region, fill, fill_grey, overlay};
use diffuser_api::imaging::resample::{Resampler, resize_picture};

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/regions.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Height, width and bytes of a tensor.
fn bytes(tensor: &Tensor) -> (usize, usize, Vec<u8>) {
    let (height, width) = (tensor.dims()[0], tensor.dims()[1]);
    (height, width, tensor.flatten_all().unwrap().to_vec1().unwrap())
}

fn colours(tensor: &Tensor) -> RgbImage {
    let (height, width, pixels) = bytes(tensor);
    RgbImage::new(width, height, pixels).unwrap()
}

fn greys(tensor: &Tensor) -> GreyImage {
    let (height, width, pixels) = bytes(tensor);
    GreyImage::new(width, height, pixels).unwrap()
}

#[test]
fn a_part_is_cut_out_filled_and_laid_back_as_in_the_reference() {
    let golden = golden();
    let cases = (0..).take_while(|case| golden.contains_key(&format!("{case}.image")));
    let mut compared = 0;
    for case in cases {
        let tensor = |name: &str| &golden[&format!("{case}.{name}")];
        let numbers: Vec<i64> = tensor("numbers").to_vec1().unwrap();
        let numbers: Vec<usize> = numbers.iter().map(|number| *number as usize).collect();
        let [width, height, padding, left, top, right, bottom] = numbers[..] else {
            panic!("seven numbers");
        };
        let (image, mask) = (colours(tensor("image")), greys(tensor("mask")));

        let region = Region::around(&mask, width, height, padding).unwrap();
        let filled = fill(&region.cut(&image), width, height);
        let filled_mask = fill_grey(&region.cut_grey(&mask), width, height);
        let out = overlay(&image, &mask, &colours(tensor("repainted")), region);

        assert_eq!(region, Region { left, top, right, bottom }, "case {case}");
        assert!(filled == colours(tensor("filled")), "case {case}: picture");
        assert!(filled_mask == greys(tensor("filled_mask")), "case {case}: mask");
        assert!(out == colours(tensor("out")), "case {case}: result");
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} cases");
}

#[test]
fn a_black_mask_has_no_region() {
    let black = GreyImage::new(4, 3, vec![0; 12]).unwrap();

    assert_eq!(Region::around(&black, 16, 16, 2), None);
}

#[test]
fn transparent_pictures_are_resized_as_in_pillow() {
    let golden = golden();
    for case in 0..4 {
        let picture = |name: &str| {
            let (height, width, pixels) = bytes(&golden[&format!("rgba.{case}.{name}")]);
            let alpha = pixels.iter().skip(3).step_by(4).copied().collect();
            let colour = pixels.chunks(4).flat_map(|pixel| &pixel[..3]).copied().collect();
            let colour = RgbImage::new(width, height, colour).unwrap();
            Picture::with_alpha(colour, GreyImage::new(width, height, alpha).unwrap()).unwrap()
        };
        let expected = picture("out");

        let (width, height) = (expected.width(), expected.height());
        let ours = resize_picture(&picture("in"), width, height, Resampler::PillowLanczos);

        assert!(ours == expected, "case {case}");
    }
}
