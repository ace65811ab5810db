//! What the pipelines do beside making the reference's pictures.

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use super::case::Case;
use super::{Denoising, Watch, first_step, step_inputs};
use crate::domain::{
    GreyImage, GuidanceScale, ImageCount, ImageRequest, ImageSize, OutputSize, Picture, Prompt,
    RgbImage, Steps, Strength, Task,
};
use crate::model::{
    DiffusionModel, DtypeChoice, Generation, MemoryChoice, ModelError, StepObserver, StepProgress,
    Unobserved,
};

fn grey(width: usize, height: usize) -> Picture {
    RgbImage::filled(width, height, [90, 120, 150]).into()
}

/// The field that `request` is refused for.
fn field_at_fault(model: &mut dyn DiffusionModel, request: &ImageRequest) -> &'static str {
    match model.generate(request, &mut Unobserved) {
        Err(ModelError::Unsuitable { field, .. }) => field,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_request_in_16_bits_gives_a_picture_near_the_one_in_32() {
    let case = Case::read("edit_cfg");
    let theirs: Vec<u8> = case.tensors["out.image"].flatten_all().unwrap().to_vec1().unwrap();
    // The reference itself reaches 25 dB in bfloat16, most of it lost by rounding
    // the timesteps, which we keep exact: 39 dB without that.
    for (dtype, least_decibels) in [(DtypeChoice::Bfloat16, 30.0), (DtypeChoice::Float16, 40.0)] {
        let mut pipeline = case.pipeline(dtype);

        let generation = pipeline.generate(&case.request(), &mut Unobserved).unwrap();

        let decibels = decibels(generation.images[0].image.colour().pixels(), &theirs);
        println!("{dtype:?}: {decibels:.1} dB");
        assert!(decibels > least_decibels, "{dtype:?}: {decibels} dB");
    }
}

/// What torch makes of `edit_cfg` with layers of 8 bits, by `tests/data/make_fp8.py`.
fn with_8_bits(name: &str) -> Tensor {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/fp8.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()[name].clone()
}

#[test]
fn weights_of_8_bits_give_the_picture_that_torch_gives_with_them() {
    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Fp8Weights);

    let generation = pipeline.generate(&case.request(), &mut Unobserved).unwrap();

    let ours = generation.images[0].image.colour().pixels();
    let theirs: Vec<u8> =
        with_8_bits("fp8-weights.image").flatten_all().unwrap().to_vec1().unwrap();
    // One colour in sixteen may be off by one, as in 32 bits.
    let decibels = decibels(ours, &theirs);
    println!("fp8-weights: {decibels:.1} dB");
    assert!(decibels > 60.0, "{decibels} dB");
}

#[test]
fn layers_of_8_bits_take_the_step_that_torch_takes_with_them() {
    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Fp8);

    let ours = first_step(&case, &pipeline);

    let length =
        |x: &Tensor| x.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let distance = |theirs: &Tensor| length(&(&ours - theirs).unwrap());
    let (near, far) =
        (distance(&with_8_bits("fp8.step0.latents")), distance(&case.tensors["step0.latents"]));
    println!("fp8: {near:e} to torch, {far:e} to 32 bits, of {:e}", length(&ours));
    // Not the same: where sums differ in their last bits, a number rounds to the other
    // side now and then, by a sixteenth, and numbers that come of it do, too.
    assert!(near < far / 5.0);

    let generation = pipeline.generate(&case.request(), &mut Unobserved).unwrap();
    let exact: Vec<u8> = case.tensors["out.image"].flatten_all().unwrap().to_vec1().unwrap();
    let decibels = decibels(generation.images[0].image.colour().pixels(), &exact);
    println!("fp8: {decibels:.1} dB to 32 bits");
    // Its weights are random; the reference reaches 25 dB in bfloat16.
    assert!(decibels > 25.0, "{decibels} dB");
}

