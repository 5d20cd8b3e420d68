//! Verification keys and sets of them: what a key can verify is fixed by its kind when it is read.
//!
//! A key never takes part in an algorithm of another kind, so an RSA public key cannot become an HMAC secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;

use super::algorithm::{Algorithm, Algorithms};
use super::der::{self, Reader};

/// Shortest HMAC secret that is not weak, in bytes (RFC 7518 section 3.2, for HS256).
pub const MIN_SECRET_BYTES: usize = 32;
/// Smallest RSA modulus, in bits (RFC 7518 section 3.3).
pub const MIN_RSA_BITS: usize = 2048;
/// Largest RSA modulus, in bits: verification time grows with its square.
pub const MAX_RSA_BITS: usize = 4096;
/// Smallest RSA public exponent (NIST FIPS 186-5 section 5.1).
pub const MIN_RSA_EXPONENT: u64 = 65_537;
/// Largest RSA public exponent the engine accepts.
pub const MAX_RSA_EXPONENT: u64 = (1 << 33) - 1;
/// Most keys in one set.
pub const MAX_KEYS: usize = 64;
/// Most keys tried for one token when nothing names the right one.
const MAX_TRIED: usize = 8;

/// Why a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// Neither PEM nor DER of a supported form.
    #[error("not a PEM public key (`PUBLIC KEY` or `RSA PUBLIC KEY`)")]
    NotAPublicKey,
    /// A private key where a public one belongs.
    #[error("this is a private key; give its public half (`openssl pkey -in key.pem -pubout`)")]
    PrivateKey,
    /// A certificate where a bare key belongs.
    #[error("this is a certificate; give its public key (`openssl x509 -in cert.pem -noout -pubkey`)")]
    Certificate,
    /// A key type or curve no supported algorithm uses.
    #[error("unsupported key type or curve; supported are RSA, RSA-PSS, EC P-256, EC P-384 and Ed25519")]
    Unsupported,
    /// The numbers or the point of the key are not valid.
    #[error("the key is damaged or not a valid point of its curve")]
    Invalid,
    /// A point of small order: anybody can sign for it.
    #[error("the key is of small order: anybody could sign for it")]
    SmallOrder,
    /// The RSA modulus is too small or too large.
    #[error("RSA key of {0} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted")]
    RsaSize(usize),
    /// The RSA exponent is even, too small or too large.
    #[error("RSA public exponent must be odd and at least {MIN_RSA_EXPONENT}")]
    RsaExponent,
    /// The RSA modulus was made by a generator whose keys can be factored (CVE-2017-15361).
    #[error("RSA key of a faulty generator (ROCA, CVE-2017-15361): it can be factored")]
    Roca,
    /// The secret is shorter than [`MIN_SECRET_BYTES`].
    #[error("secret of {0} bytes; at least {MIN_SECRET_BYTES} are needed (`openssl rand -base64 48`)")]
    ShortSecret(usize),
    /// The secret is shorter than the hash of the algorithm.
    #[error("secret of {0} bytes; {1} needs at least {needed}", needed = .1.min_secret_bytes())]
    ShortForAlgorithm(usize, Algorithm),
    /// The secret repeats a few bytes or is a published example.
    #[error("secret is easily guessed; make one with `openssl rand -base64 48`")]
    GuessableSecret,
    /// PEM text given as a secret.
    #[error("a PEM key is given as an HMAC secret")]
    PemAsSecret,
    /// More than [`MAX_KEYS`] keys.
    #[error("more than {MAX_KEYS} keys in one set")]
    TooManyKeys,
    /// Two keys of one kind share a `kid`.
    #[error("two keys of one kind have the same kid")]
    DuplicateKid,
}

/// What a key is, and so what it can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A shared secret: `HS*`.
    Hmac,
    /// An RSA key: `RS*` and `PS*`.
    Rsa,
    /// An RSA key whose own type restricts it to `PS*` (RFC 4055).
    RsaPss,
    /// A point on P-256: `ES256`.
    P256,
    /// A point on P-384: `ES384`.
    P384,
    /// An Ed25519 key: `EdDSA`.
    Ed25519,
}

