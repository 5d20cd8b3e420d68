//! JSON pointers (RFC 6901) to a place inside an object.

use std::fmt;

use serde_json::Value;

use crate::json::MAX_DEPTH;

/// Longest pointer, in bytes.
pub const MAX_POINTER: usize = 256;

/// Where a value stands in a JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Box<str>);

impl Pointer {
    /// The pointer written `text`; `None` when it is no pointer, points to the whole document, is too long, or goes
    /// deeper than a document may.
    pub fn parse(text: &str) -> Option<Self> {
        let names = text.strip_prefix('/')?;
        let escapes_are_known =
            names.split('~').skip(1).all(|after| after.starts_with('0') || after.starts_with('1'));
        let fits = text.len() <= MAX_POINTER && names.split('/').count() <= MAX_DEPTH;
        (escapes_are_known && fits).then(|| Self(text.into()))
    }

    /// What stands there; `None` when nothing does.
    pub fn find<'v>(&self, document: &'v Value) -> Option<&'v Value> {
        document.pointer(&self.0)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_examples_of_rfc_6901_hold() {
        let document = json!({
            "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8
        });
        for (text, value) in [
            ("/foo", json!(["bar", "baz"])),
            ("/foo/0", json!("bar")),
            ("/", json!(0)),
            ("/a~1b", json!(1)),
            ("/c%d", json!(2)),
            ("/e^f", json!(3)),
            ("/g|h", json!(4)),
            ("/i\\j", json!(5)),
            ("/k\"l", json!(6)),
            ("/ ", json!(7)),
            ("/m~0n", json!(8)),
        ] {
            assert_eq!(Pointer::parse(text).unwrap().find(&document), Some(&value), "{text}");
        }
        for text in ["/foo/2", "/foo/-", "/foo/00", "/foo/+0", "/foo/0/x", "/fo", "/foo/", "/a/b", "/m~01n"] {
            assert_eq!(Pointer::parse(text).unwrap().find(&document), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        let (deep, long) = ("/a".repeat(MAX_DEPTH + 1), format!("/{}", "a".repeat(MAX_POINTER)));
        for text in ["", "a", "#/a", "/~", "/a~", "/~2", "/~a", deep.as_str(), long.as_str()] {
            assert_eq!(Pointer::parse(text), None, "{text}");
        }
        assert!(Pointer::parse(&"/a".repeat(MAX_DEPTH)).is_some());
    }
}
