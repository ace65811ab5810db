//! What a request asks for, besides its pictures: one definition for forms and
//! JSON alike.
//!
//! Whatever changes the picture is honoured or refused. What upstream clients
//! send as a matter of course, and a local model has no use for, is checked,
//! accepted and reported back as a warning, as are fields that nobody knows.

use super::endpoint::Endpoint;
use super::error::ApiError;
use super::fields::{Fields, quote};
use super::state::ModelNames;
use crate::domain::{
    GuidanceScale, ImageCount, ImageRequest, ImageSize, OutputSize, Prompt, Seed, Steps, Strength,
    Task, ValidationError,
};
use crate::imaging::codec::OutputFormat;
use crate::model::{GuidanceParameter, ModelInfo};
use crate::service::ServiceError;

/// Unknown fields that a reply names; more are counted.
const NAMED_UNKNOWN_FIELDS: usize = 20;

/// How far a variation goes when the request does not say.
const DEFAULT_STRENGTH: f64 = 0.6;

/// The checked parameters of a request.
#[derive(Debug)]
pub(super) struct Parameters {
    prompt: Prompt,
    negative_prompt: Option<Prompt>,
    count: ImageCount,
    size: OutputSize,
    steps: Steps,
    guidance: GuidanceScale,
    strength: Strength,
    seed: Seed,
    pub(super) format: OutputFormat,
    /// What was accepted without effect, in sentences for the client.
    pub(super) warnings: Vec<String>,
}

impl Parameters {
    /// Takes all parameters out of `fields`.
    ///
    /// # Errors
    /// The first parameter that is missing, wrong or not offered, by name.
    pub(super) fn take(
        fields: &mut Fields,
        endpoint: Endpoint,
        model: &ModelInfo,
        names: &ModelNames,
    ) -> Result<Self, ApiError> {
        check_model(fields, names)?;
        refuse_not_offered(fields, endpoint)?;
        let mut warnings = Vec::new();
        take_without_effect(fields, &mut warnings)?;
        let guidance = take_guidance(fields, model, &mut warnings)?;
        let format = take_output_format(fields, &mut warnings)?;
        let defaults = &model.defaults;
        let negative_prompt = fields.text_or_empty("negative_prompt")?;
        let negative_prompt = negative_prompt.or_else(|| defaults.negative_prompt.clone());
        let steps = take_integer(fields, "num_inference_steps")?;
        let strength = fields.decimal("strength")?;
        let seed = fields.integer("seed", 0, u64::MAX.into())?;
        let seed = seed.and_then(|seed| u64::try_from(seed).ok());
        Ok(Self {
            prompt: take_prompt(fields, endpoint)?,
            negative_prompt: negative_prompt.map(Prompt::negative).transpose()?,
            count: ImageCount::new(take_integer(fields, "n")?.unwrap_or(1))?,
            size: take_size(fields, model)?,
            steps: match steps {
                Some(steps) => Steps::new(steps)?,
                None => defaults.num_inference_steps,
            },
            guidance: guidance.unwrap_or(defaults.guidance),
            strength: Strength::new(strength.unwrap_or(DEFAULT_STRENGTH))?,
            seed: Seed::new(seed.unwrap_or_else(|| rand::random::<u32>().into())),
            format,
            warnings,
        })
    }

    /// Reports the fields that nobody took.
    pub(super) fn report_unknown(&mut self, fields: &Fields) {
        let unknown = fields.left_over();
        let named = unknown.iter().take(NAMED_UNKNOWN_FIELDS);
        self.warnings.extend(
            named.map(|name| format!("'{}' is not known here and has no effect.", quote(name))),
        );
        if unknown.len() > NAMED_UNKNOWN_FIELDS {
            let more = unknown.len() - NAMED_UNKNOWN_FIELDS;
            self.warnings
                .push(format!("{more} more fields are not known here and have no effect."));
        }
    }

    /// The size that the client wants, if it named one.
    pub(super) fn exact_size(&self) -> Option<ImageSize> {
        match self.size {
            OutputSize::Exact(size) => Some(size),
            OutputSize::Reference | OutputSize::AsInput => None,
        }
    }

    /// How far a variation is to go.
    pub(super) fn strength(&self) -> Strength {
        self.strength
    }

    /// The request to do `task` with these parameters.
    pub(super) fn request(&self, task: Task) -> ImageRequest {
        ImageRequest {
            task,
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            count: self.count,
            size: self.size,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
        }
    }
}

/// Refuses a model that is not the loaded one under any of its names.
fn check_model(fields: &mut Fields, names: &ModelNames) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(asked) if !names.include(&asked) => Err(ApiError::UnknownModel(quote(&asked))),
        Some(_) | None => Ok(()),
    }
}

/// Refuses what would change the picture, and is not done here.
fn refuse_not_offered(fields: &mut Fields, endpoint: Endpoint) -> Result<(), ApiError> {
    let foreign: &[&'static str] = match endpoint {
        Endpoint::Generations => &["image", "image[]", "images", "mask", "strength"],
        Endpoint::Edits => &["strength"],
        Endpoint::Variations => &["images", "mask"],
    };
    for name in foreign.iter().chain(&["markup"]) {
        if !fields.take_all(&[name]).is_empty() {
            let message =
                format!("Unsupported parameter: '{name}' is not offered by this endpoint.");
            return Err(ValidationError::new(name, "unsupported_parameter", message).into());
        }
    }
    // No model takes a mask yet, and the request that they get has none.
    if !fields.take_all(&["mask"]).is_empty() {
        let error = ServiceError::NotOffered { what: "masks", field: Some("mask") };
        return Err(error.into());
    }
    let not_yet = |name, message: &str| {
        let message = format!("Invalid value for '{name}': {message}.");
        Err(ValidationError::new(name, "invalid_value", message).into())
    };
    if fields.choice("response_format", &["b64_json", "url"])? == Some("url") {
        return not_yet("response_format", "'url' is not offered yet; use 'b64_json'");
    }
    if fields.choice("background", &["auto", "opaque", "transparent"])? == Some("transparent") {
        return not_yet("background", "'transparent' is not offered; pictures are opaque");
    }
    if fields.boolean("stream")? == Some(true) {
        return not_yet("stream", "streaming is not offered yet");
    }
    Ok(())
}

