//! Pools of addresses and their leases: pure. No clock, no I/O; time comes in as an argument.
//!
//! Invariants: an address is leased at most once; a lease has one holder; what is reserved (and the gateway, and the
//! network's own addresses) is never leased; memory is in proportion to leases, whatever the network's size.
//!
//! A released address is in quarantine for [`QUARANTINE_MS`]: not given by itself even if nothing else is free, as its
//! packets could reach the wrong guest. Who asks for it by name may have it: that is how a VM that is made anew
//! keeps its address, and whoever does so knows whose it was.

mod addresses;
mod pool;

pub use pool::{Lease, Pool};

use crate::clock::HybridTime;
use crate::text::{Code, Refusal, duration, name};
use imbl::OrdMap;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// How long a released address is not given to anybody who did not ask for it by name, in milliseconds: as long as
/// neighbours may remember its old holder (ARP and neighbour caches: a minute).
pub const QUARANTINE_MS: u64 = 60_000;
/// The most pools of a cluster.
pub const POOLS_MAX: usize = 1_024;
/// The most reserved ranges of one pool.
pub const RESERVED_MAX: usize = 64;

/// Why there is no address, or no pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// No such pool.
    #[error("not found: there is no pool '{0}' (ipam/list shows them)")]
    NoPool(String),
    /// The name is taken.
    #[error("the pool '{0}' exists already")]
    PoolExists(String),
    /// The networks overlap.
    #[error("invalid network {network}: it overlaps with {other} of the pool '{pool}'")]
    Overlap {
        /// The new one.
        network: IpNetwork,
        /// The old one.
        other: IpNetwork,
        /// Its pool.
        pool: String,
    },
    /// Something about the pool is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It has leases.
    #[error("the pool '{pool}' is busy: {leases} addresses of it are leased (ipam/{pool}/leases)")]
    Busy {
        /// The pool.
        pool: String,
        /// How many.
        leases: usize,
    },
    /// There is no room.
    #[error("the pool '{pool}' is exhausted: all {size} addresses are in use{until}")]
    Exhausted {
        /// The pool.
        pool: String,
        /// How many it has.
        size: u128,
        /// When the next one comes free, if one is in quarantine.
        until: String,
    },
    /// The wanted address has a holder.
    #[error("the address {address} of the pool '{pool}' exists already: vms/{holder} holds it")]
    Taken {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: String,
        /// Who has it.
        holder: u64,
    },
    /// The wanted address can't be leased.
    #[error("invalid address {address}: {why}")]
    NotForLease {
        /// The address.
        address: IpAddr,
        /// Why not.
        why: String,
    },
    /// Too many pools.
    #[error("no capacity: {POOLS_MAX} pools are the most")]
    TooMany,
}

impl From<IpamError> for Refusal {
    fn from(error: IpamError) -> Refusal {
        let code = match &error {
            IpamError::NoPool(_) => Code::NotFound,
            IpamError::PoolExists(_) | IpamError::Taken { .. } => Code::Exists,
            IpamError::Overlap { .. } | IpamError::Invalid(_) | IpamError::NotForLease { .. } => Code::Invalid,
            IpamError::Busy { .. } => Code::Busy,
            IpamError::Exhausted { .. } | IpamError::TooMany => Code::NoSpace,
        };
        Refusal::new(code, error.to_string())
    }
}

/// All pools. A clone costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pools: OrdMap<String, Pool>,
    last_id: u64,
}

impl Ipam {
    /// Makes a pool and gives its number, which is never used again. Without `gateway` it is the network's first address.
    ///
    /// # Errors
    /// See [`IpamError`].
    pub fn new_pool(
        &mut self,
        name: &str,
        network: IpNetwork,
        gateway: Option<IpAddr>,
        reserved: &[(IpAddr, IpAddr)],
        now: HybridTime,
        seq: u64,
    ) -> Result<u64, IpamError> {
        name::check(name).map_err(|r| IpamError::Invalid(r.sentence))?;
        if self.pools.contains_key(name) {
            return Err(IpamError::PoolExists(name.to_owned()));
        }
        if self.pools.len() >= POOLS_MAX {
            return Err(IpamError::TooMany);
        }
        // Of two networks that overlap one holds the other.
        let overlapping = |pool: &&Pool| pool.network().contains(network.ip()) || network.contains(pool.network().ip());
        if let Some(other) = self.pools.values().find(overlapping) {
            return Err(IpamError::Overlap { network, other: other.network(), pool: other.name().to_owned() });
        }
        let id = self.last_id + 1;
        let pool = Pool::new(id, name, network, gateway, reserved, now, seq)?;
        self.pools.insert(name.to_owned(), pool);
        self.last_id = id;
        Ok(id)
    }

    /// Forgets a pool that has no leases.
    ///
    /// # Errors
    /// No such pool, or it has leases.
    pub fn delete_pool(&mut self, name: &str) -> Result<(), IpamError> {
        let pool = self.pools.get(name).ok_or_else(|| IpamError::NoPool(name.to_owned()))?;
        let leases = pool.leases().len();
        match leases {
            0 => {
                self.pools.remove(name);
                Ok(())
            }
            _ => Err(IpamError::Busy { pool: name.to_owned(), leases }),
        }
    }

    /// Leases the wanted address, or the lowest that is free and was not just released.
    ///
    /// # Errors
    /// See [`IpamError`]; then nothing changes.
    pub fn allocate(
        &mut self,
        pool: &str,
        holder: u64,
        wanted: Option<IpAddr>,
        now: HybridTime,
        seq: u64,
    ) -> Result<IpAddr, IpamError> {
        let pool = self.pools.get_mut(pool).ok_or_else(|| IpamError::NoPool(pool.to_owned()))?;
        pool.allocate(holder, wanted, now, seq)
    }

    /// Gives back every address of this holder; they go into quarantine.
    pub fn release_holder(&mut self, holder: u64, now: HybridTime, seq: u64) {
        let held: Vec<String> = self.pools.values().filter(|p| p.holds(holder)).map(|p| p.name().to_owned()).collect();
        for name in held {
            if let Some(pool) = self.pools.get_mut(&name) {
                pool.release_holder(holder, now, seq);
            }
        }
    }

    /// One pool.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// All pools, by name.
    pub fn pools(&self) -> impl DoubleEndedIterator<Item = &Pool> {
        self.pools.values()
    }

    /// What must always hold; the first breach in a sentence.
    ///
    /// # Errors
    /// A breach.
    pub fn check(&self) -> Result<(), String> {
        self.pools.values().try_for_each(Pool::check)
    }
}

/// "; the next comes free in 12s".
fn until(millis: Option<u64>) -> String {
    millis.map(|ms| format!("; the next comes free in {}", duration::print(ms))).unwrap_or_default()
}

#[cfg(test)]
mod tests;
