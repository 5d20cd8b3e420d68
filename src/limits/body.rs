//! What a request's body says about who is asking: one field of a JSON or form body, in one spelling. It reads no
//! sockets, and where two readers could understand a body differently it says that it cannot be read.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use icu_normalizer::properties::CanonicalCombiningClassMapBorrowed;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use serde_json::{Map, Value};

use crate::json::{MAX_DEPTH, parse_object};

/// Longest path of a field, in bytes.
pub const MAX_FIELD_PATH: usize = 128;

/// Where a field stands in a body: `email`, or `user.email` for a member of a nested object. In a form the whole
/// path is the field's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldPath {
    text: Box<str>,
    /// The names on the way, folded.
    folded: Box<[Box<str>]>,
}

impl FieldPath {
    /// The path written `text`; `None` when it is empty or too long, has an empty name, a name with white space,
    /// brackets or invisible characters, or more names than a body may nest objects.
    pub fn parse(text: &str) -> Option<Self> {
        let sound = |name: &str| {
            !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '[' || is_invisible(c))
        };
        let fits = text.len() <= MAX_FIELD_PATH && text.split('.').count() <= MAX_DEPTH;
        (fits && text.split('.').all(sound)).then(|| Self {
            text: text.into(),
            folded: text.split('.').map(|name| fold(name).into()).collect(),
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A body as far as it was understood.
#[derive(Debug)]
pub struct Body(Content);

#[derive(Debug)]
enum Content {
    Unreadable,
    Json(Map<String, Value>),
    Form(Vec<(String, String)>),
}

impl Body {
    /// A body that tells nothing: absent, too long, or not looked at.
    pub const UNREADABLE: Self = Self(Content::Unreadable);

    /// Whether a body of a request with these headers can be read at all, whatever is in it.
    pub fn may_be_read(headers: &HeaderMap) -> bool {
        kind(headers).is_some()
    }

    /// The whole body `bytes` of a request with these headers. Unreadable is what is compressed, of another type
    /// than JSON or a form, in another charset than UTF-8, or what two readers could understand differently.
    pub fn parse(headers: &HeaderMap, bytes: &[u8]) -> Self {
        let content = match kind(headers) {
            Some(Kind::Json) => parse_object(bytes).ok().map(Content::Json),
            Some(Kind::Form) => form(bytes).map(Content::Form),
            None => None,
        };
        Self(content.unwrap_or(Content::Unreadable))
    }

    /// The text of the field at `path` as every spelling of it reads ([`normalise`]); `None` where it is missing,
    /// not a text, or could be meant twice.
    pub fn value(&self, path: &FieldPath) -> Option<String> {
        let value = match &self.0 {
            Content::Unreadable => None,
            Content::Json(members) => json_text(members, path),
            Content::Form(fields) => form_text(fields, path),
        }?;
        // What was not UTF-8 is lost, so two values may look alike and one value like many.
        (!value.contains(char::REPLACEMENT_CHARACTER)).then(|| normalise(value))
    }
}

enum Kind {
    Json,
    Form,
}

fn kind(headers: &HeaderMap) -> Option<Kind> {
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return None;
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let text = types.next()?.to_str().ok()?;
    if types.next().is_some() {
        return None;
    }
    let mut parts = text.split(';');
    let essence = parts.next()?.trim().to_ascii_lowercase();
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let utf8 = || matches!(&*value.trim().trim_matches('"').to_ascii_lowercase(), "utf-8" | "utf8");
        if name.trim().eq_ignore_ascii_case("charset") && !utf8() {
            return None;
        }
    }
    match &*essence {
        "application/x-www-form-urlencoded" => Some(Kind::Form),
        "application/json" => Some(Kind::Json),
        other if other.starts_with("application/") && other.ends_with("+json") => Some(Kind::Json),
        _ => None,
    }
}

/// `None` where a reader that still parts fields at `;` would find others.
fn form(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let owned = |(name, value): (Cow<'_, str>, Cow<'_, str>)| (name.into_owned(), value.into_owned());
    (!bytes.contains(&b';')).then(|| form_urlencoded::parse(bytes).map(owned).collect())
}

fn json_text<'a>(members: &'a Map<String, Value>, path: &FieldPath) -> Option<&'a str> {
    let names = path.text.split('.').zip(&path.folded);
    let mut value = None;
    let mut members = Some(members);
    for (name, folded) in names {
        let object = members?;
        // Readers exist that take `Email` for `email`: then it depends on the reader who is meant.
        let alike = object.keys().filter(|key| fold(key) == **folded).count();
        value = if alike == 1 { object.get(name) } else { None };
        members = value.and_then(Value::as_object);
    }
    value?.as_str()
}

