//! What the tests of limits, revocations and Redis faults have in common: one origin, one Redis, gateways of one
//! configuration. It judges nothing.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::client::{Client, RequestBuilder, Response};
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::Origin;
use crate::support::redis::Redis;

/// Exactness is promised where Redis answers within the deadline; a loaded machine must not decide about that.
pub const PATIENT: &str = "deadline = \"1s\"";

/// Two issuers, told apart by their `iss`.
pub const TWO_ISSUERS: &str = r#"
[issuers.one]
algorithms = ["HS256"]
secret = "${JWT_SECRET}"
issuer = "https://one"
[issuers.two]
algorithms = ["HS256"]
secret = "${JWT_SECRET}"
issuer = "https://two"
"#;

/// For tests in which Redis goes away: thirty times the default, so that only the faults made here are seen as faults.
pub const ROOMY: &str = "deadline = \"600ms\"";

/// With [`ROOMY`] the promise is that deadline, and the rest is what a loaded machine may add to any request by itself:
/// who waited for a connection would wait for two seconds.
pub const NO_REQUEST_TAKES: Duration = Duration::from_millis(1_500);

/// A configuration: `redis` are further lines of that table, `rest` the policies and routes. The tests speak for any
/// client address, through `X-Forwarded-For`.
pub fn config(origin: &Origin, redis: &str, rest: &str) -> String {
    let origin = origin.addr();
    format!(
        r#"
[server]
listen = ["{{listen}}"]
trusted_proxies = ["127.0.0.1/32"]
threads = 2

[admin]
listen = "{{admin}}"
token = "${{TOLLGATE_ADMIN_TOKEN}}"

[log]
access = false

[redis]
url = "${{REDIS_URL:-}}"
{redis}

[upstreams.app]
members = "{origin}"
connect_timeout = "10s"

{rest}
"#
    )
}

/// A gateway of this configuration on the Redis at `url`.
pub fn gateway(config: &str, url: &str) -> Gateway {
    Gateway::builder().config(config).env("REDIS_URL", url).start()
}

/// Two gateways that share a Redis.
pub fn pair(config: &str, redis: &Redis) -> [Gateway; 2] {
    [gateway(config, &redis.url()), gateway(config, &redis.url())]
}

/// A client address of its own for each number.
pub fn address(number: usize) -> String {
    format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255)
}

/// A request that seems to come from `ip`.
pub fn get_from(client: &Client, path: &str, ip: &str) -> RequestBuilder {
    client.get(path).header("x-forwarded-for", ip)
}

/// Status codes of that many requests, one after the other.
pub fn codes(client: &Client, path: &str, ip: &str, requests: usize) -> Vec<u16> {
    (0..requests).map(|_| get_from(client, path, ip).send().code()).collect()
}

/// How many are 200; fails the test if any other is not 429.
pub fn admitted(codes: &[u16]) -> usize {
    assert!(codes.iter().all(|code| matches!(code, 200 | 429)), "{codes:?}");
    codes.iter().filter(|code| **code == 200).count()
}

/// The value of a counter in Redis.
pub fn counter(redis: &Redis, key: &str) -> Option<u64> {
    redis::cmd("GET").arg(key).query(&mut redis.client()).unwrap()
}

/// The remaining life of a key in whole seconds, rounded up.
pub fn ttl(redis: &Redis, key: &str) -> i64 {
    let millis: i64 = redis::cmd("PTTL").arg(key).query(&mut redis.client()).unwrap();
    assert!(millis > 0, "{key} has no TTL: {millis}");
    (millis + 999) / 1000
}

/// Revokes through the admin API; tells whether the store knows.
pub fn revoke(gateway: &Gateway, body: &serde_json::Value) -> bool {
    let reply = gateway.admin().post("/api/v1/revocations").bearer(ADMIN_TOKEN).json(body).send();
    assert_eq!(reply.code(), 200, "{}", reply.text());
    reply.json()["shared"].as_bool().unwrap_or_else(|| panic!("no `shared`: {}", reply.text()))
}

/// Revokes until the store knows, which a busy one may be too late to say: from then on every instance does.
pub fn revoke_everywhere(gateway: &Gateway, body: &serde_json::Value) {
    assert_eventually!(revoke(gateway, body), "the store knows of it");
}

/// A request with a token.
pub fn get_as(addr: SocketAddr, path: &str, token: &str) -> Response {
    Client::new(addr).get(path).bearer(token).send()
}

/// Whether the gateway says that its store is away.
pub fn degraded(gateway: &Gateway) -> bool {
    gateway.metric("tollgate_store_degraded", &[]) == Some(1.0)
}
