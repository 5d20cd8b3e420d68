//! Keeps declared responses warm: one task for each, in the background, as long as its configuration is in force.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::HOST;
use http::{HeaderValue, Method, Version};
use tokio::task::JoinSet;

use super::build::{Unusable, head_limits, path_options, unusable};
use crate::cache::warm::{Change, Pace, Target, Warmed};
use crate::config::Spec;
use crate::config::spec::{Warm, WarmUrl};
use crate::pipeline::head::{self, HeadInput};
use crate::pipeline::{Gateway, Shared};
use crate::proxy::Warmer;
use crate::route::table::{Found, Table};
use crate::route::{Route, normalise};

/// How soon a new configuration is noticed.
const NOTICE: Duration = Duration::from_millis(500);
/// The first look comes within this time of the start, at random: instances often start together.
const START: Duration = Duration::from_millis(400);
/// The first look waits this long for the store, so that a response that another instance stored is found.
const STORE_WAIT: Duration = Duration::from_secs(2);
/// How long the wait for the store pauses between two looks at its state.
const STORE_POLL: Duration = Duration::from_millis(20);
/// Each look takes a window between this and the whole, in thousandths, so that of several instances one is first.
const LEAST_WINDOW: u16 = 500;

/// What `spec` keeps warm; what no client could be served by its route is a mistake.
pub(super) fn targets(spec: &Spec, table: &Table<Arc<Route>>, problems: &mut Vec<Unusable>) -> Vec<Target> {
    let mut targets = Vec::new();
    for (index, route) in spec.routes.iter().enumerate() {
        let Some((cache, warm)) = route.cache.as_ref().and_then(|cache| Some((cache, cache.warm.as_ref()?)))
        else {
            continue;
        };
        for url in &warm.urls {
            let target = Target {
                route: route.name.clone(),
                https: url.https,
                authority: url.authority.clone(),
                target: url.target.clone(),
                refresh_ahead: Some(cache.refresh_ahead).filter(|ahead| !ahead.is_zero()),
                headers: warm.headers.clone(),
            };
            match serving(spec, table, url, warm) {
                Ok(serving) if *serving.name == *route.name => targets.push(target),
                Ok(other) => problems.push(unusable(
                    format!("routes[{index}].cache.warm.urls"),
                    format!(
                        "{} is served by the route {:?}; accepted: what a GET reaches this route with",
                        target.shown(),
                        other.name
                    ),
                )),
                Err(why) => problems.push(unusable(
                    format!("routes[{index}].cache.warm.urls"),
                    format!("{} {why}; accepted: what a GET reaches this route with", target.shown()),
                )),
            }
        }
    }
    targets
}

/// The route that a GET of `url` takes.
fn serving(spec: &Spec, table: &Table<Arc<Route>>, url: &WarmUrl, warm: &Warm) -> Result<Arc<Route>, String> {
    let mut headers = warm.headers.clone();
    let host = HeaderValue::from_str(&url.authority).map_err(|_| "names no host".to_owned())?;
    headers.insert(HOST, host);
    let input = HeadInput {
        method: &Method::GET,
        target: url.target.as_bytes(),
        version: Version::HTTP_11,
        headers: &headers,
        is_h2: false,
        authority: None,
        raw: None,
    };
    let limits = head_limits(spec);
    let head = head::inspect(&input, &limits).map_err(|problem| format!("is refused: {problem}"))?;
    let path = normalise::normalise(head.path, path_options(spec))
        .map_err(|problem| format!("is refused: {problem}"))?;
    match table.find(&head.host, &Method::GET, &path) {
        Found::Route(found) => Ok(Arc::clone(found.value)),
        Found::MethodNotAllowed { .. } => Err("is on a route without GET".to_owned()),
        Found::NotFound => Err("is on no route".to_owned()),
    }
}

/// Keeps warm what the current configuration says, until the process drains.
pub(super) async fn keep_warm(warmer: Warmer, current: Arc<ArcSwap<Gateway>>, draining: Arc<AtomicBool>) {
    let warmer = Arc::new(warmer);
    let mut tasks = JoinSet::new();
    let mut kept: Option<Arc<[Target]>> = None;
    while !draining.load(Ordering::Acquire) {
        let gateway = current.load_full();
        if !kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &gateway.warm)) {
            tasks.shutdown().await;
            for target in gateway.warm.iter() {
                tasks.spawn(look_after(Arc::clone(&warmer), target.clone(), Arc::clone(&gateway.shared)));
            }
            kept = Some(Arc::clone(&gateway.warm));
        }
        drop(gateway);
        tokio::time::sleep(NOTICE).await;
    }
    tasks.abort_all();
}