fn form_text<'a>(fields: &'a [(String, String)], path: &FieldPath) -> Option<&'a str> {
    // PHP reads `login.email`, `login email` and `login[email` as `login_email`.
    let php = |name: &str| fold(name).replace(['.', ' ', '['], "_");
    let wanted = php(&path.text);
    // `email[]` and `email[0]` are `email` to readers that make lists of them; others end a name at NUL.
    let listed = |name: &str| php(name.split(['[', '\0']).next().unwrap_or_default());
    let is_alike = |name: &str| listed(name) == wanted || php(name) == wanted;
    let mut alike = fields.iter().filter(|(name, _)| is_alike(name));
    let (name, value) = alike.next()?;
    (alike.next().is_none() && **name == *path.text).then_some(value)
}

/// One spelling for all that people, and lenient backends, take for the same: Unicode NFKD, lower case, without
/// accents, invisible characters and surrounding white space; in a mail address also without dots at the end of the
/// domain. It is good for comparing only: some that a backend tells apart are one here.
pub fn normalise(value: &str) -> String {
    let mut text = without_accents(fold(value));
    if text.matches('@').count() == 1 {
        text.truncate(text.trim_end_matches(|c: char| c == '.' || c.is_whitespace()).len());
    }
    text
}

fn fold(text: &str) -> String {
    const NFKC: ComposingNormalizerBorrowed<'_> = ComposingNormalizerBorrowed::new_nfkc();
    let plain = |c: u8| c.is_ascii_graphic() && !c.is_ascii_uppercase();
    if text.bytes().all(plain) {
        return text.to_owned();
    }
    // Lower case may need composing again, and composing may make what has a lower case.
    let lower: String =
        NFKC.normalize(text).chars().filter(|c| !is_invisible(*c)).flat_map(char::to_lowercase).collect();
    NFKC.normalize(&lower).trim().to_owned()
}

