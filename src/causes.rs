//! An error with all that caused it, in one line: for the log, and for the last words of the
//! program.

use std::error::Error;

/// Letters of the line: what is quoted of a file may be of any length.
const LONGEST: usize = 4000;

/// `error` and its causes, outermost first, in one line that is not too long.
#[must_use]
pub fn one_line(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let line = causes.map(|cause| first_line(&cause.to_string())).collect::<Vec<_>>().join(": ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Further lines are a backtrace, which some errors carry.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Caused {
        text: String,
        source: Option<Box<Self>>,
    }

    fn caused(text: impl Into<String>, source: Option<Caused>) -> Caused {
        Caused { text: text.into(), source: source.map(Box::new) }
    }

    #[test]
    fn causes_stand_behind_one_another_without_their_backtraces() {
        let error = caused("no picture", Some(caused("out of memory\n  0: frame\n", None)));

        assert_eq!(one_line(&error), "no picture: out of memory");
    }

    #[test]
    fn a_line_of_any_length_is_cut_between_letters() {
        assert_eq!(one_line(&caused("é".repeat(LONGEST), None)).chars().count(), LONGEST);

        let cut = one_line(&caused("é".repeat(LONGEST + 1), None));

        assert_eq!(cut.chars().count(), LONGEST + 1);
        assert!(cut.ends_with("é…"));
    }
}
