//! API tokens where it gets difficult: two instances that read at once, guesses, a store that is away in part, other
//! protocols, and command lines with a secret in the wrong place.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api_tokens::{call, command, create, done, get, ok, out, refused, said, text};
use crate::setup::{PATIENT, ROOMY, counter, gateway, pair};
use crate::support::client::{RawConnection, raw_status};
use crate::support::cluster::{Cluster, slot};
use crate::support::concurrently;
use crate::support::gateway::{ADMIN_TOKEN, Gateway};
use crate::support::origin::{Origin, Reply};
use crate::support::ports::free_addr;
use crate::support::raw_origin::{RawOrigin, Step};
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{SECRET, Token};

fn members(redis: &Redis) -> Vec<String> {
    redis::cmd("SMEMBERS").arg("api_tokens").query(&mut redis.client()).unwrap()
}

fn enlist(redis: &Redis, ids: impl Iterator<Item = String>) {
    let ids: Vec<String> = ids.collect();
    let () = redis::cmd("SADD").arg("api_tokens").arg(ids).query(&mut redis.client()).unwrap();
}

/// Another secret for the same token.
fn guess(token: &str, number: usize) -> String {
    format!("{}{number:043}", &token[..21])
}

#[test]
fn the_list_loses_ids_without_a_record_and_never_a_token() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    enlist(&redis, (0..500).map(|number| format!("dead{number:012}")));
    // Ids whose record has expired do not wait for somebody who asks for the list.
    let mut made: Vec<String> = (0..5).map(|_| create(&gateway, &json!({})).0).collect();
    let left = members(&redis).len();
    assert!((455..=475).contains(&left), "{left}");
    let listed = done(&gateway, "list", &json!({}));
    assert_eq!((&listed["complete"], listed["tokens"].as_array().unwrap().len()), (&json!(true), 5));
    assert_eq!(members(&redis).len(), 5);
    // Whoever reads the list while tokens are made takes none of them off.
    let fresh = concurrently(4, |thread| {
        (0..25)
            .filter_map(|_| {
                let new = (thread % 2 == 0).then(|| create(&gateway, &json!({})).0);
                done(&gateway, "list", &json!({}));
                new
            })
            .collect::<Vec<_>>()
    });
    made.extend(fresh.into_iter().flatten());
    let mut known = members(&redis);
    known.sort_unstable();
    made.sort_unstable();
    assert_eq!(known, made);
}

#[test]
fn a_token_that_is_made_while_the_list_is_read_stays_on_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let text = text(&origin, PATIENT);
    let (near, far) = (gateway(&text, &redis.url()), gateway(&text, &relay.redis_url()));
    let (model, _) = create(&far, &json!({}));
    done(&far, "list", &json!({}));
    relay.delay(Duration::from_millis(200));
    std::thread::scope(|scope| {
        // Its record is not there yet when the list is read.
        let making = scope.spawn(|| create(&far, &json!({})).0);
        assert_eventually!(members(&redis).len() == 2, "it is listed first");
        assert_eq!(done(&near, "list", &json!({}))["tokens"].as_array().unwrap().len(), 1);
        let made = making.join().unwrap();
        assert!(members(&redis).contains(&made), "{made} is lost");
        delete_quietly(&redis, &made);

        // It is there when the list is tidied for want of it.
        let late = "late000000000000".to_owned();
        enlist(&redis, std::iter::once(late.clone()));
        relay.take_traffic();
        let listing = scope.spawn(|| done(&far, "list", &json!({})));
        let mut asked = Vec::new();
        assert_eventually!(
            {
                asked.extend(relay.take_traffic().commands);
                asked.iter().any(|words| words[0] == "SREM" && words.contains(&late))
            },
            "its id is to be taken off"
        );
        let () = redis::cmd("COPY")
            .arg(format!("api_token:{model}"))
            .arg(format!("api_token:{late}"))
            .query(&mut redis.client())
            .unwrap();
        enlist(&redis, std::iter::once(late.clone()));
        listing.join().unwrap();
        assert!(members(&redis).contains(&late), "{late} is lost");
    });
}

