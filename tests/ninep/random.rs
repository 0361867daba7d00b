//! Numbers and strings from a seed.

use std::hash::{BuildHasher, RandomState};

pub struct Random(pub u64);

impl Random {
    /// From the seed in BLIXARD_SEED, or from one that is printed, so that a failure can be repeated.
    pub fn seeded() -> Random {
        let given = std::env::var("BLIXARD_SEED").ok().map(|seed| seed.parse().expect("a number"));
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        eprintln!("BLIXARD_SEED={seed}");
        Random(seed)
    }

    /// SplitMix64.
    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.u64() % bound
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub fn text(&mut self) -> String {
        let length = self.below(40);
        (0..length).filter_map(|_| char::from_u32(self.below(0x3000) as u32)).collect()
    }

    pub fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.u64() as u8).collect()
    }
}
