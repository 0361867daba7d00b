//! The clock that leases and fences count on: CLOCK_BOOTTIME, which goes on while the host is suspended. Nobody can set it; what
//! slews the time of day slews it, too.

use async_trait::async_trait;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A clock that only goes forward, from the start of the host.
#[async_trait]
pub trait BootClock: Send + Sync + 'static {
    /// Nanoseconds since the host was started.
    fn now_ns(&self) -> u64;

    /// Returns when the clock shows this, or later.
    async fn sleep_until(&self, at_ns: u64) {
        loop {
            match at_ns.saturating_sub(self.now_ns()) {
                0 => return,
                // The runtime's clock may be behind this one, and is never ahead of it.
                left_ns => tokio::time::sleep(Duration::from_nanos(left_ns)).await,
            }
        }
    }
}

/// The host's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl BootClock for HostClock {
    fn now_ns(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let (s, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
        s.saturating_mul(1_000_000_000).saturating_add(ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first value of /proc/uptime is CLOCK_BOOTTIME's (proc(5)), in hundredths of a second.
    fn uptime_ns() -> u64 {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let hundredths: u64 = text.split(' ').next().unwrap().replace('.', "").parse().unwrap();
        hundredths * 10_000_000
    }

    #[test]
    fn it_is_the_time_since_the_host_was_started() {
        let (before, now, after) = (uptime_ns(), HostClock.now_ns(), uptime_ns());
        assert!(before <= now && now <= after + 10_000_000, "{before} {now} {after}");
    }

    #[tokio::test]
    async fn it_is_slept_to_an_instant() {
        let at_ns = HostClock.now_ns() + 2_000_000;
        HostClock.sleep_until(at_ns).await;
        assert!(HostClock.now_ns() >= at_ns);
        HostClock.sleep_until(0).await;
    }
}
