//! Real clusters: several blixards, each in a network namespace of its own, with the real store between them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../images/mod.rs"]
mod images;

mod away;
mod clocks;
mod disks;
mod faults;
mod formation;
mod guest;
mod lab;
mod members;
mod restored;
mod rolling;
mod workers;
