//! How a picture was made, written into its file; and back from there into the
//! fields of a request.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::endpoint::Endpoint;
use super::fields::{Fields, RawValue, wrong_type};
use crate::domain::{FaultKind, Seed, ValidationError};
use crate::imaging::provenance;

/// All that is needed to make a picture again, but for what the client had: its
/// pictures and, unless the settings say otherwise, its words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recipe {
    /// Version of the program that wrote it.
    diffuser_api: String,
    /// Where the request was sent.
    pub(crate) endpoint: Endpoint,
    /// The model's id.
    pub(crate) model: String,
    /// `WIDTHxHEIGHT` of the picture.
    picture: String,
    /// Fields of the request, by name.
    parameters: Map<String, Value>,
}

impl Recipe {
    /// The recipe of a request with the fields `parameters`, which has no seed yet.
    pub(crate) fn new(endpoint: Endpoint, model: &str, parameters: Map<String, Value>) -> Self {
        Self {
            diffuser_api: env!("CARGO_PKG_VERSION").to_owned(),
            endpoint,
            model: model.to_owned(),
            picture: String::new(),
            parameters,
        }
    }

    /// The text for the file of a picture of `size` with `seed`.
    pub(crate) fn text(&self, size: &str, seed: Seed) -> String {
        let mut recipe = self.clone();
        size.clone_into(&mut recipe.picture);
        recipe.parameters.insert("seed".to_owned(), seed.get().into());
        // Only maps with keys that are no strings fail.
        serde_json::to_string(&recipe).unwrap_or_default()
    }

    /// Takes the picture that a replay is about out of `fields`, and reads the recipe in its
    /// file. Not for the async runtime.
    ///
    /// # Errors
    /// [`ValidationError`] on `picture` if there is none, or it says nothing.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ValidationError> {
        let refuse = |kind, message: &str| Err(ValidationError::new("picture", kind, message));
        let text = match fields.take_all(&["picture"]).pop() {
            Some(RawValue::File(file)) => provenance::read(&file),
            Some(other) => return Err(wrong_type("picture", "a file", other.describe())),
            None => {
                let message = "Missing required parameter: 'picture'.";
                return refuse(FaultKind::Missing, message);
            }
        };
        match text.as_deref().and_then(Self::parse) {
            Some(recipe) => Ok(recipe),
            None => refuse(
                FaultKind::Invalid,
                "Invalid 'picture': the file does not say how it was made, or was not made here.",
            ),
        }
    }

    /// Reads the text of a file.
    fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Gives `fields` what the recipe says, where they say nothing themselves.
    pub(crate) fn fill(self, fields: &mut Fields) {
        for (name, value) in self.parameters {
            if !fields.has(&name) {
                fields.push(name, RawValue::Json(value));
            }
        }
    }
}
