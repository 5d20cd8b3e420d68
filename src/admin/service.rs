//! The pingora side of the admin listener: reads a bounded request in bounded time, writes the answer.
//! It decides nothing; `api` does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora::services::listening::Service;
use tokio::time::timeout;

use super::Admin;
use super::api::MAX_BODY;
use super::reply::Reply;

/// From the end of one answer (or the connection) to the end of the next head: idling and slow heads alike.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// For the whole body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// For the whole answer.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// Seconds an idle connection is kept, as announced to pingora.
const KEEPALIVE: u64 = 30;

/// The admin listener as a pingora application.
pub struct AdminApp(Admin);

/// The service to add to the server; the caller adds its addresses.
pub fn service(admin: Admin) -> Service<AdminApp> {
    let mut service = Service::new("admin".to_owned(), AdminApp(admin));
    service.threads = Some(1);
    service
}

#[async_trait]
impl HttpServerApp for AdminApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut http: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match timeout(HEAD_TIME, http.read_request()).await {
            Ok(Ok(true)) => {}
            Ok(Err(error)) if matches!(error.etype(), pingora::ErrorType::InvalidHTTPHeader) => {
                let reply = Reply::problem(StatusCode::BAD_REQUEST, "the request is not valid HTTP");
                http.set_keepalive(None);
                let _ = timeout(WRITE_TIME, write(&mut http, reply, false)).await;
                http.shutdown().await;
                return None;
            }
            _ => return None,
        }
        http.set_keepalive(if *shutdown.borrow() { None } else { Some(KEEPALIVE) });
        let head_only = http.req_header().method == Method::HEAD;
        let reply = self.answer(&mut http).await;
        match timeout(WRITE_TIME, write(&mut http, reply, head_only)).await {
            Ok(Ok(())) => {}
            _ => return None,
        }
        let settings = HttpPersistentSettings::for_session(&http);
        let reusable = timeout(BODY_TIME, http.finish()).await.ok()?.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}

impl AdminApp {
    async fn answer(&self, http: &mut ServerSession) -> Reply {
        let action = match self.0.admit(http.req_header()) {
            Ok(action) => action,
            Err(reply) => return reply,
        };
        let body = if action.takes_body() {
            match timeout(BODY_TIME, read_body(http)).await {
                Ok(Ok(body)) => body,
                Ok(Err(reply)) => return reply,
                Err(_) => {
                    return Reply::problem(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
                }
            }
        } else {
            Bytes::new()
        };
        self.0.perform(action, &body).await
    }
}

async fn read_body(http: &mut ServerSession) -> Result<Bytes, Reply> {
    let too_large = || Reply::problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 64 KiB");
    let announced =
        http.get_header(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > MAX_BODY) {
        return Err(too_large());
    }
    let broken = |_| Reply::problem(StatusCode::BAD_REQUEST, "the body could not be read");
    if http.get_header(header::EXPECT).is_some() {
        http.write_continue_response().await.map_err(broken)?;
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = http.read_request_body().await.map_err(broken)? {
        if body.len().saturating_add(chunk.len()) > MAX_BODY {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

async fn write(http: &mut ServerSession, reply: Reply, head_only: bool) -> pingora::Result<()> {
    let (parts, body) = reply.into_response().into_parts();
    http.write_response_header(Box::new(ResponseHeader::from(parts))).await?;
    if !head_only && !body.is_empty() {
        http.write_response_body(body, true).await?;
    }
    Ok(())
}
