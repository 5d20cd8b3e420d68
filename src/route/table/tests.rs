use super::*;
use crate::route::normalise::{self, normalise};
use proptest::prelude::*;

fn entry(name: &str, methods: &str, host: &str, pattern: &str) -> Entry<()> {
    Entry {
        name: name.into(),
        host: (!host.is_empty()).then(|| HostPattern::parse(host).unwrap()),
        pattern: Pattern::parse(pattern).unwrap(),
        methods: methods.split_whitespace().map(|method| method.parse().unwrap()).collect(),
        value: (),
    }
}

fn paths(patterns: &[&str]) -> Vec<Entry<()>> {
    patterns.iter().map(|pattern| entry(pattern, "", "", pattern)).collect()
}

fn said(found: Found<'_, ()>) -> String {
    match found {
        Found::Route(matched) => matched.name.to_owned(),
        Found::MethodNotAllowed { allow } => format!("405 {allow:?}"),
        Found::NotFound => "404".to_owned(),
    }
}

fn get(table: &Table<()>, path: &str) -> String {
    said(table.find("h", &Method::GET, path))
}

#[test]
fn the_most_specific_path_wins_from_the_left() {
    let table = Table::build(paths(&[
        "/**",
        "/todo",
        "/todo/",
        "/todo/:id",
        "/todo/new",
        "/todo/**",
        "/:any/new",
        "/todo/:id/edit",
        "/a/**",
    ]))
    .unwrap();
    for (path, expected) in [
        ("/", "/**"),
        ("/x", "/**"),
        ("/todo", "/todo"),
        ("/todo/", "/todo/"),
        ("/todo/1", "/todo/:id"),
        ("/todo/new", "/todo/new"),
        ("/x/new", "/:any/new"),
        ("/todo/1/edit", "/todo/:id/edit"),
        ("/todo/1/other", "/todo/**"),
        ("/todo/new/edit", "/todo/:id/edit"),
        ("/a", "/a/**"),
        ("/a/", "/a/**"),
        ("/a/b/c", "/a/**"),
        ("/a/new", "/a/**"),
        ("/ab", "/**"),
        ("/TODO", "/**"),
        ("/todo/new/", "/todo/**"),
    ] {
        assert_eq!(get(&table, path), expected, "{path}");
    }
}

#[test]
fn without_a_match_there_is_no_route() {
    let table = Table::build(paths(&["/todo", "/todo/:id"])).unwrap();
    for path in ["/", "/todo/", "/todo/1/2", "/tod", "/todos"] {
        assert_eq!(get(&table, path), "404", "{path}");
    }
}

#[test]
fn parameters_are_slices_of_the_path() {
    let table = Table::build(paths(&["/:kind/x", "/a/:id/c/:sub", "/:kind/:id/:third/:fourth/e"])).unwrap();
    let Found::Route(matched) = table.find("h", &Method::GET, "/a/7%20b/c/d") else { panic!("no route") };
    assert_eq!(matched.params.get("id"), Some("7%20b"));
    assert_eq!(matched.params.get("sub"), Some("d"));
    assert_eq!(matched.params.get("kind"), None);
    // A branch that failed leaves no parameter behind.
    let Found::Route(matched) = table.find("h", &Method::GET, "/a/7/c/d/e") else { panic!("no route") };
    let all: Vec<_> = matched.params.iter().collect();
    assert_eq!(all, [("kind", "a"), ("id", "7"), ("third", "c"), ("fourth", "d")]);
}

#[test]
fn methods_filter_before_specificity() {
    let table = Table::build(vec![
        entry("read", "GET", "", "/todo"),
        entry("write", "POST PUT", "", "/todo"),
        entry("other", "", "", "/todo"),
        entry("admin", "GET", "", "/admin"),
        entry("strict", "GET", "", "/strict/:id"),
        entry("strict-put", "PUT", "", "/strict/**"),
        entry("all", "", "api.h", "/**"),
    ])
    .unwrap();
    let find = |host, method: &str, path| said(table.find(host, &method.parse().unwrap(), path));
    assert_eq!(find("h", "GET", "/todo"), "read");
    assert_eq!(find("h", "HEAD", "/todo"), "read");
    assert_eq!(find("h", "PUT", "/todo"), "write");
    assert_eq!(find("h", "DELETE", "/todo"), "other");
    assert_eq!(find("h", "HEAD", "/admin"), "admin");
    assert_eq!(find("h", "POST", "/admin"), "405 [GET, HEAD]");
    assert_eq!(find("h", "PUT", "/strict/1"), "strict-put");
    assert_eq!(find("h", "POST", "/strict/1"), "405 [GET, HEAD, PUT]");
    assert_eq!(find("api.h", "DELETE", "/admin"), "all");
}

