//! The table of parameters, held against the documentation and itself.

use super::*;

#[test]
fn no_name_stands_for_two_things() {
    let names = TABLE.map(|row| row.name()).into_iter();
    let inert = INERT_CHOICES.iter().map(|row| row.name).chain(INERT_TEXTS);
    let all: Vec<&str> = names.chain(inert).chain(aliases().map(|(alias, _)| alias)).collect();

    for (index, name) in all.iter().enumerate() {
        assert!(!all[..index].contains(name), "{name}");
    }
}

/// The table for people: `docs/parameters.md`.
fn for_people() -> String {
    let mut text = "# Parameters\n\n\
        Written from `src/requests/table.rs`, which requests are read by and the page at \
        `/docs` is made from. The pictures, the mask and the prompt are described there. A \
        model that does not know a parameter refuses it by name.\n\n\
        | Parameter | Also | In | May be | Without it | What it does |\n\
        |---|---|---|---|---|---|\n"
        .to_owned();
    for row in TABLE {
        let schema = row.schema();
        let also: Vec<_> = row.aliases().iter().map(|alias| format!("`{alias}`")).collect();
        let default = schema.get("default").map_or(String::new(), |it| format!("`{it}`"));
        let cells = [
            format!("`{}`", row.name()),
            also.join(", "),
            endpoints(row.bodies()),
            allowed(&schema),
            default.replace('"', ""),
            schema["description"].as_str().unwrap().to_owned(),
        ];
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn endpoints(bodies: &[Body]) -> String {
    let each = [
        (EditForm, "edits"),
        (Generation, "generations"),
        (Variation, "variations"),
        (Replay, "replay"),
    ];
    if bodies == ALL {
        return "all".to_owned();
    }
    let named = each.into_iter().filter(|(body, _)| bodies.contains(body));
    named.map(|(_, name)| name).collect::<Vec<_>>().join(", ")
}

fn allowed(schema: &Value) -> String {
    let bound = |name: &str| schema.get(name).map(ToString::to_string);
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let written = |word: &Value| word.to_string().replace('"', "");
        let words = words.iter().map(|word| format!("`{}`", written(word)));
        return words.collect::<Vec<_>>().join(", ");
    }
    let least = bound("minimum").or(bound("exclusiveMinimum").map(|it| format!("above {it}")));
    match (least, bound("maximum"), bound("maxLength")) {
        (Some(least), Some(most), _) => {
            format!("{}, {least} to {most}", schema["type"].as_str().unwrap())
        }
        (_, _, Some(most)) => format!("text, at most {most} characters"),
        _ if schema["type"] == "array" => {
            format!("list of `name` and `scale`, at most {}", schema["maxItems"])
        }
        _ => schema["type"].as_str().unwrap().replace("string", "text"),
    }
}

#[test]
fn the_page_of_parameters_is_what_the_table_says() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/parameters.md");

    let written = std::fs::read_to_string(file).unwrap_or_default();

    let expected = for_people();
    if written != expected {
        let made = std::env::temp_dir().join("parameters.md");
        std::fs::write(&made, expected).unwrap();
        panic!("docs/parameters.md is old: copy {} over it", made.display());
    }
}

#[test]
fn bounds_are_those_that_are_checked() {
    let schema = STEPS.schema();
    assert_eq!((&schema["minimum"], &schema["maximum"]), (&json!(1), &json!(150)));
    assert!(Steps::new(150).is_ok() && Steps::new(151).is_err());
    let schema = SEED.schema();
    assert_eq!((&schema["minimum"], &schema["maximum"]), (&json!(-1), &json!(u64::MAX)));
    let schema = STRENGTH.schema();
    assert_eq!((&schema["exclusiveMinimum"], &schema["maximum"]), (&json!(0), &json!(1)));
}
