//! LoRAs that a request names: its pictures against those of a model that the same files
//! were merged into, and what is refused.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use diffuser_api::domain::{
    GuidanceScale, ImageRequest, Prompt, RequestLora, RequestLoras, ScheduleShift, Seed, Steps,
    Task,
};
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, DtypeChoice, LoraConfig, MemoryChoice, ModelConfig, ModelError,
    StepObserver, StepProgress, Unobserved,
};

use super::lora::{SCALE, STYLES, adapter, checkpoint, lora_file, read, write};
use crate::support::checkpoints::{copy_folder, offline_hub};

/// A folder with the files of `tests/data/lora`.
fn loras() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for style in STYLES {
        let target = folder.path().join(format!("{style}.safetensors"));
        std::fs::copy(lora_file(style), target).unwrap();
    }
    folder
}

fn load_from(folder: &Path, change: impl FnOnce(&mut ModelConfig)) -> Box<dyn DiffusionModel> {
    let mut config = ModelConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::Float32,
        image_area: Some(64 * 64),
        ..ModelConfig::of(folder.display().to_string())
    };
    change(&mut config);
    diffuser_api::model::load(&config, &offline_hub()).unwrap()
}

fn load(change: impl FnOnce(&mut ModelConfig)) -> Box<dyn DiffusionModel> {
    load_from(&checkpoint(), change)
}

/// A model that takes its LoRAs from `folder`.
fn load_with(folder: &Path) -> Box<dyn DiffusionModel> {
    load(|config| config.lora_dir = Some(folder.to_owned()))
}

fn merged(file: &Path, scale: f64) -> Box<dyn DiffusionModel> {
    load(|config| config.lora = vec![LoraConfig { file: file.to_owned(), scale }])
}

fn request(loras: &[(&str, f64)]) -> ImageRequest {
    let loras = loras.iter().map(|(name, scale)| RequestLora::new(*name, *scale).unwrap());
    ImageRequest {
        negative_prompt: Some(Prompt::negative("a dog").unwrap()),
        steps: Steps::new(3).unwrap(),
        guidance: GuidanceScale::new(2.0).unwrap(),
        seed: Seed::new(7),
        loras: RequestLoras::new(loras.collect()).unwrap(),
        ..ImageRequest::new(Task::Generate, Prompt::new("a red house").unwrap())
    }
}

fn picture(model: &mut dyn DiffusionModel, loras: &[(&str, f64)]) -> Vec<u8> {
    picture_of(model, &request(loras))
}

fn picture_of(model: &mut dyn DiffusionModel, request: &ImageRequest) -> Vec<u8> {
    let generation = model.generate(request, &mut Unobserved).unwrap();
    generation.images[0].image.colour().pixels().to_vec()
}

