//! `tollgate health`: one GET over a plain socket, so that an image needs no curl for its health check.
//! It follows no redirect and speaks no TLS.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use http::Uri;
use thiserror::Error;

/// Why the gateway is not known to live.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The text is no usable address.
    #[error("{0:?} is not an http:// URL with a host")]
    Url(Box<str>),
    /// No connection, or it broke, or it took too long.
    #[error("no answer from {0}: {1}")]
    Silent(Box<str>, io::Error),
    /// The answer is no HTTP.
    #[error("{0} does not speak HTTP")]
    NotHttp(Box<str>),
    /// The answer is not 2xx.
    #[error("{0} answered {1}")]
    Status(Box<str>, u16),
}

/// Asks `url` once; each step (connecting, writing, reading) may take `timeout`. Returns the status, 200 to 299.
pub fn probe(url: &str, timeout: Duration) -> Result<u16, ProbeError> {
    let (authority, path) = target(url).ok_or_else(|| ProbeError::Url(url.into()))?;
    let head = ask(&authority, &path, timeout)
        .map_err(|error| ProbeError::Silent(authority.as_str().into(), error))?;
    match status(&head) {
        None => Err(ProbeError::NotHttp(authority.into())),
        Some(status @ 200..=299) => Ok(status),
        Some(status) => Err(ProbeError::Status(authority.into(), status)),
    }
}

/// `host:port` and the path of an `http` URL.
fn target(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("http") {
        return None;
    }
    let authority = uri.authority()?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    Some((address, uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()))
}

fn ask(authority: &str, path: &str, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return exchange(stream, authority, path, timeout),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(mut stream: TcpStream, authority: &str, path: &str, timeout: Duration) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // One segment: a server may judge the first bytes it sees.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nUser-Agent: tollgate-health\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    // The status line is all that matters.
    stream.take(64).read_to_end(&mut head)?;
    Ok(head)
}

fn status(head: &[u8]) -> Option<u16> {
    let mut words = head.strip_prefix(b"HTTP/1.")?.split(|byte| *byte == b' ');
    words.next()?;
    std::str::from_utf8(words.next()?.get(..3)?)
        .ok()?
        .parse()
        .ok()
        .filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection with `answer`; gives the URL to ask.
    fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/live", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1_024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer).unwrap();
        });
        url
    }

    #[test]
    fn a_2xx_answer_is_life_and_nothing_else_is() {
        let patience = Duration::from_secs(5);
        assert_eq!(probe(&server(b"HTTP/1.1 200 OK\r\n\r\n"), patience).unwrap(), 200);
        assert!(matches!(
            probe(&server(b"HTTP/1.1 503 Nope\r\n\r\n"), patience),
            Err(ProbeError::Status(_, 503))
        ));
        assert!(matches!(probe(&server(b"SSH-2.0-x\r\n"), patience), Err(ProbeError::NotHttp(_))));
        assert!(matches!(probe(&server(b""), patience), Err(ProbeError::NotHttp(_))));
        assert!(matches!(probe(&server(b"HTTP/1.1 2"), patience), Err(ProbeError::NotHttp(_))));
    }

    #[test]
    fn a_closed_port_and_a_wrong_url_are_told_apart() {
        // Nobody listens on a port that the kernel gives to no listener by itself.
        let closed = probe("http://127.0.0.1:1/live", Duration::from_secs(1));
        assert!(matches!(closed, Err(ProbeError::Silent(..))));
        for url in ["", "localhost:9090", "https://localhost/", "http://", "/live", "http://a b/"] {
            assert!(matches!(probe(url, Duration::from_secs(1)), Err(ProbeError::Url(_))), "{url}");
        }
    }
}
