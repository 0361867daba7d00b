//! How far this host's time of day is from that of the node that leads: for people, since nothing is decided by it.

use crate::clock::{DRIFT_MAX_MS, system_millis};
use crate::engine::Engine;
use crate::engine::host::deadline::Term;
use std::fmt;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockOffset {
    /// So many milliseconds this host's clock is ahead; behind, if it is less than none.
    ahead_ms: i64,
    /// By so many milliseconds it can be wrong: half of what the question took, and what both clocks leave out.
    error_ms: u64,
}

impl ClockOffset {
    /// The leader's clock showed `leader_ms` at some moment of `took`, at the end of which ours showed `own_ms`.
    fn of(leader_ms: u64, own_ms: u64, took: Duration) -> ClockOffset {
        let half_ms = u64::try_from(took.as_millis() / 2).unwrap_or(u64::MAX);
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let ahead_ms = signed(own_ms.saturating_sub(half_ms)).saturating_sub(signed(leader_ms));
        ClockOffset { ahead_ms, error_ms: half_ms.saturating_add(2) }
    }

    /// What is to be done about it, if something is.
    pub(super) fn warning(self) -> Option<String> {
        let (off_ms, most_ms) = (self.ahead_ms.unsigned_abs(), self.error_ms.saturating_add(DRIFT_MAX_MS));
        let ahead = if self.ahead_ms > 0 { "ahead of" } else { "behind" };
        (off_ms > most_ms).then(|| {
            format!("this machine's clock is {ahead} that of the node that leads by {}: set it right", seconds(off_ms))
        })
    }
}

impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.ahead_ms < 0 { '-' } else { '+' };
        write!(f, "{sign}{} within {}", seconds(self.ahead_ms.unsigned_abs()), seconds(self.error_ms))
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}s", ms / 1_000, ms % 1_000)
}

/// Measures it after each renewal of this node's lease, until `stop`: what was found last is in `found`.
pub(super) async fn measure(
    engine: Engine,
    mut renewals: watch::Receiver<Term>,
    found: watch::Sender<Option<ClockOffset>>,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            renewed = renewals.changed() => renewed.map_err(|_| "nobody holds the lease".to_owned())?,
        }
        let begun = Instant::now();
        let leader = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            leader = engine.leader_clock() => leader,
        };
        let took = begun.elapsed();
        found.send_replace(match (leader, system_millis()) {
            (Ok(Some(leader_ms)), Ok(own_ms)) => Some(ClockOffset::of(leader_ms, own_ms, took)),
            // It leads itself, or nobody can tell.
            _ => None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_way_is_taken_off() {
        let offset = ClockOffset::of(1_000_000, 4_600_020, Duration::from_millis(40));
        assert_eq!(offset, ClockOffset { ahead_ms: 3_600_000, error_ms: 22 });
        assert_eq!(offset.to_string(), "+3600.000s within 0.022s");
        assert!(offset.warning().unwrap().contains("ahead of that of the node that leads by 3600.000s"));
        let offset = ClockOffset::of(1_000_300, 1_000_001, Duration::from_millis(3));
        assert_eq!(offset.to_string(), "-0.300s within 0.003s");
        assert_eq!(offset.warning(), None);
        assert!(ClockOffset::of(10_000, 1, Duration::ZERO).warning().unwrap().contains("is behind that"));
    }
}