/// As if its record had expired, and with nothing on the list.
fn delete_quietly(redis: &Redis, id: &str) {
    let () = redis::cmd("DEL").arg(format!("api_token:{id}")).query(&mut redis.client()).unwrap();
    let () = redis::cmd("SREM").arg("api_tokens").arg(id).query(&mut redis.client()).unwrap();
}

#[test]
fn what_was_read_before_a_change_is_not_believed_after_it() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    // One thread, whose connection is there before answers take their time.
    let text = text(&origin, PATIENT).replace("threads = 2", "threads = 1");
    let (one, two) = (gateway(&text, &redis.url()), gateway(&text, &relay.redis_url()));
    let (id, token) = create(&one, &json!({}));
    assert_eq!(said(&get(&two, "/a", &create(&one, &json!({})).1)), ok());
    relay.take_traffic();
    relay.delay_answers(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| get(&two, "/a", &token).code());
        let key = format!("api_token:{id}");
        let mut asked = Vec::new();
        assert_eventually!(
            {
                asked.extend(relay.take_traffic().commands);
                asked.iter().any(|words| words.contains(&key))
            },
            "the record is read"
        );
        // Redis has answered by the time that it answers somebody else.
        let fresh = done(&one, "rotate", &json!({ "id": id }))["token"].as_str().unwrap().to_owned();
        assert_eq!(said(&get(&two, "/a", &fresh)), ok());
        assert_eq!(reading.join().unwrap(), 401, "the store said so in the end");
    });
}

#[test]
fn guesses_at_one_token_share_what_is_read() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let text = text(&origin, PATIENT).replace("threads = 2", "threads = 1");
    let gateway = gateway(&text, &relay.redis_url());
    let (id, token) = create(&gateway, &json!({}));
    assert_eq!(said(&get(&gateway, "/a", &token)), ok());
    relay.delay(Duration::from_millis(200));
    relay.take_traffic();
    let codes = concurrently(40, |number| get(&gateway, "/a", &guess(&token, number)).code());
    assert_eq!(codes, [401; 40]);
    let key = format!("api_token:{id}");
    let commands = relay.take_traffic().commands;
    let reads = commands.iter().filter(|words| words.contains(&key)).count();
    assert!((1..=12).contains(&reads), "{reads} reads for 40 guesses");
    relay.delay(Duration::ZERO);
    assert_eq!(said(&get(&gateway, "/a", &token)), ok());
}

#[test]
fn a_new_secret_that_cannot_be_checked_is_undecided_and_not_wrong() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let relay = Relay::to(redis.addr());
    let text = text(&origin, ROOMY);
    let (one, two) = (gateway(&text, &redis.url()), gateway(&text, &relay.redis_url()));
    let [(id, token), (other, paused)] = [(); 2].map(|()| create(&one, &json!({})));
    done(&one, "disable", &json!({ "id": other }));
    assert_eq!(said(&get(&two, "/a", &token)), ok());
    assert_eq!(said(&get(&two, "/a", &paused)), refused("Token revoked"));
    relay.cut();
    assert_eventually!(two.metric("tollgate_store_degraded", &[]) == Some(1.0), "the outage shows");
    // The news of it does not arrive.
    let fresh = done(&one, "rotate", &json!({ "id": id }))["token"].as_str().unwrap().to_owned();
    done(&one, "enable", &json!({ "id": other }));
    for secret in [&fresh, &paused] {
        let response = get(&two, "/a", secret);
        assert_eq!(
            (response.code(), response.header("retry-after")),
            (503, Some("1")),
            "{}",
            response.text()
        );
    }
    relay.restore();
    for secret in [&fresh, &paused] {
        assert_eventually!(said(&get(&two, "/a", secret)) == ok(), "it is judged again");
    }
    assert_eq!(said(&get(&two, "/a", &token)), refused("Invalid token"));
}

const REFUSING: &str = r#"
[[routes]]
name = "refusing"
path = "/refusing"
when_unknown = "refuse"
limits = []
"#;

