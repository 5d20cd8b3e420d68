//! The configuration file: TOML and environment in, one checked [`Spec`] out, or every mistake at once with its
//! place. It starts nothing and knows no behaviour of the floors below.

mod api_tokens;
mod error;
mod identity;
pub mod keys;
mod limits;
mod listeners;
mod reader;
mod request_keys;
mod routes;
mod sessions;
pub mod spec;
mod template;
mod tree;
mod value;
mod variables;
mod walk;
mod warm;
mod words;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

pub use error::{Errors, Problem};
pub use spec::Spec;
pub use template::{Template, TemplatePart};
pub use value::{HostPort, RedisUrl, Secret};
pub use variables::Variables;

use reader::{Context, Found, Reader};
use spec::Environment;
use tree::{Entry, Node, Table, Value};

/// Larger files are not configuration.
const MAX_FILE: u64 = 4 << 20;

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What was configured.
    pub spec: Spec,
    /// What is allowed and probably not meant, in the order of the file.
    pub warnings: Vec<Problem>,
    /// Where each key stands, for mistakes that only a later stage can see.
    pub places: Places,
}

/// Where each key of one file stands.
#[derive(Clone, Debug)]
pub struct Places {
    source: Source,
    by_path: BTreeMap<String, usize>,
}

impl Places {
    /// A problem at `path` (such as `routes[2].path`), placed at its nearest ancestor if the key is absent.
    pub fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        let mut known = path;
        let at = loop {
            if let Some(at) = self.by_path.get(known) {
                break *at;
            }
            match known.rfind(['.', '[']).and_then(|end| known.get(..end)) {
                Some(parent) => known = parent,
                None => break 0,
            }
        };
        self.source.problem(at, path.to_owned(), message.into())
    }
}

