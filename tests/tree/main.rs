//! The tree alone, over a log in memory and a host that is made up: what holds for every file, and what for each kind of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod backup;
mod conformance;
mod directories;
mod harness;
mod streams;
#[path = "../table/mod.rs"]
mod table;
mod texts;
mod users;
mod writes;

#[test]
fn bad_input_is_refused_with_errno_and_sentence_and_changes_nothing() {
    table::run(&mut harness::Direct::new());
}
