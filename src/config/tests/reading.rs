use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;

use crate::config::keys::KEYS;
use crate::config::spec::{
    Algorithm, AppliesTo, CoolDown, KeyMaterial, KeyPart, OnStoreFailure, QueryKey, Quota, TokenSource,
};

use super::*;

fn spec(text: &str, pairs: &[(&str, &str)]) -> Spec {
    from_str(text, "t.toml", &variables(pairs)).unwrap_or_else(|errors| panic!("{errors}")).spec
}

fn warnings(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    let loaded = from_str(text, "t.toml", &variables(pairs)).unwrap_or_else(|errors| panic!("{errors}"));
    loaded.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn all_mistakes_are_shown_at_once_in_the_order_of_the_file() {
    let text = "\
[server]
listen = \"nowhere\"
keepalive_timeout = 60

[redis]
deadline = \"${DEADLINE}\"
urll = \"x\"

[[routes]]
name = \"a\"
path = \"/a\"
upstream = \"b\"
auth = \"requierd\"
";
    let shown = messages(text, &[]);
    let starts: Vec<&str> = shown.iter().map(|line| line.split(':').nth(3).unwrap()).collect();
    assert_eq!(
        starts,
        [
            " server.listen",
            " server.keepalive_timeout",
            " redis.deadline",
            " redis.urll",
            " routes[0].upstream",
            " routes[0].auth"
        ],
        "{shown:#?}"
    );
    assert_eq!(
        shown[5],
        "t.toml:13:8: routes[0].auth: \"requierd\" is not accepted; accepted: none, optional, required \
         (did you mean \"required\"?)"
    );
}

#[test]
fn columns_count_characters() {
    let shown = messages(&with("host = \"é\" # é\n[log]\nformat = \"é\"\n"), &[]);
    assert!(shown[0].starts_with("t.toml:7:8: routes[0].host: "), "{shown:?}");
    assert!(shown[1].starts_with("t.toml:9:10: log.format: "), "{shown:?}");
    let shown = messages("a = { \"é\" = 1, \"b\" = }", &[]);
    assert!(shown.len() == 1 && shown[0].starts_with("t.toml:1:22: not TOML: "), "{shown:?}");
}

#[test]
fn any_scalar_may_come_from_the_environment() {
    let text = with(
        "[server]\nthreads = \"${N}\"\nkeepalive_timeout = \"${D:-5s}\"\ncase_insensitive_paths = \"${B}\"\n\
         max_body = \"${S}\"\nlisten = [\"${L}\"]\n",
    );
    let spec = spec(&text, &[("N", "3"), ("B", "true"), ("S", "1MB"), ("L", "[::1]:80")]);
    assert_eq!(spec.server.threads, Some(3));
    assert_eq!(spec.server.keepalive_timeout, Duration::from_secs(5));
    assert!(spec.server.case_insensitive_paths);
    assert_eq!(spec.server.max_body, 1_000_000);
    assert_eq!(spec.server.listen, ["[::1]:80".parse().unwrap()]);
}

#[test]
fn a_variable_cannot_add_keys() {
    let text = with("[redis]\nkey_prefix = \"${P}\"\n");
    let shown = messages(&text, &[("P", "x\"\n[admin]\nlisten = \"0.0.0.0:1\"")]);
    assert_eq!(shown.len(), 1);
    assert!(shown[0].contains("redis.key_prefix"), "{shown:?}");
}

#[test]
fn redis_is_local_unless_the_environment_says_otherwise() {
    assert_eq!(spec(&with(""), &[]).redis.url.unwrap().expose(), "redis://localhost:6379");
    assert!(spec(&with(""), &[("REDIS_URL", "")]).redis.url.is_none());
    let url = spec(&with(""), &[("REDIS_URL", "rediss://u:hunter2@r.example:6380/2")]).redis.url.unwrap();
    assert!(url.is_tls());
    assert_eq!(format!("{url} {url:?}"), "rediss://r.example:6380/2 rediss://r.example:6380/2");
    assert_eq!(url.expose(), "rediss://u:hunter2@r.example:6380/2");
}

#[test]
fn jwt_secret_makes_an_issuer_only_when_none_is_declared() {
    let text = with("auth = \"required\"\n");
    let issuers = spec(&text, &[("JWT_SECRET", SECRET)]).issuers;
    assert_eq!((&*issuers[0].name, &*issuers[0].algorithms), ("default", &[Algorithm::Hs256][..]));
    assert!(issuers[0].require_exp);
    let declared = with(
        "[issuers.mine]\nalgorithms = [\"HS384\"]\nsecret = \"another secret, of 48 bytes or more because of HS384\"\n",
    );
    let issuers = spec(&declared, &[("JWT_SECRET", SECRET)]).issuers;
    assert_eq!((issuers.len(), &*issuers[0].name), (1, "mine"));
    for pairs in [&[][..], &[("JWT_SECRET", "")]] {
        let shown = messages(&text, pairs);
        assert!(shown[0].starts_with("t.toml:7:8: routes[0].auth: "), "{shown:?}");
    }
    let shown = messages(&text, &[("JWT_SECRET", "hunter2")]);
    assert!(shown[0].starts_with("t.toml:1:1: issuers.default.secret: is too short"), "{shown:?}");
}

#[test]
fn secrets_are_never_shown() {
    let text = with(
        "auth = \"required\"\n[admin]\ntoken = \"hunter2-hunter2-hunter2\"\n[redis]\nurl = \"redis://:hunter2@r\"\n",
    );
    let loaded =
        from_str(&text, "t.toml", &variables(&[("JWT_SECRET", "hunter2-hunter2-hunter2-hunter2-")])).unwrap();
    let shown = format!("{loaded:?}");
    assert!(shown.contains("[redacted]"));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn short_secrets_are_a_warning_in_development() {
    let text = with("auth = \"required\"\n[issuers.a]\nalgorithms = [\"HS256\"]\nsecret = \"short\"\n");
    assert!(messages(&text, &[])[0].contains("issuers.a.secret: is too short"));
    assert!(warnings(&text, &[("TOLLGATE_ENV", "development")])[0].contains("has 5 bytes"));
}

#[test]
fn overlays_are_merged_and_mistakes_keep_their_place() {
    let text = with(
        "limits = [\"p\"]\n[policies.p]\nkey = \"ip\"\nwindows = [{ limit = 1, window = \"1s\" }]\n\
         [environments.development.policies.p]\nwindows = [{ limit = 2, window = \"1s\" }]\n\
         [environments.development.log]\nformat = \"human\"\n",
    );
    let limit = |pairs| match &spec(&text, pairs).policies[0].quota {
        Quota::Windows(windows) => windows[0].limit,
        Quota::Plan | Quota::Concurrency(_) => 0,
    };
    assert_eq!(limit(&[]), 1);
    assert_eq!(limit(&[("TOLLGATE_ENV", "development")]), 2);
    let wrong = text.replace("\"human\"", "\"humn\"");
    for environment in ["development", "production"] {
        let shown = messages(&wrong, &[("TOLLGATE_ENV", environment)]);
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert!(shown[0].starts_with("t.toml:14:10: environments.development.log.format: "), "{shown:?}");
    }
}

#[test]
fn variables_of_the_other_environment_may_be_missing() {
    let text = with("[environments.development.redis]\nurl = \"${DEV_REDIS}\"\n");
    assert_eq!(messages(&text, &[]), Vec::<String>::new());
    assert_eq!(messages(&text, &[("TOLLGATE_ENV", "development")]).len(), 1);
}

#[test]
fn policies_take_every_form() {
    let text = with(
        "auth = \"optional\"\nlimits = \"a, b, c\"\n\
         [policies.a]\nkey = [\"route\", \"caller\"]\nplan = true\non_store_failure = \"deny\"\n\
         [policies.b]\nkey = \"ip, route\"\nlimit = 5\nwindow = \"90s\"\nalgorithm = \"token-bucket\"\n\
         [policies.c]\nkey = \"user\"\nwindows = [{ limit = 1, window = \"24h\" }, { name = \"x\", limit = 2, window = \"5m\" }]\n\
         [plans.gold]\nsecond = 1\nday = 5\n",
    );
    let spec = spec(&text, &[("JWT_SECRET", SECRET)]);
    assert_eq!(spec.policies[0].key, [KeyPart::Route, KeyPart::Caller]);
    assert_eq!(spec.policies[0].quota, Quota::Plan);
    assert_eq!(spec.policies[0].on_store_failure, OnStoreFailure::Deny);
    let names = |quota: &Quota| match quota {
        Quota::Windows(windows) => windows.iter().map(|window| window.name.to_string()).collect(),
        Quota::Plan | Quota::Concurrency(_) => Vec::new(),
    };
    assert_eq!(names(&spec.policies[1].quota), ["90s"]);
    assert_eq!(names(&spec.policies[2].quota), ["day", "x"]);
    let gold = spec.plans.iter().find(|plan| &*plan.name == "gold").unwrap();
    assert_eq!(gold.windows.iter().map(|window| window.window.as_secs()).collect::<Vec<_>>(), [1, 86_400]);
    assert_eq!(spec.plans.len(), 5);
}

#[test]
fn a_route_may_opt_out_of_the_defaults() {
    let text = with(
        "[[routes]]\nname = \"b\"\npath = \"/b\"\nlimits = []\nauth = \"none\"\n\
         [defaults]\nupstream = \"app\"\nlimits = [\"p\"]\nauth = \"required\"\n\
         [policies.p]\nkey = \"token\"\nlimit = 1\nwindow = \"1s\"\n",
    );
    let routes = spec(&text, &[("JWT_SECRET", SECRET)]).routes;
    assert_eq!((&*routes[0].limits[0], routes[0].auth.as_str()), ("p", "required"));
    assert_eq!((routes[1].limits.len(), routes[1].auth.as_str()), (0, "none"));
    assert_eq!(routes[1].upstream.as_deref(), Some("app"));
}

#[test]
fn query_of_a_cache_key_has_three_forms() {
    let query = |value: &str| {
        let text = with(&format!("cache = {{ ttl = \"5m\", query = {value} }}\n"));
        spec(&text, &[]).routes[0].cache.clone().unwrap().query
    };
    assert_eq!(query("\"all\""), QueryKey::All);
    assert_eq!(query("\"ignore\""), QueryKey::Ignore);
    assert_eq!(query("[\"page\", \"size\"]"), QueryKey::Only(vec!["page".into(), "size".into()]));
}

#[test]
fn token_sources_and_identity_headers_are_typed() {
    let text = with(
        "[identity]\ntoken_from = [\"bearer\", \"cookie:session\", \"header:X-Token\"]\n\
         [identity.headers]\nplan = \"\"\n[identity.claim_headers]\nemail = \"X-User-Email\"\n",
    );
    let identity = spec(&text, &[]).identity;
    assert_eq!(identity.token_from[1], TokenSource::Cookie("session".into()));
    assert_eq!(identity.token_from[2], TokenSource::Header(http::HeaderName::from_static("x-token")));
    assert!(identity.plan_header.is_none());
    assert_eq!(identity.user_id_header.unwrap(), "x-user-id");
    assert_eq!(&*identity.claim_headers[0].0, "email");
}

#[test]
fn key_files_are_found_beside_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let pem = std::fs::read(repository("tests/fixtures/config/ed25519.pub.pem")).unwrap();
    std::fs::write(directory.path().join("key.pem"), &pem).unwrap();
    let path = directory.path().join("t.toml");
    let text = with("[issuers.a]\nalgorithms = [\"EdDSA\"]\nkid = \"k\"\npublic_key_file = \"key.pem\"\n");
    std::fs::write(&path, text).unwrap();
    let loaded = load(&path, &variables(&[])).unwrap();
    assert!(
        matches!(&loaded.spec.issuers[0].keys[0].material, KeyMaterial::PublicPem(bytes) if *bytes == pem)
    );
    assert_eq!(loaded.spec.issuers[0].keys[0].kid.as_deref(), Some("k"));
}

#[test]
fn a_key_must_be_on_the_curve_of_its_algorithm() {
    const P256: &str = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/dDOTgFivfumGir2fU7xxB/cwNea\n\
        /VMX2a9gdstnIw0CLDL95ErjwgP6DXMx5jxTddGPbewr7vxXNM4lVHvC6Q==\n\
        -----END PUBLIC KEY-----";
    let text = |algorithm: &str| {
        with(&format!("[issuers.a]\nalgorithms = [\"{algorithm}\"]\npublic_key = \"\"\"{P256}\"\"\"\n"))
    };
    assert_eq!(messages(&text("ES256"), &[]), Vec::<String>::new());
    for other in ["ES384", "RS256", "EdDSA"] {
        let shown = messages(&text(other), &[]);
        assert!(shown[0].contains(&format!("a PEM public key for {other}")), "{shown:?}");
    }
}

#[test]
fn files_that_are_no_text_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.toml");
    let shown = load(&path, &variables(&[])).unwrap_err().to_string();
    assert!(shown.contains("t.toml: cannot be read: "), "{shown}");
    std::fs::write(&path, b"a = \"\xff\"").unwrap();
    assert!(load(&path, &variables(&[])).unwrap_err().to_string().ends_with("is not UTF-8 text"));
    assert!(load(directory.path(), &variables(&[])).is_err());
}

