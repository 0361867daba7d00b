//! One pool: a network, what of it is never leased, and its leases.

use super::addresses::Addresses;
use super::{IpamError, QUARANTINE_MS, RESERVED_MAX, until};
use crate::clock::HybridTime;
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
        if network.network().is_unspecified() || network.network().is_multicast() || network.network().is_loopback() {
            return invalid(format!("invalid network {network}: guests can't have addresses of it"));
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
        for (from, to) in reserved {
            if !network.contains(*from) || !network.contains(*to) || from > to {
                return invalid(format!("invalid reserved range {from}-{to}: it is not within {network}"));
            }
            pool.used.insert(number(*from), number(*to));
        }
        if gateway.is_some_and(|g| !network.contains(g) || number(g) < first || number(g) > last) {
            return invalid(format!("invalid gateway: it is no usable address of {network}"));
        }
        // A network of one address has no room for a router.
        pool.gateway = gateway.or_else(|| (first < last).then(|| pool.address(first)));
        if let Some(gateway) = pool.gateway {
            pool.used.insert(number(gateway), number(gateway));
        }
        Ok(pool)
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
        if self.gateway.is_some_and(|g| self.leases.contains_key(&number(g))) {
            return wrong("the gateway is leased");
        }
        if self.quarantine.keys().any(|at| !self.used.contains(*at)) {
            return wrong("an address in quarantine is free");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ipam;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn ipam(network: &str) -> Ipam {
        let mut ipam = Ipam::default();
        ipam.new_pool("p", network.parse().unwrap(), None, &[], HybridTime(0), 1).unwrap();
        ipam
    }

    fn at(ms: u64) -> HybridTime {
        HybridTime::from_millis(ms)
    }

    #[test]
    fn the_lowest_free_address_that_was_not_just_released() {
        let mut ipam = ipam("10.0.0.0/29");
        let mut take = |holder, ms| ipam.allocate("p", holder, None, at(ms), 2).map(|a| a.to_string());
        assert_eq!(take(1, 0).unwrap(), "10.0.0.2", "the first is the gateway's");
        assert_eq!(take(2, 0).unwrap(), "10.0.0.3");
        ipam.release_holder(1, at(1_000), 3);
        let mut take = |holder, ms| ipam.allocate("p", holder, None, at(ms), 2).map(|a| a.to_string());
        assert_eq!(take(3, 2_000).unwrap(), "10.0.0.4", "10.0.0.2 is in quarantine");
        assert_eq!(take(4, 61_000).unwrap(), "10.0.0.2", "now it is not");
        assert_eq!(take(5, 61_000).unwrap(), "10.0.0.5");
        assert_eq!(take(6, 61_000).unwrap(), "10.0.0.6");
        let full = take(7, 61_000).unwrap_err();
        assert_eq!(full.to_string(), "the pool 'p' is exhausted: all 6 addresses are in use");
        ipam.release_holder(6, at(62_000), 4);
        let full = ipam.allocate("p", 7, None, at(63_000), 5).unwrap_err();
        assert!(full.to_string().ends_with("; the next comes free in 59s"), "{full}");
        assert_eq!(
            ipam.allocate("p", 7, Some("10.0.0.6".parse().unwrap()), at(63_000), 5).unwrap().to_string(),
            "10.0.0.6"
        );
        ipam.check().unwrap();
    }

    #[test]
    fn wanted_addresses_that_cannot_be() {
        let mut ipam = Ipam::default();
        let reserved = [("10.0.0.8".parse().unwrap(), "10.0.0.15".parse().unwrap())];
        ipam.new_pool("p", "10.0.0.0/24".parse().unwrap(), None, &reserved, at(0), 1).unwrap();
        let mut want = |address: &str| ipam.allocate("p", 1, Some(address.parse().unwrap()), at(0), 2);
        assert!(want("10.0.0.20").is_ok());
        assert!(matches!(want("10.0.0.20"), Err(IpamError::Taken { holder: 1, .. })));
        for wrong in ["10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.0.9", "10.0.1.1", "fd00::1"] {
            assert!(matches!(want(wrong), Err(IpamError::NotForLease { .. })), "{wrong}");
        }
    }

    #[test]
    fn pools_that_cannot_be() {
        let mut ipam = ipam("10.0.0.0/16");
        let mut make = |name: &str, network: &str, gateway: Option<&str>| {
            ipam.new_pool(name, network.parse().unwrap(), gateway.map(|g| g.parse().unwrap()), &[], at(0), 1)
        };
        assert!(matches!(make("p", "10.9.0.0/16", None), Err(IpamError::PoolExists(_))));
        assert!(matches!(make("q", "10.0.7.0/24", None), Err(IpamError::Overlap { .. })));
        assert!(matches!(make("q", "10.0.0.0/8", None), Err(IpamError::Overlap { .. })));
        for network in ["10.1.0.1/24", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8", "::1/128"] {
            assert!(matches!(make("q", network, None), Err(IpamError::Invalid(_))), "{network}");
        }
        assert!(matches!(make("q", "10.1.0.0/24", Some("10.2.0.1")), Err(IpamError::Invalid(_))));
        assert!(matches!(make("Q", "10.1.0.0/24", None), Err(IpamError::Invalid(_))));
        assert!(make("q", "10.1.0.0/24", Some("10.1.0.254")).is_ok());
        assert!(make("v6", "fd00::/64", None).is_ok());
    }

    #[test]
    fn a_large_network_costs_no_more_than_its_leases() {
        for network in ["10.0.0.0/16", "fd00::/64"] {
            let mut ipam = ipam(network);
            let empty = postcard::to_stdvec(&ipam).unwrap().len();
            for holder in 0..10_000 {
                ipam.allocate("p", holder, None, at(0), 2).unwrap();
            }
            let full = postcard::to_stdvec(&ipam).unwrap().len();
            assert!(empty < 100, "{empty}");
            assert!(full < 10_000 * 80, "{full}");
            assert_eq!(ipam.pool("p").map(|p| p.used.intervals()), Some(1), "one run");
            ipam.check().unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_address_twice(
            network in prop_oneof![Just("10.0.0.0/16"), Just("10.0.0.0/24"), Just("10.0.0.0/30"), Just("fd00::/64"), Just("10.0.0.4/31")],
            steps in proptest::collection::vec((0_u8..4, 0_u64..40, 0_u64..20_000), 1..1_000),
        ) {
            let mut ipam = ipam(network);
            let (mut held, mut gone): (BTreeMap<IpAddr, u64>, BTreeMap<IpAddr, u64>) = Default::default();
            let mut now = 0;
            for (what, holder, ms) in steps {
                now += ms;
                gone.retain(|_, end| *end > now);
                if what == 0 {
                    let released: BTreeSet<_> = held.iter().filter(|(_, h)| **h == holder).map(|(a, _)| *a).collect();
                    held.retain(|_, h| *h != holder);
                    gone.extend(released.into_iter().map(|a| (a, now + QUARANTINE_MS)));
                    ipam.release_holder(holder, at(now), 2);
                } else {
                    match ipam.allocate("p", holder, None, at(now), 2) {
                        Ok(address) => {
                            prop_assert!(!held.contains_key(&address) && !gone.contains_key(&address), "{} again", address);
                            held.insert(address, holder);
                        }
                        Err(IpamError::Exhausted { size, .. }) => {
                            let gateway = u128::from(ipam.pool("p").unwrap().gateway().is_some());
                            prop_assert_eq!((held.len() + gone.len()) as u128 + gateway, size);
                        }
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                let leased: BTreeMap<_, _> = ipam.pool("p").unwrap().leases().map(|(a, l)| (a, l.holder)).collect();
                prop_assert_eq!(&leased, &held);
            }
            prop_assert_eq!(ipam.check(), Ok(()));
        }
    }
}
