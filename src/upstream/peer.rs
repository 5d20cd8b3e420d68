//! From an address to the peer that pingora connects to, with every timeout set: pingora's own defaults are
//! none at all.

use std::net::SocketAddr;

use pingora::upstreams::peer::HttpPeer;

use super::{Protocol, Settings};

/// The peer at `address` of an upstream with these settings.
pub fn peer(settings: &Settings, address: SocketAddr) -> Box<HttpPeer> {
    // A socket address is never looked up: this cannot block or fail.
    let mut peer = Box::new(HttpPeer::new(address, false, String::new()));
    let options = &mut peer.options;
    options.connection_timeout = Some(settings.connect_timeout);
    options.total_connection_timeout = Some(settings.connect_timeout);
    options.read_timeout = Some(settings.read_timeout);
    options.write_timeout = Some(settings.write_timeout);
    options.idle_timeout = Some(settings.idle_timeout);
    if settings.protocol == Protocol::H2c {
        options.set_http_version(2, 2);
        options.max_h2_streams = settings.max_h2_streams;
    }
    peer
}
