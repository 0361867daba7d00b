//! The hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014).
//!
//! A stamp is 64 bits: 48 of milliseconds (`l`) and 16 of counter (`c`). Each stamp is greater than all before it and
//! than all that were observed. A physical clock that steps back doesn't matter: `l` stays and `c` counts on; when `c` is
//! full it carries into `l`, as 65,536 stamps within a millisecond are no reason to refuse one.
//!
//! Bounds: `l` is never more than the drift limit ahead of the newest physical time that this clock has read (or of what
//! its own log holds, see [`HybridClock::resume`]), the carry included: with the usual limit that is 32 million stamps
//! while the physical clock stands still; then it is an error until it goes on. There is no fallback value: a physical
//! clock that can't be read is an error.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a stamp may be ahead of the receiver's own clock, in milliseconds, unless set otherwise.
pub const DRIFT_MAX_MS: u64 = 500;
/// What the 48 bits of milliseconds can hold: the year 10889.
pub const MILLIS_MAX: u64 = (1 << 48) - 1;

/// A moment of hybrid time: 48 bits of milliseconds since the Unix epoch, 16 bits of counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// The stamp with this physical part and a counter of 0. Beyond [`MILLIS_MAX`] it is the last moment.
    pub fn from_millis(millis: u64) -> HybridTime {
        HybridTime(millis.min(MILLIS_MAX) << 16)
    }

    /// The physical part, in milliseconds since the Unix epoch.
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The counter.
    pub fn counter(self) -> u16 {
        // The low 16 bits: the mask makes the conversion exact.
        u16::try_from(self.0 & 0xffff).unwrap_or(u16::MAX)
    }
}

/// Why there is no stamp.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The physical clock gave no time.
    #[error("the clock of this machine can't be read: {0}")]
    Unreadable(String),
    /// The physical clock is beyond what a stamp holds.
    #[error("the clock of this machine says {0} ms since 1970, which no stamp can hold: set it right")]
    Absurd(u64),
    /// A stamp from elsewhere is too far ahead.
    #[error(
        "a stamp is {ahead_ms} ms ahead of this machine's clock, and {limit_ms} ms is the most: set the clocks right"
    )]
    TooFarAhead {
        /// By how much.
        ahead_ms: u64,
        /// The limit.
        limit_ms: u64,
    },
    /// More stamps were drawn than the limit allows while the physical clock stood still.
    #[error("the clock of this machine stands still or was set back, and stamps ran {limit_ms} ms ahead: set it right")]
    RunAhead {
        /// The limit.
        limit_ms: u64,
    },
}

/// Milliseconds since the Unix epoch by the system's clock.
///
/// # Errors
/// A clock before 1970 or beyond 64 bits.
pub fn system_millis() -> Result<u64, ClockError> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.map_err(|_| ClockError::Unreadable("it is set before 1970".to_owned()))?;
    u64::try_from(since.as_millis()).map_err(|_| ClockError::Absurd(u64::MAX))
}

type Physical = Box<dyn Fn() -> Result<u64, ClockError> + Send + Sync>;

/// A node's clock. Lock-free; share it by reference.
pub struct HybridClock {
    physical: Physical,
    drift_max_ms: u64,
    /// The newest stamp that was given or observed.
    last: AtomicU64,
    /// The newest physical time that was read, in milliseconds.
    physical_max_ms: AtomicU64,
}

impl std::fmt::Debug for HybridClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HybridClock")
            .field("last", &self.last)
            .field("drift_max_ms", &self.drift_max_ms)
            .finish_non_exhaustive()
    }
}

impl HybridClock {
    /// A clock over a physical one, which gives milliseconds since the Unix epoch.
    pub fn new(
        physical: impl Fn() -> Result<u64, ClockError> + Send + Sync + 'static,
        drift_max_ms: u64,
    ) -> HybridClock {
        HybridClock {
            physical: Box::new(physical),
            drift_max_ms,
            last: AtomicU64::new(0),
            physical_max_ms: AtomicU64::new(0),
        }
    }

    /// A clock over the system's, with the usual drift limit.
    pub fn system() -> HybridClock {
        HybridClock::new(system_millis, DRIFT_MAX_MS)
    }

    fn read(&self) -> Result<u64, ClockError> {
        let now_ms = (self.physical)()?;
        if now_ms > MILLIS_MAX {
            return Err(ClockError::Absurd(now_ms));
        }
        self.physical_max_ms.fetch_max(now_ms, Ordering::Relaxed);
        Ok(now_ms)
    }

