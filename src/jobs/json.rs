//! What is stored as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::JobStoreError;

/// Reads it.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, JobStoreError> {
    serde_json::from_str(text).map_err(|error| JobStoreError::Damaged(error.to_string()))
}

/// Writes it.
pub(super) fn written<T: Serialize>(value: &T) -> Result<String, JobStoreError> {
    serde_json::to_string(value).map_err(|error| JobStoreError::Damaged(error.to_string()))
}
