//! Whole requests, stage by stage, held against the reference pipelines.
//!
//! The numbers come from `tests/data/make_fixtures.py`; the list of cases is that
//! of the folder. Bounds, in float32: 1e-4 for what is computed once, 1e-3 for
//! latents (errors grow about sixfold over the steps; the reference differs from
//! itself by 5e-6 with other kernels), one level for a finished picture and 0.01
//! levels on average.

#![expect(
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test says what it measured; its numbers are small"
)]

mod behaviour;
mod case;
mod memory;
mod step_cache;
mod together;

use super::batching::Joining;
use super::conditioning::Guidance;
use super::denoise::Unfinished;
use super::*;
use crate::model::DtypeChoice;
use crate::model::qwen_image::modulation::ModulationTable;
use case::Case;

const TOLERANCE: f32 = 1e-4;
const LATENT_TOLERANCE: f32 = 1e-3;

/// Runs every stage of `case` on its own and compares what comes out of it.
fn assert_stages(case: &Case) {
    let pipeline = case.pipeline(DtypeChoice::Float32);
    let request = case.request();

    let job = pipeline.plan(&request).unwrap();
    let references = job.references.iter().map(|picture| picture.colour().clone());
    case.compare_resized(&job.shown.iter().cloned().chain(references).collect::<Vec<_>>());
    assert_mask(case, &job);
    let grids = pipeline.grids(&job);
    assert_grids(case, &grids);
    let schedule = pipeline.schedule(&job, &grids, &request).unwrap();
    assert_schedule(case, &schedule);

    let guidance = pipeline.encode_prompts(&job.shown, &request, &grids).unwrap();
    case.compare("prompt_embeds", &guidance.positive.embeds, TOLERANCE);
    assert_eq!(guidance.negative.is_some(), case.doc["do_true_cfg"].as_bool().unwrap());
    if let Some(negative) = &guidance.negative {
        case.compare("neg_prompt_embeds", &negative.embeds, TOLERANCE);
    }

    let inputs = pipeline.encode_pictures(&job).unwrap();
    let start = start(case, &pipeline, &job, &inputs, &schedule);
    let transformer = &pipeline.components.transformer;
    let modulations = transformer.modulations(&pipeline.noise_levels(&schedule)).unwrap();
    let step_inputs = step_inputs(&pipeline, &guidance, &modulations);
    let denoising = Denoising::new(transformer, step_inputs, &grids, &schedule).unwrap();
    let latents = assert_steps(case, &denoising, &schedule, start);

    let (pictures, _) = pipeline.decode(&latents, &job, job.made_frames()).unwrap();
    case.compare_pictures(&pictures);
}

/// The latents after the first step of `case`.
fn first_step(case: &Case, pipeline: &Pipeline) -> Tensor {
    let request = case.request();
    let job = pipeline.plan(&request).unwrap();
    let grids = pipeline.grids(&job);
    let schedule = pipeline.schedule(&job, &grids, &request).unwrap();
    let guidance = pipeline.encode_prompts(&job.shown, &request, &grids).unwrap();
    let inputs = pipeline.encode_pictures(&job).unwrap();
    let start = start(case, pipeline, &job, &inputs, &schedule);
    let transformer = &pipeline.components.transformer;
    let modulations = transformer.modulations(&pipeline.noise_levels(&schedule)).unwrap();
    let step_inputs = step_inputs(pipeline, &guidance, &modulations);
    let denoising = Denoising::new(transformer, step_inputs, &grids, &schedule).unwrap();
    let mut pictures = [denoising.begin(start)];
    let flow = denoising.predict(&mut pictures, 0).unwrap().remove(0);
    denoising.advance(&pictures[0].latents, &flow, pictures[0].known.as_ref(), 0).unwrap()
}

/// Every step computed, every picture by itself.
fn step_inputs<'a>(
    pipeline: &Pipeline,
    guidance: &'a Guidance,
    modulations: &'a ModulationTable,
) -> StepInputs<'a> {
    let cfg_rescale = pipeline.variant.cfg_rescale;
    let joining = Joining::Separate;
    StepInputs { guidance, cfg_rescale, modulations, cache_threshold: None, joining }
}

fn assert_mask(case: &Case, job: &Job) {
    let Some(theirs) = case.tensors.get("pre.mask") else { return };
    let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    let ours = job.source.as_ref().unwrap().mask.as_ref().unwrap();
    let ours = ours.pixels().iter().map(|grey| if *grey >= 128 { 1.0 } else { 0.0 });
    assert!(ours.eq(theirs), "{}: mask", case.name);
}

fn assert_grids(case: &Case, grids: &[Grid]) {
    let theirs = case.doc["img_shapes"][0].as_array().unwrap().iter().map(|shape| {
        let side = |axis: usize| shape[axis].as_u64().unwrap() as usize;
        Grid { height: side(1), width: side(2) }
    });
    assert_eq!(grids, theirs.collect::<Vec<_>>(), "{}: grids", case.name);
}

/// The recorded schedule is the whole one; `schedule` may lack its first steps.
fn assert_schedule(case: &Case, schedule: &Schedule) {
    for (name, ours, bound) in
        [("sched.sigmas", &schedule.sigmas, 1e-6), ("sched.timesteps", &schedule.timesteps, 1e-3)]
    {
        let theirs: Vec<f32> = case.tensors[name].to_vec1().unwrap();
        let theirs = &theirs[theirs.len() - ours.len()..];
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() < bound, "{} {name}", case.name);
        }
    }
}

