//! A revoked token comes back in every spelling that somebody without the key can give it: each is refused, or is the
//! revoked token itself.

use super::super::super::revocation::{DEFAULT_LONGEST, Effect, Known, Revocation};
use super::*;

/// The orders of the two groups (SEC 2).
const ORDERS: [(Algorithm, &str); 2] = [
    (Algorithm::ES256, "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"),
    (
        Algorithm::ES384,
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    ),
];

/// The token with `(r, n - s)` for `(r, s)`, which verifies too; `None` where signatures are not of this kind.
fn other_half(algorithm: Algorithm, token: &str) -> Option<String> {
    let (_, order) = ORDERS.into_iter().find(|(known, _)| *known == algorithm)?;
    let order: Vec<u8> =
        (0..order.len()).step_by(2).map(|at| u8::from_str_radix(&order[at..at + 2], 16).unwrap()).collect();
    let mut twin = signature(token);
    let mut borrow = 0;
    for at in (0..order.len()).rev() {
        let place = order.len() + at;
        let difference = i16::from(order[at]) - i16::from(twin[place]) - borrow;
        borrow = i16::from(difference < 0);
        twin[place] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    Some(with_signature(token, &twin))
}

/// The same bytes in base64 whose last character has other unused bits; `None` where it has none.
fn other_unused_bits(part: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    if part.len().is_multiple_of(4) {
        return None;
    }
    let (rest, last) = part.split_at(part.len() - 1);
    let value = ALPHABET.iter().position(|known| *known == last.as_bytes()[0]).unwrap();
    Some(format!("{rest}{}", char::from(ALPHABET[value ^ 1])))
}

/// Every spelling of `token` that no issuer wrote.
fn spellings(token: &str) -> Vec<(&'static str, String)> {
    let parts: Vec<&str> = token.split('.').collect();
    let with = |at: usize, part: &str| {
        let mut parts = parts.clone();
        parts[at] = part;
        parts.join(".")
    };
    let mut spellings = vec![
        ("a blank before it", format!(" {token}")),
        ("a blank after it", format!("{token} ")),
        ("a line break after it", format!("{token}\n")),
        ("a dot after it", format!("{token}.")),
        ("nothing signed by it", with(2, "")),
        ("its signature shortened", with(2, &parts[2][..parts[2].len() - 4])),
        ("its signature lengthened", with(2, &format!("{}AAAA", parts[2]))),
    ];
    for (at, part) in parts.iter().enumerate() {
        if let Some(other) = other_unused_bits(part) {
            spellings.push(("other unused bits", with(at, &other)));
        }
        let missing = (4 - part.len() % 4) % 4;
        spellings.push(("padding", with(at, &format!("{part}{}", "=".repeat(missing.max(1))))));
        let standard = part.replace('-', "+").replace('_', "/");
        if standard != *part {
            spellings.push(("the alphabet of base64", with(at, &standard)));
        }
        let (front, back) = part.split_at(2);
        spellings.push(("a line break inside", with(at, &format!("{front}\n{back}"))));
        spellings.push(("a percent sign", with(at, &format!("{front}%2D{back}"))));
    }
    for (at, part) in parts.iter().enumerate().take(2) {
        let json = String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        let members: Map<String, Value> = serde_json::from_str(&json).unwrap();
        let mut backwards: Vec<String> =
            members.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        backwards.reverse();
        let backwards = format!("{{{}}}", backwards.join(","));
        assert_ne!(backwards, json);
        for (what, json) in [
            ("its members in another order", backwards),
            ("a blank in its JSON", json.replacen('{', "{ ", 1)),
            ("an escape in its JSON", json.replacen("\"a", "\"\\u0061", 1).replacen("\"s", "\"\\u0073", 1)),
            ("a member more", json.replacen('{', "{\"x\":1,", 1)),
        ] {
            spellings.push((what, with(at, &URL_SAFE_NO_PAD.encode(json))));
        }
    }
    spellings
}

/// Claims with and without a `jti`.
fn named_and_nameless() -> [Map<String, Value>; 2] {
    let mut named = good_claims();
    named.insert("jti".into(), "8c0fc4ee-0205-a2ce".into());
    [named, good_claims()]
}

/// What a logout, and what an operator, revokes of this token.
fn revocations(identity: &Identity) -> Vec<Revocation> {
    let by_id = Revocation {
        key: identity.token_id.blacklist_key("").into(),
        effect: Effect::Token,
        until: NOW.plus(DEFAULT_LONGEST),
    };
    vec![
        identity.revocation(NOW, DEFAULT_LONGEST),
        by_id,
        identity.revocation_everywhere(NOW, DEFAULT_LONGEST),
    ]
}

#[test]
fn no_spelling_of_a_revoked_token_is_accepted() {
    for (algorithm, mint_key, key) in pairs() {
        let verifier = verifier(vec![issuer([algorithm], vec![key])]);
        for claims in named_and_nameless() {
            let token = mint_key.sign_claims(&claims).unwrap();
            let identity = verifier.verify(&token, NOW).unwrap();
            for (what, spelling) in spellings(&token) {
                assert_ne!(spelling, token, "{what}");
                assert!(verifier.verify(&spelling, NOW).is_err(), "{algorithm}: {what}: {spelling}");
            }
            for revocation in revocations(&identity) {
                let known = Known::new(10);
                assert!(!known.is_revoked(&identity, NOW));
                known.learn(&revocation, NOW);
                assert!(known.is_revoked(&identity, NOW));
                if let Some(twin) = other_half(algorithm, &token) {
                    assert_ne!(twin, token);
                    let twin = verifier.verify(&twin, NOW).unwrap();
                    assert!(known.is_revoked(&twin, NOW), "{algorithm}: {revocation:?}");
                }
            }
        }
    }
}

#[test]
fn revoking_the_twin_revokes_the_token() {
    for (algorithm, name) in [(Algorithm::ES256, "ec-p256"), (Algorithm::ES384, "ec-p384")] {
        let verifier = verifier(vec![issuer([algorithm], vec![public(name)])]);
        for claims in named_and_nameless() {
            let token = private(algorithm, name).sign_claims(&claims).unwrap();
            let twin = verifier.verify(&other_half(algorithm, &token).unwrap(), NOW).unwrap();
            let known = Known::new(10);
            known.learn(&twin.revocation(NOW, DEFAULT_LONGEST), NOW);
            assert!(known.is_revoked(&verifier.verify(&token, NOW).unwrap(), NOW), "{algorithm}");
        }
    }
}

#[test]
fn a_token_signed_twice_over_one_content_is_revoked_once_for_both() {
    // Signatures of ECDSA and PSS are random: an issuer that signs the same claims again makes a twin by itself.
    for (algorithm, mint_key, key) in pairs() {
        let verifier = verifier(vec![issuer([algorithm], vec![key])]);
        let [first, second] = [0, 1].map(|_| mint_key.sign_claims(&good_claims()).unwrap());
        let [first, second] = [first, second].map(|token| verifier.verify(&token, NOW).unwrap());
        assert_eq!(first.keys.blacklist, second.keys.blacklist, "{algorithm}");
    }
}
