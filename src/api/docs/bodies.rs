//! The bodies of requests, field by field: one table, from which the schemas of
//! all endpoints are made.
//!
//! It describes what `parameters` and `pictures` read.

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    EditForm,
    EditJson,
    Generation,
    Variation,
    Replay,
}

use Body::{EditForm as Form, EditJson as Json, Generation, Replay, Variation};

/// Bodies that make pictures from scratch, by all their fields.
const ALL: &[Body] = &[Form, Json, Generation, Variation, Replay];
const EDITS: &[Body] = &[Form, Json, Replay];
/// Bodies in which a field that is not needed may be null.
const JSON: &[Body] = &[Json, Generation];

/// A field: its name, the bodies that have it, and its schema.
type Field = (&'static str, &'static [Body], Value);

/// A picture for the page to try out: a red circle and a blue square, 128x128 pixels.
const DRAWING: &str = concat!(
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAIAAAACAAgMAAAC+UIlYAAAACVBMVEXr4cjcKCgoRsh/",
    "gYj8AAAA2klEQVR42u2TsQ3CMBBFv0Po3aTPKB6BAvZhHoIoUzMFS7jJABahID7Hxhcki0gout/YF73c/z7pAJFo",
    "a1J0O8HeM0DlLw3QYAHYGwDHBUDHfh+AMgCAAwvU0ZEBdPqmFDCIzxSgPzUDkHfND4pTFXdWDBCymUKLb8DMWa9k",
    "MRtPvZLFNgAXareSxRjq4fcWOwCAbX3d5zuQ81g6ScfOaQJG9pVTSErZcxkGLqMHHBfBW0weN36SA+NAHZ62Ba4Z",
    "gDbJAvZ9u/hPj3O0ap1slgACCPB3gEgkKtALisMhb1ocrqcAAAAASUVORK5CYII=",
);

/// What an input picture may be.
const FILE: &str = "The picture to vary: PNG, JPEG, WebP, GIF, BMP, TIFF or ICO; of an animation \
                    the first picture. EXIF's or XMP's orientation and the colour profile are \
                    applied.";
const FILES: &str = "The pictures to edit: PNG, JPEG, WebP, GIF, BMP, TIFF or ICO; of an animation \
                     the first picture. EXIF's or XMP's orientation and the colour profile are \
                     applied; a transparent picture is shown to the model on white, unless it \
                     takes transparency. `image[]` works as well.";

fn inputs() -> Vec<Field> {
    let file = |text: &str| json!({"type": "string", "format": "binary", "description": text});
    let reference = json!({
        "type": "object",
        "required": ["image_url"],
        "properties": {"image_url": {
            "type": "string",
            "description": "A data URL. Addresses are not fetched.",
            "pattern": "^data:",
            "example": DRAWING,
        }},
    });
    let files = json!({
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "maxItems": 16,
        "description": FILES,
    });
    let prompt = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 32_000,
        "description": "What to change or to show, in words.",
        "example": "Turn the sky into a red sunset",
    });
    let words = json!({
        "type": "string",
        "maxLength": 32_000,
        "description": "Words to go by.",
        "example": "A red boat on a quiet lake",
    });
    let mask_text = "Where to paint: where it is transparent, or, if it is opaque, where it is \
                     white and not black. Of the picture's size. The reply's \
                     `mask_convention` says which of the two it was taken for; one that marks \
                     nothing is refused.";
    let mut mask_object = reference.clone();
    mask_object["description"] = mask_text.into();
    vec![
        ("picture", &[Replay], file("A picture that this server made.")),
        ("image", &[Form], files),
        ("image", &[Variation], file(FILE)),
        ("image", &[Replay], file("The picture that was edited, if one was.")),
        (
            "images",
            &[Json],
            json!({
                "type": "array",
                "items": reference,
                "minItems": 1,
                "maxItems": 16,
                "description": "The pictures to edit.",
                "example": [{"image_url": DRAWING}],
            }),
        ),
        ("prompt", &[Form, Json, Generation], prompt),
        ("prompt", &[Variation, Replay], words),
        ("mask", &[Form, Replay], file(mask_text)),
        ("mask", &[Json], mask_object),
    ]
}