impl KeyKind {
    /// The algorithms of this kind.
    #[must_use]
    pub fn algorithms(self) -> Algorithms {
        use Algorithm::{ES256, ES384, EdDsa, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
        match self {
            Self::Hmac => [HS256, HS384, HS512].into(),
            Self::Rsa => [RS256, RS384, RS512, PS256, PS384, PS512].into(),
            Self::RsaPss => [PS256, PS384, PS512].into(),
            Self::P256 => [ES256].into(),
            Self::P384 => [ES384].into(),
            Self::Ed25519 => [EdDsa].into(),
        }
    }

    /// The kind in a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hmac => "hmac",
            Self::Rsa => "rsa",
            Self::RsaPss => "rsa-pss",
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// One verification key. Its `Debug` shows no material.
#[derive(Clone)]
pub struct Key {
    kind: KeyKind,
    algorithms: Algorithms,
    kid: Option<Box<str>>,
    material: DecodingKey,
    /// Big-endian modulus of an RSA key without leading zeros, else empty.
    modulus: Box<[u8]>,
}

impl Key {
    /// An HMAC secret that passes [`check_secret`], for the algorithms it is long enough for.
    pub fn secret(secret: &[u8]) -> Result<Self, KeyProblem> {
        check_secret(secret)?;
        let long_enough = |algorithm: &Algorithm| secret.len() >= algorithm.min_secret_bytes();
        Ok(Self::hmac(secret).only(Algorithm::ALL.into_iter().filter(long_enough).collect::<Algorithms>()))
    }

    /// An HMAC secret that may be weak, for development only. Empty ones and PEM texts are still refused.
    pub fn weak_secret(secret: &[u8]) -> Result<Self, KeyProblem> {
        match check_secret(secret) {
            Err(problem @ (KeyProblem::PemAsSecret | KeyProblem::ShortSecret(0))) => Err(problem),
            _ => Ok(Self::hmac(secret)),
        }
    }

    /// A public key in PEM: `PUBLIC KEY` (RFC 5280 `SubjectPublicKeyInfo`) or `RSA PUBLIC KEY` (RFC 8017).
    pub fn public_pem(pem: &str) -> Result<Self, KeyProblem> {
        let (label, der) = der::pem_block(pem).ok_or(KeyProblem::NotAPublicKey)?;
        match label {
            "PUBLIC KEY" => Self::from_spki(&der),
            "RSA PUBLIC KEY" => Self::from_pkcs1(&der),
            "CERTIFICATE" => Err(KeyProblem::Certificate),
            label if label.ends_with("PRIVATE KEY") => Err(KeyProblem::PrivateKey),
            _ => Err(KeyProblem::NotAPublicKey),
        }
    }

    /// An RSA key from its big-endian modulus and exponent (RFC 7518 section 6.3.1).
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyProblem> {
        let (modulus, exponent) = (without_zeros(modulus), without_zeros(exponent));
        let bits = bit_length(modulus);
        if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
            return Err(KeyProblem::RsaSize(bits));
        }
        if modulus.last().is_none_or(|last| last % 2 == 0) {
            return Err(KeyProblem::Invalid);
        }
        if exponent.len() > 8 {
            return Err(KeyProblem::RsaExponent);
        }
        let e = exponent.iter().fold(0_u64, |e, byte| e << 8 | u64::from(*byte));
        if e % 2 == 0 || !(MIN_RSA_EXPONENT..=MAX_RSA_EXPONENT).contains(&e) {
            return Err(KeyProblem::RsaExponent);
        }
        if has_roca_fingerprint(modulus) {
            return Err(KeyProblem::Roca);
        }
        let material = DecodingKey::from_rsa_raw_components(modulus, exponent);
        Ok(Self { modulus: modulus.into(), ..Self::of(KeyKind::Rsa, material) })
    }

    /// A P-256 or P-384 key from its uncompressed point `04 || x || y` (SEC 1 section 2.3.3).
    pub fn ec(kind: KeyKind, point: &[u8]) -> Result<Self, KeyProblem> {
        let (length, algorithm) = match kind {
            KeyKind::P256 => (65, Algorithm::ES256),
            KeyKind::P384 => (97, Algorithm::ES384),
            _ => return Err(KeyProblem::Unsupported),
        };
        if point.len() != length || point.first() != Some(&4) {
            return Err(KeyProblem::Invalid);
        }
        Self::of(kind, DecodingKey::from_ec_der(point)).proven(algorithm)
    }

    /// An Ed25519 key from its 32 bytes (RFC 8032 section 5.1.5).
    pub fn ed25519(point: &[u8]) -> Result<Self, KeyProblem> {
        if point.len() != 32 {
            return Err(KeyProblem::Invalid);
        }
        if is_small_order(point) {
            return Err(KeyProblem::SmallOrder);
        }
        Self::of(KeyKind::Ed25519, DecodingKey::from_ed_der(point)).proven(Algorithm::EdDsa)
    }

    /// This key under a key identifier (RFC 7515 section 4.1.4).
    #[must_use]
    pub fn named(mut self, kid: impl Into<Box<str>>) -> Self {
        self.kid = Some(kid.into());
        self
    }

    /// This key for these algorithms only, such as a JWK's `alg`; it never gains one its kind has not.
    #[must_use]
    pub fn only(mut self, algorithms: impl Into<Algorithms>) -> Self {
        self.algorithms = self.algorithms.intersection(algorithms.into());
        self
    }

    /// What the key is.
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Its identifier, if it has one.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What it may verify.
    pub const fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// Whether `signature` (base64url) is this key's over `message`. False for an algorithm not its own.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> bool {
        self.algorithms.contains(algorithm)
            && self.is_in_range(signature)
            && jsonwebtoken::crypto::verify(signature, message, &self.material, algorithm.engine())
                .unwrap_or(false)
    }

