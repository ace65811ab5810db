//! The bodies of requests as schemas of the OpenAPI page: pictures and words, which are
//! described here, and the parameters of [`table`].

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::table::{self, Body};
use crate::domain::Prompt;
use Body::{EditForm as Form, EditJson as Json, Generation, Replay, Variation};

/// Bodies in which a field that is not needed may be null.
const JSON: &[Body] = &[Json, Generation];

/// A field for pictures or words: its name, the bodies that have it, and its schema.
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
        "minItems": 1,
        "maxItems": 16,
        "description": FILES,
    });
    let prompt = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": Prompt::MAX_CHARACTERS,
        "description": "What to change or to show, in words.",
        "example": "Turn the sky into a red sunset",
    });
    let words = json!({
        "type": "string",
        "maxLength": Prompt::MAX_CHARACTERS,
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

impl Body {
    fn schema(self) -> RefOr<Schema> {
        let required = self.required();
        let mut properties = Map::new();
        let inputs = inputs().into_iter().filter(|(_, bodies, _)| bodies.contains(&self));
        let inputs = inputs.map(|(name, _, schema)| (name, schema));
        for (name, mut schema) in inputs.chain(table::schemas_of(self)) {
            let is_optional = !required.contains(&name);
            if is_optional {
                allow_empty(&mut schema);
            }
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

/// Lets a text be empty, which means "not given". Where there are words to choose from, a form
/// on a page offers to choose none anyway.
fn allow_empty(schema: &mut Value) {
    if let Some(pattern) = schema["pattern"].as_str() {
        schema["pattern"] = format!("^$|{pattern}").into();
    }
}

/// Lets a schema's value be null, which in JSON means "not given", as the empty text does where
/// there are words to choose from.
fn allow_null(schema: &mut Value) {
    let kind = schema["type"].take();
    let several = kind.as_array().cloned();
    let mut kinds = several.unwrap_or_else(|| vec![kind]);
    kinds.push("null".into());
    schema["type"] = kinds.into();
    if let Some(names) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        names.extend(["".into(), Value::Null]);
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident = $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

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
        for body in table::ALL {
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
        // Empty is "not given".
        let size = generation["properties"]["size"]["pattern"].as_str().unwrap();
        assert!(size.starts_with("^$|^(auto|"), "{size}");
        let words = generation["properties"]["quality"]["enum"].as_array().unwrap();
        assert!(words.contains(&json!("")) && words.contains(&json!(null)), "{words:?}");
        assert!(generation["properties"].get("mask").is_none());
    }
}
