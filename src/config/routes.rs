//! Reads `[upstreams.*]`, `[defaults]` and `[[routes]]`, and holds routes against everything they name. Whether
//! two routes collide is for the route table to say.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};

use super::error::did_you_mean;
use super::identity::texts;
use super::limits::dangling;
use super::reader::Reader;
use super::spec::{
    AppliesTo, Auth, Cache, HealthDetail, KeyPart, Limits, Logout, Plan, Policy, QueryKey, Quota, Route,
    RouteCache, Server, SessionUse, SetCookie, Upstream, Window,
};
use super::template::{Template, TemplatePart};
use super::value::{HostPort, Leaf, Raw, Refused, Size, is_host_name, is_name};
use crate::cache::policy::may_have_ttl;
use crate::cache::request::is_safe;
use crate::limits::plan::effective_limit;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn upstreams(root: &Reader<'_>) -> Vec<Upstream> {
    root.named("upstreams", "<name>").into_iter().map(|(name, reader)| upstream(name, &reader)).collect()
}

fn upstream(name: Box<str>, reader: &Reader<'_>) -> Upstream {
    let members: Vec<HostPort> = reader.required_list("members");
    if members.iter().collect::<std::collections::HashSet<_>>().len() < members.len() {
        reader.refuse("members", "names a member twice; accepted: each member once");
    }
    Upstream {
        name,
        members,
        protocol: reader.get("protocol"),
        balance: reader.get("balance"),
        connect_timeout: reader.duration("connect_timeout", MILLISECOND..=MINUTE),
        read_timeout: reader.duration("read_timeout", MILLISECOND..=HOUR),
        write_timeout: reader.duration("write_timeout", MILLISECOND..=HOUR),
        idle_timeout: reader.duration("idle_timeout", SECOND..=HOUR),
        connect_retries: reader.within("connect_retries", 0..=10),
        max_h2_streams: reader.within("max_h2_streams", 1..=1_000),
    }
}

/// What routes are held against.
pub(super) struct Known<'a> {
    pub(super) server: &'a Server,
    pub(super) cache: &'a Cache,
    pub(super) policies: &'a [Policy],
    pub(super) plans: &'a [Plan],
    pub(super) limits: &'a Limits,
    /// Names as declared, even of tables that are otherwise wrong.
    pub(super) upstreams: Vec<&'a str>,
    pub(super) has_issuers: bool,
    /// Whether other gateways may share what is kept.
    pub(super) has_store: bool,
}

impl<'a> Known<'a> {
    fn policy(&self, name: &str) -> Option<&'a Policy> {
        self.policies.iter().find(|policy| &*policy.name == name)
    }
}

struct Defaults {
    auth: Auth,
    limits: Vec<Box<str>>,
    upstream: Option<Box<str>>,
}

pub(super) fn routes(root: &Reader<'_>, known: &Known<'_>) -> Vec<Route> {
    let reader = root.section("defaults");
    let defaults = Defaults {
        auth: reader.get("auth"),
        limits: limits(&reader, known),
        upstream: known_upstream(&reader, known),
    };
    let tables = root.tables("routes");
    if tables.is_empty() && !root.reported("routes") {
        root.refuse("routes", "is missing; accepted: at least one [[routes]] table");
    }
    let mut names = BTreeSet::new();
    let mut routes = Vec::new();
    for reader in &tables {
        let route = route(reader, known, &defaults);
        if !route.name.is_empty() && !names.insert(route.name.clone()) {
            reader.refuse(
                "name",
                format!("{:?} is already the name of another route; accepted: one each", route.name),
            );
        }
        routes.push(route);
    }
    unused(root, known, &routes);
    for (reader, route) in tables.iter().zip(&routes) {
        without_effect(reader, route, &routes);
    }
    let needs_session = |(_, route): &(_, &Route)| route.session == SessionUse::Required;
    if !routes.iter().any(|route| route.login.is_some())
        && let Some((reader, _)) = tables.iter().zip(&routes).find(needs_session)
    {
        if known.has_store {
            reader.warn(
                "session",
                "no route here has a [routes.login]: every request is refused, unless another gateway on the same \
                 Redis opens sessions",
            );
        } else {
            reader.refuse(
                "session",
                "is one that no route opens; accepted: a route with [routes.login] beside it",
            );
        }
    }
    routes
}

