//! Parameters of OpenAI's that a local model has no use for.

use super::super::fields::Fields;
use crate::domain::ValidationError;

/// Checks what has no effect here, and says so where the client asked for
/// something else than what it gets.
pub(super) fn take(fields: &mut Fields, warnings: &mut Vec<String>) -> Result<(), ValidationError> {
    let choices: [(&'static str, &[&'static str]); 4] = [
        ("input_fidelity", &["high", "low"]),
        ("moderation", &["auto", "low"]),
        ("style", &["vivid", "natural"]),
        ("complexity", &["low", "medium", "high"]),
    ];
    let mut warn = |name: &str| warnings.push(format!("'{name}' has no effect on this server."));
    for (name, allowed) in choices {
        if fields.choice(name, allowed)?.is_some_and(|value| value != "auto") {
            warn(name);
        }
    }
    for name in ["user", "safety_identifier"] {
        if fields.text(name)?.is_some() {
            warn(name);
        }
    }
    Ok(())
}
