//! Keeps the table of keys, the readers, `config/tollgate.toml` and `docs/configuration.md` saying the same.
//! `TOLLGATE_BLESS=1 cargo test config::tests::documents` rewrites the reference part of the document.

use std::fmt::Write as _;

use crate::config::keys::{Default, KEYS};
use crate::config::tree::Value;

use super::*;

const EXAMPLE: &str = "config/tollgate.toml";
const DOCUMENT: &str = "docs/configuration.md";
const START: &str = "<!-- reference: printed from src/config/keys.rs -->\n";
const END: &str = "<!-- end of reference -->\n";

/// Keys whose default is their absence; the example shows them at work.
const SHOWN_OTHERWISE: [&str; 4] =
    ["policies.<name>.plan", "routes[].methods", "routes[].cache.tags", "routes[].invalidates"];

fn example(all_keys: bool) -> String {
    let text = std::fs::read_to_string(repository(EXAMPLE)).unwrap();
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if all_keys && rest.starts_with(|first: char| !first.is_whitespace() && first != '#') => {
            format!("{rest}\n")
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn loaded(text: &str) -> Loaded {
    let directory = repository("config");
    read(text, EXAMPLE, &directory, &variables(&[("JWT_SECRET", SECRET), ("OLD_JWT_SECRET", SECRET)]))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// Pattern and value of every key in `table`.
fn walk(table: &Table, pattern: &str, into: &mut Vec<(String, Value)>) {
    let children = keys::children(pattern);
    let free = children.keys().find(|name| name.starts_with('<')).copied();
    for entry in table.iter() {
        let name = free.unwrap_or(&entry.key);
        let pattern = reader::join(pattern, name);
        match (&entry.node.value, children.get(name)) {
            (Value::Table(inner), Some(keys::Child::Table)) => walk(inner, &pattern, into),
            (Value::Array(items), Some(keys::Child::Tables)) => {
                for item in items {
                    let Value::Table(inner) = &item.value else { panic!("{pattern}") };
                    walk(inner, &format!("{pattern}[]"), into);
                }
            }
            (value, _) => into.push((pattern, value.clone())),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(|item| shown(&item.value)).collect::<Vec<_>>().join(","),
        Value::Text(text) => format!("{text:?}"),
        Value::Float(number) => number.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Table(_) | Value::Unusable(_) => panic!(),
    }
}

#[test]
fn example_loads_as_it_stands_and_with_every_key() {
    assert_eq!(loaded(&example(false)).warnings, []);
    let all = loaded(&example(true));
    assert_eq!(all.spec.issuers.len(), 6);
    assert_eq!(all.warnings, []);
}

#[test]
fn example_has_every_key_and_its_default() {
    let mut root = tree::parse(&example(true)).unwrap();
    root.remove("environments").unwrap();
    let mut present = Vec::new();
    walk(&root, "", &mut present);
    for key in KEYS {
        let values: Vec<String> = present
            .iter()
            .filter(|(pattern, _)| pattern == key.path)
            .map(|(_, value)| shown(value))
            .collect();
        assert!(!values.is_empty(), "{} is not in {EXAMPLE}", key.path);
        if let Default::Is(default) = key.default
            && !SHOWN_OTHERWISE.contains(&key.path)
        {
            let default = shown(&tree::parse_value(default, 0).unwrap().value);
            assert!(values.contains(&default), "{}: {values:?} without the default {default}", key.path);
        }
    }
    for (pattern, _) in &present {
        assert!(keys::find(pattern).is_some(), "{pattern} is in {EXAMPLE} and in no table");
    }
}

#[test]
fn readers_ask_for_exactly_the_keys_of_the_table() {
    loaded(&example(true));
    let asked = ASKED.lock().unwrap().clone();
    let known: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(
        asked.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "asked for, not documented"
    );
    assert_eq!(known.difference(&asked).collect::<Vec<_>>(), Vec::<&String>::new(), "documented, never read");
    assert_eq!(known.len(), KEYS.len(), "a key stands twice in the table");
}

#[test]
fn access_fields_are_those_of_the_log_with_its_defaults() {
    use crate::logging::AccessField;
    use crate::metrics::Label as _;
    let loaded = from_str(&with(""), "t.toml", &variables(&[])).unwrap();
    assert_eq!(loaded.spec.log.access_fields, AccessField::DEFAULT);
    for field in AccessField::ALL {
        let text = with(&format!("[log]\naccess_fields = [\"{}\"]\n", field.as_str()));
        let loaded = from_str(&text, "t.toml", &variables(&[])).unwrap();
        assert_eq!(loaded.spec.log.access_fields, [*field]);
    }
    let meaning = keys::find("log.access_fields").unwrap().meaning;
    for field in AccessField::ALL.iter().filter(|field| !AccessField::DEFAULT.contains(field)) {
        assert!(meaning.contains(&format!("`{}`", field.as_str())), "{} is not told", field.as_str());
    }
}

#[test]
fn defaults_are_accepted_by_their_readers() {
    let loaded = from_str(&with(""), "t.toml", &variables(&[])).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.spec.plans.len(), 4);
    assert_eq!(loaded.spec.server.max_body, 10 << 20);
    assert_eq!(loaded.spec.redis.deadline, std::time::Duration::from_millis(20));
}

/// The tables of the document, one for each section.
fn reference() -> String {
    let mut out = String::new();
    let mut current = String::new();
    for key in KEYS {
        let (section, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        let (section, name) = match section.split_once('.') {
            Some(("issuers" | "policies" | "plans", rest)) if rest.ends_with("[]") => {
                let (list, parent) =
                    rest.rsplit_once('.').map_or((rest, ""), |(parent, list)| (list, parent));
                (
                    format!("{}.{parent}", section.split('.').next().unwrap_or_default()),
                    format!("{list}.{name}"),
                )
            }
            _ => (section.to_owned(), name.to_owned()),
        };
        if section != current || out.is_empty() {
            let title = match section.as_str() {
                "" => "Top level".to_owned(),
                "routes[]" => "`[[routes]]`".to_owned(),
                other => format!("`[{}]`", other.replace("[]", "")),
            };
            let _ = write!(out, "\n### {title}\n\n| key | type | default | meaning |\n|---|---|---|---|\n");
            current.clone_from(&section);
        }
        let default = match key.default {
            Default::Required => "required".to_owned(),
            Default::Unset => "–".to_owned(),
            Default::Is(text) => format!("`{text}`"),
        };
        let _ = writeln!(out, "| `{name}` | {} | {default} | {} |", key.kind, key.meaning);
    }
    out.push('\n');
    out
}

#[test]
fn document_has_every_key_as_the_table_says_it() {
    let path = repository(DOCUMENT);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(START).unwrap();
    let (inside, after) = rest.split_once(END).unwrap();
    if std::env::var_os("TOLLGATE_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{START}{}{END}{after}", reference())).unwrap();
        return;
    }
    assert_eq!(inside, reference(), "rewrite it with TOLLGATE_BLESS=1");
}

#[test]
fn the_worked_examples_of_limits_are_a_configuration() {
    let text = std::fs::read_to_string(repository("docs/rate-limiting.md")).unwrap();
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let issuer = "[issuers.app]\nalgorithms = [\"HS256\"]\nsecret = \"${JWT_SECRET}\"\n";
    let loaded = loaded(&format!("{example}{issuer}"));
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.spec.policies.len(), 7);
    crate::app::check(&loaded).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn the_worked_example_of_authentication_is_a_configuration() {
    let text = std::fs::read_to_string(repository("docs/authentication.md")).unwrap();
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let loaded = loaded(example);
    assert_eq!(loaded.warnings, []);
    assert_eq!((loaded.spec.issuers.len(), loaded.spec.routes.len()), (2, 5));
    crate::app::check(&loaded).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn the_worked_example_of_caching_is_a_configuration() {
    let text = std::fs::read_to_string(repository("docs/caching.md")).unwrap();
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let loaded = loaded(example);
    assert_eq!(loaded.warnings, []);
    let cached = loaded.spec.routes.iter().filter(|route| route.cache.is_some()).count();
    assert_eq!((loaded.spec.routes.len(), cached), (7, 4));
    crate::app::check(&loaded).unwrap_or_else(|errors| panic!("{errors}"));
}
