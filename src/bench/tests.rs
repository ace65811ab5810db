//! Benchmarks of the embedded miniature, and the arithmetic of a published configuration.

use super::*;
use crate::domain::{GuidanceScale, ImageSize};
use crate::model::benchmark::{LayerCounts, Part, estimate};
use crate::model::{DeviceChoice, DtypeChoice, ModelConfig};
use crate::nn::trace::OperationTime;

const STAGES: [&str; 6] =
    ["plan", "text encoder", "vae encoder", "modulation", "steps", "vae decoder"];

fn plan() -> BenchmarkPlan {
    BenchmarkPlan {
        snapshot: configuration("tiny-random").unwrap(),
        layers: LayerCounts { transformer: Some(2), text: None, vision: None },
        size: ImageSize::new(64, 64).unwrap(),
        references: None,
        steps: Steps::new(3).unwrap(),
        guidance: GuidanceScale::new(4.0).unwrap(),
        words: None,
        parts: Part::ALL.to_vec(),
        repeats: 2,
        ceiling: false,
        trace: false,
        model: ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::of("benchmark") },
    }
}

#[test]
fn stages_and_steps_add_up_to_the_whole() {
    let report = run_telling(&plan(), &mut |_| ()).unwrap();

    assert_eq!(report.runs.len(), 2);
    for run in &report.runs {
        assert_eq!(run.steps_s.len(), 3);
        let sum: f64 = run.stages.iter().map(|stage| stage.seconds).sum();
        assert!((sum - run.total_s).abs() < 1e-3 * run.total_s.max(1e-3), "{run:?}");
        let steps = run.stages.iter().find(|stage| stage.name == "steps").unwrap();
        let sum: f64 = run.steps_s.iter().sum();
        assert!((sum - steps.seconds).abs() < 1e-3 * steps.seconds, "{run:?}");
        assert!(run.stages[1..].iter().all(|stage| stage.tflop > 0.0), "{run:?}");
    }
    assert_eq!(report.tokens.image_tokens, 2 * 16);
    assert!(report.weight_bytes > 0);
}

/// Names of the stages that a run of `parts` has, and of what was told.
fn stages_of(parts: &[Part]) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut told = Vec::new();
    let plan = BenchmarkPlan { parts: parts.to_vec(), repeats: 1, ..plan() };
    let report = run_telling(&plan, &mut |work| match work {
        Work::Stage { name, picture: 1, pictures: 1, .. } => told.push(name),
        Work::Loading => {}
        other @ (Work::Stage { .. } | Work::Trace | Work::Ceiling) => panic!("{other:?}"),
    });
    let run = report.unwrap().runs.remove(0);
    let sum: f64 = run.stages.iter().map(|stage| stage.seconds).sum();
    // As clocks count them: a sum of fractions is rounded otherwise than the whole.
    let nanoseconds = |seconds: f64| (seconds * 1e9).round();
    assert!(nanoseconds(sum) <= nanoseconds(run.total_s), "{run:?}");
    assert_eq!(run.steps_s.len(), 3 * usize::from(parts.contains(&Part::Transformer)));
    (run.stages.iter().map(|stage| stage.name).collect(), told)
}

#[test]
fn parts_are_made_alone_and_every_stage_and_step_is_told_when_it_begins() {
    let (made, told) = stages_of(&[Part::Transformer]);
    assert_eq!(made, ["plan", "modulation", "steps"]);
    assert_eq!(told, ["plan", "modulation", "steps", "steps", "steps"]);

    let (made, told) = stages_of(&[Part::VaeEncoder, Part::VaeDecoder]);
    assert_eq!(made, ["plan", "vae encoder", "vae decoder"]);
    assert_eq!(told, made);

    let (made, _) = stages_of(&[Part::TextEncoder]);
    assert_eq!(made, ["plan", "text encoder"]);

    let (made, told) = stages_of(&Part::ALL);
    assert_eq!(made, STAGES);
    let (steps, others): (Vec<_>, Vec<_>) = told.into_iter().partition(|name| *name == "steps");
    assert_eq!((steps.len(), others.len()), (3, STAGES.len() - 1));
}

#[test]
fn the_transformer_alone_has_the_tokens_and_the_operations_that_it_has_in_a_picture() {
    let traced = |parts: &[Part]| {
        let parts = parts.to_vec();
        let plan = BenchmarkPlan { parts, repeats: 1, trace: true, ..plan() };
        let report = run_telling(&plan, &mut |_| ()).unwrap();
        let of_steps = report.operations.iter().filter(|of| of.stage == "steps");
        let tflop: f64 = of_steps.map(|of| of.tflop).sum();
        (report.tokens.image_tokens, report.tokens.text_tokens, tflop, report.weight_bytes)
    };

    let (whole, alone) = (traced(&Part::ALL), traced(&[Part::Transformer]));

    assert_eq!((alone.0, alone.1), (whole.0, whole.1));
    assert!((alone.2 / whole.2 - 1.0).abs() < 1e-9, "{alone:?} {whole:?}");
    assert!(alone.3 < whole.3);
}

