//! The parsed file: plain values that remember where they stood, and the merge of an environment's overlay. It
//! knows TOML's types and nothing of what the keys mean.

use toml::de::{DeTable, DeValue};

/// A value and the byte offset at which it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) value: Value,
}

/// TOML's types; numbers beyond 64 bits and dates are kept only to be refused.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Unusable(&'static str),
    Array(Vec<Node>),
    Table(Table),
}

/// Keys in the order of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Vec<Entry>);

/// One `key = value`.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: usize,
    pub(super) node: Node,
}

/// A syntax error: where, and what the parser says of it (never the text itself).
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) at: usize,
    pub(super) message: String,
}

/// Parses a whole file.
pub(super) fn parse(text: &str) -> Result<Table, Vec<SyntaxError>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table(document.get_ref()));
    }
    let mut errors: Vec<SyntaxError> = errors
        .into_iter()
        .map(|error| SyntaxError {
            at: error.span().map_or(0, |span| span.start),
            message: error.message().to_owned(),
        })
        .collect();
    errors.sort_by_key(|error| error.at);
    errors.dedup_by_key(|error| error.at);
    Err(errors)
}

/// Parses one value that stands for the offset `at` (a default from the table of keys).
pub(super) fn parse_value(text: &str, at: usize) -> Option<Node> {
    let parsed = DeValue::parse(text).ok()?;
    let mut node = Node { at, value: value(parsed.get_ref()) };
    node.move_to(at);
    Some(node)
}

fn table(source: &DeTable<'_>) -> Table {
    let mut entries: Vec<Entry> = source
        .iter()
        .map(|(key, item)| Entry {
            key: key.get_ref().to_string(),
            key_at: key.span().start,
            node: Node { at: item.span().start, value: value(item.get_ref()) },
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_at);
    Table(entries)
}

fn value(source: &DeValue<'_>) -> Value {
    match source {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Unusable("a number beyond 64 bits"), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Value::Unusable("a malformed number"), Value::Float)
        }
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(_) => Value::Unusable("a date"),
        DeValue::Array(items) => Value::Array(
            items.iter().map(|item| Node { at: item.span().start, value: value(item.get_ref()) }).collect(),
        ),
        DeValue::Table(entries) => Value::Table(table(entries)),
    }
}

impl Node {
    fn move_to(&mut self, at: usize) {
        self.at = at;
        match &mut self.value {
            Value::Array(items) => items.iter_mut().for_each(|item| item.move_to(at)),
            Value::Table(table) => table.0.iter_mut().for_each(|entry| {
                entry.key_at = at;
                entry.node.move_to(at);
            }),
            _ => {}
        }
    }

    /// Calls `visit` with every offset in this value.
    pub(super) fn offsets(&self, visit: &mut impl FnMut(usize)) {
        visit(self.at);
        match &self.value {
            Value::Array(items) => items.iter().for_each(|item| item.offsets(visit)),
            Value::Table(table) => table.iter().for_each(|entry| {
                visit(entry.key_at);
                entry.node.offsets(visit);
            }),
            _ => {}
        }
    }
}

impl Value {
    /// The type, for messages.
    pub(super) const fn describe(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Unusable(what) => what,
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Table {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }

    /// A table of one key that stands at the start of the file.
    pub(super) fn single(key: &str, value: Value) -> Self {
        Self(vec![Entry { key: key.to_owned(), key_at: 0, node: Node { at: 0, value } }])
    }

    /// The same table, every part of it placed at the start of the file.
    pub(super) fn at_start(mut self) -> Self {
        for entry in &mut self.0 {
            entry.key_at = 0;
            entry.node.move_to(0);
        }
        self
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Entry> {
        let index = self.0.iter().position(|entry| entry.key == key)?;
        Some(self.0.remove(index))
    }

    /// Lays `over` on top: tables are merged key by key, everything else is replaced.
    pub(super) fn overlay(&mut self, over: &Table) {
        for entry in &over.0 {
            match self.0.iter_mut().find(|mine| mine.key == entry.key) {
                Some(mine) => match (&mut mine.node.value, &entry.node.value) {
                    (Value::Table(base), Value::Table(top)) => base.overlay(top),
                    _ => *mine = entry.clone(),
                },
                None => self.0.push(entry.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_merges_tables_and_replaces_arrays() {
        let mut base = parse("[a]\nx = 1\ny = [1, 2]\n[a.b]\nz = 1").unwrap();
        base.overlay(&parse("[a]\ny = [3]\n[a.b]\nw = 2\n[c]\nv = 3").unwrap());
        let Value::Table(a) = &base.get("a").unwrap().node.value else { panic!() };
        assert!(matches!(a.get("x").unwrap().node.value, Value::Integer(1)));
        assert!(matches!(&a.get("y").unwrap().node.value, Value::Array(items) if items.len() == 1));
        let Value::Table(b) = &a.get("b").unwrap().node.value else { panic!() };
        assert_eq!(b.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["z", "w"]);
        assert!(base.get("c").is_some());
    }

    #[test]
    fn every_syntax_error_has_its_place() {
        let errors = parse("a = 1\nb = \nc = 2\nd = [\n").unwrap_err();
        assert!(errors.len() >= 2, "{errors:?}");
        assert_eq!(errors[0].at, 10);
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
        let _ = parse(&format!("{} = 1", "a.".repeat(20_000) + "a"));
    }
}
