//! The sample applications, alone and behind their presets as `examples/README.md` shows them.
#![allow(clippy::duplicate_mod, reason = "each example is a program of its own and includes what they share")]

#[path = "../../examples/api_gateway.rs"]
mod api_gateway;
#[path = "../../examples/codepitamah.rs"]
mod codepitamah;
#[path = "../../examples/stms.rs"]
mod stms;
#[path = "../../examples/todo.rs"]
mod todo;

use std::net::{Ipv4Addr, SocketAddr};

use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::presets::{cached, in_front_of, wait_for_the_store};
use crate::support::client::{Client, Response, raw, raw_status};
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::token::{SECRET, Token};
use crate::support::{RUNTIME, wait_for};

/// Serves an application until the tests end.
fn start<F: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(TcpListener) -> F) -> SocketAddr {
    let listener = wait_for(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let addr = listener.local_addr().unwrap();
    RUNTIME.spawn(serve(listener));
    addr
}

fn with_secret<F: Future<Output = ()> + Send + 'static>(
    serve: impl FnOnce(TcpListener, String) -> F,
) -> SocketAddr {
    start(|listener| serve(listener, SECRET.to_owned()))
}

fn behind(preset: &str, application: SocketAddr) -> (Gateway, Redis) {
    let redis = Redis::start();
    let gateway = in_front_of(preset, application, &redis.url()).start();
    wait_for_the_store(&gateway);
    (gateway, redis)
}

fn post(client: &Client, path: &str, body: &Value) -> Response {
    client.post(path).json(body).send()
}

/// What an application says of a request that it refuses, in its own words.
fn detail(response: &Response) -> String {
    response.json()["detail"].as_str().unwrap_or_default().to_owned()
}

fn credentials(email: &str) -> Value {
    json!({ "name": "Ada", "email": email, "password": "password123" })
}

/// Registers and logs in.
fn todo_user(client: &Client, email: &str) -> String {
    assert_eq!(post(client, "/auth/register", &credentials(email)).code(), 201);
    let login = post(client, "/auth/login", &credentials(email));
    assert_eq!((login.code(), &login.json()["token_type"]), (200, &json!("bearer")));
    login.json()["access_token"].as_str().unwrap().to_owned()
}

fn stms_user(client: &Client, kind: &str, email: &str) -> (String, String) {
    let registered = post(client, &format!("/api/auth/{kind}/register"), &credentials(email));
    assert_eq!(registered.code(), 201, "{}", registered.text());
    let login = post(client, &format!("/api/auth/{kind}/login"), &credentials(email));
    assert_eq!(login.code(), 200, "{}", login.text());
    let login = login.json();
    (login["token"].as_str().unwrap().to_owned(), login["user"]["id"].as_str().unwrap().to_owned())
}

#[test]
fn bad_input_is_answered_and_nothing_breaks() {
    let paths =
        ["/", "/auth/login", "/auth/register", "/todo/", "/todo/x", "/analyze", "/items/x", "//%ff//"];
    let stms = ["/api/auth/student/login", "/api/auth/lecture", "/api/auth/x/register", "/api/auth"];
    let bodies: [&[u8]; 6] = [b"", b"nonsense", b"[1]", b"{\"email\":7}", b"\xff\xfe", &[b'['; 10_000]];
    let applications = [
        start(api_gateway::serve),
        with_secret(codepitamah::serve),
        with_secret(stms::serve),
        with_secret(todo::serve),
    ];
    for addr in applications {
        let client = Client::new(addr);
        for path in paths.iter().chain(&stms) {
            for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                for body in bodies {
                    let got = client.request(method.clone(), path).body(body).bearer("x.y.z").send();
                    let code = got.code();
                    assert!(code == 200 || (400..500).contains(&code), "{method} {path}: {code}");
                    assert!(got.json().is_object() || got.json().is_array());
                }
            }
        }
        let large = client.post("/auth/login").body(vec![b' '; 70_000]).send();
        assert_eq!((large.code(), detail(&large).as_str()), (413, "The body is too large"));
        assert_eq!(raw_status(&raw(addr, "nonsense\r\n\r\n")), Some(400));
    }
}