/// Looks after one response for ever.
async fn look_after(by: Arc<Warmer>, target: Target, shared: Arc<Shared>) {
    let counters = shared.metrics.warm(&target.route);
    let mut pace = Pace::default();
    let mut window = fastrand::u16(LEAST_WINDOW..=1_000);
    tokio::time::sleep(START.mul_f64(fastrand::f64())).await;
    store_is_there(&shared).await;
    loop {
        let warmed = by.look(&target, window).await;
        counters.count(warmed.outcome());
        window = fastrand::u16(LEAST_WINDOW..=1_000);
        let before_end = match warmed {
            Warmed::Fresh(freshness) | Warmed::Fetched(freshness) => target.window(freshness, window),
            Warmed::NotKept(_) | Warmed::Failed(_) => Duration::ZERO,
        };
        let (rest, change) = pace.note(warmed, before_end, fastrand::f64(), shared.clock.now());
        if let Some(change) = change {
            tell(&target, change);
        }
        tokio::time::sleep(rest).await;
    }
}

async fn store_is_there(shared: &Shared) {
    let Some(store) = &shared.store else { return };
    let begun = Instant::now();
    while !store.available_everywhere() && begun.elapsed() < STORE_WAIT {
        tokio::time::sleep(STORE_POLL).await;
    }
}

fn tell(target: &Target, change: Change) {
    let (route, url) = (&*target.route, target.shown());
    match change {
        Change::Warm => tracing::info!(route, url, "a response is kept warm"),
        Change::Unkept(why) => {
            tracing::warn!(
                route,
                url,
                why,
                "a response cannot be kept warm: it may not be stored, or is never fresh"
            );
        }
        Change::Failing(0) => tracing::warn!(route, url, "a response cannot be kept warm: no answer"),
        Change::Failing(status) => tracing::warn!(route, url, status, "a response cannot be kept warm"),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::from_str;

    /// What is wrong with keeping `urls` warm on a route of `a.example`, beside a route with a longer path, one
    /// without GET and one for another host.
    fn mistakes(urls: &str) -> Vec<String> {
        let text = format!(
            "[upstreams.app]\nmembers = \"127.0.0.1:8000\"\n[defaults]\nupstream = \"app\"\n\
             [[routes]]\nname = \"warm\"\nhosts = [\"a.example\"]\npath = \"/a/**\"\n\
             cache = {{ ttl = \"1m\", shared = true, warm = {{ urls = {urls} }} }}\n\
             [[routes]]\nname = \"longer\"\npath = \"/a/b\"\nhosts = [\"a.example\"]\n\
             [[routes]]\nname = \"write\"\npath = \"/w\"\nmethods = [\"POST\"]\n"
        );
        let loaded = from_str(&text, "t.toml", &crate::config::Variables::default());
        let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
        let shown =
            |errors: crate::config::Errors| errors.problems().iter().map(ToString::to_string).collect();
        super::super::check(&loaded).err().map_or_else(Vec::new, shown)
    }

    #[test]
    fn only_what_the_route_serves_is_kept_warm() {
        for good in ["http://a.example/a/1", "https://A.Example:8443/a/x%20y?b=1", "http://a.example/a/./1"] {
            assert_eq!(mistakes(&format!("[\"{good}\"]")), Vec::<String>::new());
        }
        for (bad, why) in [
            ("http://a.example/a/b?secret=1", "http://a.example/a/b is served by the route \"longer\""),
            ("http://b.example/a/1", "http://b.example/a/1 is on no route"),
            ("http://a.example/", "http://a.example/ is on no route"),
            ("http://a.example/w", "http://a.example/w is on a route without GET"),
            ("http://a.example/a/%2f", "http://a.example/a/%2f is refused: "),
        ] {
            let shown = mistakes(&format!("[\"http://a.example/a/1\", \"{bad}\"]"));
            assert_eq!(shown.len(), 1, "{bad}: {shown:#?}");
            assert!(shown[0].starts_with("t.toml:9:"), "{shown:#?}");
            assert!(shown[0].contains("routes[0].cache.warm.urls: "), "{shown:#?}");
            assert!(shown[0].contains(why), "{shown:#?}");
            assert!(!shown[0].contains("secret"), "{shown:#?}");
        }
    }

    #[test]
    fn an_empty_variable_keeps_nothing_warm() {
        assert_eq!(mistakes("\"${WARM_NOTHING:-}\""), Vec::<String>::new());
    }
}
