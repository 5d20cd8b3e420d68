//! Walks a whole file: the keys that no reader knows, and where each key stands. It reads no values.

use std::collections::BTreeMap;

use super::error::did_you_mean;
use super::keys;
use super::reader::{Context, Found, join};
use super::tree::{Table, Value};

/// Reports every key below `table` that no reader knows.
pub(super) fn unknown_keys(cx: &Context<'_>, table: &Table, path: &str, pattern: &str) {
    let children = keys::children(pattern);
    let free = children.keys().find(|name| name.starts_with('<'));
    for entry in table.iter() {
        let path = join(path, &entry.key);
        let name = free.copied().unwrap_or(entry.key.as_str());
        let Some(child) = children.get(name) else {
            let names = children.keys().copied();
            let message = match did_you_mean(&entry.key, names.clone()) {
                hint if hint.is_empty() => {
                    format!("is not a known key; accepted: {}", names.collect::<Vec<_>>().join(", "))
                }
                hint => format!("is not a known key{hint}"),
            };
            cx.found.borrow_mut().push(Found { at: entry.key_at, path, message, is_variable: false });
            continue;
        };
        let pattern = join(pattern, name);
        match (&entry.node.value, child) {
            (Value::Table(table), keys::Child::Table) => unknown_keys(cx, table, &path, &pattern),
            (Value::Array(items), keys::Child::Tables) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Table(table) = &item.value {
                        unknown_keys(cx, table, &format!("{path}[{index}]"), &format!("{pattern}[]"));
                    }
                }
            }
            _ => {}
        }
    }
}

/// Where every key of the file stands, by path.
pub(super) fn places(table: &Table, path: &str, into: &mut BTreeMap<String, usize>) {
    for entry in table.iter() {
        let path = join(path, &entry.key);
        match &entry.node.value {
            Value::Table(table) => {
                places(table, &path, into);
                into.insert(path, entry.key_at);
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    if let Value::Table(table) = &item.value {
                        places(table, &path, into);
                    }
                    into.insert(path, item.at);
                }
                into.insert(path, entry.node.at);
            }
            _ => {
                into.insert(path, entry.node.at);
            }
        }
    }
}
