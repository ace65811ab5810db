//! Every component by itself, held against diffusers, transformers, Pillow and
//! torchvision. The numbers come from `tests/data/make_fixtures.py`.
//!
//! Bound: 1e-4 in float32, unless a test says otherwise. The reference differs
//! from itself by about 5e-6 when other kernels are chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{Snapshot, Weights};
use diffuser_api::domain::{CacheThreshold, RgbImage};
use diffuser_api::imaging::resample::{Resampler, resize};
use diffuser_api::model::Residency;
use diffuser_api::model::components::flow_match::{
    Schedule, SchedulerConfig, Shift, TimeShift, skipped_steps,
};
use diffuser_api::model::components::noise::TorchGenerator;
use diffuser_api::model::qwen_image::config::{
    ProcessorConfig, TextEncoderConfig, TransformerConfig, VaeConfig,
};
use diffuser_api::model::qwen_image::passes::{PassInputs, PromptTokens};
use diffuser_api::model::qwen_image::positions::{
    Grid, Segment, language_positions, transformer_positions,
};
use diffuser_api::model::qwen_image::preprocess::{
    PixelSize, encoder_input, size_of_area, smart_resize,
};
use diffuser_api::model::qwen_image::prompt::PromptTokenizer;
use diffuser_api::model::qwen_image::step_cache::StepCache;
use diffuser_api::model::qwen_image::text_encoder::{
    PromptInput, TextEncoder, TextEncoderResidency,
};
use diffuser_api::model::qwen_image::transformer::{Transformer, TransformerResidency};
use diffuser_api::model::qwen_image::vae::Vae;
use diffuser_api::model::qwen_image::vision_tower::WindowLayout;

use crate::support::golden::{Golden, fixtures};

const TOLERANCE: f32 = 1e-4;
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

fn checkpoint(name: &str) -> Snapshot {
    Snapshot::Directory(fixtures().join("ckpt").join(name))
}

fn open(name: &str, component: &str, dtype: DType) -> Weights {
    let stem = if component == "text_encoder" { "model" } else { DIFFUSERS_STEM };
    let kind = (dtype, &Device::Cpu);
    let canonical = TextEncoder::canonical_name;
    Weights::open(&checkpoint(name), component, stem, kind, canonical).unwrap()
}

