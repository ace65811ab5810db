//! What the server counts and times, in Prometheus's words.
//!
//! A [`Metrics`] belongs to the pool of models; clones share it, so that two servers in one
//! process count apart. The layers call its methods where things happen. What mirrors a
//! state (lines, models, memory) is never written: [`Metrics::render`] is given a [`State`]
//! as it is then, so that it cannot drift.
//!
//! `names` has the one table of names. Every label has few values: models, LoRAs and routes
//! are those that the server has, and methods fold into `other`.

mod labels;
mod names;
mod process;
mod state;

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{counter, histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

pub use labels::{ErrorCode, LoadOutcome, Operation, Stage};
pub use state::{
    DeviceState, JobsState, LoraState, ModelState, ReplicaPresence, RequestMemoryState, State,
};

/// Where counts and times are kept; or nowhere, if the settings say so.
#[derive(Clone, Default)]
pub struct Metrics(Option<Arc<PrometheusRecorder>>);

/// Bounds of all histograms, in seconds: a tiny picture takes milliseconds, a large one on
/// a CPU an hour.
const BUCKETS_S: [f64; 19] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1200.0, 1800.0, 3600.0,
];

impl Metrics {
    /// Counts from zero.
    #[must_use]
    pub fn new() -> Self {
        Self(Some(Arc::new(recorder())))
    }

    /// Counts nothing, at no cost.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether anything is counted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Does `work`, in which [`cache_used`] counts here.
    pub fn on_this_thread<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(recorder) => with_local_recorder(recorder.as_ref(), work),
            None => work(),
        }
    }

    /// Has the series of `model` begin at zero, so that their first increase is seen.
    pub fn begin_model(&self, model: &str) {
        self.record(|| {
            let name = || model.to_owned();
            counter!(names::CANCELLATIONS, "model" => name()).increment(0);
            counter!(names::MODEL_UNLOADS, "model" => name()).increment(0);
            for outcome in LoadOutcome::ALL {
                counter!(names::MODEL_LOADS, "model" => name(), "outcome" => outcome.name())
                    .increment(0);
            }
            for operation in Operation::ALL {
                let operation = operation.name();
                counter!(names::IMAGES, "model" => name(), "operation" => operation).increment(0);
                counter!(names::PIXELS, "model" => name(), "operation" => operation).increment(0);
            }
            // A histogram that is named is there.
            drop(histogram!(names::QUEUE_WAIT, "model" => name()));
            drop(histogram!(names::STEP_DURATION, "model" => name()));
            drop(histogram!(names::MODEL_LOAD, "model" => name()));
            for stage in Stage::ALL {
                let stage = stage.name();
                drop(histogram!(names::STAGE_DURATION, "model" => name(), "stage" => stage));
            }
        });
    }

    /// A request was answered, or its client left. `route` is one of the server's.
    pub fn request_answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        self.record(|| {
            let method = labels::folded_method(method);
            let (route, status) = (route.to_owned(), status.to_string());
            histogram!(names::HTTP_DURATION, "route" => route.clone()).record(took);
            counter!(names::HTTP_REQUESTS, "method" => method, "route" => route, "status" => status)
                .increment(1);
        });
    }

    /// A request got an error.
    pub fn request_failed(&self, code: ErrorCode) {
        self.record(|| counter!(names::ERRORS, "code" => code.0).increment(1));
    }

    /// A reply has so many pictures, of so many pixels together.
    pub fn pictures_made(&self, model: &str, operation: Operation, images: usize, pixels: usize) {
        self.record(|| {
            let (operation, name) = (operation.name(), || model.to_owned());
            counter!(names::IMAGES, "model" => name(), "operation" => operation)
                .increment(images as u64);
            counter!(names::PIXELS, "model" => name(), "operation" => operation)
                .increment(pixels as u64);
        });
    }

    /// A job waited so long for its turn.
    pub fn waited(&self, model: &str, waited: Duration) {
        self.record(|| histogram!(names::QUEUE_WAIT, "model" => model.to_owned()).record(waited));
    }

    /// A step took so long: of all pictures that go through the network together.
    pub fn step_took(&self, model: &str, took: Duration) {
        self.record(|| histogram!(names::STEP_DURATION, "model" => model.to_owned()).record(took));
    }

    /// A request spent so long in a stage, all its pictures together.
    pub fn stage_took(&self, model: &str, stage: Stage, took: Duration) {
        self.record(|| {
            let stage = stage.name();
            histogram!(names::STAGE_DURATION, "model" => model.to_owned(), "stage" => stage)
                .record(took);
        });
    }

    /// A job was called off: its client left, or its time was over.
    pub fn called_off(&self, model: &str) {
        self.record(|| counter!(names::CANCELLATIONS, "model" => model.to_owned()).increment(1));
    }

    /// A model was loaded.
    pub fn model_loaded(&self, model: &str, took: Duration) {
        self.record(|| histogram!(names::MODEL_LOAD, "model" => model.to_owned()).record(took));
        self.count_load(model, LoadOutcome::Loaded);
    }

    /// A model could not be loaded.
    pub fn model_not_loaded(&self, model: &str) {
        self.count_load(model, LoadOutcome::Failed);
    }

    fn count_load(&self, model: &str, outcome: LoadOutcome) {
        self.record(|| {
            counter!(names::MODEL_LOADS, "model" => model.to_owned(), "outcome" => outcome.name())
                .increment(1);
        });
    }

    /// A model was unloaded.
    pub fn model_unloaded(&self, model: &str) {
        self.record(|| counter!(names::MODEL_UNLOADS, "model" => model.to_owned()).increment(1));
    }

    /// Everything as text, with `state` as it is now; `None` if nothing is counted. Reads
    /// files of the system: not for the async runtime.
    #[must_use]
    pub fn render(&self, state: &State) -> Option<String> {
        let recorder = self.0.as_ref()?;
        Some(recorder.handle().render() + &state::render(state))
    }

    /// Takes the times that were told since the last call into the histograms. To be called
    /// every few seconds: until then each is kept by itself.
    pub fn upkeep(&self) {
        if let Some(recorder) = &self.0 {
            recorder.handle().run_upkeep();
        }
    }

    fn record(&self, work: impl FnOnce()) {
        if let Some(recorder) = &self.0 {
            with_local_recorder(recorder.as_ref(), work);
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Metrics({})", if self.is_on() { "on" } else { "off" })
    }
}

