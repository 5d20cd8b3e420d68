//! Whole files: presets, bad files, environments, the table of keys and its documentation.

mod bad_files;
mod documents;
mod presets;
mod reading;
mod values;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";

static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Remembers which keys the readers asked for.
pub(super) fn remember(asked: &BTreeSet<String>) {
    ASKED.lock().unwrap().extend(asked.iter().cloned());
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().copied().collect()
}

/// The smallest file that loads, with `more` behind it.
fn with(more: &str) -> String {
    format!(
        "[upstreams.app]\nmembers = \"127.0.0.1:8000\"\n[[routes]]\nname = \"all\"\npath = \"/**\"\nupstream = \"app\"\n{more}"
    )
}

fn messages(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    match from_str(text, "t.toml", &variables(pairs)) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    }
}
