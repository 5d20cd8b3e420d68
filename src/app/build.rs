//! From the checked configuration to the settings of every floor below: the one place where their names meet.
//! It opens nothing and starts nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::warm;
use crate::api_tokens;
use crate::cache::tag::TagTemplate;
use crate::cache::warm::Target;
use crate::cache::{self, RouteCache};
use crate::client_addr;
use crate::clock::{Clock, SystemClock, millis};
use crate::config::{HostPort, Spec, Template, spec};
use crate::header_names::{X_USER_ID, X_USER_PERMISSIONS, X_USER_PLAN};
use crate::identity::{
    self, Access, Algorithm, Algorithms, Issuer, Key, KeySet, Requirement, Ring, Source, Sources, Verifier,
};
use crate::jwks::{self, Keeper, Keepers};
use crate::limits::check::MAX_CHECKS;
use crate::limits::policy::PolicyError;
use crate::limits::{self, Plan, Plans, Policy, Window};
use crate::metrics::Metrics;
use crate::pipeline::head::HeadLimits;
use crate::pipeline::outcome::Outcomes;
use crate::pipeline::quota;
use crate::pipeline::{Gateway, Shared, Timeouts};
use crate::route::pattern::{HostPattern, Pattern};
use crate::route::table::{self, Ambiguity, Table};
use crate::route::{HealthDetail, Login, Logout, Route, normalise};
use crate::upstream::forward;
use crate::upstream::{self, Upstream};

/// A setting that only shows to be unusable when everything comes together.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Unusable {
    /// Where in the configuration.
    pub path: String,
    /// What is wrong, for the operator.
    pub problem: String,
}

#[allow(clippy::needless_pass_by_value, reason = "errors are made to be consumed")]
pub(super) fn unusable(path: impl Into<String>, problem: impl ToString) -> Unusable {
    Unusable { path: path.into(), problem: problem.to_string() }
}

/// What of a gateway comes from the configuration alone.
struct Parts {
    table: Table<Arc<Route>>,
    client_addr: client_addr::Settings,
    verifier: Verifier,
    forward: forward::Settings,
    plans: Plans,
    policies: Vec<Policy>,
    upstreams: Vec<Arc<Upstream>>,
    warm: Vec<Target>,
}

/// Whether a gateway can be made of `spec`.
///
/// # Errors
/// Every setting that cannot be used.
pub fn check(spec: &Spec, metrics: &Metrics) -> Result<(), Vec<Unusable>> {
    let (keepers, clock) = (Keepers::default(), Arc::new(SystemClock) as Arc<dyn Clock>);
    parts(spec, metrics, &mut |issuer| Ok(ring(keeper(issuer, &keepers, &clock, metrics)?.as_ref())))
        .map(drop)
}

/// The gateway that `spec` describes, over what survives a reload.
///
/// # Errors
/// Every setting that cannot be used.
pub fn gateway(spec: &Spec, shared: Arc<Shared>) -> Result<Gateway, Vec<Unusable>> {
    let mut keepers = Vec::with_capacity(spec.issuers.len());
    let mut ring_of = |issuer: &spec::Issuer| {
        keepers.push(keeper(issuer, &shared.keepers, &shared.clock, &shared.metrics)?);
        Ok(self::ring(keepers.last().and_then(Option::as_ref)))
    };
    let parts = parts(spec, &shared.metrics, &mut ring_of)?;
    let quota_reads = quota::Reads::new().map_err(|error| vec![unusable("limits.quota_path", error)])?;
    Ok(Gateway {
        head_limits: head_limits(spec),
        path_options: path_options(spec),
        table: parts.table,
        client_addr: parts.client_addr,
        sources: sources(spec),
        api_tokens: spec.api_tokens.enabled,
        verifier: parts.verifier,
        keepers: keepers.into(),
        forward: parts.forward,
        plans: parts.plans,
        policy_metrics: parts.policies.iter().map(|policy| shared.metrics.policy(policy.name())).collect(),
        policies: parts.policies.into(),
        unrouted: shared.metrics.route("-"),
        outcomes: Outcomes::new(&shared.metrics),
        longest_revocation: spec.identity.revocation_lifetime,
        refuse_unknown: spec.identity.when_unknown == spec::WhenUnknown::Refuse,
        fields: limits::fields::Settings {
            x_ratelimit: spec.limits.x_ratelimit_headers,
            ietf: spec.limits.ietf_headers,
            reset: match spec.limits.reset {
                spec::ResetFormat::Epoch => limits::fields::ResetFormat::Epoch,
                spec::ResetFormat::Delta => limits::fields::ResetFormat::Delta,
            },
        },
        upstreams: parts.upstreams,
        timeouts: Timeouts {
            keepalive: spec.server.keepalive_timeout,
            body: spec.server.body_timeout,
            write: spec.server.write_timeout,
        },
        quota_path: spec.limits.quota_path.clone(),
        quota_reads,
        warm: parts.warm.into(),
        body_peek: spec.limits.body_peek,
        expose_cache_key: spec.cache.expose_key,
        shared,
    })
}

