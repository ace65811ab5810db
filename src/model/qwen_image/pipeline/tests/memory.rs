//! Weights that come and go, and results that stay.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::case::Case;
use super::*;
use crate::checkpoint::Weights;
use crate::domain::{GuidanceScale, Prompt, RgbImage, Seed, Task};
use crate::interruption;
use crate::model::qwen_image::text_encoder::TextEncoderResidency;
use crate::model::{MemoryChoice, ModelConfig, Residency, Unobserved};

const MIB: usize = 1 << 20;

fn colours(pipeline: &mut Pipeline, request: &ImageRequest) -> Vec<u8> {
    let generation = pipeline.generate(request, &mut Unobserved).unwrap();
    generation.images[0].image.colour().pixels().to_vec()
}

#[test]
fn the_picture_is_the_same_wherever_the_weights_are() {
    // Of each checkpoint; pictures in and out, masks, guidance, layers.
    for name in ["t2i_cfg", "edit_cfg", "inpaint", "plus_2img_cfg", "zerocond_2img_cfg", "layered"]
    {
        let case = Case::read(name);
        let picture = |memory| {
            let mut pipeline = case.pipeline_with(|config| config.memory = memory);
            // The table of words is in no memory on a CPU, and counts among the whole.
            let text = &pipeline.components.text_encoder_config.text;
            let table =
                text.vocab_size * text.hidden_size * pipeline.components.dtype.size_in_bytes();
            let stays = memory == MemoryChoice::Resident;
            let loaded = pipeline.loaded.weight_bytes + if stays { table } else { 0 };
            (colours(&mut pipeline, &case.request()), loaded)
        };
        let (resident, all_bytes) = picture(MemoryChoice::Resident);

        let (offloaded, bytes) = picture(MemoryChoice::Offload);
        assert!(offloaded == resident, "{name}: offload");
        assert!(bytes < all_bytes / 2, "{name}: offload keeps {bytes} of {all_bytes}");

        let (streamed, bytes) = picture(MemoryChoice::Stream);
        assert!(streamed == resident, "{name}: stream");
        // What belongs to no layer: of a miniature, an eighth.
        assert!(bytes < all_bytes / 6, "{name}: stream keeps {bytes} of {all_bytes}");
    }
}

#[test]
fn a_client_that_leaves_is_noticed_between_two_layers_of_the_text_encoder() {
    let case = Case::read("edit_cfg");
    let pipeline = case.pipeline_with(|config| {
        (config.memory, config.cache_bytes) = (MemoryChoice::Stream, 0);
    });
    let request = case.request();
    let job = pipeline.plan(&request).unwrap();
    let grids = pipeline.grids(&job);
    // How often it is asked whether to go on, until it says no.
    let questions = |stops_at: usize| {
        let asked = Cell::new(0);
        let is_cancelled = || {
            asked.set(asked.get() + 1);
            asked.get() >= stops_at
        };
        let encode = || pipeline.encode_prompts(&job.shown, &request, &grids).map(drop);
        let made = interruption::watched(&is_cancelled, encode);
        (made.is_ok(), asked.get())
    };

    let (_, all) = questions(usize::MAX);

    let config = &pipeline.components.text_encoder_config;
    // Of the pictures once, of two prompts.
    let layers = config.vision.depth + 2 * config.text.num_hidden_layers;
    assert!(all > 5 * layers, "{all} questions in {layers} layers");
    for stops_at in [1, all / 3, all / 2, all] {
        assert_eq!(questions(stops_at), (false, stops_at), "nothing is done after the first no");
    }
}

#[test]
fn matrices_of_8_bits_take_a_quarter_and_may_come_and_go() {
    let case = Case::read("edit_cfg");
    let pipeline = |dtype, memory| {
        case.pipeline_with(|config| (config.dtype, config.memory) = (dtype, memory))
    };
    let exact = pipeline(DtypeChoice::Float32, MemoryChoice::Resident);
    let mut resident = pipeline(DtypeChoice::Fp8, MemoryChoice::Resident);
    let mut streamed = pipeline(DtypeChoice::Fp8, MemoryChoice::Stream);
    let config = exact.components.transformer.config();
    // 3 bytes less for each weight of the blocks' layers; their scales are few.
    let width = config.inner_dim();
    let saved = 3 * config.num_layers * 2 * (4 * width * width + 2 * 4 * width * width);

    let bytes = exact.loaded.weight_bytes - resident.loaded.weight_bytes;

    assert!(bytes <= saved && bytes > saved * 9 / 10, "{bytes} of {saved}");
    let picture = colours(&mut resident, &case.request());
    assert!(picture == colours(&mut streamed, &case.request()));
}

