//! One node of a clustered backend that knows nothing of a gateway: plain endpoints, no limits, no accounts. Start
//! several at different ports; `config/api-gateway.toml` stands in front of them.
//!
//! ```text
//! cargo run --release --example api_gateway -- --listen 127.0.0.1:8000
//! ```

mod common;

use std::collections::BTreeMap;

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use common::reply::{Answer, Reply};
use common::request::Request;
use common::server::{self, Application};

const ITEMS: [(&str, u32); 3] = [("bolt", 120), ("nut", 80), ("washer", 15)];

fn main() -> anyhow::Result<()> {
    server::run("127.0.0.1:8000", serve)
}

/// Serves the application at `listener`.
pub async fn serve(listener: TcpListener) {
    server::serve(listener, Node).await;
}

struct Node;

impl Application for Node {
    fn answer(&self, request: &Request) -> Answer {
        let (method, path) = request.route();
        match (method, &*path) {
            ("GET", []) => Ok(Reply::ok(json!({ "service": "backend", "node": request.server.to_string() }))),
            ("GET", ["items"]) => Ok(Reply::ok(ITEMS.iter().map(item).collect())),
            ("GET", ["items", name]) => {
                let found = ITEMS.iter().find(|(known, _)| known == name);
                found.map(item).map(Reply::ok).ok_or_else(Reply::not_found)
            }
            ("GET", ["whoami"]) => Ok(Reply::ok(whoami(request))),
            _ => Err(Reply::not_found()),
        }
    }
}

fn item((name, price): &(&str, u32)) -> Value {
    json!({ "name": name, "price": price })
}

/// The header as it arrived, without what would be a secret in a log.
fn whoami(request: &Request) -> Value {
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &request.headers {
        let secret = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name);
        let value = if secret { "…".into() } else { String::from_utf8_lossy(value.as_bytes()) };
        headers.entry(name.as_str()).or_default().push(value.into_owned());
    }
    json!({ "node": request.server.to_string(), "headers": headers })
}
