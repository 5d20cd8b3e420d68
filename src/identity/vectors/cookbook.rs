//! RFC 7520 section 4, RFC 7797 section 4 and RFC 8037 appendix A, in the files of the JOSE cookbook.

use super::super::refused::Refused;
use super::*;

#[test]
fn the_compact_examples_are_judged_as_their_algorithms_and_headers_demand() {
    for (file, expected) in [
        ("jws/4_1.rsa_v15_signature", Ok(())),
        ("jws/4_2.rsa-pss_signature", Ok(())),
        ("jws/4_4.hmac-sha2_integrity_protection", Ok(())),
        ("curve25519/jws", Ok(())),
        // P-521 is not supported: the key is refused, and the algorithm's name is unknown.
        ("jws/4_3.ecdsa_signature", Err("Foreign")),
        // The payload is elsewhere.
        ("jws/4_5.signature_with_detached_content", Err("BadSignature")),
        ("rfc7797/hmac-sha2_b64_false", Err("HeaderNotAllowed")),
    ] {
        let example = read(&format!("cookbook/{file}.json"));
        let (jwk, token) = (example["input"]["key"].clone(), text(&example["output"], "compact"));
        let secrets = if file.starts_with("rfc7797") { Secrets::Any } else { Secrets::Strong };
        let verdict = judge(&[jwk], secrets, token);
        assert_eq!(verdict, expected.map_err(str::to_owned), "{file}");
    }
    let example = read("cookbook/jws/4_3.ecdsa_signature.json");
    let token = text(&example["output"], "compact");
    assert_eq!(Signed::read(token, MAX_TOKEN_BYTES).err(), Some(Refused::AlgorithmNotAllowed));
}

#[test]
fn no_changed_letter_of_a_valid_example_passes() {
    for file in ["jws/4_1.rsa_v15_signature", "jws/4_4.hmac-sha2_integrity_protection", "curve25519/jws"] {
        let example = read(&format!("cookbook/{file}.json"));
        let token = text(&example["output"], "compact");
        let verifier = verifier(&[example["input"]["key"].clone()], Secrets::Strong).unwrap();
        assert_eq!(check(&verifier, token), Ok(()), "{file}");
        for at in (0..token.len()).step_by(7).chain([token.len() - 1]) {
            let with = if &token[at..=at] == "A" { "B" } else { "A" };
            let changed = format!("{}{with}{}", &token[..at], &token[at + 1..]);
            assert!(check(&verifier, &changed).is_err(), "{file}: {at}");
        }
    }
}

#[test]
fn what_is_not_compact_is_no_token() {
    let mut seen = 0;
    for file in [
        "jws/4_1.rsa_v15_signature",
        "jws/4_2.rsa-pss_signature",
        "jws/4_3.ecdsa_signature",
        "jws/4_4.hmac-sha2_integrity_protection",
        "jws/4_5.signature_with_detached_content",
        "jws/4_6.protecting_specific_header_fields",
        "jws/4_7.protecting_content_only",
        "jws/4_8.multiple_signatures",
        "rfc7797/4.2.hmac-sha2_b64_false",
        "rfc7797/hmac-sha2_b64_false",
        "curve25519/jws",
    ] {
        let example = read(&format!("cookbook/{file}.json"));
        for form in ["json", "json_flat"] {
            let Some(output) = example["output"].get(form) else { continue };
            let read = Signed::read(&output.to_string(), MAX_TOKEN_BYTES).map(drop);
            assert_eq!(read, Err(Refused::Malformed), "{file}: {form}");
            seen += 1;
        }
    }
    assert_eq!(seen, 21);
}
