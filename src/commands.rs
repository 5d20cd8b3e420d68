//! What each command does. Text goes to standard output, problems to standard error; exit code 1 says that the
//! answer is no.

mod api_tokens;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tollgate::api_tokens::is_api_token;
use tollgate::app::{self, Extras};
use tollgate::cli::{self, Command, KeySource, Token};
use tollgate::clock::{Clock as _, SystemClock};
use tollgate::config::{self, Loaded, Spec, Variables, spec};
use tollgate::demo;
use tollgate::identity::mint::{MintKey, MintRequest, mint};
use tollgate::identity::{self, Algorithm, Issuer, Key, KeySet, Verifier, inspect};

/// Longest token read from standard input.
const MAX_INPUT: u64 = 64 * 1024;

/// Does what `command` says.
pub fn execute(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(arguments) => run(&arguments.config),
        Command::Check(arguments) => Ok(check(&arguments.config)),
        Command::Demo(arguments) => run_demo(arguments),
        Command::Token(Token::Mint(arguments)) => mint_token(arguments),
        Command::Token(Token::Inspect(arguments)) => inspect_token(arguments),
        Command::ApiToken(command) => api_tokens::execute(command),
        Command::Health(arguments) => health(arguments),
    }
}

fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let Some(loaded) = load(path) else { return Ok(ExitCode::FAILURE) };
    let file = Some(path.display().to_string().into());
    app::run(&loaded, Extras { file, ..Extras::default() })?;
    Ok(ExitCode::SUCCESS)
}

fn load(path: &Path) -> Option<Loaded> {
    match config::load(path, &Variables::from_process()) {
        Ok(loaded) => Some(loaded),
        Err(errors) => {
            eprintln!("{errors}");
            None
        }
    }
}

fn check(path: &Path) -> ExitCode {
    let Some(loaded) = load(path) else { return ExitCode::FAILURE };
    if let Err(errors) = app::check(&loaded) {
        eprintln!("{errors}");
        return ExitCode::FAILURE;
    }
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let Spec { environment, routes, policies, upstreams, issuers, redis, .. } = &loaded.spec;
    let store = redis.url.as_ref().map_or_else(|| "memory only".to_owned(), ToString::to_string);
    println!(
        "OK: {} ({environment}): {}, {}, {}, {}; store: {store}",
        path.display(),
        counted(routes.len(), "route", "routes"),
        counted(policies.len(), "policy", "policies"),
        counted(upstreams.len(), "upstream", "upstreams"),
        counted(issuers.len(), "issuer", "issuers"),
    );
    ExitCode::SUCCESS
}

fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

fn run_demo(arguments: &cli::Demo) -> anyhow::Result<ExitCode> {
    let variables = Variables::from_process();
    let address = |given: Option<SocketAddr>, name: &str, default: u16| match (given, variables.get(name)) {
        (Some(given), _) => Ok(given),
        (None, Some(text)) if !text.is_empty() => {
            text.parse().with_context(|| format!("{name}: {text:?} is not an address such as 127.0.0.1:8080"))
        }
        _ => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, default))),
    };
    let listen = address(arguments.listen, "TOLLGATE_LISTEN", 8080)?;
    let admin_listen = address(arguments.admin_listen, "TOLLGATE_ADMIN_LISTEN", 9090)?;
    // Free a moment ago: as good as reserved on the loopback interface of one machine.
    let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;

    let mut secret = [0_u8; 32];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("no randomness for a secret: {error}"))?;
    let secret = tollgate::identifiers::sha256_hex(&secret);
    let demo_variables: Variables =
        [(demo::SECRET_VARIABLE.to_owned(), secret.clone())].into_iter().collect();
    let text = demo::configuration(listen, admin_listen, backend);
    let loaded =
        config::from_str(&text, "demo", &demo_variables).map_err(|errors| anyhow::anyhow!("{errors}"))?;

    let key = MintKey::secret(Algorithm::HS256, secret.as_bytes())?;
    let now = SystemClock.now();
    let alice = mint(&MintRequest::new("alice"), &key, now)?;
    let bob = mint(&MintRequest::new("bob"), &key, now)?;
    let colour = std::io::stdout().is_terminal() && variables.get("NO_COLOR").is_none_or(str::is_empty);
    let banner = demo::tour(listen, admin_listen, demo::Tokens { alice: &alice, bob: &bob }, colour);
    let mut service = demo::service(demo::Backend::new(Arc::new(SystemClock)));
    service.add_tcp(&backend.to_string());
    let extras = Extras { file: None, services: vec![Box::new(service)], banner: Some(banner) };
    app::run(&loaded, extras)?;
    Ok(ExitCode::SUCCESS)
}

