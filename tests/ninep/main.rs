//! 9P: the codec, the server on a toy tree, the client, and programs that nobody here wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    reason = "tests: a failure is a panic"
)]

mod abuse;
mod cli;
mod client;
mod codec;
mod hostile;
mod linux;
mod mutations;
mod oracle;
mod places;
mod plain;
mod python;
mod random;
mod raw;
mod recorded;
mod rules;
mod tools;
mod toy;
mod trace;
