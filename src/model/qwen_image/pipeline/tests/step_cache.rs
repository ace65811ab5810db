//! Pictures whose steps reuse what earlier ones computed.

use super::behaviour::Previews;
use super::case::Case;
use super::*;
use crate::domain::{CacheThreshold, Steps};
use crate::model::qwen_image::passes::{PassInputs, PromptTokens};
use crate::model::qwen_image::step_cache::StepCache;
use crate::model::{MemoryChoice, Unobserved};

/// Of which steps 5, 6, 8, 9, 11 and 12 may skip blocks.
const STEPS: usize = 12;
const MAY_SKIP: usize = 6;

fn threshold(number: f64) -> Option<CacheThreshold> {
    Some(CacheThreshold::new(number).unwrap())
}

fn request(case: &Case, cache_threshold: Option<CacheThreshold>) -> ImageRequest {
    let steps = Steps::new(STEPS as i64).unwrap();
    ImageRequest { steps, cache_threshold, ..case.request() }
}

fn made(pipeline: &mut Pipeline, request: &ImageRequest) -> Generation {
    pipeline.generate(request, &mut Unobserved).unwrap()
}

fn pictures(generation: &Generation) -> Vec<&Picture> {
    generation.images.iter().map(|generated| &generated.image).collect()
}

#[test]
fn without_a_threshold_and_with_0_every_step_is_computed() {
    for name in ["t2i_cfg", "edit_cfg", "inpaint", "zerocond_2img_cfg", "layered"] {
        let case = Case::read(name);
        let mut pipeline = case.pipeline(DtypeChoice::Float32);

        let off = made(&mut pipeline, &request(&case, None));
        let never = made(&mut pipeline, &request(&case, threshold(0.0)));

        assert_eq!((off.skipped_blocks, never.skipped_blocks), (None, Some(0.0)), "{name}");
        assert!(pictures(&off) == pictures(&never), "{name}");
    }
}

/// How often blocks are computed while `work` is done.
fn computed_blocks<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let (made, trace) = trace::record(&Device::Cpu, work).unwrap();
    (made, trace.spans.iter().filter(|span| span.name == "block").count())
}

#[test]
fn a_threshold_of_1_skips_all_blocks_but_the_first_in_every_step_that_may() {
    for (name, branches) in [("edit_cfg", 2), ("t2i_cfg", 2), ("edit_nocfg_odd", 1)] {
        let case = Case::read(name);
        let mut pipeline = case.pipeline(DtypeChoice::Float32);
        let blocks = pipeline.components.transformer.config().num_layers;
        assert!(blocks > 1);

        let (always, computed) =
            computed_blocks(|| made(&mut pipeline, &request(&case, threshold(1.0))));

        let skipped = MAY_SKIP * (blocks - 1);
        assert_eq!(computed, branches * (STEPS * blocks - skipped), "{name}");
        let share = skipped as f64 / (STEPS * blocks) as f64;
        assert_eq!(always.skipped_blocks, Some(share), "{name}");
        let off = made(&mut pipeline, &request(&case, None));
        assert!(pictures(&off) != pictures(&always), "{name}: skipping changes nothing");
    }
}

