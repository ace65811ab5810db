//! The parameters of requests, a row each: name, other servers' names, the bodies that have
//! it, what it may be, and a word of help. The reader ([`super::fields`]), the schemas of the
//! OpenAPI page ([`super::schema`]) and the aliases all come from here.

use serde_json::{Value, json};

use crate::domain::{
    CacheThreshold, GuidanceScale, ImageCount, LayerCount, Prompt, RequestLora, RequestLoras,
    ScheduleShift, Steps, Strength,
};

/// A request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    EditForm,
    EditJson,
    Generation,
    Variation,
    Replay,
}

use Body::{EditForm, EditJson, Generation, Replay, Variation};

/// Bodies that make pictures from scratch, by all their fields.
pub(super) const ALL: &[Body] = &[EditForm, EditJson, Generation, Variation, Replay];
const EDITS: &[Body] = &[EditForm, EditJson, Replay];
/// What is accepted for the sake of OpenAI's clients, and has no effect, is not described.
const UNDESCRIBED: &[Body] = &[];

/// A parameter.
#[derive(Debug)]
pub(crate) struct Row<K> {
    pub(crate) name: &'static str,
    /// Names that other servers and clients use for it.
    aliases: &'static [&'static str],
    bodies: &'static [Body],
    pub(crate) kind: K,
    help: &'static str,
}

/// An integer between two bounds.
#[derive(Debug)]
pub(crate) struct Integer {
    pub(crate) least: i128,
    pub(crate) most: i128,
    default: Option<i64>,
    example: Option<i64>,
}

/// A finite number between two bounds, which the types of the domain check.
#[derive(Debug)]
pub(crate) struct Decimal {
    least: f64,
    /// Whether `least` itself is refused.
    above_least: bool,
    most: f64,
}

/// One of some words.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) words: &'static [&'static str],
    default: Option<&'static str>,
}

/// One of some words, or yes or no, which means something else.
#[derive(Debug)]
pub(crate) struct ChoiceOrFlag(pub(crate) Choice);

/// Yes or no.
#[derive(Debug)]
pub(crate) struct Flag {
    default: bool,
}

/// LoRAs, each by its name and its strength.
#[derive(Debug)]
pub(crate) struct LoraList;

/// Any text.
#[derive(Debug)]
pub(crate) struct Text {
    most_characters: Option<usize>,
    /// A regular expression, and what is meant without the parameter.
    pattern: Option<(&'static str, &'static str)>,
}

impl Integer {
    const fn between(least: i128, most: i128) -> Self {
        Self { least, most, default: None, example: None }
    }

    const fn or(self, default: i64) -> Self {
        Self { default: Some(default), ..self }
    }
}

const PLAIN: Text = Text { most_characters: None, pattern: None };

const fn words(words: &'static [&'static str], default: &'static str) -> Choice {
    Choice { words, default: Some(default) }
}