#[test]
fn a_declared_head_beats_the_get_route() {
    let table = Table::build(vec![entry("get", "GET", "", "/a"), entry("head", "HEAD", "", "/a")]).unwrap();
    assert_eq!(said(table.find("h", &Method::HEAD, "/a")), "head");
}

#[test]
fn hosts_go_from_exact_over_longer_suffix_to_any() {
    let table = Table::build(vec![
        entry("any", "", "", "/a"),
        entry("below", "", "*.example.com", "/**"),
        entry("deeper", "", "*.eu.example.com", "/a"),
        entry("exact", "", "api.example.com", "/a"),
    ])
    .unwrap();
    for (host, path, expected) in [
        ("api.example.com", "/a", "exact"),
        ("api.example.com", "/b", "below"),
        ("x.example.com", "/a", "below"),
        ("x.y.example.com", "/a", "below"),
        ("x.eu.example.com", "/a", "deeper"),
        ("x.eu.example.com", "/b", "below"),
        ("example.com", "/a", "any"),
        (".example.com", "/a", "any"),
        ("evilexample.com", "/a", "any"),
        ("example.com.evil", "/b", "404"),
    ] {
        assert_eq!(said(table.find(host, &Method::GET, path)), expected, "{host}{path}");
    }
}

#[test]
fn equal_specificity_is_an_error_that_names_both() {
    for (first, second) in [
        (("GET", "", "/a/:id"), ("GET POST", "", "/a/:name")),
        (("", "", "/a"), ("", "", "/a")),
        (("", "", "/a/**"), ("", "", "/a/**")),
        (("GET", "h", "/{a,b}"), ("GET", "H", "/{b,c}")),
        (("GET", "*.h", "/a"), ("GET", "*.H", "/%61")),
    ] {
        let entries =
            vec![entry("one", first.0, first.1, first.2), entry("two", second.0, second.1, second.2)];
        let problems = Table::build(entries).unwrap_err();
        assert_eq!(problems.len(), 1);
        let text = problems[0].to_string();
        assert!(text.contains("`one`") && text.contains("`two`"), "{text}");
    }
    let fine = vec![
        entry("1", "GET", "", "/a"),
        entry("2", "POST", "", "/a"),
        entry("3", "", "", "/a"),
        entry("4", "", "h", "/a"),
        entry("5", "", "", "/{x,x}"),
        entry("6", "GET GET", "", "/y"),
    ];
    assert!(Table::build(fine).is_ok());
}

#[test]
fn case_is_ignored_only_when_told_and_never_in_parameters() {
    let options = Options { case_insensitive: true, ..Options::default() };
    let table = Table::build_with(paths(&["/Admin/:id", "/**"]), options).unwrap();
    let Found::Route(matched) = table.find("h", &Method::GET, "/ADMIN/AbC") else { panic!("no route") };
    assert_eq!((matched.name, matched.params.get("id")), ("/Admin/:id", Some("AbC")));
    assert!(Table::build_with(paths(&["/a", "/A"]), options).is_err());
    assert!(Table::build(paths(&["/a", "/A"])).is_ok());
}

#[test]
fn the_trailing_slash_is_ignored_only_when_told() {
    let options = Options { ignore_trailing_slash: true, ..Options::default() };
    let table = Table::build_with(paths(&["/admin", "/x/", "/**"]), options).unwrap();
    for (path, expected) in [("/admin/", "/admin"), ("/x", "/x/"), ("/x/", "/x/"), ("/", "/**")] {
        assert_eq!(get(&table, path), expected, "{path}");
    }
    assert!(Table::build_with(paths(&["/a", "/a/"]), options).is_err());
}

