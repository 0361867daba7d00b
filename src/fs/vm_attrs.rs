//! The attributes of a VM: what `new` and `set` take.

use super::verbs::Attributes;
use crate::engine::state::constraints::parse_labels;
use crate::engine::state::{
    Command, ConstraintChanges, Constraints, DEFAULT_POOL, Ha, Place, Restart, SpecChanges, State, VmSpec, VmVerb,
};
use crate::text::{Attr, Refusal, attrs::shown, duration, name, size};
use std::net::IpAddr;

/// What `new` takes.
pub(super) const ATTRIBUTES: &[&str] = &[
    "name",
    "image",
    "cpus",
    "memory",
    "disk",
    "pool",
    "ip",
    "restart",
    "grace",
    "ha",
    "node",
    "arch",
    "labels",
    "affinity",
    "anti-affinity",
    "place",
    "priority",
    "id",
];
/// What `set` takes.
pub(super) const SETTABLE: &[&str] = &[
    "name",
    "image",
    "cpus",
    "memory",
    "restart",
    "grace",
    "ha",
    "node",
    "arch",
    "labels",
    "affinity",
    "anti-affinity",
    "place",
    "priority",
    "version",
    "id",
];

/// What reading `vms/new` shows.
pub(super) fn usage(state: &State) -> String {
    let spec = VmSpec::default();
    let images: Vec<&str> = state.images().map(|i| i.name.as_str()).collect();
    let images = if images.is_empty() { "none yet".to_owned() } else { images.join(" ") };
    format!(
        "# Write attr=value here, one VM a line; read its number back on the same open file.\n\
         # name=NAME        letters a-z, digits, '.' and '-'; unique; default: none\n\
         # image=IMAGE      required; there are: {images}\n\
         # cpus={}           1 to 64\n\
         # memory={}     32M to 1T\n\
         # disk=SIZE        a data disk; default: none\n\
         # pool={DEFAULT_POOL}     where its address comes from: ipam/list\n\
         # ip=ADDRESS       one of that pool; default: the lowest free one\n\
         # restart={}  never, on-failure, always\n\
         # grace={}        how long a stop waits for the guest\n\
         # ha={}          when its node is lost: stay, or restart on another one (not with disk=)\n\
         # node=NODE        only there; default: anywhere\n\
         # arch=ARCH        only on nodes of this architecture\n\
         # labels=A,B       only on nodes that have all of these labels\n\
         # affinity=NAME    where the others are that have this name here\n\
         # anti-affinity=NAME  not where another is that has this name here\n\
         # place={}     among the nodes that will do: spread or pack\n\
         # priority={}       0 to 9: who goes first when several wait for room\n\
         # id=KEY           writing the same again gives the first one's number\n",
        spec.cpus,
        size::print(spec.memory_bytes),
        spec.restart,
        duration::print(spec.grace_ms),
        spec.ha,
        spec.place,
        spec.priority,
    )
}

fn address(text: &str) -> Result<IpAddr, Refusal> {
    text.parse().map_err(|_| {
        Refusal::invalid(format!("invalid address '{}': an address is as 10.42.0.7 or fd00::7", shown(text)))
    })
}

fn legal_name(text: &str) -> Result<String, Refusal> {
    name::check(text).map(|()| text.to_owned())
}

/// A line of `new`.
pub(super) fn new(_state: &State, attrs: &[Attr]) -> Result<Command, Refusal> {
    let attributes = Attributes::new(attrs, ATTRIBUTES, "vms/new")?;
    let (default, name) = (VmSpec::default(), attributes.parsed("name", legal_name)?);
    let image = attributes
        .parsed("image", legal_name)?
        .ok_or_else(|| Refusal::invalid("invalid VM: image= is missing; reading vms/new shows which there are"))?;
    let spec = VmSpec {
        image,
        cpus: attributes.number("cpus")?.unwrap_or(default.cpus),
        memory_bytes: attributes.parsed("memory", size::parse)?.unwrap_or(default.memory_bytes),
        disk_bytes: attributes.parsed("disk", size::parse)?,
        pool: attributes.parsed("pool", legal_name)?,
        ip: attributes.parsed("ip", address)?,
        restart: attributes.parsed("restart", str::parse)?.unwrap_or(default.restart),
        grace_ms: attributes.parsed("grace", duration::parse)?.unwrap_or(default.grace_ms),
        ha: attributes.parsed("ha", str::parse)?.unwrap_or(default.ha),
        constraints: Constraints::default().with(&constraints(&attributes)?),
        place: attributes.parsed("place", str::parse)?.unwrap_or(default.place),
        priority: attributes.number("priority")?.unwrap_or(default.priority),
    };
    spec.check()?;
    Ok(Command::VmNew { name, spec, key: attributes.text("id").map(str::to_owned) })
}

/// An empty text is no constraint.
fn constraints(attributes: &Attributes<'_>) -> Result<ConstraintChanges, Refusal> {
    let named = |key| attributes.parsed(key, |text| if text.is_empty() { Ok(String::new()) } else { legal_name(text) });
    Ok(ConstraintChanges {
        node: named("node")?,
        arch: attributes.text("arch").map(str::to_owned),
        labels: attributes.parsed("labels", parse_labels)?,
        affinity: named("affinity")?,
        anti_affinity: named("anti-affinity")?,
    })
}

/// The attributes of `set`.
pub(super) fn set(attributes: &Attributes<'_>) -> Result<VmVerb, Refusal> {
    let changes = SpecChanges {
        image: attributes.parsed("image", legal_name)?,
        cpus: attributes.number("cpus")?,
        memory_bytes: attributes.parsed("memory", size::parse)?,
        restart: attributes.parsed("restart", |text| text.parse::<Restart>())?,
        grace_ms: attributes.parsed("grace", duration::parse)?,
        ha: attributes.parsed("ha", |text| text.parse::<Ha>())?,
        constraints: constraints(attributes)?,
        place: attributes.parsed("place", |text| text.parse::<Place>())?,
        priority: attributes.number("priority")?,
    };
    // An empty name takes the name away.
    let name = attributes.parsed("name", |text| if text.is_empty() { Ok(String::new()) } else { legal_name(text) })?;
    if changes == SpecChanges::default() && name.is_none() {
        return Err(Refusal::invalid("invalid set: there is no attribute to change; reading ctl shows which can be"));
    }
    Ok(VmVerb::Set { name, changes })
}