/// A token of whom the record is on node 0, and what else decides about the caller is not.
fn stranded(gateway: &Gateway, cluster: &Cluster, owner: &str) -> (String, String) {
    let made = (0..200).map(|_| create(gateway, &json!({ "owner": owner })));
    let mut fit = made.filter(|(id, _)| {
        let on = |key: &str| cluster.owner_of(slot(key.as_bytes()));
        on(id) == 0 && on(&format!("blacklist:tgk_{id}")) != 0
    });
    fit.next().expect("one in five is such a token")
}

#[test]
fn a_record_on_a_lost_node_is_undecided_where_that_is_declared() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let config = format!("{}{REFUSING}", text(&origin, ROOMY));
    let gateway = gateway(&config, &cluster.url());
    let status = || gateway.admin().get("/health").send().json()["redis"]["status"] == "connected";
    assert_eventually!(status(), "the gateway reaches the cluster");
    let mut owners = (0..1_000).map(|number| format!("owner{number}"));
    let owner = owners.find(|owner| cluster.owner_of(slot(owner.as_bytes())) != 0).unwrap();
    let (_, token) = stranded(&gateway, &cluster, &owner);
    for path in ["/refusing", "/open", "/mine"] {
        assert_eq!(get(&gateway, path, &token).code(), 200, "{path}");
    }
    cluster.kill(0);
    assert_eventually!(get(&gateway, "/refusing", &token).code() == 503, "the loss is noticed");
    for _ in 0..3 {
        let response = get(&gateway, "/refusing", &token);
        assert_eq!(
            (response.code(), response.header("retry-after")),
            (503, Some("1")),
            "{}",
            response.text()
        );
        assert_eq!(get(&gateway, "/mine", &token).code(), 200, "this route says otherwise");
    }
    // The guards alone are all that there is to ask about a login.
    let jwt = (0..1_000).map(|number| Token::of(&owner).claim("jti", format!("j{number}")));
    let jwt = jwt
        .into_iter()
        .find(|jwt| cluster.owner_of(slot(format!("blacklist:{}", jwt.jti()).as_bytes())) != 0)
        .unwrap();
    assert_eq!(get(&gateway, "/refusing", &jwt.sign()).code(), 200);
}

#[test]
fn a_token_whose_record_is_on_a_lost_node_is_ended_on_every_instance() {
    let (cluster, origin) = (Cluster::start(), Origin::start());
    let config = text(&origin, ROOMY);
    let [first, second] = [(); 2].map(|()| gateway(&config, &cluster.url()));
    for gateway in [&first, &second] {
        let status = || gateway.admin().get("/health").send().json()["redis"]["status"] == "connected";
        assert_eventually!(status(), "the gateway reaches the cluster");
    }
    let mut owners = (0..1_000).map(|number| format!("owner{number}"));
    let owner = owners.find(|owner| cluster.owner_of(slot(owner.as_bytes())) != 0).unwrap();
    let (id, token) = stranded(&first, &cluster, &owner);
    for gateway in [&first, &second] {
        assert_eq!(get(gateway, "/mine", &token).code(), 200);
    }
    cluster.kill(0);
    for gateway in [&first, &second] {
        assert_eventually!(
            gateway.metric("tollgate_store_degraded", &[]) == Some(1.0),
            "the loss is noticed"
        );
        assert_eq!(get(gateway, "/mine", &token).code(), 200);
    }
    // Whoever listened at the lost node listens elsewhere a moment later.
    assert_eventually!(
        {
            assert_eq!(done(&first, "disable", &json!({ "id": id }))["shared"], json!(false));
            assert_eq!(said(&get(&first, "/mine", &token)), refused("Token revoked"));
            said(&get(&second, "/mine", &token)) == refused("Token revoked")
        },
        "the other instance is told"
    );
}

#[test]
fn without_redis_every_record_is_known() {
    let origin = Origin::start();
    let gateway = gateway(&format!("{}{REFUSING}", text(&origin, "")), "");
    let (id, token) = create(&gateway, &json!({}));
    assert_eq!(said(&get(&gateway, "/refusing", &token)), ok());
    done(&gateway, "disable", &json!({ "id": id }));
    assert_eq!(said(&get(&gateway, "/refusing", &token)), refused("Token revoked"));
}