#[test]
fn layers_of_8_bit_integers_lose_less_than_16_bits_do() {
    for name in ["edit_cfg", "t2i_cfg"] {
        let case = Case::read(name);
        let exact: Vec<u8> = case.tensors["out.image"].flatten_all().unwrap().to_vec1().unwrap();
        let mut pipeline = case.pipeline(DtypeChoice::Q8_0);

        let generation = pipeline.generate(&case.request(), &mut Unobserved).unwrap();

        let decibels = decibels(generation.images[0].image.colour().pixels(), &exact);
        println!("q8_0, {name}: {decibels:.1} dB");
        // Its weights are random; the reference reaches 25 dB in bfloat16. Layers that are
        // not rounded at all would give some 60.
        assert!((25.0..55.0).contains(&decibels), "{name}: {decibels} dB");
    }
}

#[test]
fn layers_that_lose_most_by_8_bits_can_be_spared() {
    // Of three blocks, the one in the middle is rounded, but for the spared layer in it.
    let case = Case::read("t2i_cfg");
    let exact: Vec<u8> = case.tensors["out.image"].flatten_all().unwrap().to_vec1().unwrap();
    let made = |dtype, all_layers| {
        let mut pipeline = case.pipeline_with(|config| {
            (config.dtype, config.fp8_all_layers) = (dtype, all_layers);
        });
        let generation = pipeline.generate(&case.request(), &mut Unobserved).unwrap();
        let decibels = decibels(generation.images[0].image.colour().pixels(), &exact);
        println!("{dtype:?}, all layers {all_layers}: {decibels:.1} dB");
        (decibels, pipeline.loaded.weight_bytes)
    };
    for dtype in [DtypeChoice::Fp8, DtypeChoice::Fp8Weights] {
        let ((all, all_bytes), (spared, spared_bytes)) = (made(dtype, true), made(dtype, false));

        assert!(spared > all && spared_bytes > all_bytes, "{dtype:?}: {spared} dB, {all} dB");
    }
}

/// Peak signal to noise ratio of two pictures.
fn decibels(ours: &[u8], theirs: &[u8]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let error = ours.iter().zip(theirs).map(square).sum::<f64>() / theirs.len() as f64;
    10.0 * (255.0_f64.powi(2) / error).log10()
}

#[test]
fn timesteps_are_rounded_as_the_reference_does_if_that_is_asked_for() {
    for name in ["edit_cfg", "t2i_cfg"] {
        let case = Case::read(name);
        let bytes = |name: &str| case.tensors[name].flatten_all().unwrap().to_vec1().unwrap();
        let (theirs, exact): (Vec<u8>, Vec<u8>) = (bytes("bf16.image"), bytes("out.image"));
        let mut pipeline = case.pipeline_with(|config| {
            config.dtype = DtypeChoice::Bfloat16;
            config.exact_timesteps = false;
        });
        let request = case.request();
        let job = pipeline.plan(&request).unwrap();
        let schedule = pipeline.schedule(&job, &pipeline.grids(&job), &request).unwrap();
        let told: Vec<f32> = case.tensors["bf16.timesteps"].to_vec1().unwrap();
        assert_eq!(pipeline.noise_levels(&schedule), told, "{name}");

        let generation = pipeline.generate(&request, &mut Unobserved).unwrap();

        let ours = generation.images[0].image.colour().pixels();
        let (near, far) = (decibels(ours, &theirs), decibels(ours, &exact));
        println!("{name}: {near:.1} dB to the reference in bfloat16, {far:.1} dB in float32");
        assert!(near > far, "{name}");
    }
}

#[test]
fn every_pipeline_works_in_16_bits() {
    for name in ["inpaint", "edit_inpaint", "zerocond_2img_cfg", "layered"] {
        let case = Case::read(name);
        let mut pipeline = case.pipeline(DtypeChoice::Bfloat16);

        let generation = pipeline.generate(&case.request(), &mut Unobserved);

        assert!(generation.is_ok(), "{name}: {generation:?}");
    }
}

/// The tensors of a layer, times `factor`.
fn scale_layer(tensors: &mut HashMap<String, Tensor>, layer: &str, factor: f64) {
    for part in ["weight", "bias"] {
        let tensor = tensors.get_mut(&format!("{layer}.{part}")).unwrap();
        *tensor = (&*tensor * factor).unwrap();
    }
}