#[test]
fn what_is_probably_not_meant_gives_a_warning() {
    let text = with(
        "auth = \"optional\"\ncache = { ttl = \"5m\", shared = true }\n\
         [upstreams.idle]\nmembers = \"a:1\"\n[policies.idle]\nkey = \"api_token\"\nlimit = 1\nwindow = \"1s\"\n\
         [identity]\ntoken_from = \"query:token\"\n[server]\ntrusted_proxies = \"10.0.0.0/4\"\n",
    );
    let shown = warnings(&text, &[("JWT_SECRET", SECRET)]);
    for path in [
        "routes[0].cache.shared: ",
        "upstreams.idle: ",
        "policies.idle.key: ",
        "policies.idle: ",
        "identity.token_from: ",
        "server.trusted_proxies: ",
    ] {
        assert!(shown.iter().any(|line| line.contains(path)), "{path} {shown:#?}");
    }
    assert_eq!(shown.len(), 6, "{shown:#?}");
}

#[test]
fn routes_that_need_a_session_need_a_login_somewhere() {
    let text = with("auth = \"required\"\nsession = \"required\"\n");
    let alone = format!("{text}[redis]\nurl = \"\"\n");
    let shown = from_str(&alone, "t.toml", &variables(&[("JWT_SECRET", SECRET)])).unwrap_err().to_string();
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("routes[0].session: is one that no route opens"), "{shown}");
    // Others on the same Redis may open them.
    let shown = warnings(&text, &[("JWT_SECRET", SECRET)]);
    assert_eq!(shown.len(), 1, "{shown:#?}");
    assert!(shown[0].contains("routes[0].session: no route here has a [routes.login]"), "{shown:#?}");
    for place in ["json:/data/0/token", "header:X-Token", "cookie:token"] {
        let text = format!(
            "{text}[[routes]]\nname = \"login\"\npath = \"/login\"\nupstream = \"app\"\nlogin = {{ token = {place:?} }}\n"
        );
        assert_eq!(warnings(&text, &[("JWT_SECRET", SECRET)]), Vec::<String>::new(), "{place}");
        let spec = spec(&text, &[("JWT_SECRET", SECRET)]);
        let login = spec.routes.iter().find(|route| &*route.name == "login").unwrap();
        assert_eq!(login.login, crate::sessions::login::Place::parse(place), "{place}");
    }
}

