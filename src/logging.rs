//! Sets up what operators read: diagnostics through `tracing`, pingora's `log` records included, and the access log.
//! It imports only floors 0 and 1, so any floor may hold an [`AccessLog`]; it never decides what a request meant.

mod access;
mod sink;
mod text;

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use prometheus::IntCounter;
use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

pub use access::{AccessEntry, AccessField, AccessLog};
use sink::{Sink, WriterThread};

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// For eyes.
    Human,
}

/// Where lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// How to log.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How lines look.
    pub format: Format,
    /// Where they go.
    pub output: Output,
    /// A level (`info`) for Tollgate, or `tracing-subscriber` directives (`tollgate=debug,pingora=info`).
    pub filter: Box<str>,
    /// Colour the human format.
    pub colour: bool,
    /// The fields of the access log; `None` turns it off.
    pub access: Option<Box<[AccessField]>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::Json,
            output: Output::Stdout,
            filter: "info".into(),
            colour: false,
            access: Some(AccessField::DEFAULT.into()),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum InitError {
    /// The filter is neither a level nor a list of directives.
    #[error(
        "log filter {filter:?} is not a level (error, warn, info, debug, trace) or a list of target=level: {reason}"
    )]
    Filter {
        /// The text as configured.
        filter: Box<str>,
        /// What is wrong with it.
        reason: Box<str>,
    },
    /// The operating system gave no thread for the writer.
    #[error("the log writer thread could not be started: {0}")]
    Thread(#[from] io::Error),
    /// Logging was set up before in this process.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Running logging; dropping it writes what is left.
#[derive(Debug)]
pub struct Logging {
    access: AccessLog,
    sink: Sink,
    _thread: WriterThread,
}

impl Logging {
    /// The access log to hand to the request path.
    pub fn access(&self) -> AccessLog {
        self.access.clone()
    }

    /// Writes what is waiting, for at most a second: call it before `std::process::exit`.
    pub fn flush(&self) {
        self.sink.flush(Duration::from_secs(1));
    }
}

/// Installs the process-wide subscriber; lines that cannot be written in time are counted in `dropped`.
pub fn init(settings: &Settings, dropped: IntCounter) -> Result<Logging, InitError> {
    let (sink, thread) = match settings.output {
        Output::Stdout => Sink::start(io::stdout(), dropped)?,
        Output::Stderr => Sink::start(io::stderr(), dropped)?,
    };
    subscriber(settings, sink.clone())?.try_init().map_err(|_| InitError::AlreadySet)?;
    let access = match &settings.access {
        Some(fields) => AccessLog::new(sink.clone(), fields, settings.format),
        None => AccessLog::disabled(),
    };
    Ok(Logging { access, sink, _thread: thread })
}

/// Checks a filter without installing anything, for the configuration.
pub fn check_filter(filter: &str) -> Result<(), InitError> {
    env_filter(filter).map(drop)
}

fn subscriber(settings: &Settings, sink: Sink) -> Result<Box<dyn Subscriber + Send + Sync>, InitError> {
    let filter = env_filter(&settings.filter)?;
    let noise = ClientNoise { wanted: settings.filter.contains("pingora") };
    let layers = tracing_subscriber::registry().with(filter).with(noise);
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines(sink)).log_internal_errors(false);
    Ok(match settings.format {
        Format::Json => Box::new(layers.with(lines.json().flatten_event(true).with_current_span(false))),
        Format::Human => Box::new(layers.with(lines.compact().with_ansi(settings.colour))),
    })
}

/// A bare level speaks of Tollgate alone: libraries stay at warnings. Directives are added to that ground.
fn env_filter(filter: &str) -> Result<EnvFilter, InitError> {
    let filter = filter.trim();
    let directives = if filter.contains(['=', ',']) {
        format!("warn,tollgate=info,{filter}")
    } else {
        format!("warn,tollgate={filter}")
    };
    if filter.is_empty() {
        return Err(InitError::Filter { filter: "".into(), reason: "it is empty".into() });
    }
    EnvFilter::builder()
        .parse(directives)
        .map_err(|error| InitError::Filter { filter: filter.into(), reason: error.to_string().into() })
}

/// Drops what pingora reports as an error although only a client misbehaved or left: one line per event would let
/// any client fill the log. Each is visible in the access log or the metrics; everything else of pingora passes.
struct ClientNoise {
    /// The operator asked for pingora's records by name.
    wanted: bool,
}

