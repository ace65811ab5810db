//! Lines of the log: as text, or as JSON objects.
//!
//! An object has `timestamp`, `level`, `target` and `message`, then the fields of the line,
//! then those of the spans around it under the names of both: `request_id` is the field `id`
//! of the span `request`. With traces there are `trace_id` and `span_id`, too.

use std::fmt::Debug;
use std::io::{IsTerminal, Write};

use opentelemetry::Context as TraceContext;
use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::{LogFormat, spans};
use crate::terminal::AboveBars;

/// What writes lines to standard error.
pub(super) fn lines<S>(format: LogFormat, has_traces: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    match format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(|| AboveBars)
            .with_ansi(std::io::stderr().is_terminal())
            .event_format(TextLine)
            .boxed(),
        LogFormat::Json => JsonLines { writers: || AboveBars, has_traces }.boxed(),
    }
}

/// Has panics logged as lines like all others: without this they are text.
pub(super) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let cause = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(cause, location, thread = thread.name(), "panicked");
    }));
}

/// Whether a span is of the traces: lines stand in such spans, too, and do not show them.
fn is_of_traces(metadata: &Metadata<'_>) -> bool {
    metadata.target() == spans::TARGET
}

/// A line as `tracing_subscriber` writes it, but for the spans of traces.
struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let metadata = event.metadata();
        let (dim, bold, plain) = if writer.has_ansi_escapes() {
            ("\x1b[2m", "\x1b[1m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        write!(writer, "{dim}")?;
        SystemTime.format_time(&mut writer)?;
        let colour = if dim.is_empty() { "" } else { colour_of(*metadata.level()) };
        write!(writer, "{plain} {colour}{:>5}{plain} ", metadata.level().as_str())?;
        let mut has_spans = false;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if is_of_traces(span.metadata()) {
                continue;
            }
            has_spans = true;
            write!(writer, "{bold}{}{plain}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, "{bold}{{{plain}{fields}{bold}}}{plain}")?;
            }
            write!(writer, "{dim}:{plain}")?;
        }
        let space = if has_spans { " " } else { "" };
        write!(writer, "{space}{dim}{}:{plain} ", metadata.target())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// The escape for the colour of a level.
fn colour_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// Writes a JSON object a line.
struct JsonLines<W> {
    writers: W,
    /// Whether lines have the ids of traces.
    has_traces: bool,
}

/// The fields of a span, in its extensions.
struct SpanFields(Fields);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Fields::of(event);
        for span in context.event_scope(event).into_iter().flatten() {
            if is_of_traces(span.metadata()) {
                continue;
            }
            if let Some(SpanFields(fields)) = span.extensions().get() {
                line.add_span(span.name(), fields);
            }
        }
        if self.has_traces {
            line.add_trace();
        }
        let mut bytes = serde_json::to_vec(&line.0).unwrap_or_default();
        bytes.push(b'\n');
        // Where standard error is closed there is nowhere to tell that.
        let _ = self.writers.make_writer_for(event.metadata()).write_all(&bytes);
    }
}

/// Fields with their values, in their order.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn of(event: &Event<'_>) -> Self {
        let (mut fields, metadata) = (Self::default(), event.metadata());
        let mut now = String::new();
        // A text takes whatever is written into it.
        let _ = SystemTime.format_time(&mut Writer::new(&mut now));
        fields.0.insert("timestamp".to_owned(), now.into());
        fields.0.insert("level".to_owned(), metadata.level().as_str().into());
        fields.0.insert("target".to_owned(), metadata.target().into());
        fields.0.insert("message".to_owned(), Value::Null);
        event.record(&mut fields);
        if let Some(message @ Value::Null) = fields.0.get_mut("message") {
            *message = "".into();
        }
        fields
    }

    fn add_span(&mut self, span: &str, fields: &Self) {
        for (name, value) in &fields.0 {
            self.add(format!("{span}_{name}"), value.clone());
        }
    }

    /// The ids of the span of a trace in which this is.
    fn add_trace(&mut self) {
        let ids = TraceContext::map_current(|context| {
            let span = context.span();
            let ids = span.span_context();
            ids.is_valid().then(|| (ids.trace_id().to_string(), ids.span_id().to_string()))
        });
        if let Some((trace, span)) = ids {
            self.add("trace_id".to_owned(), trace.into());
            self.add("span_id".to_owned(), span.into());
        }
    }

    /// Adds a field, under another name if there is one of its own.
    fn add(&mut self, mut name: String, value: Value) {
        while self.0.get(&name).is_some_and(|known| !known.is_null()) {
            name.push('_');
        }
        self.0.insert(name, value);
    }

    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.add(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        if value.is_finite() { self.set(field, value) } else { self.set(field, value.to_string()) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry;

    use super::*;

    /// What is written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `work` logs.
    fn logged(work: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let writer = written.clone();
        let layer = JsonLines { writers: move || writer.clone(), has_traces: false };
        tracing::subscriber::with_default(registry().with(layer), work);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    #[test]
    fn a_line_is_one_object_whatever_is_in_it() {
        let lines = logged(|| {
            let (text, number) = ("first\nsecond\r\n\"third\" \u{1b}[0m", 0.5);
            tracing::info!(
                text,
                number,
                infinite = f64::INFINITY,
                count = 3,
                is = true,
                "two\nrows"
            );
            tracing::error!(error = &io::Error::other("why\nnot") as &dyn std::error::Error);
        });

        let [first, second] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(first["text"], "first\nsecond\r\n\"third\" \u{1b}[0m");
        assert_eq!((&first["message"], &first["level"]), (&json!("two\nrows"), &json!("INFO")));
        assert_eq!((&first["number"], &first["infinite"]), (&json!(0.5), &json!("inf")));
        assert_eq!((&first["count"], &first["is"]), (&json!(3), &json!(true)));
        assert_eq!((&second["message"], &second["error"]), (&json!(""), &json!("why\nnot")));
        assert!(second["target"].as_str().unwrap().ends_with("telemetry::logs::tests"));
        assert!(second["timestamp"].as_str().unwrap().starts_with("20"));
    }

    #[test]
    fn fields_of_spans_bear_the_names_of_both_and_hide_none_of_the_line() {
        let lines = logged(|| {
            let span = tracing::info_span!("request", id = "seven", late = tracing::field::Empty);
            span.record("late", 1);
            let _entered = span.entered();
            tracing::info!(request_id = "eight", level = "mine", "told");
        });

        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&line["request_id"], &line["request_id_"]), (&json!("eight"), &json!("seven")));
        assert_eq!((&line["level"], &line["level_"]), (&json!("INFO"), &json!("mine")));
        assert_eq!(line["request_late"], 1);
    }
}
