//! Who may talk to the admin listener: the bearer credential, the Host check against DNS rebinding and the Origin
//! check against other sites. It fails closed: whatever cannot be understood is refused.

use std::fmt;
use std::net::IpAddr;

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::reply::Reply;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The admin credential; only its SHA-256 is kept, and comparing takes the same time for every guess.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

/// Why a text is no admin credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AdminTokenError {
    /// It is empty; leave it out to turn the API off.
    #[error("the admin token is empty; leave it out to turn the admin API off")]
    Empty,
    /// It cannot be sent in a header.
    #[error("the admin token may hold visible ASCII characters only, at most 1024")]
    NotVisibleAscii,
}

impl AdminToken {
    /// A credential of 1 to 1024 visible ASCII characters.
    pub fn new(text: &str) -> Result<Self, AdminTokenError> {
        if text.is_empty() {
            return Err(AdminTokenError::Empty);
        }
        if text.len() > 1_024 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AdminTokenError::NotVisibleAscii);
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    fn matches(&self, guess: &[u8]) -> bool {
        let guess: [u8; 32] = Sha256::digest(guess).into();
        self.0.ct_eq(&guess).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(***)")
    }
}

/// Whether the request carries the credential; the answer to give when not.
pub(super) fn authorize(token: Option<&AdminToken>, headers: &HeaderMap) -> Result<(), Reply> {
    let Some(token) = token else {
        return Err(Reply::problem(StatusCode::FORBIDDEN, "admin API is disabled: set admin.token"));
    };
    let guess = bearer(headers).ok_or_else(|| {
        unauthorized(
            "this call needs the admin token in the Authorization header",
            "Bearer realm=\"tollgate admin\"",
        )
    })?;
    if token.matches(guess) {
        return Ok(());
    }
    Err(unauthorized("the admin token is wrong", "Bearer realm=\"tollgate admin\", error=\"invalid_token\""))
}

fn unauthorized(detail: &'static str, challenge: &'static str) -> Reply {
    Reply::problem(StatusCode::UNAUTHORIZED, detail).with("www-authenticate", challenge)
}

/// The token of the one `Authorization: Bearer` header (RFC 6750); none when there are several headers.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = single(headers, &header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at_checked(b"bearer ".len())?;
    let token = rest.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Refuses names an attacker could have pointed here (DNS rebinding): an address, `localhost` and the configured
/// names pass.
pub(super) fn check_host(parts: &Parts, hosts: &[Box<str>]) -> Result<(), Reply> {
    let known = authority(parts).is_some_and(|authority| {
        let name = host_of(authority);
        name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    });
    if known {
        return Ok(());
    }
    Err(Reply::problem(
        StatusCode::MISDIRECTED_REQUEST,
        "this listener answers under an IP address, localhost and the names in admin.hosts",
    ))
}

/// Refuses requests a page of another origin made.
pub(super) fn check_origin(parts: &Parts) -> Result<(), Reply> {
    let refused = || Err(Reply::problem(StatusCode::FORBIDDEN, "requests from other origins are refused"));
    let mut sites = parts.headers.get_all(SEC_FETCH_SITE).iter();
    if sites.any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return refused();
    }
    if !parts.headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let origin = single(&parts.headers, &header::ORIGIN).and_then(|value| value.to_str().ok());
    let origin =
        origin.and_then(|text| text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")));
    match (origin, authority(parts)) {
        (Some(origin), Some(authority)) if origin.eq_ignore_ascii_case(authority) => Ok(()),
        _ => refused(),
    }
}

/// The authority the client meant: of an absolute target, else of the one Host header.
fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => single(&parts.headers, &header::HOST)?.to_str().ok(),
    }
}

fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The last colon of a bracketed IPv6 address without a port is inside the brackets.
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { None } else { first }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/api/v1/status");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_the_exact_token_in_one_bearer_header_is_accepted() {
        let token = AdminToken::new("s3cret").unwrap();
        let status = |headers: &[(&str, &str)]| {
            authorize(Some(&token), &parts(headers).headers).map_err(|reply| reply.status().as_u16())
        };
        assert_eq!(status(&[("authorization", "Bearer s3cret")]), Ok(()));
        assert_eq!(status(&[("authorization", "bearer  s3cret ")]), Ok(()));
        for wrong in
            ["Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer S3CRET"]
        {
            assert_eq!(status(&[("authorization", wrong)]), Err(401), "{wrong}");
        }
        assert_eq!(status(&[]), Err(401));
        assert_eq!(status(&[("x-api-key", "s3cret")]), Err(401));
        assert_eq!(
            status(&[("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")]),
            Err(401)
        );
    }

    #[test]
    fn a_token_is_visible_ascii_and_never_shown() {
        assert_eq!(AdminToken::new("").unwrap_err(), AdminTokenError::Empty);
        assert_eq!(AdminToken::new("a b").unwrap_err(), AdminTokenError::NotVisibleAscii);
        assert_eq!(AdminToken::new(&"x".repeat(1_025)).unwrap_err(), AdminTokenError::NotVisibleAscii);
        assert_eq!(format!("{:?}", AdminToken::new("s3cret").unwrap()), "AdminToken(***)");
    }

    #[test]
    fn a_name_that_could_have_been_rebound_is_refused() {
        let hosts = [Box::from("admin.internal")];
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "[::1]:9090",
            "[::1]",
            "localhost:9090",
            "LOCALHOST",
            "Admin.internal:1",
        ] {
            assert!(check_host(&parts(&[("host", host)]), &hosts).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "admin.internal.evil",
            "127.0.0.1@evil",
        ] {
            assert!(check_host(&parts(&[("host", host)]), &hosts).is_err(), "{host}");
        }
        assert!(check_host(&parts(&[]), &hosts).is_err());
        assert!(check_host(&parts(&[("host", "localhost"), ("host", "evil.example")]), &hosts).is_err());
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let host = ("host", "localhost:9090");
        assert!(check_origin(&parts(&[host])).is_ok());
        assert!(check_origin(&parts(&[host, ("origin", "http://localhost:9090")])).is_ok());
        assert!(check_origin(&parts(&[host, ("sec-fetch-site", "same-origin")])).is_ok());
        for origin in ["http://evil.example", "null", "http://localhost:8080", "localhost:9090", ""] {
            assert!(check_origin(&parts(&[host, ("origin", origin)])).is_err(), "{origin}");
        }
        assert!(check_origin(&parts(&[host, ("sec-fetch-site", "cross-site")])).is_err());
        assert!(check_origin(&parts(&[host, ("sec-fetch-site", "same-site")])).is_err());
    }
}
