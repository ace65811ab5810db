//! The fields of a request as they came: named, not yet checked.
//!
//! Forms and JSON objects both become [`Fields`], from which each field is
//! taken once, by name and type. What nobody took is what we do not know.

use bytes::Bytes;
use serde_json::Value;

use super::table::{self, Choice, Decimal, Flag, Integer, Row};
use crate::domain::{FaultKind, ValidationError};

/// One value, as its encoding gave it.
#[derive(Debug)]
pub(crate) enum RawValue {
    /// A form field without a file name.
    Text(Bytes),
    /// A form field with a file name.
    File(Bytes),
    /// A value of a JSON object; never null.
    Json(Value),
    /// A value of a JSON object that was not kept, for it has too many values in it.
    Oversized,
}

/// The fields that are left, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    values: Vec<(String, RawValue)>,
}

/// The longest text that is looked at, in bytes: no field of ours takes as much, and on the
/// runtime there is no time for more.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Characters of a client's own words that an error repeats.
const QUOTED_CHARACTERS: usize = 60;

impl Fields {
    /// Whether there is a value under `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(given, _)| given == name)
    }

    /// Bytes that all of them hold in memory, about.
    pub(crate) fn held_bytes(&self) -> usize {
        self.values.iter().map(|(name, value)| name.len() + value.held_bytes()).sum()
    }

    /// The values as they came, by their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Takes `background` where it is a yes or no, and so asks for a job or for none; its
    /// words are of the picture, and stay.
    pub(crate) fn take_in_background(&mut self) -> bool {
        let Some(truth) = self.background() else { return false };
        self.values.retain(|(given, _)| given != table::BACKGROUND.name);
        truth
    }

    /// Whether it asks for a job.
    pub(crate) fn is_in_background(&self) -> bool {
        self.background().unwrap_or(false)
    }

    /// `background` where it is a yes or no.
    fn background(&self) -> Option<bool> {
        let given = self.values.iter().filter(|(given, _)| given == table::BACKGROUND.name);
        let [truth] = given.map(|(_, value)| value.truth()).collect::<Vec<_>>()[..] else {
            return None;
        };
        truth
    }

    /// Takes where somebody is to be told once the job has ended.
    ///
    /// # Errors
    /// [`ValidationError`] if it is no text.
    pub(crate) fn take_webhook(&mut self) -> Result<Option<String>, ValidationError> {
        self.text(table::WEBHOOK_URL.name)
    }

    /// Takes `stream`, where all is told as it goes.
    ///
    /// # Errors
    /// [`ValidationError`] if it is no truth.
    pub(crate) fn take_stream(&mut self) -> Result<(), ValidationError> {
        self.boolean(&table::STREAM).map(drop)
    }

    /// Adds a value; names may repeat.
    pub(crate) fn push(&mut self, name: String, value: RawValue) {
        if !matches!(value, RawValue::Json(Value::Null)) {
            self.values.push((name, value));
        }
    }

    /// Gives fields known by another name their own, unless that is given, too.
    pub(crate) fn resolve_aliases(&mut self) {
        for (alias, name) in table::aliases() {
            let is_given = self.values.iter().any(|(given, _)| given == name);
            for (given, _) in self.values.iter_mut().filter(|_| !is_given) {
                if given == alias {
                    name.clone_into(given);
                }
            }
        }
    }

    /// Takes all values under any of `names`, in the order in which they came.
    /// In a form, an empty text is no value.
    pub(crate) fn take_all(&mut self, names: &[&str]) -> Vec<RawValue> {
        self.values
            .extract_if(.., |(name, _)| names.contains(&name.as_str()))
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty_text())
            .collect()
    }

    /// Takes the only value under `name`, an empty text too.
    fn take(&mut self, name: &'static str) -> Result<Option<RawValue>, ValidationError> {
        let mut given = self.values.extract_if(.., |(given, _)| given == name);
        let value = given.next().map(|(_, value)| value);
        if given.count() > 0 {
            return Err(ValidationError::new(
                name,
                FaultKind::Invalid,
                format!("Invalid '{name}': expected one value, got several."),
            ));
        }
        Ok(value)
    }

    /// Takes a text; an empty one is given back as such.
    pub(crate) fn text_or_empty(
        &mut self,
        name: &'static str,
    ) -> Result<Option<String>, ValidationError> {
        let value = self.take(name)?;
        value.map(|value| value.into_text(name)).transpose()
    }

    /// Takes a text; an empty one counts as not given.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ValidationError> {
        let text = self.text_or_empty(name)?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// Takes what is JSON, in a form written as a text.
    pub(crate) fn value(&mut self, name: &'static str) -> Result<Option<Value>, ValidationError> {
        match self.take(name)? {
            None => Ok(None),
            Some(RawValue::Json(value)) if !value.is_string() => Ok(Some(value)),
            Some(other) if other.is_empty_text() => Ok(None),
            Some(other) => {
                let text = other.into_text(name)?;
                let read = serde_json::from_str(&text);
                read.map(Some).map_err(|_not_json| wrong_type(name, "JSON", &text))
            }
        }
    }

    /// Takes one of the words of `row`.
    pub(crate) fn choice(
        &mut self,
        row: &Row<Choice>,
    ) -> Result<Option<&'static str>, ValidationError> {
        self.word(row.name, row.kind.words)
    }

    /// Takes one of `choices`.
    pub(crate) fn word(
        &mut self,
        name: &'static str,
        choices: &'static [&'static str],
    ) -> Result<Option<&'static str>, ValidationError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let chosen = choices.iter().find(|choice| **choice == text);
        chosen.map(|choice| Some(*choice)).ok_or_else(|| {
            let supported = choices.join("', '");
            ValidationError::new(
                name,
                FaultKind::Invalid,
                format!(
                    "Invalid value for '{name}': '{}'. Supported values are '{supported}'.",
                    quote(&text)
                ),
            )
        })
    }

    /// Takes an integer within the bounds of `row`. Digits only: `2.0` is none.
    pub(crate) fn integer(&mut self, row: &Row<Integer>) -> Result<Option<i128>, ValidationError> {
        self.integer_within(row.name, row.kind.least, row.kind.most)
    }

    /// Takes an integer within `minimum..=maximum`.
    pub(crate) fn integer_within(
        &mut self,
        name: &'static str,
        minimum: i128,
        maximum: i128,
    ) -> Result<Option<i128>, ValidationError> {
        let Some(text) = self.number(name, "an integer")? else {
            return Ok(None);
        };
        let digits = text.strip_prefix('-').unwrap_or(&text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong_type(name, "an integer", &text));
        }
        let saturated = if text.starts_with('-') { i128::MIN } else { i128::MAX };
        let number = text.parse().unwrap_or(saturated);
        if (minimum..=maximum).contains(&number) {
            return Ok(Some(number));
        }
        let (kind, bound) = if number < minimum {
            (FaultKind::IntegerTooSmall, format!(">= {minimum}"))
        } else {
            (FaultKind::IntegerTooLarge, format!("<= {maximum}"))
        };
        Err(ValidationError::new(
            name,
            kind,
            format!("Invalid '{name}': expected a value {bound}, got {}.", quote(&text)),
        ))
    }

    /// Takes a decimal number that is finite.
    pub(crate) fn decimal(&mut self, row: &Row<Decimal>) -> Result<Option<f64>, ValidationError> {
        let name = row.name;
        let Some(text) = self.number(name, "a number")? else {
            return Ok(None);
        };
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        let number = number.ok_or_else(|| wrong_type(name, "a finite number", &text))?;
        Ok(Some(number))
    }

    /// Takes `true` or `false`; in forms, where Python's `str` and hand-made
    /// clients write it, also `1`, `0` and capital letters.
    pub(crate) fn boolean(&mut self, row: &Row<Flag>) -> Result<Option<bool>, ValidationError> {
        let name = row.name;
        match self.take(name)? {
            None => Ok(None),
            Some(RawValue::Json(Value::Bool(value))) => Ok(Some(value)),
            Some(value @ RawValue::Text(_)) => {
                let text = value.into_text(name)?;
                if text.is_empty() {
                    return Ok(None);
                }
                truth(&text).map(Some).ok_or_else(|| wrong_type(name, "a boolean", &text))
            }
            Some(value) => Err(wrong_type(name, "a boolean", value.describe())),
        }
    }

    /// Takes the text of what should be a number. In JSON it must be one; a
    /// form has nothing but texts.
    fn number(
        &mut self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<String>, ValidationError> {
        match self.take(name)? {
            None => Ok(None),
            Some(value) if value.is_empty_text() => Ok(None),
            Some(RawValue::Json(Value::Number(number))) => Ok(Some(number.to_string())),
            Some(value @ RawValue::Text(_)) => value.into_text(name).map(Some),
            Some(value) => Err(wrong_type(name, expected, value.describe())),
        }
    }

    /// The names of the fields that are left, each once.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.values {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }
}