fn unused(root: &Reader<'_>, known: &Known<'_>, routes: &[Route]) {
    let upstreams = root.section("upstreams");
    for name in &known.upstreams {
        if !routes.iter().any(|route| route.upstream.as_deref() == Some(name)) {
            upstreams.warn(name, "no route uses it");
        }
    }
    let policies = root.section("policies");
    for policy in known.policies {
        if !routes.iter().any(|route| route.limits.contains(&policy.name)) {
            policies.warn(&policy.name, "no route uses it");
        }
    }
}

/// What is declared about the cache and changes nothing.
fn without_effect(reader: &Reader<'_>, route: &Route, routes: &[Route]) {
    let reads = |method: &Method| matches!(*method, Method::GET | Method::HEAD);
    if route.cache.is_some() && !route.methods.is_empty() && !route.methods.iter().any(reads) {
        reader.warn("cache", "has no effect: this route takes neither GET nor HEAD");
    }
    if route.invalidates.is_empty() {
        return;
    }
    if !route.methods.is_empty() && route.methods.iter().all(is_safe) {
        reader.warn("invalidates", "has no effect: the methods of this route are safe, and change nothing");
    }
    for template in &route.invalidates {
        let is_built_in = |route: &Route| {
            let by_route = [TemplatePart::Literal(format!("route:{}", route.name).into())];
            let by_user = [TemplatePart::Literal("user:".into()), TemplatePart::User];
            route.cache.is_some() && (template.meets(&by_route) || template.meets(&by_user))
        };
        let is_declared = |route: &Route| {
            let tags = route.cache.iter().flat_map(|cache| &cache.tags);
            tags.into_iter().any(|tag| template.meets(&tag.parts))
        };
        if !routes.iter().any(|route| is_declared(route) || is_built_in(route)) {
            let message = format!("{:?} drops nothing: no route stores under such a tag", template.text);
            reader.warn("invalidates", message);
        }
    }
}

fn route(reader: &Reader<'_>, known: &Known<'_>, defaults: &Defaults) -> Route {
    let name = reader.required::<String>("name").unwrap_or_default();
    if !reader.reported("name") && !is_name(&name) {
        reader.refuse("name", "is not accepted; accepted: 1 to 64 letters, digits, \"-\", \"_\" and \".\"");
    }
    let path = reader.required::<String>("path").unwrap_or_default();
    let params = params(reader, &path);
    let health: Option<HealthDetail> = reader.opt("health");
    let auth = reader.opt("auth").unwrap_or(if health.is_some() { Auth::None } else { defaults.auth });
    // A word that was not understood must not make the rest of the route look wrong.
    let auth = if reader.reported("auth") { Auth::Required } else { auth };
    let logout: Option<Logout> = reader.opt("logout");
    let permissions = texts(reader, "permissions");
    let limits = match health {
        _ if reader.has("limits") => limits(reader, known),
        Some(_) => Vec::new(),
        None => defaults.limits.clone(),
    };
    let upstream = known_upstream(reader, known);
    let mut methods = methods(reader);
    if health.is_some() && methods.is_empty() {
        methods = vec![Method::GET, Method::HEAD];
    }
    let gateway_answers = logout == Some(Logout::Gateway) || health.is_some();
    let route = Route {
        name: name.into(),
        hosts: hosts(reader),
        methods,
        path: path.as_str().into(),
        upstream: upstream.or_else(|| defaults.upstream.clone()).filter(|_| !gateway_answers),
        auth,
        session: reader.get("session"),
        permissions,
        limits,
        cost: reader.within("cost", 1..=1_000_000),
        logout,
        logout_everywhere: reader.get("logout_everywhere"),
        health,
        when_unknown: reader.opt("when_unknown"),
        login: reader.opt_section("login").and_then(|login| login.required("token")),
        max_body: reader.opt::<Size>("max_body").map_or(known.server.max_body, |Size(bytes)| bytes),
        allow_encoded_slashes: reader
            .opt("allow_encoded_slashes")
            .unwrap_or(known.server.allow_encoded_slashes),
        cache: reader.opt_section("cache").map(|cache| route_cache(&cache, known, auth, &params)),
        invalidates: tags(reader, "invalidates", auth, &params),
    };
    check(reader, known, &route);
    route
}

