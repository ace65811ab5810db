//! How far a measurement is: a line that turns on a terminal, else a plain line for each
//! stage. On standard error, so that tables and numbers stay alone.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Work;

/// How often the line on a terminal is drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(200);

/// Tells people what is measured now.
pub(super) struct Progress {
    shown: Shown,
    started: Instant,
}

enum Shown {
    /// One line, drawn again and again.
    Terminal(ProgressBar),
    /// A line for each stage.
    Lines(Box<dyn Write>),
}

impl Progress {
    /// On standard error.
    pub(super) fn for_terminal() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::lines(Box::new(std::io::stderr()));
        }
        let style = ProgressStyle::with_template("{spinner} {elapsed_precise} {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let shown = Shown::Terminal(ProgressBar::new_spinner().with_style(style));
        Self { shown, started: Instant::now() }
    }

    fn lines(writer: Box<dyn Write>) -> Self {
        Self { shown: Shown::Lines(writer), started: Instant::now() }
    }

    /// It begins with `work`.
    pub(super) fn tell(&mut self, work: Work) {
        match &mut self.shown {
            // That has a bar of its own.
            Shown::Terminal(_) if work == Work::Loading => {}
            Shown::Terminal(line) => {
                line.set_message(sentence(work));
                line.enable_steady_tick(DRAWN_EVERY);
            }
            // The stage has its line already, or takes no time.
            Shown::Lines(_) if is_further_step(work) => {}
            Shown::Lines(writer) => {
                let seconds = self.started.elapsed().as_secs_f64();
                // Whoever closed standard error does not want to know.
                _ = writeln!(writer, "{seconds:.1} s: {}", sentence(work));
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Terminal(line) = &self.shown {
            line.finish_and_clear();
        }
    }
}

fn is_further_step(work: Work) -> bool {
    matches!(work, Work::Stage { name: "plan", .. } | Work::Stage { step: Some((2.., _)), .. })
}

fn sentence(work: Work) -> String {
    match work {
        Work::Loading => "making weights".to_owned(),
        Work::Stage { name, picture, pictures, step } => {
            let step = step.map(|(step, steps)| format!(", step {step} of {steps}"));
            format!("picture {picture} of {pictures}: {name}{}", step.unwrap_or_default())
        }
        Work::Trace => "one more picture, operation by operation".to_owned(),
        Work::Ceiling => "a large product".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written into it is looked at from outside.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_stage_has_a_line_where_there_is_no_terminal_and_the_steps_have_one_together() {
        let written = Written::default();
        let mut progress = Progress::lines(Box::new(written.clone()));
        let stage = |name, step| Work::Stage { name, picture: 1, pictures: 2, step };

        progress.tell(Work::Loading);
        progress.tell(stage("plan", None));
        progress.tell(stage("vae encoder", None));
        progress.tell(stage("steps", Some((1, 2))));
        progress.tell(stage("steps", Some((2, 2))));
        progress.tell(Work::Ceiling);

        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let said: Vec<_> = text.lines().map(|line| line.split_once(" s: ").unwrap().1).collect();
        let expected = [
            "making weights",
            "picture 1 of 2: vae encoder",
            "picture 1 of 2: steps, step 1 of 2",
            "a large product",
        ];
        assert_eq!(said, expected);
    }
}
