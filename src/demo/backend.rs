//! The sample application behind the demo: a todo API that knows nothing of limits, tokens or caches. It trusts the
//! `X-User-Id` it is given and counts what it served, so that an answer from the cache can be told from a fresh one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use http::{HeaderValue, Method, Response, StatusCode, header};
use parking_lot::Mutex;
use pingora::apps::http_app::{HttpServer, ServeHttp};
use pingora::protocols::http::ServerSession;
use pingora::services::listening::Service;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::header_names::X_USER_ID;

const MAX_BODY: usize = 16 * 1024;
const MAX_TITLE: usize = 200;
const MAX_USERS: usize = 1_000;
const MAX_TODOS: usize = 100;
const BODY_TIME: Duration = Duration::from_secs(5);

/// The todos of every user, in memory and bounded.
pub struct Backend {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    served: u64,
    next_id: u64,
    users: HashMap<Box<str>, BTreeMap<u64, Box<str>>>,
}

#[derive(Deserialize)]
struct NewTodo {
    title: Box<str>,
}

/// The backend as a service on one thread; the caller adds a loopback address.
pub fn service(backend: Backend) -> Service<HttpServer<Backend>> {
    let mut service = Service::new("demo backend".to_owned(), HttpServer::new_app(backend));
    service.threads = Some(1);
    service
}

impl Backend {
    /// An empty backend.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// Answers one request. Every answer says when it was made and how many were made before it.
    fn respond(&self, method: &Method, path: &str, user: Option<&str>, body: &[u8]) -> (StatusCode, Value) {
        let mut state = self.state.lock();
        state.served += 1;
        let served = state.served;
        let (status, mut answer) = state.answer(method, path, user, body);
        if let Some(object) = answer.as_object_mut() {
            object.insert("served".to_owned(), served.into());
            object.insert("generated_at".to_owned(), self.clock.now().as_secs().into());
        }
        (status, answer)
    }
}

impl State {
    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        user: Option<&str>,
        body: &[u8],
    ) -> (StatusCode, Value) {
        let not_found = || (StatusCode::NOT_FOUND, json!({ "detail": "Not found" }));
        match (method.as_str(), path) {
            ("GET" | "HEAD", "/") => return (StatusCode::OK, json!({ "service": "sample todo API" })),
            ("POST", "/auth/login") => return (StatusCode::OK, json!({ "msg": "Welcome" })),
            _ => {}
        }
        let Some(user) = user else {
            return (StatusCode::FORBIDDEN, json!({ "detail": "No user" }));
        };
        if path == "/auth/me" && matches!(method.as_str(), "GET" | "HEAD") {
            return (StatusCode::OK, json!({ "user": user }));
        }
        let Some(id) = path.strip_prefix("/todo/") else { return not_found() };
        match (method.as_str(), id) {
            ("GET" | "HEAD", "") => {
                let todos = self.users.get(user).into_iter().flatten();
                let todos: Vec<Value> =
                    todos.map(|(id, title)| json!({ "id": id, "title": title })).collect();
                (StatusCode::OK, json!({ "user": user, "todos": todos }))
            }
            ("POST", "") => self.create(user, body),
            ("GET" | "HEAD", id) => {
                let found = id.parse().ok().and_then(|id: u64| Some((id, self.users.get(user)?.get(&id)?)));
                found.map_or_else(not_found, |(id, title)| {
                    (StatusCode::OK, json!({ "id": id, "title": title }))
                })
            }
            ("DELETE", id) => {
                let todos = self.users.get_mut(user);
                let removed = id.parse().ok().and_then(|id: u64| todos?.remove(&id));
                removed.map_or_else(not_found, |_| (StatusCode::OK, json!({ "msg": "Deleted" })))
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({ "detail": "Method not allowed" })),
        }
    }

    fn create(&mut self, user: &str, body: &[u8]) -> (StatusCode, Value) {
        let Ok(todo) = serde_json::from_slice::<NewTodo>(body) else {
            return (StatusCode::UNPROCESSABLE_ENTITY, json!({ "detail": "Send {\"title\": \"...\"}" }));
        };
        if todo.title.len() > MAX_TITLE {
            return (StatusCode::UNPROCESSABLE_ENTITY, json!({ "detail": "The title is too long" }));
        }
        let full = (StatusCode::INSUFFICIENT_STORAGE, json!({ "detail": "The sample backend is full" }));
        if !self.users.contains_key(user) && self.users.len() >= MAX_USERS {
            return full;
        }
        let todos = self.users.entry(user.into()).or_default();
        if todos.len() >= MAX_TODOS {
            return full;
        }
        self.next_id += 1;
        let answer = json!({ "id": self.next_id, "title": todo.title });
        todos.insert(self.next_id, todo.title);
        (StatusCode::CREATED, answer)
    }
}

