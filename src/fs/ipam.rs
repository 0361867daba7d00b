//! `/ipam`: pools of addresses and their leases.

use super::table::{Asked, Content, File, Kind, Maker, Object};
use super::verbs::{Act, Attributes, Verb};
use crate::engine::state::{Command, Kind as Entity, Operation, State};
use crate::ipam::Pool;
use crate::text::{Attr, Refusal, attrs::shown, columns::Table, kv::KeyValues, name, time::rfc3339};
use std::net::IpAddr;

static FILES: &[File] = &[
    File { number: 1, name: "list", content: Content::Text(list), help: "pools: name, network, used, size" },
    File {
        number: 2,
        name: "new",
        content: Content::New(&MAKER),
        help: "write attributes, read the new pool's number",
    },
];

static MAKER: Maker = Maker { right: Operation::Administer, command: new, usage };

static OBJECT_FILES: &[File] = &[
    File { number: 1, name: "ctl", content: Content::Ctl(VERBS), help: "verbs; reading it shows them" },
    File { number: 2, name: "status", content: Content::Text(status), help: "key value lines" },
    File { number: 3, name: "leases", content: Content::Text(leases), help: "one line a lease" },
];

fn by_id(state: &State, id: u64) -> Option<&Pool> {
    state.ipam().pools().find(|p| p.id() == id)
}

pub(super) static KIND: Kind = Kind {
    number: 3,
    name: "ipam",
    files: FILES,
    object_files: OBJECT_FILES,
    numbered: false,
    find: |state, name| state.ipam().pool(name).map(Pool::id),
    object: |state, id| {
        let pool = by_id(state, id)?;
        Some(Object {
            name: Some(pool.name().to_owned()),
            owner: None,
            changed: pool.changed(),
            changed_seq: pool.changed_seq(),
        })
    },
    after: |state, after| {
        let pools = state.ipam().pools().map(|pool| (pool.id(), Some(pool.name())));
        let mut later: Vec<_> = pools.filter(|(id, _)| *id > after).collect();
        later.sort_unstable();
        Box::new(later.into_iter())
    },
    linked_after: |_, _| Box::new(std::iter::empty()),
    entity: Entity::Pool,
    delete: |state, id| by_id(state, id).map(|p| Command::PoolDelete { name: p.name().to_owned() }),
};

static VERBS: &[Verb] = &[Verb {
    name: "delete",
    attributes: &[],
    help: "remove the pool; not while addresses of it are leased",
    act: Act::Command(|asked, _| Ok(Command::PoolDelete { name: pool(asked)?.name().to_owned() })),
}];

fn pool<'a>(asked: &'a Asked<'_>) -> Result<&'a Pool, Refusal> {
    by_id(asked.state, asked.object).ok_or_else(super::tree::gone)
}

fn range((from, to): &(IpAddr, IpAddr)) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let pool = pool(asked)?;
    let reserved: Vec<_> = pool.reserved().iter().map(range).collect();
    let text = KeyValues::new()
        .line("id", pool.id())
        .line("name", pool.name())
        .line("network", pool.network())
        .maybe("gateway", pool.gateway())
        .maybe("reserved", Some(reserved.join(",")).filter(|r| !r.is_empty()))
        .line("size", pool.size())
        .line("used", pool.leases().len())
        .line("quarantined", pool.quarantined())
        .line("changed", rfc3339(pool.changed().millis()));
    Ok(text.print())
}

fn leases(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["address", "holder", "since"]);
    for (address, lease) in pool(asked)?.leases() {
        table.row([address.to_string(), format!("vms/{}", lease.holder), rfc3339(lease.since.millis())]);
    }
    Ok(table.print())
}

fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["name", "id", "network", "gateway", "used", "quarantined", "size"]);
    for pool in asked.state.ipam().pools() {
        table.row([
            pool.name().to_owned(),
            pool.id().to_string(),
            pool.network().to_string(),
            pool.gateway().map(|g| g.to_string()).unwrap_or_default(),
            pool.leases().len().to_string(),
            pool.quarantined().to_string(),
            pool.size().to_string(),
        ]);
    }
    Ok(table.print())
}

fn usage(_state: &State) -> String {
    "# Write attr=value here, one pool a line; read its number back on the same open file.\n\
     # name=NAME          letters a-z, digits, '.' and '-'; required\n\
     # network=NETWORK    as 10.43.0.0/16 or fd00::/64; required\n\
     # gateway=ADDRESS    the router's; default: the network's first\n\
     # reserved=RANGES    never leased, as 10.43.0.2-10.43.0.9,10.43.1.1; default: none\n"
        .to_owned()
}

fn address(text: &str) -> Result<IpAddr, Refusal> {
    text.parse().map_err(|_| {
        Refusal::invalid(format!("invalid address '{}': an address is as 10.43.0.1 or fd00::1", shown(text)))
    })
}

fn ranges(text: &str) -> Result<Vec<(IpAddr, IpAddr)>, Refusal> {
    let one = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Ok((address(from)?, address(to)?))
    };
    text.split(',').map(one).collect()
}

fn new(_state: &State, attrs: &[Attr]) -> Result<Command, Refusal> {
    let attributes = Attributes::new(attrs, &["name", "network", "gateway", "reserved"], "ipam/new")?;
    let missing = |what: &str| {
        Refusal::invalid(format!("invalid pool: {what}= is missing; reading ipam/new shows what it takes"))
    };
    let legal = |text: &str| name::check(text).map(|()| text.to_owned());
    let network = |text: &str| {
        text.parse()
            .map_err(|_| Refusal::invalid(format!("invalid network '{}': a network is as 10.43.0.0/16", shown(text))))
    };
    Ok(Command::PoolNew {
        name: attributes.parsed("name", legal)?.ok_or_else(|| missing("name"))?,
        network: attributes.parsed("network", network)?.ok_or_else(|| missing("network"))?,
        gateway: attributes.parsed("gateway", address)?,
        reserved: attributes.parsed("reserved", ranges)?.unwrap_or_default(),
    })
}
