//! What may be typed after `bench`.

use std::path::PathBuf;

use clap::Args;

use super::parse_size;
use crate::bench;
use crate::domain::{GuidanceScale, ImageSize, Steps};
use crate::model::benchmark::{BenchmarkError, BenchmarkPlan, LayerCounts, Part};
use crate::model::{DeviceChoice, DtypeChoice, MemoryChoice, ModelConfig};
use crate::nn::fusion::Fusion;
use crate::nn::{Family, Sizes};

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// qwen-image, qwen-image-edit, qwen-image-edit-2511, an embedded model's name or a folder
    #[arg(long, value_name = "CONFIGURATION", default_value = "qwen-image-edit")]
    pub model: String,

    /// Blocks of the transformer; without it: as many as the configuration says
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub layers: Option<u16>,

    /// Layers of the language model
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub text_layers: Option<u16>,

    /// Blocks of the vision tower
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub vision_layers: Option<u16>,

    /// Width and height of the picture made, and of each reference picture
    #[arg(long, value_name = "WxH", default_value = "1024x1024", value_parser = parse_size)]
    pub size: ImageSize,

    /// Reference pictures; without it: one for models that edit, else none
    #[arg(long, value_name = "COUNT")]
    pub references: Option<usize>,

    /// Denoising steps
    #[arg(long, value_name = "COUNT", default_value = "5", value_parser = parse_steps)]
    pub steps: Steps,

    /// Strength of true guidance; above 1 every step takes two passes
    #[arg(long, value_name = "SCALE", default_value = "4", value_parser = parse_guidance)]
    pub guidance: GuidanceScale,

    /// Tokens of the words of both prompts, the template's among them; without it an
    /// instruction of usual length, and as a negative prompt a space
    #[arg(long, value_name = "COUNT")]
    pub words: Option<usize>,

    /// Parts of a picture to measure: text-encoder, vae-encoder, transformer, vae-decoder;
    /// weights of the others are not made
    #[arg(long, value_name = "PARTS", value_delimiter = ',', default_values_t = Part::ALL)]
    pub stages: Vec<Part>,

    /// Pictures to make; the first pays for what is set up once
    #[arg(long, value_name = "COUNT", default_value = "2", value_parser = clap::value_parser!(u16).range(1..))]
    pub repeats: u16,

    /// Where to compute: auto, cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Dtype: auto, float32, bfloat16, float16, fp8, fp8-weights, q8_0
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    pub dtype: DtypeChoice,

    /// Threads that compute on a CPU: auto, or a number [env: DIFFUSER_THREADS]
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<String>,

    /// With fp8: leave the layers that lose most by it in 16 bits
    #[arg(long)]
    pub spare_sensitive: bool,

    /// With fp8 on an NVIDIA GPU: sum in its multiplying units, with fewer digits
    #[arg(long)]
    pub fast_sums: bool,

    /// Which weights stay on the device: auto, resident, offload, stream
    #[arg(long, value_name = "MEMORY", default_value = "resident")]
    pub memory: MemoryChoice,

    /// Bytes of results that are kept from one picture to the next
    #[arg(long, value_name = "BYTES", default_value = "0")]
    pub cache_bytes: usize,

    /// Measure nothing: count operations and bytes, and the least time they take
    #[arg(long)]
    pub estimate: bool,

    /// TFLOP/s of the device to estimate for; an H100 or H200 has 989 in bfloat16
    #[arg(long, value_name = "TFLOPS", default_value_t = 989.0, requires = "estimate")]
    pub peak_tflops: f64,

    /// Gigabytes a second of its memory; an H200 has 4800
    #[arg(long, value_name = "GB", default_value_t = 4800.0, requires = "estimate")]
    pub bandwidth: f64,

    /// Measure nothing: hold each fused step on the device against the CPU
    #[arg(long)]
    pub kernels: bool,

    /// One family of them: product, modulation, heads, activation, norm, guidance, attention, convolution, fp8
    #[arg(long, value_name = "FAMILY", requires = "kernels")]
    pub family: Option<Family>,

    /// Of which sizes: small, odd, or full (an edit of a megapixel with two references, in bfloat16)
    #[arg(long, value_name = "SIZES", default_value = "odd", requires = "kernels")]
    pub sizes: Sizes,

    /// Measure nothing: hold pictures of the embedded models on the device against the CPU's,
    /// in the format of --dtype or in all
    #[arg(long, conflicts_with = "kernels")]
    pub check: bool,

    /// Measure only what products like the transformer's, and a copy, reach on the device
    #[arg(long, conflicts_with_all = ["kernels", "check"])]
    pub ceiling: bool,

    /// Do not measure beside the pictures what a product reaches
    #[arg(long)]
    pub skip_ceiling: bool,

    /// File for a trace of one more picture, of two steps, as browsers show it (chrome://tracing)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "check", "ceiling", "estimate"])]
    pub trace: Option<PathBuf>,

    /// Steps to make from several operations instead of in one, such as gated-add,rms-norm
    #[arg(long, value_name = "FUSIONS", value_delimiter = ',')]
    pub without: Vec<Fusion>,

    /// File for the numbers as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl BenchArgs {
    /// What these arguments ask to measure.
    ///
    /// # Errors
    /// [`BenchmarkError::UnknownConfiguration`] if there is no such model.
    pub fn plan(&self) -> Result<BenchmarkPlan, BenchmarkError> {
        Ok(BenchmarkPlan {
            snapshot: bench::configuration(&self.model)?,
            layers: LayerCounts {
                transformer: self.layers.map(usize::from),
                text: self.text_layers.map(usize::from),
                vision: self.vision_layers.map(usize::from),
            },
            size: self.size,
            references: self.references,
            steps: self.steps,
            guidance: self.guidance,
            words: self.words,
            parts: self.stages.clone(),
            repeats: self.repeats.into(),
            ceiling: !self.skip_ceiling,
            trace: self.trace.is_some(),
            model: ModelConfig {
                device: self.device,
                dtype: self.dtype,
                memory: self.memory,
                cache_bytes: self.cache_bytes,
                fp8_all_layers: !self.spare_sensitive,
                ..ModelConfig::of(self.model.clone())
            },
        })
    }
}

fn parse_steps(text: &str) -> Result<Steps, String> {
    let steps = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    Steps::new(steps).map_err(|error| error.to_string())
}

fn parse_guidance(text: &str) -> Result<GuidanceScale, String> {
    let scale = text.parse().map_err(|_| "expected a number".to_owned())?;
    GuidanceScale::new(scale).map_err(|error| error.to_string())
}