fn mint_token(arguments: &cli::Mint) -> anyhow::Result<ExitCode> {
    let mut request = MintRequest::new(arguments.subject.clone());
    request.plan.clone_from(&arguments.plan);
    request.permissions.clone_from(&arguments.permissions);
    request.multiplier = arguments.multiplier;
    request.lifetime = arguments.lifetime;
    request.extra = arguments.claims.iter().cloned().collect();
    let key = match &arguments.key {
        KeySource { secret_env: Some(name), .. } => {
            MintKey::secret(Algorithm::HS256, secret(name)?.as_bytes())?
        }
        KeySource { config: Some(path), .. } => {
            let Some(loaded) = load(path) else { return Ok(ExitCode::FAILURE) };
            let issuer = issuer(&loaded.spec, arguments.issuer.as_deref())?;
            request.issuer = issuer.issuer.as_deref().map(str::to_owned);
            request.audience = issuer.audience.first().map(|audience| audience.clone().into());
            mint_key(issuer, loaded.spec.environment)?
        }
        KeySource { .. } => bail!("name a configuration (--config) or a variable (--secret-env)"),
    };
    println!("{}", mint(&request, &key, SystemClock.now())?);
    Ok(ExitCode::SUCCESS)
}

fn issuer<'a>(spec: &'a Spec, name: Option<&str>) -> anyhow::Result<&'a spec::Issuer> {
    let names = || spec.issuers.iter().map(|issuer| &*issuer.name).collect::<Vec<_>>().join(", ");
    match (name, spec.issuers.as_slice()) {
        (Some(name), issuers) => issuers
            .iter()
            .find(|issuer| *issuer.name == *name)
            .with_context(|| format!("no issuer is named {name:?}; there are: {}", names())),
        (None, [only]) => Ok(only),
        (None, []) => bail!("the configuration names no issuer"),
        (None, _) => bail!("several issuers are configured; choose one with --issuer: {}", names()),
    }
}

fn mint_key(issuer: &spec::Issuer, environment: spec::Environment) -> anyhow::Result<MintKey> {
    let algorithm = issuer.algorithms.first().copied().context("the issuer allows no algorithm")?;
    let algorithm = app::algorithm(algorithm);
    for key in &issuer.keys {
        if let spec::KeyMaterial::Secret(secret) = &key.material {
            let secret = secret.expose().as_bytes();
            let made = match environment {
                spec::Environment::Development => MintKey::weak_secret(algorithm, secret)?,
                spec::Environment::Production => MintKey::secret(algorithm, secret)?,
            };
            return Ok(match &key.kid {
                Some(kid) => made.named(kid.clone()),
                None => made,
            });
        }
    }
    bail!("issuer {:?} has public keys only: its tokens are signed elsewhere", issuer.name)
}

fn secret(name: &str) -> anyhow::Result<String> {
    let variables = Variables::from_process();
    variables.get(name).map(str::to_owned).with_context(|| format!("the variable {name} is not set"))
}

/// What `token inspect` ends with when it could not read the keys that it would take.
const UNDECIDED: u8 = 2;

fn inspect_token(arguments: &cli::Inspect) -> anyhow::Result<ExitCode> {
    let token = if let Some(token) = arguments.given() {
        token.to_owned()
    } else {
        let mut text = String::new();
        std::io::stdin().take(MAX_INPUT).read_to_string(&mut text)?;
        text
    };
    let token = token.trim();
    if is_api_token(token) {
        return api_tokens::inspect(token, &arguments.key);
    }
    let (verifier, is_whole) = match &arguments.key {
        KeySource { secret_env: Some(name), .. } => {
            let keys = KeySet::new(vec![Key::secret(secret(name)?.as_bytes())?])?;
            let issuer = Issuer::new(name.as_str(), Vec::new(), [Algorithm::HS256], keys)?;
            (Verifier::new(identity::verifier::Settings::new(vec![issuer])?), true)
        }
        KeySource { config: Some(path), .. } => {
            let Some(loaded) = load(path) else { return Ok(ExitCode::FAILURE) };
            let (verifier, troubles) = app::verifier_now(&loaded.spec)?;
            for trouble in &troubles {
                eprintln!("tollgate: {trouble}");
            }
            (verifier, troubles.is_empty())
        }
        KeySource { .. } => bail!("name a configuration (--config) or a variable (--secret-env)"),
    };
    let mut report = inspect::inspect(token, &verifier, SystemClock.now());
    report.undecided &= !is_whole;
    match writeln!(std::io::stdout(), "{report}") {
        // Nobody reads on, as in `| head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(match (report.accepted, report.undecided) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(UNDECIDED),
        (false, false) => ExitCode::FAILURE,
    })
}

fn health(arguments: &cli::Health) -> anyhow::Result<ExitCode> {
    let status = cli::probe(&arguments.url, arguments.timeout)?;
    println!("{status}");
    Ok(if (200..300).contains(&status) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