/// Letters as a database sees them whose collation ignores accents, as the default ones of `MySQL` do: they find
/// `ada` for `àda`, and `soren` for `søren`. `text` is folded.
fn without_accents(text: String) -> String {
    const NFKD: DecomposingNormalizerBorrowed<'_> = DecomposingNormalizerBorrowed::new_nfkd();
    const CLASSES: CanonicalCombiningClassMapBorrowed<'_> = CanonicalCombiningClassMapBorrowed::new();
    if text.is_ascii() {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    for c in NFKD.normalize(&text).chars().filter(|c| CLASSES.get_u8(*c) == 0) {
        // What has no decomposition, and yet sorts with these.
        match c {
            'ß' => plain.push_str("ss"),
            'æ' => plain.push_str("ae"),
            'œ' => plain.push_str("oe"),
            'ø' => plain.push('o'),
            'đ' | 'ð' => plain.push('d'),
            'ħ' => plain.push('h'),
            'ł' => plain.push('l'),
            'ŧ' => plain.push('t'),
            'ı' => plain.push('i'),
            'ς' => plain.push('σ'),
            other => plain.push(other),
        }
    }
    plain.trim().to_owned()
}

/// Control characters that are no white space, and characters without a shape of their own.
fn is_invisible(c: char) -> bool {
    (c.is_control() && !c.is_whitespace())
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(content_type: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        headers
    }

    fn read(content_type: &str, body: impl AsRef<[u8]>, path: &str) -> Option<String> {
        Body::parse(&headers(content_type), body.as_ref()).value(&FieldPath::parse(path).unwrap())
    }

    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded";

    #[test]
    fn a_field_reads_the_same_from_json_and_from_a_form() {
        for content_type in [JSON, "Application/JSON; charset=\"UTF-8\"", "application/vnd.api+json"] {
            let body = r#"{"password":"p","email":"Ada@Example.com"}"#;
            assert_eq!(
                read(content_type, body, "email").as_deref(),
                Some("ada@example.com"),
                "{content_type}"
            );
        }
        for content_type in [FORM, "APPLICATION/x-www-form-urlencoded ; charset=utf-8"] {
            let body = "password=p&email=Ada%40Example.com";
            assert_eq!(
                read(content_type, body, "email").as_deref(),
                Some("ada@example.com"),
                "{content_type}"
            );
        }
    }

    #[test]
    fn a_path_walks_nested_objects_and_is_one_name_in_a_form() {
        let body = r#"{"email":"x","user":{"email":"ada","name":{"email":"y"}}}"#;
        assert_eq!(read(JSON, body, "user.email").as_deref(), Some("ada"));
        assert_eq!(read(JSON, r#"{"user.email":"ada"}"#, "user.email"), None);
        assert_eq!(read(FORM, "user.email=ada", "user.email").as_deref(), Some("ada"));
    }

    #[test]
    fn every_spelling_of_an_address_is_one() {
        for spelling in [
            "ada@example.com",
            "ADA@EXAMPLE.COM",
            "  ada@example.com\t\n",
            "\u{a0}ada@example.com\u{2003}",
            "ada@example.com.",
            "ada@example.com. ",
            "ada@example.com..",
            "\u{feff}ada@example.com\u{200b}",
            "a\u{ad}da@exam\u{200d}ple.com\0",
            "\u{ff41}da@example.com",
            "ada\u{ff20}example.com",
            "ada\u{fe6b}example\u{ff0e}com",
            "\u{1d41a}\u{1d555}\u{1d4ea}@example.com",
            "ada@examp\u{2113}e.com",
            "\u{e0}da@example.com",
            "a\u{301}da@ex\u{e4}mpl\u{c9}.com",
            "\u{212b}da@example.com",
        ] {
            assert_eq!(normalise(spelling), "ada@example.com", "{spelling:?}");
        }
        assert_eq!(normalise("E\u{301}VA@x.org"), normalise("\u{e9}va@x.org"));
        assert_eq!(normalise("\u{3a3}"), normalise("\u{3c3}"));
        assert_eq!(normalise("S\u{d8}REN@stra\u{df}e.example"), "soren@strasse.example");
        assert_eq!(normalise("ada\u{b4}"), "ada");
        assert_ne!(normalise("\u{3b1}da@x.org"), normalise("ada@x.org"), "another script is somebody else");
        assert_ne!(normalise("ada@example.org"), normalise("ada@example.com"));
        assert_eq!(normalise("no.address."), "no.address.");
        assert_eq!(normalise("a@b@c."), "a@b@c.");
    }

    #[test]
    fn what_is_no_text_or_could_be_meant_twice_is_unreadable() {
        for body in [
            r#"{"email":["ada"]}"#,
            r#"{"email":{"a":"ada"}}"#,
            r#"{"email":1}"#,
            r#"{"email":true}"#,
            r#"{"email":null}"#,
            r#"{"mail":"ada"}"#,
            r#"{"email":"ada","email":"eve"}"#,
            r#"{"email":"ada","Email":"eve"}"#,
            r#"{"email":"ada","e\u00admail":"eve"}"#,
            r#"{"EMAIL":"ada"}"#,
            r#"{"x":{"a":1,"a":2},"email":"ada"}"#,
            r#"["email"]"#,
            r#""email""#,
            "email=ada",
            "",
            "{",
            "\u{feff}{\"email\":\"ada\"}",
            "{\"email\":\"ada\"}{}",
        ] {
            assert_eq!(read(JSON, body, "email"), None, "{body}");
        }
        for body in [
            "",
            "mail=ada",
            "email=ada&email=eve",
            "email=ada&email=ada",
            "email=ada&Email=eve",
            "email=ada&email[]=eve",
            "email[]=ada",
            "email[0]=ada",
            "email=ada&e%6dail=eve",
            "email=ada&+email=eve",
            "email=ada&x=1;email=eve",
            "email=ada&email\0x=eve",
            "email=%ff%fe",
            "{\"email\":\"ada\"}",
        ] {
            assert_eq!(read(FORM, body, "email"), None, "{body}");
        }
        for name in
            ["login.email", "login+email", "login%20email", "login[email", "login_email[]", "LOGIN.email"]
        {
            let body = format!("login_email=ada&{name}=eve");
            assert_eq!(read(FORM, &body, "login_email"), None, "{body}");
            assert_eq!(read(FORM, format!("{name}=eve"), "login_email"), None, "{name}");
        }
        assert_eq!(read(FORM, "login.email=ada&login_email=eve", "login.email"), None);
        assert_eq!(read(FORM, "login_email=ada&loginemail=eve", "login_email").as_deref(), Some("ada"));
        assert_eq!(read(JSON, b"{\"email\":\"\xff\"}", "email"), None);
        let deep = format!("{}{}", "{\"a\":".repeat(20), "}".repeat(20));
        assert_eq!(read(JSON, deep, "a"), None);
    }

    #[test]
    fn other_types_charsets_and_codings_are_unreadable() {
        let body = r#"{"email":"ada"}"#;
        for content_type in
            ["text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-16", "json", ""]
        {
            assert_eq!(read(content_type, body, "email"), None, "{content_type}");
        }
        let path = FieldPath::parse("email").unwrap();
        assert_eq!(Body::parse(&HeaderMap::new(), body.as_bytes()).value(&path), None);
        let mut twice = headers(JSON);
        twice.append(CONTENT_TYPE, FORM.parse().unwrap());
        assert_eq!(Body::parse(&twice, body.as_bytes()).value(&path), None);
        for (coding, readable) in [("gzip", false), ("identity", true), ("identity, br", false)] {
            let mut coded = headers(JSON);
            coded.insert(CONTENT_ENCODING, coding.parse().unwrap());
            assert_eq!(Body::parse(&coded, body.as_bytes()).value(&path).is_some(), readable, "{coding}");
        }
        assert_eq!(Body::UNREADABLE.value(&path), None);
    }

    #[test]
    fn paths_have_names_and_bounds() {
        assert_eq!(FieldPath::parse("user.email").unwrap().as_str(), "user.email");
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a[0]", "a\0", &"x".repeat(129), &"a.".repeat(16)] {
            assert_eq!(FieldPath::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(value in ".{0,40}") {
            let once = normalise(&value);
            prop_assert_eq!(normalise(&once), once);
        }

        #[test]
        fn no_body_breaks_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200), json: bool) {
            let _ = read(if json { JSON } else { FORM }, bytes, "a.b");
        }
    }
}
