//! Every key of the configuration file with its type, default and meaning. Readers take their defaults from here,
//! unknown keys are found here, and `docs/configuration.md` is printed from here.

use std::collections::BTreeMap;

/// What an absent key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// The file must have it.
    Required,
    /// Nothing; `meaning` says what that does.
    Unset,
    /// This TOML value.
    Is(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `<…>` stands for a name the operator chooses, `[]` for each table of a list.
    pub path: &'static str,
    /// Type and bounds, in words.
    pub kind: &'static str,
    /// What an absent key means.
    pub default: Default,
    /// One sentence.
    pub meaning: &'static str,
}

const fn is(path: &'static str, kind: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { path, kind, default: Default::Is(default), meaning }
}

const fn unset(path: &'static str, kind: &'static str, meaning: &'static str) -> Key {
    Key { path, kind, default: Default::Unset, meaning }
}

const fn required(path: &'static str, kind: &'static str, meaning: &'static str) -> Key {
    Key { path, kind, default: Default::Required, meaning }
}

/// All keys, in the order of the documentation.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    is("environment", "production, development", r#""${TOLLGATE_ENV:-production}""#,
        "Which `[environments.<name>]` overlay is in force; development also accepts short secrets."),

    is("server.listen", "list of addresses", r#"["0.0.0.0:8080"]"#, "Public listeners."),
    is("server.listen_h2c", "list of addresses", "[]",
        "Internal listeners for HTTP/2 without TLS, with prior knowledge; nothing else is understood there."),
    is("server.threads", "0 to 1024", "0", "Worker threads; 0: one per core."),
    is("server.trusted_proxies", "list of addresses or networks", "[]",
        "Peers whose forwarding headers are believed; from all others they are dropped."),
    is("server.client_address_header", "x-forwarded-for, forwarded", r#""x-forwarded-for""#,
        "The header in which trusted proxies report the client."),
    is("server.ipv6_prefix", "1 to 128", "64", "Length of the IPv6 prefix that counts as one client."),
    is("server.keepalive_timeout", "duration, 1s to 1h", r#""60s""#, "How long an idle client connection is kept."),
    is("server.body_timeout", "duration, 100ms to 1h", r#""60s""#, "Longest pause while a request body arrives."),
    is("server.write_timeout", "duration, 100ms to 1h", r#""60s""#, "Longest pause while a client takes its response."),
    is("server.max_uri", "size, 256 B to 64 KiB", r#""8KiB""#, "Longest request target; above: 414."),
    is("server.max_header_size", "size, 1 KiB to 1 MiB", r#""32KiB""#, "Most bytes of all request header fields; above: 431."),
    is("server.max_headers", "8 to 256", "100", "Most request header fields; above: 431."),
    is("server.max_body", "size", r#""10MiB""#, "Most bytes of a request body, for routes that do not say; above: 413."),
    is("server.case_insensitive_paths", "boolean", "false", "Whether `/Todo` is `/todo`; for backends that think so."),
    is("server.ignore_trailing_slash", "boolean", "false", "Whether a route for `/todo/` also takes `/todo` and the other way round; for backends that do not tell them apart."),
    is("server.allow_encoded_slashes", "boolean", "false", "Whether `%2F` may stand in a path, for routes that do not say; otherwise 400."),
    is("server.allow_path_parameters", "boolean", "false", "Whether `;` may stand in a path; otherwise 400."),
    is("server.shutdown_timeout", "duration, up to 1h", r#""30s""#, "How long requests in flight may take to end at shutdown."),

    is("admin.listen", "address", r#""127.0.0.1:9090""#,
        "Listener for `/metrics`, `/health`, `/live`, `/ready` and the admin API; give it a token where it is not loopback."),
    is("admin.hosts", "list of host names", "[]",
        "Names, beside IP addresses and `localhost`, by which operators and scrapers reach it; others get 421."),
    unset("admin.token", "secret, best 16 bytes or more", "Bearer credential of the admin API; without one only `/metrics`, `/health`, `/live` and `/ready` are answered."),
    is("admin.health_detail", "boolean", "true", "Whether `/health` shows Redis, memory, cache and connections."),

    is("redis.url", "redis://, redis+sentinel://, redis+cluster://, the same with rediss, or empty", r#""${REDIS_URL:-redis://localhost:6379}""#,
        "The store that instances share; empty: memory only. `redis://[user:password@]host[:port][/db]`; `redis+sentinel://[user:password@]host[:port][,…][/service[/db]][?sentinel_password=…]`: the master that these sentinels name, by default of `mymaster`, with the credentials of the master; `redis+cluster://[user:password@]host[:port][,…]`: the Cluster that any of these nodes belongs to. `rediss` for TLS."),
    is("redis.hash_tags", "auto, on, off", r#""auto""#,
        "Whether keys put whom they concern into braces, so that in Cluster one caller's keys live on one node: `rate_limit:ip:{203.0.113.7}`; auto: with Cluster. A change starts counters anew."),
    is("redis.key_prefix", "string of letters, digits, `:`, `-`, `_`, `.`", r#""""#, "Put in front of every key."),
    is("redis.connect_timeout", "duration, 10ms to 1m", r#""2s""#, "For opening a connection; no request waits for it."),
    is("redis.deadline", "duration, 1ms to 1s", r#""20ms""#, "Longest time a request waits for Redis."),
    is("redis.health_check_interval", "duration, 100ms to 1h", r#""30s""#, "Pause between checks of the connection."),
    is("redis.breaker_failures", "1 to 1000", "5", "Failures in a row after which requests stop waiting for Redis."),

    is("log.format", "json, human", r#""json""#, "Shape of the lines."),
    is("log.level", "error, warn, info, debug, trace", r#""info""#, "Least severe level that is logged."),
    is("log.access", "boolean", "true", "Whether each request gives a line."),
    is("log.access_fields", "list of fields",
        r#"["time", "request_id", "client_ip", "method", "path", "route", "status", "bytes", "duration_ms", "upstream", "upstream_ms", "user", "api_token", "plan", "cache", "limit", "refusal", "user_agent"]"#,
        "Fields of that line; `host`, `query`, `protocol` and `referer` exist too."),

    is("identity.token_from", "list of bearer, cookie:NAME, header:NAME, query:NAME", r#"["bearer"]"#,
        "Where a token may be, tried in this order."),
    is("identity.max_token_size", "size, 256 B to 64 KiB", r#""8KiB""#, "Longer tokens are refused unread."),
    is("identity.verified_cache", "0 to 10000000", "10000", "Most verified tokens remembered, so that a signature is checked once."),
    is("identity.revocation_lifetime", "duration, 1m to 10 years", r#""30d""#,
        "How long a revocation holds where the token does not say when it ends: tokens without `exp`, cut-offs of a subject, revocation by `jti`. At least the longest life of any token."),
    is("identity.when_unknown", "accept, refuse", r#""accept""#,
        "What becomes of a token while Redis gives no answer and nothing is known against it: `refuse` answers 503."),
    is("identity.headers.user_id", "header name, or empty", r#""X-User-Id""#, "Tells the upstream the subject; empty: not sent."),
    is("identity.headers.plan", "header name, or empty", r#""X-User-Plan""#, "Tells the upstream the plan; empty: not sent."),
    is("identity.headers.permissions", "header name, or empty", r#""X-User-Permissions""#, "Tells the upstream the permissions, comma-separated; empty: not sent."),
    unset("identity.claim_headers.<claim>", "header name", "Tells the upstream this claim of the token."),

    is("sessions.idle", "duration, 1s to 366 days", r#""1h""#,
        "How long after its last use a session ends. A use is noted once per 60th of this, at least a second apart, and a session lives that much longer."),
    is("sessions.absolute", "duration, `sessions.idle` to 10 years", r#""24h""#, "How long after the login a session ends at the latest; it never outlives its token."),
    is("sessions.max_per_user", "1 to 100", "10", "Most sessions of one user; a further login ends the oldest and revokes its token."),
    is("sessions.peek", "size, 1 KiB to 1 MiB", r#""64KiB""#, "Longest body of a login response that is looked at, as it is sent and uncompressed."),
    is("sessions.sweep", "duration, 1s to 7 days", r#""1h""#, "How often one instance takes out sessions that have ended and counts the others."),
    is("api_tokens.enabled", "boolean", "false", "Whether tokens are accepted that the gateway issues itself: `tgk_…`, as Bearer or in the header below, wherever a route looks at tokens."),
    is("api_tokens.header", "header name, or empty", r#""X-API-Key""#, "The header that may hold an API token, and is never sent on; empty: only `Authorization`."),

    required("issuers.<name>.algorithms", "list of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA",
        "Accepted signatures: secrets (HS*) or public keys, never both in one issuer."),
    unset("issuers.<name>.secret", "secret, 32 bytes or more (48 for HS384, 64 for HS512; any length in development)", "Shared secret for HS*."),
    unset("issuers.<name>.public_key", "PEM", "Public key, inline."),
    unset("issuers.<name>.public_key_file", "path", "Public key in a PEM file; relative to this file."),
    unset("issuers.<name>.kid", "string", "The `kid` that the key above answers to; without one, tokens need none."),
    unset("issuers.<name>.keys[].kid", "string", "The `kid` of a further key."),
    unset("issuers.<name>.keys[].secret", "secret, as above", "As above, for a further key."),
    unset("issuers.<name>.keys[].public_key", "PEM", "As above, for a further key."),
    unset("issuers.<name>.keys[].public_key_file", "path", "As above, for a further key."),
    unset("issuers.<name>.issuer", "string", "Required `iss`; without one, `iss` is not looked at."),
    is("issuers.<name>.audience", "list of strings", "[]", "One of these must be in `aud`; empty: `aud` is not looked at."),
    is("issuers.<name>.leeway", "duration, up to 10m", r#""30s""#, "Tolerance for clocks that differ."),
    is("issuers.<name>.require_exp", "boolean", "true", "Whether a token without `exp` is refused."),
    is("issuers.<name>.required_claims", "list of strings", "[]", "Claims that must be present."),
    unset("issuers.<name>.max_lifetime", "duration, 1s to 10 years", "Longest life (`exp` minus `iat`) that is accepted; without one, any."),
    is("issuers.<name>.claims.subject", "list of strings", r#"["sub", "user_id"]"#, "Claims that hold the user, the first present one counts."),
    is("issuers.<name>.claims.plan", "string", r#""subscription_plan""#, "Claim that holds the plan."),
    is("issuers.<name>.claims.multiplier", "string", r#""rate_limit_multiplier""#, "Claim that holds the factor on the plan's limits."),
    is("issuers.<name>.claims.permissions", "string", r#""permissions""#, "Claim that holds the permissions."),
    is("issuers.<name>.claims.email", "string", r#""email""#, "Claim that holds the e-mail address."),
    unset("issuers.<name>.jwks.url", "https URL", "Where the issuer publishes its public keys (JWK Set, RFC 7517); instead of keys in this file. Redirects are not followed."),
    unset("issuers.<name>.jwks.file", "path", "The same in a file that may be replaced while the gateway runs; relative to this file."),
    is("issuers.<name>.jwks.refresh", "duration, 1s to 24h", r#""5m""#, "Pause between two reads in the background. While reading fails, the keys read last go on."),
    is("issuers.<name>.jwks.cooldown", "duration, 100ms to 1h", r#""5s""#, "Shortest time between two reads, however many tokens have a `kid` and fit no key; how long tokens of a `kid` that was looked for in vain are refused without another read."),
    is("issuers.<name>.jwks.timeout", "duration, 100ms to 1m", r#""5s""#, "Longest time of one read. A token with a `kid` that fits no key waits at most for this and, before it, for the longer of this and the cooldown, never longer than 10 s; then it is answered with 503."),
    is("issuers.<name>.jwks.max_size", "size, 1 KiB to 4 MiB", r#""256KiB""#, "Largest set that is read."),
    unset("issuers.<name>.jwks.ca_file", "path", "PEM certificates trusted for the URL beside the public ones; relative to this file."),
    is("issuers.<name>.jwks.allow_http", "boolean", "false", "Whether the URL may be `http`: whoever is on the way could then replace the keys."),

    is("limits.default_plan", "plan", r#""free""#, "Plan of users whose token names none, or an unknown one."),
    is("limits.anonymous_plan", "plan", r#""anonymous""#, "Plan of callers without a token."),
    is("limits.multiplier_cap", "1 to 1000000", "20", "Largest product of the multipliers that a token and `user_limits:<user>` may bring."),
    is("limits.user_limits", "boolean", "false", "Whether the hash `user_limits:<user>` in Redis changes the plan limits of that user: `multiplier`, and `minute`, `hour`, `day` instead of the plan's."),
    is("limits.user_limits_refresh", "duration, 100ms to 1h", r#""10s""#, "How old what is known of that hash may be before it is read again, in the background."),
    is("limits.reset", "epoch, delta", r#""epoch""#, "`X-RateLimit-Reset` as seconds since 1970, or from now."),
    is("limits.x_ratelimit_headers", "boolean", "true", "Whether `X-RateLimit-Limit`, `-Remaining` and `-Reset` are sent."),
    is("limits.ietf_headers", "boolean", "true", "Whether `RateLimit-Policy` and `RateLimit` are sent."),
    is("limits.coalesce", "boolean", "true", "Whether requests that share a counter are asked for together while its last question is under way; it decides nothing."),
    is("limits.quota_path", "path, or empty", r#""/_tollgate/quota""#, "Where a client reads what is left of its own limits, on every host and before any route; empty: nowhere."),
    is("limits.body_peek", "size, 1 KiB to 48 KiB", r#""16KiB""#, "Longest request body that is read for a policy with `body:FIELD`; longer ones pass unread and count as unreadable."),
    is("limits.local_keys", "1000 to 10000000", "100000", "Most counters and refusals an instance holds in its memory."),

    unset("plans.<name>.windows[].limit", "1 to 1000000000", "Requests in this window; required there."),
    unset("plans.<name>.windows[].window", "duration of whole seconds, 1s to 31 days", "Length of this window; required there."),
    unset("plans.<name>.windows[].name", "1 to 32 characters of a-z, 0-9, - and _", "Name of this window; without one second, minute, hour, day or the length such as 300s."),
    unset("plans.<name>.second", "1 to 1000000000", "Short for a window of 1 s."),
    unset("plans.<name>.minute", "1 to 1000000000", "Short for a window of 60 s."),
    unset("plans.<name>.hour", "1 to 1000000000", "Short for a window of 3600 s."),
    unset("plans.<name>.day", "1 to 1000000000", "Short for a window of 86400 s."),

    required("policies.<name>.key", "list of ip, user, token, api_token, route, plan, caller, header:NAME, cookie:NAME, body:FIELD",
        "What is counted by; `caller` is the user when identified, else the address. `body:email` is a field of a JSON or form body, `body:user.email` one of a nested object; case, white space and Unicode form make no difference. What comes from the request stands in Redis only as a digest, and all who leave it out, repeat it or make it unreadable share one counter."),
    is("policies.<name>.applies_to", "all, anonymous, identified", r#""all""#, "Whose requests it counts: everyone's, or those of callers without or with a token."),
    is("policies.<name>.algorithm", "fixed-window, sliding-window, token-bucket, sliding-log, cool-down", r#""fixed-window""#, "How requests are counted."),
    unset("policies.<name>.windows[].limit", "1 to 1000000000", "Requests in this window; required there."),
    unset("policies.<name>.windows[].window", "duration of whole seconds, 1s to 31 days", "Length of this window; required there."),
    unset("policies.<name>.windows[].name", "1 to 32 characters of a-z, 0-9, - and _", "Name of this window, the end of its Redis key; without one second, minute, hour, day or the length such as 300s."),
    unset("policies.<name>.limit", "1 to 1000000000", "With `window`, short for one window."),
    unset("policies.<name>.window", "duration of whole seconds, 1s to 31 days", "With `limit`, short for one window."),
    is("policies.<name>.plan", "boolean", "false", "Take the windows of the caller's plan."),
    unset("policies.<name>.concurrency", "1 to 1000000", "Instead of windows: most requests of one subject in flight at once, on each instance for itself."),
    is("policies.<name>.cost", "1 to 1000000", "1", "What one request costs."),
    is("policies.<name>.on_store_failure", "local, allow, deny", r#""local""#, "While Redis is away: count in memory, let all pass, or refuse all."),
    is("policies.<name>.count", "requests, failures", r#""requests""#, "Whether every request counts, or only those whose answer is a failure; the others are given back when they are answered."),
    is("policies.<name>.failure_statuses", "list of 200 to 599", "[401, 403]", "Answers that count as failures."),
    is("policies.<name>.penalise", "boolean", "false", "Whether refused requests count too; not where only failures count."),
    is("policies.<name>.shadow", "boolean", "false", "Whether it only watches: it counts, says in metrics what it would refuse, and clients see nothing of it."),
    is("policies.<name>.lease", "boolean", "false", "Whether an instance may take several requests' worth of a fixed window at once; for limits of 100 or more, without `penalise` and `shadow`."),
    unset("policies.<name>.cooldown.limit", "1 to 1000000000", "Requests per `cooldown.window` once the window has tripped; required for cool-down."),
    unset("policies.<name>.cooldown.window", "duration of whole seconds, 1s to 31 days", "One request per `window` divided by `limit` is admitted then; required for cool-down."),
    unset("policies.<name>.cooldown.quiet", "duration of whole seconds, 1s to 31 days", "The window opens again after this long without any request; without it `cooldown.window`."),
    unset("policies.<name>.candidate.windows[].limit", "1 to 1000000000", "Windows to watch beside the enforced ones, as the shadow policy `<name>-candidate`."),
    unset("policies.<name>.candidate.windows[].window", "duration of whole seconds, 1s to 31 days", "Length of this window; required there."),
    unset("policies.<name>.candidate.windows[].name", "1 to 32 characters of a-z, 0-9, - and _", "As for the policy itself."),
    unset("policies.<name>.candidate.limit", "1 to 1000000000", "With `window`, short for one window."),
    unset("policies.<name>.candidate.window", "duration of whole seconds, 1s to 31 days", "With `limit`, short for one window."),

    required("upstreams.<name>.members", "list of host:port", "The backends."),
    is("upstreams.<name>.protocol", "http1, h2c", r#""http1""#, "What is spoken to them."),
    is("upstreams.<name>.balance", "round-robin", r#""round-robin""#, "How a member is chosen."),
    is("upstreams.<name>.connect_timeout", "duration, 1ms to 1m", r#""1s""#, "For opening a connection."),
    is("upstreams.<name>.read_timeout", "duration, 1ms to 1h", r#""30s""#, "Longest pause while a response arrives; above: 504."),
    is("upstreams.<name>.write_timeout", "duration, 1ms to 1h", r#""30s""#, "Longest pause while a request is taken."),
    is("upstreams.<name>.idle_timeout", "duration, 1s to 1h", r#""60s""#, "How long an idle connection is kept; less than the backend's own."),
    is("upstreams.<name>.connect_retries", "0 to 10", "1", "Further attempts when a connection cannot be opened."),
    is("upstreams.<name>.max_h2_streams", "1 to 1000", "100", "Most concurrent streams of one h2c connection."),

    is("cache.memory", "size, four times `cache.max_object` to 1 TiB", r#""64MiB""#, "The memory tier of this instance: stored responses, those on their way in, and all that is needed to find them. With less than about eight times `cache.max_object` the largest responses do not get to Redis."),
    is("cache.redis", "boolean", "true", "Whether Redis is the second tier, shared by all instances."),
    is("cache.max_object", "size, up to 1 GiB", r#""1MiB""#, "Largest response that is stored."),
    is("cache.redis_max_object", "size, up to 512 MiB", r#""1MiB""#, "Largest response that is stored in Redis."),
    is("cache.max_lifetime", "duration, 1s to 1 year", r#""24h""#, "Longest time that a response is used, fresh and stale together."),
    is("cache.coalesce_wait", "duration, up to 1m", r#""5s""#, "How long a request waits, at most, for others that are fetching the same object: half of it for another instance, all of it or what is left for another request of this one; then it fetches for itself."),
    is("cache.redis_lock", "duration, up to 1m", r#""5s""#, "How long, at most, an instance's claim to be fetching an object keeps the other instances waiting; `0s`: they do not wait for each other."),
    is("cache.expose_key", "boolean", "true", "Whether `X-Cache-Key`, a fingerprint, is sent."),

    is("defaults.auth", "none, optional, required", r#""none""#, "For routes that do not say."),
    is("defaults.limits", "list of policies", "[]", "For routes that do not say; `limits = []` on a route opts out."),
    unset("defaults.upstream", "upstream", "For routes that do not say."),

    required("routes[].name", "string, unique", "Shown in logs and metrics."),
    unset("routes[].host", "host name or *.suffix", "The host it answers for; without one, every host."),
    is("routes[].hosts", "list of host names or *.suffix", "[]", "As `host`, for several."),
    is("routes[].methods", "list of methods", "[]", "Methods it answers to; empty: every method."),
    required("routes[].path", "pattern", "`/exact`, `/todo/:id`, `/files/**`, `/{a,b}/list`; the most specific route wins."),
    unset("routes[].upstream", "upstream", "Where requests go; without one `defaults.upstream`. Needed unless the gateway answers."),
    unset("routes[].auth", "none, optional, required", "What is asked of the token; without one `defaults.auth`."),
    is("routes[].session", "none, required", r#""none""#, "Whether a live session is needed beside the token; without one: 401. Only beside `auth = \"required\"`."),
    is("routes[].permissions", "list of strings", "[]", "What a token needs, all of it; otherwise 403. Where `auth` is optional, callers without a token pass."),
    unset("routes[].limits", "list of policies", "Limits that hold here; without the key `defaults.limits`."),
    is("routes[].cost", "1 to 1000000", "1", "What a request here costs, times the policy's own cost."),
    unset("routes[].logout", "gateway, forward", "Makes this a logout, answered by the gateway or, on a 2xx, by the upstream."),
    is("routes[].logout_everywhere", "boolean", "false", "Whether the logout revokes every token that the user has got until then; only beside `logout`."),
    unset("routes[].health", "brief, full", "Makes the gateway answer GET and HEAD here with its own health: status, version and uptime, or Redis, cache, connections and upstreams too. `auth` is `none` and `limits` are `[]` unless the route says otherwise."),
    unset("routes[].when_unknown", "accept, refuse", "As `identity.when_unknown`, here; without one that, but `accept` for a logout."),
    unset("routes[].max_body", "size", "Most bytes of a request body; without one `server.max_body`."),
    unset("routes[].allow_encoded_slashes", "boolean", "Whether `%2F` may stand in the path; without one `server.allow_encoded_slashes`."),
    is("routes[].invalidates", "list of tags", "[]", "Tags that a successful POST, PUT, PATCH or DELETE drops, on every instance."),
    required("routes[].login.token", "json:/pointer, header:NAME, cookie:NAME", "Makes a 2xx a login: where the upstream's answer has the token, whose session is opened then."),
    unset("routes[].cache.ttl", "duration, 1s to `cache.max_lifetime`", "Freshness of a 200 where the upstream says nothing. Without one only what the upstream says counts, by the rules of a shared cache (RFC 9111)."),
    unset("routes[].cache.status_ttl.<status>", "duration, 1s to `cache.max_lifetime`", "The same for this status: 200, 203, 204, 300 to 303, 307, 308, 403 (unless shared behind a token), 404, 405, 410, 414, 451, 500 to 510."),
    unset("routes[].cache.heuristic", "1 to 100", "Percentage of the time since `Last-Modified` for which a response is taken to be fresh where nothing else says how long, a day at most; without one nothing is guessed."),
    is("routes[].cache.set_cookie", "refuse, strip, keep", r#""refuse""#, "Responses that set a cookie: not stored, stored without their cookies, or stored as they are for the user who got them."),
    is("routes[].cache.shared", "boolean", "false", "One response for all users; otherwise each has their own."),
    is("routes[].cache.override_origin", "boolean", "false", "Whether `ttl` and `status_ttl` also replace what the upstream says."),
    is("routes[].cache.vary", "list of header names", "[]", "Request headers that are part of the key, beside the response's `Vary`."),
    is("routes[].cache.query", "all, ignore, or a list of names", r#""all""#, "Query parameters that are part of the key."),
    is("routes[].cache.tags", "list of tags", "[]", "Labels to drop responses by; `{user}` and the path's `{param}` are filled in."),
    unset("routes[].cache.max_object", "size, up to `cache.max_object`", "Largest response that is stored; without one `cache.max_object`."),
    is("routes[].cache.refresh_ahead", "duration, up to half of `ttl`", r#""0s""#, "How long before its end a response is fetched anew in the background, at a hit; at most half of the time it was fresh for."),
    is("routes[].cache.warm.urls", "list of http or https URLs", "[]", "Responses of this shared route that are fetched at the start and kept fresh, asked for or not; as clients ask for them."),
    unset("routes[].cache.warm.authorization", "secret", "`Authorization` to fetch them with; without one, or with a scheme alone, none is sent."),
    unset("routes[].cache.warm.headers.<header>", "string", "What selects the variant: `accept`, `accept-encoding`, `accept-language` or a header of `vary`."),
    is("routes[].cache.stale_while_revalidate", "duration, up to 1 day", r#""0s""#, "How long a stale response is served while a fresh one is fetched. With the `ttl` up to `cache.max_lifetime`, fresh and stale together."),
    is("routes[].cache.stale_if_error", "duration, up to 7 days", r#""0s""#, "How long a stale response is served when the upstream fails. With the `ttl` up to `cache.max_lifetime`, fresh and stale together."),
];

/// The key with this pattern.
pub(super) fn find(pattern: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == pattern)
}

/// What may stand below a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    /// A value.
    Leaf,
    /// A table.
    Table,
    /// A list of tables.
    Tables,
}

/// The keys that may stand directly below `pattern` (empty: the file).
pub(super) fn children(pattern: &str) -> BTreeMap<&'static str, Child> {
    let mut children = BTreeMap::new();
    for key in KEYS {
        let rest = match pattern {
            "" => Some(key.path),
            pattern => key.path.strip_prefix(pattern).and_then(|rest| rest.strip_prefix('.')),
        };
        let Some(rest) = rest else { continue };
        match rest.split_once('.') {
            None => children.insert(rest, Child::Leaf),
            Some((name, _)) => match name.strip_suffix("[]") {
                Some(name) => children.insert(name, Child::Tables),
                None => children.insert(name, Child::Table),
            },
        };
    }
    children
}
