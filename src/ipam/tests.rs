//! Pools against a simple model: sets of addresses.

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

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A lease of whatever is next, at this time.
fn take(ipam: &mut Ipam, holder: u64, ms: u64) -> Result<String, String> {
    ipam.allocate("p", holder, None, at(ms), 2).map(|a| a.to_string()).map_err(|e| e.to_string())
}

#[test]
fn the_lowest_free_address_that_was_not_just_released() {
    let mut ipam = ipam("10.0.0.0/29");
    assert_eq!(take(&mut ipam, 1, 0).unwrap(), "10.0.0.2", "the first is the gateway's");
    assert_eq!(take(&mut ipam, 2, 0).unwrap(), "10.0.0.3");
    ipam.release_holder(1, at(1_000), 3);
    assert_eq!(take(&mut ipam, 3, 2_000).unwrap(), "10.0.0.4", "10.0.0.2 is in quarantine");
    assert_eq!(take(&mut ipam, 4, 61_000).unwrap(), "10.0.0.2", "now it is not");
    assert_eq!(take(&mut ipam, 5, 61_000).unwrap(), "10.0.0.5");
    assert_eq!(take(&mut ipam, 6, 61_000).unwrap(), "10.0.0.6");
    assert_eq!(take(&mut ipam, 7, 61_000).unwrap_err(), "the pool 'p' is exhausted: all 6 addresses are in use");
    ipam.check().unwrap();
}

#[test]
fn an_exhausted_pool_says_when_the_next_address_comes_free() {
    let mut ipam = ipam("10.0.0.0/30");
    assert_eq!(take(&mut ipam, 1, 0).unwrap(), "10.0.0.2");
    ipam.release_holder(1, at(62_000), 4);
    let error = ipam.allocate("p", 2, None, at(63_000), 5).unwrap_err();
    let said = "the pool 'p' is exhausted: all 2 addresses are in use; the next comes free in 59s";
    assert_eq!(error.to_string(), said);
    assert_eq!(Refusal::from(error), Refusal::no_space(said));
    assert_eq!(ipam.pool("p").unwrap().quarantined(), 1);
    let by_name = ipam.allocate("p", 2, Some(ip("10.0.0.2")), at(63_000), 5);
    assert_eq!(by_name, Ok(ip("10.0.0.2")), "who asks for it by name may have it out of quarantine");
    assert_eq!(ipam.pool("p").unwrap().quarantined(), 0);
    ipam.check().unwrap();
}

#[test]
fn each_family_and_size_has_its_own_usable_addresses() {
    for (network, gateway, all) in [
        ("10.0.0.0/30", Some("10.0.0.1"), &["10.0.0.2"][..]),
        ("10.0.0.4/31", Some("10.0.0.4"), &["10.0.0.5"]),
        ("10.0.0.4/32", None, &["10.0.0.4"]),
        ("fd00::/126", Some("fd00::1"), &["fd00::2", "fd00::3"]),
        ("fd00::/127", Some("fd00::"), &["fd00::1"]),
        ("fd00::7/128", None, &["fd00::7"]),
    ] {
        let mut ipam = ipam(network);
        assert_eq!(ipam.pool("p").unwrap().gateway(), gateway.map(ip), "{network}");
        for address in all {
            assert_eq!(take(&mut ipam, 1, 0).as_deref(), Ok(*address), "{network}");
        }
        assert!(take(&mut ipam, 1, 0).unwrap_err().contains("exhausted"), "{network}");
        ipam.check().unwrap();
    }
}

#[test]
fn wanted_addresses_that_cannot_be() {
    let mut ipam = Ipam::default();
    let reserved = [(ip("10.0.0.8"), ip("10.0.0.15"))];
    ipam.new_pool("p", "10.0.0.0/24".parse().unwrap(), None, &reserved, at(0), 1).unwrap();
    let mut want = |address: &str| ipam.allocate("p", 1, Some(ip(address)), at(0), 2);
    assert!(want("10.0.0.20").is_ok());
    assert!(matches!(want("10.0.0.20"), Err(IpamError::Taken { holder: 1, .. })));
    for wrong in ["10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.0.9", "10.0.1.1", "fd00::1", "::ffff:10.0.0.2"] {
        assert!(matches!(want(wrong), Err(IpamError::NotForLease { .. })), "{wrong}");
    }
    assert!(matches!(ipam.allocate("q", 1, None, at(0), 2), Err(IpamError::NoPool(_))));
}