/// The sentence that `model` refuses `loras` with.
fn refusal(model: &mut dyn DiffusionModel, loras: &[(&str, f64)]) -> String {
    match model.generate(&request(loras), &mut Unobserved) {
        Err(ModelError::Unsuitable { field: "loras", reason }) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// The furthest that two pictures are apart.
fn levels_apart(ours: &[u8], theirs: &[u8]) -> u8 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// Peak signal to noise ratio.
fn decibels(ours: &[u8], theirs: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let error = ours.iter().zip(theirs).map(square).sum::<f64>() / theirs.len() as f64;
    10.0 * (255.0_f64.powi(2) / error).log10()
}

#[test]
fn pictures_are_those_of_a_model_that_was_loaded_with_the_files() {
    let folder = loras();
    let mut model = load_with(folder.path());
    let plain = picture(model.as_mut(), &[]);
    for style in STYLES {
        for scale in [SCALE, -0.4] {
            let expected = picture(merged(&lora_file(style), scale).as_mut(), &[]);

            let made = picture(model.as_mut(), &[(style, scale)]);

            let (apart, moved) = (levels_apart(&made, &expected), levels_apart(&made, &plain));
            println!("{style} at {scale}: {apart} levels, {moved} from the plain picture");
            assert!(apart <= 1 && moved > 20, "{style} at {scale}: {apart}, {moved}");
        }
        // A strength of 0 changes nothing, nor does what was there before.
        assert!(picture(model.as_mut(), &[(style, 0.0)]) == plain, "{style}");
        assert!(picture(model.as_mut(), &[]) == plain, "{style}");
    }
}

#[test]
fn several_add_up_and_to_files_that_were_merged() {
    let folder = loras();
    let expected = picture(merged(&lora_file("kohya"), 0.7).as_mut(), &[]);
    let mut model = load_with(folder.path());
    let mut both = load(|config| {
        config.lora_dir = Some(folder.path().to_owned());
        config.lora = vec![LoraConfig { file: lora_file("lightx2v"), scale: 0.5 }];
    });

    let of_three = picture(model.as_mut(), &[("kohya", 0.5), ("diffusers", 0.4), ("kohya", -0.2)]);
    let of_both = picture(both.as_mut(), &[("kohya", 0.2)]);

    assert!(levels_apart(&of_three, &expected) <= 1);
    assert!(levels_apart(&of_both, &expected) <= 1);
}

#[test]
fn rounded_matrices_lose_no_more_with_a_lora_than_without() {
    let folder = loras();
    let exact = picture(load(|_| ()).as_mut(), &[]);
    let changed = picture(merged(&lora_file("kohya"), SCALE).as_mut(), &[]);
    for dtype in [
        DtypeChoice::Fp8,
        DtypeChoice::Fp8Weights,
        DtypeChoice::Q8_0,
        DtypeChoice::Bfloat16,
        DtypeChoice::Float16,
    ] {
        let mut model = load(|config| {
            (config.dtype, config.lora_dir) = (dtype, Some(folder.path().to_owned()));
        });

        let without = decibels(&picture(model.as_mut(), &[]), &exact);
        let with = decibels(&picture(model.as_mut(), &[("kohya", SCALE)]), &changed);

        println!("{dtype:?}: {without:.1} dB without, {with:.1} dB with");
        // The change itself is exact, or in the format of the layers' numbers; what is lost
        // is what the matrices, the inputs and the other layers are rounded by.
        assert!(with > 25.0 && with > without - 6.0, "{dtype:?}: {with}, {without}");
    }
}

#[test]
fn blocks_that_are_streamed_give_the_picture_of_those_that_stay() {
    let folder = loras();
    for dtype in [DtypeChoice::Float32, DtypeChoice::Fp8Weights, DtypeChoice::Q8_0] {
        let made =
            [MemoryChoice::Resident, MemoryChoice::Offload, MemoryChoice::Stream].map(|memory| {
                let mut model = load(|config| {
                    config.lora_dir = Some(folder.path().to_owned());
                    (config.dtype, config.memory) = (dtype, memory);
                });
                picture(model.as_mut(), &[("lightx2v", 1.3)])
            });
        assert!(made[0] == made[1] && made[1] == made[2], "{dtype:?}");
    }
}

#[test]
fn what_is_kept_for_one_lora_is_not_given_to_another() {
    let folder = loras();
    let lists: [&[(&str, f64)]; 5] = [
        &[("kohya", 0.7)],
        &[],
        &[("kohya", -0.7)],
        &[("diffusers", 0.4), ("kohya", 0.7)],
        &[("kohya", 0.0)],
    ];
    let alone = lists.map(|loras| picture(load_with(folder.path()).as_mut(), loras));
    let mut model = load(|config| {
        config.lora_dir = Some(folder.path().to_owned());
        config.cache_bytes = 64 << 20;
    });
    for _again in 0..2 {
        for (loras, alone) in lists.iter().zip(&alone) {
            assert!(picture(model.as_mut(), loras) == *alone, "{loras:?}");
        }
    }
}

#[test]
fn files_may_come_and_be_replaced_and_go_between_requests() {
    let folder = loras();
    let at = |name: &str| folder.path().join(name);
    let mut model = load_with(folder.path());
    let plain = picture(model.as_mut(), &[]);
    assert!(refusal(model.as_mut(), &[("new", 1.0)]).contains("kohya"));

    std::fs::create_dir(at("new")).unwrap();
    write(&at("new/adapter_model.safetensors"), &adapter("transformer."), &[]);
    let of_folder = picture(model.as_mut(), &[("new", 1.0)]);
    assert!(of_folder != plain);
    // The configuration beside it is a part of it.
    let config = r#"{"r": 4, "lora_alpha": 1, "rank_pattern": {"to_q": 2}}"#;
    std::fs::write(at("new/adapter_config.json"), config).unwrap();
    let configured = picture(model.as_mut(), &[("new", 1.0)]);
    assert!(configured != plain && configured != of_folder);
    std::fs::copy(at("kohya.safetensors"), at("other")).unwrap();
    std::fs::rename(at("other"), at("new/adapter_model.safetensors")).unwrap();
    std::fs::remove_file(at("new/adapter_config.json")).unwrap();
    let kohya = picture(model.as_mut(), &[("kohya", 1.0)]);
    assert!(picture(model.as_mut(), &[("new", 1.0)]) == kohya);

    std::fs::remove_dir_all(at("new")).unwrap();
    assert!(refusal(model.as_mut(), &[("new", 1.0)]).contains("'new'"));
}

#[test]
fn what_cannot_be_used_is_refused_without_the_way_to_it_and_leaves_the_model_as_it_was() {
    let folder = loras();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(folder.path().with_extension("safetensors"), "outside").unwrap();
    std::fs::write(at("broken.safetensors"), "PK").unwrap();
    let whole = std::fs::read(at("kohya.safetensors")).unwrap();
    std::fs::write(at("cut.safetensors"), &whole[..whole.len() - 9]).unwrap();
    let mut foreign = read(&at("lightx2v.safetensors"));
    for part in ["down", "up"] {
        let tensor = foreign[&format!("img_in.lora_{part}.weight")].clone();
        foreign.insert(format!("double_blocks.7.img_attn.proj.lora_{part}.weight"), tensor);
    }
    candle_core::safetensors::save(&foreign, at("foreign.safetensors")).unwrap();
    let mut wide = read(&at("lightx2v.safetensors"));
    let down = Tensor::zeros((3, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
    wide.insert("img_in.lora_down.weight".to_owned(), down);
    candle_core::safetensors::save(&wide, at("wide.safetensors")).unwrap();
    let mut dora = adapter("transformer.");
    let number = (safetensors::Dtype::F32, vec![1], vec![0; 4]);
    dora.insert("transformer.img_in.lora_magnitude_vector".to_owned(), number);
    write(&at("dora.safetensors"), &dora, &[]);
    std::fs::create_dir(at("peft")).unwrap();
    write(&at("peft/adapter_model.safetensors"), &adapter("transformer."), &[]);
    std::fs::write(at("peft/adapter_config.json"), r#"{"r": 4, "use_dora": true}"#).unwrap();

    let mut model = load_with(folder.path());
    let plain = picture(model.as_mut(), &[]);
    for (name, words) in [
        ("unknown", ["unknown", "lightx2v"]),
        ("kohya.safetensors", ["kohya.safetensors", "lightx2v"]),
        ("broken", ["broken.safetensors", "safetensors file"]),
        ("cut", ["cut.safetensors", "cut short"]),
        ("foreign", ["another model", "double_blocks.7.img_attn.proj"]),
        ("wide", ["cannot be used", "img_in.lora_down.weight"]),
        ("dora", ["DoRA", "dora.safetensors"]),
        ("peft", ["use_dora", "adapter_config.json"]),
    ] {
        // Whatever stands before it in the list, and even if it shall not act.
        for loras in [&[("kohya", 1.0), (name, 0.5)][..], &[(name, 0.0)]] {
            let sentence = refusal(model.as_mut(), loras);

            println!("{sentence}");
            assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
            assert!(sentence.contains(&format!("'{name}'")), "{sentence}");
            let way = folder.path().parent().unwrap().display().to_string();
            assert!(!sentence.contains(&way), "{sentence}");
            assert!(picture(model.as_mut(), &[]) == plain, "{name}");
        }
    }
    let mut without = load(|_| ());
    assert!(refusal(without.as_mut(), &[("kohya", 1.0)]).contains("no folder"));
    std::fs::remove_file(folder.path().with_extension("safetensors")).unwrap();
}

#[test]
fn a_request_that_is_broken_off_leaves_the_model_as_it_was() {
    /// Stops after a step, or at a question in between.
    struct StopAt(usize);
    impl StepObserver for StopAt {
        fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
            if self.0 == progress.step { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }

        fn is_cancelled(&mut self) -> bool {
            self.0 = self.0.saturating_sub(usize::from(self.0 >= 100));
            self.0 == 100
        }
    }
    let folder = loras();
    let mut model = load_with(folder.path());
    let plain = picture(model.as_mut(), &[]);
    for stops_at in [0, 2, 101, 105, 120, 140] {
        let stopped = model.generate(&request(&[("kohya", 1.0)]), &mut StopAt(stops_at));

        assert!(matches!(stopped, Err(ModelError::Cancelled)), "{stops_at}: {stopped:?}");
        assert!(picture(model.as_mut(), &[]) == plain, "{stops_at}");
    }
}

#[test]
fn a_schedule_shift_makes_the_picture_of_a_checkpoint_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&checkpoint(), folder.path());
    let file = folder.path().join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    // As the schedulers of models that were distilled to few steps are published.
    for key in ["base_shift", "max_shift"] {
        config[key] = 3.0_f64.ln().into();
    }
    config["shift_terminal"] = serde_json::Value::Null;
    std::fs::write(&file, config.to_string()).unwrap();
    let expected = picture(load_from(folder.path(), |_| ()).as_mut(), &[]);
    let mut model = load(|_| ());
    let shift = ScheduleShift::new(3.0).unwrap();

    let made =
        picture_of(model.as_mut(), &ImageRequest { schedule_shift: Some(shift), ..request(&[]) });

    assert!(made == expected);
    assert!(made != picture(model.as_mut(), &[]));
}

#[test]
fn stable_diffusion_refuses_both_by_name() {
    let folder = super::lora::data().join("stable_diffusion/sd");
    let loras = loras();
    let mut model = load_from(&folder, |config| {
        (config.lora_dir, config.image_area) = (Some(loras.path().to_owned()), None);
    });
    assert!(refusal(model.as_mut(), &[("kohya", 1.0)]).contains("takes no LoRAs"));
    let shift = ScheduleShift::new(3.0).unwrap();
    let shifted = ImageRequest { schedule_shift: Some(shift), ..request(&[]) };
    let refused = model.generate(&shifted, &mut Unobserved);
    assert!(
        matches!(refused, Err(ModelError::Unsuitable { field: "schedule_shift", .. })),
        "{refused:?}"
    );
}
