//! Reads `[identity]` and `[issuers.*]`: where tokens come from and which keys verify them. It proves that each
//! key suits its algorithms and leaves verification to the identity floor.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderName, Uri, header};
use jsonwebtoken::DecodingKey;

use super::reader::Reader;
use super::spec::{
    Algorithm, ClaimNames, Identity, Issuer, IssuerKey, Jwks, JwksPlace, KeyMaterial, TokenSource,
};
use super::tree::{self, Table};
use super::value::{Kind, Leaf, Raw, Refused, Secret, Size};
use crate::header_names;
use crate::identity::jwk::read_set;
use crate::{identity, jwks};

const MAX_KEY_FILE: u64 = 64 << 10;

impl Leaf for TokenSource {
    fn accepted() -> Cow<'static, str> {
        "bearer, cookie:NAME, header:NAME, query:NAME".into()
    }

    fn decode(raw: &Raw) -> Result<Self, Refused> {
        if raw.kind != Kind::Text {
            return Err(Refused::default());
        }
        if raw.text == "bearer" {
            return Ok(Self::Bearer);
        }
        let (place, name) = raw.text.split_once(':').ok_or_else(Refused::default)?;
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Refused::default())?;
        match place {
            "cookie" => Ok(Self::Cookie(name.into())),
            "header" if header == header::AUTHORIZATION => Err(Refused::hint("; bearer reads Authorization")),
            "header" => Ok(Self::Header(header)),
            "query" => Ok(Self::Query(name.into())),
            _ => Err(Refused::default()),
        }
    }
}

pub(super) fn identity(root: &Reader<'_>) -> Identity {
    let reader = root.section("identity");
    let headers = reader.section("headers");
    let token_from: Vec<TokenSource> = reader.list("token_from");
    if token_from.is_empty() && !reader.reported("token_from") {
        reader.refuse("token_from", format!("is empty; accepted: {}", TokenSource::accepted()));
    }
    if token_from.iter().any(|source| matches!(source, TokenSource::Query(_))) {
        reader.warn("token_from", "tokens in a query end up in the logs of proxies and backends");
    }
    let Size(max_token_size) = reader.get("max_token_size");
    if !reader.reported("max_token_size") && !(256..=65_536).contains(&max_token_size) {
        reader.refuse("max_token_size", "is out of range; accepted: 256 B to 64 KiB");
    }
    let identity = Identity {
        token_from,
        max_token_size,
        verified_cache: reader.within("verified_cache", 0..=10_000_000),
        revocation_lifetime: reader.duration(
            "revocation_lifetime",
            Duration::from_secs(60)..=Duration::from_secs(10 * 366 * 86_400),
        ),
        when_unknown: reader.get("when_unknown"),
        user_id_header: headers.opt("user_id"),
        plan_header: headers.opt("plan"),
        permissions_header: headers.opt("permissions"),
        claim_headers: reader.map("claim_headers", "<claim>"),
    };
    check_headers(&reader, &headers, &identity);
    identity
}

fn check_headers(reader: &Reader<'_>, headers: &Reader<'_>, identity: &Identity) {
    let claims = reader.section("claim_headers");
    let named = [
        (headers, "user_id", identity.user_id_header.as_ref()),
        (headers, "plan", identity.plan_header.as_ref()),
        (headers, "permissions", identity.permissions_header.as_ref()),
    ];
    let all = (named.into_iter().filter_map(|(reader, key, name)| Some((reader, key, name?))))
        .chain(identity.claim_headers.iter().map(|(claim, name)| (&claims, &**claim, name)));
    let mut seen = BTreeSet::new();
    for (reader, key, name) in all {
        if is_reserved(name) {
            reader.refuse(key, format!("{name} already has a meaning; accepted: a header of its own"));
        } else if !seen.insert(name.as_str()) {
            reader.refuse(key, format!("{name} is used twice; accepted: a header of its own"));
        }
    }
}

/// Headers that the protocol, the cache or the gateway itself gives a meaning to.
pub(super) fn is_reserved(name: &HeaderName) -> bool {
    const RESERVED: [HeaderName; 16] = [
        header::AUTHORIZATION,
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::EXPECT,
        header::COOKIE,
        header::RANGE,
        header::ACCEPT,
        header::ACCEPT_ENCODING,
        header::CACHE_CONTROL,
    ];
    RESERVED.contains(name)
        || [
            &header_names::FORWARDED,
            &header_names::X_FORWARDED_FOR,
            &header_names::X_FORWARDED_HOST,
            &header_names::X_FORWARDED_PROTO,
            &header_names::X_FORWARDED_PORT,
            &header_names::X_REAL_IP,
            &header_names::X_REQUEST_ID,
            &header_names::TRACEPARENT,
            &header_names::TRACESTATE,
        ]
        .into_iter()
        .any(|reserved| *reserved == name)
}

