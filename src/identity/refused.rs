//! Why a token is not accepted.
//!
//! The reason is for metrics, the audit trail and `token inspect`; a client reads one of three static texts.

use crate::json::JsonProblem;

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// Longer than the declared limit.
    #[error("longer than the limit")]
    TooLong,
    /// Not three canonical base64url parts, or their content is not what RFC 7515 and RFC 7519 ask for.
    #[error("not a well-formed token")]
    Malformed,
    /// A member occurs twice in the header or the claims.
    #[error("a member occurs twice")]
    DuplicateMember,
    /// The header or the claims nest too deeply.
    #[error("nested too deeply")]
    TooDeep,
    /// The header carries a key, a place to fetch one, or an extension that is not understood.
    #[error("the header asks for something that is never honoured")]
    HeaderNotAllowed,
    /// `alg` is unknown or not declared for the issuer.
    #[error("the algorithm is not allowed for this issuer")]
    AlgorithmNotAllowed,
    /// `iss` is not one of the declared issuers.
    #[error("the issuer is not known")]
    Issuer,
    /// No key of the issuer fits the token's `kid` and algorithm.
    #[error("no key fits the token")]
    UnknownKey,
    /// The signature is not by any fitting key.
    #[error("the signature does not verify")]
    BadSignature,
    /// `exp` and the leeway are past.
    #[error("expired")]
    Expired,
    /// `nbf` or `iat` lies ahead by more than the leeway.
    #[error("not valid yet")]
    NotYetValid,
    /// The token may live longer than the declared maximum.
    #[error("lives longer than allowed")]
    LifetimeTooLong,
    /// `aud` names none of the declared audiences.
    #[error("meant for another audience")]
    Audience,
    /// A required claim is absent.
    #[error("a required claim is missing")]
    MissingClaim,
    /// No usable subject: absent, empty, too long or of a wrong type.
    #[error("no usable subject")]
    Subject,
    /// The token, or every token of its subject issued by then, was revoked.
    #[error("revoked")]
    Revoked,
}

impl Refused {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 16] = [
        Self::TooLong,
        Self::Malformed,
        Self::DuplicateMember,
        Self::TooDeep,
        Self::HeaderNotAllowed,
        Self::AlgorithmNotAllowed,
        Self::Issuer,
        Self::UnknownKey,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::LifetimeTooLong,
        Self::Audience,
        Self::MissingClaim,
        Self::Subject,
        Self::Revoked,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::DuplicateMember => "duplicate_member",
            Self::TooDeep => "too_deep",
            Self::HeaderNotAllowed => "header_not_allowed",
            Self::AlgorithmNotAllowed => "algorithm_not_allowed",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::LifetimeTooLong => "lifetime_too_long",
            Self::Audience => "audience",
            Self::MissingClaim => "missing_claim",
            Self::Subject => "subject",
            Self::Revoked => "revoked",
        }
    }

    /// The text a client reads.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Expired => "Token expired",
            Self::Revoked => "Token revoked",
            _ => "Invalid token",
        }
    }
}

impl From<JsonProblem> for Refused {
    fn from(problem: JsonProblem) -> Self {
        match problem {
            JsonProblem::Malformed => Self::Malformed,
            JsonProblem::DuplicateMember => Self::DuplicateMember,
            JsonProblem::TooDeep => Self::TooDeep,
        }
    }
}
