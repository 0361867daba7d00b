//! Blixard makes a cluster of machines into a file tree.
//!
//! The map. A room imports only from rooms further down (`tests/architecture.rs` checks it):
//!
//! - [`serve`]: `blixard serve`: puts the rooms together
//! - [`mount`]: `blixard mount`: another node's tree on a folder
//! - [`cli`]: the verbs of the command line that talk to a running node
//! - [`cluster`]: the beginning of a cluster, and how a machine joins one
//! - [`restore`]: a new cluster from a backup
//! - [`ca`]: the cluster's authority: certificates for users and nodes
//! - [`config`]: configuration, typed; every mistake names key, value and what is allowed
//! - [`fs`]: the tree: what a file is, what a directory is; served over FUSE and 9P
//! - [`engine`]: what is true: the replicated state machine, its log, and the hands on each host
//! - [`member`]: what this machine is in its cluster
//! - [`peers`]: between nodes: one port, mutual TLS, tunnels for the stores
//! - [`ninep`]: 9P messages, and a client: knows only `text`
//! - [`ipam`]: pools and leases: pure
//! - [`durable`]: small files that are replaced as a whole
//! - [`clock`]: the hybrid logical clock
//! - [`mutants`]: faults that can be planted, for the simulator alone
//! - [`text`]: `attr=value`, `key value`, columns, sizes, durations, refusals: parsing and printing

pub mod ca;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod durable;
pub mod engine;
pub mod fs;
pub mod ipam;
pub mod member;
pub mod mount;
pub mod mutants;
pub mod ninep;
pub mod peers;
pub mod restore;
pub mod serve;
pub mod text;
