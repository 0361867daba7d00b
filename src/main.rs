//! blixard
fn main() {}
