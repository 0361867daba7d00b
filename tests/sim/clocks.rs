//! The clocks of one host: they drift within what the leases allow for, the wall clock jumps and stands still, and the boot-time clock does
//! not (by clock_gettime(2) it never does, not even over a suspend).

use crate::random::Random;
use crate::world::{BEGIN_MS, Host};
use std::sync::atomic::Ordering;

/// Two clocks together differ by less than one part in a hundred, which is what the leases allow for.
const DRIFT_PPM: u64 = 4_900;

/// See the module.
#[derive(Debug)]
pub struct Clocks {
    rate_ppm: u64,
    wall_us: u64,
    boot_us: u64,
    /// What the host's runtime has been given of the boot-time clock, in milliseconds.
    given_ms: u64,
    frozen_until: u64,
}

impl Clocks {
    pub fn new(random: &mut Random) -> Clocks {
        // Wall clocks of a cluster are some hundred milliseconds apart.
        let wall_us = BEGIN_MS * 1_000 + random.below(400_000);
        let mut clocks = Clocks { rate_ppm: 1_000_000, wall_us, boot_us: 0, given_ms: 0, frozen_until: 0 };
        if random.percent(70) {
            clocks.drift(random);
        }
        clocks
    }

    /// So much of the world's time has passed: what the host's own clock makes of it, in whole milliseconds.
    pub fn pass(&mut self, now: u64, dt_ms: u64, host: &Host) -> u64 {
        let own_us = dt_ms * self.rate_ppm / 1_000;
        self.boot_us += own_us;
        if now >= self.frozen_until {
            self.wall_us += own_us;
        }
        host.boot_us.store(self.boot_us, Ordering::Relaxed);
        host.wall_ms.store(self.wall_us / 1_000, Ordering::Relaxed);
        let own_ms = self.boot_us / 1_000 - self.given_ms;
        self.given_ms += own_ms;
        own_ms
    }

    pub fn drift(&mut self, random: &mut Random) {
        self.rate_ppm = 1_000_000 - DRIFT_PPM + random.below(2 * DRIFT_PPM);
    }

    pub fn jump(&mut self, by_ms: i64) {
        self.wall_us = self.wall_us.saturating_add_signed(by_ms * 1_000);
    }

    pub fn freeze(&mut self, until: u64) {
        self.frozen_until = until;
    }
}
