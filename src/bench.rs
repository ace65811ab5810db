//! `diffuser-api bench`: what a picture takes, as a table and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use crate::checkpoint::Snapshot;
use crate::model::qwen_image::benchmark::{
    BenchmarkReport, Configuration, Estimate, Published, Run,
};
use crate::model::{PictureCheck, find_embedded};
use crate::nn::StepCheck;

/// No configuration of that name.
#[derive(Debug, thiserror::Error)]
#[error(
    "no configuration '{name}': expected qwen-image, qwen-image-edit, qwen-image-edit-2511, an \
     embedded model, or a folder with a model_index.json"
)]
pub struct UnknownConfiguration {
    name: String,
}

/// The configuration that `name` means.
///
/// # Errors
/// [`UnknownConfiguration`] naming those there are.
pub fn configuration(name: &str) -> Result<Configuration, UnknownConfiguration> {
    let published = [Published::TextToImage, Published::Edit, Published::Edit2511];
    if let Some(published) = published.into_iter().find(|published| published.name() == name) {
        return Ok(Configuration::Published(published));
    }
    if let Some(snapshot) = find_embedded(name) {
        return Ok(Configuration::Checkpoint(snapshot));
    }
    let folder = Path::new(name);
    if folder.join("model_index.json").is_file() {
        return Ok(Configuration::Checkpoint(Snapshot::Directory(folder.to_owned())));
    }
    Err(UnknownConfiguration { name: name.to_owned() })
}

/// The report as lines for people, in Markdown.
#[must_use]
pub fn table(report: &BenchmarkReport) -> String {
    let mut text = String::new();
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    // Writing to a String cannot fail.
    _ = writeln!(
        text,
        "{} in {}: {:.2} GiB of weights, made in {:.1} s; {} image and {} text tokens a pass",
        report.device,
        report.dtype,
        gib(report.weight_bytes),
        report.load_s,
        report.image_tokens,
        report.text_tokens,
    );
    if let Some(ceiling) = report.ceiling_tflops {
        _ = writeln!(text, "a large product of matrices: {ceiling:.3} TFLOP/s");
    }
    if let Some(bytes) = report.peak_bytes {
        _ = writeln!(text, "peak memory: {:.2} GiB", gib(bytes));
    }
    for (index, run) in report.runs.iter().enumerate() {
        _ = write!(text, "\npicture {}\n\n{}", index + 1, stages(run, report.ceiling_tflops));
    }
    text
}

/// What a device can do at most.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// Tera floating-point operations a second.
    pub tflops: f64,
    /// Bytes of memory a second.
    pub bytes_s: f64,
}

/// The estimate as lines for people, in Markdown: the least time of each stage on a
/// device of `peak`, which no program can beat without computing something else.
#[must_use]
pub fn estimate_table(estimate: &Estimate, peak: Peak) -> String {
    let mut text = format!(
        "{:.2} GiB of weights; {} image and {} text tokens a pass; at {:.0} TFLOP/s and {:.0} GB/s\n\n\
         | stage | TFLOP | GB of weights read | least seconds |\n|---|---|---|---|\n",
        estimate.weight_bytes as f64 / (1u64 << 30) as f64,
        estimate.image_tokens,
        estimate.text_tokens,
        peak.tflops,
        peak.bytes_s / 1e9,
    );
    let mut sum = 0.0;
    for stage in &estimate.stages {
        let least = (stage.tflop / peak.tflops).max(stage.bytes_read / peak.bytes_s);
        sum += least;
        let (name, tflop, read) = (stage.name, stage.tflop, stage.bytes_read / 1e9);
        _ = writeln!(text, "| {name} | {tflop:.3} | {read:.2} | {least:.4} |");
    }
    _ = writeln!(text, "| in all | | | {sum:.4} |");
    text
}

/// How each picture came out, in Markdown.
#[must_use]
pub fn picture_table(checks: &[PictureCheck]) -> String {
    let mut text = String::from(
        "| model | format | largest difference | dB | at least | |\n|---|---|---|---|---|---|\n",
    );
    for check in checks {
        let PictureCheck { model, dtype, largest_difference, decibels, least_decibels } = check;
        let verdict = if check.passed() { "right" } else { "WRONG" };
        // Writing to a String cannot fail.
        _ = writeln!(
            text,
            "| {model} | {dtype:?} | {largest_difference} | {decibels:.1} | {least_decibels} | {verdict} |"
        );
    }
    text
}

