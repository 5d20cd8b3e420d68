//! The commands as an operator or a script uses them: what they print, where, and with which exit code.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::token::{SECRET, Token};

pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn tollgate(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn file(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gateway.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (directory, path)
}

const SMALL: &str = "[upstreams.app]\nmembers = \"127.0.0.1:8000\"\n\n[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n";

#[test]
fn check_accepts_every_shipped_configuration() {
    for name in ["todo", "api-gateway", "codepitamah", "stms", "tollgate"] {
        let path = format!("config/{name}.toml");
        let said = tollgate(&["check", "--config", &path], &[("JWT_SECRET", SECRET)], "");
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{name}");
        assert!(said.out.starts_with(&format!("OK: {path} (production): ")), "{}", said.out);
        assert!(said.out.ends_with("store: redis://localhost:6379\n"), "{}", said.out);
        assert!(!said.out.contains(SECRET));
    }
    let (_directory, path) = file(SMALL);
    let said = tollgate(&["check", "--config", &path], &[("REDIS_URL", "")], "");
    let counts = "1 route, 0 policies, 1 upstream, 0 issuers;";
    assert!(said.out.starts_with(&format!("OK: {path} (production): {counts}")), "{}", said.out);
}

#[test]
fn check_shows_every_mistake_at_once_with_its_place_and_fails() {
    let (_directory, path) = file(
        "[server]\nlisten = \"nowhere\"\n\n[redis]\nurll = \"x\"\n\n[[routes]]\nname = \"a\"\npath = \"/a\"\n\
         upstream = \"b\"\nauth = \"requierd\"\nlimits = [\"gone\"]\n",
    );
    let said = tollgate(&["check", "--config", &path], &[], "");
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    let places: Vec<&str> =
        said.err.lines().map(|line| line.strip_prefix(&path).unwrap().split(": ").next().unwrap()).collect();
    assert_eq!(places, [":2:10", ":5:1", ":10:12", ":11:8", ":12:11"], "{}", said.err);
    assert!(
        said.err.contains("routes[0].auth: \"requierd\" is not accepted; accepted: none, optional, required")
    );
    // `run` says the same and starts nothing.
    let run = tollgate(&["run", "--config", &path], &[], "");
    assert_eq!((run.code, run.err), (Some(1), said.err));
}

#[test]
fn check_places_what_only_shows_when_routes_come_together() {
    let more = "\n[[routes]]\nname = \"a\"\npath = \"/x/:id\"\nupstream = \"app\"\n\n[[routes]]\nname = \"b\"\npath = \"/x/:key\"\nupstream = \"app\"\n";
    let (_directory, path) = file(&format!("{SMALL}{more}"));
    let said = tollgate(&["check", "-c", &path], &[], "");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.starts_with(&format!("{path}:16:8: routes[2].path: the routes `a` and `b` both take ")),
        "{}",
        said.err
    );
}

