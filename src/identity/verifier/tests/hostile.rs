//! Hostile tokens by name, most of them signed with the issuer's own secret: each is refused for its own reason.

use super::*;

const CLAIMS: &str = r#"{"sub":"ada","iss":"shop","aud":"cart","iat":1700000000,"exp":1700000060}"#;

fn shop() -> Verifier {
    let keys = KeySet::new(vec![Key::secret(SECRET).unwrap().named("k1")]).unwrap();
    let mut shop = Issuer::new("shop", vec!["shop".into()], [Algorithm::HS256], keys).unwrap();
    shop.rules.audiences = vec!["cart".into()];
    verifier(vec![shop, issuer([Algorithm::RS256], vec![public("rsa-2048")])])
}

fn with_header(header: &str) -> String {
    forge(header, CLAIMS, SECRET)
}

fn with_claims(claims: &str) -> String {
    forge(r#"{"alg":"HS256","kid":"k1"}"#, claims, SECRET)
}

fn without_claim(name: &str) -> String {
    with_claims(&rest(name))
}

/// The good claims with one replaced, or added.
fn with_claim(name: &str, value: &str) -> String {
    let rest = rest(name);
    with_claims(&format!("{},\"{name}\":{value}}}", &rest[..rest.len() - 1]))
}

fn rest(without: &str) -> String {
    let mut members: Map<String, Value> = serde_json::from_str(CLAIMS).unwrap();
    members.remove(without);
    Value::Object(members).to_string()
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn each_is_refused_for_its_own_reason() {
    use Refused::*;
    let good = with_claims(CLAIMS);
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let foreign = with_claims("{}");
    let foreign = foreign.rsplit_once('.').unwrap().1;
    let stem = &signature[..signature.len() - 1];
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(&signature[stem.len()..]).unwrap() ^ 1;
    let sibling = &alphabet[last..=last];
    let a = |count: usize| "a".repeat(count);
    let rows: Vec<(&str, String, Refused)> = vec![
        ("alg none", with_header(r#"{"alg":"none","kid":"k1"}"#), AlgorithmNotAllowed),
        ("alg None", with_header(r#"{"alg":"None","kid":"k1"}"#), AlgorithmNotAllowed),
        ("alg NONE", with_header(r#"{"alg":"NONE","kid":"k1"}"#), AlgorithmNotAllowed),
        ("alg nOnE", with_header(r#"{"alg":"nOnE","kid":"k1"}"#), AlgorithmNotAllowed),
        ("alg empty", with_header(r#"{"alg":"","kid":"k1"}"#), AlgorithmNotAllowed),
        ("alg missing", with_header(r#"{"kid":"k1"}"#), Malformed),
        ("alg null", with_header(r#"{"alg":null,"kid":"k1"}"#), Malformed),
        ("alg twice", with_header(r#"{"alg":"HS256","alg":"none","kid":"k1"}"#), DuplicateMember),
        ("alg of another hash", with_header(r#"{"alg":"HS512","kid":"k1"}"#), AlgorithmNotAllowed),
        ("alg of a public key", with_header(r#"{"alg":"RS256","kid":"k1"}"#), AlgorithmNotAllowed),
        (
            "a public key as the secret",
            forge(
                r#"{"alg":"HS256"}"#,
                r#"{"sub":"ada","exp":1700000060}"#,
                fixture("rsa-2048-public").as_bytes(),
            ),
            AlgorithmNotAllowed,
        ),
        ("jwk", with_header(r#"{"alg":"HS256","kid":"k1","jwk":{"kty":"oct","k":"AA"}}"#), HeaderNotAllowed),
        ("jku", with_header(r#"{"alg":"HS256","kid":"k1","jku":"https://evil.example/"}"#), HeaderNotAllowed),
        ("x5u", with_header(r#"{"alg":"HS256","kid":"k1","x5u":"https://evil.example/"}"#), HeaderNotAllowed),
        ("x5c", with_header(r#"{"alg":"HS256","kid":"k1","x5c":["MII="]}"#), HeaderNotAllowed),
        ("kid as a path", with_header(r#"{"alg":"HS256","kid":"../../../dev/null"}"#), UnknownKey),
        ("kid as SQL", with_header(r#"{"alg":"HS256","kid":"k1' OR '1'='1"}"#), UnknownKey),
        ("kid as a URL", with_header(r#"{"alg":"HS256","kid":"https://evil.example/k1"}"#), UnknownKey),
        ("kid of 1 MB", with_header(&format!(r#"{{"alg":"HS256","kid":"{}"}}"#, a(1 << 20))), TooLong),
        ("kid of 4 kB", with_header(&format!(r#"{{"alg":"HS256","kid":"{}"}}"#, a(4_000))), Malformed),
        ("kid twice", with_header(r#"{"alg":"HS256","kid":"k1","kid":"k1"}"#), DuplicateMember),
        ("kid as a number", with_header(r#"{"alg":"HS256","kid":1}"#), Malformed),
        ("kid null", with_header(r#"{"alg":"HS256","kid":null}"#), Malformed),
        ("crit unknown", with_header(r#"{"alg":"HS256","kid":"k1","crit":["x"],"x":1}"#), HeaderNotAllowed),
        ("crit empty", with_header(r#"{"alg":"HS256","kid":"k1","crit":[]}"#), HeaderNotAllowed),
        (
            "b64 false",
            with_header(r#"{"alg":"HS256","kid":"k1","b64":false,"crit":["b64"]}"#),
            HeaderNotAllowed,
        ),
        ("b64 not critical", with_header(r#"{"alg":"HS256","kid":"k1","b64":false}"#), HeaderNotAllowed),
        ("zip", with_header(r#"{"alg":"HS256","kid":"k1","zip":"DEF"}"#), HeaderNotAllowed),
        ("another type", with_header(r#"{"alg":"HS256","kid":"k1","typ":"logout+jwt"}"#), HeaderNotAllowed),
        ("signature empty", format!("{header}.{payload}."), Malformed),
        ("signature missing", format!("{header}.{payload}"), Malformed),
        ("signature truncated", format!("{header}.{payload}.{}", &signature[..40]), BadSignature),
        ("signature of another", format!("{header}.{payload}.{foreign}"), BadSignature),
        ("a dot more", format!("{good}."), Malformed),
        ("two dots", format!("{header}..{payload}.{signature}"), Malformed),
        ("four parts", format!("{good}.{signature}"), Malformed),
        ("unused bits", format!("{header}.{payload}.{stem}{sibling}"), Malformed),
        ("padding", format!("{good}="), Malformed),
        ("padding in the header", format!("{header}=.{payload}.{signature}"), Malformed),
        ("a blank before", format!(" {good}"), Malformed),
        ("a blank after", format!("{good} "), Malformed),
        ("a line break", format!("{good}\n"), Malformed),
        (
            "a member twice",
            with_claims(r#"{"sub":"ada","sub":"root","iss":"shop","aud":"cart","exp":1700000060}"#),
            DuplicateMember,
        ),
        (
            "a member twice by an escape",
            with_claims(r#"{"sub":"ada","\u0073ub":"root","iss":"shop","aud":"cart","exp":1700000060}"#),
            DuplicateMember,
        ),
        ("lists without end", with_claim("x", &"[".repeat(10_000)), TooLong),
        ("lists in lists", with_claim("x", &format!("{}{}", "[".repeat(500), "]".repeat(500))), TooDeep),
        (
            "objects in objects",
            with_claim("x", &format!("{}1{}", r#"{"a":"#.repeat(500), "}".repeat(500))),
            TooDeep,
        ),
        ("a number beyond all", with_claim("x", "1e999"), Malformed),
        ("exp as text", with_claim("exp", r#""1700000060""#), Malformed),
        ("exp as a list", with_claim("exp", "[1700000060]"), Malformed),
        ("exp null", with_claim("exp", "null"), Malformed),
        ("exp negative", with_claim("exp", "-1"), Malformed),
        ("exp of 1e300", with_claim("exp", "1e300"), Malformed),
        ("exp of 2^64 - 1", with_claim("exp", "18446744073709551615"), Malformed),
        ("exp of 2^64", with_claim("exp", "18446744073709551616"), Malformed),
        ("exp of 1e999", with_claim("exp", "1e999"), Malformed),
        ("exp of 0", with_claim("exp", "0"), Expired),
        ("exp of yesterday", with_claim("exp", "1699913600"), Expired),
        ("exp with a fraction", with_claim("exp", "1699999969.9"), Expired),
        ("exp missing", without_claim("exp"), MissingClaim),
        ("nbf in the future", with_claim("nbf", "1700000031"), NotYetValid),
        ("nbf as text", with_claim("nbf", r#""0""#), Malformed),
        ("iat in the future", with_claim("iat", "1700000031"), NotYetValid),
        ("iat as text", with_claim("iat", r#""0""#), Malformed),
        ("aud of another", with_claim("aud", r#""till""#), Audience),
        ("aud a list of others", with_claim("aud", r#"["till","desk"]"#), Audience),
        ("aud an empty list", with_claim("aud", "[]"), Audience),
        ("aud a list with a number", with_claim("aud", r#"["cart",1]"#), Malformed),
        ("aud an object", with_claim("aud", r#"{"cart":1}"#), Malformed),
        ("aud missing", without_claim("aud"), Audience),
        ("iss a list", with_claim("iss", r#"["shop"]"#), Malformed),
        ("iss of another case", with_claim("iss", r#""Shop""#), AlgorithmNotAllowed),
        ("iss missing", without_claim("iss"), AlgorithmNotAllowed),
        ("sub missing", without_claim("sub"), Subject),
        ("sub empty", with_claim("sub", r#""""#), Subject),
        ("sub of 4 kB", with_claim("sub", &format!("\"{}\"", a(4_000))), Subject),
        ("100 kB", with_claim("x", &format!("\"{}\"", a(100_000))), TooLong),
        ("100 kB of dots", ".".repeat(100_000), TooLong),
        ("nothing", String::new(), Malformed),
    ];
    let names: HashSet<&str> = rows.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), rows.len());
    let verifier = shop();
    assert_eq!(&*verifier.verify(&good, NOW).unwrap().subject, "ada");
    let wrong: Vec<_> = rows
        .iter()
        .map(|(name, token, reason)| (*name, verifier.verify(token, NOW).err(), *reason))
        .filter(|(_, found, reason)| *found != Some(*reason))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(verifier.cached(), 1);
}