#[test]
fn prompts_have_the_words_that_are_asked_for_and_fewer_than_a_template_are_refused() {
    let asked = |words| BenchmarkPlan { words, repeats: 1, ..plan() };
    let of = |words| estimate(&asked(words)).map(|estimate| estimate.tokens.text_tokens);
    let usual = of(None).unwrap();

    let report = run_telling(&asked(Some(50)), &mut |_| ()).unwrap();

    assert_eq!(of(Some(50)).unwrap(), report.tokens.text_tokens);
    assert_eq!(of(Some(51)).unwrap(), of(Some(50)).unwrap() + 1);
    assert_ne!(report.tokens.text_tokens, usual);
    let refused = of(Some(1)).unwrap_err().to_string();
    assert!(refused.starts_with("1 tokens of words cannot be"), "{refused}");
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_told_for_each_stage_and_the_most_of_all_is_the_most() {
    let report = run_telling(&plan(), &mut |_| ()).unwrap();

    let stages = report.runs.iter().flat_map(|run| &run.stages);
    let peaks: Vec<usize> = stages.filter_map(|stage| stage.peak_bytes).collect();
    assert_eq!(peaks.len(), 2 * STAGES.len());
    assert!(peaks.iter().max() <= report.peak_bytes.as_ref());
    assert!(report.loaded_bytes.is_some_and(|loaded| loaded > report.weight_bytes));
}

#[test]
fn a_traced_picture_shows_what_its_steps_are_made_of() {
    let report =
        run_telling(&BenchmarkPlan { repeats: 1, trace: true, ..plan() }, &mut |_| ()).unwrap();

    let trace = report.trace.unwrap();
    let text = trace.to_chrome().to_string();
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed["traceEvents"].as_array().unwrap().len(), trace.spans.len());
    for span in &trace.spans[1..] {
        let parent = &trace.spans[span.parent.unwrap()];
        let end = |span: &trace::TracedSpan| span.start_us + span.duration_us;
        let inside = span.start_us >= parent.start_us && end(span) <= end(parent) + 1e-6;
        assert!(inside, "{span:?} in {parent:?}");
    }
    let count = |name| trace.spans.iter().filter(|span| span.name == name).count();
    // Two of three steps, two passes each, two blocks.
    assert_eq!((count("step"), count("block")), (2, 2 * 2 * 2));
    let stages: Vec<_> =
        trace.spans.iter().filter(|span| span.parent == Some(0)).map(|span| span.name).collect();
    assert_eq!(stages, STAGES);

    // Each pass of a block has one attention; after the last, no text is read.
    let of_steps = |name| {
        let of = |time: &&OperationTime| time.stage == "steps" && time.name == name;
        report.operations.iter().find(of).unwrap()
    };
    assert_eq!(of_steps("attention").calls, count("block"));
    assert_eq!(of_steps("joint heads").calls, 3 * count("block"));
    assert_eq!(of_steps("modulated norm").calls, 4 * count("block") - 2 * 2 + 2 * 2);
    // Two of three steps, by arithmetic of its own.
    let counted: f64 =
        report.operations.iter().filter(|of| of.stage == "steps").map(|of| of.tflop).sum();
    let steps = report.runs[0].stages.iter().find(|stage| stage.name == "steps").unwrap();
    assert!((counted / (steps.tflop * 2.0 / 3.0) - 1.0).abs() < 1e-6, "{counted} {steps:?}");
    let sum: f64 = report.operations.iter().map(|time| time.seconds).sum();
    assert!((sum * 1e6 - trace.spans[0].duration_us).abs() < 1e-3 * sum * 1e6);
}

#[test]
fn a_published_model_is_counted_without_being_made() {
    let plan = BenchmarkPlan {
        snapshot: configuration("qwen-image-edit-2511").unwrap(),
        layers: LayerCounts::default(),
        size: ImageSize::new(1024, 1024).unwrap(),
        steps: Steps::new(50).unwrap(),
        model: ModelConfig { dtype: DtypeChoice::Bfloat16, ..plan().model },
        ..plan()
    };

    let estimate = estimate(&plan).unwrap();

    // 28.8 billion parameters, less half a billion of the unused output layer.
    assert_eq!(estimate.weight_bytes / 100_000_000, 566);
    assert_eq!(estimate.tokens.image_tokens, 2 * 4096);
    let steps = estimate.stages.iter().find(|stage| stage.name == "steps").unwrap();
    // About 168 TFLOP a pass, two passes a step.
    assert!((steps.tflop / 100.0 - 168.0).abs() < 3.0, "{}", steps.tflop);
}

#[test]
fn a_configuration_is_a_published_one_an_embedded_one_or_a_folder() {
    assert!(matches!(configuration("qwen-image-edit"), Ok(Snapshot::Texts(_))));
    assert!(matches!(configuration("tiny-random"), Ok(Snapshot::Embedded(_))));
    let error = configuration("no-such-model").unwrap_err().to_string();
    assert!(error.contains("no-such-model") && error.contains("qwen-image-edit-2511"));
}

#[test]
fn without_a_number_of_references_models_that_edit_have_one() {
    let tokens = |name: &str, references| {
        let snapshot = configuration(name).unwrap();
        estimate(&BenchmarkPlan { snapshot, references, ..plan() }).unwrap().tokens
    };

    assert_eq!(tokens("qwen-image", None), tokens("qwen-image", Some(0)));
    assert_eq!(tokens("qwen-image-edit", None), tokens("qwen-image-edit", Some(1)));
}

#[test]
fn a_pipeline_that_no_family_measures_is_refused_with_those_that_are() {
    let index = ("model_index.json".to_owned(), r#"{"_class_name": "NoSuchPipeline"}"#.to_owned());
    let snapshot = Snapshot::Texts([index].into());

    let error = estimate(&BenchmarkPlan { snapshot, ..plan() }).unwrap_err();

    let BenchmarkError::Load(error) = error else { panic!("{error:?}") };
    let reason = error.to_string();
    assert!(reason.contains("NoSuchPipeline") && reason.contains("QwenImagePipeline"), "{reason}");
}
