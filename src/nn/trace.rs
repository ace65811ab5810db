//! Where a picture's time goes: spans of named work, nested as the calls are.
//!
//! A GPU works behind the program's back. There a span lies between two events that
//! the GPU passes in the order of its stream: recording waits for nothing, and what the
//! GPU idles for belongs to the span that it idles in. On other devices the clock is
//! this program's, which waits for the device at both ends unless that is the CPU.
//!
//! Spans belong to the thread that [`record`] was called on. While nobody records, a
//! span is one look at a flag of the thread.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::Instant;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::{
    WrapErr,
    cudarc::driver::{CudaEvent, sys::CUevent_flags},
};
use candle_core::{Device, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// What kind of work a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A part of the picture, which other spans share out; its own time is what none
    /// of them names, and what the device waited for.
    Stage,
    /// Products with weights.
    Product,
    /// Attention with all that belongs to it.
    Attention,
    /// Convolutions.
    Convolution,
    /// Normalisations, with the modulation or the turn that is made with them.
    Norm,
    /// Activations.
    Activation,
    /// Other arithmetic number by number: gates, guidance, rounding to 8 bits.
    Elementwise,
    /// Elements that only change their places.
    Copy,
}

impl Kind {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stage => "between",
            Self::Product => "product",
            Self::Attention => "attention",
            Self::Convolution => "convolution",
            Self::Norm => "norm",
            Self::Activation => "activation",
            Self::Elementwise => "elementwise",
            Self::Copy => "copy",
        }
    }
}

/// What is recorded until it is dropped.
#[must_use = "a span ends when it is dropped"]
pub struct Span {
    index: Option<usize>,
    /// Recorders belong to a thread.
    thread: PhantomData<*const ()>,
}

/// A part of the picture.
pub fn stage(name: &'static str) -> Span {
    open(Kind::Stage, name, None)
}

/// One of several parts that are alike.
pub fn numbered(name: &'static str, number: usize) -> Span {
    open(Kind::Stage, name, Some(number))
}

/// Work of a kind.
pub fn span(kind: Kind, name: &'static str) -> Span {
    open(kind, name, None)
}

/// Work whose floating-point operations are counted.
pub fn counted(kind: Kind, name: &'static str, operations: impl FnOnce() -> f64) -> Span {
    let span = open(kind, name, None);
    span.count(operations);
    span
}

impl Span {
    /// Ends it, and begins the next part of the picture.
    pub fn next(&mut self, name: &'static str) {
        self.end();
        let mut next = stage(name);
        self.index = next.index.take();
    }

    /// Counts floating-point operations, once it is certain that they are done here.
    pub fn count(&self, operations: impl FnOnce() -> f64) {
        let Some(index) = self.index else { return };
        let operations = operations();
        RECORDER.with_borrow_mut(|recorder| {
            recorder.iter_mut().for_each(|it| it.spans[index].named.operations = operations);
        });
    }

    fn end(&mut self) {
        let Some(index) = self.index.take() else { return };
        RECORDER.with_borrow_mut(|recorder| recorder.iter_mut().for_each(|it| it.close(index)));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end();
    }
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

fn open(kind: Kind, name: &'static str, number: Option<usize>) -> Span {
    let index = RECORDER.with_borrow_mut(|recorder| {
        Some(recorder.as_mut()?.open(Named { kind, name, number, operations: 0.0 }))
    });
    Span { index, thread: PhantomData }
}

/// What `work` returns, and where its time went on `device`.
///
/// # Errors
/// A candle error if the device's clock fails.
pub fn record<R>(device: &Device, work: impl FnOnce() -> R) -> Result<(R, Trace)> {
    /// Ends recording even if the work panics.
    struct Recording;

    impl Drop for Recording {
        fn drop(&mut self) {
            RECORDER.set(None);
        }
    }

    RECORDER.set(Some(Recorder { clock: Clock::of(device), open: Vec::new(), spans: Vec::new() }));
    let recording = Recording;
    let made = {
        let _whole = stage("picture");
        work()
    };
    let recorder = RECORDER.take();
    drop(recording);
    device.synchronize()?;
    let spans = recorder.map(|recorder| recorder.spans).unwrap_or_default();
    Ok((made, Trace::of(&spans)?))
}

struct Named {
    kind: Kind,
    name: &'static str,
    number: Option<usize>,
    operations: f64,
}

struct Recorder {
    clock: Clock,
    /// Indices of the spans that have not ended, from the outermost in.
    open: Vec<usize>,
    spans: Vec<Recorded>,
}

struct Recorded {
    named: Named,
    parent: Option<usize>,
    start: Result<Mark>,
    end: Option<Result<Mark>>,
}

impl Recorder {
    fn open(&mut self, named: Named) -> usize {
        let parent = self.open.last().copied();
        let index = self.spans.len();
        self.open.push(index);
        self.spans.push(Recorded { named, parent, start: self.clock.mark(), end: None });
        index
    }

