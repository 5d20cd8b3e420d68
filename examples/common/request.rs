//! Requests as the handlers of the sample applications see them.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use serde::de::DeserializeOwned;

use super::reply::Reply;

/// A request whose body has arrived.
#[derive(Debug)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its header.
    pub headers: HeaderMap,
    /// Its body, bounded by the server.
    pub body: Bytes,
    /// Where the application listens.
    pub server: SocketAddr,
}

impl Request {
    /// The method, GET for HEAD too, and the segments of the path, for a `match`; a slash at the end does not count.
    pub fn route(&self) -> (&str, Vec<&str>) {
        let method = if self.method == Method::HEAD { "GET" } else { self.method.as_str() };
        (method, self.path.split('/').filter(|segment| !segment.is_empty()).collect())
    }

    /// The body.
    ///
    /// # Errors
    /// 422 when it is not JSON of this form.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        serde_json::from_slice(&self.body).map_err(|error| Reply::unacceptable(&error.to_string()))
    }

    /// The token of `Authorization: Bearer`.
    ///
    /// # Errors
    /// 401 when there is none.
    pub fn bearer(&self) -> Result<&str, Reply> {
        let value = self.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match value.and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
            _ => Err(Reply::refusal(StatusCode::UNAUTHORIZED, "Not authenticated")),
        }
    }
}
