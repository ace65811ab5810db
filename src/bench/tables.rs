//! What was measured or counted, as tables in Markdown.

use std::fmt::Write as _;

use super::{BenchmarkReport, Ceiling, Run};
use crate::model::PictureCheck;
use crate::model::benchmark::Estimate;
use crate::nn::StepCheck;
use crate::nn::trace::{Kind, OperationTime};

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
        report.tokens.image_tokens,
        report.tokens.text_tokens,
    );
    if let Some(ceiling) = report.ceiling_tflops {
        _ = writeln!(text, "a large product of matrices: {ceiling:.3} TFLOP/s");
    }
    if let Some(bytes) = report.peak_bytes {
        _ = writeln!(text, "peak memory: {:.2} GiB", gib(bytes));
    }
    for (index, run) in report.runs.iter().enumerate() {
        let known = (report.ceiling_tflops, report.loaded_bytes);
        _ = write!(text, "\npicture {}\n\n{}", index + 1, stages(run, known));
    }
    if !report.operations.is_empty() {
        _ = write!(text, "\nwhere the time goes, in a picture of its own\n\n");
        _ = write!(text, "{}", operation_table(&report.operations));
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
        estimate.tokens.image_tokens,
        estimate.tokens.text_tokens,
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

/// What each kind of operation takes in each stage, in Markdown.
#[must_use]
pub fn operation_table(operations: &[OperationTime]) -> String {
    let mut text = String::from(
        "| stage | operations | calls | seconds | of the stage | TFLOP/s |\n|---|---|---|---|---|---|\n",
    );
    let mut kinds: Vec<(&str, Kind)> = Vec::new();
    for operation in operations {
        if !kinds.contains(&(operation.stage, operation.kind)) {
            kinds.push((operation.stage, operation.kind));
        }
    }
    for (stage, kind) in kinds {
        let of_stage = || operations.iter().filter(move |operation| operation.stage == stage);
        let of_kind = || of_stage().filter(move |operation| operation.kind == kind);
        let whole: f64 = of_stage().map(|operation| operation.seconds).sum();
        let seconds: f64 = of_kind().map(|operation| operation.seconds).sum();
        let calls: usize = of_kind().map(|operation| operation.calls).sum();
        let tflop: f64 = of_kind().map(|operation| operation.tflop).sum();
        let speed = if tflop > 0.0 { format!("{:.3}", tflop / seconds) } else { String::new() };
        let share = 100.0 * seconds / whole;
        let kind = kind.name();
        _ = writeln!(
            text,
            "| {stage} | {kind} | {calls} | {seconds:.4} | {share:.1} % | {speed} |"
        );
    }
    text
}

/// What a device reaches at most, in Markdown.
#[must_use]
pub fn ceiling_table(ceiling: &Ceiling) -> String {
    let Ceiling { device, dtype, products, copy_gb_s } = ceiling;
    let mut text = format!("{device} in {dtype}\n\n| product | TFLOP/s |\n|---|---|\n");
    for product in products {
        let (rows, inputs, outputs) = (product.rows, product.inputs, product.outputs);
        _ = writeln!(text, "| {rows} x {inputs} x {outputs} | {:.3} |", product.tflops);
    }
    _ = writeln!(text, "\na copy: {copy_gb_s:.0} GB/s");
    text
}

/// The head of a table of [`picture_row`]s.
pub const PICTURE_HEAD: &str = "| model | format | largest difference | dB | at least | | differs first |\n\
                                |---|---|---|---|---|---|---|\n";

/// How a picture came out, in Markdown.
#[must_use]
pub fn picture_row(check: &PictureCheck) -> String {
    let PictureCheck { model, dtype, largest_difference, decibels, least_decibels, .. } = check;
    let verdict = if check.passed() { "right" } else { "WRONG" };
    let first = check.first_difference().map_or_else(
        || "nothing".to_owned(),
        |first| format!("{} by {:.1e}", first.stage, first.difference),
    );
    format!(
        "| {model} | {dtype} | {largest_difference} | {decibels:.1} | {least_decibels} | {verdict} | {first} |\n"
    )
}

/// The head of a table of [`kernel_row`]s.
pub const KERNEL_HEAD: &str =
    "| step | format | shape | largest difference | tolerance | |\n|---|---|---|---|---|---|\n";

/// How a fused step came out, in Markdown.
#[must_use]
pub fn kernel_row(check: &StepCheck) -> String {
    let StepCheck { step, dtype, shape, largest_difference, tolerance, .. } = check;
    let verdict = match (&check.refusal, &check.first_wrong) {
        (Some(reason), _) => format!("REFUSED: {reason}"),
        (None, Some(first)) => format!("WRONG: {} numbers, the first {first}", check.wrong),
        (None, None) => "right".to_owned(),
    };
    format!(
        "| {step} | {dtype} | {shape:?} | {largest_difference:.1e} | {tolerance:.1e} | {verdict} |\n"
    )
}

/// `loaded_bytes`: what the program had before the picture.
fn stages(run: &Run, (ceiling_tflops, loaded_bytes): (Option<f64>, Option<usize>)) -> String {
    let mut text = String::from(
        "| stage | seconds | CPU seconds | TFLOP | TFLOP/s | of the ceiling | GiB beside the weights |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for stage in &run.stages {
        let (seconds, tflop) = (stage.seconds, stage.tflop);
        _ = write!(text, "| {} | {seconds:.3} | {:.2} |", stage.name, stage.cpu_s);
        let memory = stage.peak_bytes.zip(loaded_bytes).map(|(peak, loaded)| {
            format!("{:.2}", peak.saturating_sub(loaded) as f64 / (1u64 << 30) as f64)
        });
        let memory = memory.unwrap_or_default();
        _ = if tflop > 0.0 {
            let speed = tflop / seconds;
            let share = |ceiling| format!("{:.0} %", 100.0 * speed / ceiling);
            let share = ceiling_tflops.map(share).unwrap_or_default();
            writeln!(text, " {tflop:.3} | {speed:.3} | {share} | {memory} |")
        } else {
            writeln!(text, " | | | {memory} |")
        };
    }
    _ = writeln!(text, "| in all | {:.3} | {:.2} | | | | |", run.total_s, run.total_cpu_s);
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
    use crate::bench::Stage;
    use crate::model::benchmark::{EstimatedStage, PassTokens};
    use crate::nn::WrongNumber;

    #[test]
    fn the_least_time_is_that_of_what_is_scarcer() {
        let stage = |name, tflop, bytes_read| EstimatedStage { name, tflop, bytes_read };
        let estimate = Estimate {
            tokens: PassTokens { image_tokens: 1, text_tokens: 1, shown_patches: Vec::new() },
            weight_bytes: 1 << 30,
            stages: vec![stage("computes", 10.0, 1e9), stage("reads", 1.0, 40e9)],
        };

        let table = estimate_table(&estimate, Peak { tflops: 5.0, bytes_s: 10e9 });

        assert!(table.contains("| computes | 10.000 | 1.00 | 2.0000 |"), "{table}");
        assert!(table.contains("| reads | 1.000 | 40.00 | 4.0000 |"), "{table}");
        assert!(table.contains("| in all | | | 6.0000 |"), "{table}");
    }

    #[test]
    fn operations_are_summed_by_stage_and_kind() {
        let time = |stage, kind, name, seconds, tflop| OperationTime {
            stage,
            kind,
            name,
            calls: 2,
            seconds,
            tflop,
        };
        let operations = [
            time("steps", Kind::Product, "product", 1.0, 3.0),
            time("steps", Kind::Norm, "modulated norm", 2.0, 0.0),
            time("steps", Kind::Product, "product, bias, GELU", 1.0, 5.0),
            time("vae decoder", Kind::Norm, "channel norm", 8.0, 0.0),
        ];

        let table = operation_table(&operations);

        assert!(table.contains("| steps | product | 4 | 2.0000 | 50.0 % | 4.000 |"), "{table}");
        assert!(table.contains("| steps | norm | 2 | 2.0000 | 50.0 % |  |"), "{table}");
        assert!(table.contains("| vae decoder | norm | 2 | 8.0000 | 100.0 % |  |"), "{table}");
    }

    #[test]
    fn a_wrong_step_is_told_with_the_first_number() {
        let first = WrongNumber { index: vec![0, 7], expected: 1.5, seen: f32::NAN };
        let check = StepCheck {
            step: "gated sum",
            dtype: "bf16",
            shape: vec![2, 9],
            largest_difference: f64::NAN,
            tolerance: 0.0625,
            wrong: 3,
            first_wrong: Some(first),
            refusal: None,
        };

        let row = kernel_row(&check);

        let expected = "| WRONG: 3 numbers, the first at [0, 7] 1.5e0 is expected, NaN is seen |";
        assert!(row.contains("| [2, 9] | NaN |") && row.contains(expected), "{row}");
        let refused = StepCheck { refusal: Some("no kernel".to_owned()), ..check };
        assert!(kernel_row(&refused).contains("| REFUSED: no kernel |"));
    }

    #[test]
    fn the_table_has_speeds_only_where_products_were_counted() {
        let stage =
            |name, tflop, peak_bytes| Stage { name, seconds: 2.0, cpu_s: 4.0, tflop, peak_bytes };
        let run = Run {
            total_s: 4.0,
            total_cpu_s: 8.0,
            stages: vec![stage("plan", 0.0, None), stage("steps", 3.0, Some(7 << 29))],
            steps_s: vec![0.9, 1.1],
        };

        let table = stages(&run, (Some(3.0), Some(3 << 30)));

        assert!(table.contains("| plan | 2.000 | 4.00 | | | |  |"), "{table}");
        assert!(
            table.contains("| steps | 2.000 | 4.00 | 3.000 | 1.500 | 50 % | 0.50 |"),
            "{table}"
        );
        assert!(table.contains("a step: 1.100 s (median of 2; 0.900 to 1.100)"), "{table}");
    }
}