#[test]
fn later_stages_can_place_their_mistakes() {
    let loaded = from_str(&with(""), "t.toml", &variables(&[])).unwrap();
    let shown = |path: &str| loaded.places.problem(path, "is wrong").to_string();
    assert_eq!(shown("routes[0].path"), "t.toml:5:8: routes[0].path: is wrong");
    assert_eq!(shown("routes[0].hosts[1]"), "t.toml:3:1: routes[0].hosts[1]: is wrong");
    assert_eq!(shown("cache.memory"), "t.toml:1:1: cache.memory: is wrong");
}

#[test]
fn an_admin_listener_without_a_token_may_be_reachable_and_is_warned_of() {
    let text = with("[admin]\nlisten = \"0.0.0.0:9090\"\nhosts = [\"Tollgate.internal\"]\n");
    let shown = warnings(&text, &[]);
    assert!(
        shown.len() == 1 && shown[0].contains("admin.listen: is reachable from other machines"),
        "{shown:?}"
    );
    assert_eq!(&*spec(&text, &[]).admin.hosts[0], "tollgate.internal");
    assert_eq!(warnings(&text.replace("0.0.0.0", "127.0.0.1"), &[]), Vec::<String>::new());
    let wrong = text.replace("Tollgate.internal", "http://tollgate");
    assert!(messages(&wrong, &[])[0].contains("admin.hosts[0]: \"http://tollgate\" is not accepted"));
}

