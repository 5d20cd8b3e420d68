//! The composition root: from a checked configuration to a running gateway.

mod api_tokens;
mod build;
mod forget;
mod observer;
mod operations;
mod published;
mod reached;
mod remote;
mod shutdown;
mod warm;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use prometheus::IntGauge;
use sha2::{Digest, Sha256};

use crate::admin::{self, Admin, AdminToken, ConfigStatus};
use crate::api_tokens::ApiTokens;
use crate::cache::{self, Cache};
use crate::clock::{Clock, SystemClock};
use crate::config::{Errors, Loaded, Spec, spec};
use crate::identity::revocation::{DEFAULT_KNOWN, DEFAULT_PENDING, Known, Pending};
use crate::jwks::Keepers;
use crate::limits::{self, InFlight, KeySpace, Local, UserLimits};
use crate::logging::{self, AccessLog, Logging};
use crate::metrics::Metrics;
use crate::pipeline::health::{self, Vitals};
use crate::pipeline::heartbeat::{self, HEARTBEAT};
use crate::pipeline::reconcile::{self, RECONCILE};
use crate::pipeline::sessions::sweep::sweep_sessions;
use crate::pipeline::sessions::{COMPARE_AND_SET, Sessions};
use crate::pipeline::{Exchange, GATE, REFUND, Recoverer, Shared};
use crate::proxy::{self, Proxy, Warmer};
use crate::redis::{self, Recovery as _, Store};
use crate::route::HealthDetail;
use crate::sessions::Rules;
use crate::sessions::local::DEFAULT_ACCOUNTS;
use crate::upstream::Upstream;

pub use self::api_tokens::on_api_tokens;
pub use self::build::algorithm;
use self::observer::Counting;
use self::operations::{GatewayOperations, Lifecycle};
pub use self::published::verifier_now;
use self::reached::Reached;
use self::remote::RedisTier;
use self::shutdown::Signals;

/// Names are looked up again after this long.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// Everything about a configuration that only shows when it is put together, each with its place in the file.
///
/// # Errors
/// All of it.
pub fn check(loaded: &Loaded) -> Result<(), Errors> {
    let metrics = Metrics::new().map_err(|error| {
        Errors::new(vec![loaded.places.problem("", format!("metrics cannot be set up: {error}"))])
    })?;
    build::check(&loaded.spec, &metrics).map_err(|problems| {
        let place = |problem: build::Unusable| loaded.places.problem(&problem.path, problem.problem);
        let mut problems: Vec<_> = problems.into_iter().map(place).collect();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Errors::new(problems)
    })
}

/// A gateway about to run.
pub struct App {
    server: Server,
    lifecycle: Arc<Lifecycle>,
    background: tokio::runtime::Runtime,
    in_flight: IntGauge,
    _logging: Arc<Logging>,
}

/// What else a run needs beside the configuration.
#[derive(Default)]
pub struct Extras {
    /// The file the configuration came from.
    pub file: Option<Box<str>>,
    /// Further services, such as the demo's backend.
    pub services: Vec<Box<dyn pingora::services::ServiceWithDependents>>,
    /// Printed once the gateway accepts connections.
    pub banner: Option<String>,
}

