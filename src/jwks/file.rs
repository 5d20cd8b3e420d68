//! A key set in a file, which may be replaced at any time.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use super::source::{Source, Trouble};

/// A file that is read anew each time.
pub(super) struct KeyFile {
    path: PathBuf,
    shown: Box<str>,
    max_bytes: usize,
}

impl KeyFile {
    pub(super) fn new(path: PathBuf, max_bytes: usize) -> Self {
        let shown = path.display().to_string().into();
        Self { path, shown, max_bytes }
    }
}

#[async_trait]
impl Source for KeyFile {
    async fn read(&self) -> Result<Bytes, Trouble> {
        let (path, most) = (self.path.clone(), self.max_bytes);
        tokio::task::spawn_blocking(move || content(&path, most))
            .await
            .map_err(|_| Trouble::Unreachable("the read was given up".into()))?
    }

    fn place(&self) -> &str {
        &self.shown
    }
}

fn content(path: &Path, most: usize) -> Result<Bytes, Trouble> {
    // Asked first: opening a pipe would wait for somebody to write.
    if !path.metadata()?.is_file() {
        return Err(Trouble::Refused("something that is no regular file".into()));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(Trouble::Refused(format!("more than {most} bytes").into()));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_within_bounds_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        assert!(matches!(content(&path, 4), Err(Trouble::Unreachable(_))));
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(content(&path, 4).unwrap(), "1234");
        std::fs::write(&path, "12345").unwrap();
        assert!(matches!(content(&path, 4), Err(Trouble::Refused(_))));
        assert!(matches!(content(directory.path(), 4), Err(Trouble::Refused(_))));
    }
}
