//! The tree: what a file is, what a directory is. No decision is taken here: text in, text out.

pub mod tree;
