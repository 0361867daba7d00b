//! A whole node as its users meet it: the built binary, real FUSE mounts, real 9P clients, real guests under QEMU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod backup;
mod crowd;
mod dialects;
mod fronts;
mod fuse;
mod guest;
#[path = "../images/mod.rs"]
mod images;
mod kills;
mod linux;
mod mount;
mod secure;
mod starts;
mod support;
#[path = "../table/mod.rs"]
mod table;
mod tables;
mod tls;
mod transcripts;
mod users;
