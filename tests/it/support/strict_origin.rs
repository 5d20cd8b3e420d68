//! An upstream that reads requests as strictly as RFC 9112 can be read and keeps their bytes: whatever reaches it in
//! a form that two servers could understand differently is a violation. It never mends anything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ports::free_addr;

/// A whole and well-formed request, as it was on the wire.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// Name and value of each line, in their order and case.
    pub fields: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Numbers the connections from 1.
    pub connection: usize,
}

impl Seen {
    /// The values of a header whose name is spelled like this but for case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of a header; fails the test if there are several.
    pub fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} came more than once: {:?}", self.fields);
        all.first().copied()
    }

    /// Whether this name came, with `_` and `-` taken for one.
    pub fn has_any_spelling(&self, name: &str) -> bool {
        self.fields.iter().any(|(known, _)| {
            known.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-").eq_ignore_ascii_case(name)
        })
    }
}

#[derive(Debug, Default)]
struct Record {
    seen: Vec<Seen>,
    violations: Vec<String>,
    unfinished: usize,
    bytes: usize,
    connections: usize,
}

/// A running strict origin. Its threads end with their connections.
#[derive(Debug)]
pub struct StrictOrigin {
    addr: SocketAddr,
    record: Arc<Mutex<Record>>,
}

impl StrictOrigin {
    /// Answers each request with an empty-handed 200.
    pub fn start() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    }

    /// Answers each whole request with these bytes.
    pub fn answering(answer: impl AsRef<[u8]>) -> Self {
        let (listener, addr) = loop {
            let addr = free_addr();
            if let Ok(listener) = TcpListener::bind(addr) {
                break (listener, addr);
            }
        };
        let record = Arc::<Mutex<Record>>::default();
        let answer: Arc<[u8]> = answer.as_ref().into();
        let shared = Arc::clone(&record);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                let number = {
                    let mut record = record.lock().unwrap();
                    record.connections += 1;
                    record.connections
                };
                std::thread::spawn(move || serve(stream, number, &answer, &record));
            }
        });
        Self { addr, record }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The whole requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.record.lock().unwrap().seen.clone()
    }

    /// The last whole request; fails the test if there was none.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request at the origin")
    }

    pub fn hits(&self) -> usize {
        self.record.lock().unwrap().seen.len()
    }

    /// What came in a form that is not exactly one well-formed request after another.
    pub fn violations(&self) -> Vec<String> {
        self.record.lock().unwrap().violations.clone()
    }

    /// Requests whose connection ended before they were whole.
    pub fn unfinished(&self) -> usize {
        self.record.lock().unwrap().unfinished
    }

    /// All bytes received so far.
    pub fn bytes(&self) -> usize {
        self.record.lock().unwrap().bytes
    }

    pub fn connections(&self) -> usize {
        self.record.lock().unwrap().connections
    }
}

fn serve(mut stream: TcpStream, number: usize, answer: &[u8], record: &Mutex<Record>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let _ = stream.set_nodelay(true);
    let mut pending = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match take_request(&mut pending, number) {
            Ok(Some(request)) => {
                let is_head = request.method == "HEAD";
                record.lock().unwrap().seen.push(request);
                let end =
                    answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
                if stream.write_all(if is_head { &answer[..end] } else { answer }).is_err() {
                    return;
                }
                continue;
            }
            Ok(None) => {}
            Err(problem) => {
                let text = format!("{problem}: {:?}", String::from_utf8_lossy(&pending));
                record.lock().unwrap().violations.push(text);
                let _ = stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                return;
            }
        }
        let Ok(length @ 1..) = stream.read(&mut buffer) else {
            if !pending.is_empty() {
                record.lock().unwrap().unfinished += 1;
            }
            return;
        };
        record.lock().unwrap().bytes += length;
        pending.extend_from_slice(&buffer[..length]);
    }
}

/// Takes one request off the front of `pending`; `None` while it is not whole.
fn take_request(pending: &mut Vec<u8>, connection: usize) -> Result<Option<Seen>, String> {
    let Some(end) = pending.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&pending[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let request_line = lines.next().unwrap_or_default();
    let words: Vec<&str> = request_line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err(format!("request line {request_line:?}"));
    };
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return Err(format!("method {method:?}"));
    }
    if !(target.starts_with('/') || target == "*") || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("target {target:?}"));
    }
    let fields = fields(lines)?;
    let of = |name: &str| -> Vec<&str> {
        fields
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
            .collect()
    };
    if of("host").len() != 1 {
        return Err(format!("{} Host lines", of("host").len()));
    }
    let rest = &pending[end + 4..];
    let (body, trailers, length) = match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => (Vec::new(), Vec::new(), 0),
        ([length], []) => {
            if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("Content-Length {length:?}"));
            }
            let length: usize = length.parse().map_err(|_| format!("Content-Length {length:?}"))?;
            let Some(body) = rest.get(..length) else { return Ok(None) };
            (body.to_vec(), Vec::new(), length)
        }
        ([], ["chunked"]) => match dechunk(rest)? {
            Some(whole) => whole,
            None => return Ok(None),
        },
        (lengths, encodings) => return Err(format!("framing {lengths:?} {encodings:?}")),
    };
    let seen =
        Seen { method: method.to_owned(), target: target.to_owned(), fields, body, trailers, connection };
    pending.drain(..end + 4 + length);
    Ok(Some(seen))
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>, String> {
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon in {line:?}"))?;
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(format!("name {name:?}"));
            }
            if value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
                return Err(format!("value {value:?}"));
            }
            Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
        })
        .collect()
}

type Dechunked = (Vec<u8>, Vec<(String, String)>, usize);

fn dechunk(bytes: &[u8]) -> Result<Option<Dechunked>, String> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(end) = bytes[at..].windows(2).position(|end| end == b"\r\n") else { return Ok(None) };
        let size = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
        if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("chunk size {size:?}"));
        }
        let length = usize::from_str_radix(&size, 16).map_err(|_| format!("chunk size {size:?}"))?;
        at += end + 2;
        if length == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + length + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk that does not end where it says".to_owned());
        }
        body.extend_from_slice(&chunk[..length]);
        at += length + 2;
    }
    if bytes[at..].starts_with(b"\r\n") {
        return Ok(Some((body, Vec::new(), at + 2)));
    }
    let Some(end) = bytes[at..].windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
    Ok(Some((body, fields(text.split("\r\n"))?, at + end + 4)))
}
