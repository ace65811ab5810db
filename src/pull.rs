//! `diffuser-api pull … --file`: what is printed of the files that it brought.

use crate::hub::FetchedFiles;
use crate::model;

/// The paths, one a line: first what was asked for, then what goes with it.
#[must_use]
pub fn paths(fetched: &FetchedFiles) -> String {
    let files = fetched.files.iter().chain(&fetched.companions);
    files.map(|path| format!("{}\n", path.display())).collect()
}

/// What is missing to serve them, a line each.
#[must_use]
pub fn missing(fetched: &FetchedFiles) -> String {
    let parts = model::missing_parts(&fetched.files, &fetched.folder);
    parts.iter().map(|part| format!("{part}\n")).collect()
}
