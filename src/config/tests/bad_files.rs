//! `tests/fixtures/config/bad`: one mistake each, and the one line it gives. The first line of each file is
//! `# expect: ` and what is shown behind the file's name; `TOLLGATE_BLESS=1` rewrites it, to be reviewed.

use super::*;

fn environment() -> Variables {
    variables(&[("HUNTER", "hunter2")])
}

#[test]
fn each_bad_file_gives_exactly_its_message() {
    let directory = repository("tests/fixtures/config/bad");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 90);
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let expected = first.strip_prefix("# expect: ").unwrap_or_else(|| panic!("{}", path.display()));
        let shown = match load(&path, &environment()) {
            Ok(_) => "loads".to_owned(),
            Err(errors) => {
                let shown = errors.to_string().replace(&format!("{}:", path.display()), "");
                shown.replace(&format!("{}/", directory.display()), "")
            }
        };
        assert!(!shown.contains("hunter2"), "{}: {shown}", path.display());
        if std::env::var_os("TOLLGATE_BLESS").is_some() {
            let line = shown.replace('\n', " AND ");
            std::fs::write(&path, format!("# expect: {line}\n{rest}")).unwrap();
        } else if shown != expected {
            wrong.push(format!("{}\n  expected {expected}\n  shown    {shown}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
