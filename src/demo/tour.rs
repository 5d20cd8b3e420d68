//! The text `tollgate demo` prints: a few curl lines and what each of them shows.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// The tokens the tour uses.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// The one that is used throughout.
    pub alice: &'a str,
    /// Another user's.
    pub bob: &'a str,
}

/// The tour for a gateway on `listen`. `colour` belongs to a terminal whose user did not set `NO_COLOR`.
pub fn tour(listen: SocketAddr, admin_listen: SocketAddr, tokens: Tokens<'_>, colour: bool) -> String {
    let (bold, dim, plain) = if colour { ("\u{1b}[1m", "\u{1b}[2m", "\u{1b}[0m") } else { ("", "", "") };
    let (gate, admin) = (reachable(listen), reachable(admin_listen));
    let auth = "-H \"Authorization: Bearer $ALICE\"";
    let todo = format!("curl -si {auth} http://{gate}/todo/");
    let steps: [(&str, Vec<String>); 8] = [
        (
            "Limits: 200 with X-RateLimit-Limit, -Remaining and -Reset",
            vec![format!("curl -si http://{gate}/")],
        ),
        ("No token: 401 before the backend is asked", vec![format!("curl -si http://{gate}/todo/")]),
        ("Cache: X-Cache says MISS, then HIT; \"served\" stands still", vec![todo.clone(), todo.clone()]),
        ("Bob has his own copy: MISS", vec![todo.replace("$ALICE", "$BOB")]),
        (
            "A write drops the cached list: MISS again, with the new todo",
            vec![format!("curl -si {auth} -d '{{\"title\":\"milk\"}}' http://{gate}/todo/"), todo.clone()],
        ),
        (
            "5 logins a minute per address: five times 200, then 429",
            vec![format!(
                "for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}}\\n' -X POST http://{gate}/auth/login; done"
            )],
        ),
        (
            "Logout: the token is good until then, and 401 \"Token revoked\" from then on",
            vec![format!("curl -si -X POST {auth} http://{gate}/auth/logout"), todo],
        ),
        (
            "For operators",
            vec![
                format!("curl -s http://{admin}/health"),
                format!("curl -s http://{admin}/metrics | grep ^tollgate_"),
            ],
        ),
    ];
    let mut text = format!(
        "{bold}Tollgate demo{plain}: gateway on http://{gate}, admin on http://{admin}, a sample todo API behind it.\n\
         {dim}No Redis, no files; everything is gone when you stop it (Ctrl-C).{plain}\n\n\
         Paste into another terminal:\n\nALICE={}\nBOB={}\n",
        tokens.alice, tokens.bob
    );
    for (number, (title, lines)) in steps.iter().enumerate() {
        let _ = writeln!(text, "\n{bold}# {}. {title}{plain}", number + 1);
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// The address a client on this machine can use: a wildcard listens on loopback too.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, v6.port()))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(listen: &str, colour: bool) -> String {
        let tokens = Tokens { alice: "a.b.c", bob: "d.e.f" };
        tour(listen.parse().unwrap(), "127.0.0.1:9090".parse().unwrap(), tokens, colour)
    }

    #[test]
    fn the_tour_can_be_pasted_whole() {
        let text = printed("0.0.0.0:8080", false);
        assert!(text.is_ascii() && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("ALICE=a.b.c\nBOB=d.e.f\n"));
        assert!(text.contains("http://127.0.0.1:8080/todo/") && !text.contains("0.0.0.0"));
        let (_, script) = text.split_once("ALICE=").unwrap();
        let odd = script.lines().skip(1).find(|line| {
            !(line.is_empty() || ["#", "curl ", "for ", "BOB="].iter().any(|start| line.starts_with(start)))
        });
        assert_eq!(odd, None);
        assert!(printed("[::]:80", false).contains("http://[::1]:80/"));
    }

    #[test]
    fn colour_only_adds_escapes() {
        let bare = printed("127.0.0.1:1", true)
            .replace("\u{1b}[1m", "")
            .replace("\u{1b}[2m", "")
            .replace("\u{1b}[0m", "");
        assert_eq!(bare, printed("127.0.0.1:1", false));
    }
}
