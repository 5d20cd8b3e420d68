//! Requests against the admin logic with a gateway that only takes notes, and once over a real socket.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::api_tokens::{Id, OwnLimits};
use crate::clock::{ManualClock, UnixMillis};
use crate::pipeline::health::{CacheHealth, Health, HealthStatus, RedisHealth, RedisStatus, UpstreamHealth};

const TOKEN: &str = "s3cret-admin-token";

#[derive(Default)]
struct Notes {
    ready: Mutex<Option<NotReady>>,
    revoked: Mutex<Vec<Revoke>>,
    purged: Mutex<Vec<Purge>>,
    api_tokens: Mutex<Vec<ApiTokenCall>>,
    quota: Mutex<Vec<(&'static str, QuotaSubject, u64)>>,
    ended: Mutex<Vec<(User, Option<Box<str>>)>>,
    health_asked: Mutex<u32>,
    refuse: Mutex<Option<OperationError>>,
    hang: Mutex<bool>,
}

impl Notes {
    fn note_quota(&self, call: &'static str, subject: QuotaSubject, requests: u64) -> Quota {
        self.quota.lock().push((call, subject, requests));
        let counter = QuotaCounter {
            policy: "plan".into(),
            window: "minute".into(),
            key: None,
            limit: 10,
            used: 3,
            remaining: 7,
            reset: 60,
        };
        Quota { counters: vec![counter], shared: true }
    }
}

fn user(name: &str, issuer: Option<&str>) -> User {
    User { name: name.into(), issuer: issuer.map(Into::into) }
}

fn full_health() -> Health {
    Health {
        status: HealthStatus::Degraded,
        version: "1.2.3",
        uptime_seconds: 7,
        redis: Some(RedisHealth {
            status: RedisStatus::Disconnected,
            latency_ms: None,
            memory_bytes: None,
            keys: None,
        }),
        cache: Some(CacheHealth { entries: 3, bytes: 300, hit_ratio: Some(0.5) }),
        active_connections: Some(2),
        in_flight: Some(1),
        upstreams: vec![UpstreamHealth { name: "app".into(), members: 2, available: 1 }],
    }
}

#[async_trait]
impl Operations for Notes {
    fn ready(&self) -> Result<(), NotReady> {
        self.ready.lock().map_or(Ok(()), Err)
    }

    async fn health(&self, _detail: bool) -> Health {
        *self.health_asked.lock() += 1;
        full_health()
    }

    async fn status(&self) -> Status {
        let config = ConfigStatus {
            file: Some("tollgate.toml".into()),
            loaded_at: 5,
            routes: vec!["todo".into()],
            policies: vec!["general".into()],
            issuers: vec![],
        };
        Status { health: full_health(), not_ready: Some(NotReady::Draining), started_at: 4, config }
    }

    async fn revoke(&self, revoke: Revoke) -> Result<Revoked, OperationError> {
        if *self.hang.lock() {
            std::future::pending::<()>().await;
        }
        if let Some(error) = *self.refuse.lock() {
            return Err(error);
        }
        let kind = revoke.target.kind();
        self.revoked.lock().push(revoke);
        Ok(Revoked { kind, id: "j-1".into(), expires_in_seconds: 60, shared: true })
    }

    async fn purge(&self, purge: Purge) -> Result<Purged, OperationError> {
        let kind = purge.kind();
        self.purged.lock().push(purge);
        Ok(Purged { kind, prefix: None, widened: None, entries: Some(4), shared: false })
    }

    async fn list_sessions(&self, user: User) -> Result<SessionList, OperationError> {
        let session = SessionStatus {
            session: user.name,
            opened: 1,
            seen: 2,
            until: 3,
            end: 4,
            client: Some("192.0.2.1".parse().unwrap()),
        };
        Ok(SessionList { sessions: vec![session], shared: true })
    }

    async fn end_sessions(
        &self,
        user: User,
        only: Option<Box<str>>,
    ) -> Result<SessionsEnded, OperationError> {
        self.ended.lock().push((user, only));
        Ok(SessionsEnded { ended: 2, shared: true })
    }

    async fn read_quota(&self, subject: QuotaSubject) -> Result<Quota, OperationError> {
        Ok(self.note_quota("read", subject, 0))
    }

    async fn reset_quota(&self, subject: QuotaSubject) -> Result<Quota, OperationError> {
        Ok(self.note_quota("reset", subject, 0))
    }

