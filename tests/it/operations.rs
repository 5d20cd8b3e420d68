//! What an operator sees of a running gateway beside its metrics: log lines, and warnings about its surroundings.

use serde_json::Value;

use crate::support::gateway::{Builder, Gateway};
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::token::Token;

fn builder(origin: &Origin, more: &str) -> Builder {
    Gateway::builder().config(&format!(
        "[upstreams.app]\nmembers = \"{}\"\n[policies.ip]\nkey = \"ip\"\nlimit = 2\nwindow = \"60s\"\n\
         [defaults]\nupstream = \"app\"\n\
         [[routes]]\nname = \"all\"\npath = \"/**\"\nauth = \"optional\"\n\
         [[routes]]\nname = \"limited\"\npath = \"/limited\"\nlimits = [\"ip\"]\n{more}",
        origin.addr()
    ))
}

fn access_line(gateway: &Gateway, path: &str) -> Value {
    let line = gateway.wait_for_log(&format!("\"path\":\"{path}\""));
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn each_request_gives_one_line_with_every_default_field() {
    let origin = Origin::start();
    let gateway = builder(&origin, "").start();
    let bearer = Token::of("ada").claim("subscription_plan", "pro").sign();
    gateway.client().get("/a?access_token=hidden").bearer(&bearer).header("user-agent", "curl/8").send();
    let line = access_line(&gateway, "/a");
    for (name, value) in [
        ("level", "INFO"),
        ("target", "access"),
        ("client_ip", "127.0.0.1"),
        ("method", "GET"),
        ("route", "all"),
        ("user", "ada"),
        ("plan", "pro"),
        ("user_agent", "curl/8"),
    ] {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!(line["status"], 200);
    assert_eq!(line["upstream"], origin.addr().to_string());
    for name in ["bytes", "duration_ms", "upstream_ms"] {
        assert!(line[name].is_number(), "{name}: {line}");
    }
    assert!(
        line["time"].as_str().unwrap().ends_with('Z') && !line["request_id"].as_str().unwrap().is_empty()
    );
    assert!(!gateway.logs().contains("hidden") && !gateway.logs().contains(&bearer));

    for _ in 0..3 {
        gateway.client().get("/limited").send();
    }
    gateway.wait_for_log("\"limit\":\"admitted\"");
    let refused = gateway.wait_for_log("\"limit\":\"refused\"");
    let refused: Value = serde_json::from_str(&refused).unwrap();
    assert_eq!((refused["status"].as_u64(), refused["refusal"].as_str()), (Some(429), Some("limited")));
    gateway.client().get("/b").bearer("nonsense").send();
    assert_eq!(access_line(&gateway, "/b")["refusal"], "malformed");
    gateway.terminate();
    assert_eq!(gateway.count_logs("\"target\":\"access\""), 5);
}

#[test]
fn chosen_fields_are_written_in_their_order_and_no_others() {
    let origin = Origin::start();
    let log = "[log]\nformat = \"human\"\naccess_fields = [\"status\", \"host\", \"protocol\", \"query\", \"path\"]\n";
    let gateway = builder(&origin, log).start();
    gateway.client().get("/x?page=2&token=hidden").host("api.example:80").send();
    let line = gateway.wait_for_log("path=/x");
    assert!(line.starts_with("access status=200 host=api.example"), "{line}");
    assert!(
        line.contains("protocol=HTTP/1.1") && line.contains("page=2") && !line.contains("hidden"),
        "{line}"
    );
    assert!(!line.contains("request_id"));
    let quiet = builder(&origin, "[log]\naccess = false\n").start();
    quiet.client().get("/x").send();
    quiet.terminate();
    assert_eq!(quiet.count_logs("\"target\":\"access\""), 0);
}

#[test]
fn a_redis_that_evicts_is_warned_of_once_and_a_proper_one_is_not() {
    let origin = Origin::start();
    let evicting = Redis::start_with(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]);
    let gateway = builder(&origin, "").env("REDIS_URL", &evicting.url()).start();
    let line = gateway.wait_for_log("maxmemory-policy");
    assert!(line.contains("allkeys-lru") && line.contains("WARN"), "{line}");
    evicting.kill();
    assert_eventually!(
        gateway.client().get("/limited").send().code() != 0
            && gateway.metric("tollgate_store_degraded", &[]) == Some(1.0),
        "the outage is noticed"
    );
    evicting.restart();
    gateway.wait_for_log("Redis is available again");
    assert_eq!(gateway.count_logs("maxmemory-policy"), 1);

    let proper = Redis::start();
    let forbidding = Redis::start_with(&["--rename-command", "CONFIG", ""]);
    for redis in [&proper, &forbidding] {
        // Nor of a Redis that is late, as it may be here.
        let patient = "[redis]\ndeadline = \"1s\"\n";
        let gateway = builder(&origin, patient).env("REDIS_URL", &redis.url()).start();
        assert_eventually!(
            gateway.admin().get("/health").send().json()["redis"]["status"] == "connected",
            "the store is reached"
        );
        gateway.client().get("/limited").send();
        gateway.terminate();
        assert_eq!(gateway.count_logs("WARN"), 0, "{}", gateway.logs());
    }
}
