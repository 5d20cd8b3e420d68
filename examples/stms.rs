//! A training management service that knows nothing of a gateway: students, trainers and lectures. Its tokens are good
//! until they expire, and its logout only says goodbye. `config/stms.toml` stands in front of it.
//!
//! ```text
//! JWT_SECRET=… cargo run --release --example stms -- --listen 127.0.0.1:5000
//! ```

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use jsonwebtoken::get_current_timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use common::accounts::{Accounts, Credentials, new_id};
use common::reply::{Answer, Reply};
use common::request::Request;
use common::server::{self, Application};
use common::token::{self, Tokens};

const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// What a query of a database would take.
const QUERY: Duration = Duration::from_millis(100);
const MAX_LECTURES: usize = 10_000;
const MAX_TEXT: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let secret = token::secret()?;
    server::run("127.0.0.1:5000", |listener| serve(listener, secret))
}

/// Serves the application at `listener`.
pub async fn serve(listener: TcpListener, secret: String) {
    let application =
        Training { tokens: Tokens::new(&secret), accounts: Accounts::default(), state: Mutex::default() };
    server::serve(listener, application).await;
}

struct Training {
    tokens: Tokens,
    accounts: Accounts,
    state: Mutex<State>,
}

/// Everything by its id.
#[derive(Default)]
struct State {
    people: BTreeMap<String, Person>,
    lectures: BTreeMap<String, Lecture>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Student,
    Trainer,
}

#[derive(Clone, Serialize)]
struct Person {
    id: String,
    role: Role,
    name: String,
    email: String,
}

#[derive(Clone, Serialize)]
struct Lecture {
    id: String,
    title: String,
    /// `YYYY-MM-DD`, UTC.
    date: String,
    trainer: String,
}

#[derive(Deserialize)]
struct Registration {
    name: String,
    #[serde(flatten)]
    credentials: Credentials,
}

#[derive(Deserialize)]
struct NewName {
    name: String,
}

#[derive(Deserialize)]
struct LectureText {
    title: String,
    date: Option<String>,
}

impl Application for Training {
    fn answer(&self, request: &Request) -> Answer {
        let (method, path) = request.route();
        let ["api", "auth", path @ ..] = &*path else { return Err(Reply::not_found()) };
        match (method, path) {
            (method, ["lecture", path @ ..]) => self.lecture(method, path, request),
            ("POST", [role, "register"]) => self.register(Role::of(role)?, request),
            ("POST", [role, "login"]) => self.login(Role::of(role)?, request),
            ("POST", [_, "logout"]) => {
                self.caller(request).map(|_| Reply::ok(json!({ "message": "Goodbye" })))
            }
            ("GET", [role, "profile"]) => {
                let caller = self.caller(request)?;
                let known = caller.role == Role::of(role)?;
                known.then(|| Reply::ok(json!(caller)).after(QUERY)).ok_or_else(Reply::not_found)
            }
            ("GET", ["student", "students"]) => self.people(Role::Student, request),
            ("GET", ["trainer", "trainers"]) => self.people(Role::Trainer, request),
            (method, ["student", "student", id]) => self.person(method, Role::Student, id, request),
            (method, ["trainer", "trainer", id]) => self.person(method, Role::Trainer, id, request),
            _ => Err(Reply::not_found()),
        }
    }
}

impl Training {
    fn register(&self, role: Role, request: &Request) -> Answer {
        let Registration { name, credentials } = request.json()?;
        bounded(&name)?;
        let id = self.accounts.register(&credentials)?;
        let email = credentials.email.trim().to_lowercase();
        let person = Person { id: id.clone(), role, name, email };
        self.state.lock().people.insert(id, person.clone());
        Ok(Reply::new(StatusCode::CREATED, json!({ "message": "Registered", "user": person })))
    }

    fn login(&self, role: Role, request: &Request) -> Answer {
        let id = self.accounts.login(&request.json()?)?;
        let person = self.state.lock().people.get(&id).filter(|person| person.role == role).cloned();
        let person = person.ok_or_else(|| unauthorized("Invalid email or password"))?;
        let token = self.tokens.issue([("id", id.into()), ("role", json!(role))], TOKEN_LIFE)?;
        Ok(Reply::ok(json!({ "message": "Welcome", "token": token, "user": person })).after(QUERY))
    }

    /// Whose token the request carries.
    fn caller(&self, request: &Request) -> Result<Person, Reply> {
        let claims = self.tokens.claims(request)?;
        let id = claims.get("id").or_else(|| claims.get("sub")).and_then(Value::as_str).unwrap_or_default();
        self.state.lock().people.get(id).cloned().ok_or_else(|| unauthorized("User not found"))
    }