/// `true` or `false` as forms have it: Python's `str` writes capital letters.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

impl RawValue {
    /// The yes or no that it is, if it is one.
    fn truth(&self) -> Option<bool> {
        match self {
            Self::Text(text) => truth(std::str::from_utf8(text).ok()?),
            Self::Json(value) => value.as_bool(),
            Self::File(_) | Self::Oversized => None,
        }
    }

    /// Whether it is a form's way to say nothing.
    fn is_empty_text(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    /// What this is, for an error's text.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Json(Value::String(_)) => "a text",
            Self::File(_) => "a file",
            Self::Oversized => "far too many values",
            Self::Json(Value::Number(_)) => "a number",
            Self::Json(Value::Bool(_)) => "a boolean",
            Self::Json(Value::Array(_)) => "an array",
            Self::Json(Value::Object(_)) => "an object",
            Self::Json(Value::Null) => "null",
        }
    }

    /// Bytes that it holds in memory, about.
    fn held_bytes(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::File(bytes) => bytes.len(),
            Self::Json(value) => held_by(value),
            Self::Oversized => 0,
        }
    }

    fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Json(value) => value.as_str().map_or(0, str::len),
            Self::File(_) | Self::Oversized => 0,
        }
    }

    fn into_text(self, name: &'static str) -> Result<String, ValidationError> {
        if self.text_bytes() > MAX_TEXT_BYTES {
            let message = format!(
                "Invalid '{name}': the text has {} bytes, at most {MAX_TEXT_BYTES} are read.",
                self.text_bytes()
            );
            return Err(ValidationError::new(name, FaultKind::TextTooLong, message));
        }
        match self {
            Self::Text(bytes) => String::from_utf8(bytes.to_vec())
                .map_err(|_not_utf8| wrong_type(name, "a UTF-8 text", "other bytes")),
            Self::Json(Value::String(text)) => Ok(text),
            Self::File(_) | Self::Json(_) | Self::Oversized => {
                Err(wrong_type(name, "a text", self.describe()))
            }
        }
    }
}

