//! The state machine: every transition of its table, random sequences against a simple model, and that the same log always
//! gives the same state.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cluster;
mod entries;
mod model;
mod moves;
mod nodes;
mod play;
mod replay;
mod restored;
mod rights;
mod steps;
mod table;
mod transitions;
mod vms;