#[test]
fn the_grace_of_a_replaced_secret_ends_on_every_instance() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [one, two] = pair(&text(&origin, PATIENT), &redis);
    let (id, old) = create(&one, &json!({}));
    let rotated = done(&one, "rotate", &json!({"id": id, "grace": 6}));
    let new = rotated["token"].as_str().unwrap();
    assert!(rotated["previous_until"].is_u64(), "{rotated}");
    for instance in [&one, &two] {
        assert_eq!([said(&get(instance, "/mine", &old)), said(&get(instance, "/mine", new))], [ok(), ok()]);
    }
    for instance in [&one, &two] {
        assert_eventually!(said(&get(instance, "/mine", &old)) == refused("Invalid token"), "the grace ends");
        assert_eq!(said(&get(instance, "/mine", new)), ok());
    }
    assert_eq!(done(&one, "list", &json!({}))["tokens"][0]["previous_until"], Value::Null);
}

#[test]
fn a_limit_per_hour_of_its_own_refuses_on_every_instance() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let [one, two] = pair(&text(&origin, PATIENT), &redis);
    let (id, token) = create(&one, &json!({"limits": {"hour": 3}}));
    let codes: Vec<u16> = (0..5).map(|n| get([&one, &two][n % 2], "/a", &token).code()).collect();
    assert_eq!(codes, [200, 200, 200, 429, 429]);
    let response = get(&two, "/a", &token);
    assert!(response.detail().contains("Max 3 requests per 3600 seconds"), "{}", response.detail());
    assert!(response.header("retry-after").is_some());
    assert_eq!(counter(&redis, &format!("rate_limit:api_token:{id}:hour")), Some(3));
}

#[test]
fn a_token_that_holds_no_more_hears_so_on_a_logout_route_too() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let login = "\n[[routes]]\nname = \"logged-in\"\npath = \"/logged-in\"\nsession = \"required\"\nlimits = []\n\
                 [[routes]]\nname = \"login\"\npath = \"/login\"\nauth = \"none\"\nlimits = []\n\
                 [routes.login]\ntoken = \"json:/token\"\n";
    let [one, two] = pair(&format!("{}{login}", text(&origin, PATIENT)), &redis);
    let (id, token) = create(&one, &json!({}));
    let logout = || two.client().post("/logout").bearer(&token).send();
    assert_eq!(said(&get(&two, "/a", &token)), ok());
    let unfit = (403, "An API token cannot be used here".to_owned());
    assert_eq!(said(&logout()), unfit);
    assert_eq!(said(&get(&two, "/logged-in", &token)), unfit, "nor has it a session");
    // Nobody tells the instance.
    let (key, mut store) = (format!("api_token:{id}"), redis.client());
    let record: String = redis::cmd("GET").arg(&key).query(&mut store).unwrap();
    let disabled = record.replace("\"disabled\":false", "\"disabled\":true");
    let () = redis::cmd("SET").arg(&key).arg(disabled).query(&mut store).unwrap();
    assert_eq!(said(&logout()), refused("Token revoked"));
    let () = redis::cmd("SET").arg(&key).arg(record).query(&mut store).unwrap();
    assert_eq!(said(&get(&two, "/a", &token)), ok());
    done(&one, "disable", &json!({ "id": id }));
    assert_eq!(said(&get(&two, "/logged-in", &token)), refused("Token revoked"));
    done(&one, "delete", &json!({ "id": id }));
    assert_eq!(said(&logout()), refused("Invalid token"));
}

