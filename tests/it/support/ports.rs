//! Free loopback ports for processes that must be told theirs. It holds no port open: the caller binds it next.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex};

/// Below the range the kernel takes outgoing ports from (32768 and up on Linux): no connection can grab a port between
/// our release and the process's bind, and none to a dead port can connect to itself. What lies between the two is for
/// [`super::cluster::free_port_pair`], which keeps a list of its own.
const RANGES: [std::ops::Range<u16>; 2] = [15_000..20_000, 25_000..32_000];

static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port nobody listens on and that this process has not been given before.
pub fn free_port() -> u16 {
    let mut handed_out = HANDED_OUT.lock().unwrap();
    for _ in 0..10_000 {
        let port = fastrand::u16(RANGES[usize::from(fastrand::bool())].clone());
        if handed_out.contains(&port) {
            // Whoever was given it may be about to bind it, which even our look could prevent.
            continue;
        }
        // Both the loopback and the wildcard: either may be what the process binds.
        let is_free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if is_free && handed_out.insert(port) {
            return port;
        }
    }
    panic!("no free port in {RANGES:?}");
}

/// [`free_port`] as an address on 127.0.0.1.
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}
