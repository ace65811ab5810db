//! How a picture was made, written into its file; and back from there into the
//! fields of a request.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::endpoint::Endpoint;
use super::fields::{Fields, RawValue};
use crate::domain::Seed;

/// All that is needed to make a picture again, but for what the client had: its
/// pictures and, unless the settings say otherwise, its words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Recipe {
    /// Version of the program that wrote it.
    diffuser_api: String,
    /// Where the request was sent.
    pub(super) endpoint: Endpoint,
    /// The model's id.
    pub(super) model: String,
    /// `WIDTHxHEIGHT` of the picture.
    picture: String,
    /// Fields of the request, by name.
    parameters: Map<String, Value>,
}

impl Recipe {
    /// The recipe of a request with the fields `parameters`, which has no seed yet.
    pub(super) fn new(endpoint: Endpoint, model: &str, parameters: Map<String, Value>) -> Self {
        Self {
            diffuser_api: env!("CARGO_PKG_VERSION").to_owned(),
            endpoint,
            model: model.to_owned(),
            picture: String::new(),
            parameters,
        }
    }

    /// The text for the file of a picture of `size` with `seed`.
    pub(super) fn text(&self, size: &str, seed: Seed) -> String {
        let mut recipe = self.clone();
        size.clone_into(&mut recipe.picture);
        recipe.parameters.insert("seed".to_owned(), seed.get().into());
        // Only maps with keys that are no strings fail.
        serde_json::to_string(&recipe).unwrap_or_default()
    }

    /// Reads the text of a file.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Gives `fields` what the recipe says, where they say nothing themselves.
    pub(super) fn fill(self, fields: &mut Fields) {
        for (name, value) in self.parameters {
            if !fields.has(&name) {
                fields.push(name, RawValue::Json(value));
            }
        }
    }
}
