//! Random requests of random callers to an origin that says what it depends on: whatever comes out of the cache is what
//! the origin would have answered to the very request, and was allowed to be kept and given.
//!
//! The rules are written here once more, from RFC 9111 and the configuration; the gateway's code is not asked.

#![allow(clippy::struct_excessive_bools, reason = "facts that are independent of each other")]
#![allow(clippy::unused_self, reason = "rules of one model")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::cache::{warm, x_cache};
use crate::support::client::{Client, Response};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Received, Reply};
use crate::support::redis::Redis;
use crate::support::token::Token;
use crate::support::wait_for;

/// Batches of one run; a batch is up to four requests at the same time.
const BATCHES: usize = 600;
/// Resources of each route.
const RESOURCES: u8 = 2;

/// What callers are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Auth {
    None,
    Optional,
    Required,
}

/// Which parameters name the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Query {
    All,
    Page,
    Ignored,
}

/// A route as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Route {
    name: &'static str,
    auth: Auth,
    shared: bool,
    ttl: bool,
    overrides: bool,
    vary_language: bool,
    query: Query,
}

const PLAIN: Route = Route {
    name: "plain",
    auth: Auth::None,
    shared: false,
    ttl: false,
    overrides: false,
    vary_language: false,
    query: Query::All,
};

const ROUTES: [Route; 11] = [
    PLAIN,
    Route { name: "open", shared: true, ..PLAIN },
    Route { name: "declared", ttl: true, ..PLAIN },
    Route { name: "mine", auth: Auth::Required, ttl: true, ..PLAIN },
    Route { name: "own", auth: Auth::Required, ..PLAIN },
    Route { name: "maybe", auth: Auth::Optional, ttl: true, ..PLAIN },
    Route { name: "team", auth: Auth::Required, shared: true, ttl: true, ..PLAIN },
    Route { name: "all", auth: Auth::Required, shared: true, ttl: true, overrides: true, ..PLAIN },
    Route { name: "lang", shared: true, ttl: true, vary_language: true, ..PLAIN },
    Route { name: "paged", shared: true, ttl: true, query: Query::Page, ..PLAIN },
    Route { name: "bare", shared: true, ttl: true, query: Query::Ignored, ..PLAIN },
];

fn configuration(origin: &Origin, trusted: bool) -> String {
    let mut text = format!(
        "[identity]\ntoken_from = [\"bearer\", \"cookie:session\"]\n[redis]\nurl = \"${{REDIS_URL}}\"\ndeadline = \"1s\"\n\
         [log]\naccess = false\n\
         [upstreams.app]\nmembers = \"{}\"\n[defaults]\nupstream = \"app\"\n\
         [[routes]]\nname = \"warm\"\npath = \"/open/warm\"\n[routes.cache]\nshared = true\n",
        origin.addr()
    );
    if trusted {
        text += "[server]\nlisten = \"{listen}\"\ntrusted_proxies = [\"127.0.0.0/8\"]\n";
    }
    for route in ROUTES {
        let auth = format!("{:?}", route.auth).to_lowercase();
        let Route { name, shared, .. } = route;
        let _ = write!(
            text,
            "[[routes]]\nname = \"{name}\"\npath = \"/{name}/**\"\nauth = \"{auth}\"\n[routes.cache]\nshared = {shared}\n"
        );
        text += if route.ttl { "ttl = \"1m\"\n" } else { "" };
        text += if route.overrides { "override_origin = true\n" } else { "" };
        text += if route.vary_language { "vary = [\"accept-language\"]\n" } else { "" };
        text += match route.query {
            Query::All => "",
            Query::Page => "query = [\"page\"]\n",
            Query::Ignored => "query = \"ignore\"\n",
        };
    }
    text
}

/// Headers that an answer may depend on, as a right `Vary` says them.
const VARIED: [&str; 4] = ["accept-language", "accept-encoding", "x-flavour", "cookie"];

/// What the origin says of keeping its answers.
const CONTROLS: [&str; 16] = [
    "",
    "max-age=60",
    "max-age=60",
    "public, max-age=60",
    "s-maxage=60",
    "max-age=60, must-revalidate",
    "public",
    "private, max-age=60",
    "no-store",
    "max-age=60, no-store",
    "no-cache",
    "public, no-cache",
    "max-age=0",
    "public, max-age=0",
    "s-maxage=0, max-age=60",
    "Public, Max-Age=60",
];