pub(super) fn head_limits(spec: &Spec) -> HeadLimits {
    HeadLimits {
        target_bytes: usize::try_from(spec.server.max_uri).unwrap_or(usize::MAX),
        header_count: usize::try_from(spec.server.max_headers).unwrap_or(usize::MAX),
        header_bytes: usize::try_from(spec.server.max_header_size).unwrap_or(usize::MAX),
    }
}

pub(super) fn path_options(spec: &Spec) -> normalise::Options {
    normalise::Options {
        allow_encoded_slashes: spec.routes.iter().any(|route| route.allow_encoded_slashes),
        allow_path_parameters: spec.server.allow_path_parameters,
    }
}

fn parts(spec: &Spec, metrics: &Metrics, ring: RingOf<'_>) -> Result<Parts, Vec<Unusable>> {
    let mut problems = Vec::new();
    let upstreams: Vec<Arc<Upstream>> =
        spec.upstreams.iter().map(|upstream| self::upstream(upstream, metrics)).collect();
    let declared = with_candidates(&spec.policies);
    let policies = collect(&mut problems, declared.iter().map(|policy| (policy, self::policy(policy))));
    let mut entries = Vec::new();
    for (index, route) in spec.routes.iter().enumerate() {
        match self::entries(index, route, spec, &declared, &upstreams, metrics) {
            Ok(made) => entries.extend(made),
            Err(problem) => problems.push(problem),
        }
        problems.extend(too_many_counters(index, route, spec));
    }
    let options = table::Options {
        case_insensitive: spec.server.case_insensitive_paths,
        ignore_trailing_slash: spec.server.ignore_trailing_slash,
    };
    let table = Table::build_with(entries, options).map_err(|ambiguities| {
        problems.extend(ambiguities.into_iter().map(|found| unusable(place(&found, spec), found)));
    });
    let client_addr = client_addr(spec).map_err(|problem| problems.push(problem));
    let verifier = verifier(spec, ring).map_err(|problem| problems.push(problem));
    let forward = forward_settings(spec).map_err(|problem| problems.push(problem));
    let plans = plans(spec).map_err(|problem| problems.push(problem));
    let warm = table.as_ref().map(|table| warm::targets(spec, table, &mut problems)).unwrap_or_default();
    match (table, client_addr, verifier, forward, plans) {
        (Ok(table), Ok(client_addr), Ok(verifier), Ok(forward), Ok(plans)) if problems.is_empty() => {
            Ok(Parts { table, client_addr, verifier, forward, plans, policies, upstreams, warm })
        }
        _ => Err(problems),
    }
}

/// The later one of two routes that cannot be told apart.
fn place(ambiguity: &Ambiguity, spec: &Spec) -> String {
    let (Ambiguity::Overlap { second: name, .. } | Ambiguity::TooDeep(name)) = ambiguity;
    spec.routes
        .iter()
        .position(|route| route.name == *name)
        .map_or_else(|| "routes".to_owned(), |index| format!("routes[{index}].path"))
}

/// A route whose policies have more windows than one request can be held against: some would silently not hold.
fn too_many_counters(index: usize, route: &spec::Route, spec: &Spec) -> Option<Unusable> {
    let largest_plan = spec.plans.iter().map(|plan| plan.windows.len()).max().unwrap_or(0);
    let policies = spec.policies.iter().filter(|policy| route.limits.contains(&policy.name));
    let counters: usize = policies
        .map(|policy| {
            let own = match &policy.quota {
                spec::Quota::Windows(windows) => windows.len(),
                spec::Quota::Plan => largest_plan,
                spec::Quota::Concurrency(_) => 0,
            };
            own + policy.candidate.as_ref().map_or(0, Vec::len)
        })
        .sum();
    (counters > MAX_CHECKS).then(|| {
        unusable(
            format!("routes[{index}].limits"),
            format!("these policies have up to {counters} windows together; accepted: at most {MAX_CHECKS}"),
        )
    })
}

