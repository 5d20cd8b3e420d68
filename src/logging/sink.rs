//! Where log lines go: a bounded buffer and one thread that writes it out.
//! It never blocks a caller: when the writer is behind, lines are dropped and counted.

use std::io::Write;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

/// Bytes of lines that may wait for the writer; beyond it lines are dropped.
const CAPACITY: usize = 4 * 1024 * 1024;
/// How long the writer gathers lines after the first one, so that a busy gateway costs few system calls.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes that end the gathering early.
const GATHER_BYTES: usize = 64 * 1024;

/// A cheap, shareable entrance to the log.
#[derive(Clone, Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    writer: Writer,
    /// Callers that wait in [`Sink::flush`]; the writer hurries for them.
    flushing: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Writer {
    #[default]
    Busy,
    Asleep,
    Closing,
    Gone,
}

impl Sink {
    /// Starts the writer thread over `output`; `dropped` counts the lines that did not fit.
    pub(super) fn start(
        output: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> std::io::Result<(Self, WriterThread)> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = Builder::new().name("log writer".into()).spawn(move || write_out(&theirs, output))?;
        let sink = Self { shared, dropped };
        Ok((sink.clone(), WriterThread { sink, thread: Some(thread) }))
    }

    /// Hands over whole lines, newline included; drops them when the buffer is full.
    pub(super) fn push(&self, lines: &[u8]) {
        let mut state = self.shared.state.lock();
        if state.writer == Writer::Gone {
            return;
        }
        if state.lines.len().saturating_add(lines.len()) > CAPACITY {
            drop(state);
            self.dropped.inc();
            return;
        }
        let before = state.lines.len();
        state.lines.extend_from_slice(lines);
        let wake =
            state.writer == Writer::Asleep || (before < GATHER_BYTES && state.lines.len() >= GATHER_BYTES);
        drop(state);
        if wake {
            self.shared.arrived.notify_one();
        }
    }

    /// Waits until everything handed over so far is written, at most `patience`.
    pub fn flush(&self, patience: Duration) {
        let mut state = self.shared.state.lock();
        state.flushing += 1;
        self.shared.arrived.notify_one();
        let _ = self.shared.written.wait_while_for(
            &mut state,
            |state| state.writer != Writer::Gone && (state.writer == Writer::Busy || !state.lines.is_empty()),
            patience,
        );
        state.flushing = state.flushing.saturating_sub(1);
    }
}

/// Ends the writer thread, after a last flush, when dropped.
#[derive(Debug)]
pub(super) struct WriterThread {
    sink: Sink,
    thread: Option<JoinHandle<()>>,
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        // A sink that no longer takes bytes must not hold up the shutdown.
        self.sink.flush(Duration::from_secs(2));
        let mut state = self.sink.shared.state.lock();
        let stuck = !state.lines.is_empty() || state.writer == Writer::Busy;
        if state.writer != Writer::Gone {
            state.writer = Writer::Closing;
        }
        drop(state);
        self.sink.shared.arrived.notify_one();
        if let Some(thread) = self.thread.take()
            && !stuck
        {
            let _ = thread.join();
        }
    }
}

fn write_out(shared: &Shared, mut output: impl Write) {
    let mut batch = Vec::with_capacity(GATHER_BYTES);
    loop {
        let mut state = shared.state.lock();
        while state.lines.is_empty() && state.writer != Writer::Closing {
            state.writer = Writer::Asleep;
            shared.written.notify_all();
            shared.arrived.wait(&mut state);
        }
        if state.writer == Writer::Closing && state.lines.is_empty() {
            state.writer = Writer::Gone;
            shared.written.notify_all();
            return;
        }
        if state.writer == Writer::Asleep {
            state.writer = Writer::Busy;
        }
        if state.lines.len() < GATHER_BYTES && state.flushing == 0 && state.writer != Writer::Closing {
            let _ = shared.arrived.wait_for(&mut state, GATHER);
        }
        std::mem::swap(&mut state.lines, &mut batch);
        drop(state);
        // A closed pipe or a full disk cannot be reported anywhere; the gateway goes on.
        let _ = output.write_all(&batch).and_then(|()| output.flush());
        batch.clear();
        // One burst must not hold its memory for ever.
        batch.shrink_to(GATHER_BYTES * 4);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[derive(Clone, Default)]
    pub(crate) struct Captured(pub Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A sink that blocks until it is let go.
    #[derive(Clone, Default)]
    struct Blocked(Arc<(Mutex<bool>, Condvar)>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut open = self.0.0.lock();
            while !*open {
                self.0.1.wait(&mut open);
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    pub(crate) fn counter() -> IntCounter {
        IntCounter::new("dropped", "dropped").unwrap()
    }

    #[test]
    fn lines_of_many_threads_are_all_written_whole_at_shutdown() {
        let captured = Captured::default();
        let (sink, thread) = Sink::start(captured.clone(), counter()).unwrap();
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "d"] {
                let sink = sink.clone();
                scope.spawn(move || {
                    let line = format!("{}\n", name.repeat(50));
                    for _ in 0..1_000 {
                        sink.push(line.as_bytes());
                    }
                });
            }
        });
        drop(thread);
        let text = captured.text();
        assert_eq!(text.lines().count(), 4_000);
        assert!(text.lines().all(|line| line.len() == 50 && line.bytes().all(|b| b == line.as_bytes()[0])));
    }

    #[test]
    fn a_blocked_output_drops_and_counts_instead_of_waiting() {
        let blocked = Blocked::default();
        let dropped = counter();
        let (sink, thread) = Sink::start(blocked.clone(), dropped.clone()).unwrap();
        let line = vec![b'x'; 64 * 1024];
        for _ in 0..200 {
            sink.push(&line);
        }
        // 4 MiB wait, at most one more batch of that size is with the writer.
        assert!(dropped.get() >= 200 - 2 * 64, "{}", dropped.get());
        *blocked.0.0.lock() = true;
        blocked.0.1.notify_all();
        drop(thread);
    }

    #[test]
    fn a_flush_returns_once_the_lines_are_out() {
        let captured = Captured::default();
        let (sink, _thread) = Sink::start(captured.clone(), counter()).unwrap();
        sink.push(b"one\n");
        sink.flush(Duration::from_secs(5));
        assert_eq!(captured.text(), "one\n");
    }
}
