//! What the kernel says about this process, read from `/proc` when metrics are scraped.
//! Where `/proc` is missing or odd the figures stay as they were; it never fails a scrape.

use std::fs;
use std::path::Path;

/// `USER_HZ`: the unit of times in `/proc/<pid>/stat`, 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// One reading of `/proc`; a figure that could not be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessReading {
    /// User and system CPU time since the start, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    pub resident_bytes: Option<i64>,
    /// Virtual memory in bytes.
    pub virtual_bytes: Option<i64>,
    /// Threads.
    pub threads: Option<i64>,
    /// Open file descriptors.
    pub open_fds: Option<i64>,
    /// The soft limit of open file descriptors.
    pub max_fds: Option<i64>,
    /// Seconds since the process started, by the kernel's own clock.
    pub uptime_seconds: Option<f64>,
}

impl ProcessReading {
    /// Reads the figures of the calling process.
    pub fn take() -> Self {
        Self::from_root(Path::new("/proc"))
    }

    fn from_root(root: &Path) -> Self {
        let this = root.join("self");
        let stat = fs::read_to_string(this.join("stat")).unwrap_or_default();
        let status = fs::read_to_string(this.join("status")).unwrap_or_default();
        let limits = fs::read_to_string(this.join("limits")).unwrap_or_default();
        let uptime = fs::read_to_string(root.join("uptime")).unwrap_or_default();
        Self {
            // `utime` and `stime` are the fields 14 and 15, `starttime` is 22 (proc_pid_stat(5)).
            cpu_seconds: ticks(&stat, 14).zip(ticks(&stat, 15)).map(|(user, system)| user + system),
            resident_bytes: kibibytes(&status, "VmRSS:"),
            virtual_bytes: kibibytes(&status, "VmSize:"),
            threads: labelled(&status, "Threads:"),
            open_fds: fs::read_dir(this.join("fd"))
                .ok()
                .and_then(|entries| i64::try_from(entries.count()).ok()),
            max_fds: labelled(&limits, "Max open files"),
            uptime_seconds: uptime
                .split_ascii_whitespace()
                .next()
                .and_then(|text| text.parse::<f64>().ok())
                .zip(ticks(&stat, 22))
                .map(|(host, started)| (host - started).max(0.0)),
        }
    }
}

/// Field `number` (counted from 1) of a `stat` line in seconds. The command in field 2 may hold spaces and
/// parentheses, so counting starts behind its last `)`.
fn ticks(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let text = rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?;
    text.parse::<f64>().ok().map(|ticks| ticks / TICKS_PER_SECOND)
}

/// The first number behind `label` at the start of a line.
fn labelled(text: &str, label: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn kibibytes(text: &str, label: &str) -> Option<i64> {
    labelled(text, label)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (to ll) gate)) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1000 1 1";
        assert_eq!(ticks(stat, 14), Some(2.5));
        assert_eq!(ticks(stat, 15), Some(0.5));
        assert_eq!(ticks(stat, 22), Some(10.0));
        assert_eq!(ticks("garbage", 14), None);
    }

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let reading = ProcessReading::take();
        assert!(reading.resident_bytes.unwrap() > 0);
        assert!(reading.threads.unwrap() >= 1);
        assert!(reading.open_fds.unwrap() >= 1);
        assert!(reading.uptime_seconds.unwrap() >= 0.0);
        assert!(reading.cpu_seconds.unwrap() >= 0.0);
    }

    #[test]
    fn a_missing_proc_reads_as_nothing() {
        assert_eq!(ProcessReading::from_root(Path::new("/nonexistent")), ProcessReading::default());
    }
}