/// Of an inert parameter, which is checked and has no default.
const fn inert(name: &'static str, words: &'static [&'static str]) -> Row<Choice> {
    let kind = Choice { words, default: None };
    Row { name, aliases: &[], bodies: UNDESCRIBED, kind, help: "" }
}

pub(crate) const MODEL: Row<Text> = Row {
    name: "model",
    aliases: &[],
    bodies: ALL,
    kind: PLAIN,
    help: "The loaded model's id or one of its aliases, such as `gpt-image-1`.",
};

pub(crate) const N: Row<Integer> = Row {
    name: "n",
    aliases: &["batch_size"],
    bodies: ALL,
    kind: Integer::between(ImageCount::MIN as i128, ImageCount::MAX as i128).or(1),
    help: "How many pictures.",
};

pub(crate) const SIZE: Row<Text> = Row {
    name: "size",
    aliases: &["image_size"],
    bodies: ALL,
    kind: Text {
        most_characters: None,
        pattern: Some(("^(auto|reference|[1-9][0-9]*x[1-9][0-9]*)$", "auto")),
    },
    help: "`WIDTHxHEIGHT` in pixels, `auto` (the input's own size, pixel over pixel; without an \
           input the model's), or `reference` (what the model's reference pipeline makes). A size \
           at which the model does not work (see `image_area_range` in `/v1/models/{id}`) is made \
           at its own area and scaled; `warnings` says so.",
};

pub(crate) const QUALITY: Row<Choice> = Row {
    name: "quality",
    aliases: &[],
    bodies: ALL,
    kind: words(&["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"], "auto"),
    help: "Stands for steps and guidance of the loaded model: see `/v1/models/{id}`. Explicit \
           parameters win.",
};

pub(crate) const NEGATIVE_PROMPT: Row<Text> = Row {
    name: "negative_prompt",
    aliases: &[],
    bodies: ALL,
    kind: Text { most_characters: Some(Prompt::MAX_CHARACTERS), pattern: None },
    help: "What to steer away from; the empty text is one, too. Not given: the server's, or what \
           the model makes of none.",
};

pub(crate) const STEPS: Row<Integer> = Row {
    name: "num_inference_steps",
    aliases: &["steps", "step"],
    bodies: ALL,
    kind: Integer::between(Steps::MIN as i128, Steps::MAX as i128),
    help: "Denoising steps. Also `steps`.",
};

const GUIDANCE: Decimal =
    Decimal { least: GuidanceScale::MIN, above_least: false, most: GuidanceScale::MAX };

pub(crate) const TRUE_CFG_SCALE: Row<Decimal> = Row {
    name: "true_cfg_scale",
    aliases: &["cfg_scale"],
    bodies: ALL,
    kind: GUIDANCE,
    help: "Strength of guidance, on models that know it by this name. Also `cfg_scale`.",
};

pub(crate) const GUIDANCE_SCALE: Row<Decimal> = Row {
    name: "guidance_scale",
    aliases: &[],
    bodies: ALL,
    kind: GUIDANCE,
    help: "Strength of guidance, on models that know it by this name; others take 1 only.",
};

pub(crate) const STRENGTH: Row<Decimal> = Row {
    name: "strength",
    aliases: &["denoising_strength"],
    bodies: &[EditForm, EditJson, Variation, Replay],
    kind: Decimal { least: Strength::MIN, above_least: true, most: Strength::MAX },
    help: "How far to go from the input, up to 1 (anew): for variations, with a mask, and for \
           edits by models that do not follow instructions.",
};

pub(crate) const SEED: Row<Integer> = Row {
    name: "seed",
    aliases: &[],
    bodies: ALL,
    kind: Integer { example: Some(42), ..Integer::between(-1, u64::MAX as i128) },
    help: "Same request, same seed, same picture; picture `i` has seed + `i`. Drawn if absent or \
           -1, and reported.",
};

pub(crate) const LORAS: Row<LoraList> = Row {
    name: "loras",
    aliases: &[],
    bodies: ALL,
    kind: LoraList,
    help: "LoRAs that change the model for this request: names of `/v1/loras`, each with a \
           strength. In a form, the list as JSON.",
};

pub(crate) const CACHE_THRESHOLD: Row<Decimal> = Row {
    name: "cache_threshold",
    aliases: &[],
    bodies: ALL,
    kind: Decimal { least: CacheThreshold::MIN, above_least: false, most: CacheThreshold::MAX },
    help: "Skips most of a step where its first block changes by less than this share since the \
           last whole one: faster, and not the same picture. 0.12 is usual; the reply's \
           `skipped_blocks` says what it saved. Not given: no step is skipped.",
};

pub(crate) const SCHEDULE_SHIFT: Row<Decimal> = Row {
    name: "schedule_shift",
    aliases: &["shift"],
    bodies: ALL,
    kind: Decimal { least: ScheduleShift::MIN, above_least: false, most: ScheduleShift::MAX },
    help: "Moves the noise levels of the schedule, whatever the picture's size; networks that \
           were distilled to few steps want one, often 3. Not given: the checkpoint's own.",
};

pub(crate) const PRESERVE_UNMASKED: Row<Flag> = Row {
    name: "preserve_unmasked",
    aliases: &[],
    bodies: EDITS,
    kind: Flag { default: true },
    help: "With a mask: whether the pixels outside it come back as they were.",
};

pub(crate) const PADDING_MASK_CROP: Row<Integer> = Row {
    name: "padding_mask_crop",
    aliases: &[],
    bodies: EDITS,
    kind: Integer::between(0, 4096),
    help: "With a mask: look only at its surroundings, this many pixels around it.",
};

pub(crate) const LAYERS: Row<Integer> = Row {
    name: "layers",
    aliases: &[],
    bodies: EDITS,
    kind: Integer::between(LayerCount::MIN as i128, LayerCount::MAX as i128),
    help: "On models that take pictures apart: into how many layers.",
};

pub(crate) const BACKGROUND: Row<ChoiceOrFlag> = Row {
    name: "background",
    aliases: &[],
    bodies: ALL,
    kind: ChoiceOrFlag(words(&["auto", "opaque", "transparent"], "auto")),
    help: "Of the picture: `transparent` on models that make layers only. Of the request: `true` \
           answers 202 with a job at once, whose pictures `/v1/jobs/{id}/result` has later.",
};

pub(crate) const OUTPUT_FORMAT: Row<Choice> = Row {
    name: "output_format",
    aliases: &[],
    bodies: ALL,
    kind: words(&["png", "jpeg", "webp"], "png"),
    help: "Format of the files.",
};

pub(crate) const OUTPUT_COMPRESSION: Row<Integer> = Row {
    name: "output_compression",
    aliases: &[],
    bodies: ALL,
    kind: Integer::between(0, 100).or(100),
    help: "Quality of jpeg and webp; at 100 webp is without loss.",
};

pub(crate) const RESPONSE_FORMAT: Row<Choice> = Row {
    name: "response_format",
    aliases: &[],
    bodies: ALL,
    kind: words(&["b64_json", "url"], "b64_json"),
    help: "Base64, or addresses that are good for a while. Unless the settings say otherwise, a \
           request that names `dall-e-2` or `dall-e-3` gets addresses.",
};

pub(crate) const STORE: Row<Flag> = Row {
    name: "store",
    aliases: &[],
    bodies: ALL,
    kind: Flag { default: false },
    help: "Keep the pictures for a while, and give their addresses (`url`) beside what the reply \
           has of them; of a file, in the header `x-diffuser-url`.",
};

pub(crate) const STREAM: Row<Flag> = Row {
    name: "stream",
    aliases: &[],
    bodies: ALL,
    kind: Flag { default: false },
    help: "Answer with server-sent events; with `n` of 1 only.",
};

pub(crate) const PARTIAL_IMAGES: Row<Integer> = Row {
    name: "partial_images",
    aliases: &[],
    bodies: ALL,
    kind: Integer::between(0, 3).or(0),
    help: "With `stream`, or for a job: how many unfinished pictures to show of each.",
};

pub(crate) const WEBHOOK_URL: Row<Text> = Row {
    name: "webhook_url",
    aliases: &[],
    bodies: ALL,
    kind: Text { most_characters: Some(2048), pattern: None },
    help: "With `background` being `true`, where the settings allow it \
           (`webhook.allow_requests`): the address that is told once the job has ended.",
};

/// What a local model has no use for.
pub(crate) const INERT_CHOICES: [Row<Choice>; 4] = [
    inert("input_fidelity", &["high", "low"]),
    inert("moderation", &["auto", "low"]),
    inert("style", &["vivid", "natural"]),
    inert("complexity", &["low", "medium", "high"]),
];

/// Likewise, any text.
pub(crate) const INERT_TEXTS: [&str; 2] = ["user", "safety_identifier"];

/// Other names of the fields for pictures.
const PICTURE_ALIASES: [(&str, &str); 2] = [("mask[]", "mask"), ("mask_image", "mask")];

/// The parameters that are described, in the order in which people read of them.
const TABLE: [&dyn Described; 24] = [
    &MODEL,
    &N,
    &SIZE,
    &QUALITY,
    &NEGATIVE_PROMPT,
    &STEPS,
    &TRUE_CFG_SCALE,
    &GUIDANCE_SCALE,
    &STRENGTH,
    &SEED,
    &LORAS,
    &CACHE_THRESHOLD,
    &SCHEDULE_SHIFT,
    &PRESERVE_UNMASKED,
    &PADDING_MASK_CROP,
    &LAYERS,
    &BACKGROUND,
    &OUTPUT_FORMAT,
    &OUTPUT_COMPRESSION,
    &RESPONSE_FORMAT,
    &STORE,
    &STREAM,
    &PARTIAL_IMAGES,
    &WEBHOOK_URL,
];

/// The parameters of `body`, each with its schema.
pub(super) fn schemas_of(body: Body) -> impl Iterator<Item = (&'static str, Value)> {
    let rows = TABLE.into_iter().filter(move |row| row.bodies().contains(&body));
    rows.map(|row| (row.name(), row.schema()))
}

/// Each other name, with the name that it stands for.
pub(super) fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of_rows = TABLE
        .into_iter()
        .flat_map(|row| row.aliases().iter().map(move |alias| (*alias, row.name())));
    of_rows.chain(PICTURE_ALIASES)
}

