//! The arrows of ARCHITECTURE.md, checked by text search: a layer names only
//! those below it.

use std::path::{Path, PathBuf};

/// Each layer with the layers that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("imaging", &["domain"]),
    ("interruption", &[]),
    ("checkpoint", &["interruption"]),
    ("device", &["domain"]),
    ("hub", &["checkpoint"]),
    ("nn", &["checkpoint", "interruption"]),
    (
        "model",
        &["nn", "checkpoint", "interruption", "device", "hub", "imaging", "domain", "metrics"],
    ),
    ("service", &["model", "imaging", "domain", "causes", "metrics", "telemetry", "terminal"]),
    ("pictures", &["tls"]),
    ("jobs", &["causes"]),
    ("webhooks", &["causes", "tls"]),
    ("requests", &["service", "model", "imaging", "domain", "metrics", "telemetry"]),
    (
        "api",
        &[
            "requests",
            "service",
            "pictures",
            "jobs",
            "webhooks",
            "model",
            "imaging",
            "domain",
            "causes",
            "metrics",
            "telemetry",
        ],
    ),
    ("allocator", &[]),
    ("causes", &[]),
    // Of the program, above all of the library.
    ("serving", &[]),
    ("signals", &[]),
    ("supervisor", &[]),
    ("metrics", &[]),
    ("telemetry", &["terminal"]),
    ("terminal", &[]),
    ("threads", &[]),
    ("tls", &[]),
    (
        "config",
        &[
            "api",
            "requests",
            "service",
            "pictures",
            "jobs",
            "webhooks",
            "model",
            "hub",
            "device",
            "domain",
            "telemetry",
        ],
    ),
    ("bench", &["model", "nn", "checkpoint", "device", "domain"]),
    ("plan", &["model"]),
    ("pull", &["model", "hub"]),
    ("inspect", &["model", "plan", "hub", "causes"]),
    ("convert", &["model", "hub"]),
    ("keys", &["api", "config"]),
    ("cli", &["bench", "config", "keys", "model", "nn", "hub", "domain"]),
];

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    files
}

/// The layer that a source file belongs to: its folder or file right below src.
fn layer_of(file: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let first = file.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The layers that follow `crate::` in `text`.
fn named_layers(text: &str) -> Vec<&str> {
    text.split("crate::")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            &rest[..end]
        })
        .collect()
}

#[test]
fn a_layer_names_only_those_below_it() {
    for file in sources() {
        let layer = layer_of(&file);
        if ["lib", "main"].contains(&layer.as_str()) {
            continue;
        }
        let (_, below) = ARROWS
            .iter()
            .find(|(name, _)| *name == layer)
            .unwrap_or_else(|| panic!("{layer} has no place in ARROWS"));
        let text = std::fs::read_to_string(&file).unwrap();
        for named in named_layers(&text) {
            let allowed = named == layer || below.contains(&named);
            assert!(allowed, "{} names crate::{named}", file.display());
        }
        // Grouped imports would hide arrows from this search.
        assert!(!text.contains("crate::{"), "{}", file.display());
    }
}

#[test]
fn tensors_stay_below_the_service_and_http_stays_in_the_api() {
    for file in sources() {
        let layer = layer_of(&file);
        let text = std::fs::read_to_string(&file).unwrap();
        if ["domain", "imaging", "service", "requests", "api", "config", "cli", "telemetry", "hub"]
            .contains(&layer.as_str())
        {
            assert!(!text.contains("candle"), "{} names candle", file.display());
        }
        if !["api", "main"].contains(&layer.as_str()) {
            assert!(!text.contains("axum"), "{} names axum", file.display());
        }
        if ["domain", "model", "nn", "checkpoint", "imaging"].contains(&layer.as_str()) {
            assert!(!text.contains("tokio"), "{} names tokio", file.display());
        }
    }
}
