//! What an origin answers: a status, headers and a body, late, slowly, in part or not at all.
//! It knows nothing of the request it answers.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use serde_json::Value;

/// What the origin does after the head of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Never answers.
    HangBeforeHead,
    /// Sends the head and this much of the body, then nothing, for ever.
    HangInBody(usize),
    /// Closes the connection without a word.
    Close,
    /// Sends the head and this much of the body, then breaks the connection (or resets the stream).
    BreakInBody(usize),
    /// Sends the body in pieces of that many bytes, this long apart.
    Trickle(usize, Duration),
}

/// What to answer.
#[derive(Debug, Clone)]
#[must_use]
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    delay: Duration,
    fault: Fault,
    chunked: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.into(),
            delay: Duration::ZERO,
            fault: Fault::None,
            chunked: false,
        }
    }

    pub fn text(status: u16, text: &str) -> Self {
        Self::new(status, text.to_owned()).header("content-type", "text/plain")
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status, value.to_string()).header("content-type", "application/json")
    }

    /// Adds a header; a second one of the same name is another line.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
        self
    }

    /// Another body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Waits before answering.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the body without announcing its length (chunked on HTTP/1.1).
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    pub fn hang_before_head() -> Self {
        Self::new(200, "").fault(Fault::HangBeforeHead)
    }

    pub fn close() -> Self {
        Self::new(200, "").fault(Fault::Close)
    }

    pub fn hang_in_body_after(self, bytes: usize) -> Self {
        self.fault(Fault::HangInBody(bytes))
    }

    pub fn break_in_body_after(self, bytes: usize) -> Self {
        self.fault(Fault::BreakInBody(bytes))
    }

    pub fn trickle(self, bytes: usize, pause: Duration) -> Self {
        self.fault(Fault::Trickle(bytes, pause))
    }

    fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }
    /// Does what was asked for, up to the body, which carries on with it. `guard` lives as long as the body.
    pub async fn play<G: Send + Unpin + 'static>(
        self,
        is_head: bool,
        guard: G,
    ) -> Result<Response<ReplyBody<G>>, Broken> {
        tokio::time::sleep(self.delay).await;
        match self.fault {
            Fault::HangBeforeHead => std::future::pending().await,
            Fault::Close => return Err(Broken),
            _ => {}
        }
        let mut response = Response::builder().status(self.status);
        let has_body = !(self.status.is_informational() || matches!(self.status.as_u16(), 204 | 304));
        if has_body && !self.chunked && !self.headers.contains_key("content-length") {
            response = response.header("content-length", self.body.len());
        }
        let rest = if is_head { Bytes::new() } else { self.body };
        let body = ReplyBody { rest, fault: self.fault, sent: 0, pause: None, _guard: guard };
        let mut response = response.body(body).map_err(|_| Broken)?;
        response.headers_mut().extend(self.headers);
        Ok(response)
    }
}

/// Makes hyper drop the connection.
#[derive(Debug, thiserror::Error)]
#[error("the origin breaks off, as the test wants it")]
pub struct Broken;

/// The body of a reply, with its faults.
#[derive(Debug)]
pub struct ReplyBody<G> {
    rest: Bytes,
    fault: Fault,
    sent: usize,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    _guard: G,
}

impl<G: Unpin> Body for ReplyBody<G> {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = &mut *self;
        if let Some(pause) = &mut body.pause {
            if pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            body.pause = None;
        }
        let length = match body.fault {
            Fault::HangInBody(limit) if body.sent >= limit => return Poll::Pending,
            Fault::BreakInBody(limit) if body.sent >= limit => {
                // hyper would drop what it has not written yet: let it go out first.
                if body.sent > 0 {
                    body.sent = 0;
                    body.fault = Fault::BreakInBody(0);
                    body.pause = Some(Box::pin(tokio::time::sleep(Duration::from_millis(20))));
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                return Poll::Ready(Some(Err(Broken)));
            }
            _ if body.rest.is_empty() => return Poll::Ready(None),
            Fault::HangInBody(limit) | Fault::BreakInBody(limit) => limit - body.sent,
            Fault::Trickle(piece, pause) => {
                if body.sent > 0 && body.pause.is_none() {
                    body.sent = 0;
                    body.pause = Some(Box::pin(tokio::time::sleep(pause)));
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                piece.max(1)
            }
            _ => body.rest.len(),
        };
        let piece = body.rest.split_to(length.min(body.rest.len()));
        body.sent += piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && matches!(self.fault, Fault::None | Fault::Trickle(..))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