impl App {
    /// Puts everything together. Nothing accepts connections yet.
    ///
    /// # Errors
    /// What keeps the gateway from starting: an address in use, an unusable setting.
    pub fn assemble(loaded: &Loaded, extras: Extras) -> anyhow::Result<Self> {
        let spec = &loaded.spec;
        let metrics = Metrics::new().context("metrics cannot be set up")?;
        let logging = Arc::new(logging::init(&log_settings(spec), metrics.families().log_dropped.clone())?);
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        check_addresses(spec)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let shared = shared(spec, metrics, logging.access(), Arc::clone(&clock))?;
        let gateway = build::gateway(spec, Arc::clone(&shared)).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", lines.join("\n"))
        })?;
        let started_at = clock.now();
        shared.metrics.config_loaded(started_at);
        let upstreams = gateway.upstreams.clone();
        let current = Arc::new(ArcSwap::from_pointee(gateway));
        let lifecycle = Arc::new(Lifecycle::default());

        let mut server = Server::new_with_opt_and_conf(None, server_conf(spec));
        server.bootstrap();
        let conf = Arc::clone(&server.configuration);
        let open = shared.metrics.families().active_connections.clone();
        let proxy = Proxy::new(Arc::clone(&current), Arc::clone(&lifecycle.draining));
        let mut http = proxy::http1(&conf, proxy.clone(), open.clone());
        for address in &spec.server.listen {
            http.add_tcp(&address.to_string());
        }
        server.add_service(http);
        let warmer = Warmer::new(&conf, proxy.clone()).context("responses cannot be kept warm")?;
        if !spec.server.listen_h2c.is_empty() {
            let mut h2c = proxy::h2c(&conf, proxy, open, spec.server.keepalive_timeout);
            for address in &spec.server.listen_h2c {
                h2c.add_tcp(&address.to_string());
            }
            server.add_service(h2c);
        }
        let operations = GatewayOperations {
            current: Arc::clone(&current),
            lifecycle: Arc::clone(&lifecycle),
            config: config_status(spec, extras.file, started_at.as_secs()),
            started_at,
        };
        let admin = Admin::new(admin_settings(spec)?, Arc::new(operations), clock);
        let mut admin = admin::service(admin);
        admin.add_tcp(&spec.admin.listen.to_string());
        server.add_service(admin);
        for service in extras.services {
            server.add_boxed_service(service);
        }

        let background =
            background(spec, &shared, upstreams, &lifecycle, Arc::clone(&logging), extras.banner)?;
        background.spawn(forget::forget(Arc::clone(&current)));
        background.spawn(warm::keep_warm(warmer, current, lifecycle.draining.clone()));
        let in_flight = shared.metrics.families().requests_in_flight.clone();
        Ok(Self { server, lifecycle, background, in_flight, _logging: logging })
    }

    /// Runs until a signal ends it.
    pub fn run(self) {
        let Self { server, lifecycle, background, in_flight, _logging } = self;
        server.run(RunArgs { shutdown_signal: Box::new(Signals { lifecycle, in_flight }) });
        background.shutdown_timeout(Duration::from_secs(1));
    }
}

fn log_settings(spec: &Spec) -> logging::Settings {
    logging::Settings {
        format: match spec.log.format {
            spec::LogFormat::Json => logging::Format::Json,
            spec::LogFormat::Human => logging::Format::Human,
        },
        output: logging::Output::Stdout,
        filter: spec.log.level.as_str().into(),
        colour: false,
        access: spec.log.access.then(|| spec.log.access_fields.clone().into()),
    }
}

/// pingora would retry for half a minute and then go on without the listener.
fn check_addresses(spec: &Spec) -> anyhow::Result<()> {
    let addresses = spec.server.listen.iter().chain(&spec.server.listen_h2c).chain([&spec.admin.listen]);
    for address in addresses {
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    }
    Ok(())
}

