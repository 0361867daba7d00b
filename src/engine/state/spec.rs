//! What may be asked of a VM: its attributes, their bounds and defaults.

use super::constraints::{ConstraintChanges, Constraints, PRIORITY_MAX, Place};
use super::words::words;
use crate::text::{Refusal, duration, name, size};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Virtual CPUs of one VM.
pub const CPUS: RangeInclusive<u32> = 1..=64;
/// Guest memory, in bytes.
pub const MEMORY_BYTES: RangeInclusive<u64> = 32 << 20..=1 << 40;
/// A data disk, in bytes.
pub const DISK_BYTES: RangeInclusive<u64> = 1 << 20..=16 << 40;
/// How long a stop may wait for the guest, in milliseconds.
pub const GRACE_MS: RangeInclusive<u64> = 0..=3_600_000;
/// The unit of guest memory and disks, in bytes.
pub const UNIT_BYTES: u64 = 1 << 20;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The image's name.
    pub image: String,
    /// Virtual CPUs, within [`CPUS`].
    pub cpus: u32,
    /// Guest memory in bytes, within [`MEMORY_BYTES`], a multiple of [`UNIT_BYTES`].
    pub memory_bytes: u64,
    /// A data disk of this many bytes, within [`DISK_BYTES`], a multiple of [`UNIT_BYTES`].
    pub disk_bytes: Option<u64>,
    /// The pool that its address comes from; None: [`super::DEFAULT_POOL`].
    pub pool: Option<String>,
    /// A static address in that pool.
    pub ip: Option<IpAddr>,
    /// What to do when it ends by itself.
    pub restart: Restart,
    /// How long a stop waits for the guest before it is by force, in milliseconds, within [`GRACE_MS`].
    pub grace_ms: u64,
    /// What happens to it when its node is lost.
    pub ha: Ha,
    /// Which nodes will do.
    pub constraints: Constraints,
    /// Which of them.
    pub place: Place,
    /// Who goes first when several wait for room: the higher, at most [`PRIORITY_MAX`].
    pub priority: u8,
}

/// What `set` changes; None: as it was. What the machine is made of takes effect at the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecChanges {
    /// See [`VmSpec::image`]; at the next start.
    pub image: Option<String>,
    /// See [`VmSpec::cpus`]; at the next start.
    pub cpus: Option<u32>,
    /// See [`VmSpec::memory_bytes`]; at the next start.
    pub memory_bytes: Option<u64>,
    /// See [`VmSpec::restart`]; at once.
    pub restart: Option<Restart>,
    /// See [`VmSpec::grace_ms`]; at once.
    pub grace_ms: Option<u64>,
    /// See [`VmSpec::ha`]; at the next start.
    pub ha: Option<Ha>,
    /// See [`VmSpec::constraints`]; at the next start.
    pub constraints: ConstraintChanges,
    /// See [`VmSpec::place`]; at the next start.
    pub place: Option<Place>,
    /// See [`VmSpec::priority`]; at once.
    pub priority: Option<u8>,
}

words!(
    /// `restart=`: what happens when a VM that should run has ended.
    #[derive(Default)]
    Restart: "restart policy" {
        /// It stays `failed` or `stopped`.
        Never = "never",
        /// A crash starts it again, with a growing pause; its own power-off stops it.
        #[default]
        OnFailure = "on-failure",
        /// It is started again whatever ended it, unless a user stopped it.
        Always = "always",
    }
);

words!(
    /// `ha=`: what happens to a VM whose node can't be heard any more.
    #[derive(Default)]
    Ha: "ha policy" {
        /// It runs on wherever it is, and is started nowhere else before its node says that it has ended.
        #[default]
        Stay = "stay",
        /// Its node ends it when it can't renew its lease, and it is started on another one.
        Restart = "restart",
    }
);