/// What stands for `[issuers]` when the file has none and `JWT_SECRET` is set.
pub(super) fn implicit_issuers() -> Table {
    tree::parse("[issuers.default]\nalgorithms = [\"HS256\"]\nsecret = \"${JWT_SECRET}\"\n")
        .map(Table::at_start)
        .unwrap_or_default()
}

pub(super) fn issuers(root: &Reader<'_>) -> Vec<Issuer> {
    root.named("issuers", "<name>").into_iter().map(|(name, reader)| issuer(name, &reader)).collect()
}

fn issuer(name: Box<str>, reader: &Reader<'_>) -> Issuer {
    let algorithms = reader.required_list::<Algorithm>("algorithms");
    let kinds: BTreeSet<bool> = algorithms.iter().map(|algorithm| algorithm.is_symmetric()).collect();
    if kinds.len() > 1 {
        reader.refuse(
            "algorithms",
            "mixes shared secrets (HS*) with public keys; accepted: one kind, the other in an issuer of its own",
        );
    }
    let section = reader.opt_section("jwks");
    let keys = if section.is_some() { no_keys(reader) } else { keys(reader, &algorithms, kinds.len() == 1) };
    let jwks = section.and_then(|section| jwks(&section, &algorithms));
    let max_lifetime = reader.opt::<Duration>("max_lifetime");
    if max_lifetime
        .is_some_and(|life| life < Duration::from_secs(1) || life > Duration::from_secs(315_576_000))
    {
        reader.refuse("max_lifetime", "is out of range; accepted: 1s to 10years");
    }
    Issuer {
        name,
        keys,
        jwks,
        algorithms,
        issuer: reader.opt::<String>("issuer").map(Into::into),
        audience: texts(reader, "audience"),
        leeway: reader.duration("leeway", Duration::ZERO..=Duration::from_secs(600)),
        require_exp: reader.get("require_exp"),
        required_claims: texts(reader, "required_claims"),
        max_lifetime,
        claims: claims(&reader.section("claims")),
    }
}

fn claims(reader: &Reader<'_>) -> ClaimNames {
    let subject = texts(reader, "subject");
    if subject.is_empty() && !reader.reported("subject") {
        reader.refuse("subject", "is empty; accepted: at least one claim such as \"sub\"");
    }
    let name = |key| reader.opt::<String>(key).unwrap_or_default().into();
    ClaimNames {
        subject,
        plan: name("plan"),
        multiplier: name("multiplier"),
        permissions: name("permissions"),
        email: name("email"),
    }
}

pub(super) fn texts(reader: &Reader<'_>, key: &str) -> Vec<Box<str>> {
    reader.list::<String>(key).into_iter().map(Into::into).collect()
}

fn keys(reader: &Reader<'_>, algorithms: &[Algorithm], one_kind: bool) -> Vec<IssuerKey> {
    let own = ["secret", "public_key", "public_key_file"].into_iter().any(|key| reader.has(key));
    let more = reader.tables("keys");
    let mut keys = Vec::new();
    if own || more.is_empty() {
        keys.extend(key(reader, algorithms, one_kind));
    } else {
        // Asked for, so that a wrong value is reported even where it has no use.
        let kid: Option<String> = reader.opt("kid");
        if kid.is_some() {
            reader.refuse("kid", "belongs to no key; accepted: a kid in each table of keys");
        }
    }
    keys.extend(more.iter().filter_map(|table| key(table, algorithms, one_kind)));
    let mut seen = BTreeSet::new();
    for known in &keys {
        if !seen.insert(known.kid.clone()) && known.kid.is_some() {
            let kid = known.kid.as_deref().unwrap_or_default();
            reader.refuse("keys", format!("two keys have the kid {kid:?}; accepted: one each"));
        }
    }
    keys
}

/// Where keys are published there are no others: two sources could not be told apart.
fn no_keys(reader: &Reader<'_>) -> Vec<IssuerKey> {
    for key in ["secret", "public_key", "public_key_file", "kid", "keys"] {
        if reader.has(key) {
            reader.refuse(key, "stands beside jwks; accepted: keys in this file or published ones");
        }
    }
    Vec::new()
}

