//! How pictures are brought before the text encoder.

use super::VisionConfig;
use crate::checkpoint::{CheckpointError, ConfigFile, Snapshot};

/// The most that [`ProcessorConfig::min_pixels`] may be: pictures are made as large.
const LARGEST_MIN_PIXELS: usize = 1 << 22;

/// The configuration of `Qwen2VLImageProcessor`: `processor/preprocessor_config.json`,
/// or `image_processor` in `processor/processor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorConfig {
    /// Mean of each colour over the training pictures, in 0…1.
    pub image_mean: [f32; 3],
    /// Standard deviation of each colour.
    pub image_std: [f32; 3],
    /// The fewest pixels that the encoder is shown.
    pub min_pixels: usize,
    /// The most.
    pub max_pixels: usize,
}

impl ProcessorConfig {
    /// Reads the file, which must agree with the tower about its patches. Where both
    /// files are there, the one that holds the whole processor counts.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot, vision: &VisionConfig) -> Result<Self, CheckpointError> {
        const WHOLE: &str = "processor/processor_config.json";
        if snapshot.has(WHOLE) {
            let mut file = snapshot.config(WHOLE)?;
            if file.has("image_processor") {
                let mut section = file.section("image_processor");
                let config = Self::read(&mut section, vision);
                file.close(section);
                // What video is brought to; names.
                file.inert(&["auto_map", "chat_template", "processor_class", "video_processor"]);
                file.finish()?;
                return Ok(config);
            }
        }
        let mut file = snapshot.config("processor/preprocessor_config.json")?;
        let config = Self::read(&mut file, vision);
        file.finish()?;
        Ok(config)
    }

    fn read(file: &mut ConfigFile, vision: &VisionConfig) -> Self {
        Self::pin(file, vision);
        let mut size = file.section("size");
        let shortest: Option<usize> = size.optional("shortest_edge");
        let longest: Option<usize> = size.optional("longest_edge");
        let size_min: Option<usize> = size.optional("min_pixels");
        let size_max: Option<usize> = size.optional("max_pixels");
        size.unsupported(&["height", "width", "max_height", "max_width"]);
        file.close(size);
        let config = Self {
            image_mean: file.required("image_mean"),
            image_std: file.required("image_std"),
            // The defaults are the class's own.
            min_pixels: file.optional("min_pixels").or(size_min).or(shortest).unwrap_or(56 * 56),
            max_pixels: file
                .optional("max_pixels")
                .or(size_max)
                .or(longest)
                .unwrap_or(28 * 28 * 1280),
        };
        config.check(file);
        config
    }

    fn check(&self, file: &mut ConfigFile) {
        let (least, most) = (self.min_pixels, self.max_pixels);
        if least > most {
            file.fault("min_pixels is larger than max_pixels");
        }
        if most == 0 {
            file.fault("max_pixels is 0");
        }
        if least > LARGEST_MIN_PIXELS {
            file.fault(format!("min_pixels = {least} is more than {LARGEST_MIN_PIXELS}"));
        }
        if !self.image_mean.iter().all(|mean| (-1e3..=1e3).contains(mean)) {
            file.fault("image_mean has a value that is not between −1000 and 1000");
        }
        if !self.image_std.iter().all(|deviation| (1e-6..=1e3).contains(deviation)) {
            file.fault("image_std has a value that is not between 10⁻⁶ and 1000");
        }
    }

    fn pin(file: &mut ConfigFile, vision: &VisionConfig) {
        for step in ["do_convert_rgb", "do_normalize", "do_rescale", "do_resize"] {
            file.only(step, true);
        }
        file.only("resample", 3); // PIL's number for bicubic
        let rescale: f64 = file.or("rescale_factor", 1.0 / 255.0);
        if (rescale * 255.0 - 1.0).abs() > 1e-6 {
            file.fault(format!("rescale_factor = {rescale} is not supported, only 1/255 is"));
        }
        file.only("patch_size", vision.patch_size);
        file.only("merge_size", vision.spatial_merge_size);
        file.only("temporal_patch_size", vision.temporal_patch_size);
        file.one_of(
            "image_processor_type",
            &[
                "Qwen2VLImageProcessor",
                "Qwen2VLImageProcessorFast",
                "Qwen2_5_VLImageProcessor",
                "Qwen2_5_VLImageProcessorFast",
            ],
        );
        // The class takes these of its base class and does not look at them.
        file.inert(&[
            "crop_size",
            "data_format",
            "default_to_square",
            "device",
            "disable_grouping",
            "do_center_crop",
            "do_pad",
            "image_seq_length",
            "input_data_format",
            "pad_size",
            "processor_class",
            "return_tensors",
        ]);
    }
}
