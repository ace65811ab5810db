//! What changes how the model works for one request: LoRAs, the step cache, the schedule.

use serde_json::{Map, Value, json};

use super::super::fields::{Fields, wrong_type};
use super::super::quality::Preset;
use super::super::table;
use crate::domain::{
    CacheThreshold, FaultKind, ImageRequest, RequestLora, RequestLoras, ScheduleShift,
    ValidationError,
};
use crate::model::ModelCard;

/// What a request says of this, or its quality stands for.
#[derive(Debug, Clone)]
pub(in super::super) struct Tuning {
    pub(in super::super) loras: RequestLoras,
    cache_threshold: Option<CacheThreshold>,
    schedule_shift: Option<ScheduleShift>,
}

impl Tuning {
    /// Takes it out of `fields`; what these do not say, `preset` does.
    pub(super) fn take(
        fields: &mut Fields,
        model: &ModelCard,
        preset: &Preset,
    ) -> Result<Self, ValidationError> {
        let loras = take_loras(fields)?;
        let cache =
            fields.decimal(&table::CACHE_THRESHOLD)?.map(CacheThreshold::new).transpose()?;
        let shift = fields.decimal(&table::SCHEDULE_SHIFT)?.map(ScheduleShift::new).transpose()?;
        for (name, is_given) in [
            (table::LORAS.name, loras.as_ref().is_some_and(|loras| !loras.is_empty())),
            (table::CACHE_THRESHOLD.name, cache.is_some()),
            (table::SCHEDULE_SHIFT.name, shift.is_some()),
        ] {
            if is_given && !model.is_tunable {
                let message = format!("Unsupported parameter: this model does not take '{name}'.");
                return Err(ValidationError::new(name, FaultKind::Unsupported, message));
            }
        }
        Ok(Self {
            loras: loras.unwrap_or_else(|| preset.loras.clone()),
            cache_threshold: cache,
            schedule_shift: shift.or(preset.schedule_shift),
        })
    }

    /// The same as fields of a request, for its recipe.
    pub(super) fn put_into(&self, fields: &mut Map<String, Value>) {
        if !self.loras.is_empty() {
            let loras = self.loras.as_slice().iter();
            let named = loras.map(|lora| json!({"name": lora.name(), "scale": lora.scale()}));
            fields.insert(table::LORAS.name.to_owned(), named.collect());
        }
        if let Some(threshold) = self.cache_threshold {
            fields.insert(table::CACHE_THRESHOLD.name.to_owned(), threshold.get().into());
        }
        if let Some(shift) = self.schedule_shift {
            fields.insert(table::SCHEDULE_SHIFT.name.to_owned(), shift.get().into());
        }
    }

    /// `request` with it.
    pub(super) fn of<Size>(&self, request: ImageRequest<Size>) -> ImageRequest<Size> {
        ImageRequest {
            loras: self.loras.clone(),
            cache_threshold: self.cache_threshold,
            schedule_shift: self.schedule_shift,
            ..request
        }
    }
}

fn take_loras(fields: &mut Fields) -> Result<Option<RequestLoras>, ValidationError> {
    let name = table::LORAS.name;
    let entries = match fields.value(name)? {
        None => return Ok(None),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(wrong_type(name, "a list", &other.to_string())),
    };
    // Counted before they are looked at.
    if entries.len() > RequestLoras::MAX {
        let (most, got) = (RequestLoras::MAX, entries.len());
        let message = format!("Invalid '{name}': expected at most {most}, got {got}.");
        return Err(ValidationError::new(name, FaultKind::ListTooLong, message));
    }
    let loras = entries.into_iter().map(lora).collect::<Result<Vec<_>, _>>()?;
    RequestLoras::new(loras).map(Some)
}

/// A name, or an object with a name and perhaps a scale.
fn lora(entry: Value) -> Result<RequestLora, ValidationError> {
    let field = table::LORAS.name;
    let expected = "names, or objects with 'name' and 'scale'";
    let wrong = |got: &str| wrong_type(field, expected, got);
    match entry {
        Value::String(name) => RequestLora::new(name, 1.0),
        Value::Object(mut lora) => {
            let name = match lora.remove("name") {
                Some(Value::String(name)) => name,
                _ => return Err(wrong("an object without a name")),
            };
            let scale = match lora.remove("scale") {
                None | Some(Value::Null) => 1.0,
                Some(scale) => scale.as_f64().ok_or_else(|| wrong("a scale that is no number"))?,
            };
            match lora.keys().next() {
                None => RequestLora::new(name, scale),
                Some(other) => Err(wrong(&format!("an object with '{other}'"))),
            }
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_)) => {
            Err(wrong(&other.to_string()))
        }
    }
}
