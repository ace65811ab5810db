//! One recorded call of a reference pipeline: what went in, and what was seen on
//! the way.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::checkpoint::Snapshot;
use crate::domain::{
    GreyImage, GuidanceScale, ImageRequest, ImageSize, LayerCount, OutputSize, Picture, Prompt,
    RgbImage, Seed, Steps, Strength, Task,
};
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::qwen_image::pipeline::Pipeline;
use crate::model::qwen_image::variant::{self, Variant};
use crate::model::{DeviceChoice, DtypeChoice, ModelConfig};
use crate::nn::CfgRescale;

const VARIANTS: [Variant; 4] =
    [variant::TEXT_TO_IMAGE, variant::EDIT, variant::EDIT_PLUS, variant::LAYERED];

/// Pixels that the published pipelines scale to, by what the records call them.
const PUBLISHED_AREA: &str = "1048576";
const PUBLISHED_CONDITION_AREA: &str = "147456";
const PUBLISHED_LAYERED_AREA: &str = "409600";

pub(super) struct Case {
    pub(super) name: String,
    pub(super) doc: Value,
    pub(super) tensors: HashMap<String, Tensor>,
    folder: PathBuf,
    /// Which of the call's prompts, where there is a list of them.
    pub(super) sample: usize,
}

/// The fixtures of the repository, or those that `FIXTURES` names.
#[expect(clippy::disallowed_methods, reason = "a switch for people who run the tests")]
fn fixtures() -> PathBuf {
    std::env::var_os("FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures"),
        PathBuf::from,
    )
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::write(target, std::fs::read(path).unwrap()).unwrap();
        }
    }
}

impl Case {
    pub(super) fn read(name: &str) -> Self {
        let folder = fixtures();
        let file = folder.join(format!("golden/{name}"));
        let doc = std::fs::read_to_string(file.with_extension("json")).unwrap();
        let tensors = file.with_extension("safetensors");
        Self {
            name: name.to_owned(),
            doc: serde_json::from_str(&doc).unwrap(),
            tensors: candle_core::safetensors::load(tensors, &Device::Cpu).unwrap(),
            folder,
            sample: 0,
        }
    }

