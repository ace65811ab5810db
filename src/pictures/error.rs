//! Why a picture cannot be stored or fetched, and why a store cannot be opened.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a picture cannot be stored or fetched.
///
/// The causes are texts, in which the names of pictures are left out: whoever reads one can
/// fetch the picture, and causes go to the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is larger than all pictures together may be.
    #[error("the picture is larger than all pictures together may be")]
    TooLarge,
    /// There is no room where pictures are kept.
    #[error("the store of pictures is full: {0}")]
    Full(String),
    /// It did not answer.
    #[error("the store of pictures gave no answer within {} s", .0.as_secs())]
    NotInTime(Duration),
    /// It failed, or refused.
    #[error("the store of pictures failed: {0}")]
    Failed(String),
}

impl From<object_store::Error> for StoreError {
    fn from(error: object_store::Error) -> Self {
        let cause = without_secrets(&error.to_string());
        if is_for_want_of_room(&error) { Self::Full(cause) } else { Self::Failed(cause) }
    }
}

/// `text` without what cannot be guessed of the names in it.
fn without_secrets(text: &str) -> String {
    const SECRET: usize = 32;
    let words = text.split_inclusive(|letter: char| !letter.is_ascii_hexdigit());
    let shown = words.map(|word| {
        let digits = word.trim_end_matches(|letter: char| !letter.is_ascii_hexdigit());
        if digits.len() < SECRET {
            word.to_owned()
        } else {
            format!("…{}", &word[digits.len()..])
        }
    });
    shown.collect()
}

/// Whether a disk, or the share of it that may be used, is full.
fn is_for_want_of_room(error: &object_store::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let first: &dyn Error = error;
    let causes = std::iter::successors(Some(first), |error| (*error).source());
    causes
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| [FileTooLarge, QuotaExceeded, StorageFull].contains(&error.kind()))
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder cannot be made or written.
    #[error("cannot keep pictures in the folder {} (pictures.store)", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What is said of a bucket does not do.
    #[error("cannot keep pictures in {location} (pictures.store)")]
    Bucket {
        /// The bucket, as the settings write it.
        location: String,
        /// What is missing or wrong.
        #[source]
        source: object_store::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_do_not_give_addresses_away() {
        let path = "file.png: 9999999999-0123456789abcdef0123456789abcdef.png not found (404)";

        let shown = without_secrets(path);

        assert_eq!(shown, "file.png: 9999999999-….png not found (404)");
    }

    #[test]
    fn a_full_disk_is_told_from_other_faults() {
        let error = |kind: io::ErrorKind| {
            let source = io::Error::from(kind).into();
            StoreError::from(object_store::Error::Generic { store: "test", source })
        };

        assert!(matches!(error(io::ErrorKind::StorageFull), StoreError::Full(_)));
        assert!(matches!(error(io::ErrorKind::PermissionDenied), StoreError::Failed(_)));
    }
}