/// Reads, checks and resolves the file at `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path, variables: &Variables) -> Result<Loaded, Errors> {
    let name = path.display().to_string();
    let refused = |message: String| {
        let problem =
            Problem { file: name.as_str().into(), line: 0, column: 0, path: String::new(), message };
        Errors::new(vec![problem])
    };
    let cannot = |error: std::io::Error| refused(format!("cannot be read: {error}"));
    if std::fs::metadata(path).map_err(cannot)?.len() > MAX_FILE {
        return Err(refused("is larger than 4 MiB; accepted: a configuration file".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(cannot)?;
    let text = String::from_utf8(bytes).map_err(|_| refused("is not UTF-8 text".to_owned()))?;
    read(&text, &name, path.parent().unwrap_or(Path::new("")), variables)
}

/// Like [`load`] for a text that is called `name` in messages; file names in it are relative to the working
/// directory.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_str(text: &str, name: &str, variables: &Variables) -> Result<Loaded, Errors> {
    read(text, name, Path::new(""), variables)
}

fn read(text: &str, name: &str, directory: &Path, variables: &Variables) -> Result<Loaded, Errors> {
    let source = Source { file: name.into(), text: text.into() };
    let root = tree::parse(text).map_err(|errors| {
        let problem = |error: tree::SyntaxError| {
            source.problem(error.at, String::new(), format!("not TOML: {}", error.message))
        };
        Errors::new(errors.into_iter().map(problem).collect())
    })?;
    let Decoded { spec, merged, mut found, mut warnings } = decode(root.clone(), directory, variables);
    found.extend(other_environments(&root, spec.environment, directory, variables));
    name_overlays(&root, &mut found);
    if found.is_empty() {
        let mut by_path = BTreeMap::new();
        walk::places(&merged, "", &mut by_path);
        name_overlays(&root, &mut warnings);
        let warnings = source.problems(warnings);
        return Ok(Loaded { spec, warnings, places: Places { source, by_path } });
    }
    Err(Errors::new(source.problems(found)))
}

struct Decoded {
    spec: Spec,
    /// The file with the overlay that is in force.
    merged: Table,
    found: Vec<Found>,
    warnings: Vec<Found>,
}

/// Decodes with the overlay of the environment that is in force.
fn decode(mut root: Table, directory: &Path, variables: &Variables) -> Decoded {
    let cx = Context {
        variables,
        directory,
        development: false,
        found: RefCell::default(),
        warnings: RefCell::default(),
        #[cfg(test)]
        asked: RefCell::default(),
    };
    let environment: Environment = Reader::root(&cx, &root).get("environment");
    let overlays = root.remove("environments");
    if let Some(over) = overlays.and_then(|entry| overlay_of(&cx, &entry, environment)) {
        root.overlay(&over);
    }
    if Reader::root(&cx, &root).names("issuers").is_empty()
        && variables.get("JWT_SECRET").is_some_and(|secret| !secret.is_empty())
    {
        root.overlay(&identity::implicit_issuers());
    }
    let cx = Context { development: environment == Environment::Development, ..cx };
    walk::unknown_keys(&cx, &root, "", "");
    let spec = sections(&Reader::root(&cx, &root), environment);
    #[cfg(test)]
    tests::remember(&cx.asked.borrow());
    Decoded { spec, merged: root, found: cx.found.into_inner(), warnings: cx.warnings.into_inner() }
}

fn sections(root: &Reader<'_>, environment: Environment) -> Spec {
    let server = listeners::server(root);
    let admin = listeners::admin(root, &server);
    let cache = listeners::cache(root);
    let issuers = identity::issuers(root);
    let identity = identity::identity(root);
    let api_tokens = api_tokens::api_tokens(root, &identity);
    let plans = limits::plans(root);
    let limits = limits::limits(root, &plans);
    let policies = limits::policies(root, &plans, api_tokens.enabled);
    let redis = listeners::redis(root);
    limits::unused_user_limits(root, &limits, &policies, redis.url.is_some());
    let upstreams = routes::upstreams(root);
    let routes = routes::routes(
        root,
        &routes::Known {
            server: &server,
            cache: &cache,
            identity: &identity,
            policies: &policies,
            plans: &plans,
            limits: &limits,
            upstreams: root.names("upstreams"),
            has_issuers: !root.names("issuers").is_empty() || api_tokens.enabled,
            has_store: redis.url.is_some(),
        },
    );
    limits::quota_path_is_free(root, &limits, &server, &routes);
    Spec {
        environment,
        redis,
        log: listeners::log(root),
        identity,
        sessions: sessions::sessions(root),
        api_tokens,
        server,
        admin,
        issuers,
        limits,
        plans,
        policies,
        upstreams,
        cache,
        routes,
    }
}

/// The overlay for `environment`; reports what cannot be one.
fn overlay_of(cx: &Context<'_>, environments: &Entry, environment: Environment) -> Option<Table> {
    let report = |at: usize, path: String, message: &str| {
        let found = Found { at, path, message: message.to_owned(), is_variable: false };
        cx.found.borrow_mut().push(found);
    };
    let Value::Table(table) = &environments.node.value else {
        report(environments.node.at, "environments".to_owned(), "is not accepted; accepted: a table");
        return None;
    };
    for entry in table.iter() {
        let path = format!("environments.{}", entry.key);
        match &entry.node.value {
            _ if !Environment::ALL.iter().any(|known| known.as_str() == entry.key) => {
                let words = Environment::ALL.iter().map(|known| known.as_str());
                let hint = error::did_you_mean(&entry.key, words);
                report(
                    entry.key_at,
                    path,
                    &format!("is no environment; accepted: production, development{hint}"),
                );
            }
            Value::Table(over) => {
                for key in ["environment", "environments"] {
                    if let Some(inner) = over.get(key) {
                        report(
                            inner.key_at,
                            format!("{path}.{key}"),
                            "cannot be set by an environment itself",
                        );
                    }
                }
            }
            _ => report(entry.node.at, path, "is not accepted; accepted: a table"),
        }
    }
    overlay_table(table, environment)
}

fn overlay_table(environments: &Table, environment: Environment) -> Option<Table> {
    let Value::Table(over) = &environments.get(environment.as_str())?.node.value else { return None };
    let mut over = over.clone();
    over.remove("environment");
    over.remove("environments");
    Some(over)
}

/// Mistakes inside the overlays that are not in force now, so that they do not wait for the day of deployment.
fn other_environments(
    root: &Table,
    current: Environment,
    directory: &Path,
    variables: &Variables,
) -> Vec<Found> {
    let Some(Value::Table(environments)) = root.get("environments").map(|entry| &entry.node.value) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for other in Environment::ALL.iter().filter(|other| **other != current) {
        let Some(over) = overlay_table(environments, *other) else { continue };
        let inside = offsets_of(over);
        let mut as_other = root.clone();
        as_other.overlay(&Table::single("environment", Value::Text(other.as_str().to_owned())));
        let decoded = decode(as_other, directory, variables);
        all.extend(
            decoded.found.into_iter().filter(|found| !found.is_variable && inside.contains(&found.at)),
        );
    }
    all
}

/// Gives the keys that stand in an overlay the name they have there.
fn name_overlays(root: &Table, found: &mut [Found]) {
    let Some(Value::Table(environments)) = root.get("environments").map(|entry| &entry.node.value) else {
        return;
    };
    for environment in Environment::ALL {
        let Some(over) = overlay_table(environments, *environment) else { continue };
        let inside = offsets_of(over);
        for found in found.iter_mut().filter(|found| inside.contains(&found.at)) {
            found.path = format!("environments.{environment}.{}", found.path);
        }
    }
}

fn offsets_of(table: Table) -> BTreeSet<usize> {
    let mut inside = BTreeSet::new();
    Node { at: usize::MAX, value: Value::Table(table) }.offsets(&mut |at| {
        inside.insert(at);
    });
    inside
}

/// A text and its name; turns offsets into lines and columns.
#[derive(Clone)]
struct Source {
    file: Arc<str>,
    text: Arc<str>,
}

impl std::fmt::Debug for Source {
    /// The name only: the text may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Source").field(&self.file).finish()
    }
}

impl Source {
    fn problem(&self, at: usize, path: String, message: String) -> Problem {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Problem { file: Arc::clone(&self.file), line, column, path, message }
    }

    fn problems(&self, mut found: Vec<Found>) -> Vec<Problem> {
        found.sort();
        found.dedup_by(|one, other| {
            one.at == other.at && one.path == other.path && one.message == other.message
        });
        found.into_iter().map(|found| self.problem(found.at, found.path, found.message)).collect()
    }
}
