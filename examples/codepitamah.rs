//! A code-analysis API that knows nothing of a gateway: whoever asks is served, with a token or without.
//! `config/codepitamah.toml` stands in front of it.
//!
//! ```text
//! JWT_SECRET=… cargo run --release --example codepitamah -- --listen 127.0.0.1:8000
//! ```
//!
//! `free@example.com`, `pro@example.com` and `enterprise@example.com` log in with the password `password`.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use common::accounts::{Accounts, Credentials};
use common::reply::{Answer, Reply};
use common::request::Request;
use common::server::{self, Application};
use common::token::{self, Tokens};

const TOKEN_LIFE: Duration = Duration::from_secs(3_600);
/// What an analysis takes.
const ANALYSIS: Duration = Duration::from_millis(100);

/// Calls that run what they are given.
const DANGEROUS: [&str; 5] = ["eval(", "exec(", "os.system(", "subprocess.", "__import__("];

const MEMBERS: [Member; 3] = [
    Member { email: "free@example.com", plan: "free", multiplier: 1.0, permissions: &["code_analysis"] },
    Member { email: "pro@example.com", plan: "pro", multiplier: 1.0, permissions: ALL },
    Member { email: "enterprise@example.com", plan: "enterprise", multiplier: 2.0, permissions: ALL },
];
const ALL: &[&str] = &["code_analysis", "architecture_generation"];

struct Member {
    email: &'static str,
    plan: &'static str,
    multiplier: f64,
    permissions: &'static [&'static str],
}

fn main() -> anyhow::Result<()> {
    let secret = token::secret()?;
    server::run("127.0.0.1:8000", |listener| serve(listener, secret))
}

/// Serves the application at `listener`.
pub async fn serve(listener: TcpListener, secret: String) {
    let accounts = Accounts::default();
    let register = |member: &'static Member| {
        let credentials = Credentials { email: member.email.to_owned(), password: "password".to_owned() };
        accounts.register(&credentials).ok().map(|id| (id, member))
    };
    let members = MEMBERS.iter().filter_map(register).collect();
    server::serve(listener, Analyser { tokens: Tokens::new(&secret), accounts, members }).await;
}

struct Analyser {
    tokens: Tokens,
    accounts: Accounts,
    members: HashMap<String, &'static Member>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
    #[serde(default)]
    language: Option<String>,
}

#[derive(Deserialize)]
struct Project {
    description: String,
}

impl Application for Analyser {
    fn answer(&self, request: &Request) -> Answer {
        let (method, path) = request.route();
        match (method, &*path) {
            ("GET", ["health"]) => Ok(Reply::ok(json!({ "status": "healthy" }))),
            ("POST", ["auth", "login"]) => self.login(request),
            ("POST", ["analyze"]) => Ok(Reply::ok(analysis(&request.json()?)).after(ANALYSIS)),
            ("POST", ["architecture"]) => Ok(Reply::ok(architecture(&request.json()?)).after(ANALYSIS)),
            _ => Err(Reply::not_found()),
        }
    }
}

impl Analyser {
    fn login(&self, request: &Request) -> Answer {
        let id = self.accounts.login(&request.json()?)?;
        let member = self.members.get(&id).ok_or_else(Reply::not_found)?;
        let claims = [
            ("user_id", id.into()),
            ("email", member.email.into()),
            ("subscription_plan", member.plan.into()),
            ("rate_limit_multiplier", member.multiplier.into()),
            ("permissions", json!(member.permissions)),
        ];
        let token = self.tokens.issue(claims, TOKEN_LIFE)?;
        Ok(Reply::ok(json!({ "access_token": token, "token_type": "bearer" })))
    }
}

fn analysis(Code { code, language }: &Code) -> Value {
    let findings: Vec<Value> = code
        .lines()
        .zip(1_u32..)
        .flat_map(|(line, number)| DANGEROUS.iter().map(move |call| (line, number, call)))
        .filter(|(line, _, call)| line.contains(**call))
        .map(|(_, number, call)| json!({ "line": number, "call": call.trim_end_matches(['(', '.']) }))
        .collect();
    json!({
        "language": language.as_deref().unwrap_or("python"),
        "lines": code.lines().count(),
        "longest_line": code.lines().map(|line| line.chars().count()).max().unwrap_or(0),
        "dangerous": !findings.is_empty(),
        "findings": findings,
    })
}

/// One component for each noun-like word: enough to have something to answer.
fn architecture(Project { description }: &Project) -> Value {
    let mut components: Vec<String> = description
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| word.chars().count() > 3)
        .map(str::to_lowercase)
        .collect();
    components.sort();
    components.dedup();
    json!({ "components": components })
}