    async fn grant_quota(&self, subject: QuotaSubject, requests: u64) -> Result<Quota, OperationError> {
        Ok(self.note_quota("grant", subject, requests))
    }

    async fn api_tokens(&self, call: ApiTokenCall) -> Result<ApiTokenAnswer, OperationError> {
        self.api_tokens.lock().push(call);
        Err(OperationError::StoreUnavailable)
    }

    fn metrics_text(&self) -> String {
        "tollgate_store_degraded 0\n".to_owned()
    }
}

struct Bench {
    admin: Admin,
    notes: Arc<Notes>,
    clock: Arc<ManualClock>,
}

fn bench(token: Option<&str>, health: HealthDetail) -> Bench {
    let notes = Arc::new(Notes::default());
    let clock = Arc::new(ManualClock::at(UnixMillis(10_000)));
    let settings =
        Settings { token: token.map(|token| AdminToken::new(token).unwrap()), hosts: Box::default(), health };
    let admin = Admin::new(settings, notes.clone(), clock.clone());
    Bench { admin, notes, clock }
}

impl Bench {
    async fn send(&self, request: Request<&str>) -> Response<Bytes> {
        let (parts, body) = request.into_parts();
        match self.admin.admit(&parts) {
            Ok(action) => self.admin.perform(action, &Bytes::copy_from_slice(body.as_bytes())).await,
            Err(reply) => reply,
        }
        .into_response()
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        self.send(Request::builder().uri(path).header("host", "127.0.0.1:9090").body("").unwrap()).await
    }

    async fn post(&self, path: &str, body: &str) -> Response<Bytes> {
        self.send(post(path).body(body).unwrap()).await
    }
}

fn post(path: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
}

fn json(response: &Response<Bytes>) -> serde_json::Value {
    serde_json::from_slice(response.body()).unwrap()
}

#[tokio::test]
async fn probes_answer_under_any_host_and_readiness_tells_why_not() {
    let bench = bench(None, HealthDetail::Full);
    let probe = |path: &str| Request::builder().uri(path).header("host", "evil.example").body("").unwrap();
    assert_eq!(bench.send(probe("/live")).await.status(), 200);
    assert_eq!(bench.send(probe("/ready")).await.status(), 200);
    for why in [NotReady::ConfigNotLoaded, NotReady::ListenerDown, NotReady::Draining] {
        *bench.notes.ready.lock() = Some(why);
        let response = bench.send(probe("/ready")).await;
        assert_eq!(response.status(), 503);
        assert_eq!(json(&response)["reason"], why.as_str());
        assert_eq!(bench.send(probe("/live")).await.status(), 200);
    }
}

#[tokio::test]
async fn metrics_and_health_need_no_credential_but_an_honest_host() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let response = bench.get("/metrics").await;
    assert_eq!(
        (response.status().as_u16(), &response.body()[..]),
        (200, &b"tollgate_store_degraded 0\n"[..])
    );
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let health = json(&bench.get("/health").await);
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["redis"]["status"], "disconnected");
    assert_eq!(health["cache"]["hit_ratio"], 0.5);
    assert_eq!(health["upstreams"][0]["available"], 1);
    for path in ["/metrics", "/health", "/api/v1/status"] {
        let request = Request::builder().uri(path).header("host", "evil.example").body("").unwrap();
        assert_eq!(bench.send(request).await.status(), 421, "{path}");
        let request =
            Request::builder().uri(path).header("host", "localhost").header("origin", "http://evil.example");
        assert_eq!(bench.send(request.body("").unwrap()).await.status(), 403, "{path}");
    }
}

#[tokio::test]
async fn brief_health_hides_the_inside_from_everyone_without_the_credential() {
    let bench = bench(Some(TOKEN), HealthDetail::Brief);
    let health = json(&bench.get("/health").await);
    assert_eq!(health, serde_json::json!({"status": "degraded", "version": "1.2.3", "uptime_seconds": 7}));
    let request = Request::builder().uri("/health").header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {TOKEN}")).body("").unwrap();
    assert!(json(&bench.send(request).await)["redis"].is_object());
}

