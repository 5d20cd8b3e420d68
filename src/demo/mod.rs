//! What `tollgate demo` needs besides the gateway: a sample backend, a configuration and a printed tour.
//! It starts nothing by itself and reads no environment.

mod backend;
mod tour;

use std::net::SocketAddr;

pub use backend::{Backend, service};
pub use tour::{Tokens, tour};

/// The variable the demo's configuration takes its JWT secret from; the caller makes one per run.
pub const SECRET_VARIABLE: &str = "JWT_SECRET";

/// The configuration of the demo: the todo preset in front of `backend`, without Redis.
/// `${JWT_SECRET}` has to be in the environment map it is read with.
pub fn configuration(listen: SocketAddr, admin_listen: SocketAddr, backend: SocketAddr) -> String {
    include_str!("demo.toml")
        .replace("@LISTEN@", &listen.to_string())
        .replace("@ADMIN_LISTEN@", &admin_listen.to_string())
        .replace("@BACKEND@", &backend.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_toml_with_the_addresses_in_place() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let text = configuration(address("127.0.0.1:8080"), address("[::1]:9090"), address("127.0.0.1:4001"));
        assert!(!text.contains('@'), "{text}");
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["server"]["listen"].as_str(), Some("127.0.0.1:8080"));
        assert_eq!(value["admin"]["listen"].as_str(), Some("[::1]:9090"));
        assert_eq!(value["upstreams"]["app"]["members"][0].as_str(), Some("127.0.0.1:4001"));
        assert_eq!(value["redis"]["url"].as_str(), Some(""));
        assert_eq!(value["issuers"]["demo"]["secret"].as_str(), Some("${JWT_SECRET}"));
    }
}
