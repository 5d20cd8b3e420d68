//! What a route asks of its callers, and whether this request meets it.
//!
//! It answers with an identity, with nobody, or with why not; making a response of that is the pipeline's.

use super::credentials::{Credential, CredentialProblem};
use super::identity::Identity;
use super::refused::Refused;

/// Whether a route wants to know its callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requirement {
    /// Tokens are not looked at.
    None,
    /// Nobody in particular is welcome, but a token that is present must be valid.
    Optional,
    /// Only callers with a valid token.
    #[default]
    Required,
}

/// Permissions are asked of callers that are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("permissions need a requirement of `required` or `optional`, not `none`")]
pub struct PermissionsWithoutIdentity;

/// What a route asks of its callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    requirement: Requirement,
    permissions: Vec<Box<str>>,
}

impl Access {
    /// Asks for a requirement and for all of `permissions`. Where the requirement is `Optional`, permissions are asked
    /// of tokens only: callers without one pass.
    pub fn new(
        requirement: Requirement,
        permissions: Vec<Box<str>>,
    ) -> Result<Self, PermissionsWithoutIdentity> {
        if requirement == Requirement::None && !permissions.is_empty() {
            return Err(PermissionsWithoutIdentity);
        }
        Ok(Self { requirement, permissions })
    }

    /// Whether callers are looked at.
    pub const fn requirement(&self) -> Requirement {
        self.requirement
    }

    /// The permissions asked for.
    pub fn permissions(&self) -> &[Box<str>] {
        &self.permissions
    }
}

/// Why a request is not admitted for want of identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IdentityRefusal {
    /// There is no token where one is needed.
    #[error("no token")]
    NotAuthenticated,
    /// The request's credentials cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialProblem),
    /// The token is refused.
    #[error(transparent)]
    Token(#[from] Refused),
    /// The token holds, but the route wants a live session and it has none.
    #[error("no live session")]
    NoSession,
    /// Whether the credential holds cannot be said at the moment: what it takes to know is out of reach.
    #[error("the credential cannot be judged at the moment")]
    Undecided,
    /// The caller is known but lacks a permission.
    #[error("a permission is missing")]
    Forbidden,
    /// The route is about logins, and the caller has an API token.
    #[error("an API token is no login")]
    NoLogin,
}

impl IdentityRefusal {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAuthenticated => "not_authenticated",
            Self::Credential(problem) => problem.as_str(),
            Self::Token(refused) => refused.as_str(),
            Self::NoSession => "no_session",
            Self::Undecided => "undecided",
            Self::Forbidden => "forbidden",
            Self::NoLogin => "no_login",
        }
    }

    /// The text a client reads.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NotAuthenticated => "Not authenticated",
            Self::Credential(_) => "Invalid token",
            Self::Token(refused) => refused.detail(),
            Self::NoSession => "Session expired",
            Self::Undecided => "The token cannot be verified at the moment",
            Self::Forbidden => "Not enough permissions",
            Self::NoLogin => "An API token cannot be used here",
        }
    }

    /// Whether the caller is known (403) rather than not (401).
    pub const fn is_forbidden(self) -> bool {
        matches!(self, Self::Forbidden | Self::NoLogin)
    }

    /// Whether the same request may be accepted a moment later (503).
    pub const fn is_undecided(self) -> bool {
        matches!(self, Self::Undecided)
    }

    /// The `WWW-Authenticate` challenge (RFC 6750 section 3).
    pub const fn www_authenticate(self) -> &'static str {
        match self {
            Self::NotAuthenticated | Self::Undecided => r#"Bearer realm="tollgate""#,
            Self::Credential(_) => {
                r#"Bearer realm="tollgate", error="invalid_request", error_description="Invalid token""#
            }
            Self::Token(Refused::Expired) => {
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Token expired""#
            }
            Self::Token(Refused::Revoked) => {
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Token revoked""#
            }
            Self::Token(_) => {
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Invalid token""#
            }
            Self::NoSession => {
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Session expired""#
            }
            Self::Forbidden | Self::NoLogin => r#"Bearer realm="tollgate", error="insufficient_scope""#,
        }
    }
}

/// The credential that is to be verified, or `None` where nobody in particular may call. Whether the caller is revoked
/// is asked once that is done, before [`permit`].
pub fn presented(
    requirement: Requirement,
    credential: Result<Option<Credential<'_>>, CredentialProblem>,
) -> Result<Option<Credential<'_>>, IdentityRefusal> {
    if requirement == Requirement::None {
        return Ok(None);
    }
    match credential? {
        None if requirement == Requirement::Required => Err(IdentityRefusal::NotAuthenticated),
        presented => Ok(presented),
    }
}

