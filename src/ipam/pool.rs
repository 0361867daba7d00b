//! One pool: a network, what of it is never leased, and its leases.

use super::addresses::Addresses;
use super::{IpamError, QUARANTINE_MS, RESERVED_MAX, until};
use crate::clock::HybridTime;
use crate::mutants::{Mutant, planted};
use imbl::{OrdMap, OrdSet};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who has an address, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The VM's number.
    pub holder: u64,
    /// Since when.
    pub since: HybridTime,
}

/// A pool of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    id: u64,
    name: String,
    network: IpNetwork,
    gateway: Option<IpAddr>,
    reserved: Vec<(IpAddr, IpAddr)>,
    /// Leased, in quarantine or never leased.
    used: Addresses,
    leases: OrdMap<u128, Lease>,
    /// (holder, address).
    holders: OrdSet<(u64, u128)>,
    /// address → when its quarantine ends, in milliseconds; and the same the other way round.
    quarantine: OrdMap<u128, u64>,
    quarantine_ends: OrdSet<(u64, u128)>,
    changed: HybridTime,
    changed_seq: u64,
}

/// Networks that no guest's address is of.
const SPECIAL: &[(IpAddr, u8, &str)] = &[
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8, "this network, RFC 791"),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, "loopback, RFC 1122"),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3, "multicast, broadcast and reserved, RFC 1112"),
    (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0)), 8, "unspecified, loopback and mapped IPv4, RFC 4291"),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8, "multicast, RFC 4291"),
];

