//! Limits that only watch, candidates beside the limits in force, and what requests cost: what operators see of them
//! and clients do not.

use crate::setup::{PATIENT, codes, config, counter, gateway, get_from};
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::redis::Redis;

const ROUTE: &str = "[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n";
const IP: &str = "10.0.0.1";

fn decisions(gateway: &Gateway, policy: &str, decision: &str) -> Option<f64> {
    gateway.metric("tollgate_limit_decisions_total", &[("policy", policy), ("decision", decision)])
}

/// The same in memory alone and on a Redis.
fn everywhere(rest: &str, test: impl Fn(&Gateway, Option<&Redis>)) {
    let (redis, origin) = (Redis::start(), Origin::start());
    let config = config(&origin, PATIENT, rest);
    test(&gateway(&config, ""), None);
    test(&gateway(&config, &redis.url()), Some(&redis));
}

#[test]
fn a_shadow_policy_refuses_nobody_and_is_seen_by_operators_alone() {
    let policies = format!(
        "[policies.watch]\nkey = \"ip\"\nlimit = 3\nwindow = \"1h\"\nshadow = true\n\
         [policies.ip]\nkey = \"ip\"\nlimit = 8\nwindow = \"1h\"\n{ROUTE}limits = [\"watch\", \"ip\"]\n"
    );
    everywhere(&policies, |gateway, redis| {
        let client = gateway.client();
        for left in (0..8).rev() {
            let response = get_from(&client, "/x", IP).send();
            assert_eq!(response.code(), 200);
            assert_eq!(response.header("x-ratelimit-limit"), Some("8"));
            assert_eq!(response.header("x-ratelimit-remaining"), Some(left.to_string().as_str()));
            assert_eq!(response.header("ratelimit-policy"), Some("\"ip\";q=8;w=3600"));
            assert!(response.header("ratelimit").is_some_and(|told| !told.contains("watch")));
        }
        assert_eq!(decisions(gateway, "watch", "admitted"), Some(3.0));
        assert_eq!(decisions(gateway, "watch", "shadow_refused"), Some(5.0));
        assert_eq!(decisions(gateway, "watch", "refused"), Some(0.0));
        let refused = get_from(&client, "/x", IP).send();
        assert_eq!(refused.code(), 429);
        assert_eq!(refused.detail(), "Rate limit exceeded. Max 8 requests per 3600 seconds.");
        assert_eq!(refused.json()["violated-policies"], serde_json::json!(["ip"]));
        if let Some(redis) = redis {
            assert_eq!(counter(redis, "rate_limit:watch:10.0.0.1"), Some(3));
            assert_eq!(counter(redis, "rate_limit:ip:10.0.0.1"), Some(8));
        }
    });
}

#[test]
fn a_shadow_policy_alone_tells_clients_nothing() {
    let policies = format!(
        "[policies.watch]\nkey = \"ip\"\nlimit = 1\nwindow = \"1h\"\nshadow = true\n{ROUTE}limits = [\"watch\"]\n"
    );
    everywhere(&policies, |gateway, _| {
        for _ in 0..3 {
            let response = get_from(&gateway.client(), "/x", IP).send();
            assert_eq!(response.code(), 200);
            for name in ["x-ratelimit-limit", "ratelimit-policy", "ratelimit", "retry-after"] {
                assert_eq!(response.header(name), None, "{name}");
            }
        }
        assert_eq!(decisions(gateway, "watch", "shadow_refused"), Some(2.0));
    });
}

#[test]
fn a_candidate_is_tried_beside_the_limit_in_force() {
    let policies = format!(
        "[policies.ip]\nkey = \"ip\"\nlimit = 5\nwindow = \"1h\"\n\
         candidate = {{ windows = [{{ limit = 3, window = \"1h\" }}, {{ limit = 100, window = \"24h\" }}] }}\n\
         {ROUTE}limits = [\"ip\"]\n"
    );
    everywhere(&policies, |gateway, redis| {
        assert_eq!(codes(&gateway.client(), "/x", IP, 5), [200; 5]);
        assert_eq!(decisions(gateway, "ip-candidate", "admitted"), Some(3.0));
        assert_eq!(decisions(gateway, "ip-candidate", "shadow_refused"), Some(2.0), "once for both windows");
        assert_eq!(codes(&gateway.client(), "/x", IP, 2), [429; 2]);
        assert_eq!(decisions(gateway, "ip", "refused"), Some(2.0));
        if let Some(redis) = redis {
            assert_eq!(counter(redis, "rate_limit:ip:10.0.0.1"), Some(5));
            assert_eq!(counter(redis, "rate_limit:ip-candidate:10.0.0.1:hour"), Some(3));
        }
    });
}

#[test]
fn a_route_s_cost_multiplies_that_of_each_policy() {
    let policies = format!(
        "[policies.ip]\nkey = \"ip\"\nlimit = 20\nwindow = \"1h\"\ncost = 2\n{ROUTE}limits = [\"ip\"]\n\
         [[routes]]\nname = \"dear\"\npath = \"/dear\"\nupstream = \"app\"\nlimits = [\"ip\"]\ncost = 4\n"
    );
    everywhere(&policies, |gateway, redis| {
        let client = gateway.client();
        assert_eq!(codes(&client, "/dear", IP, 2), [200, 200]);
        assert_eq!(codes(&client, "/dear", IP, 1), [429], "eight are needed and four are left");
        assert_eq!(codes(&client, "/x", IP, 3), [200, 200, 429]);
        if let Some(redis) = redis {
            assert_eq!(counter(redis, "rate_limit:ip:10.0.0.1"), Some(20));
        }
    });
}

#[test]
fn a_policy_for_anonymous_callers_leaves_the_others_alone() {
    use crate::support::token::Token;
    let policies = format!(
        "[policies.unknown]\nkey = \"ip\"\napplies_to = \"anonymous\"\nlimit = 2\nwindow = \"1h\"\n\
         [policies.known]\nkey = \"ip\"\napplies_to = \"identified\"\nlimit = 3\nwindow = \"1h\"\n\
         {ROUTE}auth = \"optional\"\nlimits = [\"unknown\", \"known\"]\n"
    );
    everywhere(&policies, |gateway, _| {
        assert_eq!(codes(&gateway.client(), "/x", IP, 3), [200, 200, 429]);
        let token = Token::of("ada").sign();
        let send = || get_from(&gateway.client(), "/x", IP).bearer(&token).send();
        let got: Vec<_> = (0..4).map(|_| send().code()).collect();
        assert_eq!(got, [200, 200, 200, 429]);
        assert_eq!(send().header("ratelimit-policy"), Some("\"known\";q=3;w=3600"));
    });
}