/// How the origin answers for one version of a resource. It is a right one: what is not in the key of its route, it
/// varies by or forbids to share.
#[derive(Clone, Debug)]
struct Nature {
    status: u16,
    control: &'static str,
    varied: Vec<&'static str>,
    by_user: bool,
    by_cookie_silently: bool,
    by_query: bool,
    sets_cookie: bool,
    varies_by_all: bool,
    validator: bool,
}

impl Nature {
    fn of(seed: u64, route: Route, resource: u8, version: u64) -> Self {
        let index = ROUTES.iter().position(|known| *known == route).unwrap_or_default() as u64;
        let mut rng = Rng::with_seed(
            seed ^ (index << 40) ^ (u64::from(resource) << 32) ^ version.wrapping_mul(0x9e37_79b9),
        );
        let control = *rng.choice(&CONTROLS).unwrap();
        let said = Said::of(control);
        // What everybody may have depends on nobody; so says the operator of a route that overrides.
        let personal = !route.shared || (!route.overrides && !said.allows_sharing());
        let varied = VARIED.into_iter().filter(|_| rng.u8(..4) == 0).collect();
        Self {
            status: *rng.choice(&[200, 200, 200, 200, 200, 200, 404, 410, 503]).unwrap(),
            control,
            varied,
            by_user: personal && rng.bool(),
            // Known by a cookie that the gateway does not look at, and not a word of it.
            by_cookie_silently: route.name == "declared" && rng.bool(),
            by_query: route.query != Query::Ignored && rng.u8(..4) > 0,
            sets_cookie: rng.u8(..12) == 0,
            varies_by_all: rng.u8(..16) == 0,
            validator: rng.bool(),
        }
    }
}

/// `Cache-Control`, read plainly.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    public: bool,
    private: bool,
    no_store: bool,
    no_cache: bool,
    must_revalidate: bool,
    max_age: Option<u64>,
    s_maxage: Option<u64>,
}

impl Said {
    fn of(text: &str) -> Self {
        let mut said = Self::default();
        for word in text.to_lowercase().split(',').map(str::trim) {
            match word.split_once('=').unwrap_or((word, "")) {
                ("public", _) => said.public = true,
                ("private", _) => said.private = true,
                ("no-store", _) => said.no_store = true,
                ("no-cache", _) => said.no_cache = true,
                ("must-revalidate", _) => said.must_revalidate = true,
                ("max-age", value) => said.max_age = value.parse().ok(),
                ("s-maxage", value) => said.s_maxage = value.parse().ok(),
                _ => {}
            }
        }
        said
    }

    /// RFC 9111 section 3.5.
    fn allows_sharing(self) -> bool {
        self.public || self.must_revalidate || self.s_maxage.is_some()
    }
}

/// A request as the test means it.
#[derive(Clone, Debug)]
struct Asked {
    id: usize,
    batch: usize,
    gateway: usize,
    method: Method,
    route: Route,
    resource: u8,
    spelling: u8,
    query: &'static str,
    host: &'static str,
    forwarded: Option<(&'static str, &'static str)>,
    /// The verified user.
    user: Option<&'static str>,
    credential: Option<(String, String)>,
    headers: Vec<(&'static str, String)>,
    body: bool,
}

impl Asked {
    fn header(&self, name: &str) -> Option<String> {
        let credential = self.credential.iter().map(|(name, value)| (name.as_str(), value));
        let lines: Vec<&str> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value))
            .chain(credential)
            .filter(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
            .collect();
        (!lines.is_empty()).then(|| lines.join(","))
    }

    fn says(&self, directive: &str) -> bool {
        self.header("cache-control").is_some_and(|said| said.split(',').any(|word| word.trim() == directive))
    }

    /// As the origin gets it.
    fn path(&self) -> String {
        format!("/{}/r{}", self.route.name, self.resource)
    }

    fn target(&self) -> String {
        let Self { route: Route { name, .. }, resource, query, .. } = self;
        match self.spelling {
            0 => format!("/{name}/./r{resource}{query}"),
            1 => format!("/{name}/%72{resource}{query}"),
            2 => format!("/{name}/x/../r{resource}{query}"),
            _ => format!("/{name}/r{resource}{query}"),
        }
    }