/// Beginnings of pingora 0.9 messages caused by a client alone, or by an idle upstream connection that is just being
/// put back: another one is opened.
const CLIENT_NOISE: &[&str] = &[
    "Downstream handshake ",
    "failed to acquire reusable stream",
    "H2 handshake error",
    "HTTP server fails to ",
    "Fail to proxy: ",
    "failed to send error response to downstream",
    "Error finish sending body to downstream",
    "Peer sent more data than expected",
    "negative content-length header value",
    "invalid content-length header",
    "Failed to parse accept-encoding",
    "TLS shutdown failed",
];

impl<S: Subscriber> Layer<S> for ClientNoise {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // Records of the `log` crate arrive under this target and carry their own as a field.
        if self.wanted || event.metadata().target() != "log" {
            return true;
        }
        let mut record = LogRecord::default();
        event.record(&mut record);
        !(record.pingora && CLIENT_NOISE.iter().any(|start| record.message.starts_with(start)))
    }
}

#[derive(Default)]
struct LogRecord {
    pingora: bool,
    message: String,
}

impl Visit for LogRecord {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "log.target" => self.pingora = value.starts_with("pingora"),
            "message" => value.clone_into(&mut self.message),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

/// Hands each formatted event to the sink as a whole.
struct Lines(Sink);

struct Line<'a> {
    sink: &'a Sink,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { sink: &self.0, bytes: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.sink.push(&self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sink::tests::{Captured, counter};
    use super::*;

    fn logged(settings: &Settings, events: impl FnOnce()) -> String {
        let captured = Captured::default();
        let (sink, thread) = Sink::start(captured.clone(), counter()).unwrap();
        tracing::subscriber::with_default(subscriber(settings, sink).unwrap(), events);
        drop(thread);
        captured.text()
    }

    #[test]
    fn a_bare_level_opens_tollgate_and_keeps_libraries_at_warnings() {
        let settings = Settings { filter: "debug".into(), ..Settings::default() };
        let text = logged(&settings, || {
            tracing::debug!(target: "tollgate::limits", "ours");
            tracing::info!(target: "rustls::conn", "chatter");
            tracing::warn!(target: "rustls::conn", "trouble");
        });
        assert!(text.contains("ours") && text.contains("trouble") && !text.contains("chatter"), "{text}");
    }

    #[test]
    fn json_lines_are_flat_objects_and_keep_control_characters_out() {
        let text = logged(&Settings::default(), || {
            tracing::info!(target: "tollgate", store = "redis", "turned\n\u{1b}[31m");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "turned\n\u{1b}[31m");
        assert_eq!(value["store"], "redis");
        assert_eq!(value["level"], "INFO");
    }

    fn pingora_records() {
        tracing::error!(target: "log", { "log.target" = "pingora_core::services::listening" }, "Downstream handshake error: x");
        tracing::error!(target: "log", { "log.target" = "pingora_proxy" }, "Fail to proxy: reading");
        tracing::error!(target: "log", { "log.target" = "pingora_core::services::listening" }, "Accept() failed: EMFILE");
    }

    #[test]
    fn what_a_client_did_to_pingora_is_silent_and_real_trouble_is_not() {
        let text = logged(
            &Settings { filter: "log=trace,tollgate=info".into(), ..Settings::default() },
            pingora_records,
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("Accept() failed"), "{text}");
    }

    #[test]
    fn naming_pingora_in_the_filter_brings_its_records_back() {
        let settings = Settings { filter: "log=trace,pingora=info".into(), ..Settings::default() };
        assert_eq!(logged(&settings, pingora_records).lines().count(), 3);
    }

    #[test]
    fn a_filter_that_says_nothing_is_refused() {
        for filter in ["", " ", "loud", "tollgate=loud", "a=b=c"] {
            assert!(check_filter(filter).is_err(), "{filter:?}");
        }
        for filter in ["info", "warn", "off", "tollgate=debug,pingora=info", "tollgate::limits=trace"] {
            assert!(check_filter(filter).is_ok(), "{filter:?}");
        }
    }

    #[test]
    fn a_disabled_access_log_writes_nothing() {
        let log = AccessLog::disabled();
        assert!(!log.enabled());
        log.record(&AccessEntry::default());
    }
}