/// A row, whatever kind of value it has.
trait Described: Sync {
    fn name(&self) -> &'static str;
    fn aliases(&self) -> &'static [&'static str];
    fn bodies(&self) -> &'static [Body];
    fn schema(&self) -> Value;
}

impl<K: Kind + Sync> Described for Row<K> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    fn bodies(&self) -> &'static [Body] {
        self.bodies
    }

    fn schema(&self) -> Value {
        let mut schema = self.kind.schema();
        schema["description"] = self.help.into();
        schema
    }
}

/// What a parameter may be, as a JSON schema.
trait Kind {
    fn schema(&self) -> Value;
}

/// Puts what there is into a schema.
fn put<T: Into<Value>>(schema: &mut Value, name: &str, value: Option<T>) {
    if let Some(value) = value {
        schema[name] = value.into();
    }
}

impl Kind for Integer {
    fn schema(&self) -> Value {
        let bound = |bound: i128| match u64::try_from(bound) {
            Ok(bound) => Value::from(bound),
            Err(_) => i64::try_from(bound).unwrap_or(i64::MIN).into(),
        };
        let (minimum, maximum) = (bound(self.least), bound(self.most));
        let mut schema = json!({"type": "integer", "minimum": minimum, "maximum": maximum});
        put(&mut schema, "default", self.default);
        put(&mut schema, "example", self.example);
        schema
    }
}

