//! `diffuser-api plan`: what a model will take, as a table.

use std::fmt::Write as _;

use indicatif::BinaryBytes;

use crate::model::{ModelPlan, PlannedComponent};

/// The plan as lines for people, in Markdown.
#[must_use]
pub fn table(plan: &ModelPlan) -> String {
    let readable = |bytes: usize| BinaryBytes(bytes as u64);
    let ModelPlan { model, pipeline, device, dtype, image_area, .. } = plan;
    let mut text = format!(
        "{model} ({pipeline}) on {device} in {dtype}, for pictures of {image_area} pixels\n\n\
         | what | bytes | |\n|---|---|---|\n"
    );
    for component in &plan.components {
        let PlannedComponent { name, bytes, .. } = component;
        _ = writeln!(text, "| {name} | {} | {} |", readable(*bytes), stay(component));
    }
    if let Some(bytes) = plan.activation_bytes {
        _ = writeln!(text, "| activations | {} | while a picture is made |", readable(bytes));
    }
    let total = readable(plan.total_bytes);
    _ = writeln!(text, "| in all | {total} | the most at a time |");
    let verdict = if plan.fits() { "it fits" } else { "IT DOES NOT FIT" };
    _ = match plan.free_bytes {
        Some(free) => writeln!(text, "| free | {} | {verdict} |", readable(free)),
        None => writeln!(text, "| free | not known | |"),
    };
    text
}

/// How much of a component stays.
fn stay(component: &PlannedComponent) -> String {
    let PlannedComponent { bytes, resident_bytes, .. } = *component;
    if resident_bytes == bytes {
        return "stays".to_owned();
    }
    if resident_bytes == 0 {
        return "read when needed".to_owned();
    }
    let rest = BinaryBytes((bytes - resident_bytes) as u64);
    format!("{} stay, {rest} read when needed", BinaryBytes(resident_bytes as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_bytes_and_where_they_lie_and_the_sum_is_held_against_what_is_free() {
        let part = |name, bytes, resident_bytes| PlannedComponent { name, bytes, resident_bytes };
        let plan = ModelPlan {
            model: "test/model".to_owned(),
            pipeline: "TestPipeline".to_owned(),
            device: "cpu".to_owned(),
            dtype: "bfloat16".to_owned(),
            image_area: 1 << 20,
            components: vec![
                part("vae", 1 << 30, 1 << 30),
                part("text encoder", 2 << 30, 0),
                part("transformer", 4 << 30, 3 << 30),
            ],
            activation_bytes: Some(1 << 30),
            total_bytes: 7 << 30,
            free_bytes: Some(6 << 30),
        };

        let text = table(&plan);

        for line in [
            "| vae | 1.00 GiB | stays |",
            "| text encoder | 2.00 GiB | read when needed |",
            "| transformer | 4.00 GiB | 3.00 GiB stay, 1.00 GiB read when needed |",
            "| activations | 1.00 GiB |",
            "| in all | 7.00 GiB |",
            "| free | 6.00 GiB | IT DOES NOT FIT |",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(table(&ModelPlan { free_bytes: Some(7 << 30), ..plan }).contains("| it fits |"));
    }
}