    fn people(&self, role: Role, request: &Request) -> Answer {
        self.caller(request)?;
        let state = self.state.lock();
        let people: Vec<&Person> = state.people.values().filter(|person| person.role == role).collect();
        Ok(Reply::ok(json!({ "count": people.len(), "people": people })).after(QUERY))
    }

    /// A record, which trainers and whom it is about may change.
    fn person(&self, method: &str, role: Role, id: &str, request: &Request) -> Answer {
        let caller = self.caller(request)?;
        let mut state = self.state.lock();
        let person = state.people.get_mut(id).filter(|person| person.role == role);
        let person = person.ok_or_else(Reply::not_found)?;
        if method == "GET" {
            return Ok(Reply::ok(json!(person)).after(QUERY));
        }
        if caller.role != Role::Trainer && caller.id != id {
            return Err(forbidden("This is not your record"));
        }
        match method {
            "PUT" | "PATCH" => {
                let NewName { name } = request.json()?;
                bounded(&name)?;
                person.name = name;
                Ok(Reply::ok(json!(person)))
            }
            "DELETE" => {
                state.people.remove(id);
                self.accounts.remove(id);
                Ok(Reply::ok(json!({ "message": "Deleted" })))
            }
            _ => Err(method_not_allowed()),
        }
    }

    /// Lectures, which everybody may read and trainers may change.
    fn lecture(&self, method: &str, path: &[&str], request: &Request) -> Answer {
        let caller = self.caller(request)?;
        if method != "GET" && caller.role != Role::Trainer {
            return Err(forbidden("Only trainers may do this"));
        }
        let mut state = self.state.lock();
        match (method, path) {
            ("GET", ["all"]) => Ok(lectures(state.lectures.values())),
            ("GET", ["today"]) => {
                let today = today();
                Ok(lectures(state.lectures.values().filter(|lecture| lecture.date == today)))
            }
            ("POST", []) => {
                if state.lectures.len() >= MAX_LECTURES {
                    return Err(Reply::full());
                }
                let LectureText { title, date } = request.json()?;
                bounded(&title)?;
                let date = date.map_or_else(|| Ok(today()), checked_date)?;
                let lecture = Lecture { id: new_id(), title, date, trainer: caller.name };
                state.lectures.insert(lecture.id.clone(), lecture.clone());
                Ok(Reply::new(StatusCode::CREATED, json!(lecture)))
            }
            (method, [id]) => {
                let lecture = state.lectures.get_mut(*id).ok_or_else(Reply::not_found)?;
                match method {
                    "GET" => Ok(Reply::ok(json!(lecture)).after(QUERY)),
                    "PUT" | "PATCH" => {
                        let LectureText { title, date } = request.json()?;
                        bounded(&title)?;
                        lecture.date = date.map_or_else(|| Ok(lecture.date.clone()), checked_date)?;
                        lecture.title = title;
                        Ok(Reply::ok(json!(lecture)))
                    }
                    "DELETE" => {
                        state.lectures.remove(*id);
                        Ok(Reply::ok(json!({ "message": "Deleted" })))
                    }
                    _ => Err(method_not_allowed()),
                }
            }
            _ => Err(Reply::not_found()),
        }
    }
}

impl Role {
    fn of(segment: &str) -> Result<Self, Reply> {
        match segment {
            "student" => Ok(Self::Student),
            "trainer" => Ok(Self::Trainer),
            _ => Err(Reply::not_found()),
        }
    }
}

fn lectures<'a>(some: impl Iterator<Item = &'a Lecture>) -> Reply {
    let lectures: Vec<&Lecture> = some.collect();
    Reply::ok(json!({ "count": lectures.len(), "lectures": lectures })).after(QUERY)
}

fn today() -> String {
    let now = UNIX_EPOCH + Duration::from_secs(get_current_timestamp());
    humantime::format_rfc3339_seconds(now).to_string().chars().take(10).collect()
}

fn checked_date(date: String) -> Result<String, Reply> {
    match humantime::parse_rfc3339(&format!("{date}T00:00:00Z")) {
        Ok(_) => Ok(date),
        Err(_) => Err(Reply::unacceptable("date must be YYYY-MM-DD")),
    }
}

fn bounded(text: &str) -> Result<(), Reply> {
    if text.is_empty() || text.len() > MAX_TEXT {
        return Err(Reply::unacceptable("Names and titles have 1 to 1000 bytes"));
    }
    Ok(())
}

fn unauthorized(detail: &str) -> Reply {
    Reply::refusal(StatusCode::UNAUTHORIZED, detail)
}

fn forbidden(detail: &str) -> Reply {
    Reply::refusal(StatusCode::FORBIDDEN, detail)
}

fn method_not_allowed() -> Reply {
    Reply::refusal(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
}
