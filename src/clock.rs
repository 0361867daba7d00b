//! The hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014).

use serde::{Deserialize, Serialize};

/// A moment of hybrid time: 48 bits of milliseconds since the Unix epoch, 16 bits of counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// The physical part, in milliseconds since the Unix epoch.
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }
}