fn colours(generation: &Generation) -> &[u8] {
    generation.images[0].image.colour().pixels()
}

#[test]
fn a_vae_that_overflows_in_16_bits_decodes_in_float32_and_says_so() {
    // Its later layers divide by the length of what the first one makes.
    let large = |tensors: &mut HashMap<_, _>| scale_layer(tensors, "decoder.conv_in", 1e6);
    let (case, _folder) = Case::read("t2i_cfg").with_vae(large);
    let mut exact = case.pipeline(DtypeChoice::Float32);
    let theirs = exact.generate(&case.request(), &mut Unobserved).unwrap();
    assert!(theirs.warnings.is_empty());
    for memory in [MemoryChoice::Resident, MemoryChoice::Offload] {
        let mut pipeline = case.pipeline_with(|config| {
            config.dtype = DtypeChoice::Float16;
            config.memory = memory;
        });
        let mut previews = Previews::default();
        let two = ImageRequest { count: ImageCount::new(2).unwrap(), ..case.request() };

        let generation = pipeline.generate(&two, &mut previews).unwrap();

        // One sentence for both pictures.
        assert_eq!(
            generation.warnings,
            [
                "'dtype' float16 overflowed in the VAE's decoder; the picture was decoded in float32."
            ]
        );
        let decibels = decibels(colours(&generation), colours(&theirs));
        println!("{memory:?}: {decibels:.1} dB");
        // The latents are rounded to 16 bits all the same.
        assert!(decibels > 40.0, "{memory:?}: {decibels} dB");
        // Unfinished pictures are decoded likewise.
        assert_eq!(previews.seen.len(), 2 * (previews.steps.last().unwrap().total_steps - 1));
    }
}

#[test]
fn a_vae_that_overflows_in_16_bits_encodes_in_float32_and_says_so_each_time() {
    let large = |tensors: &mut HashMap<_, _>| scale_layer(tensors, "encoder.conv_in", 1e6);
    let (case, _folder) = Case::read("edit_cfg").with_vae(large);
    let mut exact = case.pipeline(DtypeChoice::Float32);
    let theirs = exact.generate(&case.request(), &mut Unobserved).unwrap();
    let mut pipeline = case.pipeline_with(|config| {
        config.dtype = DtypeChoice::Float16;
        config.cache_bytes = 64 << 20;
    });
    for _again in 0..2 {
        let generation = pipeline.generate(&case.request(), &mut Unobserved).unwrap();

        assert_eq!(
            generation.warnings,
            [
                "'dtype' float16 overflowed in the VAE's encoder; the picture was encoded in float32."
            ]
        );
        let decibels = decibels(colours(&generation), colours(&theirs));
        assert!(decibels > 40.0, "{decibels} dB");
    }
}

/// The stage at which `pipeline` finds numbers that are not finite.
fn stage_at_fault(pipeline: &mut dyn DiffusionModel, request: &ImageRequest) -> String {
    match pipeline.generate(request, &mut Unobserved) {
        Err(error @ ModelError::NotFinite { .. }) => error.to_string(),
        other => panic!("expected no picture, got {other:?}"),
    }
}

#[test]
fn numbers_that_are_not_finite_make_no_picture_in_any_format() {
    let spoil = |tensors: &mut HashMap<String, Tensor>| {
        scale_layer(tensors, "decoder.conv_out", f64::INFINITY);
    };
    let (case, _folder) = Case::read("t2i_nocfg_odd").with_vae(spoil);
    for dtype in [DtypeChoice::Float32, DtypeChoice::Bfloat16, DtypeChoice::Float16] {
        let fault = stage_at_fault(&mut case.pipeline(dtype), &case.request());

        assert!(fault.contains("VAE decoder") && fault.contains("float32"), "{dtype:?}: {fault}");
    }
    let spoil = |tensors: &mut HashMap<String, Tensor>| {
        scale_layer(tensors, "encoder.conv_out", f64::NAN);
    };
    let (case, _folder) = Case::read("img2img").with_vae(spoil);
    let fault = stage_at_fault(&mut case.pipeline(DtypeChoice::Float32), &case.request());
    assert!(fault.contains("VAE encoder"), "{fault}");
}