    /// Scheme and host as the client used them, where a proxy that is trusted tells.
    fn place(&self, trusted: bool) -> (String, String, String) {
        let (scheme, told) = self.forwarded.filter(|_| trusted).unwrap_or(("http", ""));
        let told = if told.is_empty() { self.host } else { told };
        (scheme.into(), self.host.to_lowercase(), told.to_lowercase())
    }

    /// The object that is asked for, by the rules of the route.
    fn object(&self, trusted: bool) -> String {
        // Other spellings are other objects: nobody knows what they mean to the origin.
        let named = |pair: &&str| pair.replace("%61", "a").starts_with("page=");
        let pairs = self.query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty());
        let mut query: Vec<&str> = match self.route.query {
            Query::All => pairs.chain((!self.query.is_empty()).then_some("?")).collect(),
            Query::Page => pairs.filter(named).collect(),
            Query::Ignored => Vec::new(),
        };
        query.sort_by_key(|pair| pair.split('=').next());
        let user = if self.route.shared { "everybody" } else { self.user.unwrap_or("-nobody") };
        format!("{:?} {} {query:?} {user}", self.place(trusted), self.path())
    }

    /// What an origin of this nature lets the answer depend on.
    fn dependence(&self, nature: &Nature, trusted: bool) -> Value {
        let (scheme, host, told) = self.place(trusted);
        dependence(
            nature,
            self.route,
            &Seen {
                path: self.path(),
                query: self.query.trim_start_matches('?'),
                scheme: &scheme,
                host: &host,
                told: &told,
                user: self.user.map(str::to_owned),
                header: &|name| self.header(name),
            },
        )
    }
}

/// Parameters that count, by name; those of one name keep their order.
fn parameters(query: &str, policy: Query) -> Vec<(String, String)> {
    let query = query.trim_start_matches('?');
    let mut pairs: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && policy != Query::Ignored)
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.replace("%61", "a"), value.to_owned()))
        .filter(|(name, _)| policy == Query::All || name == "page")
        .collect();
    pairs.sort_by(|one, other| one.0.cmp(&other.0));
    pairs
}

/// A request, as the origin sees it or should see it.
struct Seen<'a> {
    path: String,
    query: &'a str,
    scheme: &'a str,
    host: &'a str,
    told: &'a str,
    user: Option<String>,
    header: &'a dyn Fn(&str) -> Option<String>,
}

fn dependence(nature: &Nature, route: Route, seen: &Seen<'_>) -> Value {
    let varied: Vec<_> = nature.varied.iter().map(|name| json!([name, (seen.header)(name)])).collect();
    json!({
        "path": seen.path,
        "scheme": seen.scheme,
        "host": seen.host,
        "told": seen.told,
        "query": nature.by_query.then(|| parameters(seen.query, route.query)),
        "user": nature.by_user.then(|| seen.user.clone()),
        "cookie": nature.by_cookie_silently.then(|| (seen.header)("cookie")),
        "varied": varied,
    })
}

type Versions = Arc<Mutex<HashMap<String, u64>>>;

fn validator(version: u64, dependence: &Value) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ version;
    for byte in dependence.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("\"{hash:016x}\"")
}

fn route_of(path: &str) -> Option<(Route, u8)> {
    let (name, resource) = path.trim_start_matches('/').split_once("/r")?;
    let route = ROUTES.into_iter().find(|route| route.name == name)?;
    Some((route, resource.parse().ok()?))
}

