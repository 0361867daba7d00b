//! The tree: what a file is, what a directory is. No decision is taken here: text in, text out.
//!
//! - `tree.rs`: the contract with the fronts that serve it
//! - `table.rs`: what a directory's table is made of; `root.rs`, `vms.rs`, `nodes.rs`, `ipam.rs`, `images.rs`, `users.rs`: the tables
//! - `place.rs`: places packed into qid paths and inode numbers
//! - `fuse/`, `ninep/`: the fronts; `remote/`: another node's tree, for the FUSE front
//! - `server.rs`, `directories.rs`: walk, stat, readdir, open and remove, all derived from the tables
//! - `handles.rs`: open files; `streams.rs` with `events.rs`, and `console.rs`: those that wait; `texts.rs`: texts, kept
//! - `confinement.rs`: what users see who are confined; `sessions.rs`: who is connected; `watch.rs`: who is not to be any more
//! - `verbs.rs`: what is written to a ctl; `errors.rs`: `/err`

mod backup;
mod confinement;
mod console;
mod directories;
mod errors;
mod events;
mod forward;
pub mod fuse;
mod handles;
mod images;
mod invitations;
mod ipam;
pub mod ninep;
mod node_text;
mod nodes;
mod place;
pub mod remote;
mod root;
mod server;
pub mod sessions;
mod stats;
mod streams;
mod table;
mod texts;
pub mod tree;
mod users;
mod verbs;
mod vm_attrs;
mod vm_text;
mod vms;
mod watch;
mod work;

pub use server::Server;