/// The special network that this one overlaps with, and what it is.
fn special(network: IpNetwork) -> Option<(IpNetwork, &'static str)> {
    let networks = SPECIAL.iter().filter_map(|(ip, prefix, what)| Some((IpNetwork::new(*ip, *prefix).ok()?, *what)));
    // Of two networks that overlap one holds the other.
    networks.into_iter().find(|(special, _)| special.contains(network.network()) || network.contains(special.network()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Pool {
    pub(super) fn new(
        id: u64,
        name: &str,
        network: IpNetwork,
        gateway: Option<IpAddr>,
        reserved: &[(IpAddr, IpAddr)],
        now: HybridTime,
        seq: u64,
    ) -> Result<Pool, IpamError> {
        let invalid = |why: String| Err(IpamError::Invalid(why));
        if network.ip() != network.network() {
            return invalid(format!("invalid network {network}: the network's own address is {}", network.network()));
        }
        if let Some((special, what)) = special(network) {
            return invalid(format!("invalid network {network}: guests can't have addresses of {special} ({what})"));
        }
        if reserved.len() > RESERVED_MAX {
            return invalid(format!(
                "invalid pool: {} reserved ranges, and {RESERVED_MAX} are the most",
                reserved.len()
            ));
        }
        let mut pool = Pool {
            id,
            name: name.to_owned(),
            network,
            gateway: None,
            reserved: reserved.to_vec(),
            used: Addresses::default(),
            leases: OrdMap::new(),
            holders: OrdSet::new(),
            quarantine: OrdMap::new(),
            quarantine_ends: OrdSet::new(),
            changed: now,
            changed_seq: seq,
        };
        let (first, last) = pool.usable();
        if let Some((from, to)) = reserved.iter().find(|(f, t)| !network.contains(*f) || !network.contains(*t) || f > t)
        {
            return invalid(format!(
                "invalid reserved range {from}-{to}: it is not within {network}, from low to high"
            ));
        }
        if let Some(gateway) = gateway.filter(|g| !network.contains(*g) || !(first..=last).contains(&number(*g))) {
            return invalid(format!("invalid gateway {gateway}: it is no address that a host of {network} may have"));
        }
        // A network of one address has no room for a router.
        pool.gateway = gateway.or_else(|| (first < last).then(|| pool.address(first)));
        pool.used = pool.never_leased();
        Ok(pool)
    }

    /// What is reserved, and the gateway.
    fn never_leased(&self) -> Addresses {
        let mut never = Addresses::default();
        for (from, to) in &self.reserved {
            never.insert(number(*from), number(*to));
        }
        if let Some(gateway) = self.gateway {
            never.insert(number(gateway), number(gateway));
        }
        never
    }

    /// The first and the last address that a host may have.
    fn usable(&self) -> (u128, u128) {
        let (first, last) = (number(self.network.network()), number(self.network.broadcast()));
        match self.network {
            // RFC 3021: both addresses of a /31 are hosts'.
            IpNetwork::V4(v4) if v4.prefix() >= 31 => (first, last),
            IpNetwork::V4(_) => (first + 1, last - 1),
            // RFC 4291: the first address is every router's (anycast); RFC 6164: not on a /127.
            IpNetwork::V6(v6) if v6.prefix() >= 127 => (first, last),
            IpNetwork::V6(_) => (first + 1, last),
        }
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.network {
            IpNetwork::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))),
            IpNetwork::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }

    pub(super) fn allocate(
        &mut self,
        holder: u64,
        wanted: Option<IpAddr>,
        now: HybridTime,
        seq: u64,
    ) -> Result<IpAddr, IpamError> {
        self.end_quarantines(now);
        let at = match wanted {
            Some(address) => self.wanted(address)?,
            None => {
                let (first, last) = self.usable();
                self.used.lowest_free(first, last).ok_or_else(|| self.exhausted(now))?
            }
        };
        // Who asks for an address by name may have it out of quarantine.
        self.leave_quarantine(at);
        self.used.insert(at, at);
        self.leases.insert(at, Lease { holder, since: now });
        self.holders.insert((holder, at));
        (self.changed, self.changed_seq) = (now, seq);
        Ok(self.address(at))
    }

    fn wanted(&self, address: IpAddr) -> Result<u128, IpamError> {
        let not = |why: String| Err(IpamError::NotForLease { address, why });
        let at = number(address);
        let (first, last) = self.usable();
        if !self.network.contains(address) {
            return not(format!("it is not in {} of the pool '{}'", self.network, self.name));
        }
        if let Some(lease) = self.leases.get(&at) {
            return Err(IpamError::Taken { address, pool: self.name.clone(), holder: lease.holder });
        }
        if at < first || at > last {
            return not(format!("it is the network's own in {}", self.network));
        }
        if self.used.contains(at) && !self.quarantine.contains_key(&at) {
            return not(format!("it is reserved in the pool '{}'", self.name));
        }
        Ok(at)
    }

    fn exhausted(&self, now: HybridTime) -> IpamError {
        let next = self.quarantine_ends.get_min().map(|(end_ms, _)| end_ms.saturating_sub(now.millis()));
        IpamError::Exhausted { pool: self.name.clone(), size: self.size(), until: until(next) }
    }

    pub(super) fn holds(&self, holder: u64) -> bool {
        self.holders.range((holder, 0)..=(holder, u128::MAX)).next().is_some()
    }

    pub(super) fn release_holder(&mut self, holder: u64, now: HybridTime, seq: u64) {
        let held: Vec<_> = self.holders.range((holder, 0)..=(holder, u128::MAX)).copied().collect();
        let end_ms = now.millis() + QUARANTINE_MS;
        for (holder, at) in held {
            self.holders.remove(&(holder, at));
            self.leases.remove(&at);
            if planted(Mutant::Quarantine) {
                self.used.remove(at);
                continue;
            }
            self.quarantine.insert(at, end_ms);
            self.quarantine_ends.insert((end_ms, at));
            (self.changed, self.changed_seq) = (now, seq);
        }
        self.end_quarantines(now);
    }

    fn end_quarantines(&mut self, now: HybridTime) {
        while let Some((end_ms, at)) = self.quarantine_ends.get_min().copied().filter(|(end, _)| *end <= now.millis()) {
            self.quarantine_ends.remove(&(end_ms, at));
            self.quarantine.remove(&at);
            self.used.remove(at);
        }
    }

    fn leave_quarantine(&mut self, at: u128) {
        if let Some(end_ms) = self.quarantine.remove(&at) {
            self.quarantine_ends.remove(&(end_ms, at));
        }
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network.
    pub fn network(&self) -> IpNetwork {
        self.network
    }

    /// The router's address.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway
    }

    /// The ranges that are never leased, as they were given.
    pub fn reserved(&self) -> &[(IpAddr, IpAddr)] {
        &self.reserved
    }

    /// The leases, by address.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = (IpAddr, &Lease)> {
        self.leases.iter().map(|(at, lease)| (self.address(*at), lease))
    }

    /// Addresses in quarantine.
    pub fn quarantined(&self) -> usize {
        self.quarantine.len()
    }

    /// How many addresses hosts could have if nothing were reserved.
    pub fn size(&self) -> u128 {
        let (first, last) = self.usable();
        (last - first).saturating_add(1)
    }

    /// When it or a lease of it last changed.
    pub fn changed(&self) -> HybridTime {
        self.changed
    }

    /// The entry that last changed it.
    pub fn changed_seq(&self) -> u64 {
        self.changed_seq
    }

    /// What the set of used addresses costs.
    #[cfg(test)]
    pub(super) fn used_intervals(&self) -> usize {
        self.used.intervals()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("pool {}: {what}", self.name));
        if self.leases.len() != self.holders.len() || self.quarantine.len() != self.quarantine_ends.len() {
            return wrong("an index does not match");
        }
        let (first, last) = self.usable();
        for (at, lease) in &self.leases {
            if *at < first || *at > last || !self.used.contains(*at) || self.quarantine.contains_key(at) {
                return wrong(&format!("{} should not be leased", self.address(*at)));
            }
            if !self.holders.contains(&(lease.holder, *at)) {
                return wrong(&format!("the lease of {} is in no index", self.address(*at)));
            }
        }
        for (at, end_ms) in &self.quarantine {
            if !self.used.contains(*at) || !self.quarantine_ends.contains(&(*end_ms, *at)) {
                return wrong(&format!("{} is in quarantine by halves", self.address(*at)));
            }
        }
        let never = self.never_leased();
        if self.leases.keys().chain(self.quarantine.keys()).any(|at| never.contains(*at)) {
            return wrong("what is reserved was leased");
        }
        // With what was looked at above: nothing is used that is not one of the three.
        if self.used.count() != never.count() + self.leases.len() as u128 + self.quarantine.len() as u128 {
            return wrong("an address is lost: neither free nor leased nor in quarantine nor reserved");
        }
        Ok(())
    }
}