/// The origin: says in `x-made`, and in the body, for whom it answered and what it looked at.
fn answer(seed: u64, versions: &Versions, request: &Received) -> Reply {
    let Some((route, resource)) = route_of(&request.path) else { return Reply::text(404, "nothing") };
    let mut versions = versions.lock().unwrap();
    let version = versions.entry(request.path.clone()).or_default();
    let read = matches!(request.method, Method::GET | Method::HEAD);
    if !read {
        *version += 1;
        return Reply::text(200, "written");
    }
    let version = *version;
    let nature = Nature::of(seed, route, resource, version);
    let header = |name: &str| {
        let lines: Vec<_> =
            request.headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
        (!lines.is_empty()).then(|| lines.join(","))
    };
    let said = |name| header(name).unwrap_or_default();
    let depends = dependence(
        &nature,
        route,
        &Seen {
            path: request.path.clone(),
            query: request.query.as_deref().unwrap_or_default(),
            scheme: &said("x-forwarded-proto"),
            host: &said("host").to_lowercase(),
            told: &said("x-forwarded-host").to_lowercase(),
            user: header("x-user-id"),
            header: &header,
        },
    );
    let made =
        json!({ "for": said("x-number").parse::<usize>().ok(), "version": version, "depends": depends });
    let tag = validator(version, &depends);
    let unchanged = nature.validator && header("if-none-match").is_some_and(|known| known.contains(&tag));
    // A body that no header says: what a fat GET brings.
    let body = if request.body.is_empty() { made.to_string() } else { format!("{made} fat") };
    let status = if unchanged { 304 } else { nature.status };
    let mut reply = Reply::new(status, if unchanged { String::new() } else { body });
    reply = reply.header("x-made", &made.to_string());
    for name in &nature.varied {
        reply = reply.header("vary", name);
    }
    for (name, value, there) in [
        ("vary", "*", nature.varies_by_all),
        ("cache-control", nature.control, !nature.control.is_empty()),
        ("set-cookie", "sid=one", nature.sets_cookie),
        ("etag", &tag, nature.validator),
    ] {
        if there {
            reply = reply.header(name, value);
        }
    }
    reply
}

/// Headers by which a client may try to be, or to ask for, something else.
const TRICKS: [(&str, &str); 10] = [
    ("x-user-id", "ada"),
    ("x_user_id", "ada"),
    ("x-original-url", "/mine/r0"),
    ("x-rewrite-url", "/mine/r0"),
    ("x-http-method-override", "DELETE"),
    ("x-host", "evil.example"),
    ("x_forwarded_host", "evil.example"),
    ("x-forwarded-scheme", "https"),
    ("forwarded-host", "evil.example"),
    ("x-wap-profile", "http://evil.example"),
];

const USERS: [&str; 3] = ["ada", "bob", "eve"];

/// Everything that is random.
struct Dice {
    rng: Rng,
    tokens: [String; 3],
    tags: Vec<String>,
}

impl Dice {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    fn rarely(&mut self) -> bool {
        self.rng.u8(..8) == 0
    }

    fn ask(&mut self, id: usize, batch: usize, gateways: usize) -> Asked {
        let route = self.one(&ROUTES);
        let mut asked = Asked {
            id,
            batch,
            gateway: self.rng.usize(..gateways),
            method: self.one(&[Method::GET.as_str(), "GET", "GET", "GET", "GET", "HEAD"]).parse().unwrap(),
            route,
            resource: self.rng.u8(..RESOURCES),
            spelling: if self.rarely() { self.rng.u8(..3) } else { 9 },
            query: if self.rng.u8(..3) > 0 {
                ""
            } else {
                self.one(&[
                    "?",
                    "?a=1",
                    "?a=2",
                    "?a=1&b=2",
                    "?b=2&a=1",
                    "?a=1&a=2",
                    "?a=2&a=1",
                    "?page=1",
                    "?page=2&x=1",
                    "?p%61ge=2",
                ])
            },
            host: self.one(&[
                "one.example",
                "one.example",
                "one.example",
                "ONE.example",
                "two.example",
                "one.example:8080",
            ]),
            forwarded: None,
            user: None,
            credential: None,
            headers: Vec::new(),
            body: false,
        };
        if self.rarely() {
            asked.forwarded =
                Some((self.one(&["https", "http"]), self.one(&["", "three.example", "one.example"])));
        }
        self.credential(&mut asked);
        for (name, values) in [
            ("accept-language", ["de", "en", "de, en", "en-GB"]),
            ("accept-encoding", ["gzip", "br", "identity", "gzip, br"]),
            ("x-flavour", ["sweet", "sour", "", "sweet"]),
        ] {
            if self.rng.u8(..3) == 0 {
                asked.headers.push((name, self.one(&values).to_owned()));
            }
        }
        if self.rarely() {
            let (name, value) = self.one(&TRICKS);
            asked.headers.push((name, value.to_owned()));
        }
        if self.rng.u8(..6) == 0 {
            let directive = self.one(&[
                "no-cache",
                "no-store",
                "max-age=0",
                "only-if-cached",
                "max-stale",
                "max-age=100000",
                "min-fresh=100000",
            ]);
            asked.headers.push(("cache-control", directive.to_owned()));
        }
        if self.rng.u8(..6) == 0 {
            let known = self.rng.usize(..self.tags.len());
            let condition = ["if-none-match", "if-none-match", "if-match"][self.rng.usize(..3)];
            asked.headers.push((condition, self.tags[known].clone()));
        }
        if self.rarely() {
            asked.headers.push(("range", self.one(&["bytes=0-0", "bytes=1-", "bytes=-5"]).to_owned()));
        }
        asked.body = self.rng.u8(..24) == 0;
        asked
    }

