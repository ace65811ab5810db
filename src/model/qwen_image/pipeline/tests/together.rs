//! Pictures that are made together: in the same steps, or as one batch.

use std::ops::ControlFlow;

use super::behaviour::Previews;
use super::case::Case;
use super::*;
use crate::domain::{CacheThreshold, ImageCount, Prompt, Steps};
use crate::model::{MemoryChoice, Unobserved};

const WAYS: [Joining; 2] = [Joining::Separate, Joining::Joined];

fn three(case: &Case) -> ImageRequest {
    ImageRequest { count: ImageCount::new(3).unwrap(), ..case.request() }
}

/// The pictures of `request`, `at_once` of them together.
fn made(pipeline: &mut Pipeline, request: &ImageRequest, batching: Batching) -> Generation {
    pipeline.batching = Some(batching);
    pipeline.generate(request, &mut Unobserved).unwrap()
}

/// Each picture of `request` asked for by itself.
fn alone(pipeline: &mut Pipeline, request: &ImageRequest) -> Vec<GeneratedImage> {
    let single = Batching { at_once: 1, joining: Joining::Separate };
    let one = |index| ImageRequest {
        count: ImageCount::new(1).unwrap(),
        seed: request.seed.of_image(index),
        ..request.clone()
    };
    let images = (0..request.count.get()).map(|index| made(pipeline, &one(index), single).images);
    images.flatten().collect()
}

fn assert_same(ours: &[GeneratedImage], theirs: &[GeneratedImage], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(ours.seed, theirs.seed, "{what}");
        // To the bit: a token's sums have the same terms in the same order, however many rows
        // a product has, as long as all of them go through the same kernel. (From 513 rows on
        // it is another one, and last digits may differ.)
        assert!(ours.image == theirs.image, "{what}: picture {index}");
    }
}

#[test]
fn pictures_are_the_same_together_and_one_by_one() {
    for name in ["t2i_cfg", "edit_cfg", "edit_nocfg_odd", "inpaint", "edit_inpaint", "layered"] {
        let case = Case::read(name);
        let mut pipeline = case.pipeline(DtypeChoice::Float32);
        let request = three(&case);
        let alone = alone(&mut pipeline, &request);
        assert!(alone[0].image != alone[alone.len() - 1].image, "{name}");
        for joining in WAYS {
            for at_once in [2, 3] {
                let together = made(&mut pipeline, &request, Batching { at_once, joining });

                assert_same(&together.images, &alone, &format!("{name}, {joining:?}, {at_once}"));
            }
        }
    }
}

#[test]
fn prompts_of_one_length_are_one_pass_and_pictures_are_the_same() {
    for name in ["t2i_cfg", "zerocond_2img_cfg"] {
        let case = Case::read(name);
        let mut pipeline = case.pipeline(DtypeChoice::Float32);
        let prompt = |text: &str| Prompt::new(text).unwrap();
        let negative_prompt = Some(prompt("5678"));
        let request = ImageRequest { prompt: prompt("1234"), negative_prompt, ..three(&case) };
        let guidance = {
            let job = pipeline.plan(&request).unwrap();
            pipeline.encode_prompts(&job.shown, &request, &pipeline.grids(&job)).unwrap()
        };
        let negative = guidance.negative.unwrap().embeds;
        assert_eq!(guidance.positive.embeds.dims(), negative.dims(), "{name}: other words");
        let alone = alone(&mut pipeline, &request);
        for at_once in [1, 3] {
            let batching = Batching { at_once, joining: Joining::Joined };
            let (made, trace) =
                trace::record(&Device::Cpu, || made(&mut pipeline, &request, batching)).unwrap();

            assert_same(&made.images, &alone, &format!("{name}, {at_once}"));
            let computed = trace.spans.iter().filter(|span| span.name == "block").count();
            let blocks = pipeline.components.transformer.config().num_layers;
            assert_eq!(computed, request.steps.get() * blocks * 3 / at_once, "{name}");
        }
    }
}

#[test]
fn pictures_with_a_step_cache_decide_for_themselves_together_too() {
    let case = Case::read("zerocond_2img_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let request = ImageRequest {
        steps: Steps::new(12).unwrap(),
        cache_threshold: Some(CacheThreshold::new(0.5).unwrap()),
        ..three(&case)
    };
    let alone = alone(&mut pipeline, &request);
    for joining in WAYS {
        let together = made(&mut pipeline, &request, Batching { at_once: 3, joining });

        assert_same(&together.images, &alone, &format!("{joining:?}"));
        // Of two blocks, one is skipped in half of the steps at most.
        assert!((0.01..0.24).contains(&together.skipped_blocks.unwrap()), "{joining:?}");
    }
}

#[test]
fn each_picture_of_a_batch_is_told_of_its_steps_and_shown_in_order() {
    let case = Case::read("t2i_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let request = three(&case);
    let mut singly = Previews::default();
    pipeline.generate(&request, &mut singly).unwrap();
    for joining in WAYS {
        pipeline.batching = Some(Batching { at_once: 3, joining });
        let mut together = Previews::default();

        pipeline.generate(&request, &mut together).unwrap();

        for image in 0..3 {
            let of = |previews: &Previews| -> Vec<usize> {
                let steps = previews.steps.iter().filter(|progress| progress.image == image);
                steps.map(|progress| progress.step).collect()
            };
            assert_eq!(of(&singly), of(&together), "{joining:?}, picture {image}");
            let shown = |previews: &Previews| -> Vec<(StepProgress, Picture)> {
                let seen = previews.seen.iter().filter(|(progress, _)| progress.image == image);
                seen.cloned().collect()
            };
            assert!(shown(&singly) == shown(&together), "{joining:?}, picture {image}");
        }
    }
}

#[test]
fn a_batch_is_stopped_by_a_break_at_any_of_its_pictures() {
    struct StopAt(StepProgress, usize);
    impl StepObserver for StopAt {
        fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
            self.1 += 1;
            if progress == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let case = Case::read("t2i_cfg");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let request = three(&case);
    let total_steps = request.steps.get();
    let expected = alone(&mut pipeline, &request);
    for joining in WAYS {
        pipeline.batching = Some(Batching { at_once: 3, joining });
        let mut observer = StopAt(StepProgress { image: 1, step: 2, total_steps }, 0);

        let stopped = pipeline.generate(&request, &mut observer);

        assert!(matches!(stopped, Err(ModelError::Cancelled)), "{joining:?}");
        // Three stages, the beginning of three pictures, a step of all and of two of them.
        assert_eq!(observer.1, 3 + 3 + 3 + 2, "{joining:?}");
        let again = pipeline.generate(&request, &mut Unobserved).unwrap();
        assert_same(&again.images, &expected, "again");
    }
}

#[test]
fn pictures_wait_for_each_other_where_blocks_come_and_go() {
    let case = Case::read("edit_cfg");
    let request = three(&case);
    let by = |memory| {
        let mut pipeline = case.pipeline_with(|config| config.memory = memory);
        let mut previews = Previews::default();
        let made = pipeline.generate(&request, &mut previews).unwrap();
        let images: Vec<usize> = previews.steps.iter().map(|progress| progress.image).collect();
        (made.images, images)
    };

    let (resident, one_by_one) = by(MemoryChoice::Resident);
    let (streamed, in_turns) = by(MemoryChoice::Stream);

    assert_same(&streamed, &resident, "streamed");
    assert!(one_by_one.is_sorted() && in_turns.ends_with(&[0, 1, 2, 0, 1, 2]), "{in_turns:?}");
}
