//! The commands on API tokens. No secret is an argument: a process list would show it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{lifetime, multiplier};
use crate::api_tokens::{ID_CHARACTERS, Id, MAX_LIMIT};
use crate::identifiers::API_TOKEN_PREFIX;

/// Create, list and change API tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum ApiToken {
    /// Make a token and print it, alone, on standard output: the only time that it is shown.
    Create(Box<CreateApiToken>),
    /// Show the tokens, never their secrets.
    List(ListApiTokens),
    /// Give a token another secret and print the token, alone, on standard output.
    Rotate(RotateApiToken),
    /// Refuse a token until it is enabled again.
    Disable(OneApiToken),
    /// Accept a token again.
    Enable(OneApiToken),
    /// End a token for good.
    Delete(OneApiToken),
}

/// The token to make.
#[derive(Args, Clone, Debug)]
pub struct CreateApiToken {
    /// The configuration file (TOML) that names the Redis.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// What it is for.
    #[arg(short, long, value_name = "NAME")]
    pub name: String,
    /// Whose it is: the user that the upstream is told, and whose cached responses it shares.
    #[arg(short, long, value_name = "OWNER")]
    pub owner: String,
    /// The plan, one of the configuration; without one the default plan.
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<String>,
    /// A permission; may be given several times.
    #[arg(long = "permission", value_name = "PERMISSION")]
    pub permissions: Vec<String>,
    /// Multiplies the limits of the plan: a finite number above zero.
    #[arg(long, value_name = "NUMBER", value_parser = multiplier)]
    pub multiplier: Option<f64>,
    /// Requests per minute, in place of what the policy says.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    pub minute: Option<u64>,
    /// Requests per hour, in place of what the policy says.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    pub hour: Option<u64>,
    /// Requests per day, in place of what the policy says.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    pub day: Option<u64>,
    /// How long it is valid: 90s, 24h, 90d; without it, until it is deleted.
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    pub expires_in: Option<Duration>,
    /// Print the token and all that is kept of it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which tokens to show.
#[derive(Args, Clone, Debug)]
pub struct ListApiTokens {
    /// The configuration file (TOML) that names the Redis.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only those of this owner.
    #[arg(short, long, value_name = "OWNER")]
    pub owner: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The token to give another secret.
#[derive(Args, Clone, Debug)]
pub struct RotateApiToken {
    /// Which token.
    #[command(flatten)]
    pub one: OneApiToken,
    /// How long the old secret still works: 90s, 24h; without it, it ends at once.
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    pub grace: Option<Duration>,
}

/// A token, by its id.
#[derive(Args, Clone, Debug)]
pub struct OneApiToken {
    /// The configuration file (TOML) that names the Redis.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// The id: the 16 characters after `tgk_`. The secret is not asked for.
    #[arg(value_name = "ID", value_parser = GivenId::read)]
    pub id: GivenId,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What stands in the place of an id. A refused value would be printed, and here it may be a whole token: of what is no
/// id nothing is kept, and the command says so.
#[derive(Clone, Copy, Debug)]
pub struct GivenId(Option<Id>);

/// What was given is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is the 16 letters and digits after tgk_; keep the secret behind it to yourself")]
pub struct NoId;

impl GivenId {
    #[allow(clippy::unnecessary_wraps, reason = "the form of a parser of values")]
    fn read(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Id::parse(text.strip_prefix(API_TOKEN_PREFIX).unwrap_or(text))))
    }

    /// The id.
    ///
    /// # Errors
    /// It was something else.
    pub fn id(self) -> Result<Id, NoId> {
        self.0.ok_or(NoId)
    }
}

/// `text` with no more of any API token than its id.
pub(super) fn without_secrets(text: &str) -> String {
    let shown = API_TOKEN_PREFIX.len() + ID_CHARACTERS;
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(API_TOKEN_PREFIX) {
        let (before, token) = rest.split_at(start);
        let end = token.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(token.len());
        let (token, after) = token.split_at(end);
        kept.push_str(before);
        // It is ASCII.
        kept.push_str(token.get(..shown).unwrap_or(token));
        if token.len() > shown {
            kept.push('…');
        }
        rest = after;
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn parse(line: &str) -> Result<ApiToken, clap::Error> {
        let line = format!("tollgate api-token {line}");
        Cli::try_parse_from(line.split_whitespace()).map(|cli| match cli.command {
            Command::ApiToken(command) => command,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_token_is_described_by_options() {
        let line = "create -c a.toml --name ci --owner ada --plan pro --permission read --permission write \
                    --multiplier 2 --minute 5 --day 7 --expires-in 90d --json";
        let ApiToken::Create(create) = parse(line).unwrap() else { panic!("not a create") };
        assert_eq!((create.minute, create.hour, create.day), (Some(5), None, Some(7)));
        assert_eq!(create.permissions, ["read", "write"]);
        assert_eq!(create.expires_in, Some(Duration::from_secs(90 * 86_400)));
        assert!(create.json);
        for bad in [
            "create -c a.toml --name ci",
            "create --name ci --owner ada",
            "create -c a.toml --name ci --owner ada --minute 0",
            "create -c a.toml --name ci --owner ada --multiplier NaN",
            "create -c a.toml --name ci --owner ada --expires-in 0s",
            "list",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_named_by_its_id_and_never_by_its_secret() {
        for id in ["0123456789abcdef", "tgk_0123456789abcdef"] {
            let ApiToken::Disable(one) = parse(&format!("disable -c a.toml {id}")).unwrap() else { panic!() };
            assert_eq!(one.id.id().unwrap().as_str(), "0123456789abcdef");
        }
        let secret = "s".repeat(43);
        for bad in &["", "0123", "x123456789abcde!", &format!("tgk_0123456789abcdef_{secret}"), &secret] {
            let line = "tollgate api-token delete -c a.toml";
            let parsed = Cli::try_parse_from(line.split(' ').chain([*bad])).unwrap();
            let Command::ApiToken(ApiToken::Delete(one)) = parsed.command else { panic!() };
            assert_eq!(one.id.id(), Err(NoId), "{bad}");
            assert!(!format!("{one:?} {NoId}").contains(&secret));
        }
        let ApiToken::Rotate(rotate) = parse("rotate -c a 0123456789abcdef --grace 24h").unwrap() else {
            panic!()
        };
        assert_eq!(rotate.grace, Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn of_a_token_in_a_message_only_the_id_is_left() {
        let (id, secret) = ("tgk_0123456789abcdef", "Z".repeat(43));
        for (text, left) in [
            ("the 16 characters after `tgk_`.", "the 16 characters after `tgk_`."),
            (&format!("delete {id}"), &format!("delete {id}")),
            (&format!("'{id}_{secret}' and {id}_{secret}x, ä"), &format!("'{id}…' and {id}…, ä")),
            (&format!("{id}{secret}"), &format!("{id}…")),
            ("tgk_ä", "tgk_ä"),
        ] {
            assert_eq!(without_secrets(text), left);
        }
    }
}