/// A text of a few choices.
fn choice(names: &[&str], default: &str, text: &str) -> Value {
    json!({"type": "string", "enum": names, "default": default, "description": text})
}

fn bounded(kind: &str, minimum: i64, maximum: i64, text: &str) -> Value {
    json!({"type": kind, "minimum": minimum, "maximum": maximum, "description": text})
}

fn flag(default: bool, text: &str) -> Value {
    json!({"type": "boolean", "default": default, "description": text})
}

fn plain_text(text: &str) -> Value {
    json!({"type": "string", "description": text})
}

fn with_default(mut schema: Value, default: impl Into<Value>) -> Value {
    schema["default"] = default.into();
    schema
}

/// What the picture is to be like.
fn wishes() -> Vec<Field> {
    vec![
        (
            "model",
            ALL,
            plain_text("The loaded model's id or one of its aliases, such as `gpt-image-1`."),
        ),
        ("n", ALL, with_default(bounded("integer", 1, 10, "How many pictures."), 1)),
        (
            "size",
            ALL,
            json!({
                "type": "string",
                "pattern": "^(auto|reference|[1-9][0-9]*x[1-9][0-9]*)$",
                "default": "auto",
                "description": "`WIDTHxHEIGHT` in pixels, `auto` (the input's own size, pixel over pixel; \
                                without an input the model's), or `reference` (what the model's reference \
                                pipeline makes). A size at which the model does not work (see \
                                `image_area_range` in `/v1/models/{id}`) is made at its own area and scaled; \
                                `warnings` says so.",
            }),
        ),
        (
            "quality",
            ALL,
            choice(
                &["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"],
                "auto",
                "Stands for steps and guidance of the loaded model: see `/v1/models/{id}`. Explicit \
             parameters win.",
            ),
        ),
        (
            "negative_prompt",
            ALL,
            json!({
                "type": "string",
                "maxLength": 32_000,
                "description": "What to steer away from; the empty text is one, too. Not given: the \
                                server's, or what the model makes of none.",
            }),
        ),
        ("num_inference_steps", ALL, bounded("integer", 1, 150, "Denoising steps. Also `steps`.")),
        (
            "true_cfg_scale",
            ALL,
            bounded(
                "number",
                0,
                20,
                "Strength of guidance, on models that know it by this name. Also `cfg_scale`.",
            ),
        ),
        (
            "guidance_scale",
            ALL,
            bounded(
                "number",
                0,
                20,
                "Strength of guidance, on models that know it by this name; others take 1 only.",
            ),
        ),
        (
            "strength",
            &[Form, Json, Variation, Replay],
            json!({
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "description": "How far to go from the input, up to 1 (anew): for variations, with a mask, \
                                and for edits by models that do not follow instructions.",
            }),
        ),
        (
            "seed",
            ALL,
            json!({
                "type": "integer",
                "minimum": -1,
                "maximum": u64::MAX,
                "description": "Same request, same seed, same picture; picture `i` has seed + `i`. Drawn \
                                if absent or -1, and reported.",
                "example": 42,
            }),
        ),
    ]
}

/// What goes with masks and with layers.
fn special_wishes() -> Vec<Field> {
    vec![
        (
            "preserve_unmasked",
            EDITS,
            flag(true, "With a mask: whether the pixels outside it come back as they were."),
        ),
        (
            "padding_mask_crop",
            EDITS,
            bounded(
                "integer",
                0,
                4096,
                "With a mask: look only at its surroundings, this many pixels around it.",
            ),
        ),
        (
            "layers",
            EDITS,
            bounded("integer", 1, 16, "On models that take pictures apart: into how many layers."),
        ),
    ]
}