/// Whether the caller has every permission the route asks for; a caller without a token needs none where tokens are
/// optional.
pub fn permit(access: &Access, identity: Option<&Identity>) -> Result<(), IdentityRefusal> {
    if access.permissions.is_empty() {
        return Ok(());
    }
    let Some(identity) = identity else {
        let welcome = access.requirement == Requirement::Optional;
        return if welcome { Ok(()) } else { Err(IdentityRefusal::NotAuthenticated) };
    };
    if access.permissions.iter().all(|permission| identity.may(permission)) {
        Ok(())
    } else {
        Err(IdentityRefusal::Forbidden)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::Algorithm;
    use super::super::credentials::Source;
    use super::super::keys::{Key, KeySet};
    use super::super::mint::{MintKey, MintRequest, mint};
    use super::super::verifier::{Issuer, Settings, Verifier};
    use super::*;
    use crate::clock::UnixMillis;

    const SECRET: &[u8] = b"correct-horse-battery-staple-0123456789";
    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn verifier() -> Verifier {
        let keys = KeySet::new(vec![Key::secret(SECRET).unwrap()]).unwrap();
        let issuer = Issuer::new("main", vec![], [Algorithm::HS256], keys).unwrap();
        Verifier::new(Settings::new(vec![issuer]).unwrap())
    }

    fn token(permissions: &[&str]) -> String {
        let key = MintKey::secret(Algorithm::HS256, SECRET).unwrap();
        let permissions = permissions.iter().map(|p| (*p).to_owned()).collect();
        mint(&MintRequest { permissions, ..MintRequest::new("alice") }, &key, NOW).unwrap()
    }

    #[test]
    fn requirements_hold() {
        use Requirement::{None as Ignored, Optional, Required};
        let verifier = verifier();
        let (plain, admin) = (token(&[]), token(&["admin", "read"]));
        let carried = |token: &str| {
            Ok(Some(Credential { token: Cow::Owned(token.to_owned()), source: &Source::Bearer }))
        };
        let invalid = IdentityRefusal::Token(Refused::Malformed);
        for (requirement, permissions, credential, verdict) in [
            (Ignored, &[][..], carried("rubbish"), Ok(false)),
            (Ignored, &[], Err(CredentialProblem::Repeated), Ok(false)),
            (Optional, &[], Ok(None), Ok(false)),
            (Optional, &[], carried(&plain), Ok(true)),
            (Optional, &[], carried("rubbish"), Err(invalid)),
            (Optional, &[], Err(CredentialProblem::Repeated), Err(CredentialProblem::Repeated.into())),
            (Optional, &["admin"], Ok(None), Ok(false)),
            (Optional, &["admin"], carried(&plain), Err(IdentityRefusal::Forbidden)),
            (Optional, &["admin"], carried(&admin), Ok(true)),
            (Required, &["admin"], Ok(None), Err(IdentityRefusal::NotAuthenticated)),
            (Required, &[], Ok(None), Err(IdentityRefusal::NotAuthenticated)),
            (Required, &[], carried("rubbish"), Err(invalid)),
            (Required, &[], carried(&plain), Ok(true)),
            (Required, &["admin"], carried(&plain), Err(IdentityRefusal::Forbidden)),
            (Required, &["admin", "write"], carried(&admin), Err(IdentityRefusal::Forbidden)),
            (Required, &["read", "admin"], carried(&admin), Ok(true)),
        ] {
            let access =
                Access::new(requirement, permissions.iter().map(|p| Box::from(*p)).collect()).unwrap();
            let resolved = presented(access.requirement, credential)
                .and_then(|presented| Ok(presented.map(|it| verifier.verify(&it.token, NOW)).transpose()?))
                .and_then(|identity| permit(&access, identity.as_deref()).map(|()| identity.is_some()));
            assert_eq!(resolved, verdict, "{requirement:?} {permissions:?}");
        }
        assert!(Access::new(Ignored, vec!["admin".into()]).is_err());
    }

    #[test]
    fn clients_read_the_texts_they_know() {
        for (refusal, detail, challenge) in [
            (IdentityRefusal::NotAuthenticated, "Not authenticated", r#"Bearer realm="tollgate""#),
            (
                Refused::Expired.into(),
                "Token expired",
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Token expired""#,
            ),
            (
                Refused::Revoked.into(),
                "Token revoked",
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Token revoked""#,
            ),
            (
                Refused::BadSignature.into(),
                "Invalid token",
                r#"Bearer realm="tollgate", error="invalid_token", error_description="Invalid token""#,
            ),
        ] {
            assert_eq!((refusal.detail(), refusal.www_authenticate()), (detail, challenge));
        }
        let mut labels: Vec<_> = Refused::ALL.iter().map(|refused| refused.as_str()).collect();
        labels.extend(CredentialProblem::ALL.iter().map(|problem| problem.as_str()));
        let count = labels.len();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), count);
    }
}
