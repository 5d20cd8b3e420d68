//! Steady traffic in the background while a test breaks something, and what came of every single request.
//! It judges nothing; the test looks at the outcomes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, RequestBuilder};
use super::holds_eventually;

/// What came of one request.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Since the load began, when this was sent.
    pub sent_at: Duration,
    pub took: Duration,
    /// The status, `None` when there was no whole response.
    pub code: Option<u16>,
    /// Why there was none.
    pub failure: Option<String>,
}

/// Clients that send one request after the other, each on its own connection, until stopped or dropped.
#[derive(Debug)]
pub struct Load {
    goes_on: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `request` makes each request from a client and the number of the request at that client.
    pub fn start(
        clients: usize,
        addr: SocketAddr,
        request: impl Fn(&Client, usize) -> RequestBuilder + Send + Sync + 'static,
    ) -> Self {
        let goes_on = Arc::new(AtomicBool::new(true));
        let outcomes = Arc::<Mutex<Vec<Outcome>>>::default();
        let request = Arc::new(request);
        let begin = Instant::now();
        let clients = (0..clients)
            .map(|_| {
                let (goes_on, outcomes) = (Arc::clone(&goes_on), Arc::clone(&outcomes));
                let request = Arc::clone(&request);
                std::thread::spawn(move || {
                    let client = Client::new(addr);
                    let mut number = 0;
                    while goes_on.load(SeqCst) {
                        let sent_at = begin.elapsed();
                        let start = Instant::now();
                        let result = request(&client, number).try_send();
                        let took = start.elapsed();
                        let (code, failure) = match result {
                            Ok(response) => (Some(response.code()), None),
                            Err(error) => (None, Some(error.to_string())),
                        };
                        outcomes.lock().unwrap().push(Outcome { sent_at, took, code, failure });
                        number += 1;
                    }
                })
            })
            .collect();
        Self { goes_on, outcomes, clients }
    }

    /// Waits until that many more requests are done than are now.
    pub fn wait_for_more(&self, requests: usize) {
        let target = self.done() + requests;
        assert!(
            holds_eventually(|| self.done() >= target),
            "the load stands still at {} requests",
            self.done()
        );
    }

    /// Requests done so far.
    pub fn done(&self) -> usize {
        self.outcomes.lock().unwrap().len()
    }

    /// Outcomes so far, beginning anew: what the last phase of a test has done.
    pub fn take_outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.outcomes.lock().unwrap())
    }

    /// Lets requests under way end, and returns every outcome not taken yet.
    pub fn stop(mut self) -> Vec<Outcome> {
        self.goes_on.store(false, SeqCst);
        for client in self.clients.drain(..) {
            client.join().expect("a client of the load does not panic");
        }
        self.take_outcomes()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.goes_on.store(false, SeqCst);
    }
}