fn held_by(value: &Value) -> usize {
    let inside = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(held_by).sum(),
        Value::Object(entries) => entries.iter().map(|(name, it)| name.len() + held_by(it)).sum(),
    };
    inside + size_of::<Value>()
}

/// The error of a value that has the wrong type. `got` is its text or kind.
pub(crate) fn wrong_type(name: &'static str, expected: &str, got: &str) -> ValidationError {
    ValidationError::new(
        name,
        FaultKind::WrongType,
        format!("Invalid type for '{name}': expected {expected}, got {}.", quote(got)),
    )
}

/// The beginning of a client's own words.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(QUOTED_CHARACTERS).collect();
    if quoted.len() < text.len() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(name: &str, text: &'static str) -> Fields {
        let mut fields = Fields::default();
        fields.push(name.to_owned(), RawValue::Text(Bytes::from_static(text.as_bytes())));
        fields
    }

    fn json(name: &str, value: Value) -> Fields {
        let mut fields = Fields::default();
        fields.push(name.to_owned(), RawValue::Json(value));
        fields
    }

    #[test]
    fn integers_are_integers_in_both_encodings() {
        let maximum = i128::from(u64::MAX);
        let seed = |mut fields: Fields| fields.integer_within("seed", 0, maximum);
        assert_eq!(seed(form("seed", "18446744073709551615")), Ok(Some(maximum)));
        assert_eq!(seed(json("seed", u64::MAX.into())), Ok(Some(maximum)));
        assert_eq!(seed(form("seed", "")), Ok(None));
        assert_eq!(seed(json("seed", Value::Null)), Ok(None));

        for wrong in ["2.0", "two", "1e3", " 2", "+2", "-", "0x10", "nan"] {
            let error = seed(form("seed", wrong)).unwrap_err();
            assert_eq!(error.kind, FaultKind::WrongType, "{wrong}");
        }
        for wrong in [Value::from(2.0), "2".into(), "".into(), true.into(), Value::Array(vec![])] {
            let error = seed(json("seed", wrong.clone())).unwrap_err();
            assert_eq!(error.kind, FaultKind::WrongType, "{wrong}");
        }
        let huge = "9".repeat(80).leak();
        assert_eq!(seed(form("seed", huge)).unwrap_err().kind, FaultKind::IntegerTooLarge);
        assert_eq!(seed(form("seed", "-1")).unwrap_err().kind, FaultKind::IntegerTooSmall);
    }

    #[test]
    fn booleans_may_be_pythons_in_forms_and_only_booleans_in_json() {
        for (text, value) in [("True", true), ("1", true), ("false", false), ("0", false)] {
            assert_eq!(form("stream", text).boolean(&table::STREAM), Ok(Some(value)));
        }
        assert!(form("stream", "yes").boolean(&table::STREAM).is_err());
        assert!(json("stream", "true".into()).boolean(&table::STREAM).is_err());
        assert!(json("stream", 1.into()).boolean(&table::STREAM).is_err());
    }

    #[test]
    fn background_asks_for_a_job_where_it_is_a_truth_and_else_is_of_the_picture() {
        for (mut fields, asks, is_left) in [
            (form("background", "true"), true, false),
            (form("background", "False"), false, false),
            (form("background", "transparent"), false, true),
            (form("background", ""), false, true),
            (json("background", true.into()), true, false),
            (json("background", "true".into()), false, true),
            (json("background", false.into()), false, false),
            (Fields::default(), false, false),
        ] {
            assert_eq!(fields.take_in_background(), asks);
            assert_eq!(fields.has("background"), is_left);
        }
        let mut twice = form("background", "true");
        twice.push("background".to_owned(), RawValue::Text("true".into()));
        assert!(!twice.take_in_background() && twice.text("background").is_err());
    }

    #[test]
    fn decimals_are_finite() {
        for wrong in ["nan", "inf", "-inf", "infinity", "four", "1,5"] {
            let error = form("strength", wrong).decimal(&table::STRENGTH).unwrap_err();
            assert_eq!((error.field, error.kind), ("strength", FaultKind::WrongType), "{wrong}");
        }
        assert_eq!(form("strength", "4").decimal(&table::STRENGTH), Ok(Some(4.0)));
    }

    #[test]
    fn the_canonical_name_wins_over_an_alias() {
        let mut fields = form("steps", "3");
        fields.push("num_inference_steps".to_owned(), RawValue::Text("4".into()));
        fields.resolve_aliases();
        assert_eq!(fields.integer(&table::STEPS).unwrap(), Some(4));
        assert_eq!(fields.left_over(), ["steps"]);

        let mut fields = form("steps", "3");
        fields.resolve_aliases();
        assert_eq!(fields.integer(&table::STEPS).unwrap(), Some(3));
    }

    #[test]
    fn one_value_is_expected_where_one_is_meant() {
        let mut fields = form("n", "1");
        fields.push("n".to_owned(), RawValue::Text("2".into()));

        assert_eq!(fields.integer(&table::N).unwrap_err().field, "n");
    }
}
