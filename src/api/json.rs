//! JSON objects to [`Fields`]: what a body may make of itself in memory is bounded while
//! it is read.
//!
//! A field that holds more values than any of ours can is skipped and keeps its name
//! ([`RawValue::Oversized`]): unknown ones do no harm, ours say what they expect.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;
use crate::requests::{Fields, RawValue, quote};

/// Values in all fields together that are kept.
const MAX_VALUES: usize = 4096;

/// Bytes of a field's name.
const MAX_NAME_BYTES: usize = 1024;

/// Takes a body apart. Not for the async runtime.
///
/// # Errors
/// 400 for what is no JSON object, or has too many fields or too long a name.
pub(super) fn parse(body: &[u8], max_fields: usize) -> Result<Fields, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let mut refusal = None;
    let fields = json.deserialize_map(Object { refusal: &mut refusal, max_fields });
    let fields = fields.and_then(|fields| json.end().map(|()| fields));
    fields.map_err(|error| {
        let error = quote(&error.to_string());
        let broken = || format!("The request body is not a JSON object: {error}.");
        ApiError::Malformed(refusal.unwrap_or_else(broken))
    })
}

/// The whole body.
pub(super) struct Object<'a> {
    /// Why it is not read on, if it is not for its grammar.
    pub(super) refusal: &'a mut Option<String>,
    pub(super) max_fields: usize,
}

/// A body within something else.
impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Fields, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Fields;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Fields, A::Error> {
        let mut fields: Vec<(String, RawValue)> = Vec::new();
        let mut left = MAX_VALUES;
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Bounded { left: &mut left })?;
            let value = value.map_or(RawValue::Oversized, RawValue::Json);
            match fields.iter_mut().find(|(given, _)| *given == name) {
                // The last one counts, as everywhere.
                Some((_, given)) => *given = value,
                None => fields.push((name, value)),
            }
            if fields.len() > self.max_fields {
                *self.refusal = Some(format!(
                    "The request body has more than {} fields ('server.max_parts' of this \
                     server's settings).",
                    self.max_fields
                ));
                return Err(A::Error::custom("too many fields"));
            }
            let is_long = |(name, _): &(String, RawValue)| name.len() > MAX_NAME_BYTES;
            if fields.last().is_some_and(is_long) {
                *self.refusal = Some(format!(
                    "The request body has a field whose name is longer than {MAX_NAME_BYTES} bytes."
                ));
                return Err(A::Error::custom("too long a name"));
            }
        }
        let mut all = Fields::default();
        fields.into_iter().for_each(|(name, value)| all.push(name, value));
        Ok(all)
    }
}

/// A value of which no more parts are kept than are `left`; else it is `None`.
pub(super) struct Bounded<'a> {
    pub(super) left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<Value>, D::Error> {
        if *self.left == 0 {
            return json.deserialize_ignored_any(IgnoredAny).map(|_| None);
        }
        *self.left -= 1;
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Option<Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Option<Value>, E> {
        Ok(Some(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Option<Value>, E> {
        Ok(Some(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Option<Value>, E> {
        Ok(Some(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Option<Value>, E> {
        Ok(Some(Value::String(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Value>, A::Error> {
        let mut kept = Some(Vec::new());
        while let Some(item) = items.next_element_seed(Bounded { left: &mut *self.left })? {
            match (item, &mut kept) {
                (Some(item), Some(all)) => all.push(item),
                _ => kept = None,
            }
        }
        Ok(kept.map(Value::Array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Option<Value>, A::Error> {
        let mut kept = Some(Map::new());
        loop {
            if *self.left == 0 {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    kept = None;
                }
                break;
            }
            let Some(name) = entries.next_key::<String>()? else { break };
            match (entries.next_value_seed(Bounded { left: &mut *self.left })?, &mut kept) {
                (Some(value), Some(all)) => drop(all.insert(name, value)),
                _ => kept = None,
            }
        }
        Ok(kept.map(Value::Object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message_of(body: &str) -> String {
        let error = parse(body.as_bytes(), 256).unwrap_err();
        let ApiError::Malformed(message) = error else { panic!("{error:?}") };
        message
    }

    #[test]
    fn values_are_those_that_a_plain_parser_gives() {
        let text = r#"{"a": [1, -2, 2.5, 18446744073709551615, 18446744073709551616, true, "x\n"],
                       "b": {"c": {"d": null}, "e": []}, "f": "first", "f": "last"}"#;
        let plain: Map<String, Value> = serde_json::from_str(text).unwrap();

        let mut fields = parse(text.as_bytes(), 256).unwrap();

        for (name, value) in plain {
            let given = fields.take_all(&[name.as_str()]);
            assert!(matches!(&given[..], [RawValue::Json(given)] if *given == value), "{name}");
        }
        assert!(fields.left_over().is_empty());
    }

    #[test]
    fn a_field_with_too_many_values_is_skipped_and_keeps_its_name() {
        let many = |item: &str| [item; 100_000].join(",");
        let keys: Vec<String> = (0..100_000).map(|key| format!("\"k{key}\":1")).collect();
        for value in [
            format!("[{}]", many("{}")),
            format!("[[{}]]", many("1")),
            format!("{{{}}}", keys.join(",")),
        ] {
            let body = format!(r#"{{"prompt": "x", "strange": {value}, "seed": 7}}"#);

            let mut fields = parse(body.as_bytes(), 256).unwrap();

            assert_eq!(fields.text("prompt").unwrap().as_deref(), Some("x"));
            assert_eq!(fields.left_over(), ["strange", "seed"]);
            assert!(matches!(fields.take_all(&["strange"])[..], [RawValue::Oversized]));
        }
    }

    #[test]
    fn too_many_fields_and_too_long_names_are_refused_before_the_end_is_read() {
        let keys: Vec<String> = (0..300).map(|key| format!("\"k{key}\":1")).collect();
        assert!(message_of(&format!("{{{}, no end", keys.join(","))).contains("256 fields"));
        let name = "a".repeat(2000);
        assert!(message_of(&format!("{{\"{name}\":1, no end")).contains("1024 bytes"));
    }

    #[test]
    fn what_is_no_object_is_named_as_such() {
        for wrong in ["", "[]", "7", "{", "{}x", "{\"a\":1,}", "{\"a\" 1}", "null"] {
            assert!(message_of(wrong).starts_with("The request body is not a JSON object: "));
        }
        let deep = format!("{{\"a\":{}}}", "[".repeat(100_000));
        assert!(message_of(&deep).starts_with("The request body is not a JSON object: "));
    }
}
