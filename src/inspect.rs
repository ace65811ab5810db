//! `diffuser-api inspect`: what files are, what is missing to run them, and what they take.

use std::fmt::Write as _;
use std::path::Path;

use indicatif::BinaryBytes;

use crate::causes::one_line;
use crate::hub::HubConfig;
use crate::model::{self, Inspection, ModelConfig, ModelFiles, ModelPlan};

/// What there is at a path.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// The path.
    pub path: String,
    /// Its files of weights: itself, or those in the folder.
    pub files: Vec<Inspection>,
    /// Files that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// What it takes as a model.
    pub plan: Option<ModelPlan>,
    /// Why it is no model, if it is none.
    pub missing: Option<String>,
}

/// Looks at the file or folder `path`, and at the model that it would be with `config`.
#[must_use]
pub fn report(path: &Path, config: &ModelConfig, hub: &HubConfig) -> Report {
    let mut report = Report {
        path: path.display().to_string(),
        files: Vec::new(),
        unreadable: Vec::new(),
        plan: None,
        missing: None,
    };
    for file in model::weight_files(path) {
        match model::inspect(&file) {
            Ok(found) => report.files.push(found),
            Err(error) => report.unreadable.push((file.display().to_string(), error.to_string())),
        }
    }
    match ModelFiles::find(config, hub).and_then(|files| files.plan()) {
        Ok(plan) => report.plan = Some(plan),
        Err(error) => report.missing = Some(one_line(&error)),
    }
    report
}

/// The report as lines for people.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for file in &report.files {
        text += &of_file(file);
    }
    for (file, reason) in &report.unreadable {
        // Most reasons begin with the file.
        let own = reason.strip_prefix(file.as_str()).unwrap_or(reason);
        _ = writeln!(text, "{file}\n  cannot be read: {}\n", own.trim_start_matches(": "));
    }
    match (&report.plan, &report.missing) {
        (Some(plan), _) => {
            _ = writeln!(text, "As a model: {}", crate::plan::table(plan));
        }
        (None, Some(missing)) => {
            _ = writeln!(text, "As a model it does not run: {missing}");
        }
        (None, None) => {}
    }
    text
}

fn of_file(file: &Inspection) -> String {
    let mut text = format!("{} ({})\n", file.file, file.format);
    for component in &file.components {
        _ = writeln!(text, "  {component}");
    }
    if let Some(otherwise) = &file.otherwise {
        _ = writeln!(text, "  {otherwise}");
    }
    for (storage, (count, bytes)) in &file.storages {
        _ = writeln!(text, "  {count:>6} tensors in {storage}: {}", BinaryBytes(*bytes as u64));
    }
    if let Some(fault) = &file.fault {
        let own = fault.strip_prefix(file.file.as_str()).unwrap_or(fault);
        _ = writeln!(text, "  cannot be used: {}", own.trim_start_matches(": "));
    }
    text + "\n"
}