#[test]
fn the_step_after_which_latents_are_not_finite_is_named_and_nothing_of_it_is_shown() {
    let case = Case::read("t2i_nocfg_odd");
    let pipeline = case.pipeline(DtypeChoice::Float32);
    let request = ImageRequest { steps: Steps::new(4).unwrap(), ..case.request() };
    let job = pipeline.plan(&request).unwrap();
    let grids = pipeline.grids(&job);
    let mut schedule = pipeline.schedule(&job, &grids, &request).unwrap();
    let guidance = pipeline.encode_prompts(&job.shown, &request, &grids).unwrap();
    let inputs = pipeline.encode_pictures(&job).unwrap();
    let start = pipeline.start(7, &job, &inputs, &schedule).unwrap();
    let transformer = &pipeline.components.transformer;
    let modulations = transformer.modulations(&pipeline.noise_levels(&schedule)).unwrap();
    let step_inputs = step_inputs(&pipeline, &guidance, &modulations);
    // The second step leads to a noise level that is none.
    schedule.sigmas[2] = f32::NAN;
    let denoising = Denoising::new(transformer, step_inputs, &grids, &schedule).unwrap();
    let mut previews = Previews::default();
    let decode = |latents: &Tensor| pipeline.preview(latents, &job);
    let observer = &mut previews;
    let mut watch = Watch { observer, first_image: 0, total_steps: 4, decode: &decode };

    let made = denoising.run(vec![start], &mut watch);

    let fault = made.err().unwrap().to_string();
    assert!(fault.contains("transformer at step 2"), "{fault}");
    // The prediction of the second step is still one.
    let shown: Vec<usize> = previews.seen.iter().map(|(progress, _)| progress.step).collect();
    assert_eq!(shown, [1, 2]);
}

#[test]
fn an_observer_that_breaks_stops_the_work() {
    struct StopAfter(usize);
    impl StepObserver for StopAfter {
        fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
            if progress.step >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let case = Case::read("edit_nocfg_odd");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);

    let stopped = pipeline.generate(&case.request(), &mut StopAfter(2));

    assert!(matches!(stopped, Err(ModelError::Cancelled)));
    assert!(pipeline.generate(&case.request(), &mut Unobserved).is_ok());
}

/// Asks for every preview and keeps them with their steps.
#[derive(Default)]
pub(super) struct Previews {
    pub(super) seen: Vec<(StepProgress, Picture)>,
    pub(super) steps: Vec<StepProgress>,
}

impl StepObserver for Previews {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        self.steps.push(progress);
        ControlFlow::Continue(())
    }

    fn wants_preview(&mut self, _progress: StepProgress) -> bool {
        true
    }

    fn on_preview(&mut self, progress: StepProgress, preview: Picture) {
        self.seen.push((progress, preview));
    }
}

#[test]
fn every_pipeline_shows_previews_of_the_finished_size_between_its_steps() {
    for name in ["t2i_cfg", "img2img", "inpaint_crop", "edit_inpaint", "plus_2img_cfg", "layered"] {
        let case = Case::read(name);
        let mut pipeline = case.pipeline(DtypeChoice::Float32);
        let mut previews = Previews::default();

        let generation = pipeline.generate(&case.request(), &mut previews).unwrap();

        let total = previews.steps.last().unwrap().total_steps;
        assert_eq!(previews.steps.last().unwrap().step, total, "{name}");
        assert_eq!(previews.seen.len(), total - 1, "{name}");
        let finished = &generation.images[0].image;
        for (progress, preview) in &previews.seen {
            assert_eq!(progress.total_steps, total, "{name}");
            let size = |picture: &Picture| (picture.width(), picture.height());
            assert_eq!(size(preview), size(finished), "{name}");
            assert_eq!(preview.alpha().is_some(), finished.alpha().is_some(), "{name}");
        }
    }
}