    /// The same with a checkpoint whose VAE has the tensors that `change` makes of its
    /// own. Its files lie in the folder that comes back, too.
    pub(super) fn with_vae(
        mut self,
        change: impl FnOnce(&mut HashMap<String, Tensor>),
    ) -> (Self, tempfile::TempDir) {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.folder.join(self.doc["checkpoint"].as_str().unwrap()), copy.path());
        let file = copy.path().join("vae/diffusion_pytorch_model.safetensors");
        let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, file).unwrap();
        self.doc["checkpoint"] = copy.path().display().to_string().into();
        (self, copy)
    }

    /// Every recorded call of the folder, sorted by name.
    pub(super) fn all() -> Vec<Self> {
        let mut names: Vec<String> = std::fs::read_dir(fixtures().join("golden"))
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let is_case = path.extension().is_some_and(|extension| extension == "json");
                is_case.then(|| path.file_stem().unwrap().to_string_lossy().into_owned())
            })
            .collect();
        names.sort();
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// The class of the recorded call.
    pub(super) fn class(&self) -> &str {
        self.doc["pipeline"].as_str().unwrap()
    }

    /// How many prompts the call has.
    pub(super) fn prompts(&self) -> usize {
        self.doc["call"]["prompt"].as_array().map_or(1, Vec::len)
    }

    /// The same for one of its prompts.
    pub(super) fn of_prompt(mut self, sample: usize) -> Self {
        self.sample = sample;
        self
    }

    fn number(&self, key: &str) -> Option<usize> {
        let number = self.doc["call"][key].as_u64();
        number.map(|number| usize::try_from(number).unwrap())
    }

    fn decimal(&self, key: &str) -> Option<f64> {
        self.doc["call"][key].as_f64()
    }

    fn text(&self, key: &str) -> Option<&str> {
        let value = &self.doc["call"][key];
        value.as_str().or_else(|| value.get(self.sample)?.as_str())
    }

    /// The checkpoint of the case, at its areas.
    pub(super) fn pipeline(&self, dtype: DtypeChoice) -> Pipeline {
        self.pipeline_with(|config| config.dtype = dtype)
    }

    /// The same with other settings changed.
    pub(super) fn pipeline_with(&self, change: impl FnOnce(&mut ModelConfig)) -> Pipeline {
        let folder = self.folder.join(self.doc["checkpoint"].as_str().unwrap());
        let snapshot = Snapshot::Directory(folder.clone());
        let class_name: String =
            snapshot.config("model_index.json").unwrap().required("_class_name");
        let variant =
            VARIANTS.into_iter().find(|variant| variant.class_name == class_name).unwrap();
        let area = |name: &str| {
            let area = self.doc["areas"][name].as_u64();
            area.map(|area| usize::try_from(area).unwrap())
        };
        let layered = class_name == variant::LAYERED.class_name;
        let mut config = ModelConfig {
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::Float32,
            image_area: area(if layered { PUBLISHED_LAYERED_AREA } else { PUBLISHED_AREA }),
            condition_area: area(PUBLISHED_CONDITION_AREA),
            ..ModelConfig::of(folder.display().to_string())
        };
        change(&mut config);
        let device = Device::Cpu;
        let dtype = crate::device::dtype(config.dtype, &device);
        let id = "golden";
        let weights = WeightSource::Stored;
        let context = LoadContext {
            snapshot: &snapshot,
            config: &config,
            id,
            device,
            dtype,
            weights,
            card_bytes: None,
        };
        let mut pipeline = crate::model::qwen_image::load_pipeline(&context, &variant).unwrap();
        if self.doc["call"]["cfg_normalize"] == true {
            pipeline.variant.cfg_rescale = CfgRescale::OfConditional;
        }
        pipeline
    }

    fn inputs(&self, kind: &str) -> Vec<image::DynamicImage> {
        let files = self.doc["inputs"][kind].as_array().unwrap();
        let path = |file: &Value| self.folder.join("golden").join(file.as_str().unwrap());
        files.iter().map(|file| image::open(path(file)).unwrap()).collect()
    }

    pub(super) fn images(&self) -> Vec<Picture> {
        self.inputs("image").iter().map(picture_of).collect()
    }

    fn mask(&self) -> GreyImage {
        let mask = self.inputs("mask_image")[0].to_luma8();
        let (width, height) = (mask.width() as usize, mask.height() as usize);
        GreyImage::new(width, height, mask.into_raw()).unwrap()
    }

    fn task(&self) -> Task {
        let image = || self.images().remove(0);
        let strength = || Strength::new(self.decimal("strength").unwrap()).unwrap();
        match self.class() {
            "QwenImagePipeline" => Task::Generate,
            "QwenImageImg2ImgPipeline" => {
                Task::ImageToImage { image: image(), strength: strength() }
            }
            "QwenImageInpaintPipeline" | "QwenImageEditInpaintPipeline" => Task::Inpaint {
                image: image(),
                mask: self.mask(),
                strength: strength(),
                crop_padding: self.number("padding_mask_crop"),
            },
            "QwenImageEditPipeline" | "QwenImageEditPlusPipeline" => {
                Task::Edit { images: self.images() }
            }
            "QwenImageLayeredPipeline" => {
                let layers = i64::try_from(self.number("layers").unwrap()).unwrap();
                Task::Decompose { image: image(), layers: LayerCount::new(layers).unwrap() }
            }
            other => panic!("{}: no task for {other}", self.name),
        }
    }

    pub(super) fn request(&self) -> ImageRequest {
        let size = match (self.number("width"), self.number("height")) {
            (Some(width), Some(height)) => {
                OutputSize::Exact(ImageSize::new(width, height).unwrap())
            }
            _ => OutputSize::Reference,
        };
        let steps = i64::try_from(self.number("num_inference_steps").unwrap()).unwrap();
        let scale = self.decimal("true_cfg_scale").unwrap();
        ImageRequest {
            negative_prompt: self.text("negative_prompt").map(|t| Prompt::negative(t).unwrap()),
            size,
            steps: Steps::new(steps).unwrap(),
            guidance: GuidanceScale::new(scale).unwrap(),
            seed: Seed::new(self.doc["generator_seed"].as_u64().unwrap()),
            ..ImageRequest::new(self.task(), Prompt::new(self.text("prompt").unwrap()).unwrap())
        }
    }

    /// What is recorded under `name`, of this case's prompt alone.
    fn recorded(&self, name: &str) -> Option<Tensor> {
        let tensor = self.tensors.get(name)?;
        if self.prompts() == 1 {
            return Some(tensor.clone());
        }
        let mut tensor = tensor.narrow(0, self.sample, 1).unwrap();
        if let Some(mask) = self.tensors.get(&format!("{name}_mask")) {
            let mask: Vec<i64> = mask.get(self.sample).unwrap().to_vec1().unwrap();
            let length = mask.iter().filter(|real| **real == 1).count();
            tensor = tensor.narrow(1, 0, length).unwrap();
        }
        Some(tensor)
    }

    /// Holds `ours` against tensor `name`; `name.everyN` holds every N-th row of
    /// the last dimension but one.
    pub(super) fn compare(&self, name: &str, ours: &Tensor, tolerance: f32) {
        let found = self.recorded(name).map(|theirs| (theirs, 1)).or_else(|| {
            [8, 16, 4]
                .into_iter()
                .find_map(|every| Some((self.recorded(&format!("{name}.every{every}"))?, every)))
        });
        let (theirs, every) = found.unwrap_or_else(|| panic!("{} has no {name}", self.name));
        let rows = ours.rank() - 2;
        let kept: Vec<u32> = (0..ours.dim(rows).unwrap() as u32).step_by(every).collect();
        let kept = Tensor::new(kept, &Device::Cpu).unwrap();
        let ours = flat(&ours.contiguous().unwrap().index_select(&kept, rows).unwrap());
        let theirs = flat(&theirs);
        assert_eq!(ours.len(), theirs.len(), "{} {name}: count", self.name);
        let largest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(ours.iter().all(|number| number.is_finite()), "{} {name}", self.name);
        println!("{} {name}: largest difference {largest:e}", self.name);
        assert!(largest <= tolerance, "{} {name}: {largest} > {tolerance}", self.name);
    }

    pub(super) fn compare_if_recorded(&self, name: &str, ours: &Tensor, tolerance: f32) {
        if self.tensors.contains_key(name) {
            self.compare(name, ours, tolerance);
        }
    }

    /// Holds finished pictures against `out.image`: one level at most, 0.01 on average.
    pub(super) fn compare_pictures(&self, ours: &[Picture]) {
        let ours: Vec<u8> = ours.iter().flat_map(bytes_of).collect();
        let theirs = if self.prompts() == 1 {
            self.tensors["out.image"].clone()
        } else {
            self.tensors["out.image"].get(self.sample).unwrap()
        };
        let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{}: size", self.name);
        let differences = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
        let largest = differences.clone().max().unwrap();
        let mean = differences.map(f64::from).sum::<f64>() / theirs.len() as f64;
        println!("{}: picture: largest difference {largest}, mean {mean:.5}", self.name);
        assert!(largest <= 1 && mean <= 0.01, "{}: off by {largest}, mean {mean}", self.name);
    }

    /// Every picture that the reference resized is among `ours`.
    pub(super) fn compare_resized(&self, ours: &[RgbImage]) {
        for (name, theirs) in &self.tensors {
            if name.starts_with("pre.resized") {
                let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
                let found = ours.iter().any(|image| image.pixels() == theirs);
                assert!(found, "{}: {name} is none of ours", self.name);
            }
        }
    }
}

fn picture_of(image: &image::DynamicImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let colour = RgbImage::new(width, height, image.to_rgb8().into_raw()).unwrap();
    if !image.color().has_alpha() {
        return colour.into();
    }
    let alpha = image.to_rgba8().into_raw().into_iter().skip(3).step_by(4).collect();
    Picture::with_alpha(colour, GreyImage::new(width, height, alpha).unwrap()).unwrap()
}

/// Row-major RGB, or RGBA where there is transparency.
fn bytes_of(picture: &Picture) -> Vec<u8> {
    let colours = picture.colour().pixels();
    match picture.alpha() {
        None => colours.to_vec(),
        Some(alpha) => colours
            .chunks_exact(3)
            .zip(alpha.pixels())
            .flat_map(|(rgb, alpha)| [rgb[0], rgb[1], rgb[2], *alpha])
            .collect(),
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