#[test]
fn matrices_of_8_bit_integers_are_those_of_the_text_encoder_too() {
    let case = Case::read("edit_cfg");
    let pipeline = |dtype, memory| {
        case.pipeline_with(|config| (config.dtype, config.memory) = (dtype, memory))
    };
    let exact = pipeline(DtypeChoice::Float32, MemoryChoice::Resident);
    let mut resident = pipeline(DtypeChoice::Q8_0, MemoryChoice::Resident);
    let mut streamed = pipeline(DtypeChoice::Q8_0, MemoryChoice::Stream);
    let config = exact.components.transformer.config();
    let width = config.inner_dim();
    // Blocks of 32 numbers for 16 outputs: 512 bytes, 16 scales and 16 sums.
    let saved = |inputs: usize, outputs: usize| {
        4 * inputs * outputs - outputs.div_ceil(16) * inputs.div_ceil(32) * (512 + 32 + 32)
    };
    let of_stream = 4 * saved(width, width) + saved(width, 4 * width) + saved(4 * width, width);
    let of_blocks = config.num_layers * 2 * of_stream;

    let bytes = exact.loaded.weight_bytes - resident.loaded.weight_bytes;

    // More than the blocks' layers can save.
    assert!(bytes > of_blocks, "{bytes} of {of_blocks}");
    let picture = colours(&mut resident, &case.request());
    assert!(picture == colours(&mut streamed, &case.request()));
}

#[test]
fn what_is_wrong_with_weights_that_do_not_stay_is_told_at_once() {
    let weights = Weights::recording("vae", DType::F32);
    let refused =
        Offloadable::<()>::new(Residency::OnDemand, &weights, |_| candle_core::bail!("no"));

    assert!(refused.is_err());
}

/// A component that can be checked, but must not be loaded.
fn untouchable<T>(load: impl Fn(&Weights) -> TensorResult<T> + Send + 'static) -> Offloadable<T> {
    let checked = AtomicBool::new(false);
    let weights = Weights::recording("component", DType::F32);
    Offloadable::new(Residency::OnDemand, &weights, move |weights| {
        if checked.swap(true, Ordering::SeqCst) {
            candle_core::bail!("loaded although everything was known");
        }
        load(weights)
    })
    .unwrap()
}

/// An encoder that fails when it is used: its words are wider than the pictures among them.
fn unusable_encoder(pipeline: &Pipeline) -> TextEncoder {
    let mut config = pipeline.components.text_encoder_config.clone();
    config.text.hidden_size *= 2;
    let weights = Weights::recording("text_encoder", DType::F32);
    TextEncoder::load(&weights, &config, TextEncoderResidency::ON_DEMAND).unwrap()
}

fn with_cache(bytes: usize) -> impl FnOnce(&mut ModelConfig) {
    move |config| config.cache_bytes = bytes
}

#[test]
fn the_same_picture_and_prompts_are_encoded_once() {
    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline_with(with_cache(64 * MIB));
    let mut request = case.request();
    let first = colours(&mut pipeline, &request);

    pipeline.components.text_encoder = unusable_encoder(&pipeline);
    assert!(colours(&mut pipeline, &request) == first, "the same request, the same picture");
    request.seed = Seed::new(99);
    request.guidance = GuidanceScale::new(2.0).unwrap();
    assert!(colours(&mut pipeline, &request) != first, "another seed, another picture");
    let job = pipeline.plan(&request).unwrap();
    let config = pipeline.components.vae_config.clone();
    pipeline.components.vae = untouchable(move |weights| Vae::load(weights, &config));
    assert!(pipeline.encode_pictures(&job).is_ok(), "the picture's latents are known");

    request.prompt = Prompt::new("another prompt").unwrap();
    assert!(pipeline.generate(&request, &mut Unobserved).is_err(), "that one is not known");
}

#[test]
fn a_picture_that_differs_in_one_pixel_is_another_picture() {
    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline_with(with_cache(64 * MIB));
    let mut fresh = case.pipeline_with(with_cache(0));
    let mut request = case.request();
    colours(&mut pipeline, &request);
    let Task::Edit { images } = &mut request.task else { panic!("no edit") };
    let picture = images[0].colour();
    let mut pixels = picture.pixels().to_vec();
    pixels[0] ^= 255;
    images[0] = RgbImage::new(picture.width(), picture.height(), pixels).unwrap().into();

    assert!(colours(&mut pipeline, &request) == colours(&mut fresh, &request));
}

#[test]
fn a_cache_of_no_bytes_keeps_nothing() {
    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline_with(with_cache(0));
    let request = case.request();
    colours(&mut pipeline, &request);
    pipeline.components.text_encoder = unusable_encoder(&pipeline);

    assert!(pipeline.generate(&request, &mut Unobserved).is_err());
}