/// The declared policies, each followed by its candidate as a shadow policy of its own.
fn with_candidates(policies: &[spec::Policy]) -> Vec<spec::Policy> {
    let candidate = |policy: &spec::Policy| {
        Some(spec::Policy {
            name: spec::Policy::candidate_name(&policy.name).into(),
            quota: spec::Quota::Windows(policy.candidate.clone()?),
            shadow: true,
            candidate: None,
            lease: false,
            ..policy.clone()
        })
    };
    policies.iter().flat_map(|policy| std::iter::once(policy.clone()).chain(candidate(policy))).collect()
}

/// The numbers of the policy called `name` and of its candidate among `declared`.
fn policy_indices(name: &str, spec: &Spec, declared: &[spec::Policy]) -> impl Iterator<Item = u16> + use<> {
    let has_candidate =
        spec.policies.iter().any(|policy| *policy.name == *name && policy.candidate.is_some());
    let own = declared.iter().position(|policy| *policy.name == *name);
    let candidate = own.filter(|_| has_candidate).map(|index| index + 1);
    own.into_iter().chain(candidate).filter_map(|index| u16::try_from(index).ok())
}

fn collect<'a, T>(
    problems: &mut Vec<Unusable>,
    built: impl Iterator<Item = (&'a spec::Policy, Result<T, PolicyError>)>,
) -> Vec<T> {
    built
        .filter_map(|(policy, result)| {
            result
                .map_err(|problem| problems.push(unusable(format!("policies.{}", policy.name), problem)))
                .ok()
        })
        .collect()
}

fn upstream(upstream: &spec::Upstream, metrics: &Metrics) -> Arc<Upstream> {
    let member = |member: &HostPort| upstream::Member { host: member.host.clone(), port: member.port };
    Arc::new(Upstream::new(
        upstream::Settings {
            name: upstream.name.clone(),
            members: upstream.members.iter().map(member).collect(),
            protocol: match upstream.protocol {
                spec::UpstreamProtocol::Http1 => upstream::Protocol::Http1,
                spec::UpstreamProtocol::H2c => upstream::Protocol::H2c,
            },
            connect_timeout: upstream.connect_timeout,
            read_timeout: upstream.read_timeout,
            write_timeout: upstream.write_timeout,
            idle_timeout: upstream.idle_timeout,
            connect_retries: upstream.connect_retries,
            max_h2_streams: usize::try_from(upstream.max_h2_streams).unwrap_or(usize::MAX),
        },
        metrics.upstream(&upstream.name),
    ))
}