    /// RFC 8017 section 5.2.2: the signature representative lies below the modulus. The engine does not ask
    /// this for PSS, where `s + n` would verify as well as `s`.
    fn is_in_range(&self, signature: &str) -> bool {
        if self.modulus.is_empty() {
            return true;
        }
        URL_SAFE_NO_PAD
            .decode(signature)
            .is_ok_and(|bytes| bytes.len() == self.modulus.len() && *bytes < *self.modulus)
    }

    fn hmac(secret: &[u8]) -> Self {
        Self::of(KeyKind::Hmac, DecodingKey::from_secret(secret))
    }

    fn of(kind: KeyKind, material: DecodingKey) -> Self {
        Self { kind, algorithms: kind.algorithms(), kid: None, material, modulus: Box::default() }
    }

    /// The key, if the engine can build a verifier from it.
    fn proven(self, algorithm: Algorithm) -> Result<Self, KeyProblem> {
        jsonwebtoken::crypto::verify("", b"", &self.material, algorithm.engine())
            .map_or(Err(KeyProblem::Invalid), |_| Ok(self))
    }

    fn from_spki(der: &[u8]) -> Result<Self, KeyProblem> {
        const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
        const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
        const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
        const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
        const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

        let (oid, mut parameters, bits) = read_spki(der).ok_or(KeyProblem::NotAPublicKey)?;
        match oid {
            RSA => Self::from_pkcs1(bits),
            RSA_PSS => {
                let key = Self::from_pkcs1(bits)?;
                let algorithms = pss_algorithms(parameters).ok_or(KeyProblem::Unsupported)?;
                Ok(Self { kind: KeyKind::RsaPss, algorithms, ..key })
            }
            EC => match parameters.take(der::OID) {
                Some(P256) => Self::ec(KeyKind::P256, bits),
                Some(P384) => Self::ec(KeyKind::P384, bits),
                _ => Err(KeyProblem::Unsupported),
            },
            ED25519 => Self::ed25519(bits),
            _ => Err(KeyProblem::Unsupported),
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyProblem> {
        let (modulus, exponent) = read_pkcs1(der).ok_or(KeyProblem::NotAPublicKey)?;
        Self::rsa(modulus, exponent)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kind", &self.kind).field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Whether `secret` is long and varied enough to sign tokens with, and no key in disguise.
pub fn check_secret(secret: &[u8]) -> Result<(), KeyProblem> {
    /// Published placeholders long enough to pass for secrets.
    const EXAMPLES: [&[u8]; 3] = [
        b"a-string-secret-at-least-256-bits-long",
        b"a-valid-string-secret-that-is-at-least-512-bits-long-which-is-very-long",
        b"your-super-secret-jwt-token-with-at-least-32-characters-long",
    ];
    if secret.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Err(KeyProblem::PemAsSecret);
    }
    if secret.len() < MIN_SECRET_BYTES {
        return Err(KeyProblem::ShortSecret(secret.len()));
    }
    let mut seen = [false; 256];
    for byte in secret {
        if let Some(slot) = seen.get_mut(usize::from(*byte)) {
            *slot = true;
        }
    }
    if seen.iter().filter(|seen| **seen).count() < 8 || EXAMPLES.contains(&secret) {
        return Err(KeyProblem::GuessableSecret);
    }
    Ok(())
}

/// The keys of one issuer.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    has_kids: bool,
}

impl KeySet {
    /// A set of at most [`MAX_KEYS`] keys, each `kid` once per kind. An empty set verifies nothing.
    pub fn new(keys: Vec<Key>) -> Result<Self, KeyProblem> {
        if keys.len() > MAX_KEYS {
            return Err(KeyProblem::TooManyKeys);
        }
        for (at, key) in keys.iter().enumerate() {
            if key.kid.is_some() && keys.iter().skip(at + 1).any(|k| k.kid == key.kid && k.kind == key.kind) {
                return Err(KeyProblem::DuplicateKid);
            }
        }
        Ok(Self::published(keys))
    }

    /// A set as its issuer published it: what shares a `kid` is tried one after the other.
    pub(super) fn published(keys: Vec<Key>) -> Self {
        let has_kids = keys.iter().any(|key| key.kid.is_some());
        Self { keys, has_kids }
    }

    /// Whether any key has a name; where none has, the names that tokens give mean nothing.
    pub const fn has_kids(&self) -> bool {
        self.has_kids
    }

    /// The keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The keys that may have signed a token with this algorithm and `kid`, a handful at most. A token's `kid`
    /// must match where the set has any; a token without one may be by any key of the right kind.
    pub(super) fn candidates<'a>(
        &'a self,
        algorithm: Algorithm,
        kid: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Key> {
        let wanted = kid.filter(|_| self.has_kids);
        self.keys
            .iter()
            .filter(move |key| key.algorithms.contains(algorithm))
            .filter(move |key| wanted.is_none() || key.kid.as_deref() == wanted)
            .take(MAX_TRIED)
    }
}

/// Object identifier, parameters and key bits of a `SubjectPublicKeyInfo`.
fn read_spki(der: &[u8]) -> Option<(&[u8], Reader<'_>, &[u8])> {
    let mut outer = Reader::new(der);
    let mut info = outer.enter(der::SEQUENCE)?;
    let mut parameters = info.enter(der::SEQUENCE)?;
    let oid = parameters.take(der::OID)?;
    let bits = info.bits()?;
    (outer.is_empty() && info.is_empty()).then_some((oid, parameters, bits))
}

fn read_pkcs1(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = Reader::new(der);
    let mut key = outer.enter(der::SEQUENCE)?;
    let (modulus, exponent) = (key.unsigned()?, key.unsigned()?);
    (outer.is_empty() && key.is_empty()).then_some((modulus, exponent))
}

/// What RSASSA-PSS parameters (RFC 4055 section 3.1) leave of `PS*`; `None` when they leave nothing known.
fn pss_algorithms(mut parameters: Reader<'_>) -> Option<Algorithms> {
    const SHA2: [(&[u8], Algorithm); 3] = [
        (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01], Algorithm::PS256),
        (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02], Algorithm::PS384),
        (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03], Algorithm::PS512),
    ];
    if parameters.is_empty() {
        return Some(KeyKind::RsaPss.algorithms());
    }
    let hash =
        parameters.enter(der::SEQUENCE)?.enter(der::CONTEXT_0)?.enter(der::SEQUENCE)?.take(der::OID)?;
    SHA2.into_iter().find(|(oid, _)| *oid == hash).map(|(_, algorithm)| [algorithm].into())
}

