//! What every request pays for: head checks, path, route, client address, token, limits, header fields and cache
//! key, each alone. Run with `cargo bench`; compare within one run only.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a benchmark, not shipped")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, Version};
use tollgate::cache::generations::Fingerprint;
use tollgate::cache::key::{self, Target, Unstamped};
use tollgate::cache::request::Caller as CacheCaller;
use tollgate::cache::{Pending, RouteCache};
use tollgate::client_addr;
use tollgate::clock::UnixMillis;
use tollgate::identity::mint::{MintKey, MintRequest, mint};
use tollgate::identity::verifier::Settings as VerifierSettings;
use tollgate::identity::{Algorithm, Issuer, Key, KeySet, Sources, Verifier, credentials};
use tollgate::limits::batch::{Batch, Counter, Item};
use tollgate::limits::gate;
use tollgate::limits::local::Settings as LocalSettings;
use tollgate::limits::{
    Caller, Checks, KeyPart, KeySpace, LimitSource, Local, Plans, Policy, Window, fields,
};
use tollgate::pipeline::head::{self, HeadInput, HeadLimits};
use tollgate::route::normalise::{self, Options};
use tollgate::route::pattern::Pattern;
use tollgate::route::table::{Entry, Table};
use tollgate::upstream::forward;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn headers(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "api.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-US,en;q=0.9"),
        ("cookie", "theme=dark; consent=yes"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

fn token() -> String {
    let key = MintKey::secret(Algorithm::HS256, SECRET).unwrap();
    mint(&MintRequest::new("user-42"), &key, NOW).unwrap()
}

/// Keys of RSA-2048: to sign with and to verify by.
fn rsa_keys() -> (MintKey, Key) {
    let pem = |half: &str| {
        let file = format!("{}/tests/fixtures/keys/rsa-2048-{half}.pem", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(file).unwrap()
    };
    let signing = MintKey::private_pem(Algorithm::RS256, &pem("private")).unwrap();
    (signing, Key::public_pem(&pem("public")).unwrap())
}

fn verifier(algorithm: Algorithm, key: Key, entries: usize) -> Verifier {
    let keys = KeySet::new(vec![key]).unwrap();
    let issuer = Issuer::new("main", Vec::new(), [algorithm], keys).unwrap();
    let mut settings = VerifierSettings::new(vec![issuer]).unwrap();
    settings.cache_entries = entries;
    Verifier::new(settings)
}

fn request(criterion: &mut Criterion) {
    let headers = headers(&token());
    let method = Method::GET;
    let input = HeadInput {
        method: &method,
        target: b"/api/v1/todo/42?page=2&sort=name",
        version: Version::HTTP_11,
        headers: &headers,
        is_h2: false,
        authority: None,
        raw: None,
    };
    let limits = HeadLimits::default();
    criterion
        .bench_function("head: inspect", |b| b.iter(|| head::inspect(black_box(&input), &limits).unwrap()));

    criterion.bench_function("path: canonical already", |b| {
        b.iter(|| normalise::normalise(black_box(b"/api/v1/todo/42"), Options::default()).unwrap().len());
    });
    criterion.bench_function("path: to be rewritten", |b| {
        b.iter(|| {
            normalise::normalise(black_box(b"/api//v1/./t%6Fdo/42"), Options::default()).unwrap().len()
        });
    });

    let entry = |path: &str| Entry {
        name: path.into(),
        host: None,
        pattern: Pattern::parse(path).unwrap(),
        methods: vec![],
        value: (),
    };
    let mut entries: Vec<_> = (0..100).map(|n| entry(&format!("/api/v1/resource{n}/:id"))).collect();
    entries.push(entry("/api/v1/todo/:id"));
    entries.push(entry("/**"));
    let table = Table::build(entries).unwrap();
    criterion.bench_function("route: one of 102", |b| {
        b.iter(|| matches!(table.find("api.example.com", &method, black_box("/api/v1/todo/42")), _found));
    });

    let settings = client_addr::Settings::default();
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    criterion.bench_function("client address: direct", |b| {
        b.iter(|| client_addr::resolve(&settings, black_box(peer), &headers));
    });

    let settings = forward::Settings::default();
    let request_id = HeaderValue::from_static("0123456789abcdef0123456789abcdef");
    let trace = forward::TraceParent::fresh();
    let forwarded = forward::Forwarded {
        client: peer,
        peer,
        peer_trusted: false,
        scheme: "http",
        host: "api.example.com",
        request_id: &request_id,
        trace: &trace,
        identity: forward::Identity::default(),
    };
    criterion.bench_function("forward: headers for the upstream", |b| {
        b.iter_batched_ref(
            || headers.clone(),
            |headers| forward::forward(&settings, headers, forward::Keep::default(), &forwarded),
            criterion::BatchSize::SmallInput,
        );
    });
}

fn identity(criterion: &mut Criterion) {
    let token = token();
    let headers = headers(&token);
    let sources = Sources::default();
    criterion.bench_function("token: extract", |b| {
        b.iter(|| credentials::extract(&sources, black_box(&headers), None).unwrap().is_some());
    });
    let hmac = (MintKey::secret(Algorithm::HS256, SECRET).unwrap(), Key::secret(SECRET).unwrap());
    for (name, algorithm, (signing, key)) in
        [("hs256", Algorithm::HS256, hmac), ("rs256", Algorithm::RS256, rsa_keys())]
    {
        let token = |user: usize| mint(&MintRequest::new(format!("user-{user}")), &signing, NOW).unwrap();
        let remembering = verifier(algorithm, key.clone(), 10_000);
        // Among others, as in service.
        for user in 0..500 {
            remembering.verify(&token(user), NOW).unwrap();
        }
        let forgetful = verifier(algorithm, key, 0);
        let token = token(42);
        criterion.bench_function(&format!("verify/{name}/cached"), |b| {
            b.iter(|| remembering.verify(black_box(&token), NOW).unwrap());
        });
        criterion.bench_function(&format!("verify/{name}/new"), |b| {
            b.iter(|| forgetful.verify(black_box(&token), NOW).unwrap());
        });
    }
}

fn limits(criterion: &mut Criterion) {
    let window = |seconds| Window::new(1_000_000_000, Duration::from_secs(seconds)).unwrap();
    let windows = LimitSource::Windows(vec![window(60), window(3_600), window(86_400)]);
    let policy =
        Policy::new("user", &[KeyPart::User], tollgate::limits::Algorithm::FixedWindow, windows).unwrap();
    let space = KeySpace::new("", false);
    let plans = Plans::standard().unwrap();
    let caller = Caller {
        ip: "127.0.0.1",
        user: Some("user-42"),
        token: Some("jti"),
        api_token: None,
        own_limits: [None; 3],
        route: "todo",
        plan: plans.named(None),
        multiplier: 1.0,
        request: tollgate::limits::Parts::default(),
    };
    let mut checks = Checks::new();
    criterion.bench_function("limits: build 3 checks", |b| {
        b.iter(|| {
            checks.begin(NOW);
            checks.add(&space, 0, black_box(&policy), &caller, 1).unwrap();
        });
    });
    let local = Local::new(LocalSettings::default());
    criterion.bench_function("limits: 3 windows from memory", |b| {
        b.iter(|| {
            checks.begin(NOW);
            checks.add(&space, 0, &policy, &caller, 1).unwrap();
            local.decide(&mut checks, NOW)
        });
    });
    let counters = checks.iter().map(|check| Counter {
        key: checks.key(check),
        rule: check.rule,
        penalise: check.penalise,
        shadow: check.shadow,
        known_end: check.known_end,
    });
    let item = Item {
        guards: vec![b"blacklist:x", b"ban:user:x", b"revoked_before:x"],
        cutoff: Some(2),
        issued_at: 1_800_000_000,
        counters: counters.collect(),
        count: 1,
    };
    let batch = Batch { tags: vec![b"session:x"], items: vec![item] };
    criterion.bench_function("limits: encode the exchange", |b| {
        b.iter(|| {
            let mut command = redis::cmd("EVALSHA");
            command.arg("0123456789012345678901234567890123456789");
            gate::encode(black_box(&batch), &mut command);
            command
        });
    });
    drop(batch);
    let decision = local.decide(&mut checks, NOW);
    criterion.bench_function("limits: header fields", |b| {
        b.iter(|| {
            let mut length = 0;
            fields::write(&fields::Settings::default(), black_box(&checks), &decision, |_, value| {
                length += value.len();
            });
            length
        });
    });

    let refusing = Policy::new(
        "once",
        &[KeyPart::User],
        tollgate::limits::Algorithm::FixedWindow,
        LimitSource::Windows(vec![Window::new(1, Duration::from_secs(86_400)).unwrap()]),
    )
    .unwrap();
    let mut over = Checks::new();
    over.begin(NOW);
    over.add(&space, 0, &refusing, &caller, 1).unwrap();
    let _ = local.decide(&mut over, NOW);
    local.observe(&over, Some(NOW), NOW);
    criterion.bench_function("limits: refusal known locally", |b| {
        b.iter(|| {
            over.begin(NOW);
            over.add(&space, 0, &refusing, &caller, 1).unwrap();
            local.refused(&mut over, NOW).unwrap()
        });
    });
}

fn cache(criterion: &mut Criterion) {
    let route = Arc::new(RouteCache::new("todo"));
    let target = Target {
        scheme: "https",
        host: "api.example.com",
        path: "/api/v1/todo/42",
        query: Some("page=2&sort=name"),
        caller: CacheCaller::User("user-42"),
    };
    criterion.bench_function("cache: key", |b| {
        b.iter(|| key::hash(&Unstamped::new(&route, black_box(target)).stamp(Fingerprint([7; 16]))));
    });
    let headers = headers(&token());
    criterion.bench_function("cache: judge a request and name its tags", |b| {
        b.iter(|| Pending::new(&route, &Method::GET, black_box(&headers), target, |_| None).unwrap());
    });
}

criterion_group!(benches, request, identity, limits, cache);
criterion_main!(benches);
