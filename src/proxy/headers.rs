//! Editing pingora's headers, which keep the case of names beside the fields.

use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::upstream::forward::HeaderEdit;

/// A request header on its way to the upstream.
pub(super) struct Request<'a>(pub &'a mut RequestHeader);

impl HeaderEdit for Request<'_> {
    fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    fn remove_all(&mut self, name: &HeaderName) {
        self.0.remove_header(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        // Fails only where more than 32,768 fields exist; heads are bounded far below.
        let _ = self.0.insert_header(name.clone(), value);
    }
}

/// A response header on its way to the client.
pub(super) struct Response<'a>(pub &'a mut ResponseHeader);

impl HeaderEdit for Response<'_> {
    fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    fn remove_all(&mut self, name: &HeaderName) {
        self.0.remove_header(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.0.insert_header(name.clone(), value);
    }
}