    fn credential(&mut self, asked: &mut Asked) {
        let who = self.rng.usize(..USERS.len());
        let token = self.tokens[who].clone();
        let looked_at = asked.route.auth != Auth::None;
        let (name, value) = match self.rng.u8(..10) {
            0..=4 if looked_at => ("authorization", format!("Bearer {token}")),
            5..=6 if looked_at => ("cookie", format!("session={token}")),
            0 => ("cookie", "sid=ada".to_owned()),
            1 => ("cookie", "sid=bob".to_owned()),
            2 => ("authorization", "Basic YWRhOg==".to_owned()),
            3 => ("x-api-key", "key-of-ada".to_owned()),
            4 if !looked_at => ("authorization", format!("Bearer {token}")),
            _ => return,
        };
        if looked_at && value.contains(&token) {
            asked.user = Some(USERS[who]);
        }
        asked.credential = Some((name.to_owned(), value));
    }
}

/// What is known of everything asked so far.
struct Model {
    seed: u64,
    trusted: bool,
    asked: Vec<Asked>,
    /// The version below which nothing of an object may be served any more.
    least: HashMap<String, u64>,
    hits: usize,
    revalidated: usize,
}

impl Model {
    /// RFC 9111 section 3, the answer being that of `nature` to `first`.
    fn may_store(&self, first: &Asked, nature: &Nature) -> Result<(), &'static str> {
        let route = first.route;
        let said = if route.overrides { Said::default() } else { Said::of(nature.control) };
        // One user's own, on a route that declares how long: the rules of a private cache.
        let private = !route.shared && route.ttl && first.user.is_some();
        let freshness = said.max_age.is_some() || (said.s_maxage.is_some() && !private);
        let authorised = first.header("authorization").is_some() || first.user.is_some();
        for (forbidden, why) in [
            (!matches!(first.method, Method::GET | Method::HEAD), "a method"),
            (first.body, "a body"),
            (first.says("no-store"), "the request's no-store"),
            (said.no_store, "no-store"),
            (said.private && !private, "private"),
            (nature.sets_cookie, "a cookie"),
            (nature.varies_by_all, "Vary: *"),
            (
                // 404 and 410 may be kept to be asked about (RFC 9110 section 15.1).
                nature.status != 200
                    && (route.overrides || !(freshness || (said.no_cache && nature.status != 503))),
                "a status without freshness",
            ),
            (!freshness && !route.ttl && !said.no_cache && !nature.validator, "no freshness"),
            (authorised && !private && !route.overrides && !said.allows_sharing(), "Authorization"),
        ] {
            if forbidden {
                return Err(why);
            }
        }
        Ok(())
    }

    /// RFC 9111 section 4, without validation.
    fn may_serve(&self, first: &Asked, nature: &Nature, now: &Asked) -> Result<(), &'static str> {
        let route = now.route;
        let said = if route.overrides { Said::default() } else { Said::of(nature.control) };
        let private = !route.shared && route.ttl && first.user.is_some();
        let lifetime = said.s_maxage.filter(|_| !private).or(said.max_age).or(route.ttl.then_some(60));
        // Fetched for another request since this one came.
        let together = first.batch == now.batch;
        for (forbidden, why) in [
            (now.body, "a body"),
            (now.says("no-store"), "the request's no-store"),
            (now.header("if-match").is_some(), "If-Match"),
            (!together && now.says("no-cache"), "the request's no-cache"),
            (!together && now.says("max-age=0"), "the request's max-age"),
            (!together && now.says("min-fresh=100000"), "the request's min-fresh"),
            (!together && said.no_cache, "no-cache"),
            (!together && lifetime.unwrap_or(0) == 0 && !now.says("max-stale"), "staleness"),
        ] {
            if forbidden {
                return Err(why);
            }
        }
        Ok(())
    }

    /// The same object, and the same in everything that the stored answer varies by (RFC 9111 section 4.1).
    fn is_selected(&self, first: &Asked, nature: &Nature, now: &Asked) -> Result<(), String> {
        let (stored, wanted) = (first.object(self.trusted), now.object(self.trusted));
        if stored != wanted {
            return Err(format!("{stored} for {wanted}"));
        }
        let declared = now.route.vary_language.then_some("accept-language");
        for name in nature.varied.iter().copied().chain(declared) {
            if first.header(name) != now.header(name) {
                return Err(format!("{name}: {:?} for {:?}", first.header(name), now.header(name)));
            }
        }
        Ok(())
    }

    /// Judges an answer; `current` is the version of the resource.
    fn judge(&mut self, now: &Asked, response: &Response, current: u64) -> Result<(), String> {
        let cached = x_cache(response);
        let Some(made) = response.header("x-made") else {
            // The gateway's own words, or a 304 that says no more than the tag.
            if response.code() == 304 {
                return self.judge_unchanged(now, response, current);
            }
            let words = response.text();
            return if words.contains("depends") {
                Err(format!("{} {words}", response.code()))
            } else {
                Ok(())
            };
        };
        let made: Value = serde_json::from_str(made).map_err(|error| error.to_string())?;
        let version = made["version"].as_u64().ok_or("no version")?;
        let nature = Nature::of(self.seed, now.route, now.resource, version);
        let expected = now.dependence(&nature, self.trusted);
        if made["depends"] != expected {
            return Err(format!("made from {}, and this is {expected}", made["depends"]));
        }
        let least = self.least.get(&now.object(self.trusted)).copied().unwrap_or(0);
        if !(least..=current).contains(&version) {
            return Err(format!("version {version}, and {least} was written"));
        }
        let whole = response.code() == nature.status && now.method == Method::GET && !now.body;
        if whole && response.header("content-range").is_none() {
            // A validation tells of the later request in the head only.
            let body: Value = serde_json::from_slice(&response.body).map_err(|_| response.text())?;
            if (&body["depends"], &body["version"]) != (&made["depends"], &made["version"]) {
                return Err(format!("the body is not that of the head: {body}"));
            }
        }
        if response.code() == 304 {
            self.judge_unchanged(now, response, current)?;
        }
        let number =
            made["for"].as_u64().and_then(|number| usize::try_from(number).ok()).ok_or("no number")?;
        if number == now.id {
            // The head is that of the 304, and the body was held against it above.
            self.revalidated += usize::from(cached == "REVALIDATED");
            return if cached == "HIT" { Err("a hit that was made for itself".into()) } else { Ok(()) };
        }
        let first = self.asked.get(number).ok_or("made for nobody")?;
        let why = |why: &str| format!("{why}, made for {first:?} by {nature:?}");
        self.may_store(first, &nature).map_err(|problem| why(&format!("must not be stored: {problem}")))?;
        self.is_selected(first, &nature, now)
            .map_err(|problem| why(&format!("another object: {problem}")))?;
        match cached.as_str() {
            "HIT" => {
                self.may_serve(first, &nature, now)
                    .map_err(|problem| why(&format!("must not be served: {problem}")))?;
                self.hits += 1;
                Ok(())
            }
            "REVALIDATED" if nature.validator => {
                self.revalidated += 1;
                Ok(())
            }
            _ => Err(why(&format!("{cached} and not its own"))),
        }
    }

    fn judge_unchanged(&self, now: &Asked, response: &Response, current: u64) -> Result<(), String> {
        let asked = now.header("if-none-match").ok_or("a 304 that nobody asked for")?;
        let least = self.least.get(&now.object(self.trusted)).copied().unwrap_or(0);
        let right = (least..=current).any(|version| {
            let nature = Nature::of(self.seed, now.route, now.resource, version);
            nature.validator && asked == validator(version, &now.dependence(&nature, self.trusted))
        });
        if right { Ok(()) } else { Err(format!("not what is asked for: {:?}", response.headers)) }
    }
}

