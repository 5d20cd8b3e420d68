//! Reads typed values out of one table of the file and collects every mistake on the way. Absent keys take the
//! default of the table of keys, so what the documentation says is what happens.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use super::keys::{self, Default as KeyDefault};
use super::tree::{self, Node, Table, Value};
use super::value::{Kind, Leaf, Raw, is_name};
use super::variables::{Variables, expand};

/// A mistake or a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) at: usize,
    pub(super) path: String,
    pub(super) message: String,
    /// A variable of this process is missing: says nothing about another environment.
    pub(super) is_variable: bool,
}

/// What is shared by all readers of one file.
pub(super) struct Context<'a> {
    pub(super) variables: &'a Variables,
    /// Where relative file names start.
    pub(super) directory: &'a Path,
    pub(super) development: bool,
    pub(super) found: RefCell<Vec<Found>>,
    pub(super) warnings: RefCell<Vec<Found>>,
    #[cfg(test)]
    pub(super) asked: RefCell<std::collections::BTreeSet<String>>,
}

/// One table of the file, present or not.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    cx: &'a Context<'a>,
    table: Option<&'a Table>,
    at: usize,
    path: String,
    pattern: String,
}

impl<'a> Reader<'a> {
    pub(super) fn root(cx: &'a Context<'a>, table: &'a Table) -> Self {
        Self { cx, table: Some(table), at: 0, path: String::new(), pattern: String::new() }
    }

    pub(super) fn context(&self) -> &'a Context<'a> {
        self.cx
    }