fn check(reader: &Reader<'_>, known: &Known<'_>, route: &Route) {
    let needs_upstream = route.logout != Some(Logout::Gateway) && route.health.is_none();
    if needs_upstream && route.upstream.is_none() && !reader.reported("upstream") {
        let accepted = if known.upstreams.is_empty() {
            "a declared upstream; none is".to_owned()
        } else {
            known.upstreams.join(", ")
        };
        reader.refuse("upstream", format!("is missing, here and in [defaults]; accepted: {accepted}"));
    }
    if !known.has_issuers && route.auth != Auth::None && !reader.reported("auth") {
        reader.refuse(
            "auth",
            format!(
                "{:?} needs somebody who issues tokens; accepted: an [issuers.<name>] table, JWT_SECRET in the \
                 environment, or api_tokens.enabled = true",
                route.auth.as_str()
            ),
        );
    }
    if route.auth == Auth::None && !reader.reported("auth") {
        if !route.permissions.is_empty() {
            reader.refuse(
                "permissions",
                "need a caller; accepted: auth = \"required\" or \"optional\" beside them",
            );
        }
        for (index, name) in route.limits.iter().enumerate() {
            if known.policy(name).is_some_and(|policy| policy.applies_to == AppliesTo::Identified) {
                let message = format!(
                    "{name:?} is for identified callers and this route looks at no token; accepted: auth = \
                     \"required\" or \"optional\", or a policy that applies to all"
                );
                reader.refuse_item("limits", index, message);
            } else if let Some(part) = caller_part(known, name) {
                let message = format!(
                    "{name:?} counts by {part} and this route looks at no token; accepted: auth = \"required\" or \
                     \"optional\", or a policy by ip or caller"
                );
                reader.refuse_item("limits", index, message);
            }
        }
    }
    for (index, name) in route.limits.iter().enumerate() {
        if let Some(policy) = known.policy(name) {
            if route.auth == Auth::Required
                && policy.applies_to == AppliesTo::Anonymous
                && !reader.reported("auth")
            {
                let message = format!(
                    "{name:?} is for anonymous callers and this route admits none; accepted: auth = \"none\" or \
                     \"optional\", or a policy that applies to all"
                );
                reader.refuse_item("limits", index, message);
            }
            affordable(reader, known, route, index, policy);
        }
    }
    if route.session == SessionUse::Required && route.auth != Auth::Required && !reader.reported("auth") {
        reader.refuse("session", "needs a caller; accepted: auth = \"required\" beside it");
    }
    if route.logout.is_some() && route.auth != Auth::Required && !reader.reported("auth") {
        reader.refuse("logout", "needs a caller; accepted: auth = \"required\" beside it");
    }
    if route.logout_everywhere && route.logout.is_none() && !reader.reported("logout") {
        let message = "is for a logout; accepted: logout = \"gateway\" or \"forward\" beside it";
        reader.refuse("logout_everywhere", message);
    }
    if route.when_unknown.is_some() && route.auth == Auth::None && !reader.reported("auth") {
        let message = "needs a caller; accepted: auth = \"required\" or \"optional\" beside it";
        reader.refuse("when_unknown", message);
    }
    if route.logout == Some(Logout::Gateway) && reader.has("upstream") {
        reader.warn("upstream", "is not used: the gateway answers this route");
    }
    if route.cache.is_some() && route.logout.is_some() {
        reader.refuse("cache", "would store a logout; accepted: no cache on this route");
    }
    if reader.has("login") && !reader.reported("login") {
        check_login(reader, known, route);
    }
    if route.health.is_some() {
        check_health(reader, route);
    }
}

