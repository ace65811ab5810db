//! The LoRAs that a request names: files that the server has, each with a strength.

use super::{FaultKind, ValidationError};

/// The field that carries them.
const FIELD: &str = "loras";

/// A LoRA by the name that the server lists it under, and how strongly it acts.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestLora {
    name: String,
    scale: f64,
}

impl RequestLora {
    /// The longest name, in characters.
    pub const MAX_NAME: usize = 200;
    /// The strongest, in either direction.
    pub const MAX_SCALE: f64 = 10.0;

    /// Accepts a [`RequestLora::check_name`]d name, and a finite scale of -10 to 10;
    /// 1 acts as it was trained, 0 not at all.
    ///
    /// # Errors
    /// [`ValidationError`] on `loras` for any other.
    pub fn new(name: impl Into<String>, scale: f64) -> Result<Self, ValidationError> {
        let name = name.into();
        Self::check_name(&name)?;
        let scale =
            ValidationError::check_decimal(FIELD, scale, -Self::MAX_SCALE, Self::MAX_SCALE)?;
        Ok(Self { name, scale })
    }

    /// Accepts 1 to 200 characters that can be the name of a file in a folder, and lead
    /// nowhere else: no separators, no control characters, no dot at the beginning.
    ///
    /// # Errors
    /// [`ValidationError`] on `loras` for any other.
    pub fn check_name(name: &str) -> Result<(), ValidationError> {
        let fault = |kind, reason: String| {
            Err(ValidationError::new(FIELD, kind, format!("Invalid '{FIELD}': {reason}")))
        };
        let (characters, maximum) = (name.chars().count(), Self::MAX_NAME);
        if name.is_empty() {
            return fault(FaultKind::TextTooShort, "a LoRA needs a name.".to_owned());
        }
        if characters > maximum {
            let reason = format!("a name has at most {maximum} characters, got {characters}.");
            return fault(FaultKind::TextTooLong, reason);
        }
        let leads_elsewhere = |letter: char| matches!(letter, '/' | '\\') || letter.is_control();
        if name.starts_with('.') || name.contains(leads_elsewhere) {
            let reason = "a LoRA is named as the server lists it, not by a path: the name has no \
                          slashes and does not begin with a dot.";
            return fault(FaultKind::Invalid, reason.to_owned());
        }
        Ok(())
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How strongly it acts.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }
}

/// The LoRAs of one request, at most eight, whose changes add up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestLoras(Vec<RequestLora>);

impl RequestLoras {
    /// How many a request may name.
    pub const MAX: usize = 8;

    /// Accepts at most eight.
    ///
    /// # Errors
    /// [`ValidationError`] on `loras` if they are more.
    pub fn new(loras: Vec<RequestLora>) -> Result<Self, ValidationError> {
        let (count, maximum) = (loras.len(), Self::MAX);
        if count > maximum {
            let reason = format!("Invalid '{FIELD}': expected at most {maximum}, got {count}.");
            return Err(ValidationError::new(FIELD, FaultKind::ListTooLong, reason));
        }
        Ok(Self(loras))
    }

    /// Them, in the request's order.
    #[must_use]
    pub fn as_slice(&self) -> &[RequestLora] {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_but_into_the_folder() {
        for name in ["style", "lightning 8 steps v1.1", "stil-ä_2", "a.safetensors", "C:x"] {
            assert_eq!(RequestLora::new(name, 1.0).unwrap().name(), name);
        }
        for name in ["../x", "a/b", r"a\b", ".hidden", ".", "..", "/etc/passwd", "a\0b", "a\nb"] {
            let error = RequestLora::new(name, 1.0).unwrap_err();
            assert_eq!((error.field, error.kind), ("loras", FaultKind::Invalid), "{name:?}");
        }
        assert_eq!(RequestLora::new("", 1.0).unwrap_err().kind, FaultKind::TextTooShort);
        assert!(RequestLora::new("é".repeat(200), 1.0).is_ok());
        let error = RequestLora::new("a".repeat(201), 1.0).unwrap_err();
        assert_eq!((error.field, error.kind), ("loras", FaultKind::TextTooLong));
    }

    #[test]
    fn scales_are_finite_and_bounded_and_so_is_the_list() {
        for scale in [-10.0, -0.5, 0.0, 10.0] {
            assert_eq!(RequestLora::new("style", scale).unwrap().scale(), scale);
        }
        for scale in [f64::NAN, f64::INFINITY, -10.1, 10.1] {
            assert_eq!(RequestLora::new("style", scale).unwrap_err().field, "loras", "{scale}");
        }
        let many = |count| RequestLoras::new(vec![RequestLora::new("a", 1.0).unwrap(); count]);
        assert_eq!(many(8).unwrap().as_slice().len(), 8);
        assert_eq!(many(9).unwrap_err().kind, FaultKind::ListTooLong);
        assert!(RequestLoras::default().is_empty());
    }
}
