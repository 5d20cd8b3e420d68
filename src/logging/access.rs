//! The access log: one line per request, made of fields the operator chose.
//! It never holds a token, a cookie or a body, and no byte of a request can start a new line or a terminal sequence.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::Format;
use super::sink::Sink;
use super::text::{human_value, json_string, redacted_query, rfc3339, truncated};
use crate::clock::UnixMillis;
use crate::label;
use crate::metrics::Label;

/// Bytes kept of a path or query.
const LONG: usize = 2_048;
/// Bytes kept of every other text.
const SHORT: usize = 256;

label! {
    /// A field of the access log, under the name the configuration and the log use.
    pub enum AccessField {
        /// When the request head arrived (RFC 3339, UTC, milliseconds).
        Time = "time",
        /// The correlation id.
        RequestId = "request_id",
        /// The derived client address.
        ClientIp = "client_ip",
        /// The method.
        Method = "method",
        /// The host asked for.
        Host = "host",
        /// The path without its query.
        Path = "path",
        /// The query, credentials in well-known parameters replaced. Not written unless asked for.
        Query = "query",
        /// `HTTP/1.1`, `HTTP/2.0`.
        Protocol = "protocol",
        /// The matched route.
        Route = "route",
        /// The status sent, zero when the client was gone before.
        Status = "status",
        /// Bytes of body sent.
        Bytes = "bytes",
        /// Milliseconds from request head to the end of the answer.
        DurationMs = "duration_ms",
        /// The upstream member asked.
        Upstream = "upstream",
        /// Milliseconds until the upstream's answer began.
        UpstreamMs = "upstream_ms",
        /// The subject of the verified token.
        User = "user",
        /// The id of the API token that the request came with.
        ApiToken = "api_token",
        /// The plan of the caller.
        Plan = "plan",
        /// What the cache did.
        Cache = "cache",
        /// What the limits decided.
        Limit = "limit",
        /// Why the gateway itself answered.
        Refusal = "refusal",
        /// The `User-Agent`.
        UserAgent = "user_agent",
        /// The `Referer` without its query.
        Referer = "referer",
    }
}

impl AccessField {
    /// What is written unless the configuration says otherwise: everything but host, protocol, query and referer.
    pub const DEFAULT: &'static [Self] = &[
        Self::Time,
        Self::RequestId,
        Self::ClientIp,
        Self::Method,
        Self::Path,
        Self::Route,
        Self::Status,
        Self::Bytes,
        Self::DurationMs,
        Self::Upstream,
        Self::UpstreamMs,
        Self::User,
        Self::ApiToken,
        Self::Plan,
        Self::Cache,
        Self::Limit,
        Self::Refusal,
        Self::UserAgent,
    ];

    /// The field called `name`, `None` for an unknown name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.as_str() == name)
    }
}

/// What is known of one finished request; an absent value is left out of the line.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessEntry<'a> {
    /// When the request head arrived.
    pub time: UnixMillis,
    /// The correlation id.
    pub request_id: &'a str,
    /// The derived client address.
    pub client_ip: Option<IpAddr>,
    /// The method as sent.
    pub method: &'a str,
    /// The host asked for.
    pub host: Option<&'a str>,
    /// The path without its query.
    pub path: &'a str,
    /// The raw query.
    pub query: Option<&'a str>,
    /// `HTTP/1.1` and so on.
    pub protocol: Option<&'a str>,
    /// The matched route's name.
    pub route: Option<&'a str>,
    /// The status sent, zero when none was.
    pub status: u16,
    /// Bytes of body sent.
    pub bytes: u64,
    /// Microseconds from request head to the end of the answer.
    pub duration_us: u64,
    /// The upstream member asked.
    pub upstream: Option<&'a str>,
    /// Microseconds until the upstream's answer began.
    pub upstream_us: Option<u64>,
    /// The subject of the verified token.
    pub user: Option<&'a str>,
    /// The id of the API token.
    pub api_token: Option<&'a str>,
    /// The caller's plan.
    pub plan: Option<&'a str>,
    /// What the cache did.
    pub cache: Option<&'a str>,
    /// What the limits decided.
    pub limit: Option<&'a str>,
    /// Why the gateway itself answered.
    pub refusal: Option<&'a str>,
    /// The `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// The `Referer`.
    pub referer: Option<&'a str>,
}

