//! Callers that look alike to a careless gateway: the same subject of two issuers, a token where nobody looks, a
//! body that no header tells of, a host that a proxy passes on. None may get what was made for another.

use serde_json::json;

use crate::cache::x_cache;
use crate::support::client::{RawConnection, raw_status};
use crate::support::gateway::Gateway;
use crate::support::origin::{Origin, Received, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_h2;
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::token::{SECRET, Token};

const OTHER_SECRET: &str = "another-secret-of-at-least-32-bytes!";

fn echo(request: &Received) -> Reply {
    let say = |name| request.header(name).unwrap_or("-").to_owned();
    let body = json!({
        "user": say("x-user-id"),
        "token": say("x-token"),
        "host": say("host"),
        "told": say("x-forwarded-host"),
        "query": request.target,
        "body": String::from_utf8_lossy(&request.body),
    });
    Reply::json(200, &body).header("cache-control", "public, max-age=60")
}

fn start(origin: &Origin, rest: &str) -> Gateway {
    origin.answer(echo);
    let text = format!("[upstreams.app]\nmembers = \"{}\"\n{rest}", origin.addr());
    Gateway::builder().config(&text).start()
}

#[test]
fn one_subject_of_two_issuers_is_two_users() {
    let origin = Origin::start();
    let gateway = start(
        &origin,
        &format!(
            "[issuers.one]\nalgorithms = [\"HS256\"]\nissuer = \"one\"\nsecret = \"{SECRET}\"\n\
             [issuers.two]\nalgorithms = [\"HS256\"]\nissuer = \"two\"\nsecret = \"{OTHER_SECRET}\"\n\
             [policies.user]\nkey = \"user\"\nlimit = 5\nwindow = \"1h\"\n\
             [[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\nauth = \"required\"\nlimits = [\"user\"]\n\
             cache = {{ ttl = \"1m\" }}\n\
             [[routes]]\nname = \"out\"\nmethods = [\"POST\"]\npath = \"/out\"\nauth = \"required\"\nlogout = \"gateway\"\n"
        ),
    );
    let one = Token::of("1").claim("iss", "one").claim("jti", "same");
    let two = Token::of("1").claim("iss", "two").claim("jti", "same");
    let (one, two) = (one.sign(), two.sign_with(OTHER_SECRET.as_bytes()));
    let client = gateway.client();
    let get = |token: &str| client.get("/mine").bearer(token).send();
    assert_eq!((get(&one).code(), x_cache(&get(&one))), (200, "HIT".to_owned()));
    let stranger = get(&two);
    assert_eq!((stranger.code(), x_cache(&stranger)), (200, "MISS".to_owned()));
    assert_eq!(stranger.header("x-ratelimit-remaining"), Some("4"), "limits are counted apart");
    // Logging out one of them, by an id that both chose, leaves the other alone.
    assert_eq!(client.post("/out").bearer(&two).send().code(), 200);
    assert_eq!(get(&two).detail(), "Token revoked");
    assert_eq!(get(&one).code(), 200);
}

#[test]
fn a_token_on_a_route_that_does_not_look_at_it_makes_no_entry_for_everybody() {
    let origin = Origin::start();
    let gateway = start(
        &origin,
        "[identity]\ntoken_from = [\"header:X-Token\", \"query:token\"]\n\
         [issuers.main]\nalgorithms = [\"HS256\"]\nsecret = \"${JWT_SECRET}\"\n\
         [[routes]]\nname = \"open\"\npath = \"/**\"\nupstream = \"app\"\n\
         [routes.cache]\nttl = \"1m\"\nquery = \"ignore\"\n",
    );
    let client = gateway.client();
    for round in 0..2 {
        let ada = client.get("/page").header("x-token", "ada").send();
        assert_eq!(
            (x_cache(&ada), ada.json()["token"].as_str()),
            ("BYPASS".to_owned(), Some("ada")),
            "{round}"
        );
        let asked = client.get("/page?token=eve").send();
        assert_eq!(x_cache(&asked), "BYPASS", "{round}");
        let nobody = client.get("/page").send();
        assert_eq!(nobody.json()["token"].as_str(), Some("-"), "{round}");
        assert_eq!(nobody.json()["query"].as_str(), Some("/page"), "{round}");
    }
}

#[test]
fn a_body_that_only_http_2_shows_keeps_a_get_out_of_the_cache() {
    let origin = Origin::start();
    let h2c = free_addr();
    let gateway = start(
        &origin,
        &format!(
            "[server]\nlisten = \"{{listen}}\"\nlisten_h2c = \"{h2c}\"\n\
             [[routes]]\nname = \"open\"\npath = \"/**\"\nupstream = \"app\"\ncache = {{ ttl = \"1m\", shared = true }}\n"
        ),
    );
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/page")];
    let answered = raw_h2::request(h2c, &fields, b"evil");
    assert_eq!(answered, raw_h2::Outcome::Answered { ok: true });
    assert_eq!(origin.last().body.as_ref(), b"evil", "the upstream did read it");
    let clean = gateway.client().get("/page").host("a").send();
    assert_eq!((x_cache(&clean), clean.json()["body"].as_str()), ("MISS".to_owned(), Some("")));
}

#[test]
fn a_host_that_a_proxy_passes_on_neither_routes_nor_replaces_the_one_that_does() {
    let origin = Origin::start();
    let gateway = start(
        &origin,
        "[server]\nlisten = \"{listen}\"\ntrusted_proxies = \"127.0.0.0/8\"\n\
         [[routes]]\nname = \"open\"\npath = \"/**\"\nupstream = \"app\"\ncache = { ttl = \"1m\", shared = true }\n",
    );
    let client = gateway.client();
    let forged = client.get("/page").host("a").header("x-forwarded-host", "b").send();
    assert_eq!(forged.json()["told"].as_str(), Some("b"));
    for host in ["a", "b"] {
        let honest = client.get("/page").host(host).send();
        assert_eq!((x_cache(&honest), honest.json()["host"].as_str()), ("MISS".to_owned(), Some(host)));
        assert_eq!(honest.json()["told"].as_str(), Some(host));
    }
}

#[test]
fn what_flows_through_a_websocket_is_no_request_body() {
    let origin = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        ),
        Step::Read(4096),
        Step::send("done"),
        Step::Close,
    ]);
    let text = format!(
        "[server]\nlisten = \"{{listen}}\"\nmax_body = \"1KiB\"\n[upstreams.app]\nmembers = \"{}\"\n\
         [[routes]]\nname = \"ws\"\npath = \"/**\"\nupstream = \"app\"\n",
        origin.addr()
    );
    let gateway = Gateway::builder().config(&text).start();
    let mut connection = RawConnection::open(gateway.addr());
    connection.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let head = connection.read_until(|bytes| bytes.ends_with(b"\r\n\r\n"));
    assert_eq!(raw_status(&head), Some(101));
    connection.send("x".repeat(4096));
    assert_eq!(connection.read_to_end(), b"done");
}