#[async_trait]
impl ServeHttp for Backend {
    async fn response(&self, http: &mut ServerSession) -> Response<Vec<u8>> {
        let Ok(Some(body)) = tokio::time::timeout(BODY_TIME, read_body(http)).await else {
            return response(StatusCode::BAD_REQUEST, &json!({ "detail": "The body cannot be read" }), true);
        };
        let head = http.req_header();
        let user = head.headers.get(&X_USER_ID).and_then(|user| user.to_str().ok());
        let (status, answer) = self.respond(&head.method, head.uri.path(), user, &body);
        response(status, &answer, head.method != Method::HEAD)
    }
}

async fn read_body(http: &mut ServerSession) -> Option<BytesMut> {
    let mut body = BytesMut::new();
    while let Some(chunk) = http.read_request_body().await.ok()? {
        if body.len().saturating_add(chunk.len()) > MAX_BODY {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

fn response(status: StatusCode, answer: &Value, with_body: bool) -> Response<Vec<u8>> {
    let mut body = answer.to_string().into_bytes();
    body.push(b'\n');
    let length = HeaderValue::from(body.len());
    if !with_body {
        body.clear();
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, UnixMillis};

    fn backend() -> Backend {
        Backend::new(Arc::new(ManualClock::at(UnixMillis::from_secs(7))))
    }

    #[test]
    fn todos_belong_to_their_user() {
        let backend = backend();
        let call = |method: Method, path: &str, user, body: &str| {
            backend.respond(&method, path, user, body.as_bytes())
        };
        let (status, todo) = call(Method::POST, "/todo/", Some("alice"), r#"{"title":"milk"}"#);
        assert_eq!((status.as_u16(), &todo["id"]), (201, &json!(1)));
        let (_, list) = call(Method::GET, "/todo/", Some("alice"), "");
        assert_eq!(list["todos"], json!([{ "id": 1, "title": "milk" }]));
        assert_eq!((&list["served"], &list["generated_at"]), (&json!(2), &json!(7)));
        assert_eq!(call(Method::GET, "/todo/", Some("bob"), "").1["todos"], json!([]));
        assert_eq!(call(Method::GET, "/todo/1", Some("bob"), "").0, 404);
        assert_eq!(call(Method::DELETE, "/todo/1", Some("bob"), "").0, 404);
        assert_eq!(call(Method::GET, "/todo/1", Some("alice"), "").1["title"], "milk");
        assert_eq!(call(Method::DELETE, "/todo/1", Some("alice"), "").0, 200);
        assert_eq!(call(Method::GET, "/todo/1", Some("alice"), "").0, 404);
        assert_eq!(call(Method::GET, "/todo/", None, "").0, 403);
        assert_eq!(call(Method::POST, "/auth/login", None, "").0, 200);
        assert_eq!(call(Method::GET, "/elsewhere", Some("alice"), "").0, 404);
        assert_eq!(call(Method::POST, "/todo/", Some("alice"), "nonsense").0, 422);
    }

    #[test]
    fn a_user_cannot_fill_the_memory() {
        let backend = backend();
        let body = br#"{"title":"x"}"#;
        for _ in 0..MAX_TODOS {
            assert_eq!(backend.respond(&Method::POST, "/todo/", Some("alice"), body).0, 201);
        }
        assert_eq!(backend.respond(&Method::POST, "/todo/", Some("alice"), body).0, 507);
    }
}