/// Writes access lines; clones share one output.
#[derive(Clone, Debug)]
pub struct AccessLog {
    sink: Option<Sink>,
    fields: Arc<[AccessField]>,
    format: Format,
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// A log that writes nothing.
    pub fn disabled() -> Self {
        Self { sink: None, fields: Arc::from([]), format: Format::Json }
    }

    pub(super) fn new(sink: Sink, fields: &[AccessField], format: Format) -> Self {
        Self { sink: Some(sink), fields: fields.into(), format }
    }

    /// Whether a line would be written at all.
    pub const fn enabled(&self) -> bool {
        self.sink.is_some()
    }

    /// Whether lines have this field.
    pub fn shows(&self, field: AccessField) -> bool {
        self.enabled() && self.fields.contains(&field)
    }

    /// Writes one line. Never blocks; a line that does not fit is dropped and counted.
    pub fn record(&self, entry: &AccessEntry<'_>) {
        let Some(sink) = &self.sink else { return };
        LINE.with_borrow_mut(|line| {
            line.clear();
            format_line(line, self.format, &self.fields, entry);
            sink.push(line);
        });
    }
}

/// Appends the line of `entry`, newline included.
pub(super) fn format_line(
    line: &mut Vec<u8>,
    format: Format,
    fields: &[AccessField],
    entry: &AccessEntry<'_>,
) {
    let mut writer = FieldWriter { line, format };
    writer.open();
    for field in fields {
        writer.field(*field, entry);
    }
    writer.close();
}

struct FieldWriter<'a> {
    line: &'a mut Vec<u8>,
    format: Format,
}

