//! Reads what policies may say about a request itself: key parts out of its head and body, and which answers count.
//! Everything else of a policy is read beside it.

use std::borrow::Cow;

use http::HeaderName;

use super::error::did_you_mean;
use super::reader::Reader;
use super::spec::{Count, KeyPart};
use super::value::{Leaf, Raw, Refused, Size};
use crate::limits::FieldPath;

impl Leaf for KeyPart {
    fn accepted() -> Cow<'static, str> {
        "ip, user, token, api_token, route, plan, caller, header:NAME, cookie:NAME, body:FIELD".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        const WORDS: [(&str, KeyPart); 7] = [
            ("ip", KeyPart::Ip),
            ("user", KeyPart::User),
            ("token", KeyPart::Token),
            ("api_token", KeyPart::ApiToken),
            ("route", KeyPart::Route),
            ("plan", KeyPart::Plan),
            ("caller", KeyPart::Caller),
        ];
        let text = raw.text.trim();
        if let Some((_, part)) = WORDS.into_iter().find(|(word, _)| *word == text) {
            return Ok(part);
        }
        let names = WORDS.iter().map(|(word, _)| *word);
        let unknown = || Refused::hint(did_you_mean(text, names));
        let Some((place, name)) = text.split_once(':') else { return Err(unknown()) };
        let token = HeaderName::from_bytes(name.as_bytes());
        match (place, token) {
            ("header", Ok(header)) => Ok(Self::Header(header)),
            ("cookie", Ok(_)) => Ok(Self::Cookie(name.into())),
            ("body", _) => FieldPath::parse(name).map(Self::Body).ok_or_else(Refused::default),
            _ => Err(Refused::default()),
        }
    }
}

/// The statuses that count where only failures do.
pub(super) fn failures(reader: &Reader<'_>) -> Option<Vec<u16>> {
    let statuses: Vec<u16> = reader.list("failure_statuses");
    for (index, status) in statuses.iter().enumerate() {
        if !(200..=599).contains(status) {
            reader.refuse_item("failure_statuses", index, "is no status of an answer; accepted: 200 to 599");
        }
    }
    match reader.get("count") {
        Count::Requests => {
            if reader.has("failure_statuses") {
                reader.refuse("failure_statuses", "has no effect; accepted: beside count = \"failures\"");
            }
            None
        }
        Count::Failures => {
            if statuses.is_empty() && !reader.reported("failure_statuses") {
                reader.refuse("failure_statuses", "is empty; accepted: a list of 200 to 599");
            }
            Some(statuses)
        }
    }
}

/// Longest body that is read for a policy; what pingora repeats of a body is bounded by 64 KiB, and the last piece
/// read may be as large as an HTTP/2 frame.
pub(super) fn body_peek(reader: &Reader<'_>) -> usize {
    let Size(size) = reader.get("body_peek");
    if !reader.reported("body_peek") && !(1_024..=49_152).contains(&size) {
        reader.refuse("body_peek", "is out of range; accepted: 1 KiB to 48 KiB");
    }
    usize::try_from(size).unwrap_or(49_152)
}