    /// Ends span `index`, and first those inside it that were kept longer.
    fn close(&mut self, index: usize) {
        if !self.open.contains(&index) {
            return;
        }
        while let Some(innermost) = self.open.pop() {
            self.spans[innermost].end = Some(self.clock.mark());
            if innermost == index {
                break;
            }
        }
    }
}

enum Clock {
    /// The program's.
    Program,
    /// The program's, once the device is done.
    Waiting(Device),
    /// Events of the GPU.
    #[cfg(feature = "cuda")]
    Card(candle_core::CudaDevice),
}

enum Mark {
    Instant(Instant),
    #[cfg(feature = "cuda")]
    Event(CudaEvent),
}

impl Clock {
    fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => Self::Program,
            #[cfg(feature = "cuda")]
            Device::Cuda(card) => Self::Card(card.clone()),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Self::Waiting(device.clone()),
            Device::Metal(_) => Self::Waiting(device.clone()),
        }
    }

    fn mark(&self) -> Result<Mark> {
        match self {
            Self::Program => Ok(Mark::Instant(Instant::now())),
            Self::Waiting(device) => {
                device.synchronize()?;
                Ok(Mark::Instant(Instant::now()))
            }
            #[cfg(feature = "cuda")]
            Self::Card(card) => {
                let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
                Ok(Mark::Event(card.cuda_stream().record_event(flags).w()?))
            }
        }
    }
}

impl Mark {
    /// Microseconds from `self` to `later`.
    fn until(&self, later: &Self) -> Result<f64> {
        match (self, later) {
            (Self::Instant(earlier), Self::Instant(later)) => {
                Ok(later.duration_since(*earlier).as_secs_f64() * 1e6)
            }
            #[cfg(feature = "cuda")]
            (Self::Event(earlier), Self::Event(later)) => {
                Ok(f64::from(earlier.elapsed_ms(later).w()?) * 1e3)
            }
            #[cfg(feature = "cuda")]
            _ => candle_core::bail!("a trace has one clock"),
        }
    }
}

/// What was recorded.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// In the order in which they began: a span comes after the one that it is in.
    pub spans: Vec<TracedSpan>,
}

/// A span with its times.
#[derive(Debug, Clone)]
pub struct TracedSpan {
    /// What was done.
    pub name: &'static str,
    /// Which of several.
    pub number: Option<usize>,
    /// Which kind of work.
    pub kind: Kind,
    /// The index of the span that it is in.
    pub parent: Option<usize>,
    /// Microseconds from the start of the trace.
    pub start_us: f64,
    /// Microseconds.
    pub duration_us: f64,
    /// Floating-point operations, where they are counted.
    pub operations: f64,
}

/// What all spans of one name took in a stage.
#[derive(Debug, Clone, Serialize)]
pub struct OperationTime {
    /// The outermost part of the picture that they are in.
    pub stage: &'static str,
    /// Which kind of work.
    pub kind: Kind,
    /// What was done.
    pub name: &'static str,
    /// How often.
    pub calls: usize,
    /// Seconds, those of spans inside them not counted: so all of them add up to the whole.
    pub seconds: f64,
    /// Tera floating-point operations, where they are counted.
    pub tflop: f64,
}

impl Trace {
    fn of(spans: &[Recorded]) -> Result<Self> {
        let Some(first) = spans.first() else { return Ok(Self::default()) };
        let first = marked(&first.start)?;
        let traced = |span: &Recorded| {
            let start_us = first.until(marked(&span.start)?)?;
            let end = span.end.as_ref().map(marked).transpose()?;
            let end_us = end.map_or(Ok(start_us), |end| first.until(end))?;
            let Named { kind, name, number, operations } = span.named;
            let (parent, duration_us) = (span.parent, end_us - start_us);
            Ok(TracedSpan { name, number, kind, parent, start_us, duration_us, operations })
        };
        Ok(Self { spans: spans.iter().map(traced).collect::<Result<_>>()? })
    }

    /// What each name took in each stage, in the order in which they appeared.
    #[must_use]
    pub fn operations(&self) -> Vec<OperationTime> {
        let mut own_us: Vec<f64> = self.spans.iter().map(|span| span.duration_us).collect();
        for span in &self.spans {
            if let Some(parent) = span.parent {
                own_us[parent] -= span.duration_us;
            }
        }
        let mut times: Vec<OperationTime> = Vec::new();
        for (index, (span, own_us)) in self.spans.iter().zip(own_us).enumerate() {
            let (stage, kind, name) = (self.stage_of(index), span.kind, span.name);
            let same =
                |time: &OperationTime| (time.stage, time.kind, time.name) == (stage, kind, name);
            let place = times.iter().position(same).unwrap_or_else(|| {
                times.push(OperationTime { stage, kind, name, calls: 0, seconds: 0.0, tflop: 0.0 });
                times.len() - 1
            });
            let time = &mut times[place];
            time.calls += 1;
            time.seconds += own_us / 1e6;
            time.tflop += span.operations / 1e12;
        }
        times
    }

