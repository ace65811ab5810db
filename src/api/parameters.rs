//! What a request asks for, besides its pictures: one definition for forms and
//! JSON alike.
//!
//! Whatever changes the picture is honoured or refused. What upstream clients
//! send as a matter of course, and a local model has no use for, is checked,
//! accepted and reported back as a warning, as are fields that nobody knows.

use super::error::ApiError;
use super::fields::{Fields, quote};
use super::state::ModelNames;
use crate::domain::{
    GuidanceScale, ImageCount, ImageRequest, ImageSize, OutputSize, Prompt, Seed, Steps, Strength,
    Task, ValidationError,
};
use crate::imaging::codec::OutputFormat;
use crate::model::ModelInfo;
use crate::service::{ServiceError, TaskKind};

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
    true_cfg_scale: GuidanceScale,
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
        kind: TaskKind,
        model: &ModelInfo,
        names: &ModelNames,
    ) -> Result<Self, ApiError> {
        check_model(fields, names)?;
        refuse_not_offered(fields, kind)?;
        let mut warnings = Vec::new();
        take_without_effect(fields, &mut warnings)?;
        let guidance_warning = take_guidance_scale(fields, model)?;
        warnings.extend(guidance_warning.map(str::to_owned));
        let format = take_output_format(fields, &mut warnings)?;
        let defaults = &model.defaults;
        let negative_prompt = fields.text_or_empty("negative_prompt")?;
        let negative_prompt = negative_prompt.or_else(|| defaults.negative_prompt.clone());
        let steps = take_integer(fields, "num_inference_steps")?;
        let true_cfg_scale = fields.decimal("true_cfg_scale")?;
        let strength = fields.decimal("strength")?;
        let seed = fields.integer("seed", 0, u64::MAX.into())?;
        let seed = seed.and_then(|seed| u64::try_from(seed).ok());
        Ok(Self {
            prompt: take_prompt(fields, kind)?,
            negative_prompt: negative_prompt.map(Prompt::negative).transpose()?,
            count: ImageCount::new(take_integer(fields, "n")?.unwrap_or(1))?,
            size: take_size(fields, model)?,
            steps: match steps {
                Some(steps) => Steps::new(steps)?,
                None => defaults.num_inference_steps,
            },
            true_cfg_scale: match true_cfg_scale {
                Some(scale) => GuidanceScale::new(scale)?,
                None => defaults.true_cfg_scale,
            },
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
            OutputSize::Reference => None,
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
            true_cfg_scale: self.true_cfg_scale,
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
fn refuse_not_offered(fields: &mut Fields, kind: TaskKind) -> Result<(), ApiError> {
    let foreign: &[&'static str] = match kind {
        TaskKind::Generate => &["image", "image[]", "images", "mask", "strength"],
        TaskKind::Edit => &["strength"],
        TaskKind::Vary => &["images", "mask"],
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

/// Takes `guidance_scale`, which would steer a guidance embedding. 1 stands for
/// no such guidance, and is what clients send that fill in every parameter.
fn take_guidance_scale(
    fields: &mut Fields,
    model: &ModelInfo,
) -> Result<Option<&'static str>, ApiError> {
    let Some(scale) = fields.decimal("guidance_scale")? else {
        return Ok(None);
    };
    if (scale - 1.0).abs() < f64::EPSILON {
        return Ok(Some("'guidance_scale' of 1 has no effect."));
    }
    if model.has_guidance_embedding {
        let error = ServiceError::NotOffered {
            what: "a guidance scale per request",
            field: Some("guidance_scale"),
        };
        return Err(error.into());
    }
    let message = "Unsupported parameter: 'guidance_scale' steers a guidance embedding, and this \
                   model has none. Use 'true_cfg_scale'.";
    Err(ValidationError::new("guidance_scale", "unsupported_parameter", message).into())
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

fn take_prompt(fields: &mut Fields, kind: TaskKind) -> Result<Prompt, ValidationError> {
    match (fields.text_or_empty("prompt")?, kind) {
        (Some(text), TaskKind::Edit | TaskKind::Generate) => Prompt::new(text),
        // Upstream's variations have no prompt; ours may have one.
        (text, TaskKind::Vary) => match text.filter(|text| !text.is_empty()) {
            Some(text) => Prompt::new(text),
            // The constructor that allows the empty text.
            None => Prompt::negative(""),
        },
        (None, TaskKind::Edit | TaskKind::Generate) => Err(ValidationError::new(
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