/// What the denoising starts from, compared with what was recorded of it.
fn start(
    case: &Case,
    pipeline: &Pipeline,
    job: &Job,
    inputs: &InputLatents,
    schedule: &Schedule,
) -> InitialLatents {
    let seed = case.doc["generator_seed"].as_u64().unwrap();
    let mut start = pipeline.start(seed, job, inputs, schedule).unwrap();
    if case.prompts() > 1 {
        // The reference draws the noise of all prompts from one generator; a
        // request of ours has one prompt and its own seed.
        let noise = pipeline.noise(
            &mut TorchGenerator::new(seed),
            pipeline.grid(job.output),
            case.prompts(),
        );
        start.latents = pack_latents(&noise.unwrap().narrow(0, case.sample, 1).unwrap()).unwrap();
    }
    // torch's vectorised logarithm and cosine differ from ours in the last bits;
    // where a picture is noised, its latents are in it, too.
    let tolerance = if job.source.is_some() { TOLERANCE } else { 1e-6 };
    case.compare("latents.start", &start.latents, tolerance);
    let clean = start.known.as_ref().map(|known| &known.clean);
    if let Some(latents) = start.references.as_ref().or(clean) {
        case.compare_if_recorded("image_latents.packed", latents, TOLERANCE);
    }
    if let Some(known) = &start.known {
        case.compare("noise.packed", &known.noise, 1e-6);
        case.compare("mask.packed", &known.mask, 0.0);
    }
    start
}

/// Follows the schedule, comparing every prediction and every step's latents.
fn assert_steps(
    case: &Case,
    denoising: &Denoising,
    schedule: &Schedule,
    start: InitialLatents,
) -> Tensor {
    let mut pictures = [denoising.begin(start)];
    for step in 0..schedule.steps() {
        let flow = denoising.predict(&mut pictures, step).unwrap().remove(0);
        case.compare(&format!("step{step}.noise_pred"), &flow, LATENT_TOLERANCE);
        let [Unfinished { latents, known, .. }] = &mut pictures;
        *latents = denoising.advance(latents, &flow, known.as_ref(), step).unwrap();
        case.compare(&format!("step{step}.latents"), latents, LATENT_TOLERANCE);
    }
    assert!(!case.tensors.contains_key(&format!("step{}.latents", schedule.steps())));
    let [Unfinished { latents, .. }] = pictures;
    latents
}

/// Makes the picture of `case` by one call from the seed, and compares it and the
/// tokens that are reported.
fn assert_generation(case: &Case) {
    let mut model: Box<dyn DiffusionModel> = Box::new(case.pipeline(DtypeChoice::Float32));

    let generation = model.generate(&case.request(), &mut crate::model::Unobserved).unwrap();

    let pictures: Vec<Picture> =
        generation.images.iter().map(|generated| generated.image.clone()).collect();
    case.compare_pictures(&pictures);
    let tokens = |key: &str| case.doc["tokens"][key].as_u64().unwrap() as usize;
    let images = case.doc["img_shapes"][0].as_array().unwrap();
    let made: usize =
        (1..3).map(|axis| images[0][axis].as_u64().unwrap() as usize).product::<usize>();
    assert_eq!(generation.usage.output_image_tokens, made * pictures.len());
    let looked_at = tokens("image_total") - tokens("latents");
    let made_from = case.doc["inputs"].get("image").is_some() && looked_at == 0;
    let input = generation.usage.input_image_tokens + generation.usage.input_text_tokens;
    let source = if made_from { made } else { 0 };
    assert_eq!(input, tokens("text") + looked_at + source, "{}", case.name);
}

/// Every recorded call of `class`: its stages, and the whole of it.
fn assert_class(class: &str) {
    let mut cases = 0;
    for case in Case::all().into_iter().filter(|case| case.class() == class) {
        if case.prompts() == 1 {
            assert_stages(&case);
            assert_generation(&case);
        } else {
            // A request has one prompt: each makes the picture that it makes in
            // the reference's batch, where the shorter one is padded and masked.
            for sample in 0..case.prompts() {
                assert_stages(&Case::read(&case.name).of_prompt(sample));
            }
        }
        cases += 1;
    }
    assert!(cases > 0, "no case of {class}");
}

#[test]
fn pictures_from_words_are_those_of_the_reference() {
    assert_class("QwenImagePipeline");
}

#[test]
fn pictures_from_pictures_are_those_of_the_reference() {
    assert_class("QwenImageImg2ImgPipeline");
}

#[test]
fn parts_made_anew_are_those_of_the_reference() {
    assert_class("QwenImageInpaintPipeline");
}

#[test]
fn edits_are_those_of_the_reference() {
    assert_class("QwenImageEditPipeline");
}

#[test]
fn edits_of_a_part_are_those_of_the_reference() {
    assert_class("QwenImageEditInpaintPipeline");
}

#[test]
fn edits_of_several_pictures_are_those_of_the_reference() {
    assert_class("QwenImageEditPlusPipeline");
}

#[test]
fn layers_are_those_of_the_reference() {
    assert_class("QwenImageLayeredPipeline");
}

#[test]
fn no_recorded_call_is_left_out() {
    let compared = [
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageEditPipeline",
        "QwenImageEditInpaintPipeline",
        "QwenImageEditPlusPipeline",
        "QwenImageLayeredPipeline",
    ];
    for case in Case::all() {
        assert!(compared.contains(&case.class()), "{} is of {}", case.name, case.class());
    }
}