fn tables() -> serde_json::Value {
    let text = std::fs::read_to_string(fixtures().join("components/tables.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn number(value: &serde_json::Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// A u8 tensor (height, width, 3) as a picture.
fn picture(tensor: &Tensor) -> RgbImage {
    let (height, width, _) = tensor.dims3().unwrap();
    RgbImage::new(width, height, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

#[test]
fn resizing_gives_the_bytes_of_pillow_and_torchvision() {
    let golden = Golden::read("components/resize");
    let resamplers = [
        ("lanczos", Resampler::PillowLanczos),
        ("bicubic_pil", Resampler::PillowBicubic),
        ("bicubic_torchvision", Resampler::TorchvisionBicubic),
    ];
    let mut compared = 0;
    for case in (0..).take_while(|case| golden.has(&format!("{case}.in"))) {
        let input = picture(&golden.tensor(&format!("{case}.in")));
        for (name, resampler) in resamplers {
            let expected = picture(&golden.tensor(&format!("{case}.{name}")));

            let ours = resize(&input, expected.width(), expected.height(), resampler);

            assert!(ours == expected, "case {case}, {name}");
            compared += 1;
        }
    }
    assert!(compared >= 15, "only {compared} comparisons");
}

#[test]
fn pictures_get_the_sizes_of_the_reference() {
    let tables = tables();
    for case in tables["calculate_dimensions"].as_array().unwrap() {
        let size =
            size_of_area(number(&case["area"]), number(&case["width"]), number(&case["height"]));
        assert_eq!([size.width, size.height], [0, 1].map(|i| number(&case["out_wh"][i])), "{case}");
    }
    for case in tables["smart_resize"].as_array().unwrap() {
        let size = PixelSize { width: number(&case["width"]), height: number(&case["height"]) };
        let size = smart_resize(size, 28, number(&case["min_pixels"]), number(&case["max_pixels"]));
        assert_eq!([size.height, size.width], [0, 1].map(|i| number(&case["out_hw"][i])), "{case}");
    }
}

/// The values of the published `scheduler_config.json` files.
fn published_scheduler() -> SchedulerConfig {
    SchedulerConfig {
        num_train_timesteps: 1000,
        shift: Shift::Dynamic {
            kind: TimeShift::Exponential,
            base_shift: 0.5,
            max_shift: 0.9,
            base_image_seq_len: 256,
            max_image_seq_len: 8192,
        },
        shift_terminal: Some(0.02),
    }
}

#[test]
fn schedules_are_those_of_the_reference() {
    let of_checkpoint = |name| SchedulerConfig::load(&checkpoint(name)).unwrap();
    let (tokens, layered) = (of_checkpoint("qwen-image"), of_checkpoint("qwen-image-layered"));
    let mut compared = 0;
    for case in tables()["schedule"].as_array().unwrap() {
        let (steps, seq_len) = (number(&case["steps"]), number(&case["seq_len"]));
        let schedule = match case["checkpoint"].as_str().unwrap() {
            "qwen-image" => tokens.schedule(steps, seq_len),
            "published values" => published_scheduler().schedule(steps, seq_len),
            "qwen-image-layered" => layered.schedule_of_mu(steps, (seq_len as f64 / 256.0).sqrt()),
            other => panic!("no schedule of {other}"),
        };
        let Some(theirs) = case["sigmas"].as_array() else {
            continue; // the reference refuses it
        };
        assert_eq!(schedule.sigmas.len(), theirs.len());
        if theirs.iter().any(|sigma| sigma == "nan") {
            // One step with a terminal shift: 0/0 in the reference.
            assert_eq!(schedule.sigmas, [1.0, 0.0]);
            continue;
        }
        assert_schedule(&schedule, case);
        compared += 1;
    }
    assert!(compared >= 60, "only {compared} schedules");
}

/// Holds a schedule against the `sigmas` and `timesteps` of `case`.
fn assert_schedule(ours: &Schedule, case: &serde_json::Value) {
    // Timesteps are a thousand times larger, and so is their rounding.
    for (name, ours, bound) in
        [("sigmas", &ours.sigmas, 1e-6), ("timesteps", &ours.timesteps, 1e-3)]
    {
        let theirs = case[name].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{case}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            let difference = (f64::from(*ours) - theirs.as_f64().unwrap()).abs();
            assert!(difference < bound, "{case} {name}: {difference}");
        }
    }
}

#[test]
fn schedules_of_few_steps_are_those_of_the_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/few_steps.json");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("scheduler")).unwrap();
    let snapshot = Snapshot::Directory(folder.path().to_owned());
    for variant in golden["schedulers"].as_array().unwrap() {
        let file = folder.path().join("scheduler/scheduler_config.json");
        std::fs::write(file, variant["config"].to_string()).unwrap();
        let config = SchedulerConfig::load(&snapshot).unwrap();
        for case in variant["schedules"].as_array().unwrap() {
            let schedule = config.schedule(number(&case["steps"]), number(&case["tokens"]));
            assert_schedule(&schedule, case);
        }
    }
}

#[test]
fn a_strength_leaves_out_as_many_steps_as_in_the_reference() {
    for case in tables()["strength"].as_array().unwrap() {
        let skipped = skipped_steps(number(&case["steps"]), case["strength"].as_f64().unwrap());
        assert_eq!(skipped, number(&case["t_start"]), "{case}");
    }
}

#[test]
fn texts_become_the_ids_of_the_reference_from_either_kind_of_tokenizer_files() {
    let text = std::fs::read_to_string(fixtures().join("components/tokenizer.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    // qwen-image has vocab.json and merges.txt alone, the others a tokenizer.json.
    for (name, golden) in golden.as_object().unwrap() {
        let image_pad = number(&golden["special_ids"]["<|image_pad|>"]) as u32;
        let tokenizer = PromptTokenizer::load(&checkpoint(name), image_pad).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let text = case[0].as_str().unwrap();
            let theirs: Vec<u32> =
                case[1].as_array().unwrap().iter().map(|id| number(id) as u32).collect();

            assert_eq!(tokenizer.ids(text).unwrap(), theirs, "{name}: {text:?}");
        }
    }
}

/// The two pictures of `components/vision_text`, in the encoder's patches.
struct TwoPictures {
    golden: Golden,
    config: TextEncoderConfig,
    encoder: TextEncoder,
    patches: Tensor,
    grids: Vec<Grid>,
}

impl TwoPictures {
    fn load() -> Self {
        let golden = Golden::read("components/vision_text");
        let snapshot = checkpoint("qwen-image-edit");
        let config = TextEncoderConfig::load(&snapshot).unwrap();
        let processor = ProcessorConfig::load(&snapshot, &config.vision).unwrap();
        let weights = open("qwen-image-edit", "text_encoder", DType::F32);
        let encoder = TextEncoder::load(&weights, &config, TextEncoderResidency::RESIDENT).unwrap();
        weights.finish().unwrap();
        let inputs: Vec<_> = ["image0", "image1"]
            .map(|name| picture(&golden.tensor(name)))
            .iter()
            .map(|image| {
                let kind = (DType::F32, &Device::Cpu);
                encoder_input(image, &processor, &config.vision, kind).unwrap()
            })
            .collect();
        let patches: Vec<_> = inputs.iter().map(|input| input.patches.clone()).collect();
        Self {
            golden,
            config,
            encoder,
            patches: Tensor::cat(&patches, 0).unwrap(),
            grids: inputs.iter().map(|input| input.grid).collect(),
        }
    }
}

#[test]
fn pictures_become_the_patches_of_the_reference() {
    let pictures = TwoPictures::load();
    let grids: Vec<i64> =
        pictures.grids.iter().flat_map(|grid| [1, grid.height as i64, grid.width as i64]).collect();

    assert_eq!(grids, pictures.golden.integers("image_grid_thw"));
    let every_fourth: Vec<u32> = (0..pictures.patches.dim(0).unwrap() as u32).step_by(4).collect();
    let every_fourth = Tensor::new(every_fourth, &Device::Cpu).unwrap();
    let ours = pictures.patches.index_select(&every_fourth, 0).unwrap();
    pictures.golden.assert_close("pixel_values_every4", &ours, TOLERANCE);
    // Sums of about 1176 numbers near one: their rounding adds up.
    let sums = pictures.patches.sum(1).unwrap();
    pictures.golden.assert_close("pixel_values_sum_per_patch", &sums, 2e-2);
}

#[test]
fn windows_are_cut_as_in_the_reference() {
    let pictures = TwoPictures::load();
    let layout = WindowLayout::new(&pictures.grids, &pictures.config.vision);

    let order: Vec<i64> = layout.order.iter().map(|token| *token as i64).collect();
    assert_eq!(order, pictures.golden.integers("window_index"));
    let patches = pictures.config.vision.patches_per_token();
    let mut ends = vec![0];
    for length in &layout.window_lengths {
        ends.push(ends[ends.len() - 1] + (length * patches) as i64);
    }
    let mut theirs = pictures.golden.integers("cu_window_seqlens");
    theirs.dedup(); // the reference has empty windows where a picture ends with one
    assert_eq!(ends, theirs);
}

#[test]
fn the_vision_tower_makes_the_tokens_of_the_reference() {
    let pictures = TwoPictures::load();

    let tokens = pictures.encoder.encode_pictures(&pictures.patches, &pictures.grids).unwrap();

    pictures.golden.assert_close("vis.merged", &tokens, TOLERANCE);
}

#[test]
fn the_language_model_makes_the_hidden_states_of_the_reference() {
    let pictures = TwoPictures::load();
    let ids = pictures.golden.integers("input_ids");
    let segments = segments(&ids, i64::from(pictures.config.image_token_id), &pictures.grids);
    let positions = language_positions(&segments);
    let by_axis: Vec<i64> =
        (0..3).flat_map(|axis| positions.iter().map(move |p| p[axis] as i64)).collect();
    let ids: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    let tokens = pictures.encoder.encode_pictures(&pictures.patches, &pictures.grids).unwrap();

    let hidden_states = pictures.encoder.forward(&ids, &segments, Some(&tokens)).unwrap();

    assert_eq!(by_axis, pictures.golden.integers("position_ids"));
    let last = format!("lm.hidden{}", pictures.config.text.num_hidden_layers);
    pictures.golden.assert_close(&last, &hidden_states, TOLERANCE);
}

/// Words and pictures of a sequence whose pictures are marked by `image_token`.
fn segments(ids: &[i64], image_token: i64, grids: &[Grid]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut grids =
        grids.iter().map(|grid| Grid { height: grid.height / 2, width: grid.width / 2 });
    let mut at = 0;
    while at < ids.len() {
        if ids[at] == image_token {
            let grid = grids.next().unwrap();
            segments.push(Segment::Picture(at..at + grid.len(), grid));
            at += grid.len();
        } else {
            let end = (at..ids.len()).find(|i| ids[*i] == image_token).unwrap_or(ids.len());
            segments.push(Segment::Text(at..end));
            at = end;
        }
    }
    segments
}

#[test]
fn an_encoder_whose_layers_come_and_go_makes_the_same_and_reads_what_prompts_need_once() {
    let pictures = TwoPictures::load();
    let ids = pictures.golden.integers("input_ids");
    let segments = segments(&ids, i64::from(pictures.config.image_token_id), &pictures.grids);
    let token_ids: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    let prompt = PromptInput { token_ids: &token_ids, segments: &segments };
    let other = [Segment::Text(0..5)];
    let other = PromptInput { token_ids: &token_ids[..5], segments: &other };
    let all = pictures.encoder.encode_pictures(&pictures.patches, &pictures.grids).unwrap();
    let expected = [prompt, other].map(|PromptInput { token_ids, segments }| {
        pictures.encoder.forward(token_ids, segments, Some(&all)).unwrap()
    });
    let text = &pictures.config.text;
    let table = text.vocab_size * text.hidden_size * 4;
    for residency in [
        TextEncoderResidency::ON_DEMAND,
        TextEncoderResidency {
            resident_layers: 1,
            resident_vision_layers: 2,
            ..TextEncoderResidency::ON_DEMAND
        },
        TextEncoderResidency { embedding: Residency::Resident, ..TextEncoderResidency::ON_DEMAND },
    ] {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let count = move |bytes| {
            counted.fetch_add(bytes, Ordering::Relaxed);
        };
        let weights = open("qwen-image-edit", "text_encoder", DType::F32).reporting(count);
        let encoder = TextEncoder::load(&weights, &pictures.config, residency).unwrap();
        weights.finish().unwrap();
        let read_by = |action: &dyn Fn()| {
            let before = read.load(Ordering::Relaxed);
            action();
            read.load(Ordering::Relaxed) - before
        };
        let rows = |prompt: &PromptInput| {
            let words = prompt.segments.iter().map(|segment| match segment {
                Segment::Text(tokens) => tokens.len(),
                Segment::Picture(..) => 0,
            });
            // On a CPU they are read from the file whether the table stays or not.
            words.sum::<usize>() * text.hidden_size * 4
        };

        let tokens = encoder.encode_pictures(&pictures.patches, &pictures.grids).unwrap();
        let one = read_by(&|| {
            let made = encoder.forward_each(&[prompt], Some(&tokens)).unwrap();
            crate::support::golden::assert_close("alone", &made[0], &expected[0], 0.0);
        });
        let both = read_by(&|| {
            let made = encoder.forward_each(&[prompt, other], Some(&tokens)).unwrap();
            for (made, expected) in made.iter().zip(&expected) {
                crate::support::golden::assert_close("both", made, expected, 0.0);
            }
        });

        crate::support::golden::assert_close("pictures", &tokens, &all, 0.0);
        // Layers once for all prompts, and of the table no more than their words.
        assert!(one > 0 && one - rows(&prompt) == both - rows(&prompt) - rows(&other));
        assert!(rows(&prompt) < table, "{residency:?}");
    }
}

#[test]
fn words_alone_become_the_hidden_states_of_the_reference() {
    let golden = Golden::read("components/text_padded");
    let config = TextEncoderConfig::load(&checkpoint("qwen-image")).unwrap();
    let weights = open("qwen-image", "text_encoder", DType::F32);
    let encoder = TextEncoder::load(&weights, &config, TextEncoderResidency::RESIDENT).unwrap();
    weights.finish().unwrap();
    let ids: Vec<Vec<i64>> = golden.tensor("input_ids").to_vec2().unwrap();
    let mask: Vec<Vec<i64>> = golden.tensor("attention_mask").to_vec2().unwrap();
    let theirs = golden.tensor(&format!("lm.hidden{}", config.text.num_hidden_layers));
    for (sample, (ids, mask)) in ids.iter().zip(&mask).enumerate() {
        let length = mask.iter().sum::<i64>() as usize;
        let ids: Vec<u32> = ids[..length].iter().map(|id| *id as u32).collect();

        let ours = encoder.forward(&ids, &[Segment::Text(0..length)], None).unwrap();

        let theirs = theirs.get(sample).unwrap().narrow(0, 0, length).unwrap();
        crate::support::golden::assert_close("text_padded", &ours, &theirs, TOLERANCE);
    }
}

#[test]
fn the_vae_encodes_and_decodes_as_the_reference() {
    for name in ["qwen-image", "qwen-image-layered"] {
        let golden = Golden::read(&format!("components/vae_{name}"));
        let config = VaeConfig::load(&checkpoint(name)).unwrap();
        let weights = open(name, "vae", DType::F32);
        let vae = Vae::load(&weights, &config).unwrap();
        weights.finish().unwrap();
        let image = golden.tensor("enc.in").squeeze(2).unwrap();
        let latents = golden.tensor("dec.in").squeeze(2).unwrap();

        let parameters = vae.encode(&image).unwrap();
        // The reference bounds it at this place.
        let decoded = vae.decode(&latents).unwrap().clamp(-1.0, 1.0).unwrap();

        golden.assert_close("enc.params", &parameters, TOLERANCE);
        golden.assert_close("dec.out", &decoded, TOLERANCE);
    }
}

/// Every checkpoint with a golden of its transformer.
const TRANSFORMERS: [&str; 5] = [
    "qwen-image",
    "qwen-image-edit",
    "qwen-image-edit-plus",
    "qwen-image-edit-2511",
    "qwen-image-layered",
];

/// A transformer and the inputs of its golden.
struct TransformerCase {
    golden: Golden,
    config: TransformerConfig,
    transformer: Transformer,
    grids: Vec<Grid>,
}

impl TransformerCase {
    fn load(name: &str, dtype: DType) -> Self {
        let golden = Golden::read(&format!("components/dit_{name}"));
        let config = TransformerConfig::load(&checkpoint(name)).unwrap();
        let weights = open(name, "transformer", dtype);
        let transformer =
            Transformer::load(&weights, &config, TransformerResidency::RESIDENT).unwrap();
        weights.finish().unwrap();
        let grids = golden
            .integers("img_shapes")
            .chunks(3)
            .map(|shape| Grid { height: shape[1] as usize, width: shape[2] as usize })
            .collect();
        Self { golden, config, transformer, grids }
    }

    fn run(&self, sample: usize, text_tokens: usize, dtype: DType) -> Tensor {
        let input = |name| self.golden.tensor(name).narrow(0, sample, 1).unwrap();
        let latents = input("hidden_states").to_dtype(dtype).unwrap();
        let text = input("encoder_hidden_states").narrow(1, 0, text_tokens).unwrap();
        let sigma = self.golden.tensor("timestep").to_vec1::<f32>().unwrap()[sample];
        let positions = self.transformer.positions(&self.grids, text_tokens).unwrap();
        let text = text.to_dtype(dtype).unwrap();
        let modulations = self.transformer.modulations(&[sigma]).unwrap();
        self.transformer
            .forward(
                &latents,
                PromptTokens { embeds: &text, positions: &positions },
                modulations.at(0),
            )
            .unwrap()
    }

    fn expected(&self, name: &str, sample: usize) -> Tensor {
        self.golden.tensor(name).narrow(0, sample, 1).unwrap()
    }
}

#[test]
fn the_transformer_predicts_what_the_reference_predicts() {
    for name in TRANSFORMERS {
        let case = TransformerCase::load(name, DType::F32);
        let tokens = case.golden.tensor("encoder_hidden_states").dim(1).unwrap();
        let mask: Vec<Vec<i64>> =
            case.golden.tensor("encoder_hidden_states_mask").to_vec2().unwrap();
        for (sample, mask) in mask.iter().enumerate() {
            let ours = case.run(sample, tokens, DType::F32);
            let theirs = case.expected("out_nomask", sample);
            crate::support::golden::assert_close(name, &ours, &theirs, TOLERANCE);

            // A masked text and a text without what is masked are the same to it.
            let unmasked = mask.iter().sum::<i64>() as usize;
            let ours = case.run(sample, unmasked, DType::F32);
            let theirs = case.expected("out_masked", sample);
            crate::support::golden::assert_close(name, &ours, &theirs, TOLERANCE);
        }
    }
}

/// All tokens of `latents` are read, every step is computed.
fn inputs_of<'a>(latents: &'a Tensor, prompts: &[PromptTokens<'a>]) -> PassInputs<'a> {
    let read = latents.dim(1).unwrap();
    PassInputs { latents, read, prompts: prompts.to_vec(), caches: &mut [] }
}

#[test]
fn a_block_that_does_not_stay_is_read_once_for_two_prompts_and_pictures() {
    let name = "qwen-image-edit";
    let case = TransformerCase::load(name, DType::F32);
    let (streaming, bytes) = streaming(&case, name);
    let TransformerCase { golden, transformer: resident, grids, .. } = case;
    let latents = golden.tensor("hidden_states").narrow(0, 0, 1).unwrap();
    let text = golden.tensor("encoder_hidden_states").narrow(0, 0, 1).unwrap();
    let tokens = text.dim(1).unwrap();
    let texts = [text.clone(), text.narrow(1, 0, tokens - 3).unwrap()];
    let positions = texts.clone().map(|text| resident.positions(&grids, text.dim(1).unwrap()));
    let positions = positions.map(Result::unwrap);
    let prompts =
        [0, 1].map(|index| PromptTokens { embeds: &texts[index], positions: &positions[index] });
    let modulations = resident.modulations(&[0.7]).unwrap();
    let read_by = |action: &dyn Fn()| {
        let before = bytes.load(Ordering::Relaxed);
        action();
        bytes.load(Ordering::Relaxed) - before
    };

    let for_one = read_by(&|| {
        streaming.forward(&latents, prompts[0], modulations.at(0)).unwrap();
    });
    let for_two_pictures = read_by(&|| {
        let inputs = || inputs_of(&latents, &prompts);
        let flows = streaming.forward_each(vec![inputs(), inputs()], modulations.at(0)).unwrap();
        assert_eq!(flows.len(), 4);
    });
    let for_two = read_by(&|| {
        let flows = streaming.forward_each(vec![inputs_of(&latents, &prompts)], modulations.at(0));
        let flows = flows.unwrap();
        for (flow, prompt) in flows.iter().zip(prompts) {
            let alone = resident.forward(&latents, prompt, modulations.at(0)).unwrap();
            crate::support::golden::assert_close("alone", flow, &alone, 0.0);
        }
    });

    assert!(for_one > 0);
    assert_eq!((for_one, for_one), (for_two, for_two_pictures));
}

/// The transformer of `case` with blocks that come and go, and how many bytes it has read.
fn streaming(case: &TransformerCase, name: &str) -> (Transformer, Arc<AtomicUsize>) {
    let bytes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&bytes);
    let count = move |read| {
        counted.fetch_add(read, Ordering::Relaxed);
    };
    let weights = open(name, "transformer", DType::F32).reporting(count);
    let none = TransformerResidency { resident_blocks: 0, ..TransformerResidency::RESIDENT };
    (Transformer::load(&weights, &case.config, none).unwrap(), bytes)
}

#[test]
fn blocks_that_no_branch_needs_are_not_read() {
    let name = "qwen-image-edit";
    let case = TransformerCase::load(name, DType::F32);
    let (transformer, bytes) = streaming(&case, name);
    let latents = case.golden.tensor("hidden_states").narrow(0, 0, 1).unwrap();
    let text = case.golden.tensor("encoder_hidden_states").narrow(0, 0, 1).unwrap();
    let positions = transformer.positions(&case.grids, text.dim(1).unwrap()).unwrap();
    let prompt = PromptTokens { embeds: &text, positions: &positions };
    let modulations = transformer.modulations(&[0.7]).unwrap();
    let read_by_each_pass = |thresholds: [f64; 2]| -> Vec<usize> {
        let cache = |number| StepCache::new(CacheThreshold::new(number).unwrap());
        let mut caches = thresholds.map(cache);
        let mut pass = || {
            let before = bytes.load(Ordering::Relaxed);
            let inputs = inputs_of(&latents, &[prompt; 2]);
            let inputs = PassInputs { caches: &mut caches, ..inputs };
            transformer.forward_each(vec![inputs], modulations.at(0)).unwrap();
            bytes.load(Ordering::Relaxed) - before
        };
        (0..7).map(|_| pass()).collect()
    };

    let both = read_by_each_pass([1.0, 1.0]);
    let one = read_by_each_pass([1.0, 0.0]);

    let (all, first) = (both[0], both[4]);
    // Blocks are alike.
    assert_eq!(first * case.config.num_layers, all);
    assert_eq!(both, [all, all, all, all, first, first, all]);
    assert_eq!(one, [all; 7]);
}

#[test]
fn the_flow_of_some_tokens_is_that_of_all_where_they_are() {
    for name in ["qwen-image-edit", "qwen-image-edit-2511"] {
        let TransformerCase { golden, transformer, grids, .. } =
            TransformerCase::load(name, DType::F32);
        let latents = golden.tensor("hidden_states").narrow(0, 0, 1).unwrap();
        let text = golden.tensor("encoder_hidden_states").narrow(0, 0, 1).unwrap();
        let positions = transformer.positions(&grids, text.dim(1).unwrap()).unwrap();
        let prompt = PromptTokens { embeds: &text, positions: &positions };
        let modulations = transformer.modulations(&[0.7]).unwrap();
        let read = grids[0].len();
        assert!(read < latents.dim(1).unwrap(), "{name} has no reference picture");

        let inputs = PassInputs { read, ..inputs_of(&latents, &[prompt]) };
        let some = transformer.forward_each(vec![inputs], modulations.at(0)).unwrap().remove(0);

        let all = transformer.forward(&latents, prompt, modulations.at(0)).unwrap();
        let all = all.narrow(1, 0, read).unwrap();
        crate::support::golden::assert_close(name, &some, &all, 1e-6);
    }
}

#[test]
fn the_transformer_in_bfloat16_stays_as_near_to_float32_as_the_reference_does() {
    let exact = TransformerCase::load("qwen-image-edit", DType::F32);
    let case = TransformerCase::load("qwen-image-edit", DType::BF16);
    let tokens = case.golden.tensor("encoder_hidden_states").dim(1).unwrap();
    let root_mean_square = |a: &Tensor, b: &Tensor| {
        let difference = (a.to_dtype(DType::F32).unwrap() - b).unwrap();
        difference.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap()
    };

    let ours = case.run(0, tokens, DType::BF16);

    let float32 = exact.run(0, tokens, DType::F32);
    let theirs = case.expected("out_nomask_bf16", 0);
    let our_error = root_mean_square(&ours, &float32);
    let their_error = root_mean_square(&theirs, &float32);
    println!("bf16 against f32: ours {our_error}, theirs {their_error}");
    // Rounding differs with the order of sums: it may not be systematically larger.
    assert!(our_error < 1.5 * their_error, "{our_error} against {their_error}");
}

#[test]
fn rotary_positions_are_those_of_the_reference() {
    for name in TRANSFORMERS {
        let case = TransformerCase::load(name, DType::F32);
        let text_tokens = case.golden.tensor("rope_txt").dim(0).unwrap();
        let (order, axes) = (case.transformer.frame_order(), case.config.axes_dims_rope);

        let (image, text) = transformer_positions(&case.grids, order, text_tokens, axes);

        for (name, ours) in [("rope_img", image), ("rope_txt", text)] {
            let shape = (ours.cos.len() / ours.width, ours.width);
            let cos = Tensor::from_vec(ours.cos, shape, &Device::Cpu).unwrap();
            let sin = Tensor::from_vec(ours.sin, shape, &Device::Cpu).unwrap();
            case.golden.assert_close(name, &Tensor::stack(&[cos, sin], 2).unwrap(), 1e-5);
        }
    }
}

#[test]
fn noise_is_what_torch_draws_from_the_same_seed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/noise.json");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let mut generator = TorchGenerator::new(case["seed"].as_u64().unwrap());
        let draws =
            case["counts"].as_array().unwrap().iter().zip(case["draws"].as_array().unwrap());
        for (count, theirs) in draws {
            let theirs: Vec<f64> =
                theirs.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
            let mut ours = generator.normal(number(count));
            if ours.len() > theirs.len() {
                ours.drain(8..ours.len() - 24);
            }
            for (ours, theirs) in ours.iter().zip(&theirs) {
                // An ulp or two of ln, cos and sin, which torch vectorises.
                let difference = (f64::from(*ours) - theirs).abs();
                assert!(difference <= 5e-7, "{ours} for {theirs} at seed {}", case["seed"]);
            }
        }
    }
}
