//! The form of a signed token (RFC 7515 compact serialisation) and its header, read before any cryptography.
//!
//! It trusts nothing and judges no claim: a [`Parsed`] token is merely well formed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::refused::Refused;
use crate::json::parse_object;

/// Longest `kid`, in bytes.
pub const MAX_KID_BYTES: usize = 256;

/// Header members that name a key, fetch one, change how the token is read or encrypt it. None is honoured,
/// and a token that carries one hopes for a careless verifier (RFC 8725 sections 3.5 and 3.10).
const NEVER_HONOURED: [&str; 9] = ["crit", "b64", "jwk", "jku", "x5u", "x5c", "enc", "zip", "epk"];

/// What a signature is checked by, read from a compact token of any payload.
#[derive(Debug)]
pub struct Signed<'t> {
    /// The algorithm the header names.
    pub algorithm: Algorithm,
    /// The key identifier the header names.
    pub kid: Option<Box<str>>,
    /// The bytes the signature is over: `header.payload`.
    pub signing_input: &'t str,
    /// The signature in canonical base64url.
    pub signature: &'t str,
}

impl<'t> Signed<'t> {
    /// Reads `token`, which may be at most `max_bytes` long, and gives its payload beside.
    pub(super) fn read(token: &'t str, max_bytes: usize) -> Result<(Self, Vec<u8>), Refused> {
        let parts = Parts::split(token, max_bytes)?;
        let header = Header::read(&parse_object(&decode(parts.header)?)?)?;
        let payload = decode(parts.payload)?;
        if decode(parts.signature)?.is_empty() {
            return Err(Refused::Malformed);
        }
        let Header { algorithm, kid } = header;
        Ok((Self { algorithm, kid, signing_input: parts.signing_input, signature: parts.signature }, payload))
    }
}

/// A well-formed token, its claims not to be believed yet.
#[derive(Debug)]
pub struct Parsed<'t> {
    /// Header and signature.
    pub signed: Signed<'t>,
    /// The claims.
    pub claims: Map<String, Value>,
}

impl<'t> Parsed<'t> {
    /// Reads `token`, which may be at most `max_bytes` long.
    pub fn read(token: &'t str, max_bytes: usize) -> Result<Self, Refused> {
        let (signed, payload) = Signed::read(token, max_bytes)?;
        Ok(Self { signed, claims: parse_object(&payload)? })
    }
}

/// The three parts of a compact token, still encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'t> {
    pub(super) header: &'t str,
    pub(super) payload: &'t str,
    pub(super) signature: &'t str,
    pub(super) signing_input: &'t str,
}

impl<'t> Parts<'t> {
    pub(super) fn split(token: &'t str, max_bytes: usize) -> Result<Self, Refused> {
        if token.len() > max_bytes {
            return Err(Refused::TooLong);
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, payload) = signing_input.split_once('.').ok_or(Refused::Malformed)?;
        if payload.contains('.') {
            return Err(Refused::Malformed);
        }
        Ok(Self { header, payload, signature, signing_input })
    }
}

/// Canonical base64url without padding (RFC 7515 section 2): one text for one byte string.
pub(super) fn decode(part: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)
}

struct Header {
    algorithm: Algorithm,
    kid: Option<Box<str>>,
}

impl Header {
    fn read(members: &Map<String, Value>) -> Result<Self, Refused> {
        if NEVER_HONOURED.iter().any(|name| members.contains_key(*name)) {
            return Err(Refused::HeaderNotAllowed);
        }
        let algorithm = match members.get("alg") {
            Some(Value::String(name)) => Algorithm::from_name(name).ok_or(Refused::AlgorithmNotAllowed)?,
            _ => return Err(Refused::Malformed),
        };
        let kid = match members.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= MAX_KID_BYTES => Some(kid.as_str().into()),
            Some(_) => return Err(Refused::Malformed),
        };
        match members.get("typ") {
            None => {}
            Some(Value::String(typ)) if is_token_type(typ) => {}
            Some(_) => return Err(Refused::HeaderNotAllowed),
        }
        Ok(Self { algorithm, kid })
    }
}

