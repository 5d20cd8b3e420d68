//! A key set behind a URL: one request on a connection of its own each time.
//!
//! Nothing but a 200 of bounded size is believed. Redirects are not followed: where keys come from is the
//! configuration's to say.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ::http::uri::Scheme;
use ::http::{Request, StatusCode, Uri, header};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::source::{Source, Trouble};

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// A URL that is asked anew each time.
pub(super) struct KeyUrl {
    host: Box<str>,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    request: Request<Empty<Bytes>>,
    shown: Box<str>,
    /// For one address; where a name has several, a silent one leaves time for the next.
    connect_timeout: Duration,
    max_bytes: usize,
}

impl KeyUrl {
    /// An endpoint; `roots` are PEM certificates trusted beside the public ones.
    pub(super) fn new(
        url: &Uri,
        roots: Option<&[u8]>,
        timeout: Duration,
        max_bytes: usize,
    ) -> Result<Self, String> {
        let authority = url.authority().ok_or("has no host")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_tls = url.scheme() == Some(&Scheme::HTTPS);
        let tls = if is_tls {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| "has no valid host")?;
            Some((TlsConnector::from(Arc::new(client_config(roots)?)), name))
        } else {
            None
        };
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        let request = Request::get(target)
            .header(header::HOST, authority.as_str())
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        Ok(Self {
            host: host.into(),
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            tls,
            request,
            // A query may hold a secret.
            shown: format!("{}://{authority}{}", if is_tls { "https" } else { "http" }, url.path()).into(),
            connect_timeout: timeout / 2,
            max_bytes,
        })
    }

    async fn connect(&self) -> Result<TcpStream, Trouble> {
        let mut last = Trouble::Unreachable("the name has no address".into());
        for address in tokio::net::lookup_host((&*self.host, self.port)).await? {
            last = match tokio::time::timeout(self.connect_timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error.into(),
                Err(_) => Trouble::Unreachable(format!("{address} does not answer").into()),
            };
        }
        Err(last)
    }

    async fn ask<S>(&self, stream: S) -> Result<Bytes, Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        // Ends with this set, and so with this call.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(self.request.clone()).await.map_err(|error| unreachable(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(Trouble::Refused(format!("status {}", answer.status().as_u16()).into()));
        }
        let too_large = || Trouble::Refused(format!("more than {} bytes", self.max_bytes).into());
        let body = answer.into_body();
        if body.size_hint().lower() > self.max_bytes as u64 {
            return Err(too_large());
        }
        match Limited::new(body, self.max_bytes).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
            Err(error) => Err(unreachable(&*error)),
        }
    }
}

#[async_trait]
impl Source for KeyUrl {
    async fn read(&self) -> Result<Bytes, Trouble> {
        let stream = self.connect().await?;
        match &self.tls {
            None => self.ask(stream).await,
            Some((connector, name)) => self.ask(connector.connect(name.clone(), stream).await?).await,
        }
    }

    fn place(&self) -> &str {
        &self.shown
    }
}

/// Whether `pem` holds certificates to trust, and nothing unreadable.
///
/// # Errors
/// What is wrong with it.
pub fn check_roots(pem: &[u8]) -> Result<(), String> {
    add_roots(&mut RootCertStore::empty(), pem)
}

fn add_roots(store: &mut RootCertStore, pem: &[u8]) -> Result<(), String> {
    let before = store.len();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    if store.len() == before { Err("holds no certificate".to_owned()) } else { Ok(()) }
}

fn client_config(roots: Option<&[u8]>) -> Result<ClientConfig, String> {
    let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(pem) = roots {
        add_roots(&mut store, pem)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The error with all its causes: the outermost alone rarely says anything.
fn unreachable(error: &(dyn Error + 'static)) -> Trouble {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    Trouble::Unreachable(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> KeyUrl {
        KeyUrl::new(&text.parse().unwrap(), None, Duration::from_secs(1), 1024).unwrap()
    }

    #[test]
    fn a_url_says_where_to_go_and_how() {
        let plain = url("http://keys.example/certs?secret=1");
        assert_eq!((&*plain.host, plain.port, plain.tls.is_some()), ("keys.example", 80, false));
        assert_eq!(plain.request.uri(), "/certs?secret=1");
        assert_eq!(plain.place(), "http://keys.example/certs");
        let secure = url("https://keys.example:8443");
        assert_eq!((secure.port, secure.tls.is_some()), (8443, true));
        assert_eq!(secure.request.uri(), "/");
        assert_eq!(secure.request.headers()["host"], "keys.example:8443");
        assert_eq!(url("https://keys.example/").port, 443);
        assert_eq!(&*url("https://[::1]:8443/").host, "::1");
    }

    #[test]
    fn roots_must_be_certificates() {
        assert!(check_roots(b"").unwrap_err().contains("no certificate"));
        assert!(check_roots(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").is_err());
        assert!(check_roots(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