async fn send(client: Client, asked: Asked) -> Response {
    let mut request = client.request(asked.method.clone(), &asked.target()).host(asked.host);
    request = request.header("x-number", &asked.id.to_string());
    if let Some((scheme, host)) = asked.forwarded {
        request = request.header("x-forwarded-proto", scheme);
        request = if host.is_empty() { request } else { request.header("x-forwarded-host", host) };
    }
    if let Some((name, value)) = &asked.credential {
        request = request.header(name, value);
    }
    for (name, value) in &asked.headers {
        request = request.header(name, value);
    }
    let request = if asked.body { request.body("fat") } else { request };
    request.send_async().await.unwrap_or_else(|error| panic!("{asked:?}: {error}"))
}

fn run(seed: u64, instances: usize, trusted: bool) {
    let (redis, origin) = (Redis::start(), Origin::start());
    let text = configuration(&origin, trusted);
    let start = || Gateway::builder().config(&text).env("REDIS_URL", &redis.url()).start();
    let gateways: Vec<Gateway> = (0..instances).map(|_| start()).collect();
    for gateway in &gateways {
        warm(gateway, &origin);
    }
    let versions = Versions::default();
    let known = Arc::clone(&versions);
    origin.answer(move |request| answer(seed, &known, request));
    let clients: Vec<Vec<Client>> =
        gateways.iter().map(|gateway| (0..4).map(|_| gateway.client()).collect()).collect();
    let tokens = USERS.map(|user| Token::of(user).sign());
    let mut dice = Dice { rng: Rng::with_seed(seed), tokens, tags: vec!["\"none\"".into()] };
    let mut model =
        Model { seed, trusted, asked: Vec::new(), least: HashMap::new(), hits: 0, revalidated: 0 };

    for batch in 0..BATCHES {
        let writes = dice.rng.u8(..6) == 0;
        let many = if writes { 1 } else { dice.rng.usize(1..=4) };
        let first = model.asked.len();
        let mut wanted: Vec<Asked> = (0..many).map(|at| dice.ask(first + at, batch, instances)).collect();
        // Requests at the same time are mostly for the same thing.
        let (route, resource, query, host) =
            (wanted[0].route, wanted[0].resource, wanted[0].query, wanted[0].host);
        for asked in wanted.iter_mut().skip(1).filter(|asked| asked.route.auth == route.auth) {
            (asked.route, asked.resource, asked.query, asked.host) = (route, resource, query, host);
        }
        if writes {
            let method = dice.one(&["POST", "PUT", "PATCH", "DELETE"]);
            wanted[0].method = method.parse().unwrap();
            wanted[0].headers.clear();
        }
        model.asked.extend(wanted.iter().cloned());
        let sending: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(at, asked)| send(clients[asked.gateway][at].clone(), asked.clone()))
            .collect();
        let responses = wait_for(join_all(sending));
        for (asked, response) in wanted.iter().zip(&responses) {
            let current = versions.lock().unwrap().get(&asked.path()).copied().unwrap_or(0);
            if writes {
                if response.code() == 200 {
                    model.least.insert(asked.object(trusted), current);
                }
                continue;
            }
            dice.tags.extend(response.header("etag").map(str::to_owned));
            if let Err(problem) = model.judge(asked, response, current) {
                panic!(
                    "seed {seed} (TOLLGATE_SEED), {instances} instances, trusted: {trusted}, batch {batch}: {problem}\nasked: {asked:?}\n\
                     answered: {} {:?}\n{}",
                    response.code(),
                    response.headers,
                    response.text()
                );
            }
        }
        let tags = dice.tags.len();
        dice.tags.drain(..tags.saturating_sub(16));
    }
    // A cache that stores nothing would hold all this too.
    assert!(model.hits > 60, "seed {seed}: {} hits, {} validated", model.hits, model.revalidated);
    assert!(model.revalidated > 0, "seed {seed}: {} hits, {} validated", model.hits, model.revalidated);
}

/// The seed of `TOLLGATE_SEED`, to look for more than these find.
#[allow(clippy::disallowed_methods, reason = "a test's own switch, and none of the gateway's")]
fn seeded(seed: u64) -> u64 {
    std::env::var("TOLLGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed)
}

#[test]
fn what_one_instance_serves_from_its_cache_is_what_the_origin_would_have_said() {
    run(seeded(1), 1, false);
}

#[test]
fn what_two_instances_serve_from_their_cache_is_what_the_origin_would_have_said() {
    run(seeded(2), 2, false);
}

#[test]
fn behind_a_trusted_proxy_too_a_hit_is_what_the_origin_would_have_said() {
    run(seeded(3), 2, true);
}
