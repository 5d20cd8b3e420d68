//! `tollgate demo`: every line it prints is pasted into a shell and must do what its heading says.

use std::io::{BufRead, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::PATIENCE;
use crate::support::ports::free_addr;
use crate::support::process::{Process, Signal};

struct Demo {
    process: Process,
    tour: String,
    took: Duration,
    rest: mpsc::Receiver<String>,
}

impl Demo {
    fn start() -> Self {
        let (listen, admin) = (free_addr(), free_addr());
        let started = Instant::now();
        let mut child: Child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .arg("demo")
            .env_clear()
            .env("TOLLGATE_LISTEN", listen.to_string())
            .env("TOLLGATE_ADMIN_LISTEN", admin.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let process = Process::new("demo", child);
        let (sender, rest) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut tour = String::new();
        while !tour.contains("/metrics") {
            let left = PATIENCE.saturating_sub(started.elapsed());
            let line = rest.recv_timeout(left).unwrap_or_else(|_| panic!("the tour ends early:\n{tour}"));
            tour.push_str(&line);
            tour.push('\n');
        }
        Self { process, tour, took: started.elapsed(), rest }
    }

    /// The steps: heading and the lines below it.
    fn steps(&self) -> Vec<(String, Vec<String>)> {
        let mut steps: Vec<(String, Vec<String>)> = Vec::new();
        for line in self.tour.lines() {
            if let Some(title) = line.strip_prefix("# ") {
                steps.push((title.to_owned(), Vec::new()));
            } else if let (Some((_, lines)), false) = (steps.last_mut(), line.is_empty()) {
                lines.push(line.to_owned());
            }
        }
        steps
    }

    /// `ALICE=…` and `BOB=…`.
    fn variables(&self) -> String {
        self.tour
            .lines()
            .filter(|line| line.starts_with("ALICE=") || line.starts_with("BOB="))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn shell(&self, line: &str) -> String {
        let output = Command::new("sh")
            .args(["-c", &format!("{}\n{line}", self.variables())])
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn has_curl() -> bool {
    Command::new("curl").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer}"))
}

fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    answer
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
        .unwrap_or("-")
}

#[test]
fn every_printed_line_does_what_its_heading_says() {
    let demo = Demo::start();
    assert!(demo.took < Duration::from_secs(5), "listening after {:?}", demo.took);
    if !has_curl() {
        eprintln!("no curl here: the printed lines are not tried");
        return;
    }
    let steps = demo.steps();
    let answers: Vec<Vec<String>> =
        steps.iter().map(|(_, lines)| lines.iter().map(|line| demo.shell(line)).collect()).collect();
    let titles: Vec<&str> = steps.iter().map(|(title, _)| title.as_str()).collect();
    assert_eq!(titles.len(), 8, "{titles:#?}");

    let limits = &answers[0][0];
    assert_eq!(status(limits), 200, "{limits}");
    assert_eq!((field(limits, "x-ratelimit-limit"), field(limits, "x-ratelimit-remaining")), ("100", "99"));
    assert!(field(limits, "x-ratelimit-reset").parse::<u64>().is_ok());

    assert_eq!(status(&answers[1][0]), 401);
    assert!(answers[1][0].contains("Not authenticated"));

    let outcomes: Vec<&str> = answers[2].iter().map(|answer| field(answer, "x-cache")).collect();
    assert_eq!(outcomes, ["MISS", "HIT"]);
    let body = |answer: &str| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(&answers[2][0]), body(&answers[2][1]), "\"served\" stands still");

    assert_eq!((status(&answers[3][0]), field(&answers[3][0], "x-cache")), (200, "MISS"));
    assert!(answers[3][0].contains("\"user\":\"bob\""));

    assert_eq!(status(&answers[4][0]), 201);
    assert_eq!(field(&answers[4][1], "x-cache"), "MISS");
    assert!(answers[4][1].contains("milk"));

    assert_eq!(
        answers[5][0].split_whitespace().collect::<Vec<_>>(),
        ["200", "200", "200", "200", "200", "429"]
    );

    assert_eq!(status(&answers[6][0]), 200);
    assert!(answers[6][0].contains(r#"{"msg":"Logged out successfully"}"#));
    assert_eq!(status(&answers[6][1]), 401);
    assert!(answers[6][1].contains(r#""detail":"Token revoked""#));

    assert!(answers[7][0].contains(r#""redis":{"status":"disabled""#), "{}", answers[7][0]);
    assert!(answers[7][1].lines().count() > 20 && answers[7][1].contains("tollgate_requests_total"));

    // Nothing but the tour was written meanwhile.
    let noise: Vec<String> = demo.rest.try_iter().collect();
    assert!(noise.len() <= 3, "the tour drowns in {noise:#?}");
}

#[test]
fn ctrl_c_ends_the_demo() {
    let demo = Demo::start();
    demo.process.signal(Signal::Interrupt);
    assert!(demo.process.wait().success());
}

#[test]
fn an_address_that_is_none_is_refused() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("demo")
        .env_clear()
        .env("TOLLGATE_LISTEN", "nowhere")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(said.contains("TOLLGATE_LISTEN: \"nowhere\" is not an address"), "{said}");
}