#[test]
fn later_stages_place_their_mistakes_in_the_overlay_in_force() {
    let text = with("[environments.development.cache]\nmemory = \"8MiB\"\n");
    let place =
        |pairs| from_str(&text, "t.toml", &variables(pairs)).unwrap().places.problem("cache.memory", "").line;
    assert_eq!(place(&[("TOLLGATE_ENV", "development")]), 8);
    assert_eq!(place(&[]), 1);
}

/// Values that some key accepts and others do not.
const VALUES: [&str; 27] = [
    "\"999999999999999999999y\"",
    "\"1e400GB\"",
    "\"-5s\"",
    "nan",
    "-inf",
    "99999999999999999999",
    "0x_f",
    "0",
    "-1",
    "1.5",
    "true",
    "\"\"",
    "\"5s\"",
    "\"1MiB\"",
    "\"ip\"",
    "\"app\"",
    "\"${X}\"",
    "\"${\"",
    "\"$$\"",
    "[]",
    "[1]",
    "[\"a\", \"b\"]",
    "{}",
    "{ a = 1 }",
    "[{}]",
    "[[]]",
    "2026-01-01",
];

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|[\\[\\]{}=\"'.,#a-z0-9\\n${}:-]{0,200}") {
        let _ = from_str(&text, "t.toml", &variables(&[("X", "x")]));
    }

    #[test]
    fn any_value_at_any_key_never_panics_and_is_placed(
        picks in proptest::collection::vec((0..KEYS.len(), 0..VALUES.len()), 1..12)
    ) {
        let mut text = String::new();
        for (key, value) in picks {
            let path = KEYS[key].path.replace(['[', ']', '<', '>'], "");
            let _ = writeln!(text, "{path} = {}", VALUES[value]);
        }
        let lines = text.lines().count();
        if let Err(errors) = from_str(&text, "t.toml", &variables(&[("X", "x")])) {
            prop_assert!(!errors.problems().is_empty());
            for problem in errors.problems() {
                prop_assert!(problem.line >= 1 && problem.line <= lines + 1 && problem.column >= 1);
            }
        }
    }

    #[test]
    fn a_damaged_public_key_never_panics(der in proptest::collection::vec(any::<u8>(), 0..120), algorithm in 0usize..12) {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let algorithm = Algorithm::ALL[algorithm];
        for label in ["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"] {
            let text = with(&format!(
                "[issuers.a]\nalgorithms = [\"{algorithm}\"]\npublic_key = \"\"\"-----BEGIN {label}-----\n{body}\n-----END {label}-----\"\"\"\n"
            ));
            let _ = from_str(&text, "t.toml", &variables(&[]));
        }
    }

    #[test]
    fn a_damaged_example_never_panics(start in 0usize..14_000, length in 0usize..40, with in "[ -~\\n]{0,8}") {
        let text = std::fs::read_to_string(repository("config/tollgate.toml")).unwrap();
        let mut bytes = text.into_bytes();
        let start = start.min(bytes.len());
        let end = (start + length).min(bytes.len());
        bytes.splice(start..end, with.into_bytes());
        let text = String::from_utf8_lossy(&bytes);
        let _ = from_str(&text, "t.toml", &variables(&[("JWT_SECRET", SECRET)]));
    }
}