    /// A stamp for something that happens now ("send or local event").
    ///
    /// # Errors
    /// The physical clock can't be read, is absurd, or stands still while stamps run ahead of it.
    pub fn now(&self) -> Result<HybridTime, ClockError> {
        let physical = HybridTime::from_millis(self.read()?).0;
        let next = |last: u64| {
            // Looked at after `last` was: who moved `last` had noted the physical time that allowed it before (the
            // release and acquire of `last` order it), so a thread that was held up here is not refused for its delay.
            let newest_ms = self.physical_max_ms.load(Ordering::Relaxed);
            let limit = HybridTime::from_millis(newest_ms.saturating_add(self.drift_max_ms)).0 | 0xffff;
            Some(last.checked_add(1)?.max(physical)).filter(|next| *next <= limit)
        };
        match self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
            Ok(last) => Ok(HybridTime(last.saturating_add(1).max(physical))),
            Err(_) => Err(ClockError::RunAhead { limit_ms: self.drift_max_ms }),
        }
    }

    /// Takes note of a stamp from elsewhere ("receive event"): later stamps are greater.
    ///
    /// # Errors
    /// It is more than the drift limit ahead of the physical clock; then nothing changes.
    pub fn observe(&self, stamp: HybridTime) -> Result<(), ClockError> {
        let ahead_ms = stamp.millis().saturating_sub(self.read()?);
        if ahead_ms > self.drift_max_ms {
            return Err(ClockError::TooFarAhead { ahead_ms, limit_ms: self.drift_max_ms });
        }
        self.last.fetch_max(stamp.0, Ordering::AcqRel);
        Ok(())
    }

    /// Goes on from the newest stamp of the node's own log, however far the physical clock was set back meanwhile.
    pub fn resume(&self, stamp: HybridTime) {
        self.physical_max_ms.fetch_max(stamp.millis(), Ordering::Relaxed);
        self.last.fetch_max(stamp.0, Ordering::AcqRel);
    }

    /// The hybrid time as it would be stamped now, without drawing a stamp: at least the newest one, and the physical clock's reading
    /// if that is later. For those who show the time.
    ///
    /// # Errors
    /// The physical clock can't be read, or is absurd.
    pub fn reading(&self) -> Result<HybridTime, ClockError> {
        Ok(self.last().max(HybridTime::from_millis(self.read()?)))
    }

    /// The newest stamp that was given or observed.
    pub fn last(&self) -> HybridTime {
        HybridTime(self.last.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A clock whose physical time the test sets.
    fn clock(start_ms: u64) -> (HybridClock, Arc<AtomicU64>) {
        let physical = Arc::new(AtomicU64::new(start_ms));
        let read = physical.clone();
        (HybridClock::new(move || Ok(read.load(Ordering::Relaxed)), DRIFT_MAX_MS), physical)
    }

    #[test]
    fn a_clock_that_cannot_be_read_is_an_error() {
        let clock = HybridClock::new(|| Err(ClockError::Unreadable("broken".into())), DRIFT_MAX_MS);
        assert!(matches!(clock.now(), Err(ClockError::Unreadable(_))));
        let clock = HybridClock::new(|| Ok(u64::MAX), DRIFT_MAX_MS);
        assert!(matches!(clock.now(), Err(ClockError::Absurd(_))));
        assert_eq!(clock.last(), HybridTime(0));
    }

    #[test]
    fn a_reading_goes_on_and_draws_no_stamp() {
        let (clock, physical) = clock(1_000);
        let stamp = clock.now().unwrap();
        assert_eq!(clock.reading(), Ok(stamp));
        physical.store(2_000, Ordering::Relaxed);
        assert_eq!(clock.reading(), Ok(HybridTime::from_millis(2_000)));
        assert_eq!(clock.last(), stamp);
        physical.store(500, Ordering::Relaxed);
        assert_eq!(clock.reading(), Ok(stamp), "set back");
        let broken = HybridClock::new(|| Err(ClockError::Unreadable("broken".into())), DRIFT_MAX_MS);
        assert!(broken.reading().is_err());
    }

    #[test]
    fn stamps_from_too_far_ahead_are_refused() {
        let (clock, _) = clock(1_000_000);
        assert!(clock.observe(HybridTime::from_millis(1_000_500)).is_ok());
        let before = clock.last();
        let error = clock.observe(HybridTime::from_millis(1_000_501)).unwrap_err();
        assert_eq!(error, ClockError::TooFarAhead { ahead_ms: 501, limit_ms: 500 });
        assert_eq!(clock.last(), before, "a refused stamp leaves no trace");
    }

    #[test]
    fn a_full_counter_carries_and_the_carry_is_bounded() {
        let (clock, physical) = clock(7);
        let mut last = clock.now().unwrap();
        for _ in 0..=u64::from(u16::MAX) {
            let next = clock.now().unwrap();
            assert!(next > last);
            last = next;
        }
        assert_eq!((last.millis(), last.counter()), (8, 0));
        clock.resume(HybridTime((8 + 500) << 16 | 0xffff));
        clock.physical_max_ms.store(8, Ordering::Relaxed);
        assert_eq!(clock.now(), Err(ClockError::RunAhead { limit_ms: 500 }));
        assert_eq!(clock.last(), HybridTime((8 + 500) << 16 | 0xffff), "a refused stamp leaves no trace");
        physical.store(9, Ordering::Relaxed);
        assert_eq!(clock.now(), Ok(HybridTime((9 + 500) << 16)), "the physical clock going on cures it");
    }

    #[test]
    fn the_end_of_time_is_an_error() {
        let (clock, _) = clock(MILLIS_MAX);
        assert_eq!(clock.now(), Ok(HybridTime::from_millis(MILLIS_MAX)));
        clock.resume(HybridTime(u64::MAX));
        assert_eq!(clock.now(), Err(ClockError::RunAhead { limit_ms: 500 }));
        assert!(clock.observe(HybridTime(u64::MAX)).is_ok());
        assert_eq!(clock.last(), HybridTime(u64::MAX));
    }

    #[test]
    fn the_physical_clock_steps_back_and_forward() {
        let (clock, physical) = clock(10_000_000);
        let first = clock.now().unwrap();
        physical.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.now(), Ok(HybridTime(first.0 + 1)), "l stays, c counts on");
        // What others say is measured by the clock as it is now.
        let ahead = clock.observe(HybridTime::from_millis(10_000_000)).unwrap_err();
        assert_eq!(ahead, ClockError::TooFarAhead { ahead_ms: 9_999_000, limit_ms: 500 });
        physical.store(10_000_001, Ordering::Relaxed);
        assert_eq!(clock.now(), Ok(HybridTime::from_millis(10_000_001)), "l is the physical time again");
    }

    #[test]
    fn a_log_from_the_future_is_gone_on_from() {
        let (clock, _) = clock(1_000);
        clock.resume(HybridTime::from_millis(3_600_000));
        assert_eq!(clock.now().unwrap(), HybridTime(HybridTime::from_millis(3_600_000).0 + 1));
    }

    #[test]
    fn threads_never_draw_one_stamp_twice() {
        let (clock, _) = clock(5);
        let drawn: std::sync::Mutex<Vec<HybridTime>> = std::sync::Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mine: Vec<_> = (0..2_000).map(|_| clock.now().unwrap()).collect();
                    drawn.lock().unwrap().extend(mine);
                });
            }
        });
        let mut drawn = drawn.into_inner().unwrap();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 8_000);
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// The physical clock moves by so many milliseconds.
        Physical(i64),
        /// A stamp is drawn.
        Now,
        /// A stamp so far from the physical clock comes in, with this counter.
        Observe(i64, u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (-100_000_i64..100_000).prop_map(Step::Physical),
            Just(Step::Now),
            (-2_000_i64..2_000, any::<u16>()).prop_map(|(ms, c)| Step::Observe(ms, c)),
        ]
    }

    proptest! {
        #[test]
        fn monotonic_causal_bounded(steps in proptest::collection::vec(step(), 1..200)) {
            let (clock, physical) = clock(1_000_000_000);
            let (mut newest, mut physical_max) = (HybridTime(0), 0);
            for step in steps {
                let now_ms = physical.load(Ordering::Relaxed);
                match step {
                    Step::Physical(by) => physical.store(now_ms.saturating_add_signed(by), Ordering::Relaxed),
                    Step::Now => {
                        physical_max = physical_max.max(now_ms);
                        let stamp = clock.now().unwrap();
                        prop_assert!(stamp > newest, "monotonic and causal: {stamp:?} after {newest:?}");
                        prop_assert!(stamp.millis() >= now_ms, "never behind the physical clock");
                        prop_assert!(stamp.millis() <= physical_max + DRIFT_MAX_MS, "bounded");
                        newest = stamp;
                    }
                    Step::Observe(by, counter) => {
                        physical_max = physical_max.max(now_ms);
                        let stamp = HybridTime(now_ms.saturating_add_signed(by) << 16 | u64::from(counter));
                        let taken = clock.observe(stamp).is_ok();
                        prop_assert_eq!(taken, by <= DRIFT_MAX_MS as i64);
                        if taken {
                            newest = newest.max(stamp);
                        }
                    }
                }
            }
        }
    }
}
