//! One line per log event: with the trace id and the order id of the request it belongs to, and
//! with the whole chain of an error's causes.

use std::error::Error;
use std::fmt::{self, Write};

use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::traces::LogFormat;

/// The span field that holds the order id.
pub(super) const ORDER: &str = "order.id";

/// Formats an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) format: LogFormat,
    /// Added to each line. `None` in a process that is not a service.
    pub(super) service: Option<&'static str>,
}

/// Spans are not printed, so their fields are not formatted.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoFields;

/// Layer that remembers the order id of a span for the lines in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Orders;

struct OrderId(String);

/// Finds the order id among the fields of a span.
#[derive(Default)]
struct Find(Option<String>);

/// The fields of an event, in order.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let order = order_id(ctx).filter(|_| !fields.has("order"));
        let (trace, service) = (trace_id(), self.service.filter(|_| !fields.has("service")));
        let added = [("order", order), ("trace_id", trace)];
        fields.rest.extend(added.into_iter().filter_map(|(name, value)| Some((name, Value::String(value?)))));
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        match self.format {
            LogFormat::Text => text(&mut writer, &time, event, service, &fields),
            LogFormat::Json => json(&mut writer, time, event, service, fields),
        }
    }
}

fn text(writer: &mut Writer<'_>, time: &str, event: &Event<'_>, service: Option<&str>, fields: &Fields) -> fmt::Result {
    let level = *event.metadata().level();
    if writer.has_ansi_escapes() {
        let colour = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            _ => 34,
        };
        write!(writer, "\x1b[2m{time}\x1b[0m \x1b[{colour}m{level:>5}\x1b[0m ")?;
    } else {
        write!(writer, "{time} {level:>5} ")?;
    }
    if let Some(service) = service {
        write!(writer, "{service}: ")?;
    }
    writer.write_str(&fields.message)?;
    for (name, value) in &fields.rest {
        match value {
            // Quoted when it could be mistaken for another field, or another line.
            Value::String(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"') => {
                write!(writer, " {name}={text}")?;
            }
            Value::String(text) => write!(writer, " {name}={text:?}")?,
            value => write!(writer, " {name}={value}")?,
        }
    }
    writer.write_char('\n')
}

fn json(
    writer: &mut Writer<'_>,
    time: String,
    event: &Event<'_>,
    service: Option<&str>,
    fields: Fields,
) -> fmt::Result {
    let metadata = event.metadata();
    let mut object = Map::new();
    object.insert("timestamp".to_owned(), time.into());
    object.insert("level".to_owned(), metadata.level().as_str().into());
    if let Some(service) = service {
        object.insert("service".to_owned(), service.into());
    }
    object.insert("target".to_owned(), metadata.target().into());
    object.insert("message".to_owned(), fields.message.into());
    for (name, value) in fields.rest {
        object.insert(name.to_owned(), value);
    }
    writeln!(writer, "{}", Value::Object(object))
}

/// The id of the current trace. The tracing layer activates a span's context while it is entered.
fn trace_id() -> Option<String> {
    let context = opentelemetry::Context::current();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| span.trace_id().to_string())
}

/// The order id of the innermost span that has one.
fn order_id<S, N>(ctx: &FmtContext<'_, S, N>) -> Option<String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    ctx.event_scope()?.find_map(|span| span.extensions().get::<OrderId>().map(|OrderId(id)| id.clone()))
}

/// An error with its causes, without those that its text already ends with.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            let _ = write!(text, ": {cause}");
        }
        source = error.source();
    }
    text
}

/// Text that cannot start a new line or change the terminal's state.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

impl Fields {
    fn has(&self, name: &str) -> bool {
        self.rest.iter().any(|(field, _)| *field == name)
    }

    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        let value = value.into();
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = printable(&text),
            (name, value) => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl<'writer> FormatFields<'writer> for NoFields {
    fn format_fields<R: RecordFields>(&self, _: Writer<'writer>, _: R) -> fmt::Result {
        Ok(())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Orders {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut find = Find::default();
        attributes.record(&mut find);
        remember(find, id, &ctx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let mut find = Find::default();
        values.record(&mut find);
        remember(find, id, &ctx);
    }
}

fn remember<S: Subscriber + for<'a> LookupSpan<'a>>(find: Find, id: &Id, ctx: &Context<'_, S>) {
    if let (Some(order), Some(span)) = (find.0, ctx.span(id)) {
        span.extensions_mut().replace(OrderId(order));
    }
}

impl Visit for Find {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == ORDER {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{Dispatch, info_span};
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::telemetry::traces::TARGET;

    /// Collects what is written.
    #[derive(Clone, Default)]
    pub(crate) struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Page {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let page = Page::default();
        let line = Line { format, service: Some("order") };
        let lines = tracing_subscriber::fmt::layer()
            .fmt_fields(NoFields)
            .event_format(line)
            .with_writer(page.clone())
            .with_ansi(false);
        let subscriber = Dispatch::new(tracing_subscriber::registry().with(lines).with(Orders));
        tracing::dispatcher::with_default(&subscriber, log);
        page.text()
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot answer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("the pool timed out")]
    struct Inner;

    #[test]
    fn an_error_is_logged_with_its_root_cause() {
        let error = Outer(Inner);
        let text = logged(LogFormat::Text, || tracing::error!(error = &error as &dyn Error, "failed"));
        assert!(text.ends_with("ERROR order: failed error=\"cannot answer: the pool timed out\"\n"), "{text}");
        #[derive(Debug, thiserror::Error)]
        #[error("wrapped: {0}")]
        struct Repeats(#[source] Inner);
        assert_eq!(chain(&Repeats(Inner)), "wrapped: the pool timed out");
    }

    #[test]
    fn the_order_is_on_every_line_of_its_span() {
        let text = logged(LogFormat::Text, || {
            let span = info_span!(target: TARGET, "request", order.id = tracing::field::Empty);
            let _entered = span.enter();
            tracing::info!("before");
            span.record(ORDER, "o-7");
            info_span!(target: TARGET, "inner").in_scope(|| tracing::info!("inside"));
            tracing::info!(order = "o-8", "its own");
        });
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("order: before"), "{text}");
        assert!(lines[1].ends_with("order: inside order=o-7"), "{text}");
        assert!(lines[2].ends_with("order: its own order=o-8"), "{text}");
    }

    #[test]
    fn text_from_outside_makes_no_second_line_and_no_second_field() {
        let evil = "x\n2026-01-01 ERROR order: forged level=3";
        let text = logged(LogFormat::Text, || tracing::info!(customer = evil, "{evil}"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(r#" customer="x\n2026"#), "{text}");
    }

    #[test]
    fn json_has_one_object_per_line() {
        let text = logged(LogFormat::Json, || tracing::warn!(cents = 7, declined = true, "charge"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["level"], &value["service"]), (&"WARN".into(), &"order".into()));
        assert_eq!((&value["message"], &value["cents"]), (&"charge".into(), &7.into()));
        assert!(value["declined"] == true && value["timestamp"].is_string() && value["target"].is_string());
    }
}