impl Default for VmSpec {
    fn default() -> VmSpec {
        VmSpec {
            image: "tiny".to_owned(),
            cpus: 1,
            memory_bytes: 256 << 20,
            disk_bytes: None,
            pool: None,
            ip: None,
            restart: Restart::default(),
            grace_ms: 30_000,
            ha: Ha::default(),
            constraints: Constraints::default(),
            place: Place::default(),
            priority: 5,
        }
    }
}

impl VmSpec {
    /// Are all attributes within their bounds?
    ///
    /// # Errors
    /// EINVAL: which is not, and what is allowed.
    pub fn check(&self) -> Result<(), Refusal> {
        name::check(&self.image).map_err(|r| Refusal::invalid(format!("image: {}", r.sentence)))?;
        name::check(self.pool()).map_err(|r| Refusal::invalid(format!("pool: {}", r.sentence)))?;
        if !CPUS.contains(&self.cpus) {
            let (least, most) = (CPUS.start(), CPUS.end());
            return Err(Refusal::invalid(format!("invalid cpus={}: {least} to {most} is allowed", self.cpus)));
        }
        check_bytes("memory", self.memory_bytes, &MEMORY_BYTES)?;
        if let Some(disk_bytes) = self.disk_bytes {
            check_bytes("disk", disk_bytes, &DISK_BYTES)?;
            if self.ha == Ha::Restart {
                return Err(Refusal::invalid(
                    "invalid ha=restart: a disk is on one node and can't be had elsewhere when that is lost; leave out disk=, or ha=",
                ));
            }
        }
        self.constraints.check()?;
        if self.priority > PRIORITY_MAX {
            return Err(Refusal::invalid(format!(
                "invalid priority={}: 0 to {PRIORITY_MAX} is allowed",
                self.priority
            )));
        }
        VmSpec::check_grace(self.grace_ms)
    }

    /// Is this grace within [`GRACE_MS`]?
    ///
    /// # Errors
    /// EINVAL: what is allowed.
    pub fn check_grace(grace_ms: u64) -> Result<(), Refusal> {
        if GRACE_MS.contains(&grace_ms) {
            return Ok(());
        }
        let (given, most) = (duration::print(grace_ms), duration::print(*GRACE_MS.end()));
        Err(Refusal::invalid(format!("invalid grace={given}: 0s to {most} is allowed")))
    }

    /// The pool's name.
    pub fn pool(&self) -> &str {
        self.pool.as_deref().unwrap_or(super::DEFAULT_POOL)
    }

    /// With these changes.
    #[must_use]
    pub fn with(&self, changes: &SpecChanges) -> VmSpec {
        let mut spec = self.clone();
        if let Some(image) = &changes.image {
            spec.image.clone_from(image);
        }
        spec.cpus = changes.cpus.unwrap_or(spec.cpus);
        spec.memory_bytes = changes.memory_bytes.unwrap_or(spec.memory_bytes);
        spec.restart = changes.restart.unwrap_or(spec.restart);
        spec.grace_ms = changes.grace_ms.unwrap_or(spec.grace_ms);
        spec.ha = changes.ha.unwrap_or(spec.ha);
        spec.constraints = spec.constraints.with(&changes.constraints);
        spec.place = changes.place.unwrap_or(spec.place);
        spec.priority = changes.priority.unwrap_or(spec.priority);
        spec
    }
}

fn check_bytes(key: &str, bytes: u64, within: &RangeInclusive<u64>) -> Result<(), Refusal> {
    let invalid = |why: String| Err(Refusal::invalid(format!("invalid {key}={}: {why}", size::print(bytes))));
    if !within.contains(&bytes) {
        let (least, most) = (size::print(*within.start()), size::print(*within.end()));
        return invalid(format!("{least} to {most} is allowed"));
    }
    if !bytes.is_multiple_of(UNIT_BYTES) {
        return invalid(format!("it must be a multiple of {}", size::print(UNIT_BYTES)));
    }
    Ok(())
}
