//! Why a head is refused. It names the fault for operators and, in static words, for the client.

use http::StatusCode;

macro_rules! problems {
    ($($(#[$doc:meta])* $variant:ident = $status:ident, $label:literal, $detail:literal;)+) => {
        /// A fault in a request head; the first one found is reported.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum HeadProblem {
            $($(#[$doc])* #[error($detail)] $variant,)+
        }

        impl HeadProblem {
            /// Every problem, for metrics that start at zero.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The answer's status.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)+ }
            }

            /// Label for metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The static text a client may read.
            pub const fn detail(self) -> &'static str {
                match self { $(Self::$variant => $detail,)+ }
            }
        }
    };
}

problems! {
    /// `CONNECT` and `TRACE`.
    MethodRefused = METHOD_NOT_ALLOWED, "method_refused", "The method is not allowed";
    /// A method that is not registered, lower-case spellings included.
    MethodUnknown = NOT_IMPLEMENTED, "method_unknown", "The method is not known";
    /// Neither HTTP/1.0, HTTP/1.1 nor HTTP/2.
    VersionUnsupported = HTTP_VERSION_NOT_SUPPORTED, "version_unsupported", "The HTTP version is not supported";
    /// Longer than the limit.
    TargetTooLong = URI_TOO_LONG, "target_too_long", "The request target is too long";
    /// More header lines than the limit.
    TooManyHeaders = REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_headers", "There are too many header fields";
    /// More header bytes than the limit.
    HeadersTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The header fields are too large";
    /// A control byte, space, backslash, `#` or, in the query, a byte above ASCII.
    TargetByte = BAD_REQUEST, "target_byte", "The request target holds an invalid character";
    /// Neither a path, `http(s)://…` nor `*` with OPTIONS.
    TargetForm = BAD_REQUEST, "target_form", "The request target must be a path";
    /// A byte that no header name may hold, or a space before the colon.
    HeaderName = BAD_REQUEST, "header_name", "A header name is invalid";
    /// A control byte in a header value.
    HeaderValue = BAD_REQUEST, "header_value", "A header value holds an invalid character";
    /// A line that does not end in CRLF, or is folded.
    LineEnding = BAD_REQUEST, "line_ending", "A header line is malformed";
    /// Neither Host nor `:authority`.
    MissingHost = BAD_REQUEST, "missing_host", "The Host header is missing";
    /// More than one Host line.
    SeveralHosts = BAD_REQUEST, "several_hosts", "There is more than one Host header";
    /// Not a host with an optional port.
    InvalidHost = BAD_REQUEST, "invalid_host", "The Host header is invalid";
    /// Host, `:authority` and an absolute target disagree.
    AuthorityMismatch = BAD_REQUEST, "authority_mismatch", "The request names two different hosts";
    /// Not one plain number.
    ContentLength = BAD_REQUEST, "content_length", "The Content-Length header is invalid";
    /// Not exactly `chunked`, or not allowed in this version.
    TransferEncoding = BAD_REQUEST, "transfer_encoding", "The Transfer-Encoding header is invalid";
    /// Both ways to tell a length.
    LengthAndEncoding = BAD_REQUEST, "length_and_encoding", "Content-Length and Transfer-Encoding exclude each other";
    /// A connection-specific field over HTTP/2.
    ConnectionField = BAD_REQUEST, "connection_field", "A connection-specific header is not allowed in HTTP/2";
    /// An expectation other than `100-continue`.
    Expectation = EXPECTATION_FAILED, "expectation", "The expectation cannot be met";
}
