//! From pingora's errors to why the client gets no answer from its upstream. The only place that reads them.

use pingora::{Error, ErrorSource, ErrorType};

use crate::metrics::UpstreamFailure;
use crate::pipeline::Refusal;

/// What the client is told, `None` when it is no longer there to be told.
pub(super) fn refusal(error: &Error) -> Option<Refusal> {
    match (error.esource(), error.etype()) {
        (_, ErrorType::HTTPStatus(413)) => Some(Refusal::BodyTooLarge),
        (_, ErrorType::HTTPStatus(503)) => Some(Refusal::NoMember),
        (_, ErrorType::HTTPStatus(504)) => Some(Refusal::OnlyIfCached),
        (
            ErrorSource::Downstream,
            ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteTimedout,
        ) => None,
        (ErrorSource::Downstream, _) => Some(Refusal::ClientBroke),
        (ErrorSource::Upstream, kind) if is_timeout(kind) => Some(Refusal::UpstreamTimeout),
        (ErrorSource::Upstream, _) => Some(Refusal::BadGateway),
        // Connecting fails before pingora knows whose fault it is.
        (_, kind) if is_timeout(kind) => Some(Refusal::UpstreamTimeout),
        (_, kind) if is_connect(kind) => Some(Refusal::BadGateway),
        _ => Some(Refusal::Internal),
    }
}

/// The failure as a metric, for errors that concern an upstream.
pub(super) fn upstream_failure(error: &Error) -> UpstreamFailure {
    match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => UpstreamFailure::ConnectTimeout,
        kind if is_connect(kind) => UpstreamFailure::Connect,
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => UpstreamFailure::Timeout,
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => UpstreamFailure::Reset,
        ErrorType::InvalidHTTPHeader
        | ErrorType::H1Error
        | ErrorType::H2Error
        | ErrorType::H2Downgrade
        | ErrorType::InvalidH2 => UpstreamFailure::Protocol,
        ErrorType::HTTPStatus(503) => UpstreamFailure::NoMember,
        _ => UpstreamFailure::Other,
    }
}

const fn is_timeout(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
    )
}

const fn is_connect(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::BindError
            | ErrorType::SocketError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::InvalidCert
    )
}
