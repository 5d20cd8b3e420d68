//! RFC 7515 appendix A and RFC 8032 section 7.1, and what may not be made of them.

use super::super::refused::Refused;
use super::*;

/// The payload of RFC 7515 appendices A.1 to A.3: issuer "joe", an `exp` of 1300819380, no subject.
const JOE: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const BEFORE: UnixMillis = UnixMillis(1_300_819_379_000);

struct Example {
    jwk: Value,
    header: &'static str,
    signature: &'static str,
}

impl Example {
    fn token(&self) -> String {
        format!("{}.{JOE}.{}", self.header, self.signature)
    }
}

fn a1() -> Example {
    Example {
        jwk: json!({
            "kty": "oct",
            "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        }),
        header: "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
        signature: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    }
}

fn a2() -> Example {
    Example {
        jwk: json!({
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        }),
        header: "eyJhbGciOiJSUzI1NiJ9",
        signature: "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    }
}

fn a3() -> Example {
    Example {
        jwk: json!({
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        }),
        header: "eyJhbGciOiJFUzI1NiJ9",
        signature: "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    }
}

#[test]
fn rfc_7515_a_1_to_a_3_verify_until_they_expire_and_only_by_their_own_keys() {
    let examples = [a1(), a2(), a3()];
    for (at, example) in examples.iter().enumerate() {
        let key = key(&example.jwk, Secrets::Strong).unwrap();
        let algorithm = Signed::read(&example.token(), MAX_TOKEN_BYTES).unwrap().0.algorithm;
        let keys = KeySet::new(vec![key.only([algorithm])]).unwrap();
        let mut joe = Issuer::new("joe", vec!["joe".into()], [algorithm], keys).unwrap();
        joe.mapping.subject = vec!["iss".into()];
        let verifier = Verifier::new(Settings::new(vec![joe]).unwrap());
        for (other, token) in examples.iter().map(Example::token).enumerate() {
            let verdict = verifier.verify(&token, BEFORE).map(|identity| identity.subject.to_string());
            let expected = if at == other { Ok("joe".to_owned()) } else { Err(Refused::AlgorithmNotAllowed) };
            assert_eq!(verdict, expected, "token {other} by key {at}");
        }
        assert_eq!(verifier.verify(&example.token(), NOW).err(), Some(Refused::Expired));
    }
}

#[test]
fn rfc_7515_a_4_to_a_7_and_appendix_f_are_refused() {
    // A.4: ES512 on P-521.
    let token = "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn";
    let general = json!({"payload": JOE, "signatures": [
        {"protected": a2().header, "header": {"kid": "2010-12-29"}, "signature": a2().signature},
        {"protected": a3().header, "header": {"kid": "e9bc097a-ce51-4036-9562-d2ade882db0d"}, "signature": a3().signature},
    ]});
    let flattened = json!({"payload": JOE, "protected": a3().header,
        "header": {"kid": "e9bc097a-ce51-4036-9562-d2ade882db0d"}, "signature": a3().signature});
    let verifiers = [a1(), a2(), a3()].map(|example| verifier(&[example.jwk], Secrets::Strong).unwrap());
    for (token, reason) in [
        (token.to_owned(), Refused::AlgorithmNotAllowed),
        (format!("eyJhbGciOiJub25lIn0.{JOE}."), Refused::AlgorithmNotAllowed),
        (format!("eyJhbGciOiJub25lIn0.{JOE}"), Refused::Malformed),
        (general.to_string(), Refused::Malformed),
        (flattened.to_string(), Refused::Malformed),
    ] {
        assert_eq!(Signed::read(&token, MAX_TOKEN_BYTES).err(), Some(reason), "{token}");
        assert!(verifiers.iter().all(|verifier| verifier.verify(&token, BEFORE).err() == Some(reason)));
    }
    // Appendix F: the payload travels apart from its signature.
    for (example, verifier) in [a1(), a2(), a3()].iter().zip(&verifiers) {
        let detached = format!("{}..{}", example.header, example.signature);
        assert_eq!(check(verifier, &detached), Err("BadSignature".into()));
        assert_eq!(verifier.verify(&detached, BEFORE).err(), Some(Refused::Malformed));
    }
}

/// Public key, message and signature of RFC 8032 section 7.1, tests 1 to 3.
const ED25519: [[&str; 3]; 3] = [
    [
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
];

#[test]
fn rfc_8032_ed25519_verifies_and_has_one_signature_only() {
    // The order of the group (section 5.1), least byte first: `S + L` signs the same for whoever does not look.
    let order = wycheproof::hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    for [public, message, signature] in ED25519.map(|example| example.map(wycheproof::hex)) {
        let key = Key::ed25519(&public).unwrap();
        let verifies =
            |signature: &[u8]| key.verifies(Algorithm::EdDsa, &message, &URL_SAFE_NO_PAD.encode(signature));
        assert!(verifies(&signature));
        let mut twin = signature.clone();
        let mut carry = 0;
        for (byte, add) in twin[32..].iter_mut().zip(&order) {
            let sum = u16::from(*byte) + u16::from(*add) + carry;
            *byte = u8::try_from(sum & 0xff).unwrap();
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        assert!(!verifies(&twin), "S + L");
        let mut changed = signature;
        changed[0] ^= 1;
        assert!(!verifies(&changed));
    }
}