/// How each fused step came out, in Markdown.
#[must_use]
pub fn kernel_table(checks: &[StepCheck]) -> String {
    let mut text = String::from(
        "| step | format | largest difference | tolerance | |\n|---|---|---|---|---|\n",
    );
    for check in checks {
        let StepCheck { step, dtype, largest_difference, tolerance } = check;
        let verdict = if check.passed() { "right" } else { "WRONG" };
        // Writing to a String cannot fail.
        _ = writeln!(
            text,
            "| {step} | {dtype} | {largest_difference:.1e} | {tolerance:.1e} | {verdict} |"
        );
    }
    text
}

fn stages(run: &Run, ceiling_tflops: Option<f64>) -> String {
    let mut text = String::from(
        "| stage | seconds | CPU seconds | TFLOP | TFLOP/s | of the ceiling |\n|---|---|---|---|---|---|\n",
    );
    for stage in &run.stages {
        let (seconds, tflop) = (stage.seconds, stage.tflop);
        _ = write!(text, "| {} | {seconds:.3} | {:.2} |", stage.name, stage.cpu_s);
        _ = if tflop > 0.0 {
            let speed = tflop / seconds;
            let share = |ceiling| format!("{:.0} %", 100.0 * speed / ceiling);
            let share = ceiling_tflops.map(share).unwrap_or_default();
            writeln!(text, " {tflop:.3} | {speed:.3} | {share} |")
        } else {
            writeln!(text, " | | |")
        };
    }
    _ = writeln!(text, "| in all | {:.3} | {:.2} | | | |", run.total_s, run.total_cpu_s);
    let mut steps = run.steps_s.clone();
    steps.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (steps.first(), steps.last()) {
        let median = steps[steps.len() / 2];
        _ = writeln!(
            text,
            "\na step: {median:.3} s (median of {}; {least:.3} to {most:.3})",
            steps.len()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::qwen_image::benchmark::{EstimatedStage, Stage};

    #[test]
    fn a_configuration_is_a_published_one_an_embedded_one_or_a_folder() {
        assert!(matches!(configuration("qwen-image-edit"), Ok(Configuration::Published(_))));
        assert!(matches!(configuration("tiny-random"), Ok(Configuration::Checkpoint(_))));
        let error = configuration("no-such-model").unwrap_err().to_string();
        assert!(error.contains("no-such-model") && error.contains("qwen-image-edit-2511"));
    }

    #[test]
    fn the_least_time_is_that_of_what_is_scarcer() {
        let stage = |name, tflop, bytes_read| EstimatedStage { name, tflop, bytes_read };
        let estimate = Estimate {
            image_tokens: 1,
            text_tokens: 1,
            weight_bytes: 1 << 30,
            stages: vec![stage("computes", 10.0, 1e9), stage("reads", 1.0, 40e9)],
        };

        let table = estimate_table(&estimate, Peak { tflops: 5.0, bytes_s: 10e9 });

        assert!(table.contains("| computes | 10.000 | 1.00 | 2.0000 |"), "{table}");
        assert!(table.contains("| reads | 1.000 | 40.00 | 4.0000 |"), "{table}");
        assert!(table.contains("| in all | | | 6.0000 |"), "{table}");
    }

    #[test]
    fn the_table_has_speeds_only_where_products_were_counted() {
        let stage = |name, tflop| Stage { name, seconds: 2.0, cpu_s: 4.0, tflop };
        let run = Run {
            total_s: 4.0,
            total_cpu_s: 8.0,
            stages: vec![stage("plan", 0.0), stage("steps", 3.0)],
            steps_s: vec![0.9, 1.1],
        };

        let table = stages(&run, Some(3.0));

        assert!(table.contains("| plan | 2.000 | 4.00 | | | |"), "{table}");
        assert!(table.contains("| steps | 2.000 | 4.00 | 3.000 | 1.500 | 50 % |"), "{table}");
        assert!(table.contains("a step: 1.100 s (median of 2; 0.900 to 1.100)"), "{table}");
    }
}