#[test]
fn no_spelling_of_a_protected_path_reaches_the_open_route_as_that_path() {
    let table = Table::build(paths(&["/admin", "/**"])).unwrap();
    let spellings = [
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/%2561dmin",
        "/admin%2f",
        "/x%2f..%2fadmin",
        "/x/..%5cadmin",
        "/admin;x=1",
        "/admin/.",
        "/ADMIN",
        "/admin%00",
        "/admin%",
        "/admin#f",
        "admin",
        "x:/admin",
        "\\admin",
        "/admin/",
        "/x/..;/admin",
        "/%c0%ae/admin",
        "/.//admin",
        "/admin%20",
        "/%2e/admin",
        "/x/%2E%2e/admin",
        "/adm%69n",
    ];
    for spelling in spellings {
        let Ok(path) = normalise(spelling.as_bytes(), normalise::Options::default()) else { continue };
        let protected = get(&table, &path) == "/admin";
        // What goes on is the canonical form: it is the protected path exactly when it was matched as such.
        assert_eq!(protected, path == "/admin", "{spelling} -> {path}");
    }
}

/// The rules of the table, written as a comparison of all routes.
fn by_brute_force(entries: &[Entry<()>], method: &Method, path: &str) -> Option<usize> {
    let rank = |entry: &Entry<()>| -> Option<Vec<u8>> {
        let segments: Vec<&str> = path[1..].split('/').collect();
        let shape = &entry.pattern.shapes()[0];
        let mut rank = Vec::new();
        for (index, wanted) in shape.segments.iter().enumerate() {
            let given = segments.get(index)?;
            rank.push(match wanted {
                Segment::Literal(literal) if **literal == **given => 0,
                Segment::Param if !given.is_empty() => 1,
                _ => return None,
            });
        }
        match (shape.rest, segments.len() == shape.segments.len()) {
            (false, false) => return None,
            (true, _) => rank.push(2),
            _ => {}
        }
        let takes = entry.methods.contains(method);
        if !takes && !entry.methods.is_empty() {
            return None;
        }
        rank.push(u8::from(!takes));
        Some(rank)
    };
    let ranked = entries.iter().enumerate().filter_map(|(index, entry)| Some((rank(entry)?, index)));
    ranked.min().map(|(_, index)| index)
}

fn any_pattern() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", ":x", ":y"]);
    (prop::collection::vec(segment, 0..4), any::<bool>()).prop_filter_map(
        "unique names",
        |(segments, rest)| {
            let text = format!(
                "/{}{}",
                segments.join("/"),
                match (rest, segments.is_empty()) {
                    (true, true) => "**",
                    (true, false) => "/**",
                    _ => "",
                }
            );
            Pattern::parse(&text).ok().map(|_| text)
        },
    )
}

proptest! {
    #[test]
    fn the_tree_agrees_with_a_comparison_of_all_routes(
        patterns in prop::collection::vec((any_pattern(), prop::sample::select(vec!["", "GET", "POST"])), 1..8),
        path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 1..5),
    ) {
        let path = format!("/{}", path.join("/"));
        let entries: Vec<_> = patterns.iter().map(|(pattern, methods)| entry(pattern, methods, "", pattern)).collect();
        if let Ok(table) = Table::build(entries.clone()) {
            let found = match table.find("h", &Method::GET, &path) {
                Found::Route(matched) => Some(matched.index),
                _ => None,
            };
            prop_assert_eq!(found, by_brute_force(&entries, &Method::GET, &path), "{}", path);
        }
    }
}

#[test]
fn a_path_is_named_letter_by_letter_under_the_comparison_of_the_table() {
    let strict = Options::default();
    let lenient = Options { case_insensitive: true, ignore_trailing_slash: true };
    for (pattern, path, strictly, leniently) in [
        ("/my/quota", "/my/quota", true, true),
        ("/my/{quota,plan}", "/my/plan", true, true),
        ("/My/Quota", "/my/quota", false, true),
        ("/my/quota/", "/my/quota", false, true),
        ("/my/quota", "/MY/quota/", false, true),
        ("/my/:name", "/my/quota", false, false),
        ("/my/**", "/my/quota", false, false),
        ("/my", "/my/quota", false, false),
    ] {
        let pattern = Pattern::parse(pattern).unwrap();
        let told = (strict.is_literally(&pattern, path), lenient.is_literally(&pattern, path));
        assert_eq!(told, (strictly, leniently), "{pattern:?} {path}");
    }
}