/// The gateway answers by itself: whatever is about an upstream or a login has no meaning here.
fn check_health(reader: &Reader<'_>, route: &Route) {
    for key in ["upstream", "cache", "login", "logout", "invalidates"] {
        if reader.has(key) && !reader.reported(key) {
            let message =
                "is beside health, which the gateway answers by itself; accepted: one of the two on a route";
            reader.refuse(key, message);
        }
    }
    if route.session == SessionUse::Required && !reader.reported("session") {
        reader.refuse(
            "session",
            "is beside health, which asks for no login; accepted: one of the two on a route",
        );
    }
    if route.methods.iter().any(|method| !matches!(*method, Method::GET | Method::HEAD)) {
        reader.refuse("methods", "has more than health answers to; accepted: \"GET\" and \"HEAD\"");
    }
}

fn check_login(reader: &Reader<'_>, known: &Known<'_>, route: &Route) {
    if !known.has_issuers {
        reader.refuse(
            "login",
            "needs somebody who issues tokens; accepted: an [issuers.<name>] table, or JWT_SECRET in the environment",
        );
    }
    if route.logout.is_some() {
        reader.refuse("login", "is on a logout; accepted: one of the two on a route");
    }
    if route.cache.is_some() {
        reader.refuse("cache", "would repeat a login; accepted: no cache on this route");
    }
}

/// Whether a request here can ever be admitted: one that costs more than a window holds cannot.
fn affordable(reader: &Reader<'_>, known: &Known<'_>, route: &Route, index: usize, policy: &Policy) {
    let cost = u64::from(policy.cost) * u64::from(route.cost);
    let least = |windows: &[Window]| windows.iter().map(|window| window.limit).min().unwrap_or(u64::MAX);
    let name = &policy.name;
    if policy.candidate.as_deref().is_some_and(|windows| least(windows) < cost) {
        reader.warn(
            "cost",
            format!("a request costs {cost}, more than a window of the candidate of {name:?} holds: it would refuse all"),
        );
    }
    let (most, of) = match &policy.quota {
        Quota::Windows(windows) => (least(windows), format!("{name:?}")),
        Quota::Plan => {
            // Multipliers apply to all plans but the anonymous one.
            let best = |plan: &Plan| {
                let raised = *plan.name != *known.limits.anonymous_plan;
                let factor = if raised { known.limits.multiplier_cap } else { 1.0 };
                effective_limit(least(&plan.windows), factor)
            };
            let most = known.plans.iter().map(best).max().unwrap_or(u64::MAX);
            let poor = known.plans.iter().filter(|plan| least(&plan.windows) < cost);
            let poor: Vec<&str> = poor.map(|plan| &*plan.name).collect();
            if cost <= most && !poor.is_empty() {
                let poor = poor.join(", ");
                reader.warn("cost", format!("a request costs {cost}, more than a window of {poor} holds"));
            }
            (most, "every plan".to_owned())
        }
        Quota::Concurrency(_) => return,
    };
    if cost <= most {
        return;
    }
    let message =
        format!("a request costs {cost}, more than a window of {of} holds, and would never be admitted");
    if policy.shadow {
        reader.warn("cost", message);
    } else if reader.has("cost") {
        reader.refuse("cost", format!("{message}; accepted: a cost that fits"));
    } else {
        reader.refuse_item("limits", index, format!("{message}; accepted: a cost that fits"));
    }
}