fn jwks(reader: &Reader<'_>, algorithms: &[Algorithm]) -> Option<Jwks> {
    let refresh = reader.duration("refresh", Duration::from_secs(1)..=Duration::from_secs(86_400));
    let cooldown = reader.duration("cooldown", Duration::from_millis(100)..=Duration::from_secs(3_600));
    let timeout = reader.duration("timeout", Duration::from_millis(100)..=Duration::from_secs(60));
    if refresh < cooldown && !reader.reported("refresh") && !reader.reported("cooldown") {
        reader.refuse("refresh", "is shorter than the cooldown; accepted: at least that");
    }
    let Size(max_size) = reader.get("max_size");
    if !reader.reported("max_size") && !(1 << 10..=4 << 20).contains(&max_size) {
        reader.refuse("max_size", "is out of range; accepted: 1 KiB to 4 MiB");
    }
    let allow_http = reader.get("allow_http");
    let url = reader.opt::<String>("url");
    let file = reader.opt::<String>("file");
    let ca_file = reader.opt::<String>("ca_file");
    if algorithms.iter().any(|algorithm| algorithm.is_symmetric()) {
        reader.refuse("", "holds public keys, of no use to HS* algorithms; accepted: RS*, PS*, ES*, EdDSA");
        return None;
    }
    let place = match (url, file) {
        (Some(url), None) => {
            let roots = ca_file.map(|name| roots(reader, &name));
            let url = jwks_url(reader, &url, allow_http)?;
            JwksPlace::Url { url, roots: roots.flatten() }
        }
        (None, Some(name)) => {
            for key in ["ca_file", "allow_http"].into_iter().filter(|key| reader.has(key)) {
                reader.refuse(key, "is of no use to a file; accepted: with url");
            }
            key_set(reader, &name, max_size, algorithms)?
        }
        (Some(_), Some(_)) => {
            reader.refuse("file", "stands beside a url; accepted: one of them");
            return None;
        }
        (None, None) => {
            if !reader.reported("url") && !reader.reported("file") {
                reader.refuse("", "says not where the keys are; accepted: url or file");
            }
            return None;
        }
    };
    Some(Jwks { place, refresh, cooldown, timeout, max_size })
}

fn jwks_url(reader: &Reader<'_>, text: &str, allow_http: bool) -> Option<Uri> {
    let url: Option<Uri> = text.parse().ok();
    let url = url.filter(|url| url.host().is_some_and(|host| !host.is_empty()));
    if url.as_ref().and_then(Uri::authority).is_some_and(|authority| authority.as_str().contains('@')) {
        reader.refuse("url", "has credentials in it; accepted: a URL without, since it is logged");
        return None;
    }
    match url.as_ref().and_then(Uri::scheme_str) {
        Some("https") => url,
        Some("http") if allow_http => {
            reader.warn("url", "is http: whoever is on the way can replace the keys of this issuer");
            url
        }
        Some("http") => {
            reader.refuse("url", "is http; accepted: https, or http with allow_http = true");
            None
        }
        _ => {
            reader.refuse("url", "is no absolute URL; accepted: https://HOST/PATH");
            None
        }
    }
}

fn roots(reader: &Reader<'_>, name: &str) -> Option<Vec<u8>> {
    let pem = read_key(reader, "ca_file", name, MAX_KEY_FILE)?;
    match jwks::check_roots(&pem) {
        Ok(()) => Some(pem),
        Err(problem) => {
            reader.refuse("ca_file", format!("is not accepted: {problem}; accepted: PEM certificates"));
            None
        }
    }
}

fn key_set(reader: &Reader<'_>, name: &str, max_size: u64, algorithms: &[Algorithm]) -> Option<JwksPlace> {
    let content = read_key(reader, "file", name, max_size)?;
    let known = algorithms.iter().filter_map(|algorithm| identity::Algorithm::from_name(algorithm.as_str()));
    if let Err(problem) = read_set(&content, known.collect()) {
        reader.refuse("file", format!("is not accepted: {problem}"));
        return None;
    }
    Some(JwksPlace::File { path: reader.context().directory.join(name), content })
}