/// The two carriers of a token.
fn carriers(token: &str) -> [(&'static str, String); 2] {
    [("authorization", format!("Bearer {token}")), ("x-api-key", token.to_owned())]
}

fn assert_nothing_leaked(origin: &Origin, token: &str, requests: usize) {
    let received = origin.received();
    assert_eq!(received.len(), requests, "{received:?}");
    for request in received {
        assert_eq!(request.header("x-user-id"), Some("ada"), "{request:?}");
        assert_eq!((request.header("authorization"), request.header("x-api-key")), (None, None));
        assert!(!format!("{request:?}").contains(&token[21..]), "{request:?}");
    }
}

#[test]
fn neither_http_2_nor_a_refresh_in_the_background_sends_a_token_on() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let swr = "\n[[routes]]\nname = \"swr\"\npath = \"/swr/**\"\nlimits = []\n\
               [routes.cache]\nttl = \"1s\"\nstale_while_revalidate = \"1m\"\n";
    let text = format!("{}{swr}", text(&origin, PATIENT));
    let listen = format!("listen = \"{}\"\nlisten_h2c = \"{{listen}}\"", free_addr());
    let h2c = gateway(&text.replace("listen = [\"{listen}\"]", &listen), &redis.url());
    let h1 = gateway(&text, &redis.url());
    let (_, token) = create(&h1, &json!({}));
    for (which, client) in [("h1", h1.client()), ("h2", h2c.h2c_client())] {
        for (name, value) in carriers(&token) {
            origin.clear();
            assert_eq!(client.get("/a").header(name, &value).send().code(), 200, "{which} {name}");
            assert_nothing_leaked(&origin, &token, 1);
            let count = AtomicUsize::new(0);
            origin.answer(move |_| Reply::text(200, &count.fetch_add(1, SeqCst).to_string()));
            origin.clear();
            let path = format!("/swr/{which}/{name}");
            let read = || client.get(&path).header(name, &value).send().text();
            assert_eq!(read(), "0");
            assert_eventually!(read() == "1", "it is refreshed while the old answer is served");
            let refreshed = origin.hits();
            assert!(refreshed >= 2, "{refreshed}");
            assert_nothing_leaked(&origin, &token, refreshed);
        }
    }
}

#[test]
fn a_websocket_does_not_send_a_token_on() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let upstream = RawOrigin::playing(vec![
        Step::read_head(),
        Step::send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nwelcome",
        ),
        Step::Close,
    ]);
    let text = text(&origin, PATIENT).replace(&origin.addr().to_string(), &upstream.addr().to_string());
    let gateway = gateway(&text, &redis.url());
    let (_, token) = create(&gateway, &json!({}));
    for (name, value) in carriers(&token) {
        let mut connection = RawConnection::open(gateway.addr());
        connection.send(format!(
            "GET /ws HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ));
        let answer = connection.read_until(|bytes| bytes.ends_with(b"welcome"));
        assert_eq!(raw_status(&answer), Some(101), "{}", String::from_utf8_lossy(&answer));
    }
    let sent = upstream.text();
    assert_eq!(sent.to_ascii_lowercase().matches("x-user-id: ada\r\n").count(), 2, "{sent}");
    assert!(!sent.contains(&token[21..]) && !sent.to_ascii_lowercase().contains("x-api-key"), "{sent}");
}

#[test]
fn an_api_token_is_taken_as_bearer_where_no_other_token_is() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let text = format!("[identity]\ntoken_from = [\"cookie:session\"]\n{}", text(&origin, PATIENT));
    let gateway = gateway(&text, &redis.url());
    let (id, token) = create(&gateway, &json!({}));
    for path in ["/a", "/maybe", "/open"] {
        assert_eq!(said(&get(&gateway, path, &token)), ok(), "{path}");
        let got = origin.last();
        assert_eq!(got.header("x-user-id"), (path != "/open").then_some("ada"));
        assert!(!format!("{got:?}").contains(&token[21..]), "{got:?}");
    }
    let jwt = Token::of("bob").sign();
    assert_eq!(said(&get(&gateway, "/a", &jwt)), refused("Not authenticated"), "it is not looked at");
    assert_eq!(get(&gateway, "/maybe", &jwt).code(), 200);
    let got = origin.last();
    assert_eq!(got.header("x-user-id"), None);
    let both = gateway.client().get("/a").bearer(&token).header("cookie", &format!("session={jwt}")).send();
    assert_eq!(both.code(), 401, "two tokens");
    done(&gateway, "disable", &json!({ "id": id }));
    assert_eq!(said(&get(&gateway, "/maybe", &token)), refused("Token revoked"));
}

