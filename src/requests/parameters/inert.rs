//! Parameters of OpenAI's that a local model has no use for.

use super::super::fields::Fields;
use super::super::table;
use crate::domain::ValidationError;

/// Checks what has no effect here, and says so where the client asked for
/// something else than what it gets.
pub(super) fn take(fields: &mut Fields, warnings: &mut Vec<String>) -> Result<(), ValidationError> {
    let mut warn = |name: &str| warnings.push(format!("'{name}' has no effect on this server."));
    for row in &table::INERT_CHOICES {
        if fields.choice(row)?.is_some_and(|value| value != "auto") {
            warn(row.name);
        }
    }
    for name in table::INERT_TEXTS {
        if fields.text(name)?.is_some() {
            warn(name);
        }
    }
    Ok(())
}