#[test]
fn every_picture_of_a_request_begins_with_nothing_kept() {
    let case = Case::read("t2i_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let first = request(&case, threshold(1.0));
    let second = ImageRequest { seed: first.seed.of_image(1), ..first.clone() };
    let both = ImageRequest { count: crate::domain::ImageCount::new(2).unwrap(), ..first.clone() };

    let both = made(&mut pipeline, &both);

    let alone = [made(&mut pipeline, &first), made(&mut pipeline, &second)];
    let alone_pictures: Vec<_> = alone.iter().flat_map(pictures).collect();
    assert!(pictures(&both) == alone_pictures);
    assert_eq!(both.skipped_blocks, alone[0].skipped_blocks);
}

#[test]
fn branches_know_and_decide_for_themselves() {
    let case = Case::read("edit_cfg");
    let pipeline = case.pipeline(DtypeChoice::Float32);
    let request = case.request();
    let job = pipeline.plan(&request).unwrap();
    let grids = pipeline.grids(&job);
    let guidance = pipeline.encode_prompts(&job.shown, &request, &grids).unwrap();
    let transformer = &pipeline.components.transformer;
    let sigmas: Vec<f32> = (0..STEPS).map(|step| 1.0 - step as f32 / STEPS as f32).collect();
    let modulations = transformer.modulations(&sigmas).unwrap();
    let embeds = [&guidance.positive.embeds, &guidance.negative.as_ref().unwrap().embeds];
    let positions =
        embeds.map(|embeds| transformer.positions(&grids, embeds.dim(1).unwrap()).unwrap());
    let prompt =
        |branch: usize| PromptTokens { embeds: embeds[branch], positions: &positions[branch] };
    let tokens = grids.iter().map(|grid| grid.len()).sum::<usize>();
    let width = transformer.config().in_channels;
    let latents: Vec<Tensor> = (0..STEPS)
        .map(|_| Tensor::randn(0f32, 1.0, (1, tokens, width), &Device::Cpu).unwrap())
        .collect();
    let flows = |branches: &[usize], caches: &mut [StepCache]| -> Vec<Vec<Vec<f32>>> {
        let step = |(step, latents)| {
            let prompts = branches.iter().map(|branch| prompt(*branch)).collect();
            let inputs = PassInputs { latents, read: grids[0].len(), prompts, caches };
            let flows = transformer.forward_each(vec![inputs], modulations.at(step)).unwrap();
            flows.iter().map(|flow| flow.flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        latents.iter().enumerate().map(step).collect()
    };
    let caches = |thresholds: &[f64]| -> Vec<StepCache> {
        thresholds.iter().map(|number| StepCache::new(threshold(*number).unwrap())).collect()
    };

    let mut two = caches(&[1.0, 0.0]);
    let together = flows(&[0, 1], &mut two);

    let skipped = |cache: &StepCache| cache.blocks(2).skipped;
    assert_eq!((skipped(&two[0]), skipped(&two[1])), (MAY_SKIP, 0));
    let first_alone = flows(&[0], &mut caches(&[1.0]));
    let second_off = flows(&[1], &mut []);
    let first_off = flows(&[0], &mut []);
    for step in 0..STEPS {
        assert!(together[step][0] == first_alone[step][0], "step {step}");
        assert!(together[step][1] == second_off[step][0], "step {step}");
    }
    let differing = (0..STEPS).filter(|step| first_alone[*step] != first_off[*step]).count();
    assert_eq!(differing, MAY_SKIP);
}

#[test]
fn blocks_that_come_and_go_are_skipped_alike() {
    for (name, some) in [("edit_cfg", 0.8), ("zerocond_2img_cfg", 0.5)] {
        let case = Case::read(name);
        for number in [some, 1.0] {
            let request = request(&case, threshold(number));
            let by = |memory| {
                let mut pipeline = case.pipeline_with(|config| config.memory = memory);
                made(&mut pipeline, &request)
            };
            let (resident, streamed) = (by(MemoryChoice::Resident), by(MemoryChoice::Stream));

            assert!(resident.skipped_blocks > Some(0.0), "{name} {number}");
            assert!(pictures(&resident) == pictures(&streamed), "{name} {number}");
            assert_eq!(resident.skipped_blocks, streamed.skipped_blocks, "{name} {number}");
        }
    }
}

#[test]
fn steps_that_skip_are_shown_like_others_and_showing_them_changes_nothing() {
    let case = Case::read("edit_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let request = request(&case, threshold(1.0));
    let unseen = made(&mut pipeline, &request);
    let mut previews = Previews::default();

    let seen = pipeline.generate(&request, &mut previews).unwrap();

    assert!(pictures(&unseen) == pictures(&seen));
    let shown: Vec<usize> = previews.seen.iter().map(|(progress, _)| progress.step).collect();
    assert_eq!(shown, (1..STEPS).collect::<Vec<_>>());
    let neighbours = previews.seen.windows(2);
    assert!(neighbours.into_iter().all(|pair| pair[0].1 != pair[1].1), "a step changes nothing");
}

#[test]
fn a_step_cache_works_in_16_bits() {
    for dtype in [DtypeChoice::Bfloat16, DtypeChoice::Float16] {
        let case = Case::read("edit_cfg");
        let mut pipeline = case.pipeline(dtype);

        let generation = made(&mut pipeline, &request(&case, threshold(1.0)));

        assert!(generation.skipped_blocks > Some(0.0), "{dtype:?}");
    }
}