/// The part of a policy's key that only an identified caller has.
fn caller_part(known: &Known<'_>, policy: &str) -> Option<KeyPart> {
    let policy = known.policy(policy)?;
    policy.key.iter().find(|part| part.needs_caller()).cloned()
}

fn known_upstream(reader: &Reader<'_>, known: &Known<'_>) -> Option<Box<str>> {
    let name: String = reader.opt("upstream")?;
    if !known.upstreams.contains(&name.as_str()) {
        reader.refuse("upstream", dangling("upstream", &name, known.upstreams.iter().copied()));
    }
    Some(name.into())
}

fn limits(reader: &Reader<'_>, known: &Known<'_>) -> Vec<Box<str>> {
    let names = texts(reader, "limits");
    for (index, name) in names.iter().enumerate() {
        let declared = known.policies.iter().map(|policy| &*policy.name);
        if !declared.clone().any(|policy| policy == &**name) {
            reader.refuse_item("limits", index, dangling("policy", name, declared));
        } else if names.iter().take(index).any(|earlier| earlier == name) {
            reader.refuse_item(
                "limits",
                index,
                format!("{name:?} is named twice; accepted: each policy once"),
            );
        }
    }
    names
}

fn hosts(reader: &Reader<'_>) -> Vec<Box<str>> {
    let mut hosts = texts(reader, "hosts");
    let listed = hosts.len();
    hosts.extend(reader.opt::<String>("host").map(Into::into));
    for (index, host) in hosts.iter_mut().enumerate() {
        *host = host.to_ascii_lowercase().into();
        let name = host.strip_prefix("*.").unwrap_or(host);
        let literal = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        if !is_host_name(name) && literal.and_then(|inner| inner.parse::<std::net::Ipv6Addr>().ok()).is_none()
        {
            const MESSAGE: &str = "is not accepted; accepted: a host without port such as \"api.example.com\", \"*.example.com\"";
            if index < listed {
                reader.refuse_item("hosts", index, MESSAGE);
            } else {
                reader.refuse("host", MESSAGE);
            }
        }
    }
    hosts
}

fn methods(reader: &Reader<'_>) -> Vec<Method> {
    let methods: Vec<Method> = reader.list("methods");
    if methods
        .iter()
        .enumerate()
        .any(|(index, method)| methods.iter().take(index).any(|earlier| earlier == method))
    {
        reader.refuse("methods", "names a method twice; accepted: each method once");
    }
    methods
}

/// The names of the `:name` segments of `path`; the rest of its grammar is for the route table.
fn params<'p>(reader: &Reader<'_>, path: &'p str) -> Vec<&'p str> {
    if !path.starts_with('/') && !reader.reported("path") {
        reader.refuse(
            "path",
            format!("{path:?} is not accepted; accepted: a pattern that starts with a slash"),
        );
        return Vec::new();
    }
    let mut params: Vec<&str> = Vec::new();
    for name in path.split('/').filter_map(|segment| segment.strip_prefix(':')) {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            reader.refuse(
                "path",
                format!("\":{name}\" is not accepted; accepted: \":\" and letters, digits, \"_\""),
            );
        } else if name == "user" {
            reader
                .refuse("path", "\":user\" would be taken for the caller in tags; accepted: any other name");
        } else if params.contains(&name) {
            reader.refuse("path", format!("\":{name}\" stands twice; accepted: each name once"));
        } else {
            params.push(name);
        }
    }
    params
}

fn tags(reader: &Reader<'_>, key: &str, auth: Auth, params: &[&str]) -> Vec<Template> {
    let mut templates = Vec::new();
    for (index, text) in reader.list::<String>(key).iter().enumerate() {
        match Template::parse(text, params) {
            Ok(template) if template.has_user() && auth == Auth::None => reader.refuse_item(
                key,
                index,
                "{user} needs a caller; accepted: auth = \"required\" or \"optional\" on this route",
            ),
            Ok(template) => templates.push(template),
            Err(message) => reader.refuse_item(key, index, message),
        }
    }
    templates
}