#[test]
fn check_prints_warnings_and_accepts_the_file() {
    let (_directory, path) = file(&format!("{SMALL}\n[admin]\nlisten = \"0.0.0.0:9090\"\n"));
    let said = tollgate(&["check", "--config", &path], &[], "");
    assert_eq!(said.code, Some(0));
    assert!(
        said.err.starts_with(&format!("warning: {path}:10:10: admin.listen: is reachable")),
        "{}",
        said.err
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.toml").display().to_string();
    for command in ["run", "check"] {
        let said = tollgate(&[command, "--config", &missing], &[], "");
        assert_eq!(said.code, Some(1));
        assert!(said.err.starts_with(&format!("{missing}: cannot be read: ")), "{}", said.err);
        let said = tollgate(&[command, "--config", &directory.path().display().to_string()], &[], "");
        assert_eq!(said.code, Some(1), "{}", said.err);
    }
    let (_directory, path) = file("[server\n");
    let said = tollgate(&["check", "--config", &path], &[], "");
    assert!(said.err.starts_with(&format!("{path}:1:")) && said.err.contains("not TOML"), "{}", said.err);
}

#[test]
fn an_address_in_use_is_a_clear_error_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    for table in ["server", "admin"] {
        let (_directory, path) = file(
            &format!("{SMALL}\n[{table}]\nlisten = \"{addr}\"\n")
                .replace("[admin]", "[server]\nlisten = \"127.0.0.1:0\"\n[admin]"),
        );
        let started = Instant::now();
        let said = tollgate(&["run", "--config", &path], &[("REDIS_URL", "")], "");
        let took = started.elapsed();
        assert_eq!(said.code, Some(1), "{table}: {}", said.err);
        assert!(said.err.contains(&format!("cannot listen on {addr}: ")), "{table}: {}", said.err);
        assert!(said.err.to_lowercase().contains("in use"), "{}", said.err);
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

#[test]
fn what_is_no_command_is_told_and_fails() {
    for (arguments, part) in [
        (&["serve"][..], "unrecognized subcommand"),
        (&["run"][..], "--config"),
        (&["check", "--cofnig", "x"][..], "--config"),
        (&["token"][..], "mint"),
    ] {
        let said = tollgate(arguments, &[], "");
        assert_eq!(said.code, Some(2), "{arguments:?}");
        assert!(said.err.contains(part), "{arguments:?}: {}", said.err);
    }
    let said = tollgate(&["--version"], &[], "");
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), concat!("tollgate ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    let help = tollgate(&["--help"], &[], "").out;
    for command in ["run", "check", "demo", "token", "health"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
}

#[test]
fn a_minted_token_is_accepted_by_inspect_and_by_the_gateway() {
    let environment = [("JWT_SECRET", SECRET)];
    let sources: [&[&str]; 2] = [&["--config", "config/todo.toml"], &["--secret-env", "JWT_SECRET"]];
    let origin = Origin::start();
    let gateway = Gateway::builder()
        .config(
            &SMALL
                .replace("127.0.0.1:8000", &origin.addr().to_string())
                .replace("\npath", "\nauth = \"required\"\npath"),
        )
        .start();
    for source in sources {
        let mut mint = vec!["token", "mint"];
        mint.extend(source);
        mint.extend(["--subject", "alice", "--plan", "pro", "--permission", "read", "--lifetime", "15m"]);
        let minted = tollgate(&mint, &environment, "");
        assert_eq!((minted.code, minted.err.as_str()), (Some(0), ""));
        let token = minted.out.trim();
        assert_eq!(token.split('.').count(), 3);

        let mut inspect = vec!["token", "inspect"];
        inspect.extend(source);
        for (argument, input) in [(token, ""), ("-", token)] {
            let mut line = inspect.clone();
            line.push(argument);
            let said = tollgate(&line, &environment, input);
            assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
            assert!(
                said.out.starts_with("ACCEPTED") && said.out.contains("alice") && said.out.contains("pro"),
                "{}",
                said.out
            );
        }
        assert_eq!(gateway.client().get("/").bearer(token).send().code(), 200);
        assert_eq!(origin.last().header("x-user-id"), Some("alice"));
        assert_eq!(origin.last().header("x-user-plan"), Some("pro"));
    }
}

#[test]
fn inspect_says_why_a_token_is_refused() {
    let cases = [
        (Token::of("a").expires_in(-3_600).sign(), "expired"),
        (Token::of("a").sign_with(b"another secret that is long enough....."), "signature"),
        (Token::of("a").header("alg", "none").unsigned(), "algorithm"),
        ("nonsense".to_owned(), "well-formed"),
    ];
    for (token, why) in cases {
        let said = tollgate(&["token", "inspect", "--secret-env", "S", &token], &[("S", SECRET)], "");
        assert_eq!(said.code, Some(1), "{}", said.out);
        assert!(said.out.to_lowercase().contains(why), "{why}: {}", said.out);
        assert!(!said.out.contains(SECRET));
    }
}

#[test]
fn minting_without_a_usable_key_says_so() {
    let mint = ["token", "mint", "--subject", "a", "--secret-env", "S"];
    let unset = tollgate(&mint, &[], "");
    assert_eq!((unset.code, unset.err.as_str()), (Some(1), "tollgate: the variable S is not set\n"));
    let short = tollgate(&mint, &[("S", "hunter2")], "");
    assert_eq!(short.code, Some(1));
    assert!(!short.err.contains("hunter2") && short.out.is_empty(), "{}", short.err);
    let issuer = ["token", "mint", "--subject", "a", "--config", "config/todo.toml", "--issuer", "tood"];
    let said = tollgate(&issuer, &[("JWT_SECRET", SECRET)], "");
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("no issuer is named \"tood\"; there are: todo"), "{}", said.err);
}

#[test]
fn health_asks_a_running_gateway() {
    let origin = Origin::start();
    let gateway =
        Gateway::builder().config(&SMALL.replace("127.0.0.1:8000", &origin.addr().to_string())).start();
    for path in ["/live", "/ready", "/health"] {
        let url = format!("http://{}{path}", gateway.admin_addr());
        let said = tollgate(&["health", "--url", &url], &[], "");
        assert_eq!((said.code, said.out.as_str()), (Some(0), "200\n"), "{path} {}", said.err);
    }
    let url = format!("http://{}/nothing", gateway.admin_addr());
    let said = tollgate(&["health", "--url", &url], &[], "");
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(said.err.ends_with("answered 404\n"), "{}", said.err);
    let url = format!("http://{}/live", gateway.admin_addr());
    drop(gateway);
    let said = tollgate(&["health", "--url", &url, "--timeout", "1s"], &[], "");
    assert_eq!(said.code, Some(1));
    assert!(!said.err.is_empty() && said.out.is_empty());
}