    /// Whether the file has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.get(key).is_some())
    }

    /// The value of `key`; `None` when it is absent without a default, empty, or wrong (and then reported).
    pub(super) fn opt<T: Leaf>(&self, key: &str) -> Option<T> {
        let node = self.node(key)?;
        let path = join(&self.path, key);
        match &node.value {
            Value::Text(_) => {
                let (raw, _) = self.raw::<T>(&path, &node)?;
                if raw.text.is_empty() { None } else { self.decode(&path, &node) }
            }
            _ => self.decode(&path, &node),
        }
    }

    /// The value of `key`, or `T::default()` when it is wrong (and then reported).
    pub(super) fn get<T: Leaf + Default>(&self, key: &str) -> T {
        self.node(key).and_then(|node| self.decode(&join(&self.path, key), &node)).unwrap_or_default()
    }

    /// Like [`Self::get`], within bounds.
    pub(super) fn within<T: Leaf + Default + PartialOrd + Display>(
        &self,
        key: &str,
        bounds: RangeInclusive<T>,
    ) -> T {
        match self.opt::<T>(key) {
            Some(value) if bounds.contains(&value) => value,
            Some(_) => {
                self.refuse(
                    key,
                    format!("is out of range; accepted: {} to {}", bounds.start(), bounds.end()),
                );
                T::default()
            }
            None => T::default(),
        }
    }

    /// A duration within bounds; the default of the key when absent.
    pub(super) fn duration(
        &self,
        key: &str,
        bounds: RangeInclusive<std::time::Duration>,
    ) -> std::time::Duration {
        let value = self.get::<std::time::Duration>(key);
        if self.reported(key) || bounds.contains(&value) {
            return value;
        }
        self.refuse(
            key,
            format!("is out of range; accepted: {} to {}", spelled(*bounds.start()), spelled(*bounds.end())),
        );
        value
    }

    /// The value of a key that must be given.
    pub(super) fn required<T: Leaf>(&self, key: &str) -> Option<T> {
        let Some(node) = self.node(key) else {
            self.refuse(key, format!("is missing; accepted: {}", T::accepted()));
            return None;
        };
        self.decode(&join(&self.path, key), &node)
    }

    /// Whether `key` is given as one string, where a list would be accepted too.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.node(key).is_some_and(|node| matches!(node.value, Value::Text(_)))
    }

    /// A list: an array, or one string with commas. Empty when absent without a default.
    pub(super) fn list<T: Leaf>(&self, key: &str) -> Vec<T> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let path = join(&self.path, key);
        match &node.value {
            Value::Array(items) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| self.decode(&format!("{path}[{index}]"), item))
                .collect(),
            Value::Text(_) => {
                let Some((raw, shown)) = self.raw::<T>(&path, &node) else { return Vec::new() };
                raw.text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .filter_map(|item| {
                        let raw = Raw { kind: Kind::Text, text: item.to_owned() };
                        self.typed(&path, node.at, &raw, &shown)
                    })
                    .collect()
            }
            other => {
                let message = format!(
                    "{} is not accepted; accepted: a list, or one string with commas, of {}",
                    other.describe(),
                    T::accepted()
                );
                self.push(node.at, path, message);
                Vec::new()
            }
        }
    }

    /// A list that must be given and hold something.
    pub(super) fn required_list<T: Leaf>(&self, key: &str) -> Vec<T> {
        let list = self.list(key);
        if list.is_empty() && !self.reported(key) {
            let what = if self.has(key) { "empty" } else { "missing" };
            self.refuse(key, format!("is {what}; accepted: a list of {}", T::accepted()));
        }
        list
    }

    /// The table `key`; an absent one reads as all defaults.
    pub(super) fn section(&self, key: &str) -> Self {
        self.opt_section(key).unwrap_or_else(|| Self {
            cx: self.cx,
            table: None,
            at: self.at,
            path: join(&self.path, key),
            pattern: join(&self.pattern, key),
        })
    }

    /// The table `key` if the file has it.
    pub(super) fn opt_section(&self, key: &str) -> Option<Self> {
        let entry = self.table?.get(key)?;
        self.child(&entry.node, entry.key_at, join(&self.path, key), join(&self.pattern, key))
    }

    /// The tables below `key`, each with the name it was given.
    pub(super) fn named(&self, key: &str, placeholder: &str) -> Vec<(Box<str>, Self)> {
        self.named_by(key, placeholder, is_name, "1 to 64 letters, digits, \"-\", \"_\" and \".\"")
    }

    /// Like [`Self::named`], for names that are `sound`: made of what `rule` says.
    pub(super) fn named_by(
        &self,
        key: &str,
        placeholder: &str,
        sound: fn(&str) -> bool,
        rule: &str,
    ) -> Vec<(Box<str>, Self)> {
        let section = self.section(key);
        let pattern = join(&section.pattern, placeholder);
        let Some(table) = section.table else { return Vec::new() };
        table
            .iter()
            .filter_map(|entry| {
                let path = join(&section.path, &entry.key);
                if !sound(&entry.key) {
                    self.push(entry.key_at, path.clone(), format!("a name is made of {rule}"));
                }
                let reader = self.child(&entry.node, entry.key_at, path, pattern.clone())?;
                Some((entry.key.as_str().into(), reader))
            })
            .collect()
    }

    /// The names declared below `key`, even of tables that are otherwise wrong.
    pub(super) fn names(&self, key: &str) -> Vec<&'a str> {
        match self.table.and_then(|table| table.get(key)).map(|entry| &entry.node.value) {
            Some(Value::Table(table)) => table.iter().map(|entry| entry.key.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    /// The array of tables `key`.
    pub(super) fn tables(&self, key: &str) -> Vec<Self> {
        let Some(entry) = self.table.and_then(|table| table.get(key)) else { return Vec::new() };
        let path = join(&self.path, key);
        let Value::Array(items) = &entry.node.value else {
            let message =
                format!("{} is not accepted; accepted: a list of tables", entry.node.value.describe());
            self.push(entry.node.at, path, message);
            return Vec::new();
        };
        let pattern = format!("{}[]", join(&self.pattern, key));
        items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                self.child(item, item.at, format!("{path}[{index}]"), pattern.clone())
            })
            .collect()
    }

    /// A table of free keys with values of one type.
    pub(super) fn map<T: Leaf>(&self, key: &str, placeholder: &str) -> Vec<(Box<str>, T)> {
        let section = self.section(key);
        self.note(&join(&section.pattern, placeholder));
        let Some(table) = section.table else { return Vec::new() };
        table
            .iter()
            .filter_map(|entry| {
                let value = self.decode(&join(&section.path, &entry.key), &entry.node)?;
                Some((entry.key.as_str().into(), value))
            })
            .collect()
    }

    /// Reports a mistake at `key` (at the table itself when it is absent).
    pub(super) fn refuse(&self, key: &str, message: impl Into<String>) {
        self.push(self.at_key(key), join(&self.path, key), message.into());
    }

    /// Like [`Self::refuse`] for one item of a list.
    pub(super) fn refuse_item(&self, key: &str, index: usize, message: impl Into<String>) {
        let node = self.table.and_then(|table| table.get(key)).map(|entry| &entry.node);
        let item = match node.map(|node| &node.value) {
            Some(Value::Array(items)) => items.get(index),
            _ => None,
        };
        match item {
            Some(item) => self.push(item.at, format!("{}[{index}]", join(&self.path, key)), message.into()),
            None => self.refuse(key, message),
        }
    }

    /// Like [`Self::refuse`] for one key of the table `table`.
    pub(super) fn refuse_below(&self, table: &str, key: &str, message: impl Into<String>) {
        self.section(table).refuse(key, message);
    }

    /// Remarks on something that is allowed and probably not meant.
    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        self.cx.warnings.borrow_mut().push(Found {
            at: self.at_key(key),
            path: join(&self.path, key),
            message: message.into(),
            is_variable: false,
        });
    }

    /// Whether a mistake was reported at `key` or below it.
    pub(super) fn reported(&self, key: &str) -> bool {
        let path = join(&self.path, key);
        self.cx.found.borrow().iter().any(|found| {
            found
                .path
                .strip_prefix(path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    fn at_key(&self, key: &str) -> usize {
        if key.is_empty() {
            return self.at;
        }
        self.table.and_then(|table| table.get(key)).map_or(self.at, |entry| match entry.node.value {
            // A table written as several headers has no place of its own.
            Value::Table(_) => entry.key_at,
            _ => entry.node.at,
        })
    }

    fn child(&self, node: &'a Node, at: usize, path: String, pattern: String) -> Option<Self> {
        match &node.value {
            Value::Table(table) => Some(Self { cx: self.cx, table: Some(table), at, path, pattern }),
            other => {
                self.push(node.at, path, format!("{} is not accepted; accepted: a table", other.describe()));
                None
            }
        }
    }

    fn node(&self, key: &str) -> Option<Node> {
        let pattern = join(&self.pattern, key);
        self.note(&pattern);
        if let Some(entry) = self.table.and_then(|table| table.get(key)) {
            return Some(entry.node.clone());
        }
        match keys::find(&pattern)?.default {
            KeyDefault::Is(text) => tree::parse_value(text, self.at),
            KeyDefault::Required | KeyDefault::Unset => None,
        }
    }

    #[cfg(test)]
    fn note(&self, pattern: &str) {
        self.cx.asked.borrow_mut().insert(pattern.to_owned());
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)]
    fn note(&self, _pattern: &str) {}

    fn decode<T: Leaf>(&self, path: &str, node: &Node) -> Option<T> {
        let (raw, shown) = self.raw::<T>(path, node)?;
        self.typed(path, node.at, &raw, &shown)
    }

    fn typed<T: Leaf>(&self, path: &str, at: usize, raw: &Raw, shown: &str) -> Option<T> {
        match T::decode(raw) {
            Ok(value) => Some(value),
            Err(refused) => {
                let message = format!("{shown} is not accepted; accepted: {}{}", T::accepted(), refused.hint);
                self.push(at, path.to_owned(), message);
                None
            }
        }
    }

    /// The scalar with its variables filled in, and how a message may show it.
    fn raw<T: Leaf>(&self, path: &str, node: &Node) -> Option<(Raw, String)> {
        let (kind, text) = match &node.value {
            Value::Text(text) => match expand(text, self.cx.variables) {
                Ok(expanded) => {
                    let shown = match (T::SECRET, expanded.from_environment) {
                        (true, _) => "this value".to_owned(),
                        (false, true) => format!("{text:?}, as the environment fills it in,"),
                        (false, false) => format!("{text:?}"),
                    };
                    return Some((Raw { kind: Kind::Text, text: expanded.text.into_owned() }, shown));
                }
                Err(error) => {
                    self.cx.found.borrow_mut().push(Found {
                        at: node.at,
                        path: path.to_owned(),
                        message: error.to_string(),
                        is_variable: true,
                    });
                    return None;
                }
            },
            Value::Integer(number) => (Kind::Integer, number.to_string()),
            Value::Float(number) => (Kind::Float, number.to_string()),
            Value::Bool(flag) => (Kind::Bool, flag.to_string()),
            other => {
                let message = format!("{} is not accepted; accepted: {}", other.describe(), T::accepted());
                self.push(node.at, path.to_owned(), message);
                return None;
            }
        };
        let shown = if T::SECRET { "this value".to_owned() } else { text.clone() };
        Some((Raw { kind, text }, shown))
    }

    fn push(&self, at: usize, path: String, message: String) {
        let found = Found { at, path, message, is_variable: false };
        let mut all = self.cx.found.borrow_mut();
        if !all.contains(&found) {
            all.push(found);
        }
    }
}

/// Whole days as such: `humantime` makes years of 365.25 days of them.
fn spelled(duration: std::time::Duration) -> String {
    const DAY: u64 = 86_400;
    match (duration.as_secs() / DAY, duration.as_secs() % DAY, duration.subsec_nanos()) {
        (days @ 2.., 0, 0) => format!("{days}days"),
        _ => humantime::format_duration(duration).to_string(),
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    match (path, key) {
        ("", key) => key.to_owned(),
        (path, "") => path.to_owned(),
        (path, key) => format!("{path}.{key}"),
    }
}
