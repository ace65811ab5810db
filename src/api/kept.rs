//! Finished files on their way into the store of pictures, for replies that give their
//! addresses.

use bytes::Bytes;
use futures::future::join_all;

use super::error::ApiError;
use super::origin::Origin;
use super::state::AppState;
use crate::domain::{FaultKind, ValidationError};
use crate::pictures::{Address, StoreError};

/// The store, and where its client believes this server to be.
#[derive(Clone)]
pub(super) struct Keeper {
    pub(super) state: AppState,
    pub(super) origin: Origin,
}

impl Keeper {
    /// Stores a file and gives its address.
    async fn keep(&self, file: Bytes, extension: &str) -> Result<String, StoreError> {
        Ok(match self.state.store.keep(file, extension).await? {
            Address::Signed(url) => url,
            Address::Name(name) => {
                let path = self.state.path(&format!("/images/files/{name}"));
                self.origin.url_of(&path)
            }
        })
    }

    /// Stores the files of a reply that has nothing but their addresses.
    ///
    /// # Errors
    /// The first that occurs: without its address a picture is lost.
    pub(super) async fn keep_all(
        &self,
        files: &[Bytes],
        extension: &str,
    ) -> Result<Vec<String>, ApiError> {
        let keeping = files.iter().map(|file| self.keep(file.clone(), extension));
        join_all(keeping).await.into_iter().collect::<Result<_, _>>().map_err(unstored)
    }

    /// Stores the files of a reply that has the pictures, too: what cannot be stored has no
    /// address, and a warning says so.
    pub(super) async fn keep_what_fits(
        &self,
        files: &[Bytes],
        extension: &str,
    ) -> (Vec<Option<String>>, Option<String>) {
        let keeping = files.iter().map(|file| self.keep(file.clone(), extension));
        let mut warning = None;
        let note = |error: StoreError| {
            tracing::warn!(%error, "a picture was not stored");
            warning = Some(warning_of(&error));
        };
        let kept = join_all(keeping).await.into_iter();
        let urls = kept.scan(note, |note, kept| Some(kept.map_err(note).ok())).collect();
        (urls, warning)
    }
}

/// What a client is told whose picture came, and was not stored.
fn warning_of(error: &StoreError) -> String {
    let reason = match error {
        StoreError::TooLarge => "it is larger than this server keeps",
        StoreError::Full(_) => "the storage is full",
        StoreError::NotInTime(_) | StoreError::Failed(_) => "the storage is not available",
    };
    format!("'store': the picture was not stored, for {reason}; there is no 'url'.")
}

/// The answer to who wants an address and nothing else.
fn unstored(error: StoreError) -> ApiError {
    match error {
        StoreError::TooLarge => {
            let message = "Invalid value for 'response_format': the picture is larger than this \
                           server keeps for a 'url'. Use 'b64_json'.";
            ValidationError::new("response_format", FaultKind::Invalid, message).into()
        }
        StoreError::Full(_) | StoreError::NotInTime(_) | StoreError::Failed(_) => error.into(),
    }
}