fn route_cache(reader: &Reader<'_>, known: &Known<'_>, auth: Auth, params: &[&str]) -> RouteCache {
    let ttl = reader.opt::<Duration>("ttl");
    let most = known.cache.max_lifetime;
    if ttl.is_some_and(|ttl| ttl < SECOND || ttl > most) {
        reader
            .refuse("ttl", format!("is out of range; accepted: 1s to {}", humantime::format_duration(most)));
    }
    let shared: bool = reader.get("shared");
    if shared && auth == Auth::Optional {
        reader.warn("shared", "anonymous and identified callers get the same response");
    }
    let override_origin: bool = reader.get("override_origin");
    if override_origin && ttl.is_none() && !reader.reported("ttl") {
        reader.refuse(
            "override_origin",
            "has nothing to replace the upstream's answer with; accepted: a ttl beside it",
        );
    }
    let max_object = reader.opt::<Size>("max_object").map(|Size(bytes)| bytes);
    if max_object.is_some_and(|bytes| bytes > known.cache.max_object) {
        reader.refuse("max_object", "is larger than cache.max_object; accepted: up to that");
    }
    let set_cookie: SetCookie = reader.get("set_cookie");
    if set_cookie == SetCookie::Keep && (shared || auth != Auth::Required) {
        reader.refuse(
            "set_cookie",
            "\"keep\" would hand one caller's cookie to another; accepted: \"refuse\", \"strip\", or auth = \"required\" \
             and shared = false beside it",
        );
    } else if set_cookie == SetCookie::Keep && ttl.is_none() && !reader.reported("ttl") {
        reader.warn("set_cookie", "\"keep\" has no effect: without a ttl the rules of a shared cache apply");
    }
    let vary: Vec<HeaderName> = reader.list("vary");
    if let Some(index) = vary.iter().position(|name| name.as_str() == "*") {
        reader.refuse_item("vary", index, "\"*\" is not accepted; accepted: names of request headers");
    }
    if shared && auth != Auth::None && vary.contains(&http::header::AUTHORIZATION) {
        reader.warn("vary", "a shared response that varies by Authorization is shared by nobody");
    }
    let warm = reader.opt_section("warm").and_then(|warm| super::warm::warm(&warm, shared, &vary));
    RouteCache {
        ttl,
        status_ttl: status_ttl(reader, most, shared && auth != Auth::None),
        heuristic: reader.opt::<Percent>("heuristic").map(|Percent(percent)| percent),
        set_cookie,
        shared,
        override_origin,
        refresh_ahead: refresh_ahead(reader, ttl),
        warm,
        vary,
        query: query(reader),
        tags: tags(reader, "tags", auth, params),
        max_object: max_object.unwrap_or(known.cache.max_object),
        stale_while_revalidate: stale(reader, "stale_while_revalidate", HOUR * 24, ttl, most),
        stale_if_error: stale(reader, "stale_if_error", HOUR * 24 * 7, ttl, most),
    }
}

/// How long a response may be stale: nothing is used for longer than `most`, fresh and stale together.
fn stale(
    reader: &Reader<'_>,
    key: &str,
    longest: Duration,
    ttl: Option<Duration>,
    most: Duration,
) -> Duration {
    let window = reader.duration(key, Duration::ZERO..=longest);
    let left = most.saturating_sub(ttl.unwrap_or_default());
    if window > left && !reader.reported("ttl") && !reader.reported(key) {
        let beside = if ttl.is_some() { " beside the ttl" } else { "" };
        let message = format!(
            "is more than cache.max_lifetime leaves{beside}: it is the longest time that a response is used, fresh and \
             stale together; accepted: up to {}",
            humantime::format_duration(left)
        );
        reader.refuse(key, message);
    }
    window
}