/// Whether the modulus is a power of 65537 modulo every small prime, as those of the faulty generator are
/// (Nemec et al., "The Return of Coppersmith's Attack", 2017). One of 240 million others is, too.
fn has_roca_fingerprint(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101,
        103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.into_iter().all(|prime| {
        let rest = modulus.iter().fold(0, |rest, byte| (rest << 8 | u32::from(*byte)) % prime);
        let powers = std::iter::successors(Some(1), |power| Some(power * 65_537 % prime));
        powers.take(prime as usize).any(|power| power == rest)
    })
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

fn bit_length(magnitude: &[u8]) -> usize {
    magnitude.first().map_or(0, |first| magnitude.len() * 8 - first.leading_zeros() as usize)
}

/// Encodings of the points of order 1, 2, 4 and 8 on edwards25519, non-canonical ones included; the sign bit
/// is ignored. The list is that of libsodium's `ge25519_has_small_order`.
fn is_small_order(point: &[u8]) -> bool {
    const ORDER_8_A: [u8; 32] = [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ];
    const ORDER_8_B: [u8; 32] = [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ];
    let Some((last, low)) = point.split_last() else { return true };
    let last = last & 0x7f;
    let between = |value: u8| low.iter().skip(1).all(|byte| *byte == value);
    let first = low.first().copied().unwrap_or_default();
    (between(0) && last == 0 && first <= 1)
        || (between(0xff) && last == 0x7f && first >= 0xec)
        || [ORDER_8_A, ORDER_8_B].iter().any(|small| small.split_last() == Some((&last, low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> String {
        std::fs::read_to_string(format!("{}/tests/fixtures/keys/{name}.pem", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    }

    #[test]
    fn public_keys_are_read_with_their_kind() {
        for (name, kind) in [
            ("rsa-2048-public", KeyKind::Rsa),
            ("rsa-2048-pkcs1-public", KeyKind::Rsa),
            ("rsa-pss-public", KeyKind::RsaPss),
            ("rsa-pss-sha384-public", KeyKind::RsaPss),
            ("ec-p256-public", KeyKind::P256),
            ("ec-p384-public", KeyKind::P384),
            ("ed25519-public", KeyKind::Ed25519),
        ] {
            assert_eq!(Key::public_pem(&fixture(name)).unwrap().kind(), kind, "{name}");
        }
        let bound = Key::public_pem(&fixture("rsa-pss-sha384-public")).unwrap();
        assert_eq!(bound.algorithms(), [Algorithm::PS384].into());
    }

    #[test]
    fn weak_foreign_and_private_keys_are_refused() {
        for (name, problem) in [
            ("rsa-512-public", KeyProblem::RsaSize(512)),
            ("rsa-1024-public", KeyProblem::RsaSize(1024)),
            ("rsa-2048-e3-public", KeyProblem::RsaExponent),
            ("rsa-roca-public", KeyProblem::Roca),
            ("ec-p521-public", KeyProblem::Unsupported),
            ("ec-k256-public", KeyProblem::Unsupported),
            ("ed448-public", KeyProblem::Unsupported),
            ("rsa-2048-private", KeyProblem::PrivateKey),
            ("rsa-2048-pkcs1-private", KeyProblem::PrivateKey),
            ("ec-p256-sec1-private", KeyProblem::PrivateKey),
        ] {
            assert_eq!(Key::public_pem(&fixture(name)).unwrap_err(), problem, "{name}");
        }
        assert_eq!(Key::public_pem("").unwrap_err(), KeyProblem::NotAPublicKey);
    }

    #[test]
    fn rsa_exponents_one_even_and_huge_are_refused() {
        let mut modulus = [0xff; 256];
        for exponent in
            [&[1][..], &[3], &[0], &[], &[1, 0, 0], &[1, 0, 2], &[0xff; 8], &[1; 9], &[2, 0, 0, 0, 1]]
        {
            assert_eq!(Key::rsa(&modulus, exponent).unwrap_err(), KeyProblem::RsaExponent, "{exponent:?}");
        }
        assert!(Key::rsa(&modulus, &[0, 1, 0, 1]).is_ok());
        modulus[255] = 0xfe;
        assert_eq!(Key::rsa(&modulus, &[1, 0, 1]).unwrap_err(), KeyProblem::Invalid);
        assert_eq!(Key::rsa(&[0xff; 513], &[1, 0, 1]).unwrap_err(), KeyProblem::RsaSize(4104));
    }

    #[test]
    fn points_off_the_curve_and_of_small_order_are_refused() {
        let mut point = [1; 65];
        point[0] = 4;
        assert_eq!(Key::ec(KeyKind::P256, &point).unwrap_err(), KeyProblem::Invalid);
        assert_eq!(Key::ec(KeyKind::P256, &[4; 64]).unwrap_err(), KeyProblem::Invalid);
        assert_eq!(Key::ed25519(&[0; 31]).unwrap_err(), KeyProblem::Invalid);
        for (first, rest, last) in
            [(0, 0, 0), (1, 0, 0), (0, 0, 0x80), (0xec, 0xff, 0x7f), (0xed, 0xff, 0x7f), (0xee, 0xff, 0xff)]
        {
            let mut point = [rest; 32];
            point[0] = first;
            point[31] = last;
            assert_eq!(Key::ed25519(&point).unwrap_err(), KeyProblem::SmallOrder, "{point:?}");
        }
    }

    #[test]
    fn weak_secrets_are_refused() {
        let good = b"0123456789abcdefghijklmnopqrstuv";
        assert_eq!(check_secret(good), Ok(()));
        assert_eq!(check_secret(&good[..31]), Err(KeyProblem::ShortSecret(31)));
        assert_eq!(check_secret(&[b'a'; 64]), Err(KeyProblem::GuessableSecret));
        assert_eq!(check_secret(b"a-string-secret-at-least-256-bits-long"), Err(KeyProblem::GuessableSecret));
        assert_eq!(check_secret(fixture("rsa-2048-public").as_bytes()), Err(KeyProblem::PemAsSecret));
        assert!(Key::weak_secret(b"dev").is_ok());
        assert_eq!(Key::weak_secret(b"dev").unwrap().algorithms(), KeyKind::Hmac.algorithms());
        assert!(Key::weak_secret(b"").is_err());
        assert!(Key::weak_secret(fixture("rsa-2048-public").as_bytes()).is_err());
    }

    #[test]
    fn a_secret_is_as_long_as_the_hash_it_is_used_with() {
        use Algorithm::{HS256, HS384, HS512};
        let secret = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-";
        for (length, algorithms) in [
            (32, &[HS256][..]),
            (47, &[HS256]),
            (48, &[HS256, HS384]),
            (63, &[HS256, HS384]),
            (64, &[HS256, HS384, HS512]),
        ] {
            let key = Key::secret(&secret[..length]).unwrap();
            assert_eq!(key.algorithms().iter().collect::<Vec<_>>(), algorithms, "{length}");
        }
    }

    #[test]
    fn a_kid_selects_where_the_set_has_any() {
        let key = |kid: &str| Key::secret(b"0123456789abcdefghijklmnopqrstuv").unwrap().named(kid);
        let set = KeySet::new(vec![key("a"), key("b")]).unwrap();
        let kids = |kid| {
            set.candidates(Algorithm::HS256, kid).filter_map(Key::kid).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(kids(Some("b")), ["b"]);
        assert_eq!(kids(Some("../../etc/passwd")), Vec::<String>::new());
        assert_eq!(kids(None), ["a", "b"]);
        assert_eq!(set.candidates(Algorithm::RS256, Some("a")).count(), 0);
        assert!(matches!(KeySet::new(vec![key("a"), key("a")]), Err(KeyProblem::DuplicateKid)));

        let nameless = KeySet::new(vec![Key::secret(b"0123456789abcdefghijklmnopqrstuv").unwrap()]).unwrap();
        assert_eq!(nameless.candidates(Algorithm::HS256, Some("whatever")).count(), 1);
    }

    #[test]
    fn debug_shows_no_material() {
        let key = Key::secret(b"0123456789abcdefghijklmnopqrstuv").unwrap();
        assert!(!format!("{key:?}").contains("0123"));
    }
}
