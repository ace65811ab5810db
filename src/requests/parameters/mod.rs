//! What a request asks for, besides its pictures: one definition for forms and
//! JSON alike.
//!
//! Whatever changes the picture is honoured or refused. What upstream clients
//! send as a matter of course, and a local model has no use for, is checked,
//! accepted and reported back as a warning ([`inert`]), as are fields that nobody
//! knows.

mod inert;
mod output;
mod tuning;

use serde_json::{Map, Value};

use super::context::RequestSettings;
use super::endpoint::Endpoint;
use super::error::RequestError;
use super::fields::{Fields, quote};
use super::quality::{Preset, Quality, QualityTable};
use super::recipe::Recipe;
use super::route::Route;
use super::table::{self, Integer, Row};
pub use output::DefaultResponseFormat;
pub(crate) use output::{Accepted, Delivery, Output};
use tuning::Tuning;

use crate::domain::{
    FaultKind, GuidanceScale, ImageCount, ImageRequest, ImageSize, LayerCount, Prompt, Seed, Steps,
    Strength, Task, ValidationError,
};
use crate::model::{EditKind, GuidanceParameter, ModelCard};
use crate::service::{Framing, SizeChoice};

/// Unknown fields that a reply names; more are counted.
const NAMED_UNKNOWN_FIELDS: usize = 20;

/// How far a variation goes when the request does not say: as far as in the
/// original system.
const VARIATION_STRENGTH: f64 = 0.75;

/// Into how many layers a picture is taken apart when the request does not say.
const DEFAULT_LAYERS: i64 = 4;

/// The checked parameters of a request.
#[derive(Debug)]
pub(super) struct Parameters {
    prompt: Prompt,
    negative_prompt: Option<Prompt>,
    count: ImageCount,
    size: SizeChoice,
    pub(super) quality: Quality,
    steps: Steps,
    guidance: GuidanceScale,
    strength: Option<Strength>,
    layers: Option<LayerCount>,
    pub(super) masking: Masking,
    seed: Seed,
    pub(super) tuning: Tuning,
    pub(super) output: Output,
    /// What was accepted without effect, in sentences for the client.
    pub(super) warnings: Vec<String>,
}

/// What comes with a mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masking {
    preserve_unmasked: Option<bool>,
    crop_padding: Option<usize>,
}