fn entries(
    index: usize,
    route: &spec::Route,
    spec: &Spec,
    declared: &[spec::Policy],
    upstreams: &[Arc<Upstream>],
    metrics: &Metrics,
) -> Result<Vec<table::Entry<Arc<Route>>>, Unusable> {
    let at = |field: &str| format!("routes[{index}].{field}");
    let pattern = Pattern::parse(&route.path).map_err(|problem| unusable(at("path"), problem))?;
    let requirement = match route.auth {
        spec::Auth::None => Requirement::None,
        spec::Auth::Optional => Requirement::Optional,
        spec::Auth::Required => Requirement::Required,
    };
    let access = Access::new(requirement, route.permissions.clone())
        .map_err(|problem| unusable(at("permissions"), problem))?;
    let params: Vec<&str> = pattern.params().iter().map(|param| &**param).collect();
    let tags = |templates: &[Template], field: &str| {
        templates
            .iter()
            .map(|template| {
                TagTemplate::parse(&template.text, &params).map_err(|problem| unusable(at(field), problem))
            })
            .collect::<Result<Box<[_]>, _>>()
    };
    let bound = Arc::new(Route {
        name: Arc::from(&*route.name),
        upstream: route
            .upstream
            .as_deref()
            .and_then(|name| upstreams.iter().find(|upstream| *upstream.settings().name == *name).cloned()),
        access,
        session: route.session == spec::SessionUse::Required,
        policies: route.limits.iter().flat_map(|name| policy_indices(name, spec, declared)).collect(),
        cost: route.cost,
        cache: route
            .cache
            .as_ref()
            .map(|cache| {
                let tags = tags(&cache.tags, "cache.tags")?;
                Ok::<_, Unusable>(Arc::new(route_cache(
                    &route.name,
                    cache,
                    tags,
                    written(spec, cache.shared),
                )))
            })
            .transpose()?,
        invalidates: tags(&route.invalidates, "invalidates")?,
        logout: route.logout.map(|logout| match logout {
            spec::Logout::Gateway => Logout::Gateway,
            spec::Logout::Forward => Logout::Forward,
        }),
        logout_everywhere: route.logout_everywhere,
        health: route.health.map(|detail| match detail {
            spec::HealthDetail::Brief => HealthDetail::Brief,
            spec::HealthDetail::Full => HealthDetail::Full,
        }),
        refuse_unknown: match (route.when_unknown, route.logout) {
            (Some(declared), _) => declared == spec::WhenUnknown::Refuse,
            // Whoever wants to log out must be able to while the store is away.
            (None, Some(_)) => false,
            (None, None) => spec.identity.when_unknown == spec::WhenUnknown::Refuse,
        },
        login: route.login.clone().map(|place| Login {
            place,
            peek: spec.sessions.peek,
            not_opened: metrics.not_opened(&route.name),
            absence_told: AtomicU64::new(0),
        }),
        max_body: route.max_body,
        allow_encoded_slashes: route.allow_encoded_slashes,
        metrics: metrics.route(&route.name),
    });
    let entry = |host| table::Entry {
        name: route.name.clone(),
        host,
        pattern: pattern.clone(),
        methods: route.methods.clone(),
        value: Arc::clone(&bound),
    };
    if route.hosts.is_empty() {
        return Ok(vec![entry(None)]);
    }
    route
        .hosts
        .iter()
        .map(|host| {
            let pattern = HostPattern::parse(host).map_err(|problem| unusable(at("hosts"), problem))?;
            Ok(entry(Some(pattern)))
        })
        .collect()
}

/// The headers that tell the upstream of the caller, where the key of an entry does not stand for them already.
fn written(spec: &Spec, shared: bool) -> Box<[HeaderName]> {
    if !shared {
        return Box::default();
    }
    let names = identity_names(spec);
    let claims = names.claims.into_iter().map(|(_, header)| header);
    [names.user_id, names.user_plan, names.user_permissions].into_iter().chain(claims).collect()
}

fn route_cache(
    name: &str,
    cache: &spec::RouteCache,
    tags: Box<[TagTemplate]>,
    written: Box<[HeaderName]>,
) -> RouteCache {
    let window = |duration: std::time::Duration| (!duration.is_zero()).then_some(duration);
    RouteCache {
        ttl: cache.ttl,
        status_ttl: cache.status_ttl.iter().copied().collect(),
        heuristic: cache.heuristic,
        set_cookie: match cache.set_cookie {
            spec::SetCookie::Refuse => cache::SetCookie::Refuse,
            spec::SetCookie::Strip => cache::SetCookie::Strip,
            spec::SetCookie::Keep => cache::SetCookie::Keep,
        },
        override_origin: cache.override_origin,
        shared: cache.shared,
        vary: cache.vary.iter().cloned().collect(),
        written,
        query: match &cache.query {
            spec::QueryKey::All => cache::QueryPolicy::All,
            spec::QueryKey::Ignore => cache::QueryPolicy::Ignore,
            spec::QueryKey::Only(names) => cache::QueryPolicy::Only(names.iter().cloned().collect()),
        },
        tags,
        max_object_bytes: usize::try_from(cache.max_object).unwrap_or(usize::MAX),
        refresh_ahead: window(cache.refresh_ahead),
        stale_while_revalidate: window(cache.stale_while_revalidate),
        stale_if_error: window(cache.stale_if_error),
        ..RouteCache::new(name)
    }
}