/// RFC 7519 section 5.1 and RFC 9068 section 2.1; `application/` may be left out (RFC 7515 section 4.1.9).
fn is_token_type(typ: &str) -> bool {
    ["JWT", "at+jwt", "application/jwt", "application/at+jwt"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(typ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b64(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn read(header: &str, claims: &str) -> Result<Algorithm, Refused> {
        let token = format!("{}.{}.c2ln", b64(header), b64(claims));
        Parsed::read(&token, 8192).map(|parsed| parsed.signed.algorithm)
    }

    #[test]
    fn ordinary_headers_are_read() {
        for header in [
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"JWT"}"#,
            r#"{"typ":"jwt","alg":"HS256","kid":"a/b"}"#,
            r#"{"typ":"at+JWT","alg":"HS256","x5t":"x","unknown":[1]}"#,
        ] {
            assert_eq!(read(header, "{}"), Ok(Algorithm::HS256), "{header}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        use Refused::{AlgorithmNotAllowed, DuplicateMember, HeaderNotAllowed, Malformed, TooDeep, TooLong};
        let long_kid = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(257));
        let huge_kid = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(1 << 20));
        let deep = format!(r#"{{"alg":"HS256","x":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        for (header, reason) in [
            (r#"{"alg":"none"}"#, AlgorithmNotAllowed),
            (r#"{"alg":"None"}"#, AlgorithmNotAllowed),
            (r#"{"alg":"NONE"}"#, AlgorithmNotAllowed),
            (r#"{"alg":"nOnE"}"#, AlgorithmNotAllowed),
            (r#"{"alg":""}"#, AlgorithmNotAllowed),
            (r#"{"alg":"hs256"}"#, AlgorithmNotAllowed),
            (r#"{"alg":"HS256\u0000"}"#, AlgorithmNotAllowed),
            (r#"{"alg":"ES256K"}"#, AlgorithmNotAllowed),
            (r#"{"alg":"RSA-OAEP"}"#, AlgorithmNotAllowed),
            (r#"{"typ":"JWT"}"#, Malformed),
            (r#"{"alg":null}"#, Malformed),
            (r#"{"alg":256}"#, Malformed),
            (r#"{"alg":["HS256"]}"#, Malformed),
            (r#"{"ALG":"HS256"}"#, Malformed),
            (r#"{"alg":"none","alg":"HS256"}"#, DuplicateMember),
            (r#"{"alg":"HS256","kid":"a","kid":"b"}"#, DuplicateMember),
            (r#"{"alg":"HS256","kid":1}"#, Malformed),
            (r#"{"alg":"HS256","kid":null}"#, Malformed),
            (r#"{"alg":"HS256","crit":["exp"],"exp":1}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","crit":[]}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","b64":false}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","b64":true}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","jku":"https://evil/"}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","x5u":"https://evil/"}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","x5c":["MII"]}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","zip":"DEF"}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","enc":"A128GCM"}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","typ":"JWE"}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","typ":"secevent+jwt"}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256","typ":1}"#, HeaderNotAllowed),
            (r#"{"alg":"HS256"} x"#, Malformed),
            ("[]", Malformed),
            ("", Malformed),
            (&long_kid, Malformed),
            (&huge_kid, TooLong),
            (&deep, TooDeep),
        ] {
            let start = header.get(..header.len().min(60)).unwrap_or(header);
            assert_eq!(read(header, "{}"), Err(reason), "{start}");
        }
    }

    #[test]
    fn hostile_claims_are_refused() {
        for (claims, reason) in [
            (r#"{"sub":"a","sub":"b"}"#, Refused::DuplicateMember),
            (r#"{"a":{"b":1,"b":2}}"#, Refused::DuplicateMember),
            ("[]", Refused::Malformed),
            ("\"x\"", Refused::Malformed),
            ("", Refused::Malformed),
            ("{\"exp\":1e400}", Refused::Malformed),
        ] {
            assert_eq!(read(r#"{"alg":"HS256"}"#, claims), Err(reason), "{claims}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let header = b64(r#"{"alg":"HS256"}"#);
        let claims = b64(r#"{"sub":"1"}"#);
        let good = format!("{header}.{claims}.c2ln");
        assert!(Parsed::read(&good, 8192).is_ok());
        for token in [
            String::new(),
            ".".into(),
            "..".into(),
            "...".into(),
            header.clone(),
            format!("{header}.{claims}"),
            format!("{header}.{claims}."),
            format!(".{claims}.c2ln"),
            format!("{header}..c2ln"),
            format!("{good}."),
            format!(".{good}"),
            format!("{good}.c2ln"),
            format!("{good}.c2ln.c2ln"),
            format!("{good}="),
            format!("{header}.{claims}.c2lnYQ=="),
            format!("{header}.{claims}.c2lnYR"),
            format!("{header}.{claims}.c2l+"),
            format!("{header}.{claims}.c2l/"),
            format!("{header}.{claims}.c2l"),
            format!("{header}.{claims}.c"),
            format!(" {good}"),
            format!("{good} "),
            format!("{good}\n"),
            format!("{header}.{claims} .c2ln"),
            format!("{header}.{claims}\0.c2ln"),
            format!("{header}.{claims}.c2lné"),
        ] {
            assert_eq!(Parsed::read(&token, 8192).err(), Some(Refused::Malformed), "{token:?}");
        }
        let long = format!("{header}.{}.c2ln", "A".repeat(100_000));
        assert_eq!(Parsed::read(&long, 8192).err(), Some(Refused::TooLong));
    }
}