#[test]
fn policies_say_what_they_do_beyond_counting() {
    let text = with(
        "limits = [\"a\", \"b\", \"c\"]\ncost = 3\n\
         [policies.a]\nkey = \"ip\"\nalgorithm = \"cool-down\"\nlimit = 5\nwindow = \"10s\"\n\
         cooldown = { limit = 2, window = \"4s\" }\nshadow = true\napplies_to = \"anonymous\"\n\
         [policies.b]\nkey = \"ip\"\nconcurrency = 7\nshadow = true\n\
         [policies.c]\nkey = \"ip\"\nlimit = 100\nwindow = \"60s\"\nlease = true\ncost = 2\n\
         [policies.c.candidate]\nwindows = [{ limit = 50, window = \"60s\" }, { limit = 9, window = \"1s\" }]\n",
    );
    let spec = spec(&text, &[]);
    assert_eq!(spec.routes[0].cost, 3);
    let [a, b, c] = &spec.policies[..] else { panic!() };
    let (interval, quiet) = (Duration::from_secs(2), Duration::from_secs(4));
    assert_eq!(a.cooldown, Some(CoolDown { interval, quiet }), "quiet is as long as the window");
    assert!(a.shadow && a.applies_to == AppliesTo::Anonymous && a.candidate.is_none());
    assert_eq!(b.quota, Quota::Concurrency(7));
    let windows: Vec<_> = c.candidate.iter().flatten().map(|window| (&*window.name, window.limit)).collect();
    assert_eq!(windows, [("minute", 50), ("second", 9)]);
    assert!(c.lease && !c.shadow && c.cost == 2);
}