fn client_addr(spec: &Spec) -> Result<client_addr::Settings, Unusable> {
    let source = match spec.server.client_address_header {
        spec::ClientAddressHeader::XForwardedFor => client_addr::Source::XForwardedFor,
        spec::ClientAddressHeader::Forwarded => client_addr::Source::Forwarded,
    };
    client_addr::Settings::new(spec.server.trusted_proxies.clone(), spec.server.ipv6_prefix, source)
        .map_err(|problem| unusable("server.ipv6_prefix", problem))
}

fn sources(spec: &Spec) -> Sources {
    let place = |source: &spec::TokenSource| match source {
        spec::TokenSource::Bearer => Source::Bearer,
        spec::TokenSource::Cookie(name) => Source::Cookie(name.clone()),
        spec::TokenSource::Header(name) => Source::Header(name.clone()),
        spec::TokenSource::Query(name) => Source::Query(name.clone()),
    };
    let api_tokens = spec.api_tokens.enabled.then(|| {
        let bearer = spec.identity.token_from.contains(&spec::TokenSource::Bearer);
        let instead = (!bearer).then_some(AUTHORIZATION);
        instead.into_iter().chain(spec.api_tokens.header.clone()).map(Source::ApiToken)
    });
    Sources {
        places: spec.identity.token_from.iter().map(place).chain(api_tokens.into_iter().flatten()).collect(),
        max_bytes: usize::try_from(spec.identity.max_token_size).unwrap_or(usize::MAX),
        refuse_other_schemes: false,
    }
}

/// The published keys of an issuer, where it has such, or why there can be none.
pub(super) type RingOf<'a> = &'a mut dyn FnMut(&spec::Issuer) -> Result<Option<Arc<Ring>>, String>;