#[test]
fn a_secret_in_the_wrong_place_of_a_command_line_is_not_repeated() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let (id, token) = create(&gateway, &json!({}));
    let secret = &token[21..];
    for line in [
        &["api-token", "delete", &token][..],
        &["api-token", "disable", secret],
        &["api-token", "enable", &token, "--json"],
        &["api-token", "rotate", &token, "--grace", "1h"],
        &["api-token", "rotate", &id, "--grace", &token],
        &["api-token", "delete", &id, &token],
        &["api-token", "create", "--name", "x", "--owner", "y", "--minute", &token],
        &["api-token", "create", "--name", "x", "--owner", "y", &token],
        &["api-token", "list", &token],
        &["api-token", "list", &format!("--{token}")],
        &["api-token", &token],
        &["token", &token],
    ] {
        let output = command(line, &gateway, &redis.url());
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(!output.status.success() && !said.is_empty(), "{line:?}");
        assert!(!said.contains(secret), "{line:?}: {said}");
    }
    let stderr = |output: std::process::Output| String::from_utf8(output.stderr).unwrap();
    let said_of_id = stderr(command(&["api-token", "delete", &token], &gateway, &redis.url()));
    assert!(said_of_id.contains("16 letters and digits"), "{said_of_id}");
    assert_eq!(said(&get(&gateway, "/a", &token)), ok(), "nothing was done");
    out(&command(&["api-token", "delete", &format!("tgk_{id}")], &gateway, &redis.url()));
    let unknown = call(&gateway, "delete", &json!({ "id": token }));
    assert!(unknown.code() == 400 && !unknown.text().contains(secret), "{}", unknown.text());
    assert!(!gateway.logs().contains(secret));
}

#[test]
fn the_access_log_names_the_token_and_its_owner_and_an_operator_names_it_by_its_id() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let issuer = |name: &str| {
        format!(
            "[issuers.{name}]\nissuer = \"https://{name}.example\"\nalgorithms = [\"HS256\"]\n\
             secret = \"{}\"\n",
            format_args!("{SECRET}{name}")
        )
    };
    let text = format!("{}{}{}", issuer("app"), issuer("partners"), text(&origin, PATIENT))
        .replace("[log]\naccess = false", "[log]\naccess = true");
    let gateway = gateway(&text, &redis.url());
    let (id, token) = create(&gateway, &json!({"owner": "app~070ef"}));
    assert_eq!(said(&get(&gateway, "/a", &token)), ok());
    assert_eq!(origin.last().header("x-user-id"), Some("070ef"), "as its issuer calls the owner");
    let line = gateway.wait_for_log("\"target\":\"access\"");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["api_token"], &line["user"]), (&json!(id), &json!("070ef")), "{line}");
    let plain = done(&gateway, "create", &json!({"name": "ci", "owner": "070ef"}));
    assert!(plain["note"].as_str().unwrap().contains("<issuer>~<subject>"), "{plain}");
    let clear = done(&gateway, "create", &json!({"name": "ci", "owner": "partners~x"}));
    assert_eq!(clear["note"], Value::Null);
    let create = ["api-token", "create", "--name", "x", "--owner", "070ef"];
    let output = command(&create, &gateway, &redis.url());
    assert!(String::from_utf8_lossy(&output.stderr).contains("<issuer>~<subject>"));
    for call in ["read", "reset"] {
        let quota = |named: &str| {
            let request = gateway.admin().post(&format!("/api/v1/quota/{call}")).bearer(ADMIN_TOKEN);
            request.json(&json!({ "api_token": named })).send()
        };
        assert_eq!(quota(&id).code(), 200);
        let refused = quota(&token);
        assert_eq!(refused.code(), 400);
        assert!(refused.detail().contains("16 letters and digits"), "{}", refused.detail());
        assert!(!refused.text().contains(&token[21..]));
    }
    gateway.wait_for_log("an operator changes limit counters");
    assert!(gateway.logs().lines().any(|line| line.contains("limit counters") && line.contains(&id)));
    assert!(!gateway.logs().contains(&token[21..]));
}

#[test]
fn a_command_without_its_redis_says_where_and_why_within_seconds() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let nobody = format!("redis://user:hidden@{}/0", free_addr());
    let began = Instant::now();
    let output = command(&["api-token", "list"], &gateway, &nobody);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let address = nobody.split_once('@').unwrap().1.trim_end_matches("/0").to_owned();
    assert!(said.contains(&address) && said.contains("cannot connect"), "{said}");
    assert!(!said.contains("hidden"), "{said}");
}
