//! Sessions: opened by the answer to a login, kept alive by use, ended by logout, by time, or by an operator.

pub mod login;