/// A whole number of hundredths.
struct Percent(u32);

impl Leaf for Percent {
    fn accepted() -> Cow<'static, str> {
        "a whole number from 1 to 100".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        let percent = raw.text.trim().parse().ok().filter(|percent| (1..=100).contains(percent));
        percent.map(Self).ok_or_else(Refused::default)
    }
}

fn refresh_ahead(reader: &Reader<'_>, ttl: Option<Duration>) -> Duration {
    let ahead = reader.duration("refresh_ahead", Duration::ZERO..=HOUR * 24);
    if let Some(ttl) = ttl.filter(|ttl| ahead > *ttl / 2)
        && !reader.reported("ttl")
        && !reader.reported("refresh_ahead")
    {
        let most = humantime::format_duration(ttl / 2);
        reader.refuse("refresh_ahead", format!("is more than half of ttl; accepted: up to {most}"));
    }
    ahead
}

/// `denies_some`: callers of this route share what one of them may have been denied.
fn status_ttl(reader: &Reader<'_>, most: Duration, denies_some: bool) -> Vec<(StatusCode, Duration)> {
    let mut declared = Vec::new();
    for (status, ttl) in reader.map::<Duration>("status_ttl", "<status>") {
        let code = status.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok());
        match code.filter(|code| status.len() == 3 && may_have_ttl(*code)) {
            None => reader.refuse_below(
                "status_ttl",
                &status,
                "is no status whose answer is good for the next request; accepted: 200, 203, 204, 300 to 303, 307, 308, \
                 403, 404, 405, 410, 414, 451, 500 to 510",
            ),
            Some(StatusCode::FORBIDDEN) if denies_some => reader.refuse_below(
                "status_ttl",
                &status,
                "would deny to all callers what is denied to one; accepted: shared = false beside it",
            ),
            Some(_) if ttl < SECOND || ttl > most => reader.refuse_below(
                "status_ttl",
                &status,
                format!("is out of range; accepted: 1s to {}", humantime::format_duration(most)),
            ),
            Some(code) => declared.push((code, ttl)),
        }
    }
    declared
}

fn query(reader: &Reader<'_>) -> QueryKey {
    const ACCEPTED: &str = "\"all\", \"ignore\", or a list of names such as [\"page\"]";
    let names = texts(reader, "query");
    let is_word = matches!(names.as_slice(), [word] if matches!(&**word, "all" | "ignore"));
    // Taken for a name, a misspelt word would make all queries one.
    if reader.is_text("query") && !is_word {
        if !reader.reported("query") {
            let words = names.iter().map(|name| &**name).collect::<Vec<_>>().join(",");
            let hint = did_you_mean(&words.to_ascii_lowercase(), ["all", "ignore"]);
            reader.refuse("query", format!("{words:?} is not accepted; accepted: {ACCEPTED}{hint}"));
        }
        return QueryKey::All;
    }
    for (index, name) in names.iter().enumerate() {
        let is_sound = !name.is_empty()
            && !name.contains(|c: char| {
                matches!(c, '=' | '&' | '#' | '?') || c.is_whitespace() || c.is_control()
            });
        if !is_sound {
            reader.refuse_item(
                "query",
                index,
                format!(
                    "{name:?} is not accepted; accepted: the name of a parameter as it is when decoded, without blanks, \
                     \"=\", \"&\", \"?\" and \"#\""
                ),
            );
        }
    }
    match names.iter().map(|name| &**name).collect::<Vec<_>>().as_slice() {
        ["all"] => QueryKey::All,
        ["ignore"] => QueryKey::Ignore,
        words if words.contains(&"all") || words.contains(&"ignore") => {
            reader.refuse("query", format!("mixes a word with names; accepted: {ACCEPTED}"));
            QueryKey::All
        }
        _ => QueryKey::Only(names),
    }
}