    /// The name of the span right below the whole that span `index` is in.
    fn stage_of(&self, mut index: usize) -> &'static str {
        while let Some(parent) = self.spans[index].parent {
            if self.spans[parent].parent.is_none() {
                break;
            }
            index = parent;
        }
        self.spans[index].name
    }

    /// As browsers' viewers of traces take it (`chrome://tracing`, Perfetto).
    #[must_use]
    pub fn to_chrome(&self) -> Value {
        let event = |span: &TracedSpan| {
            let name = match span.number {
                Some(number) => format!("{} {number}", span.name),
                None => span.name.to_owned(),
            };
            let arguments = if span.operations > 0.0 {
                json!({ "gflop": span.operations / 1e9 })
            } else {
                json!({})
            };
            json!({
                "name": name, "cat": span.kind.name(), "ph": "X", "pid": 1, "tid": 1,
                "ts": span.start_us, "dur": span.duration_us, "args": arguments,
            })
        };
        let events: Vec<Value> = self.spans.iter().map(event).collect();
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }
}

fn marked(mark: &Result<Mark>) -> Result<&Mark> {
    mark.as_ref().map_err(|error| candle_core::Error::Msg(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of a product in a block in a stage, and of a copy beside the block.
    fn traced() -> Trace {
        let work = || {
            let mut stage = stage("encoder");
            {
                let _block = numbered("block", 3);
                drop(counted(Kind::Product, "layer", || 2e9));
            }
            drop(span(Kind::Copy, "heads"));
            stage.next("decoder");
        };
        record(&Device::Cpu, work).unwrap().1
    }

    #[test]
    fn spans_nest_as_calls_do_and_share_out_the_whole() {
        let trace = traced();

        let names: Vec<_> = trace.spans.iter().map(|span| (span.name, span.parent)).collect();
        let expected = [
            ("picture", None),
            ("encoder", Some(0)),
            ("block", Some(1)),
            ("layer", Some(2)),
            ("heads", Some(1)),
            ("decoder", Some(0)),
        ];
        assert_eq!(names, expected);
        for span in &trace.spans {
            let Some(parent) = span.parent.map(|parent| &trace.spans[parent]) else { continue };
            assert!(span.start_us >= parent.start_us, "{span:?} in {parent:?}");
            let end = |span: &TracedSpan| span.start_us + span.duration_us;
            assert!(end(span) <= end(parent) + 1e-6, "{span:?} in {parent:?}");
        }
        let operations = trace.operations();
        let sum: f64 = operations.iter().map(|time| time.seconds).sum();
        assert!((sum - trace.spans[0].duration_us / 1e6).abs() < 1e-9, "{operations:?}");
        let layer = operations.iter().find(|time| time.name == "layer").unwrap();
        assert_eq!((layer.stage, layer.kind, layer.calls), ("encoder", Kind::Product, 1));
        assert!((layer.tflop - 2e-3).abs() < 1e-12);
    }

    #[test]
    fn what_is_inside_a_span_is_not_counted_twice() {
        let span = |name, parent, duration_us| TracedSpan {
            name,
            number: None,
            kind: Kind::Stage,
            parent,
            start_us: 0.0,
            duration_us,
            operations: 0.0,
        };
        let spans = vec![
            span("whole", None, 10e6),
            span("stage", Some(0), 7e6),
            span("part", Some(1), 4e6),
        ];

        let seconds: Vec<f64> =
            Trace { spans }.operations().iter().map(|time| time.seconds).collect();

        assert_eq!(seconds, [3.0, 3.0, 4.0]);
    }

    #[test]
    fn a_trace_is_what_browsers_read() {
        let text = traced().to_chrome().to_string();

        let parsed: Value = serde_json::from_str(&text).unwrap();
        let events = parsed["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 6);
        assert_eq!((&events[2]["name"], &events[2]["ph"]), (&json!("block 3"), &json!("X")));
        assert_eq!(
            (&events[3]["cat"], &events[3]["args"]["gflop"]),
            (&json!("product"), &json!(2.0))
        );
        assert!(events.iter().all(|event| event["ts"].is_f64() && event["dur"].is_f64()));
    }

    #[test]
    fn nothing_is_recorded_beside_the_recording() {
        let panicking = || record(&Device::Cpu, || panic!("the work's own fault"));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert!(stage("after a panic").index.is_none());

        let elsewhere = || std::thread::spawn(|| stage("elsewhere").index.is_none()).join();
        let (alone, trace) = record(&Device::Cpu, elsewhere).unwrap();

        assert!(alone.unwrap());
        assert_eq!(trace.spans.len(), 1);
        assert!(stage("afterwards").index.is_none());
    }

    #[test]
    fn a_span_that_was_kept_too_long_ends_with_the_one_around_it() {
        let work = || {
            let outer = stage("outer");
            let inner = stage("inner");
            drop(outer);
            drop(inner);
            drop(stage("next"));
        };

        let (_, trace) = record(&Device::Cpu, work).unwrap();

        assert_eq!(trace.spans[3].parent, Some(0));
        assert!(trace.spans[2].duration_us <= trace.spans[1].duration_us);
    }
}
