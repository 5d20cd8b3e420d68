//! The command line: what may be asked of the program. It parses and checks forms; it opens no file and runs nothing,
//! except for the tiny health probe, which needs nothing of the gateway.

mod api_token;
mod probe;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub use api_token::{ApiToken, CreateApiToken, GivenId, ListApiTokens, NoId, OneApiToken, RotateApiToken};
pub use probe::{ProbeError, probe};

/// A reverse-proxy gateway that gives an unmodified HTTP API authentication with real logout, shared rate limits and
/// a per-user cache.
#[derive(Clone, Debug, Parser)]
#[command(name = "tollgate", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The command line of this process. Ends it where that is none, and after help and version; an API token that was
    /// typed in the wrong place is not repeated.
    #[must_use]
    pub fn of_process() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let said = error.to_string();
            let shown = api_token::without_secrets(&said);
            if said == shown {
                error.exit();
            }
            eprint!("{shown}");
            std::process::exit(error.exit_code())
        })
    }
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    Run(Config),
    /// Read the configuration, print every mistake in it, or OK and a summary. Exits 1 on mistakes.
    Check(Config),
    /// Run a gateway with a sample backend and print curl lines to try. Needs no Redis and no file.
    Demo(Demo),
    /// Issue and explain tokens.
    #[command(subcommand)]
    Token(Token),
    /// Create, list and change API tokens, in the Redis of a configuration.
    #[command(subcommand)]
    ApiToken(ApiToken),
    /// Ask a running gateway whether it lives. Exits 0 on a 2xx answer, 1 on anything else.
    Health(Health),
}

impl Command {
    /// Whether it serves requests until it is stopped.
    pub const fn serves(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Demo(_))
    }
}

/// Where the configuration is.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Where the demo listens; unset, the environment and then the defaults decide.
#[derive(Args, Clone, Debug)]
pub struct Demo {
    /// The public address [default: `TOLLGATE_LISTEN` or 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// The admin address [default: `TOLLGATE_ADMIN_LISTEN` or 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
}

/// Issue and explain tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum Token {
    /// Sign a token with an issuer of the configuration, or with a secret, and print it.
    Mint(Box<Mint>),
    /// Explain why a token is or is not accepted. Exits 0 if it is, 1 if not, 2 where the keys could not be read.
    Inspect(Inspect),
}

/// Which key signs or verifies: an issuer of a configuration file, or a secret from the environment.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false, args = ["config", "secret_env"])]
pub struct KeySource {
    /// The configuration file (TOML) that names the issuers.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The environment variable that holds an HS256 secret. A secret itself would show in the process list.
    #[arg(long, value_name = "VARIABLE")]
    pub secret_env: Option<String>,
}

/// The token to issue.
#[derive(Args, Clone, Debug)]
pub struct Mint {
    /// Which key signs.
    #[command(flatten)]
    pub key: KeySource,
    /// The issuer of the configuration; may be left out when there is one.
    #[arg(long, value_name = "NAME", conflicts_with = "secret_env")]
    pub issuer: Option<String>,
    /// Whom the token is for (`sub`).
    #[arg(short, long, value_name = "SUBJECT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub subject: String,
    /// The caller's plan.
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<String>,
    /// A permission; may be given several times.
    #[arg(long = "permission", value_name = "PERMISSION")]
    pub permissions: Vec<String>,
    /// Multiplies the caller's limits: a finite number above zero.
    #[arg(long, value_name = "NUMBER", value_parser = multiplier)]
    pub multiplier: Option<f64>,
    /// How long the token is valid: 90s, 15m, 24h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
    pub lifetime: Duration,
    /// A further claim; may be given several times. JSON values are taken as such, all else as text.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    pub claims: Vec<(String, serde_json::Value)>,
}

/// The token to explain.
#[derive(Args, Clone, Debug)]
pub struct Inspect {
    /// Which key verifies.
    #[command(flatten)]
    pub key: KeySource,
    /// The token; left out or `-`, it is read from standard input, which keeps it out of the process list.
    #[arg(value_name = "TOKEN")]
    pub token: Option<String>,
}