/// How it comes back.
fn delivery() -> Vec<Field> {
    vec![
        (
            "background",
            ALL,
            choice(
                &["auto", "opaque", "transparent"],
                "auto",
                "`transparent` on models that make layers only.",
            ),
        ),
        ("output_format", ALL, choice(&["png", "jpeg", "webp"], "png", "Format of the files.")),
        (
            "output_compression",
            ALL,
            with_default(
                bounded(
                    "integer",
                    0,
                    100,
                    "Quality of jpeg and webp; at 100 webp is without loss.",
                ),
                100,
            ),
        ),
        (
            "response_format",
            ALL,
            choice(
                &["b64_json", "url"],
                "b64_json",
                "Base64, or addresses that are good for a while. Unless the settings say \
                 otherwise, a request that names `dall-e-2` or `dall-e-3` gets addresses.",
            ),
        ),
        ("stream", ALL, flag(false, "Answer with server-sent events; with `n` of 1 only.")),
        (
            "partial_images",
            ALL,
            with_default(
                bounded("integer", 0, 3, "With `stream`: how many unfinished pictures to show."),
                0,
            ),
        ),
    ]
}

impl Body {
    fn schema(self) -> RefOr<Schema> {
        let required = self.required();
        let mut properties = Map::new();
        for (name, bodies, mut schema) in
            [inputs(), wishes(), special_wishes(), delivery()].into_iter().flatten()
        {
            if !bodies.contains(&self) {
                continue;
            }
            let is_optional = !required.contains(&name);
            if is_optional && JSON.contains(&self) {
                allow_null(&mut schema);
            }
            properties.insert(name.to_owned(), schema);
        }
        let object = json!({
            "type": "object",
            "description": self.description(),
            "required": required,
            "properties": properties,
        });
        // The table is ours and holds schemas only.
        serde_json::from_value(object).unwrap_or_else(|_| Object::new().into())
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::EditForm => &["image", "prompt"],
            Self::EditJson => &["images", "prompt"],
            Self::Generation => &["prompt"],
            Self::Variation => &["image"],
            Self::Replay => &["picture"],
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::EditForm => {
                "A form for an edit. Fields may come in any order. Those of OpenAI's that have no \
                 effect here, and unknown ones, are named in the reply's `warnings`."
            }
            Self::EditJson => "A JSON object for an edit.",
            Self::Generation => "A JSON object for a picture from words.",
            Self::Variation => "A form for a picture like another.",
            Self::Replay => {
                "A form for a picture that is to be made again. Every field but \
                             `picture` wins over what the file says."
            }
        }
    }
}

/// Lets a schema's value be null, which in JSON means "not given".
fn allow_null(schema: &mut Value) {
    let kind = schema["type"].take();
    schema["type"] = json!([kind, "null"]);
    if let Some(names) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        names.push(Value::Null);
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident = $body:expr;)*) => {$(
        $(#[$doc])*
        pub(in crate::api) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $body.schema()
            }
        }

        impl ToSchema for $name {}
    )*};
}

bodies! {
    /// The form of an edit.
    EditForm = Form;
    /// The JSON object of an edit.
    EditJson = Json;
    /// The JSON object of a generation.
    GenerationJson = Generation;
    /// The form of a variation.
    VariationForm = Variation;
    /// The form of a replay.
    ReplayForm = Replay;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_has_its_fields_and_requires_what_it_must() {
        for body in ALL {
            let schema = serde_json::to_value(body.schema()).unwrap();
            let properties = schema["properties"].as_object().unwrap();

            assert!(properties.len() > 15, "{body:?}");
            for name in body.required() {
                assert!(properties.contains_key(*name), "{body:?} {name}");
            }
        }
        let generation = serde_json::to_value(Generation.schema()).unwrap();
        assert_eq!(generation["properties"]["n"]["type"], json!(["integer", "null"]));
        assert_eq!(generation["properties"]["prompt"]["type"], "string");
        assert!(generation["properties"].get("mask").is_none());
    }
}