fn shared(
    spec: &Spec,
    metrics: Metrics,
    access_log: AccessLog,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<Shared>> {
    let store = store(spec, Box::new(Counting(metrics.store())))?;
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let largest =
        spec.routes.iter().filter_map(|route| route.cache.as_ref()).map(|cache| cache.max_object).max();
    let memory_only = store.is_none();
    let cache = Cache::leak(
        &cache::Settings {
            memory_bytes: spec.cache.memory,
            max_lifetime: spec.cache.max_lifetime,
            remote_max_object_bytes: bytes(spec.cache.redis_max_object),
            // The decision may take the other half: together a request waits no longer than the deadline.
            remote_deadline: spec.redis.deadline / 2,
            remote_secret: cache_secret(spec),
            key_prefix: spec.redis.key_prefix.clone(),
            lock_wait: spec.cache.coalesce_wait,
            claim_hold: spec.cache.redis_lock,
            // Who waits longer than usual is not woken before it wants to.
            lock_age: spec.cache.coalesce_wait.max(cache::Settings::default().lock_age),
            ..cache::Settings::default()
        },
        bytes(largest.unwrap_or(spec.cache.max_object)),
        store
            .as_ref()
            .filter(|_| spec.cache.redis)
            .map(|store| Arc::new(RedisTier::new(Arc::clone(store), &metrics)) as _),
        !memory_only,
        Arc::clone(&clock),
    );
    let exchange = Exchange::new(
        metrics.exchange(),
        spec.limits.coalesce,
        metrics.families().requests_in_flight.clone(),
    );
    let rules = Rules::new(spec.sessions.idle, spec.sessions.absolute, spec.sessions.max_per_user);
    let longest = spec.identity.revocation_lifetime;
    let sessions = Sessions::new(rules, DEFAULT_ACCOUNTS, &spec.redis.key_prefix, longest, &metrics);
    Ok(Arc::new(Shared {
        vitals: Vitals::new(clock.now()),
        clock,
        metrics,
        access_log,
        api_tokens: ApiTokens::new(store.clone(), build::api_token_naming(spec)),
        store,
        exchange: Arc::new(exchange),
        local: Local::new(limits::local::Settings {
            capacity: usize::try_from(spec.limits.local_keys).unwrap_or(usize::MAX),
            ..limits::local::Settings::default()
        }),
        in_flight: InFlight::new(),
        user_limits: (spec.limits.user_limits && !memory_only).then(|| {
            let capacity = usize::try_from(spec.limits.local_keys).unwrap_or(usize::MAX);
            UserLimits::new(capacity, spec.limits.user_limits_refresh)
        }),
        instances: AtomicU32::new(1),
        keys: KeySpace::new(&spec.redis.key_prefix, spec.redis.tagged()),
        known: Known::new(DEFAULT_KNOWN),
        pending: Pending::new(DEFAULT_PENDING),
        sessions,
        keepers: Keepers::default(),
        cache,
        invalidations_refused: AtomicBool::new(false),
    }))
}

/// The store of this configuration; `None`: memory only.
fn store(spec: &Spec, observer: Box<dyn redis::Observer>) -> anyhow::Result<Option<Arc<Store>>> {
    let Some(url) = &spec.redis.url else { return Ok(None) };
    let mut settings = redis::Settings::new(url.expose()).context("redis.url")?;
    settings.key_prefix = Arc::from(&*spec.redis.key_prefix);
    settings.connect_timeout = spec.redis.connect_timeout;
    settings.deadline = spec.redis.deadline;
    settings.health_check_interval = spec.redis.health_check_interval;
    settings.breaker_failures = spec.redis.breaker_failures;
    Store::new(settings, observer).context("redis.url").map(Some)
}

/// Authenticates cached responses in Redis: derived from a secret that all instances share and Redis does not
/// hold. Without any such secret entries carry a checksum only.
fn cache_secret(spec: &Spec) -> Option<Box<[u8]>> {
    let issuer_secrets =
        spec.issuers.iter().flat_map(|issuer| &issuer.keys).filter_map(|key| match &key.material {
            spec::KeyMaterial::Secret(secret) => Some(secret),
            spec::KeyMaterial::PublicPem(_) => None,
        });
    let secret = issuer_secrets.chain(spec.admin.token.as_ref()).next()?;
    let mut hasher = Sha256::new();
    hasher.update(b"tollgate response cache 1\0");
    hasher.update(secret.expose().as_bytes());
    Some(hasher.finalize().to_vec().into())
}

fn server_conf(spec: &Spec) -> ServerConf {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = spec.server.threads.map_or(cores, usize::from).max(1);
    ServerConf {
        threads,
        // Each connection stays on its thread, and uses that thread's Redis connection.
        work_stealing: false,
        upstream_keepalive_pool_size: 512,
        max_retries: 16,
        // `exit_when_drained` ends the process as soon as it may; this is the last resort.
        grace_period_seconds: Some(
            spec.server.shutdown_timeout.as_secs().saturating_add(2 + shutdown::SETTLE.as_secs()),
        ),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

fn config_status(spec: &Spec, file: Option<Box<str>>, loaded_at: u64) -> ConfigStatus {
    ConfigStatus {
        file,
        loaded_at,
        routes: spec.routes.iter().map(|route| route.name.clone()).collect(),
        policies: spec.policies.iter().map(|policy| policy.name.clone()).collect(),
        issuers: spec.issuers.iter().map(|issuer| issuer.name.clone()).collect(),
    }
}

fn admin_settings(spec: &Spec) -> anyhow::Result<admin::Settings> {
    let token = spec.admin.token.as_ref().map(|token| AdminToken::new(token.expose()));
    Ok(admin::Settings {
        token: token.transpose().context("admin.token")?,
        hosts: spec.admin.hosts.clone().into(),
        health: if spec.admin.health_detail { HealthDetail::Full } else { HealthDetail::Brief },
    })
}

/// The one thread beside the workers: Redis supervision, news, name resolution, readiness, shutdown.
fn background(
    spec: &Spec,
    shared: &Arc<Shared>,
    upstreams: Vec<Arc<Upstream>>,
    lifecycle: &Arc<Lifecycle>,
    logging: Arc<Logging>,
    banner: Option<String>,
) -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build()
        .context("the background thread cannot be started")?;
    if let Some(store) = &shared.store {
        let news = Arc::new(Reached::new(Recoverer(Arc::clone(shared))));
        runtime.spawn(Arc::clone(store).subscribe(news));
        let recovery = Arc::new(Recoverer(Arc::clone(shared)));
        let scripts = vec![&*GATE, &*REFUND, &*HEARTBEAT, &*RECONCILE, &*COMPARE_AND_SET];
        runtime.spawn(Arc::clone(store).supervise(scripts, recovery));
        runtime.spawn(heartbeat::beat(Arc::clone(shared)));
        runtime.spawn(reconcile::reconcile(Arc::clone(shared)));
    }
    let tells_health = spec.routes.iter().any(|route| route.health == Some(spec::HealthDetail::Full));
    let writes_entries =
        shared.cache.tiers().room().is_some() && spec.routes.iter().any(|route| route.cache.is_some());
    if tells_health || writes_entries {
        runtime.spawn(health::watch(Arc::clone(shared), tells_health));
    }
    runtime.spawn(sweep_sessions(Arc::clone(shared), spec.sessions.sweep));
    for keeper in shared.keepers.all() {
        runtime.spawn(keeper.keep());
    }
    let named: Vec<_> = upstreams.into_iter().filter(|upstream| upstream.needs_resolving()).collect();
    if !named.is_empty() {
        runtime.spawn(resolve_forever(named));
    }
    let listen: Vec<SocketAddr> = spec.server.listen.iter().chain(&spec.server.listen_h2c).copied().collect();
    runtime.spawn(announce(listen, Arc::clone(lifecycle), banner));
    let in_flight = shared.metrics.families().requests_in_flight.clone();
    let ending = Recoverer(Arc::clone(shared));
    let owed = async move { ending.settle().await };
    let ending = Recoverer(Arc::clone(shared));
    let exit = move || {
        if ending.owes() {
            let (revocations, api_tokens) = (ending.0.pending.len(), ending.0.api_tokens.owed());
            tracing::warn!(revocations, api_tokens, "what Redis never got of this instance ends with it");
        }
        logging.flush();
        std::process::exit(0);
    };
    runtime.spawn(shutdown::exit_when_drained(
        Arc::clone(lifecycle),
        in_flight,
        spec.server.shutdown_timeout,
        owed,
        exit,
    ));
    Ok(runtime)
}

async fn resolve_forever(upstreams: Vec<Arc<Upstream>>) {
    loop {
        for upstream in &upstreams {
            upstream.resolve().await;
        }
        tokio::time::sleep(RESOLVE_EVERY).await;
    }
}

/// Notes that the listeners accept connections, as a client sees it.
async fn announce(listen: Vec<SocketAddr>, lifecycle: Arc<Lifecycle>, banner: Option<String>) {
    for address in &listen {
        let reachable = if address.ip().is_unspecified() {
            let loopback: std::net::IpAddr = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            SocketAddr::new(loopback, address.port())
        } else {
            *address
        };
        while TcpStream::connect_timeout(&reachable, Duration::from_millis(100)).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    lifecycle.listening.store(true, Ordering::Release);
    let addresses: Vec<String> = listen.iter().map(ToString::to_string).collect();
    tracing::info!(listen = addresses.join(", "), version = env!("CARGO_PKG_VERSION"), "ready");
    if let Some(banner) = banner {
        // Nobody may be reading, as in `tollgate demo | head`.
        let _ = writeln!(std::io::stdout(), "{banner}");
    }
}

/// Runs the gateway of `loaded` until a signal ends it.
///
/// # Errors
/// See [`App::assemble`].
pub fn run(loaded: &Loaded, extras: Extras) -> anyhow::Result<()> {
    // The process-wide provider; a second install only says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Err(errors) = check(loaded) {
        bail!("{errors}");
    }
    App::assemble(loaded, extras)?.run();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::NotStored;
    use crate::config::{Variables, from_str};
    use crate::metrics::{Label as _, documentation};
    use crate::pipeline::Refusal;
    use crate::pipeline::outcome::AuthOutcome;
    use crate::sessions::login::NotOpened;

    /// `TOLLGATE_BLESS=1` rewrites the page.
    #[test]
    fn the_page_of_metrics_equals_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let auth = AuthOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        let not_opened = NotOpened::ALL.iter().map(|reason| reason.as_str()).collect();
        let not_stored = NotStored::ALL.iter().map(|reason| reason.as_str()).collect();
        let made = documentation(&[
            ("`outcome` of `tollgate_auth_total`", auth),
            ("`reason` of `tollgate_cache_not_stored_total`", not_stored),
            ("`reason` of `tollgate_refusals_total`", Refusal::labels().collect()),
            ("`reason` of `tollgate_sessions_not_opened_total`", not_opened),
        ]);
        if Variables::from_process().get("TOLLGATE_BLESS").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == made, "docs/metrics.md differs from the code; it should read:\n{made}");
    }

    fn mistakes(text: &str) -> Vec<String> {
        let loaded = from_str(
            text,
            "t.toml",
            &[("JWT_SECRET", "0123456789abcdef0123456789abcdef")].into_iter().collect(),
        );
        let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
        check(&loaded)
            .err()
            .map_or_else(Vec::new, |errors| errors.problems().iter().map(ToString::to_string).collect())
    }

    const GROUND: &str = "[upstreams.app]\nmembers = \"127.0.0.1:8000\"\n[defaults]\nupstream = \"app\"\n";

    #[test]
    fn routes_that_cannot_be_told_apart_are_placed_at_the_later_one() {
        let text = format!(
            "{GROUND}[[routes]]\nname = \"a\"\npath = \"/x/:id\"\n[[routes]]\nname = \"b\"\npath = \"/x/:name\"\n\
             [[routes]]\nname = \"c\"\npath = \"/{{a,/b\"\n"
        );
        let shown = mistakes(&text);
        assert_eq!(shown.len(), 2, "{shown:#?}");
        assert!(
            shown[0].starts_with("t.toml:10:8: routes[1].path: the routes `a` and `b` both take "),
            "{shown:#?}"
        );
        assert!(shown[1].starts_with("t.toml:13:8: routes[2].path: "), "{shown:#?}");
    }

    #[test]
    fn candidates_count_among_the_counters_of_a_route() {
        let text = |candidates: usize| {
            let list: Vec<String> =
                (1..=candidates).map(|length| format!("{{ limit = 5, window = \"{length}s\" }}")).collect();
            format!(
                "{GROUND}[[routes]]\nname = \"a\"\npath = \"/a\"\nlimits = [\"ip\", \"busy\"]\n\
                 [policies.busy]\nkey = \"ip\"\nconcurrency = 3\n\
                 [policies.ip]\nkey = \"ip\"\nlimit = 5\nwindow = \"1m\"\ncandidate.windows = [{}]\n",
                list.join(", ")
            )
        };
        assert_eq!(mistakes(&text(31)), Vec::<String>::new());
        let shown = mistakes(&text(32));
        assert_eq!(shown.len(), 1, "{shown:#?}");
        assert!(shown[0].contains("up to 33 windows together"), "{shown:#?}");
    }

    #[test]
    fn a_route_with_more_counters_than_one_request_can_touch_is_refused() {
        let route = |windows: usize| {
            let list: Vec<String> =
                (1..=windows).map(|length| format!("{{ limit = 5, window = \"{length}s\" }}")).collect();
            format!(
                "{GROUND}[[routes]]\nname = \"a\"\npath = \"/a\"\nlimits = [\"many\", \"plan\"]\n\
                 [policies.many]\nkey = \"ip\"\nwindows = [{}]\n\
                 [policies.plan]\nkey = \"caller\"\nplan = true\n\
                 [plans.big]\nsecond = 1\nminute = 1\n",
                list.join(", ")
            )
        };
        assert_eq!(mistakes(&route(30)), Vec::<String>::new());
        let shown = mistakes(&route(31));
        assert_eq!(
            shown,
            [
                "t.toml:8:10: routes[0].limits: these policies have up to 33 windows together; accepted: at most 32"
            ]
        );
    }
}