#[test]
fn the_applications_issue_tokens_of_their_own_and_take_no_others() {
    let todo = Client::new(with_secret(todo::serve));
    let bearer = todo_user(&todo, "ada@example.com");
    assert_eq!(todo.get("/auth/me").bearer(&bearer).send().json()["email"], "ada@example.com");
    assert_eq!(detail(&todo.get("/auth/me").send()), "Not authenticated");
    assert_eq!(todo.get("/auth/me").header("x-user-id", "ada").send().code(), 401, "it knows no gateway");
    assert_eq!(detail(&todo.get("/auth/me").bearer(&Token::of("ada").sign()).send()), "User not found");
    let signed = |token: Token| token.sign_with(b"another secret of 32 bytes or more");
    for bad in
        [signed(Token::of("ada")), Token::of("ada").unsigned(), Token::of("ada").expires_in(-100).sign()]
    {
        let refused = todo.get("/auth/me").bearer(&bad).send();
        assert_eq!((refused.code(), detail(&refused).as_str()), (401, "Invalid token"));
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(post(&todo, "/auth/register", &credentials("ADA@example.com")).code(), 409);
    let wrong = json!({ "email": "ada@example.com", "password": "guessing" });
    assert_eq!(detail(&post(&todo, "/auth/login", &wrong)), "Invalid email or password");
    // Two logins of one second are two tokens.
    let again = post(&todo, "/auth/login", &credentials("ada@example.com"));
    assert_ne!(again.json()["access_token"], bearer.as_str());
}

#[test]
fn todo_gains_a_cache_a_logout_and_limits() {
    let (gateway, _redis) = behind("todo", with_secret(todo::serve));
    let client = gateway.client();
    let [ada, bob] = ["ada@example.com", "bob@example.com"].map(|email| todo_user(&client, email));
    let get = |path: &str, bearer: &str| client.get(path).bearer(bearer).send();
    let created = client.post("/todo/").bearer(&ada).json(&json!({ "heading": "milk" })).send();
    assert_eq!((created.code(), &created.json()["id"]), (201, &json!(1)));
    let first = get("/todo/", &ada);
    let second = get("/todo/", &ada);
    assert_eq!((cached(&first), cached(&second)), ("MISS", "HIT"));
    assert_eq!(first.json()[0]["heading"], "milk");
    assert_eq!(first.header("x-backend-hits"), second.header("x-backend-hits"), "it was asked once");
    assert_eq!(get("/todo/", &bob).json(), json!([]));
    assert_eq!((get("/todo/1", &ada).code(), get("/todo/1", &bob).code()), (200, 404));

    let change = client.put("/todo/1").bearer(&ada).json(&json!({ "completed": true })).send();
    assert_eq!(change.code(), 200);
    assert_eq!(get("/todo/1", &ada).json()["completed"], true);
    assert_eq!(get("/todo/", &ada).json()[0]["completed"], true);
    assert_eq!(client.delete("/todo/1").bearer(&ada).send().code(), 200);
    assert_eq!(get("/todo/", &ada).json(), json!([]));

    assert_eq!(client.post("/auth/logout").bearer(&ada).send().json()["msg"], "Logged out successfully");
    assert_eq!(get("/todo/", &ada).detail(), "Token revoked");
    assert_eq!(get("/todo/", &bob).code(), 200);
    // Two of five logins are used up.
    let wrong = json!({ "email": "ada@example.com", "password": "guessing" });
    let codes: Vec<u16> = (0..4).map(|_| post(&client, "/auth/login", &wrong).code()).collect();
    assert_eq!(codes, [401, 401, 401, 429]);
}

#[test]
fn api_gateway_nodes_take_turns_and_are_told_who_asks() {
    let nodes = [(); 2].map(|()| start(api_gateway::serve));
    let redis = Redis::start();
    let gateway = in_front_of("api-gateway", nodes[0], &redis.url())
        .env("TOLLGATE_UPSTREAM", &format!("{},{}", nodes[0], nodes[1]))
        .start();
    wait_for_the_store(&gateway);
    let client = gateway.client();
    let mut seen: Vec<String> =
        (0..4).map(|_| client.get("/").send().json()["node"].as_str().unwrap().to_owned()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(client.get("/items").send().json().as_array().unwrap().len(), 3);
    assert_eq!(client.get("/items/bolt").send().json(), json!({ "name": "bolt", "price": 120 }));
    assert_eq!(client.get("/items/gear").send().code(), 404);
    let told =
        client.get("/whoami").bearer(&Token::of("ada").sign()).header("x-user-id", "root").send().json();
    assert_eq!(told["headers"]["x-user-id"], json!(["ada"]));
    assert_eq!(told["headers"]["x-forwarded-for"], json!(["127.0.0.1"]));
    let anonymous = client.get("/whoami").header("x-user-id", "root").send().json();
    assert_eq!(anonymous["headers"]["x-user-id"], Value::Null);
}

#[test]
fn codepitamah_gains_plans_and_permissions() {
    let (gateway, _redis) = behind("codepitamah", with_secret(codepitamah::serve));
    let client = gateway.client();
    let login = |plan: &str| {
        let body = json!({ "email": format!("{plan}@example.com"), "password": "password" });
        post(&client, "/auth/login", &body).json()["access_token"].as_str().unwrap().to_owned()
    };
    let ask = |path: &str, body: &Value, plan: &str| client.post(path).bearer(&login(plan)).json(body).send();
    let code = json!({ "code": "import os\nos.system('ls')\n" });
    let analysis = post(&client, "/analyze", &code);
    assert_eq!(
        (analysis.code(), analysis.header("x-ratelimit-limit"), &analysis.json()["findings"]),
        (200, Some("5"), &json!([{ "line": 2, "call": "os.system" }]))
    );
    for (plan, limit) in [("free", "50"), ("pro", "200"), ("enterprise", "2000")] {
        let response = ask("/analyze", &code, plan);
        assert_eq!((response.code(), response.header("x-ratelimit-limit")), (200, Some(limit)), "{plan}");
    }
    let project = json!({ "description": "a gateway with a cache and a cache" });
    assert_eq!(post(&client, "/architecture", &project).code(), 401);
    assert_eq!(ask("/architecture", &project, "free").code(), 403);
    let components = ask("/architecture", &project, "pro").json();
    assert_eq!(components["components"], json!(["cache", "gateway", "with"]));
}

#[test]
fn stms_alone_serves_students_trainers_and_lectures() {
    let client = Client::new(with_secret(stms::serve));
    let (ada, ada_id) = stms_user(&client, "student", "ada@example.com");
    let (tom, tom_id) = stms_user(&client, "trainer", "tom@example.com");
    let get = |path: &str, bearer: &str| client.get(path).bearer(bearer).send();
    let twice = post(&client, "/api/auth/trainer/login", &credentials("ada@example.com"));
    assert_eq!(twice.code(), 401, "a student is no trainer");
    assert_eq!(get("/api/auth/student/profile", &ada).json()["id"], ada_id.as_str());
    assert_eq!(get("/api/auth/trainer/profile", &ada).code(), 404);
    assert_eq!(get("/api/auth/student/students", &tom).json()["count"], 1);
    assert_eq!(get("/api/auth/trainer/trainers", &ada).json()["people"][0]["id"], tom_id.as_str());
    let student = format!("/api/auth/student/student/{ada_id}");
    let trainer = format!("/api/auth/trainer/trainer/{tom_id}");
    assert_eq!((get(&student, &tom).code(), get(&trainer, &ada).code()), (200, 200));
    assert_eq!(get(&format!("/api/auth/student/student/{tom_id}"), &ada).code(), 404);
    let rename =
        |path: &str, bearer: &str| client.put(path).bearer(bearer).json(&json!({ "name": "X" })).send();
    assert_eq!((rename(&student, &ada).code(), rename(&trainer, &ada).code()), (200, 403));
    assert_eq!(get(&student, &tom).json()["name"], "X");

    let lecture = json!({ "title": "Ownership", "date": "2001-02-03" });
    let create =
        |bearer: &str, body: &Value| client.post("/api/auth/lecture").bearer(bearer).json(body).send();
    assert_eq!(create(&ada, &lecture).code(), 403);
    assert_eq!(create(&tom, &json!({ "title": "x", "date": "2001-13-03" })).code(), 422);
    let old = create(&tom, &lecture).json()["id"].as_str().unwrap().to_owned();
    assert_eq!(create(&tom, &json!({ "title": "Borrowing" })).code(), 201);
    assert_eq!(get("/api/auth/lecture/all", &ada).json()["count"], 2);
    let today = get("/api/auth/lecture/today", &ada).json();
    assert!(today["lectures"].as_array().unwrap().iter().all(|lecture| lecture["id"] != old.as_str()));
    let path = format!("/api/auth/lecture/{old}");
    assert_eq!(get(&path, &ada).json()["date"], "2001-02-03");
    assert_eq!(client.delete(&path).bearer(&ada).send().code(), 403);
    assert_eq!(client.delete(&path).bearer(&tom).send().code(), 200);
    assert_eq!(get(&path, &ada).code(), 404);

    assert_eq!(client.post("/api/auth/student/logout").bearer(&ada).send().code(), 200);
    assert_eq!(get(&student, &ada).code(), 200, "its logout ends nothing");
    assert_eq!(client.delete(&student).bearer(&ada).send().code(), 200);
    assert_eq!(detail(&get("/api/auth/student/profile", &ada)), "User not found");
}

#[test]
fn stms_gains_sessions_a_cache_and_a_logout() {
    let (gateway, _redis) = behind("stms", with_secret(stms::serve));
    let client = gateway.client();
    let get = |path: &str, bearer: &str| client.get(path).bearer(bearer).send();
    let (ada, ada_id) = stms_user(&client, "student", "ada@example.com");
    let (tom, _) = stms_user(&client, "trainer", "tom@example.com");
    let student = format!("/api/auth/student/student/{ada_id}");
    let paths = ["/api/auth/student/students", "/api/auth/lecture/all", "/api/auth/lecture/today", &student];
    for path in paths {
        let (first, second) = (get(path, &ada), get(path, &tom));
        assert_eq!((first.code(), cached(&first)), (200, "MISS"), "{path}");
        assert_eq!((second.code(), cached(&second)), (200, "HIT"), "{path}");
        assert_eq!(first.header("x-backend-hits"), second.header("x-backend-hits"), "{path}");
    }
    let profile = "/api/auth/student/profile";
    assert_eq!(get(profile, &ada).json()["name"], "Ada");
    let renamed = client.put(&student).bearer(&ada).json(&json!({ "name": "Ada L." })).send();
    assert_eq!(renamed.code(), 200);
    assert_eq!(get(profile, &ada).json()["name"], "Ada L.");
    assert_eq!(get(&student, &tom).json()["name"], "Ada L.");
    assert_eq!(get("/api/auth/student/students", &tom).json()["people"][0]["name"], "Ada L.");
    let lecture = json!({ "title": "Borrowing" });
    assert_eq!(client.post("/api/auth/lecture").bearer(&tom).json(&lecture).send().code(), 201);
    assert_eq!(get("/api/auth/lecture/all", &ada).json()["count"], 1);

    assert_eq!(client.post("/api/auth/student/logout").bearer(&ada).send().json()["message"], "Goodbye");
    for path in paths {
        assert_eq!(get(path, &ada).detail(), "Token revoked", "{path}");
        assert_eq!(get(path, &tom).code(), 200, "{path}");
    }
    let login = post(&client, "/api/auth/student/login", &credentials("ada@example.com")).json();
    assert_eq!(get(profile, login["token"].as_str().unwrap()).code(), 200);
}