#[test]
fn a_request_that_some_plans_cannot_afford_is_remarked_on() {
    let text = |cost: u32| {
        with(&format!("limits = [\"p\"]\ncost = {cost}\n[policies.p]\nkey = \"ip\"\nplan = true\n"))
    };
    assert_eq!(warnings(&text(10), &[]), Vec::<String>::new());
    let shown = warnings(&text(60), &[]);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(
        shown[0].ends_with("a request costs 60, more than a window of anonymous, free holds"),
        "{shown:?}"
    );
    // Multipliers may raise the largest plan that far.
    assert_eq!(warnings(&text(20_000), &[]).len(), 1);
    assert_eq!(messages(&text(20_001), &[]).len(), 1);
}

#[test]
fn limits_of_users_that_nothing_looks_at_are_remarked_on() {
    let text = |redis: &str, quota: &str| {
        let policy = format!("limits = [\"p\"]\n[policies.p]\nkey = \"ip\"\n{quota}\n");
        with(&format!("{policy}[limits]\nuser_limits = true\n[redis]\nurl = \"{redis}\"\n"))
    };
    let (redis, plan, windows) = ("redis://127.0.0.1:1", "plan = true", "limit = 5\nwindow = \"1s\"");
    assert_eq!(warnings(&text(redis, plan), &[]), Vec::<String>::new());
    for (redis, quota, why) in [("", plan, "redis.url is empty"), (redis, windows, "plan = true")] {
        let shown = warnings(&text(redis, quota), &[]);
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert!(shown[0].contains("limits.user_limits: ") && shown[0].contains(why), "{shown:?}");
    }
}

#[test]
fn a_candidate_that_would_refuse_every_request_is_remarked_on() {
    let text = |cost: u32| {
        with(&format!(
            "limits = [\"p\"]\ncost = {cost}\n[policies.p]\nkey = \"ip\"\nlimit = 9\nwindow = \"1s\"\n\
             [policies.p.candidate]\nlimit = 5\nwindow = \"1s\"\n"
        ))
    };
    assert_eq!(warnings(&text(5), &[]), Vec::<String>::new());
    let shown = warnings(&text(6), &[]);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(
        shown[0].contains("routes[0].cost: a request costs 6") && shown[0].contains("candidate"),
        "{shown:?}"
    );
}

#[test]
fn a_path_of_quotas_below_a_route_is_accepted() {
    let text = with("[limits]\nquota_path = \"/quota\"\n");
    assert_eq!(spec(&text, &[]).limits.quota_path.as_deref(), Some("/quota"));
}

#[test]
fn what_the_cache_would_not_do_is_told() {
    let route =
        |name: &str, rest: &str| format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}/:id\"\n{rest}\n");
    let cached = route("kept", "auth = \"optional\"\ncache = { tags = [\"todo:{id}\", \"todos:{user}\"] }");
    let told = |rest: &str| {
        let text = with(&format!(
            "auth = \"none\"\n{cached}{}[defaults]\nupstream = \"app\"\n",
            route("asked", rest)
        ));
        warnings(&text, &[("JWT_SECRET", SECRET)])
            .iter()
            .map(|line| line.split_once("routes").unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    for tag in ["todo:{id}", "todo:7", "todos:alice", "route:kept", "user:{id}"] {
        assert_eq!(
            told(&format!("methods = [\"POST\"]\ninvalidates = [\"{tag}\"]")),
            Vec::<String>::new(),
            "{tag}"
        );
    }
    for (rest, expected) in [
        (
            "methods = [\"POST\"]\ninvalidates = [\"todo:{id}\", \"todoz:x\"]",
            "[2].invalidates: \"todoz:x\" drops nothing: no route stores under such a tag",
        ),
        (
            "methods = [\"GET\", \"HEAD\"]\ninvalidates = [\"todo:{id}\"]",
            "[2].invalidates: has no effect: the methods of this route are safe, and change nothing",
        ),
        (
            "methods = [\"POST\", \"PUT\"]\ncache = { ttl = \"5m\" }",
            "[2].cache: has no effect: this route takes neither GET nor HEAD",
        ),
    ] {
        assert_eq!(told(rest), [expected]);
    }
    assert_eq!(told("cache = { ttl = \"5m\" }\ninvalidates = [\"todo:1\"]"), Vec::<String>::new());
}