#[test]
fn pools_that_cannot_be() {
    let mut ipam = ipam("10.0.0.0/16");
    let mut make = |name: &str, network: &str, gateway: Option<&str>| {
        ipam.new_pool(name, network.parse().unwrap(), gateway.map(ip), &[], at(0), 1)
    };
    assert!(matches!(make("p", "10.9.0.0/16", None), Err(IpamError::PoolExists(_))));
    assert!(matches!(make("q", "10.0.7.0/24", None), Err(IpamError::Overlap { .. })));
    assert!(matches!(make("q", "10.0.0.0/8", None), Err(IpamError::Overlap { .. })));
    for network in
        ["10.1.0.1/24", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8", "64.0.0.0/2", "240.0.0.0/4", "::1/128", "ff02::/64"]
    {
        assert!(matches!(make("q", network, None), Err(IpamError::Invalid(_))), "{network}");
    }
    for gateway in ["10.2.0.1", "10.1.0.0", "10.1.0.255", "fd00::1"] {
        assert!(matches!(make("q", "10.1.0.0/24", Some(gateway)), Err(IpamError::Invalid(_))), "{gateway}");
    }
    for name in ["Q", "list", "7", ""] {
        assert!(matches!(make(name, "10.1.0.0/24", None), Err(IpamError::Invalid(_))), "{name}");
    }
    assert_eq!(make("q", "10.1.0.0/24", Some("10.1.0.254")), Ok(2));
    assert_eq!(make("v6", "fd00::/64", None), Ok(3));
    for (from, to) in [("10.2.0.9", "10.2.0.8"), ("10.2.0.9", "10.2.1.1"), ("10.2.0.9", "fd00::1")] {
        let made = ipam.new_pool("r", "10.2.0.0/24".parse().unwrap(), None, &[(ip(from), ip(to))], at(0), 1);
        assert!(matches!(made, Err(IpamError::Invalid(_))), "{from}-{to}");
    }
    let many = vec![(ip("10.2.0.9"), ip("10.2.0.9")); RESERVED_MAX + 1];
    let made = ipam.new_pool("r", "10.2.0.0/24".parse().unwrap(), None, &many, at(0), 1);
    assert!(matches!(made, Err(IpamError::Invalid(_))));
}

#[test]
fn a_pool_is_deleted_when_it_has_no_leases_and_its_number_is_not_used_again() {
    let mut ipam = ipam("10.0.0.0/24");
    take(&mut ipam, 1, 0).unwrap();
    assert_eq!(ipam.delete_pool("p"), Err(IpamError::Busy { pool: "p".into(), leases: 1 }));
    ipam.release_holder(1, at(0), 2);
    assert_eq!(ipam.delete_pool("p"), Ok(()));
    assert!(matches!(ipam.delete_pool("p"), Err(IpamError::NoPool(_))));
    assert_eq!(ipam.new_pool("p", "10.0.0.0/24".parse().unwrap(), None, &[], at(0), 3), Ok(2));
}

#[test]
fn there_is_a_limit_of_pools() {
    let mut ipam = Ipam::default();
    let mut make = |n: usize| {
        ipam.new_pool(
            &format!("p{n}"),
            format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap(),
            None,
            &[],
            at(0),
            1,
        )
    };
    assert!((0..POOLS_MAX).all(|n| make(n).is_ok()));
    assert_eq!(make(POOLS_MAX), Err(IpamError::TooMany));
}

#[test]
fn a_large_network_costs_no_more_than_its_leases() {
    for network in ["10.0.0.0/16", "fd00::/64"] {
        let mut ipam = ipam(network);
        let empty = postcard::to_stdvec(&ipam).unwrap().len();
        for holder in 0..10_000 {
            ipam.allocate("p", holder, None, at(0), 2).unwrap();
        }
        let full = postcard::to_stdvec(&ipam).unwrap();
        assert!(empty < 100, "{empty}");
        assert!(full.len() < 10_000 * 80, "{}", full.len());
        assert_eq!(ipam.pool("p").map(|p| p.used_intervals()), Some(1), "one run");
        assert_eq!(postcard::from_bytes::<Ipam>(&full).unwrap(), ipam);
        ipam.check().unwrap();
    }
}

/// What the pool `p` should hold: addresses by who has them, and until when the others are in quarantine.
#[derive(Debug, Default)]
struct Model {
    usable: Vec<IpAddr>,
    never: BTreeSet<IpAddr>,
    held: BTreeMap<IpAddr, u64>,
    resting: BTreeMap<IpAddr, u64>,
}

impl Model {
    /// The lowest address that may be given; of a large network only its beginning matters.
    fn lowest(&self) -> Option<IpAddr> {
        let taken = |a: &IpAddr| self.never.contains(a) || self.held.contains_key(a) || self.resting.contains_key(a);
        self.usable.iter().find(|a| !taken(a)).copied()
    }

    fn release(&mut self, holder: u64, end_ms: u64) {
        let released: Vec<IpAddr> = self.held.iter().filter(|(_, h)| **h == holder).map(|(a, _)| *a).collect();
        self.held.retain(|_, h| *h != holder);
        self.resting.extend(released.into_iter().map(|a| (a, end_ms)));
    }

    /// What asking for this very address should give.
    fn may_have(&self, address: &IpAddr) -> bool {
        self.usable.contains(address) && !self.never.contains(address) && !self.held.contains_key(address)
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// The holder asks for any address.
    Any(u64),
    /// The holder asks for the address of this place in the network.
    Wanted(u64, usize),
    /// The holder gives everything back.
    Release(u64),
    /// So many milliseconds pass.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0_u64..40).prop_map(Step::Any),
        2 => (0_u64..40, 0_usize..80).prop_map(|(holder, place)| Step::Wanted(holder, place)),
        2 => (0_u64..40).prop_map(Step::Release),
        1 => (0_u64..40_000).prop_map(Step::Pass),
    ]
}

/// A network, a range of it to reserve by places, and its usable addresses (the first two thousand).
fn networks() -> impl Strategy<Value = (&'static str, Option<(usize, usize)>)> {
    let network = prop_oneof![
        Just(("10.0.0.0/16", 10_usize)),
        Just(("10.0.0.0/24", 10)),
        Just(("10.0.0.0/27", 10)),
        Just(("10.0.0.0/30", 1)),
        Just(("10.0.0.4/31", 1)),
        Just(("fd00::/64", 10)),
        Just(("fd00::/124", 10)),
    ];
    network.prop_flat_map(|(network, most)| {
        let range = proptest::option::of((0_usize..=most, 0_usize..=most).prop_map(|(a, b)| (a.min(b), a.max(b))));
        (Just(network), range)
    })
}

/// The addresses that hosts may have, by the book and one by one.
fn usable(network: IpNetwork) -> Vec<IpAddr> {
    let own = |address: &IpAddr| match network {
        IpNetwork::V4(v4) => v4.prefix() < 31 && (*address == network.network() || *address == network.broadcast()),
        IpNetwork::V6(v6) => v6.prefix() < 127 && *address == network.network(),
    };
    network.iter().take(5_000).filter(|address| !own(address)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn it_is_the_model((network, reserved) in networks(), steps in proptest::collection::vec(step(), 1..2_000)) {
        let network: IpNetwork = network.parse().unwrap();
        let mut model = Model { usable: usable(network), ..Model::default() };
        let reserved: Vec<_> = reserved.iter().map(|(a, b)| (model.usable[*a], model.usable[*b])).collect();
        let mut ipam = Ipam::default();
        ipam.new_pool("p", network, None, &reserved, at(0), 1).unwrap();
        model.never.extend(ipam.pool("p").unwrap().gateway());
        model.never.extend(model.usable.iter().filter(|a| reserved.iter().any(|(f, t)| (f..=t).contains(a))));
        let mut now_ms = 0;
        for step in steps {
            model.resting.retain(|_, end_ms| *end_ms > now_ms);
            let before = ipam.clone();
            match step {
                Step::Pass(ms) => now_ms += ms,
                Step::Release(holder) => {
                    model.release(holder, now_ms + QUARANTINE_MS);
                    ipam.release_holder(holder, at(now_ms), 2);
                }
                Step::Any(holder) => {
                    let given = ipam.allocate("p", holder, None, at(now_ms), 2);
                    prop_assert_eq!(given.clone().ok(), model.lowest(), "the lowest: {:?}", given);
                    match given {
                        Ok(address) => prop_assert_eq!(model.held.insert(address, holder), None, "twice"),
                        Err(error) => prop_assert_eq!(Refusal::from(error).code, Code::NoSpace),
                    }
                }
                Step::Wanted(holder, place) => {
                    let Some(address) = network.iter().nth(place) else { continue };
                    let given = ipam.allocate("p", holder, Some(address), at(now_ms), 2);
                    prop_assert_eq!(given.is_ok(), model.may_have(&address), "{}: {:?}", address, given);
                    if given.is_ok() {
                        model.resting.remove(&address);
                        model.held.insert(address, holder);
                    }
                }
            }
            prop_assert_eq!(before.check(), Ok(()), "the version before is as it was");
            let pool = ipam.pool("p").unwrap();
            let leased: BTreeMap<_, _> = pool.leases().map(|(a, l)| (a, l.holder)).collect();
            prop_assert_eq!(&leased, &model.held);
        }
        prop_assert_eq!(ipam.check(), Ok(()));
        let decoded: Ipam = postcard::from_bytes(&postcard::to_stdvec(&ipam).unwrap()).unwrap();
        prop_assert_eq!(decoded, ipam);
    }
}