#[test]
fn a_preview_of_inpainting_keeps_what_is_kept() {
    let case = Case::read("inpaint_crop");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let request = case.request();
    let Task::Inpaint { image, mask, .. } = request.task.clone() else { panic!("no inpainting") };
    let mut previews = Previews::default();

    let generation = pipeline.generate(&request, &mut previews).unwrap();

    let finished = &generation.images[0].image;
    for picture in previews.seen.iter().map(|(_, preview)| preview).chain([finished]) {
        let pixels = picture.colour().pixels().chunks(3).zip(image.colour().pixels().chunks(3));
        for ((ours, theirs), masked) in pixels.zip(mask.pixels()) {
            assert!(*masked > 0 || ours == theirs);
        }
    }
}

#[test]
fn each_picture_of_a_request_has_its_own_seed() {
    let case = Case::read("img2img");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let both = ImageRequest { count: ImageCount::new(2).unwrap(), ..case.request() };
    let second = ImageRequest { seed: case.request().seed.of_image(1), ..case.request() };

    let both = pipeline.generate(&both, &mut Unobserved).unwrap().images;
    let alone = pipeline.generate(&second, &mut Unobserved).unwrap().images;

    assert_eq!(both.len(), 2);
    assert!(both[1].image == alone[0].image && both[1].seed == alone[0].seed);
    assert!(both[0].image != both[1].image);
}

#[test]
fn a_size_as_the_inputs_leaves_the_first_picture_as_it_is() {
    let image = grey(96, 64);
    for (name, task) in [
        ("edit_cfg", Task::Edit { images: vec![image.clone()] }),
        ("plus_2img_cfg", Task::Edit { images: vec![image.clone(), grey(50, 90)] }),
    ] {
        let case = Case::read(name);
        let pipeline = case.pipeline(DtypeChoice::Float32);
        let request = ImageRequest { task, size: OutputSize::AsInput, ..case.request() };

        let job = pipeline.plan(&request).unwrap();

        assert_eq!((job.output.width, job.output.height), (96, 64), "{name}");
        assert_eq!(job.references[0].colour(), image.colour(), "{name}");
    }
}

#[test]
fn an_instructed_inpainting_has_one_size_for_picture_mask_and_output() {
    let case = Case::read("edit_inpaint");
    let pipeline = case.pipeline(DtypeChoice::Float32);
    let exact = OutputSize::Exact(ImageSize::new(80, 48).unwrap());
    let image = grey(96, 64);
    let mask = GreyImage::new(96, 64, vec![255; 96 * 64]).unwrap();
    let strength = Strength::new(0.8).unwrap();
    let task = Task::Inpaint { image, mask, strength, crop_padding: None };
    for (size, expected) in [(exact, (80, 48)), (OutputSize::AsInput, (96, 64))] {
        let request = ImageRequest { task: task.clone(), size, ..case.request() };

        let job = pipeline.plan(&request).unwrap();

        let source = job.source.as_ref().unwrap();
        let mask = source.mask.as_ref().unwrap();
        assert_eq!((job.output.width, job.output.height), expected);
        assert_eq!((source.picture.width(), source.picture.height()), expected);
        assert_eq!((mask.width(), mask.height()), expected);
        assert_eq!((job.shown[0].width(), job.shown[0].height()), expected);
    }
}

#[test]
fn what_an_edit_cannot_take_is_refused_by_name() {
    let case = Case::read("edit_nocfg_odd");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let mut field = |request: ImageRequest| field_at_fault(&mut pipeline, &request);
    let request = case.request();

    let reserved = Prompt::new("replace <|image_pad|> by a cat").unwrap();
    assert_eq!(field(ImageRequest { prompt: reserved, ..request.clone() }), "prompt");
    let endless = Prompt::new("word ".repeat(6000)).unwrap();
    assert_eq!(field(ImageRequest { prompt: endless, ..request.clone() }), "prompt");
    let narrow = Task::Edit { images: vec![grey(4000, 3)] };
    assert_eq!(field(ImageRequest { task: narrow, ..request.clone() }), "image");
    let four = Task::Edit { images: vec![grey(8, 8); 4] };
    assert_eq!(field(ImageRequest { task: four, ..request.clone() }), "image");
    assert_eq!(field(ImageRequest { task: Task::Generate, ..request }), "image");
}

