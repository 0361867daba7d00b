//! Faults that can be planted, to see that the simulator finds them (`./sim --list-mutants`).
//!
//! Without the feature `mutants`, which no node is built with, none of them is there: [`planted`] is false when it is compiled.

macro_rules! mutants {
    ($($mutant:ident $name:literal $what:literal)*) => {
        /// A fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $what] $mutant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$mutant,)*];

            /// Its name, and what it does, in a few words.
            pub fn describe(self) -> (&'static str, &'static str) {
                match self {
                    $(Mutant::$mutant => ($name, $what),)*
                }
            }
        }
    };
}

mutants! {
    LeaseCounter "lease-counter" "a lease is taken for over though it was renewed meanwhile"
    LeaseHasty "lease-hasty" "who watches a lease allows for no drift of clocks and no time on the way"
    Generation "generation" "a report about an older generation is taken"
    Dedupe "dedupe" "an entry that comes twice takes effect twice"
    OldBoot "old-boot" "an entry of a former life of a node is taken"
    Quarantine "quarantine" "a released address is given away at once"
    EarlyAnswer "early-answer" "a writer is told that it is done before it is committed"
    UnknownIsRefused "unknown-is-refused" "an append of unknown outcome is said not to have been done"
    StaleSync "stale-sync" "a barrier asks nobody"
    SnapshotPart "snapshot-part" "a snapshot leaves the keys of repeated commands out"
    TimeBack "time-back" "the cluster's time is that of the last entry"
    OldMachine "old-machine" "a machine of an older generation is left alone"
    RecordIgnored "record-ignored" "an agent does not look for what its former life has started"
    Successor "successor" "a machine is given up before its process has gone"
    KeyForgotten "key-forgotten" "a command with a key is done as often as it is written"
    VersionUnchecked "version-unchecked" "version= is taken for a wish"
    StayMoved "stay-moved" "of a lost node all VMs are begun elsewhere, whether it is sure to have ended them or not"
    PromiseKept "promise-kept" "memory stays promised to what does not run"
    ApartIgnored "apart-ignored" "placement does not ask for anti-affinity"
    PromiseLate "promise-late" "what is being started, or is to be moved somewhere, takes no room there yet"
    DrainGoesOn "drain-goes-on" "a drain that was cancelled moves on"
    FenceEarly "fence-early" "fences are told of a renewal when it is sent, and not when it is acknowledged"
    FenceDeaf "fence-deaf" "a deadline that is over ends no machine"
    TenureKept "tenure-kept" "a lease that was over goes on as if it had not been"
}

#[cfg(feature = "mutants")]
mod choice {
    use super::Mutant;
    use std::sync::OnceLock;

    static PLANTED: OnceLock<Mutant> = OnceLock::new();

    /// Plants one in this process, for good. Of several, the first stays.
    pub fn plant(mutant: Mutant) {
        let _first = PLANTED.set(mutant);
    }

    /// Is it there?
    pub fn planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(&mutant)
    }
}

#[cfg(feature = "mutants")]
pub use choice::{plant, planted};

/// Is it there?
#[cfg(not(feature = "mutants"))]
pub const fn planted(_mutant: Mutant) -> bool {
    false
}
