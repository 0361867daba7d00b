//! Numbers from a seed, and a process in which nothing else is random.

use std::sync::atomic::{AtomicU64, Ordering};

/// SplitMix64 (Steele et al., 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

fn step(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(step(seed.wrapping_add(GOLDEN)))
    }

    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        step(self.0)
    }

    /// Less than `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.u64() % bound }
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// Both ends are possible.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.index(of.len()))
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.index(last + 1));
        }
    }
}

/// What the process's own randomness comes from: the keys of hash maps, and from them tokio's choices in `select!`.
static ENTROPY: AtomicU64 = AtomicU64::new(0);

/// Before anything else in this process has asked for randomness.
pub fn fix_entropy(seed: u64) {
    ENTROPY.store(step(seed ^ GOLDEN), Ordering::SeqCst);
}

/// In place of the C library's getrandom(2), which std asks for the keys of its hash maps: the same numbers for the same seed.
///
/// # Safety
/// As getrandom(2): `buffer` has room for `length` bytes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        let number = step(ENTROPY.fetch_add(GOLDEN, Ordering::SeqCst));
        // SAFETY: the caller promises room for `length` bytes, and `at` is less.
        unsafe { buffer.add(at).write(number as u8) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