impl Inspect {
    /// The token given as an argument; `None` means standard input.
    pub fn given(&self) -> Option<&str> {
        self.token.as_deref().filter(|token| *token != "-")
    }
}

/// What to ask.
#[derive(Args, Clone, Debug)]
pub struct Health {
    /// The address to ask, plain http only.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090/live")]
    pub url: String,
    /// Give up after this long.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = lifetime)]
    pub timeout: Duration,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration < Duration::from_secs(1) { Err("at least one second".to_owned()) } else { Ok(duration) }
}

fn multiplier(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a finite number above zero".to_owned()),
    }
}

/// Claims the other options set, or that only the gateway may choose.
const RESERVED_CLAIMS: &[&str] = &["sub", "iat", "exp", "jti", "iss"];

fn claim(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write NAME=VALUE")?;
    if RESERVED_CLAIMS.contains(&name) {
        return Err(format!("{name} is set by tollgate itself"));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_and_check_need_a_file() {
        assert!(
            matches!(parse("tollgate run --config a.toml").unwrap(), Command::Run(c) if c.config.ends_with("a.toml"))
        );
        assert!(matches!(parse("tollgate check -c a.toml").unwrap(), Command::Check(_)));
        assert!(parse("tollgate run").is_err());
        assert!(parse("tollgate").is_err());
    }

    #[test]
    fn minting_takes_one_key_and_typed_claims() {
        let line = "tollgate token mint --config a.toml --issuer main --subject alice --plan pro --permission a \
                    --permission b --multiplier 2.5 --lifetime 15m --claim n=7 --claim email=a@b.c";
        let Command::Token(Token::Mint(mint)) =
            parse(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap()
        else {
            panic!("not a mint");
        };
        assert_eq!(
            (mint.subject.as_str(), mint.plan.as_deref(), mint.multiplier),
            ("alice", Some("pro"), Some(2.5))
        );
        assert_eq!(
            (mint.permissions.as_slice(), mint.lifetime),
            (&["a".into(), "b".into()][..], Duration::from_secs(900))
        );
        assert_eq!(mint.claims, [("n".into(), 7.into()), ("email".into(), "a@b.c".into())]);
        let Command::Token(Token::Mint(mint)) =
            parse("tollgate token mint --secret-env JWT_SECRET -s bob").unwrap()
        else {
            panic!("not a mint");
        };
        assert_eq!(mint.lifetime, Duration::from_secs(86_400));
        for bad in [
            "tollgate token mint --subject a",
            "tollgate token mint --config a --secret-env B --subject a",
            "tollgate token mint --secret-env B --issuer x --subject a",
            "tollgate token mint --config a --subject a --multiplier NaN",
            "tollgate token mint --config a --subject a --multiplier -1",
            "tollgate token mint --config a --subject a --lifetime 0s",
            "tollgate token mint --config a --subject a --claim exp=1",
            "tollgate token mint --config a --subject a --claim =1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn inspecting_reads_standard_input_for_a_dash_or_nothing() {
        for (line, given) in [
            ("tollgate token inspect --config a a.b.c", Some("a.b.c")),
            ("tollgate token inspect --config a -", None),
            ("tollgate token inspect --config a", None),
        ] {
            let Command::Token(Token::Inspect(inspect)) = parse(line).unwrap() else { panic!("{line}") };
            assert_eq!(inspect.given(), given, "{line}");
        }
    }

    #[test]
    fn the_demo_takes_two_addresses_and_health_a_url() {
        let Command::Demo(demo) = parse("tollgate demo --listen [::1]:80").unwrap() else { panic!() };
        assert_eq!((demo.listen, demo.admin_listen), (Some("[::1]:80".parse().unwrap()), None));
        let Command::Health(health) = parse("tollgate health").unwrap() else { panic!() };
        assert_eq!(
            (health.url.as_str(), health.timeout),
            ("http://127.0.0.1:9090/live", Duration::from_secs(3))
        );
        assert!(parse("tollgate demo --listen nowhere").is_err());
    }
}