/// Who keeps the published keys of an issuer that has such.
pub(super) fn keeper(
    issuer: &spec::Issuer,
    keepers: &Keepers,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Option<Arc<Keeper>>, String> {
    let settings = jwks_settings(issuer);
    settings.map(|settings| keepers.keeper(&settings, published_content(issuer), clock, metrics)).transpose()
}

/// The ring of a keeper, where there is one.
pub(super) fn ring(keeper: Option<&Arc<Keeper>>) -> Option<Arc<Ring>> {
    keeper.map(|keeper| Arc::clone(keeper.ring()))
}

/// The key set that was read along with the configuration.
fn published_content(issuer: &spec::Issuer) -> Option<&[u8]> {
    match &issuer.jwks.as_ref()?.place {
        spec::JwksPlace::File { content, .. } => Some(content),
        spec::JwksPlace::Url { .. } => None,
    }
}

fn jwks_settings(issuer: &spec::Issuer) -> Option<jwks::Settings> {
    let jwks = issuer.jwks.as_ref()?;
    Some(jwks::Settings {
        issuer: issuer.name.clone(),
        algorithms: issuer.algorithms.iter().map(|algorithm| self::algorithm(*algorithm)).collect(),
        place: match &jwks.place {
            spec::JwksPlace::Url { url, roots } => {
                jwks::Place::Url { url: url.clone(), roots: roots.clone() }
            }
            spec::JwksPlace::File { path, .. } => jwks::Place::File(path.clone()),
        },
        refresh: jwks.refresh,
        cooldown: jwks.cooldown,
        timeout: jwks.timeout,
        max_bytes: usize::try_from(jwks.max_size).unwrap_or(usize::MAX),
    })
}

/// The verifier of the configuration's issuers, over these published keys.
///
/// # Errors
/// The first key or issuer that cannot be used.
pub(super) fn verifier(spec: &Spec, ring: RingOf<'_>) -> Result<Verifier, Unusable> {
    let issuers =
        spec.issuers.iter().map(|issuer| self::issuer(issuer, spec, ring)).collect::<Result<Vec<_>, _>>()?;
    let mut settings = identity::Settings::new(issuers).map_err(|problem| unusable("issuers", problem))?;
    settings.max_token_bytes = usize::try_from(spec.identity.max_token_size).unwrap_or(usize::MAX);
    settings.cache_entries = usize::try_from(spec.identity.verified_cache).unwrap_or(usize::MAX);
    settings.key_prefix = spec.redis.key_prefix.clone();
    settings.hash_tags = spec.redis.tagged();
    Ok(Verifier::new(settings))
}

fn issuer(issuer: &spec::Issuer, spec: &Spec, ring: RingOf<'_>) -> Result<Issuer, Unusable> {
    let at = |field: &str| format!("issuers.{}.{field}", issuer.name);
    let weak_allowed = spec.environment == spec::Environment::Development;
    let algorithms: Algorithms =
        issuer.algorithms.iter().map(|algorithm| self::algorithm(*algorithm)).collect();
    let keys = issuer
        .keys
        .iter()
        .map(|key| {
            let made = match &key.material {
                spec::KeyMaterial::Secret(secret) if weak_allowed => {
                    Key::weak_secret(secret.expose().as_bytes())
                }
                spec::KeyMaterial::Secret(secret) => Key::secret(secret.expose().as_bytes()),
                spec::KeyMaterial::PublicPem(pem) => Key::public_pem(&String::from_utf8_lossy(pem)),
            };
            let made = made.map_err(|problem| unusable(at("keys"), problem))?;
            Ok(match &key.kid {
                Some(kid) => made.named(kid.clone()),
                None => made,
            })
        })
        .collect::<Result<Vec<_>, Unusable>>()?;
    let keys = KeySet::new(keys).map_err(|problem| unusable(at("keys"), problem))?;
    let iss = issuer.issuer.iter().cloned().collect();
    let mut made = Issuer::new(issuer.name.clone(), iss, algorithms, keys)
        .map_err(|problem| unusable(at("algorithms"), problem))?;
    if let Some(ring) = ring(issuer).map_err(|problem| unusable(at("jwks"), problem))? {
        made = made.keyed_by(ring);
    }
    made.rules.leeway = issuer.leeway;
    made.rules.require_exp = issuer.require_exp;
    made.rules.required.clone_from(&issuer.required_claims);
    made.rules.max_lifetime = issuer.max_lifetime;
    made.rules.audiences.clone_from(&issuer.audience);
    let names = &issuer.claims;
    made.mapping.subject.clone_from(&names.subject);
    made.mapping.plan = names.plan.clone();
    made.mapping.multiplier = names.multiplier.clone();
    made.mapping.permissions = names.permissions.clone();
    made.mapping.email = names.email.clone();
    made.mapping.forward.clone_from(&spec.identity.claim_headers);
    made.mapping.carriers = carriers(spec);
    Ok(made)
}

fn carriers(spec: &Spec) -> identity::Carriers {
    identity::Carriers {
        user_id: spec.identity.user_id_header.clone(),
        plan: spec.identity.plan_header.clone(),
        permissions: spec.identity.permissions_header.clone(),
    }
}

/// What API tokens are named by.
pub(super) fn api_token_naming(spec: &Spec) -> api_tokens::Naming {
    api_tokens::Naming {
        prefix: spec.redis.key_prefix.clone(),
        hash_tags: spec.redis.tagged(),
        carriers: carriers(spec),
        realms: if spec.issuers.len() > 1 {
            spec.issuers.iter().map(|issuer| issuer.name.clone()).collect()
        } else {
            Box::default()
        },
    }
}

/// The algorithm as the identity floor knows it.
pub const fn algorithm(algorithm: spec::Algorithm) -> Algorithm {
    match algorithm {
        spec::Algorithm::Hs256 => Algorithm::HS256,
        spec::Algorithm::Hs384 => Algorithm::HS384,
        spec::Algorithm::Hs512 => Algorithm::HS512,
        spec::Algorithm::Rs256 => Algorithm::RS256,
        spec::Algorithm::Rs384 => Algorithm::RS384,
        spec::Algorithm::Rs512 => Algorithm::RS512,
        spec::Algorithm::Ps256 => Algorithm::PS256,
        spec::Algorithm::Ps384 => Algorithm::PS384,
        spec::Algorithm::Ps512 => Algorithm::PS512,
        spec::Algorithm::Es256 => Algorithm::ES256,
        spec::Algorithm::Es384 => Algorithm::ES384,
        spec::Algorithm::EdDsa => Algorithm::EdDsa,
    }
}

fn identity_names(spec: &Spec) -> forward::Names {
    let defaults = forward::Names::default();
    let header = |chosen: &Option<HeaderName>, default: HeaderName| chosen.clone().unwrap_or(default);
    forward::Names {
        user_id: header(&spec.identity.user_id_header, defaults.user_id),
        user_plan: header(&spec.identity.plan_header, defaults.user_plan),
        user_permissions: header(&spec.identity.permissions_header, defaults.user_permissions),
        claims: spec.identity.claim_headers.clone(),
        // Also where others are chosen: a backend may still read the usual ones.
        also_strip: [&X_USER_ID, &X_USER_PLAN, &X_USER_PERMISSIONS]
            .into_iter()
            .chain(spec.api_tokens.header.as_ref().filter(|_| spec.api_tokens.enabled))
            .cloned()
            .collect(),
    }
}

fn forward_settings(spec: &Spec) -> Result<forward::Settings, Unusable> {
    forward::Settings::new(identity_names(spec), forward::Chain::default(), false)
        .map(|settings| settings.with_api_tokens(spec.api_tokens.enabled))
        .map_err(|problem| unusable("identity.headers", problem))
}

fn windows(windows: &[spec::Window]) -> Result<Vec<Window>, PolicyError> {
    windows.iter().map(|window| Window::named(&window.name, window.limit, window.window)).collect()
}

fn plans(spec: &Spec) -> Result<Plans, Unusable> {
    let at = |name: &str| format!("plans.{name}");
    let mut anonymous = None;
    let mut named = Vec::new();
    for plan in &spec.plans {
        let windows = windows(&plan.windows).map_err(|problem| unusable(at(&plan.name), problem))?;
        if plan.name == spec.limits.anonymous_plan {
            anonymous = Some(Plan::anonymous(windows).map_err(|problem| unusable(at(&plan.name), problem))?);
        } else {
            named.push(Plan::new(&plan.name, windows).map_err(|problem| unusable(at(&plan.name), problem))?);
        }
    }
    let anonymous = anonymous.ok_or_else(|| unusable("limits.anonymous_plan", "the plan is not declared"))?;
    Ok(Plans::new(anonymous, named, &spec.limits.default_plan)
        .map_err(|problem| unusable("limits.default_plan", problem))?
        .with_multiplier_cap(spec.limits.multiplier_cap))
}

fn policy(policy: &spec::Policy) -> Result<Policy, PolicyError> {
    let algorithm = match (policy.algorithm, policy.cooldown) {
        (spec::LimitAlgorithm::CoolDown, Some(cooldown)) => limits::Algorithm::CoolDown(limits::CoolDown {
            interval_ms: millis(cooldown.interval).max(1),
            quiet_ms: millis(cooldown.quiet),
        }),
        // A cool-down always says what it does; the configuration is refused otherwise.
        (spec::LimitAlgorithm::FixedWindow | spec::LimitAlgorithm::CoolDown, _) => {
            limits::Algorithm::FixedWindow
        }
        (spec::LimitAlgorithm::SlidingWindow, _) => limits::Algorithm::SlidingWindow,
        (spec::LimitAlgorithm::TokenBucket, _) => limits::Algorithm::TokenBucket,
        (spec::LimitAlgorithm::SlidingLog, _) => limits::Algorithm::SlidingLog,
    };
    let applies_to = match policy.applies_to {
        spec::AppliesTo::All => limits::AppliesTo::All,
        spec::AppliesTo::Anonymous => limits::AppliesTo::Anonymous,
        spec::AppliesTo::Identified => limits::AppliesTo::Identified,
    };
    let quota = match &policy.quota {
        spec::Quota::Windows(list) => limits::LimitSource::Windows(windows(list)?),
        spec::Quota::Plan => limits::LimitSource::Plan,
        spec::Quota::Concurrency(most) => limits::LimitSource::Concurrency(*most),
    };
    let on_store_failure = match policy.on_store_failure {
        spec::OnStoreFailure::Local => limits::OnStoreFailure::Local,
        spec::OnStoreFailure::Allow => limits::OnStoreFailure::Allow,
        spec::OnStoreFailure::Deny => limits::OnStoreFailure::Deny,
    };
    let built = Policy::new(&policy.name, &policy.key, algorithm, quota)?
        .with_cost(policy.cost)?
        .with_on_store_failure(on_store_failure)
        .with_penalise(policy.penalise)
        .with_shadow(policy.shadow)
        .with_lease(policy.lease)
        .with_applies_to(applies_to);
    Ok(match &policy.failures {
        Some(statuses) => built.with_failures(statuses),
        None => built,
    })
}