impl FieldWriter<'_> {
    fn open(&mut self) {
        self.line.extend_from_slice(match self.format {
            Format::Json => b"{\"level\":\"INFO\",\"target\":\"access\"",
            Format::Human => b"access",
        });
    }

    fn close(&mut self) {
        self.line.extend_from_slice(match self.format {
            Format::Json => b"}\n",
            Format::Human => b"\n",
        });
    }

    fn field(&mut self, field: AccessField, entry: &AccessEntry<'_>) {
        let name = field.as_str();
        match field {
            AccessField::Time => {
                self.name(name);
                self.quote();
                rfc3339(self.line, entry.time);
                self.quote();
            }
            AccessField::ClientIp => {
                if let Some(ip) = entry.client_ip {
                    self.name(name);
                    self.quote();
                    let _ = write!(self.line, "{ip}");
                    self.quote();
                }
            }
            AccessField::Status => self.number(name, u64::from(entry.status)),
            AccessField::Bytes => self.number(name, entry.bytes),
            AccessField::DurationMs => self.millis(name, entry.duration_us),
            AccessField::UpstreamMs => {
                if let Some(micros) = entry.upstream_us {
                    self.millis(name, micros);
                }
            }
            AccessField::RequestId => self.text(name, Some(entry.request_id), SHORT),
            AccessField::Method => self.text(name, Some(entry.method), SHORT),
            AccessField::Host => self.text(name, entry.host, SHORT),
            AccessField::Path => self.text(name, Some(entry.path), LONG),
            AccessField::Query => {
                if let Some(query) = entry.query {
                    self.text(name, Some(&redacted_query(truncated(query, LONG))), LONG);
                }
            }
            AccessField::Protocol => self.text(name, entry.protocol, SHORT),
            AccessField::Route => self.text(name, entry.route, SHORT),
            AccessField::Upstream => self.text(name, entry.upstream, SHORT),
            AccessField::User => self.text(name, entry.user, SHORT),
            AccessField::ApiToken => self.text(name, entry.api_token, SHORT),
            AccessField::Plan => self.text(name, entry.plan, SHORT),
            AccessField::Cache => self.text(name, entry.cache, SHORT),
            AccessField::Limit => self.text(name, entry.limit, SHORT),
            AccessField::Refusal => self.text(name, entry.refusal, SHORT),
            AccessField::UserAgent => self.text(name, entry.user_agent, SHORT),
            AccessField::Referer => {
                let bare = entry.referer.map(|url| url.split(['?', '#']).next().unwrap_or_default());
                self.text(name, bare, SHORT);
            }
        }
    }

    fn name(&mut self, name: &str) {
        let (before, after): (&[u8], &[u8]) = match self.format {
            Format::Json => (b",\"", b"\":"),
            Format::Human => (b" ", b"="),
        };
        self.line.extend_from_slice(before);
        self.line.extend_from_slice(name.as_bytes());
        self.line.extend_from_slice(after);
    }

    fn quote(&mut self) {
        if self.format == Format::Json {
            self.line.push(b'"');
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        let _ = write!(self.line, "{value}");
    }

    fn millis(&mut self, name: &str, micros: u64) {
        self.name(name);
        let _ = write!(self.line, "{}.{:03}", micros / 1_000, micros % 1_000);
    }

    fn text(&mut self, name: &str, value: Option<&str>, limit: usize) {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return };
        let value = truncated(value, limit);
        self.name(name);
        match self.format {
            Format::Json => json_string(self.line, value),
            Format::Human => human_value(self.line, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(format: Format, fields: &[AccessField], entry: &AccessEntry<'_>) -> String {
        let mut line = Vec::new();
        format_line(&mut line, format, fields, entry);
        String::from_utf8(line).unwrap()
    }

    fn entry() -> AccessEntry<'static> {
        AccessEntry {
            time: UnixMillis(1_700_000_000_123),
            request_id: "r-1",
            client_ip: Some("2001:db8::1".parse().unwrap()),
            method: "GET",
            path: "/todo/",
            query: Some("page=2&access_token=secret"),
            status: 200,
            bytes: 17,
            duration_us: 1_234,
            upstream: Some("127.0.0.1:8000"),
            upstream_us: Some(900),
            user: Some("alice"),
            api_token: Some("q7Zc0NfT3sVbYx1K"),
            cache: Some("hit"),
            user_agent: Some("curl/8"),
            ..AccessEntry::default()
        }
    }

    #[test]
    fn a_json_line_holds_the_default_fields_in_order_and_no_query() {
        assert_eq!(
            line(Format::Json, AccessField::DEFAULT, &entry()),
            concat!(
                r#"{"level":"INFO","target":"access","time":"2023-11-14T22:13:20.123Z","request_id":"r-1","#,
                r#""client_ip":"2001:db8::1","method":"GET","path":"/todo/","status":200,"bytes":17,"#,
                r#""duration_ms":1.234,"upstream":"127.0.0.1:8000","upstream_ms":0.900,"user":"alice","#,
                r#""api_token":"q7Zc0NfT3sVbYx1K","#,
                r#""cache":"hit","user_agent":"curl/8"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_human_line_is_key_value_pairs() {
        let fields = [AccessField::Method, AccessField::Path, AccessField::Status, AccessField::UserAgent];
        let entry = AccessEntry { user_agent: Some("a b\u{1b}[31m\n"), ..entry() };
        assert_eq!(
            line(Format::Human, &fields, &entry),
            "access method=GET path=/todo/ status=200 user_agent=\"a b\\u{1b}[31m\\n\"\n"
        );
    }

    #[test]
    fn a_credential_in_the_query_is_never_written() {
        let text = line(Format::Json, &[AccessField::Query], &entry());
        assert!(text.contains("page=2") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn every_field_is_found_by_its_name_and_no_other() {
        for field in AccessField::ALL {
            assert_eq!(AccessField::from_name(field.as_str()), Some(*field));
        }
        assert_eq!(AccessField::from_name("cookie"), None);
        assert_eq!(AccessField::from_name("Time"), None);
    }

    proptest! {
        #[test]
        fn any_text_stays_one_line_of_valid_json(path in "\\PC*|[\\x00-\\x7f]*", agent in any::<String>()) {
            let entry = AccessEntry { path: &path, user_agent: Some(&agent), ..entry() };
            let text = line(Format::Json, AccessField::DEFAULT, &entry);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert!(path.is_empty() || path.starts_with(value["path"].as_str().unwrap()));
            let human = line(Format::Human, AccessField::DEFAULT, &entry);
            prop_assert_eq!(human.chars().filter(|c| c.is_control()).count(), 1);
        }
    }
}