impl Parameters {
    /// Takes all parameters out of `fields`, but for the pictures and the mask.
    ///
    /// # Errors
    /// The first parameter that is missing, wrong or not offered, by name.
    pub(super) fn take(
        fields: &mut Fields,
        endpoint: Endpoint,
        route: Route,
        (settings, asked): (RequestSettings, (Accepted, bool)),
    ) -> Result<Self, RequestError> {
        let Route { model: served, name, mut warnings } = route;
        let model = served.images.card();
        refuse_foreign(fields, endpoint, &mut warnings)?;
        inert::take(fields, &mut warnings)?;
        let unless_told = settings.response_format.for_model(name.as_deref());
        let output = Output::take(fields, model, (asked, unless_told), &mut warnings)?;
        let (quality, preset) = take_quality(fields, &served.qualities, &mut warnings)?;
        let guidance = take_guidance(fields, model, &mut warnings)?;
        let negative_prompt = fields.text_or_empty(table::NEGATIVE_PROMPT.name)?;
        let negative_prompt = negative_prompt.or_else(|| model.defaults.negative_prompt.clone());
        let steps = take_integer(fields, &table::STEPS)?.map(Steps::new).transpose()?;
        let strength = fields.decimal(&table::STRENGTH)?.map(Strength::new).transpose()?;
        if strength.is_some_and(|strength| strength.get() <= 0.0) {
            let message = "Invalid 'strength': 0 leaves no step to do; give a larger number.";
            return Err(ValidationError::new("strength", FaultKind::Invalid, message).into());
        }
        let count = ImageCount::new(take_integer(fields, &table::N)?.unwrap_or(1))?;
        output.check_count("n", count.get())?;
        if output.delivery.is_streamed() && count.get() > 1 {
            let message = "Streaming is only supported with n=1.";
            return Err(ValidationError::new("n", FaultKind::Invalid, message).into());
        }
        Ok(Self {
            prompt: take_prompt(fields, endpoint)?,
            negative_prompt: negative_prompt.map(Prompt::negative).transpose()?,
            count,
            size: take_size(fields)?,
            quality,
            steps: steps.unwrap_or(preset.steps),
            guidance: guidance.unwrap_or(preset.guidance),
            strength,
            layers: take_layers(fields, endpoint, model)?,
            masking: Masking::take(fields)?,
            seed: take_seed(fields)?,
            tuning: Tuning::take(fields, model, &preset)?,
            output,
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

    /// Says what has no effect without a mask.
    pub(super) fn note_missing_mask(&mut self) {
        self.masking.without_mask(&mut self.warnings);
    }

    /// What is needed to make the pictures of `task` again.
    pub(super) fn recipe(
        &self,
        endpoint: Endpoint,
        task: &Task,
        (model, settings): (&ModelCard, RequestSettings),
    ) -> Recipe {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("num_inference_steps", self.steps.get().into());
        put(model.guidance_parameter.name(), self.guidance.get().into());
        put("size", self.size_text().into());
        self.tuning.put_into(&mut fields);
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        match task {
            Task::Generate | Task::Edit { .. } => {}
            Task::ImageToImage { strength, .. } => {
                put("strength", strength.get().into());
            }
            Task::Inpaint { strength, crop_padding, .. } => {
                put("strength", strength.get().into());
                put("preserve_unmasked", self.masking.preserve_unmasked().into());
                if let Some(padding) = crop_padding {
                    put("padding_mask_crop", (*padding).into());
                }
            }
            Task::Decompose { layers, .. } => {
                put("layers", layers.get().into());
            }
        }
        if settings.write_prompts {
            put("prompt", self.prompt.as_str().into());
            let negative = self.negative_prompt.as_ref();
            put("negative_prompt", negative.map_or(Value::Null, |text| text.as_str().into()));
        }
        Recipe::new(endpoint, &model.id, fields)
    }

    fn size_text(&self) -> String {
        match self.size {
            SizeChoice::Auto => "auto".to_owned(),
            SizeChoice::Reference => "reference".to_owned(),
            SizeChoice::Exact(size) => size.to_string(),
        }
    }

    /// How far to go from the input, or `default`.
    pub(super) fn strength_or(&self, default: Strength) -> Strength {
        self.strength.unwrap_or(default)
    }

    /// How far a variation goes from the input.
    pub(super) fn variation_strength(&self) -> Result<Strength, ValidationError> {
        self.strength.map_or_else(|| Strength::new(VARIATION_STRENGTH), Ok)
    }

    /// Refuses `strength` where nothing would come of it; all of it is what such an edit
    /// does anyway.
    pub(super) fn refuse_strength(&mut self) -> Result<(), ValidationError> {
        let Some(strength) = self.strength else { return Ok(()) };
        if strength.get() >= 1.0 {
            self.warnings.push("'strength' of 1 has no effect without a 'mask'.".to_owned());
            return Ok(());
        }
        let message = "Unsupported parameter: 'strength' acts on this endpoint with a 'mask' only: \
                       this model edits by instruction.";
        Err(ValidationError::new("strength", FaultKind::Unsupported, message))
    }

    /// Into how many layers a picture is to be taken apart.
    pub(super) fn layers(&self) -> Result<LayerCount, ValidationError> {
        self.layers.map_or_else(|| LayerCount::new(DEFAULT_LAYERS), Ok)
    }

    /// How the pictures are to come back.
    fn framing(&self) -> Framing {
        Framing { size: self.size, preserve_unmasked: self.masking.preserve_unmasked() }
    }

    /// The request to do `task` with these parameters.
    pub(super) fn request(&self, task: Task) -> ImageRequest<Framing> {
        self.tuning.of(ImageRequest {
            negative_prompt: self.negative_prompt.clone(),
            count: self.count,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            ..ImageRequest::of_size(task, self.prompt.clone(), self.framing())
        })
    }
}

impl Masking {
    fn take(fields: &mut Fields) -> Result<Self, ValidationError> {
        let padding = fields.integer(&table::PADDING_MASK_CROP)?;
        Ok(Self {
            preserve_unmasked: fields.boolean(&table::PRESERVE_UNMASKED)?,
            crop_padding: padding.and_then(|padding| usize::try_from(padding).ok()),
        })
    }

    /// Whether the pixels outside the mask come back as they were: yes, unless
    /// the request says otherwise.
    fn preserve_unmasked(self) -> bool {
        self.preserve_unmasked.unwrap_or(true)
    }

    pub(super) fn crop_padding(self) -> Option<usize> {
        self.crop_padding
    }

    /// Says what has no effect without a mask.
    pub(super) fn without_mask(self, warnings: &mut Vec<String>) {
        let given = [
            ("preserve_unmasked", self.preserve_unmasked == Some(false)),
            ("padding_mask_crop", self.crop_padding.is_some()),
        ];
        for (name, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
            warnings.push(format!("'{name}' has no effect without a 'mask'."));
        }
    }
}

/// Refuses what would change the picture, and belongs to another endpoint.
fn refuse_foreign(
    fields: &mut Fields,
    endpoint: Endpoint,
    warnings: &mut Vec<String>,
) -> Result<(), ValidationError> {
    const GENERATIONS: &[&str] =
        &["image", "image[]", "images", "url", "url[]", "mask", "layers", "markup"];
    const VARIATIONS: &[&str] = &["images", "mask", "layers", "markup"];
    let foreign = match endpoint {
        Endpoint::Generations => GENERATIONS,
        Endpoint::Edits => &["markup"],
        Endpoint::Variations => VARIATIONS,
    };
    for name in foreign {
        if !fields.take_all(&[name]).is_empty() {
            let message =
                format!("Unsupported parameter: '{name}' is not offered by this endpoint.");
            return Err(ValidationError::new(name, FaultKind::Unsupported, message));
        }
    }
    if endpoint == Endpoint::Generations {
        refuse_strength_of_nothing(fields, warnings)?;
    }
    Ok(())
}

/// A picture from words alone is wholly new: a `strength` of 1, and no other.
fn refuse_strength_of_nothing(
    fields: &mut Fields,
    warnings: &mut Vec<String>,
) -> Result<(), ValidationError> {
    match fields.decimal(&table::STRENGTH)? {
        None => Ok(()),
        Some(strength) if (strength - 1.0).abs() < f64::EPSILON => {
            warnings.push("'strength' of 1 has no effect without a picture.".to_owned());
            Ok(())
        }
        Some(_) => {
            let message = "Unsupported parameter: 'strength' is not offered by this endpoint.";
            Err(ValidationError::new("strength", FaultKind::Unsupported, message))
        }
    }
}

/// Takes `quality`, which stands for steps and guidance.
fn take_quality(
    fields: &mut Fields,
    table: &QualityTable,
    warnings: &mut Vec<String>,
) -> Result<(Quality, Preset), ValidationError> {
    let quality = match fields.choice(&table::QUALITY)? {
        Some("low") => Quality::Low,
        Some("medium") => Quality::Medium,
        Some(name @ ("xhigh" | "max")) => {
            warnings.push(format!("'quality' {name} is high here: there is none above."));
            Quality::High
        }
        // `standard` and `hd` are what clients of retired models send.
        Some(_) | None => Quality::High,
    };
    Ok((quality, table.preset(quality).clone()))
}

/// Takes the strength of guidance by the name that the loaded model has for it.
///
/// The other name is refused, but for 1, which means no guidance and is what
/// clients send that fill in every parameter.
fn take_guidance(
    fields: &mut Fields,
    model: &ModelCard,
    warnings: &mut Vec<String>,
) -> Result<Option<GuidanceScale>, ValidationError> {
    let (row, other, what_other_is) = match model.guidance_parameter {
        GuidanceParameter::TrueCfgScale => (
            &table::TRUE_CFG_SCALE,
            &table::GUIDANCE_SCALE,
            "steers a guidance embedding, and this model has none",
        ),
        GuidanceParameter::GuidanceScale => (
            &table::GUIDANCE_SCALE,
            &table::TRUE_CFG_SCALE,
            "is not what this model's guidance is called",
        ),
    };
    let (name, unused) = (row.name, other.name);
    if let Some(scale) = fields.decimal(other)? {
        if (scale - 1.0).abs() >= f64::EPSILON {
            let message =
                format!("Unsupported parameter: '{unused}' {what_other_is}. Use '{name}'.");
            return Err(ValidationError::new(unused, FaultKind::Unsupported, message));
        }
        warnings.push(format!("'{unused}' of 1 has no effect."));
    }
    let scale = fields.decimal(row)?.map(GuidanceScale::new).transpose();
    scale.map_err(|error| error.about(name))
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
            FaultKind::Missing,
            "Missing required parameter: 'prompt'.",
        )),
    }
}

