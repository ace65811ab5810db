//! JSON bodies as `api/json.rs` reads them: what a plain parser takes is taken, with the same
//! values, but for what is over a limit; what it does not take is refused.
#![no_main]

mod fields;

mod requests {
    pub(crate) use crate::fields::{Fields, RawValue, quote};
}

/// The program's modules, without the rest of it.
#[path = "../../src/api"]
mod api {
    mod error {
        #[derive(Debug)]
        #[allow(dead_code, reason = "whatever it is, it is an error")]
        pub(super) enum ApiError {
            Malformed(String),
        }
    }
    mod json;

    pub(crate) fn parse(body: &[u8]) -> Option<crate::requests::Fields> {
        json::parse(body, crate::MAX_FIELDS).ok()
    }
}

use fields::RawValue;
use serde_json::{Map, Value};

/// Fields, bytes of a name, and values in all, that are taken.
const MAX_FIELDS: usize = 256;
const MAX_NAME_BYTES: usize = 1024;
const MAX_VALUES: usize = 4096;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let plain: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    let Some(fields) = api::parse(body) else {
        let is_over = |plain: &Map<String, Value>| {
            plain.len() > MAX_FIELDS || plain.keys().any(|name| name.len() > MAX_NAME_BYTES)
        };
        assert!(plain.as_ref().is_none_or(is_over), "refused: {plain:?}");
        return;
    };
    // What is skipped is not looked at closely.
    if body.len() > MAX_VALUES && fields.0.iter().any(|(_, value)| *value == RawValue::Oversized) {
        return;
    }
    let mut plain = plain.expect("a plain parser takes it, too");
    plain.retain(|_, value| !value.is_null());
    assert_eq!(fields.0.len(), plain.len());
    for (name, value) in fields.0 {
        assert!(matches!(value, RawValue::Json(value) if plain.get(&name) == Some(&value)), "{name}");
    }
});
