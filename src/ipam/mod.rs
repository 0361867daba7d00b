//! Pools of addresses and their leases: pure. No clock, no I/O; time comes in as an argument.
