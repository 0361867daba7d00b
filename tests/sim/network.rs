//! Who hears whom: each direction of each pair of nodes may be cut, lose, and delay.

use crate::random::Random;
use std::collections::BTreeSet;

/// See the module.
#[derive(Debug, Default)]
pub struct Network {
    /// Nothing passes from the first to the second.
    cut: BTreeSet<(usize, usize)>,
    /// Nothing passes from or to these.
    away: BTreeSet<usize>,
    /// So many of a hundred messages are lost.
    pub loss: u64,
    /// The longest delay of a message, in milliseconds.
    pub delay_most_ms: u64,
}

impl Network {
    pub fn open(&self, from: usize, to: usize) -> bool {
        let away = self.away.contains(&from) || self.away.contains(&to);
        from == to || !(away || self.cut.contains(&(from, to)))
    }

    /// Connections need both directions.
    pub fn both(&self, one: usize, other: usize) -> bool {
        self.open(one, other) && self.open(other, one)
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub fn cut_both(&mut self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// All is well, but for those that are away.
    pub fn heal(&mut self) {
        *self = Network { delay_most_ms: 8, away: std::mem::take(&mut self.away), ..Network::default() };
    }

    pub fn leave(&mut self, node: usize) {
        self.away.insert(node);
    }

    pub fn come_back(&mut self, node: usize) {
        self.away.remove(&node);
    }

    /// When a message arrives, in milliseconds from now; None: it is lost.
    pub fn carry(&self, from: usize, to: usize, random: &mut Random) -> Option<u64> {
        let lost = !self.open(from, to) || (from != to && random.percent(self.loss));
        let delay = if from == to { 0 } else { random.below(self.delay_most_ms + 1) };
        (!lost).then_some(delay)
    }
}
