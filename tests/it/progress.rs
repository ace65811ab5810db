//! What models tell while they work: the stages, and the layers within them.

use std::ops::ControlFlow;
use std::path::Path;

use diffuser_api::domain::{ImageRequest, Prompt, RgbImage, Steps, Strength, Task};
use diffuser_api::model::{EditKind, LayerProgress, Stage, StepObserver, StepProgress};

use crate::support::checkpoints::load;

/// Writes down what it is told.
#[derive(Default)]
struct Notes {
    stages: Vec<Stage>,
    layers: Vec<(Option<Stage>, LayerProgress)>,
    /// Steps that decoding takes as long as, and the last stage told of before.
    decoding: Option<(f64, Option<Stage>)>,
}

impl StepObserver for Notes {
    fn on_step(&mut self, _progress: StepProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn on_stage(&mut self, stage: Stage) {
        if self.stages.last() != Some(&stage) {
            self.stages.push(stage);
        }
    }

    fn on_decoding_cost(&mut self, steps: f64) {
        self.decoding = Some((steps, self.stages.last().copied()));
    }

    fn on_layer(&mut self, layer: LayerProgress) {
        self.layers.push((self.stages.last().copied(), layer));
    }
}

fn notes_of(name: &str) -> Notes {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let mut model = load(&folder.display().to_string()).unwrap();
    let image = RgbImage::filled(64, 64, [90, 120, 30]).into();
    let task = match model.card().edit_kind {
        EditKind::Instruction => Task::Edit { images: vec![image] },
        EditKind::ImageToImage | EditKind::Layers => {
            Task::ImageToImage { image, strength: Strength::new(1.0).unwrap() }
        }
    };
    let request = ImageRequest {
        steps: Steps::new(2).unwrap(),
        ..ImageRequest::new(task, Prompt::new("a red boat").unwrap())
    };
    let mut notes = Notes::default();
    model.generate(&request, &mut notes).unwrap();
    notes
}

#[test]
fn both_families_tell_their_stages_in_order() {
    for name in ["fixtures/ckpt/qwen-image-edit", "stable_diffusion/sd"] {
        let Notes { stages, decoding, .. } = notes_of(name);

        let expected =
            [Stage::EncodingPrompts, Stage::EncodingLatents, Stage::Denoising, Stage::Decoding];
        assert_eq!(stages, expected, "{name}");
        let (steps, told_in) = decoding.unwrap();
        assert!(steps > 0.0 && steps.is_finite(), "{name}: {steps}");
        assert!(told_in.is_some() && told_in != Some(Stage::Decoding), "{name}: {told_in:?}");
    }
}

#[test]
fn layers_are_told_in_the_text_encoder_the_vision_tower_and_each_step() {
    let notes = notes_of("fixtures/ckpt/qwen-image-edit");

    let of = |stage, total_layers| {
        let layers = notes.layers.iter().filter(move |(told_in, layer)| {
            *told_in == Some(stage) && layer.total_layers == total_layers
        });
        layers.map(|(_, layer)| layer.done).collect::<Vec<_>>()
    };
    assert_eq!(of(Stage::EncodingPrompts, 4), [0, 1, 2, 3], "the vision tower");
    assert_eq!(of(Stage::EncodingPrompts, 2), [0, 1], "the text encoder");
    assert_eq!(of(Stage::Denoising, 2), [0, 1, 0, 1], "two steps");
    assert_eq!(notes.layers.len(), 10);
}
