//! A look at a request's body before it goes on: bounded in bytes and time, with nothing lost of it. pingora repeats
//! what it keeps of a body itself; where it keeps nothing because a piece was too large, the pieces are carried here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};

use super::downstream;
use crate::pipeline::head::HeadInput;
use crate::pipeline::{Refusal, Request};

/// Longest time a body may take to arrive that is read for a policy, whatever a single pause may be.
const LONGEST: Duration = Duration::from_secs(5);

/// A request with its body.
pub(super) struct Incoming<'a> {
    session: &'a mut Session,
    raw: Option<Bytes>,
    pause: Duration,
    /// What was read and must be sent on before what follows it.
    pub(super) carried: Option<Bytes>,
    /// Whether the client was told to send its body.
    pub(super) continued: bool,
}

impl<'a> Incoming<'a> {
    /// The request of `session`, whose body may pause for `pause`.
    pub(super) fn new(session: &'a mut Session, pause: Duration) -> Self {
        let raw = downstream::raw_head(session);
        Self { session, raw, pause, carried: None, continued: false }
    }

    /// What arrived up to the end of the body (`true`), or to the first byte beyond `limit` or some more.
    async fn read(&mut self, limit: usize) -> Result<(Bytes, bool), Box<Error>> {
        let downstream = self.session.as_downstream_mut();
        downstream.enable_retry_buffering();
        let mut bytes = BytesMut::new();
        while !downstream.is_body_done() {
            let Some(piece) = downstream.read_request_body().await? else { break };
            bytes.extend_from_slice(&piece);
            if bytes.len() > limit {
                return Ok((bytes.freeze(), false));
            }
        }
        Ok((bytes.freeze(), true))
    }

    /// [`Request::peek`], whose errors leave the connection as it is.
    async fn look(&mut self, limit: usize) -> Result<Option<Bytes>, Refusal> {
        let announced = self.session.req_header().headers.get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let too_long = announced.is_some_and(|length| usize::try_from(length).is_ok_and(|l| l > limit));
        if too_long || self.session.as_downstream_mut().is_body_empty() {
            return Ok(None);
        }
        if downstream::awaits_continue(self.session) {
            // pingora closes after any header that comes before the end of the body; this one asks for the rest.
            let kept = self.session.get_keepalive();
            self.continued = true;
            self.session.write_continue_response().await.map_err(|_| Refusal::ClientBroke)?;
            self.session.set_keepalive(kept);
        }
        let time = self.pause.min(LONGEST);
        let (bytes, whole) = match tokio::time::timeout(time, self.read(limit)).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) if *error.etype() != ErrorType::ReadTimedout => return Err(Refusal::ClientBroke),
            Ok(Err(_)) | Err(_) => return Err(Refusal::SlowBody),
        };
        if whole {
            return Ok(Some(bytes));
        }
        let downstream = self.session.as_downstream_mut();
        if downstream.retry_buffer_truncated() {
            if downstream.is_body_done() {
                // Nothing would follow that it could be sent with.
                return Err(Refusal::BodyTooLarge);
            }
            self.carried = Some(bytes);
        }
        Ok(None)
    }
}

impl Request for Incoming<'_> {
    fn head(&self) -> HeadInput<'_> {
        downstream::head(self.session, self.raw.as_ref())
    }

    async fn peek(&mut self, limit: usize) -> Result<Option<Bytes>, Refusal> {
        let peeked = self.look(limit).await;
        if peeked.is_err() {
            // What follows a body that broke off or broke its framing is no request: pingora takes a body whose chunks
            // are wrong for a finished one, and would read on.
            self.session.set_keepalive(None);
        }
        peeked
    }
}