impl Kind for Decimal {
    fn schema(&self) -> Value {
        let least = if self.above_least { "exclusiveMinimum" } else { "minimum" };
        let mut schema = json!({"type": "number", "maximum": whole(self.most)});
        schema[least] = whole(self.least);
        schema
    }
}

/// A bound without a point, if it is whole.
#[expect(clippy::cast_possible_truncation, reason = "bounds are small")]
fn whole(bound: f64) -> Value {
    if bound.fract() == 0.0 { (bound as i64).into() } else { bound.into() }
}

impl Kind for Choice {
    fn schema(&self) -> Value {
        let mut schema = json!({"type": "string", "enum": self.words});
        put(&mut schema, "default", self.default);
        schema
    }
}

impl Kind for ChoiceOrFlag {
    fn schema(&self) -> Value {
        let mut schema = self.0.schema();
        schema["type"] = json!(["string", "boolean"]);
        if let Some(words) = schema["enum"].as_array_mut() {
            words.extend([true, false].map(Value::Bool));
        }
        schema
    }
}

impl Kind for Flag {
    fn schema(&self) -> Value {
        json!({"type": "boolean", "default": self.default})
    }
}

impl Kind for LoraList {
    fn schema(&self) -> Value {
        let scale = RequestLora::MAX_SCALE;
        json!({
            "type": "array",
            "maxItems": RequestLoras::MAX,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "maxLength": RequestLora::MAX_NAME},
                    "scale": {
                        "type": "number",
                        "minimum": whole(-scale),
                        "maximum": whole(scale),
                        "default": 1,
                    },
                },
            },
        })
    }
}

impl Kind for Text {
    fn schema(&self) -> Value {
        let mut schema = json!({"type": "string"});
        put(&mut schema, "maxLength", self.most_characters);
        put(&mut schema, "pattern", self.pattern.map(|(pattern, _)| pattern));
        put(&mut schema, "default", self.pattern.map(|(_, default)| default));
        schema
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