fn key(reader: &Reader<'_>, algorithms: &[Algorithm], one_kind: bool) -> Option<IssuerKey> {
    let kid = reader.opt::<String>("kid").map(Into::into);
    let secret = reader.opt::<Secret>("secret");
    let inline = reader.opt::<String>("public_key").map(|pem| ("public_key", pem.into_bytes()));
    let file = reader.opt::<String>("public_key_file");
    let file = file.and_then(|name| {
        Some(("public_key_file", read_key(reader, "public_key_file", &name, MAX_KEY_FILE)?))
    });
    if ["secret", "public_key", "public_key_file"].into_iter().any(|key| reader.reported(key)) || !one_kind {
        return None;
    }
    let symmetric = algorithms.iter().any(|algorithm| algorithm.is_symmetric());
    match (secret, inline.or(file), symmetric) {
        (Some(_), Some((key, _)), _) => {
            reader.refuse(key, "stands beside a secret; accepted: one key here, others in the list keys");
            None
        }
        (Some(secret), None, true) => {
            check_secret(reader, &secret, algorithms);
            Some(IssuerKey { kid, material: KeyMaterial::Secret(secret) })
        }
        (Some(_), None, false) => {
            reader.refuse(
                "secret",
                "is of no use to these algorithms; accepted: public_key or public_key_file, or algorithms HS*",
            );
            None
        }
        (None, Some((key, _)), true) => {
            reader.refuse(key, "is of no use to HS* algorithms; accepted: secret, or RS*, PS*, ES*, EdDSA");
            None
        }
        (None, Some((key, pem)), false) => {
            check_public_key(reader, key, &pem, algorithms);
            Some(IssuerKey { kid, material: KeyMaterial::PublicPem(pem) })
        }
        (None, None, true) => {
            reader.refuse(
                "secret",
                "is missing; accepted: a secret such as \"${JWT_SECRET}\" for HS* algorithms",
            );
            None
        }
        (None, None, false) => {
            reader.refuse(
                "public_key_file",
                "is missing; accepted: public_key or public_key_file with a PEM, or a table jwks",
            );
            None
        }
    }
}

fn check_secret(reader: &Reader<'_>, secret: &Secret, algorithms: &[Algorithm]) {
    let length = secret.expose().len();
    let least = algorithms.iter().map(|algorithm| algorithm.min_secret()).max().unwrap_or_default();
    if length >= least {
        return;
    }
    if reader.context().development {
        reader.warn("secret", format!("has {length} bytes; production refuses fewer than {least}"));
    } else {
        reader.refuse(
            "secret",
            format!(
                "is too short; accepted: {least} bytes or more (fewer only with environment = \"development\")"
            ),
        );
    }
}

fn read_key(reader: &Reader<'_>, key: &str, name: &str, most: u64) -> Option<Vec<u8>> {
    let path = reader.context().directory.join(name);
    let outcome = std::fs::metadata(&path).and_then(|meta| {
        if meta.is_file() && meta.len() <= most { std::fs::read(&path).map(Some) } else { Ok(None) }
    });
    match outcome {
        Ok(Some(bytes)) => Some(bytes),
        Ok(None) => {
            let most = bytesize::ByteSize(most);
            reader.refuse(key, format!("is not accepted; accepted: a regular file of at most {most}"));
            None
        }
        Err(error) => {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                kind => kind.to_string(),
            };
            reader.refuse(key, format!("cannot be read: {}: {why}", path.display()));
            None
        }
    }
}

fn check_public_key(reader: &Reader<'_>, key: &str, pem: &[u8], algorithms: &[Algorithm]) {
    const PRIVATE: &[u8] = b"PRIVATE KEY-----";
    if pem.windows(PRIVATE.len()).any(|part| part == PRIVATE) {
        reader.refuse(key, "is a private key; accepted: the public key that belongs to it");
        return;
    }
    let suits = algorithms.iter().any(|algorithm| verifies(pem, *algorithm));
    if !suits {
        let names: Vec<&str> = algorithms.iter().map(|algorithm| algorithm.as_str()).collect();
        reader.refuse(key, format!("is not accepted; accepted: a PEM public key for {}", names.join(", ")));
    }
}

/// Whether `pem` holds a key that signatures of `algorithm` can be held against, down to the curve.
fn verifies(pem: &[u8], algorithm: Algorithm) -> bool {
    let key = match algorithm {
        Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => return false,
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => DecodingKey::from_rsa_pem(pem),
        Algorithm::Es256 | Algorithm::Es384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDsa => DecodingKey::from_ed_pem(pem),
    };
    let (Ok(key), Ok(engine)) = (key, algorithm.as_str().parse()) else { return false };
    // An unusable key is an error; a signature that does not fit is an answer.
    jsonwebtoken::crypto::verify("", b"", &key, engine).is_ok()
}
