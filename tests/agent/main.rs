//! The agent under injected faults: the real engine, agent and supervisor, over a simulated hypervisor and a host that fails as
//! it is told to.
//!
//! Time is paused and goes on only when everything waits for it: delays cost nothing, and no test looks at a clock on a wall.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bed;
mod guests;
mod lives;
mod many;
mod panics;
mod steps;
mod world;
