//! A todo service that knows nothing of a gateway: it issues tokens that nothing can revoke, looks up everything anew
//! each time, and lets everybody try passwords as fast as they like. `config/todo.toml` stands in front of it.
//!
//! ```text
//! JWT_SECRET=… cargo run --release --example todo -- --listen 127.0.0.1:8000
//! ```

mod common;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use http::StatusCode;
use jsonwebtoken::get_current_timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use common::accounts::{Accounts, Credentials};
use common::reply::{Answer, Reply};
use common::request::Request;
use common::server::{self, Application};
use common::token::{self, Tokens};

const TOKEN_LIFE: Duration = Duration::from_secs(3_600);
/// What a query of a database would take.
const QUERY: Duration = Duration::from_millis(100);
const MAX_TODOS: usize = 1_000;
const MAX_TEXT: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let secret = token::secret()?;
    server::run("127.0.0.1:8000", |listener| serve(listener, secret))
}

/// Serves the application at `listener`.
pub async fn serve(listener: TcpListener, secret: String) {
    let application =
        Todos { tokens: Tokens::new(&secret), accounts: Accounts::default(), users: Mutex::default() };
    server::serve(listener, application).await;
}

struct Todos {
    tokens: Tokens,
    accounts: Accounts,
    users: Mutex<HashMap<String, User>>,
}

struct User {
    name: String,
    email: String,
    next: u64,
    todos: BTreeMap<u64, Todo>,
}

#[derive(Clone, Serialize)]
struct Todo {
    id: u64,
    heading: String,
    task: String,
    completed: bool,
    /// Seconds since 1970.
    created_at: u64,
    updated_at: u64,
}

#[derive(Deserialize)]
struct Registration {
    #[serde(default)]
    name: String,
    #[serde(flatten)]
    credentials: Credentials,
}

#[derive(Deserialize)]
struct NewTodo {
    heading: String,
    #[serde(default)]
    task: String,
}

#[derive(Deserialize)]
struct Change {
    heading: Option<String>,
    task: Option<String>,
    completed: Option<bool>,
}

impl Application for Todos {
    fn answer(&self, request: &Request) -> Answer {
        let (method, path) = request.route();
        match (method, &*path) {
            ("GET", []) => Ok(Reply::ok(json!({ "service": "todo" }))),
            ("POST", ["auth", "register"]) => self.register(request),
            ("POST", ["auth", "login"]) => self.login(request),
            ("GET", ["auth", "me"]) => self.with_user(request, |id, user| {
                let profile = json!({ "id": id, "name": user.name, "email": user.email });
                Ok(Reply::ok(profile).after(QUERY))
            }),
            ("GET", ["todo"]) => self.with_user(request, |_, user| {
                let todos: Vec<&Todo> = user.todos.values().collect();
                Ok(Reply::ok(json!(todos)).after(QUERY))
            }),
            ("POST", ["todo"]) => self.with_user(request, |_, user| create(user, request.json()?)),
            (method, ["todo", id]) => self.with_user(request, |_, user| record(user, method, id, request)),
            _ => Err(Reply::not_found()),
        }
    }
}

impl Todos {
    fn register(&self, request: &Request) -> Answer {
        let Registration { name, credentials } = request.json()?;
        bounded(&[&name])?;
        let id = self.accounts.register(&credentials)?;
        let email = credentials.email.trim().to_lowercase();
        let user = User { name, email, next: 1, todos: BTreeMap::new() };
        self.users.lock().insert(id.clone(), user);
        Ok(Reply::new(StatusCode::CREATED, json!({ "id": id, "msg": "User registered successfully" })))
    }

    fn login(&self, request: &Request) -> Answer {
        let id = self.accounts.login(&request.json()?)?;
        let token = self.tokens.issue([("sub", id.into())], TOKEN_LIFE)?;
        Ok(Reply::ok(json!({ "access_token": token, "token_type": "bearer" })).after(QUERY))
    }

    fn with_user(&self, request: &Request, answer: impl FnOnce(&str, &mut User) -> Answer) -> Answer {
        let claims = self.tokens.claims(request)?;
        let id = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let mut users = self.users.lock();
        match users.get_mut(id) {
            Some(user) => answer(id, user),
            None => Err(Reply::refusal(StatusCode::UNAUTHORIZED, "User not found")),
        }
    }
}

fn create(user: &mut User, NewTodo { heading, task }: NewTodo) -> Answer {
    bounded(&[&heading, &task])?;
    if user.todos.len() >= MAX_TODOS {
        return Err(Reply::full());
    }
    let (id, now) = (user.next, get_current_timestamp());
    let todo = Todo { id, heading, task, completed: false, created_at: now, updated_at: now };
    user.next += 1;
    user.todos.insert(id, todo.clone());
    Ok(Reply::new(StatusCode::CREATED, json!(todo)))
}

fn record(user: &mut User, method: &str, id: &str, request: &Request) -> Answer {
    let id: u64 = id.parse().map_err(|_| Reply::not_found())?;
    let todo = user.todos.get_mut(&id).ok_or_else(Reply::not_found)?;
    match method {
        "GET" => Ok(Reply::ok(json!(todo)).after(QUERY)),
        "PUT" | "PATCH" => {
            let Change { heading, task, completed } = request.json()?;
            let heading = heading.unwrap_or_else(|| todo.heading.clone());
            let task = task.unwrap_or_else(|| todo.task.clone());
            bounded(&[&heading, &task])?;
            *todo = Todo {
                heading,
                task,
                completed: completed.unwrap_or(todo.completed),
                updated_at: get_current_timestamp(),
                ..*todo
            };
            Ok(Reply::ok(json!({ "msg": "Todo updated successfully" })))
        }
        "DELETE" => {
            user.todos.remove(&id);
            Ok(Reply::ok(json!({ "msg": "Todo deleted successfully" })))
        }
        _ => Err(Reply::refusal(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")),
    }
}

fn bounded(texts: &[&str]) -> Result<(), Reply> {
    if texts.iter().any(|text| text.len() > MAX_TEXT) {
        return Err(Reply::unacceptable("A text is longer than 1000 bytes"));
    }
    Ok(())
}