/// A kept result was looked for. `cache` is one of the program's own words. Counts where
/// [`Metrics::on_this_thread`] says.
pub fn cache_used(cache: &'static str, is_hit: bool) {
    let name = if is_hit { names::CACHE_HITS } else { names::CACHE_MISSES };
    counter!(name, "cache" => cache).increment(1);
}

fn recorder() -> PrometheusRecorder {
    // Only an empty list is refused.
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS_S);
    let recorder = builder.unwrap_or_else(|_| PrometheusBuilder::new()).build_recorder();
    with_local_recorder(&recorder, names::describe);
    recorder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        metrics.render(&State::default()).unwrap()
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|other| other == line)
    }

    #[test]
    fn two_count_apart_and_one_that_is_off_counts_nothing() {
        let (first, second, off) = (Metrics::new(), Metrics::new(), Metrics::off());

        [&first, &off].into_iter().for_each(|metrics| metrics.called_off("a"));

        let line = "diffuser_cancellations_total{model=\"a\"} 1";
        assert!(has(&text(&first), line), "{}", text(&first));
        assert!(!text(&second).contains("diffuser_cancellations_total"));
        assert_eq!(off.render(&State::default()), None);
    }

    #[test]
    fn times_fall_into_buckets_of_seconds_and_upkeep_loses_none() {
        let metrics = Metrics::new();
        for milliseconds in [5, 40, 7_200_000] {
            metrics.step_took("a", Duration::from_millis(milliseconds));
            metrics.upkeep();
        }

        let text = text(&metrics);

        for (bound, count) in [("0.01", 1), ("0.025", 1), ("0.05", 2), ("3600", 2), ("+Inf", 3)] {
            let name = "diffuser_step_duration_seconds_bucket";
            let line = format!("{name}{{model=\"a\",le=\"{bound}\"}} {count}");
            assert!(has(&text, &line), "{line}: {text}");
        }
        assert!(has(&text, "diffuser_step_duration_seconds_sum{model=\"a\"} 7200.045"), "{text}");
    }

    #[test]
    fn a_model_begins_at_zero() {
        let metrics = Metrics::new();

        metrics.begin_model("a/b");

        let text = text(&metrics);
        for line in [
            "diffuser_cancellations_total{model=\"a/b\"} 0",
            "diffuser_images_total{model=\"a/b\",operation=\"edit\"} 0",
            "diffuser_model_loads_total{model=\"a/b\",outcome=\"failed\"} 0",
            "diffuser_stage_duration_seconds_count{model=\"a/b\",stage=\"denoising\"} 0",
        ] {
            assert!(has(&text, line), "{line}: {text}");
        }
    }

    #[test]
    fn caches_count_on_the_thread_that_was_given_to_them() {
        let metrics = Metrics::new();

        metrics.on_this_thread(|| [true, false, true].map(|is_hit| cache_used("prompt", is_hit)));
        cache_used("prompt", true);

        let text = text(&metrics);
        assert!(has(&text, "diffuser_cache_hits_total{cache=\"prompt\"} 2"), "{text}");
        assert!(has(&text, "diffuser_cache_misses_total{cache=\"prompt\"} 1"), "{text}");
    }

    #[test]
    fn strange_methods_fold_into_one() {
        let metrics = Metrics::new();
        for method in ["GET", "PROPFIND", "X\"}\n", "get"] {
            metrics.request_answered(method, "/health", 200, Duration::ZERO);
        }

        let text = text(&metrics);

        let series = |method: &str, count: usize| {
            format!(
                "diffuser_http_requests_total{{method=\"{method}\",route=\"/health\",\
                 status=\"200\"}} {count}"
            )
        };
        assert!(has(&text, &series("GET", 1)) && has(&text, &series("other", 3)), "{text}");
    }
}
