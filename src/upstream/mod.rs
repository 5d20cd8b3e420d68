//! What happens between the gateway and the servers behind it.

pub mod forward;