/// Takes `size`, or `width` and `height`, which other servers have.
fn take_size(fields: &mut Fields) -> Result<SizeChoice, ValidationError> {
    let size = fields.text(table::SIZE.name)?;
    let [width, height] = [take_side(fields, "width")?, take_side(fields, "height")?];
    match (size.as_deref(), width, height) {
        (None, None, None) | (Some("auto"), ..) => Ok(SizeChoice::Auto),
        (Some("reference"), ..) => Ok(SizeChoice::Reference),
        (Some(text), ..) => ImageSize::parse(text).map(SizeChoice::Exact),
        (None, Some(width), Some(height)) => ImageSize::new(width, height).map(SizeChoice::Exact),
        (None, Some(_), None) => Err(missing_side("height", "width")),
        (None, None, Some(_)) => Err(missing_side("width", "height")),
    }
}

fn missing_side(missing: &'static str, given: &str) -> ValidationError {
    let message = format!("Missing required parameter: '{missing}' goes with '{given}'.");
    ValidationError::new(missing, FaultKind::Missing, message)
}

/// Takes `layers`, of models that make some.
fn take_layers(
    fields: &mut Fields,
    endpoint: Endpoint,
    model: &ModelCard,
) -> Result<Option<LayerCount>, ValidationError> {
    let layers = take_integer(fields, &table::LAYERS)?.map(LayerCount::new).transpose()?;
    let makes_layers = endpoint == Endpoint::Edits && model.edit_kind == EditKind::Layers;
    if layers.is_some() && !makes_layers {
        let message = "Unsupported parameter: 'layers' is for models that take pictures apart.";
        return Err(ValidationError::new("layers", FaultKind::Unsupported, message));
    }
    Ok(layers)
}

/// Takes `seed`; -1, which means a drawn one to several servers, does so here.
fn take_seed(fields: &mut Fields) -> Result<Seed, ValidationError> {
    let seed = fields.integer(&table::SEED)?;
    let seed = seed.and_then(|seed| u64::try_from(seed).ok());
    Ok(Seed::new(seed.unwrap_or_else(|| rand::random::<u32>().into())))
}

/// Takes an integer, for a type of the domain.
fn take_integer(fields: &mut Fields, row: &Row<Integer>) -> Result<Option<i64>, ValidationError> {
    let number = fields.integer(row)?;
    Ok(number.and_then(|number| i64::try_from(number).ok()))
}

/// Takes a side in pixels, whose bounds [`ImageSize`] checks.
fn take_side(fields: &mut Fields, name: &'static str) -> Result<Option<usize>, ValidationError> {
    let number = fields.integer_within(name, i64::MIN.into(), i64::MAX.into())?;
    Ok(number.map(|number| usize::try_from(number).unwrap_or(0)))
}
