//! A place for the fields of a request: what the readers of bodies put into it, and nothing
//! of what requests make of them. Stands for `requests/fields.rs`.

use bytes::Bytes;
use serde_json::Value;

#[derive(Debug, PartialEq)]
#[allow(dead_code, reason = "each body has its own kinds")]
pub(crate) enum RawValue {
    Text(Bytes),
    File(Bytes),
    Json(Value),
    Oversized,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Fields(pub(crate) Vec<(String, RawValue)>);

impl Fields {
    pub(crate) fn push(&mut self, name: String, value: RawValue) {
        if !matches!(value, RawValue::Json(Value::Null)) {
            self.0.push((name, value));
        }
    }
}

#[allow(dead_code, reason = "forms quote nothing")]
pub(crate) fn quote(text: &str) -> String {
    text.chars().take(60).collect()
}