#[test]
fn what_inpainting_cannot_take_is_refused_by_name() {
    let case = Case::read("inpaint");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let mut field = |task: Task, size: OutputSize| {
        field_at_fault(&mut pipeline, &ImageRequest { task, size, ..case.request() })
    };
    let size = case.request().size;
    let inpaint = |strength: f64, mask_width: usize, crop_padding: Option<usize>| Task::Inpaint {
        image: grey(64, 64),
        mask: GreyImage::new(mask_width, 64, vec![0; mask_width * 64]).unwrap(),
        strength: Strength::new(strength).unwrap(),
        crop_padding,
    };

    assert_eq!(field(inpaint(0.0, 64, None), size), "strength");
    assert_eq!(field(inpaint(0.8, 32, None), size), "mask");
    assert_eq!(field(inpaint(0.8, 64, Some(4)), size), "mask");
    let tiny = OutputSize::Exact(ImageSize::new(8, 64).unwrap());
    assert_eq!(field(inpaint(0.8, 64, None), tiny), "size");
    assert_eq!(field(Task::Edit { images: vec![grey(64, 64)] }, size), "image");
}

#[test]
fn a_model_of_layers_needs_a_prompt_and_nothing_else_takes_pictures_apart() {
    let case = Case::read("layered");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let blank = ImageRequest { prompt: Prompt::new(" ").unwrap(), ..case.request() };
    assert_eq!(field_at_fault(&mut pipeline, &blank), "prompt");

    let mut other = Case::read("plus_1img_nocfg").pipeline(DtypeChoice::Float32);
    assert_eq!(field_at_fault(&mut other, &case.request()), "layers");
}

#[test]
fn a_long_prompt_is_cut_as_in_the_reference() {
    let case = Case::read("t2i_nocfg_odd");
    let pipeline = case.pipeline(DtypeChoice::Float32);
    let words = |count: usize| {
        let prompt = Prompt::new("word ".repeat(count)).unwrap();
        let request = ImageRequest { prompt, ..case.request() };
        let job = pipeline.plan(&request).unwrap();
        let grids = pipeline.grids(&job);
        let guidance = pipeline.encode_prompts(&[], &request, &grids).unwrap();
        (guidance.positive.words, guidance.warnings)
    };

    let (few, warnings) = words(10);
    assert!(few < 512 && warnings.is_empty(), "{few} {warnings:?}");
    let (all, warnings) = words(2000);
    assert_eq!((all, warnings.len()), (512, 1));
    // "word " is some tokens, each time the same: the last blank is one of its own.
    let [sentence] = warnings.as_slice() else { panic!("one") };
    let numbers = sentence.split(|other: char| !other.is_ascii_digit());
    let numbers: Vec<usize> = numbers.filter_map(|text| text.parse().ok()).collect();
    assert_eq!(numbers[0] + 512, numbers[1], "{sentence}");
    assert!(numbers[1] >= 2000 && sentence.starts_with("'prompt' "), "{sentence}");
}

#[test]
fn what_is_cut_of_a_negative_prompt_is_said_and_edits_cut_nothing() {
    let case = Case::read("t2i_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let long = || Some(Prompt::negative("word ".repeat(700)).unwrap());
    let request = ImageRequest { negative_prompt: long(), ..case.request() };

    let warnings = pipeline.generate(&request, &mut Unobserved).unwrap().warnings;

    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("'negative_prompt' "), "{warnings:?}");
    let without_guidance = ImageRequest { guidance: GuidanceScale::new(1.0).unwrap(), ..request };
    assert!(pipeline.generate(&without_guidance, &mut Unobserved).unwrap().warnings.is_empty());

    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let request = ImageRequest { negative_prompt: long(), ..case.request() };
    assert!(pipeline.generate(&request, &mut Unobserved).unwrap().warnings.is_empty());
}