/// Checks what has no effect here, and says so where the client asked for
/// something else than what it gets.
fn take_without_effect(
    fields: &mut Fields,
    warnings: &mut Vec<String>,
) -> Result<(), ValidationError> {
    const QUALITIES: &[&str] = &["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"];
    let choices: [(&'static str, &[&'static str]); 5] = [
        ("quality", QUALITIES),
        ("input_fidelity", &["high", "low"]),
        ("moderation", &["auto", "low"]),
        ("style", &["vivid", "natural"]),
        ("complexity", &["low", "medium", "high"]),
    ];
    let mut warn = |name: &str| warnings.push(format!("'{name}' has no effect on this server."));
    for (name, allowed) in choices {
        if fields.choice(name, allowed)?.is_some_and(|value| value != "auto") {
            warn(name);
        }
    }
    for name in ["user", "safety_identifier"] {
        if fields.text(name)?.is_some() {
            warn(name);
        }
    }
    if fields.integer("partial_images", 0, 3)?.unwrap_or(0) > 0 {
        warn("partial_images");
    }
    Ok(())
}

/// Takes the strength of guidance by the name that the loaded model has for it.
///
/// The other name is refused, but for 1, which means no guidance and is what
/// clients send that fill in every parameter.
fn take_guidance(
    fields: &mut Fields,
    model: &ModelInfo,
    warnings: &mut Vec<String>,
) -> Result<Option<GuidanceScale>, ValidationError> {
    let (name, other, what_other_is) = match model.guidance_parameter {
        GuidanceParameter::TrueCfgScale => (
            "true_cfg_scale",
            "guidance_scale",
            "steers a guidance embedding, and this model has none",
        ),
        GuidanceParameter::GuidanceScale => {
            ("guidance_scale", "true_cfg_scale", "is not what this model's guidance is called")
        }
    };
    if let Some(scale) = fields.decimal(other)? {
        if (scale - 1.0).abs() >= f64::EPSILON {
            let message =
                format!("Unsupported parameter: '{other}' {what_other_is}. Use '{name}'.");
            return Err(ValidationError::new(other, "unsupported_parameter", message));
        }
        warnings.push(format!("'{other}' of 1 has no effect."));
    }
    let scale = fields.decimal(name)?.map(GuidanceScale::new).transpose();
    scale.map_err(|error| error.about(name))
}

fn take_output_format(
    fields: &mut Fields,
    warnings: &mut Vec<String>,
) -> Result<OutputFormat, ValidationError> {
    let name = fields.choice("output_format", &["png", "jpeg", "webp"])?;
    let compression = fields.integer("output_compression", 0, 100)?;
    let quality = compression.and_then(|quality| u8::try_from(quality).ok());
    let quality = quality.unwrap_or(100);
    let format = match name {
        Some("jpeg") => return Ok(OutputFormat::Jpeg { quality }),
        Some("webp") => OutputFormat::Webp,
        Some(_) | None => OutputFormat::Png,
    };
    if quality < 100 {
        warnings.push(format!(
            "'output_compression' acts on jpeg only; {} is written without loss.",
            format.name()
        ));
    }
    Ok(format)
}

fn take_prompt(fields: &mut Fields, endpoint: Endpoint) -> Result<Prompt, ValidationError> {
    match (fields.text_or_empty("prompt")?, endpoint) {
        (Some(text), Endpoint::Edits | Endpoint::Generations) => Prompt::new(text),
        // Upstream's variations have no prompt; ours may have one.
        (text, Endpoint::Variations) => match text.filter(|text| !text.is_empty()) {
            Some(text) => Prompt::new(text),
            // The constructor that allows the empty text.
            None => Prompt::negative(""),
        },
        (None, Endpoint::Edits | Endpoint::Generations) => Err(ValidationError::new(
            "prompt",
            "missing_required_parameter",
            "Missing required parameter: 'prompt'.",
        )),
    }
}

fn take_size(fields: &mut Fields, model: &ModelInfo) -> Result<OutputSize, ValidationError> {
    let size = match fields.text("size")?.as_deref() {
        None | Some("auto" | "reference") => return Ok(OutputSize::Reference),
        Some(text) => ImageSize::parse(text)?,
    };
    if model.accepts(size) {
        return Ok(OutputSize::Exact(size));
    }
    let message = format!(
        "Invalid 'size': {size} is not one that this model makes. Sides are at least {} pixels, \
         and width times height is at most {}.",
        model.size_multiple, model.max_output_area
    );
    Err(ValidationError::new("size", "invalid_value", message))
}

/// Takes an integer whose bounds its domain type checks.
fn take_integer(fields: &mut Fields, name: &'static str) -> Result<Option<i64>, ValidationError> {
    let number = fields.integer(name, i64::MIN.into(), i64::MAX.into())?;
    Ok(number.and_then(|number| i64::try_from(number).ok()))
}