#[tokio::test]
async fn a_flood_of_health_requests_asks_the_gateway_once_per_half_second() {
    let bench = bench(None, HealthDetail::Full);
    for _ in 0..50 {
        assert_eq!(bench.get("/health").await.status(), 200);
    }
    assert_eq!(*bench.notes.health_asked.lock(), 1);
    bench.clock.advance(Duration::from_millis(500));
    bench.get("/health").await;
    assert_eq!(*bench.notes.health_asked.lock(), 2);
    bench.clock.set(UnixMillis(1));
    bench.get("/health").await;
    assert_eq!(*bench.notes.health_asked.lock(), 3);
}

#[tokio::test]
async fn the_api_is_closed_without_a_configured_token_and_without_the_right_one() {
    let closed = bench(None, HealthDetail::Full);
    for path in ["/api/v1/status", "/api/v1/revocations", "/api/v1/nothing", "/api"] {
        let response = closed.post(path, "{}").await;
        assert_eq!(response.status(), 403, "{path}");
        assert_eq!(json(&response)["detail"], "admin API is disabled: set admin.token");
    }
    let open = bench(Some(TOKEN), HealthDetail::Full);
    for path in ["/api/v1/status", "/api/v1/revocations", "/api/v1/nothing"] {
        let response = open.get(path).await;
        assert_eq!(response.status(), 401, "{path}");
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer "));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    let wrong = Request::builder().uri("/api/v1/status").header("host", "localhost");
    let wrong = wrong.header("authorization", "Bearer wrong").body("").unwrap();
    assert_eq!(open.send(wrong).await.status(), 401);
    let query = post("/api/v1/revocations?token=s3cret-admin-token").body("{}").unwrap();
    assert_eq!(open.send(query).await.status(), 400);
}

#[tokio::test]
async fn status_describes_the_gateway() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let request = Request::builder().uri("/api/v1/status").header("host", "[::1]:9090");
    let response =
        bench.send(request.header("authorization", format!("Bearer {TOKEN}")).body("").unwrap()).await;
    assert_eq!(response.status(), 200);
    let status = json(&response);
    assert_eq!(status["config"]["routes"][0], "todo");
    assert_eq!(status["not_ready"], "draining");
}

#[tokio::test]
async fn a_revocation_names_exactly_one_thing() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let response =
        bench.post("/api/v1/revocations", r#"{"jti":"j-1","ttl":"24h","reason":"lost phone"}"#).await;
    assert_eq!(response.status(), 200);
    assert_eq!(json(&response)["expires_in_seconds"], 60);
    assert_eq!(
        *bench.notes.revoked.lock(),
        [Revoke {
            target: RevokeTarget::Jti("j-1".into()),
            issuer: None,
            ttl: Some(Duration::from_secs(86_400)),
            reason: Some("lost phone".into()),
        }]
    );
    for good in [r#"{"token":"a.b.c"}"#, r#"{"subject":"alice","issuer":"main","ttl":60}"#] {
        assert_eq!(bench.post("/api/v1/revocations", good).await.status(), 200, "{good}");
    }
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"jti":""}"#,
        r#"{"jti":7}"#,
        r#"{"jti":"a","token":"b"}"#,
        r#"{"jti":"a","jti":"b"}"#,
        r#"{"token":"a.b.c","issuer":"main"}"#,
        r#"{"jti":"a","issuer":""}"#,
        r#"{"jti":"a","extra":1}"#,
        r#"{"jti":"a\n"}"#,
        r#"{"jti":"a","ttl":0}"#,
        r#"{"jti":"a","ttl":-1}"#,
        r#"{"jti":"a","ttl":99999999999}"#,
        r#"{"jti":"a","ttl":"soon"}"#,
        r#"{"jti":"a"} trailing"#,
    ] {
        assert_eq!(bench.post("/api/v1/revocations", bad).await.status(), 400, "{bad}");
    }
    let long = format!(r#"{{"jti":"{}"}}"#, "x".repeat(257));
    assert_eq!(bench.post("/api/v1/revocations", &long).await.status(), 400);
    let deep = "[".repeat(30_000);
    assert_eq!(bench.post("/api/v1/revocations", &deep).await.status(), 400);
    assert_eq!(bench.notes.revoked.lock().len(), 3);
}

#[tokio::test]
async fn a_refused_body_is_never_echoed() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let response = bench.post("/api/v1/revocations", r#"{"jti":"a","<script>eyJsecret":1}"#).await;
    let text = std::str::from_utf8(response.body()).unwrap();
    assert!(!text.contains("script") && !text.contains("eyJ"), "{text}");
}

