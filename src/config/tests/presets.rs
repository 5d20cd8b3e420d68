use std::time::Duration;

use crate::config::spec::{AppliesTo, Auth, CoolDown, KeyPart, LimitAlgorithm, Logout, Quota};

use super::*;

fn preset(name: &str, pairs: &[(&str, &str)]) -> Loaded {
    load(&repository(&format!("config/{name}.toml")), &variables(pairs))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn quota(loaded: &Loaded, policy: &str) -> Vec<(String, u64, u64)> {
    let policy = loaded.spec.policies.iter().find(|known| &*known.name == policy).unwrap();
    let Quota::Windows(windows) = &policy.quota else { panic!() };
    windows.iter().map(|window| (window.name.to_string(), window.limit, window.window.as_secs())).collect()
}

#[test]
fn todo_preset_is_what_its_page_says() {
    let loaded = preset("todo", &[("JWT_SECRET", SECRET)]);
    assert_eq!(loaded.warnings, []);
    let spec = &loaded.spec;
    assert_eq!(spec.server.listen, ["0.0.0.0:8080".parse().unwrap()]);
    assert_eq!(spec.admin.listen, "127.0.0.1:9090".parse().unwrap());
    assert!(spec.admin.token.is_none());
    assert_eq!(spec.redis.url.as_ref().unwrap().expose(), "redis://localhost:6379");
    assert_eq!(spec.upstreams[0].members[0].to_string(), "127.0.0.1:8000");
    assert_eq!(quota(&loaded, "login"), [("minute".into(), 5, 60)]);
    assert_eq!(quota(&loaded, "register"), [("hour".into(), 3, 3600)]);
    assert_eq!(quota(&loaded, "general"), [("minute".into(), 100, 60)]);
    let route = |name: &str| spec.routes.iter().find(|route| &*route.name == name).unwrap();
    let limits = |name: &str| route(name).limits.iter().map(|limit| &**limit).collect::<Vec<&str>>();
    let texts = |templates: &[Template]| templates.iter().map(|tag| tag.text.to_string()).collect::<Vec<_>>();
    assert_eq!(route("login").auth, Auth::None);
    assert_eq!(limits("login"), ["login"]);
    assert_eq!(route("logout").logout, Some(Logout::Gateway));
    assert!(route("logout").limits.is_empty() && route("logout").upstream.is_none());
    let me = route("me").cache.as_ref().unwrap();
    assert_eq!((me.ttl, me.shared), (Some(Duration::from_secs(600)), false));
    assert_eq!(texts(&me.tags), ["user:{user}"]);
    let record = route("todo-record").cache.as_ref().unwrap();
    assert_eq!(record.ttl, Some(Duration::from_secs(300)));
    assert_eq!(texts(&route("todo-record-write").invalidates), ["todos:{user}", "todo:{id}"]);
    assert_eq!(texts(&route("todo-write").invalidates), ["todos:{user}"]);
    assert_eq!(route("everything-else").auth, Auth::None);
    assert_eq!(limits("everything-else"), ["general"]);
}

#[test]
fn api_gateway_preset_is_what_its_page_says() {
    let loaded = preset("api-gateway", &[("JWT_SECRET", SECRET)]);
    assert_eq!(loaded.warnings, []);
    assert_eq!(quota(&loaded, "ip"), [("minute".into(), 60, 60)]);
    assert_eq!(
        quota(&loaded, "api_token"),
        [("minute".into(), 60, 60), ("hour".into(), 1000, 3600), ("day".into(), 10_000, 86_400)]
    );
    let (tokens, policies) = (&loaded.spec.api_tokens, &loaded.spec.policies);
    assert_eq!((&policies[0].key[..], &policies[1].key[..]), (&[KeyPart::Ip][..], &[KeyPart::ApiToken][..]));
    assert_eq!((tokens.enabled, tokens.header.as_ref().unwrap().as_str()), (true, "x-api-key"));
    assert_eq!(loaded.spec.routes[0].limits, ["ip".into(), "api_token".into()] as [Box<str>; 2]);
    assert_eq!(loaded.spec.routes[0].auth, Auth::Optional);
    assert_eq!(loaded.spec.redis.connect_timeout, Duration::from_secs(2));
    assert_eq!(loaded.spec.redis.health_check_interval, Duration::from_secs(30));
}

#[test]
fn codepitamah_preset_is_what_its_page_says() {
    let loaded = preset("codepitamah", &[("JWT_SECRET", SECRET)]);
    assert_eq!(loaded.warnings, []);
    let spec = &loaded.spec;
    let per_minute = |name: &str| {
        let plan = spec.plans.iter().find(|plan| &*plan.name == name).unwrap();
        assert_eq!((plan.windows.len(), plan.windows[0].window.as_secs()), (1, 60), "{name}");
        plan.windows[0].limit
    };
    assert_eq!(["anonymous", "free", "pro", "enterprise"].map(per_minute), [10, 50, 200, 1_000]);
    assert!(spec.limits.user_limits);
    assert!((spec.limits.multiplier_cap - 20.0).abs() < f64::EPSILON);
    let [plan, burst] = &spec.policies[..] else { panic!("{:?}", spec.policies) };
    assert_eq!((&plan.key[..], plan.algorithm), (&[KeyPart::Caller][..], LimitAlgorithm::SlidingWindow));
    assert_eq!(plan.quota, Quota::Plan);
    assert_eq!(quota(&loaded, "burst"), [("10s".into(), 5, 10)]);
    assert_eq!((burst.applies_to, burst.algorithm), (AppliesTo::Anonymous, LimitAlgorithm::CoolDown));
    let minute = Duration::from_secs(60);
    assert_eq!(burst.cooldown, Some(CoolDown { interval: minute, quiet: minute }));
    let route = |name: &str| {
        let route = spec.routes.iter().find(|route| &*route.name == name).unwrap();
        let limits: Vec<&str> = route.limits.iter().map(|limit| &**limit).collect();
        (route.auth, route.permissions.iter().map(|text| &**text).collect::<Vec<&str>>(), limits)
    };
    assert_eq!(route("analyze"), (Auth::Optional, vec!["code_analysis"], vec!["plan", "burst"]));
    assert_eq!(route("architecture"), (Auth::Required, vec!["architecture_generation"], vec!["plan"]));
    assert_eq!(route("everything-else"), (Auth::Optional, vec![], vec!["plan"]));
}

#[test]
fn stms_preset_is_what_its_page_says() {
    let loaded = preset("stms", &[("JWT_SECRET", SECRET)]);
    assert_eq!(loaded.warnings, []);
    let spec = &loaded.spec;
    assert_eq!(spec.upstreams[0].members[0].to_string(), "127.0.0.1:5000");
    assert!(spec.server.case_insensitive_paths && spec.server.ignore_trailing_slash);
    for (policy, limit, window) in
        [("login", 5, 900), ("register", 3, 900), ("general", 10, 300), ("user", 300, 300)]
    {
        let [(_, known, length)] = &quota(&loaded, policy)[..] else { panic!("{policy}") };
        assert_eq!((*known, *length), (limit, window), "{policy}");
    }
    let route = |name: &str| spec.routes.iter().find(|route| &*route.name == name).unwrap();
    let limits = |name: &str| route(name).limits.iter().map(|limit| &**limit).collect::<Vec<&str>>();
    let texts = |templates: &[Template]| templates.iter().map(|tag| tag.text.to_string()).collect::<Vec<_>>();
    for (name, auth, named) in [
        ("login", Auth::None, vec!["login"]),
        ("student-register", Auth::None, vec!["register"]),
        ("trainer-register", Auth::None, vec!["register"]),
        ("logout", Auth::Required, vec!["user"]),
        ("everything-else", Auth::Optional, vec!["general", "user"]),
    ] {
        assert_eq!((route(name).auth, limits(name)), (auth, named), "{name}");
    }
    assert_eq!(route("logout").logout, Some(Logout::Forward));
    for (name, seconds, shared, tag) in [
        ("students", 600, true, "all_students"),
        ("trainers", 600, true, "all_trainers"),
        ("student", 600, true, "single_student:{id}"),
        ("trainer", 600, true, "single_trainer:{id}"),
        ("profile", 1_800, false, "user:{user}"),
        ("lectures", 300, true, "all_lectures"),
        ("lecture", 300, true, "all_lectures"),
        ("lectures-today", 180, true, "today_lectures"),
    ] {
        let cache = route(name).cache.as_ref().unwrap();
        assert_eq!((cache.ttl, cache.shared), (Some(Duration::from_secs(seconds)), shared), "{name}");
        assert_eq!(texts(&cache.tags), [tag], "{name}");
        assert_eq!(route(name).auth, Auth::Required, "{name}");
    }
    assert_eq!(texts(&route("student-register").invalidates), ["all_students"]);
    assert_eq!(texts(&route("lecture-write").invalidates), ["all_lectures", "today_lectures"]);
    let development = preset("stms", &[("JWT_SECRET", SECRET), ("TOLLGATE_ENV", "development")]);
    assert_eq!(quota(&development, "general")[0].1, 100);
}

#[test]
fn api_gateway_preset_allows_more_in_development() {
    let loaded = preset("api-gateway", &[("JWT_SECRET", "short"), ("TOLLGATE_ENV", "development")]);
    assert_eq!(quota(&loaded, "ip"), [("minute".into(), 300, 60)]);
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
}

#[test]
fn presets_read_their_environment() {
    for name in ["todo", "api-gateway", "codepitamah", "stms"] {
        let loaded = preset(
            name,
            &[
                ("JWT_SECRET", SECRET),
                ("TOLLGATE_LISTEN", "127.0.0.1:1, [::1]:2"),
                ("TOLLGATE_ADMIN_LISTEN", "0.0.0.0:3"),
                ("TOLLGATE_ADMIN_TOKEN", "an admin token that is long"),
                ("TOLLGATE_TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.1"),
                ("TOLLGATE_UPSTREAM", "one:8000,two:8000"),
                ("REDIS_URL", ""),
            ],
        );
        assert_eq!(loaded.spec.server.listen.len(), 2);
        assert_eq!(loaded.spec.admin.listen.port(), 3);
        assert!(loaded.spec.admin.token.is_some());
        assert_eq!(loaded.spec.server.trusted_proxies.len(), 2);
        assert_eq!(loaded.spec.upstreams[0].members.len(), 2);
        assert!(loaded.spec.redis.url.is_none());
    }
}

#[test]
fn presets_need_a_secret_of_32_bytes_in_production() {
    for name in ["todo", "api-gateway", "codepitamah", "stms"] {
        let path = repository(&format!("config/{name}.toml"));
        let missing = load(&path, &variables(&[])).unwrap_err().to_string();
        assert!(missing.contains("the environment variable JWT_SECRET is not set"), "{missing}");
        let short = load(&path, &variables(&[("JWT_SECRET", "hunter2hunter2")])).unwrap_err().to_string();
        assert!(short.contains("is too short") && !short.contains("hunter2"), "{short}");
        assert_eq!(short.lines().count(), 1);
    }
}