#[tokio::test]
async fn a_purge_names_exactly_one_thing() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    for (body, purge) in [
        (r#"{"all":true}"#, Purge::All),
        (r#"{"tag":"todos:alice"}"#, Purge::Tag("todos:alice".into())),
        (r#"{"user":"alice"}"#, Purge::User(user("alice", None))),
        (r#"{"user":"alice","issuer":"main"}"#, Purge::User(user("alice", Some("main")))),
        (r#"{"route":"todo"}"#, Purge::Route("todo".into())),
        (r#"{"key":"abc"}"#, Purge::Key("abc".into())),
        (r#"{"prefix":"/a/"}"#, Purge::Prefix { path: "/a/".into(), host: None }),
        (r#"{"prefix":"/a/","host":"h"}"#, Purge::Prefix { path: "/a/".into(), host: Some("h".into()) }),
    ] {
        let response = bench.post("/api/v1/cache/purge", body).await;
        assert_eq!(response.status(), 200, "{body}");
        assert_eq!(json(&response)["kind"], purge.kind());
        assert_eq!(bench.notes.purged.lock().last(), Some(&purge));
    }
    for bad in [
        "{}",
        r#"{"all":false}"#,
        r#"{"all":true,"tag":"x"}"#,
        r#"{"prefix":""}"#,
        r#"{"prefix":["/a"]}"#,
        r#"{"prefix":"/a","tag":"x"}"#,
        r#"{"host":"a.example"}"#,
        r#"{"all":true,"host":"a.example"}"#,
        r#"{"tag":""}"#,
        r#"{"issuer":"main"}"#,
        r#"{"all":true,"issuer":"main"}"#,
    ] {
        assert_eq!(bench.post("/api/v1/cache/purge", bad).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn a_quota_call_names_somebody_and_a_grant_an_amount() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    for (call, body, issuer, requests) in [
        ("read", r#"{"user":"alice"}"#, None, 0),
        ("read", r#"{"user":"alice","issuer":"main"}"#, Some("main"), 0),
        ("reset", r#"{"user":"alice"}"#, None, 0),
        ("grant", r#"{"user":"alice","requests":500}"#, None, 500),
    ] {
        let alice = QuotaSubject { user: Some(user("alice", issuer)), ..QuotaSubject::default() };
        let response = bench.post(&format!("/api/v1/quota/{call}"), body).await;
        assert_eq!(response.status(), 200, "{call}");
        assert_eq!(json(&response)["counters"][0]["remaining"], 7);
        assert_eq!(*bench.notes.quota.lock().last().unwrap(), (call, alice, requests));
    }
    for (call, bad) in [
        ("read", "{}"),
        ("read", r#"{"policy":"login"}"#),
        ("read", r#"{"ip":"not an address"}"#),
        ("read", r#"{"user":""}"#),
        ("read", r#"{"issuer":"main"}"#),
        ("read", r#"{"ip":"192.0.2.1","issuer":"main"}"#),
        ("read", r#"{"user":"a","issuer":""}"#),
        ("read", r#"{"user":"a","requests":5}"#),
        ("reset", r#"{"name":"alice"}"#),
        ("grant", r#"{"user":"alice"}"#),
        ("grant", r#"{"user":"alice","requests":0}"#),
        ("grant", r#"{"user":"alice","requests":-1}"#),
        ("grant", r#"{"user":"alice","requests":1e999}"#),
        ("grant", r#"{"user":"alice","requests":18446744073709551616}"#),
    ] {
        assert_eq!(bench.post(&format!("/api/v1/quota/{call}"), bad).await.status(), 400, "{call} {bad}");
    }
    assert_eq!(bench.get("/api/v1/quota/read").await.status(), 401);
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_user() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let listed = bench.post("/api/v1/sessions/list", r#"{"user":"alice"}"#).await;
    assert_eq!(listed.status(), 200);
    assert_eq!(
        json(&listed)["sessions"][0],
        serde_json::json!({
            "session": "alice", "opened": 1, "seen": 2, "until": 3, "end": 4, "client": "192.0.2.1"
        })
    );
    for body in [
        r#"{"user":"alice"}"#,
        r#"{"user":"alice","session":"j-1"}"#,
        r#"{"user":"alice","issuer":"main","session":"j-1"}"#,
    ] {
        let ended = bench.post("/api/v1/sessions/end", body).await;
        assert_eq!(json(&ended), serde_json::json!({"ended": 2, "shared": true}));
    }
    let one = Some(Box::from("j-1"));
    assert_eq!(
        *bench.notes.ended.lock(),
        [(user("alice", None), None), (user("alice", None), one.clone()), (user("alice", Some("main")), one),]
    );
    for bad in [
        "{}",
        r#"{"user":""}"#,
        r#"{"user":7}"#,
        r#"{"user":"a","all":true}"#,
        r#"{"session":"j"}"#,
        r#"{"issuer":"main"}"#,
        r#"{"user":"a","issuer":""}"#,
    ] {
        assert_eq!(bench.post("/api/v1/sessions/list", bad).await.status(), 400, "{bad}");
        assert_eq!(bench.post("/api/v1/sessions/end", bad).await.status(), 400, "{bad}");
    }
    assert_eq!(bench.notes.ended.lock().len(), 3);
    assert_eq!(bench.get("/api/v1/sessions/list").await.status(), 401);
}

#[tokio::test]
async fn calls_on_api_tokens_are_read_strictly() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let id = Id::parse("0123456789abcdef").unwrap();
    for (call, body, asked) in [
        ("list", "{}", ApiTokenCall::List(None)),
        ("list", "", ApiTokenCall::List(None)),
        ("list", r#"{"owner":"ada"}"#, ApiTokenCall::List(Some("ada".into()))),
        ("rotate", r#"{"id":"0123456789abcdef"}"#, ApiTokenCall::Rotate(id, Duration::ZERO)),
        (
            "rotate",
            r#"{"id":"0123456789abcdef","grace":"24h"}"#,
            ApiTokenCall::Rotate(id, Duration::from_secs(86_400)),
        ),
        ("disable", r#"{"id":"0123456789abcdef"}"#, ApiTokenCall::Disable(id)),
        ("enable", r#"{"id":"0123456789abcdef"}"#, ApiTokenCall::Enable(id)),
        ("delete", r#"{"id":"0123456789abcdef"}"#, ApiTokenCall::Delete(id)),
    ] {
        assert_eq!(bench.post(&format!("/api/v1/api-tokens/{call}"), body).await.status(), 503, "{call}");
        assert_eq!(*bench.notes.api_tokens.lock().last().unwrap(), asked);
    }
    let body = r#"{"name":"ci","owner":"ada","plan":"pro","permissions":["read"],"multiplier":2,
                   "limits":{"hour":5},"expires_in":60}"#;
    assert_eq!(bench.post("/api/v1/api-tokens/create", body).await.status(), 503);
    let ApiTokenCall::Create(order) = bench.notes.api_tokens.lock().pop().unwrap() else { panic!() };
    assert_eq!((&*order.name, &*order.owner, order.plan.as_deref()), ("ci", "ada", Some("pro")));
    assert_eq!(order.limits, OwnLimits { hour: Some(5), ..OwnLimits::default() });
    assert_eq!(order.expires_in, Some(Duration::from_secs(60)));
    for (call, bad) in [
        ("create", "{}"),
        ("create", r#"{"name":"ci"}"#),
        ("create", r#"{"name":"ci","owner":"a\u001bb"}"#),
        ("create", r#"{"name":"ci","owner":"ada","secret":"x"}"#),
        ("create", r#"{"name":"ci","owner":"ada","limits":{"week":1}}"#),
        ("create", r#"{"name":"ci","owner":"ada","expires_in":"soon"}"#),
        ("list", r#"{"user":"ada"}"#),
        ("rotate", r#"{"id":"short"}"#),
        ("delete", r#"{"id":"tgk_0123456789abcdef"}"#),
        ("delete", "{}"),
    ] {
        assert_eq!(
            bench.post(&format!("/api/v1/api-tokens/{call}"), bad).await.status(),
            400,
            "{call} {bad}"
        );
    }
    assert_eq!(bench.post("/api/v1/api-tokens/show", "{}").await.status(), 404);
    assert_eq!(bench.get("/api/v1/api-tokens/list").await.status(), 401);
}

#[tokio::test]
async fn failures_of_the_gateway_become_problems() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    for (error, status) in [
        (OperationError::NotFound("no such token"), 404),
        (OperationError::Invalid("no issuer signs such tokens"), 422),
        (OperationError::StoreUnavailable, 503),
    ] {
        *bench.notes.refuse.lock() = Some(error);
        let response = bench.post("/api/v1/revocations", r#"{"jti":"a"}"#).await;
        assert_eq!(response.status(), status);
        assert_eq!(json(&response)["detail"], error.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_hangs_is_given_up() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    *bench.notes.hang.lock() = true;
    assert_eq!(bench.post("/api/v1/revocations", r#"{"jti":"a"}"#).await.status(), 503);
}

#[tokio::test]
async fn wrong_methods_types_and_paths_are_told_apart() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    assert_eq!(bench.get("/").await.status(), 404);
    assert_eq!(bench.get("/metrics/../api").await.status(), 404);
    assert_eq!(bench.post("/api/v1/nothing", "{}").await.status(), 404);
    let response = bench.post("/metrics", "").await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["allow"]),
        (405, &"GET, HEAD".parse().unwrap())
    );
    let mut wrong = post("/api/v1/revocations").body("{}").unwrap();
    *wrong.method_mut() = Method::DELETE;
    let response = bench.send(wrong).await;
    assert_eq!((response.status().as_u16(), &response.headers()["allow"]), (405, &"POST".parse().unwrap()));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let mut request = post("/api/v1/revocations").body(r#"{"jti":"a"}"#).unwrap();
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        assert_eq!(bench.send(request).await.status(), 415, "{kind}");
    }
    let request = post("/api/v1/revocations").header("content-encoding", "gzip").body("").unwrap();
    assert_eq!(bench.send(request).await.status(), 415);
}

#[tokio::test]
async fn every_answer_wears_the_armour() {
    let bench = bench(Some(TOKEN), HealthDetail::Full);
    for path in ["/live", "/ready", "/metrics", "/health", "/api/v1/status", "/nothing"] {
        let response = bench.get(path).await;
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ] {
            assert_eq!(response.headers()[name], value, "{path}");
        }
        assert_eq!(response.headers()["content-length"], response.body().len().to_string().as_str());
    }
}

/// Sends raw bytes and reads until the gateway closes the connection.
async fn exchange(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listener_serves_bounded_requests_over_a_real_socket() {
    use pingora::services::Service as _;
    use std::os::fd::IntoRawFd as _;

    let bench = bench(Some(TOKEN), HealthDetail::Full);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fds = pingora::server::Fds::new();
    fds.add("admin".to_owned(), listener.into_raw_fd());
    let mut service = service(bench.admin);
    service.add_tcp("admin");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let running = tokio::spawn(async move {
        service.start_service(Some(Arc::new(Mutex::new(fds))), stopped, 1).await;
    });

    let head = format!("Host: {address}\r\nConnection: close\r\n");
    let live = exchange(address, format!("GET /live HTTP/1.1\r\n{head}\r\n").as_bytes()).await;
    assert!(live.starts_with("HTTP/1.1 200 ") && live.ends_with("\r\n\r\n{\"status\":\"alive\"}"), "{live}");

    let without_body = exchange(address, format!("HEAD /health HTTP/1.1\r\n{head}\r\n").as_bytes()).await;
    assert!(
        without_body.starts_with("HTTP/1.1 200 ") && without_body.ends_with("\r\n\r\n"),
        "{without_body}"
    );

    let auth = format!("{head}Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
    let revoke =
        format!("POST /api/v1/revocations HTTP/1.1\r\n{auth}Content-Length: 13\r\n\r\n{{\"jti\":\"j-1\"}}");
    let revoked = exchange(address, revoke.as_bytes()).await;
    assert!(revoked.starts_with("HTTP/1.1 200 ") && revoked.contains("\"shared\":true"), "{revoked}");

    let announced = format!("POST /api/v1/revocations HTTP/1.1\r\n{auth}Content-Length: 70000\r\n\r\n");
    assert!(exchange(address, announced.as_bytes()).await.starts_with("HTTP/1.1 413 "));

    let mut chunked =
        format!("POST /api/v1/revocations HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\n");
    for _ in 0..17 {
        chunked.push_str("1000\r\n");
        chunked.push_str(&" ".repeat(4_096));
        chunked.push_str("\r\n");
    }
    assert!(exchange(address, chunked.as_bytes()).await.starts_with("HTTP/1.1 413 "));

    let broken = exchange(address, b"GET /live HTTP/1.1\r\nbad header\r\n\r\n").await;
    assert!(broken.starts_with("HTTP/1.1 400 "), "{broken}");

    assert_eq!(bench.notes.revoked.lock().len(), 1);
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
}
