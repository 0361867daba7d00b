//! A naive model of the state machine: hash maps, no indexes, the table of transitions as it is written.

use super::cluster::{BEGIN_MS, NODE_MEMORY_BYTES};
use super::table::{Cells, sections};
use blixard::engine::state::{By, Command, Reply, Restart, Role, VmId, VmReport, VmSpec, VmVerb};
use blixard::text::name::RESERVED;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

/// What a command gives: a reply, or the errno of a refusal.
type Answer = Result<Reply, &'static str>;

#[derive(Clone, Debug, PartialEq)]
pub struct ModelVm {
    pub name: Option<String>,
    pub spec: VmSpec,
    pub owner: String,
    pub row: String,
    pub generation: u64,
    pub version: u64,
    pub ip: IpAddr,
    pub promised_bytes: u64,
    pub placed: bool,
    pub failures: u32,
    pub ready: bool,
    pub started_ms: Option<u64>,
    pub stop_grace_ms: u64,
}

#[derive(Clone, Default)]
struct ModelPool {
    first: u32,
    last: u32,
    leases: HashMap<u32, u64>,
    quarantine: HashMap<u32, u64>,
}

#[derive(Clone)]
pub struct Model {
    table: Rc<BTreeMap<String, Cells>>,
    now_ms: u64,
    users: HashMap<String, (Role, Option<u32>)>,
    /// The VMs that users are confined to, of those who are.
    pub within: HashMap<String, Vec<u64>>,
    pub revoked: HashMap<String, Vec<String>>,
    /// What each is, and whether the node has it.
    images: HashMap<String, (String, bool)>,
    pools: HashMap<String, ModelPool>,
    pub vms: HashMap<u64, ModelVm>,
    keys: HashMap<(String, String), (u64, Command, Reply)>,
    made: HashMap<&'static str, u64>,
    up: bool,
    boot: String,
    memory_bytes: u64,
}

impl Model {
    /// As [`Cluster::new`] leaves it.
    pub fn new() -> Model {
        let pool = |net: [u8; 4], last: u32| {
            let net = u32::from(Ipv4Addr::from(net));
            ModelPool { first: net + 2, last: net + last, ..ModelPool::default() }
        };
        let users = [
            ("root", Role::Admin, 0),
            ("ann", Role::Operator, 1),
            ("bob", Role::Operator, 2),
            ("eve", Role::Viewer, 3),
        ];
        Model {
            table: Rc::new(sections()),
            now_ms: BEGIN_MS,
            users: users.into_iter().map(|(name, role, uid)| (name.to_owned(), (role, Some(uid)))).collect(),
            within: HashMap::new(),
            revoked: HashMap::new(),
            images: HashMap::from([("tiny".to_owned(), ("0".repeat(64), true))]),
            pools: HashMap::from([("default".to_owned(), pool([10, 42, 0, 0], 65_534))]),
            vms: HashMap::new(),
            keys: HashMap::new(),
            made: HashMap::from([("vm", 0), ("image", 1), ("pool", 1), ("user", 4)]),
            up: true,
            boot: "boot-1".to_owned(),
            memory_bytes: NODE_MEMORY_BYTES,
        }
    }

    pub fn all(&mut self, now_ms: u64, by: &By, commands: &[Command]) -> Result<Vec<Reply>, &'static str> {
        self.now_ms = now_ms;
        self.keys.retain(|_, (at_ms, ..)| *at_ms + 86_400_000 > now_ms);
        let before = self.clone();
        let answers: Result<Vec<Reply>, _> = commands.iter().map(|command| self.keyed(by, command)).collect();
        match answers {
            Ok(_) => self.begin_waiting(),
            Err(_) => *self = before,
        }
        answers
    }

    /// Whoever waits and finds room begins, in their turn.
    fn begin_waiting(&mut self) {
        let mut waiting: Vec<(u8, u64)> = self
            .vms
            .iter()
            .filter(|(_, vm)| vm.row.ends_with("/waiting"))
            .map(|(id, vm)| (9 - vm.spec.priority, *id))
            .collect();
        waiting.sort_unstable();
        for (_, id) in waiting {
            let vm = self.vms[&id].clone();
            if self.has_room(id, &vm) {
                let cell = format!("{}/starting+", &vm.row[..1]);
                self.go(id, vm, &cell, true).unwrap();
            }
        }
    }

    fn has_room(&self, id: u64, vm: &ModelVm) -> bool {
        let others: u64 = self.vms.iter().filter(|(other, _)| **other != id).map(|(_, vm)| vm.promised_bytes).sum();
        let has_image = self.images.get(&vm.spec.image).is_some_and(|(_, here)| *here);
        self.up && has_image && self.memory_bytes.saturating_sub(others) >= vm.spec.memory_bytes
    }

    fn keyed(&mut self, by: &By, command: &Command) -> Answer {
        let key = match command {
            Command::VmNew { key, .. } => key.clone(),
            Command::Vm { conditions, .. } => conditions.key.clone(),
            _ => None,
        };
        let Some(key) = key else { return self.one(by, command) };
        let name = (Self::name_of(by), key);
        match self.keys.get(&name) {
            Some((_, known, reply)) if known == command => Ok(reply.clone()),
            Some(_) => Err("EEXIST"),
            None => {
                let reply = self.one(by, command)?;
                self.keys.insert(name, (self.now_ms, command.clone(), reply.clone()));
                Ok(reply)
            }
        }
    }

    fn name_of(by: &By) -> String {
        match by {
            By::User(name) => name.clone(),
            By::Agent => "none".to_owned(),
        }
    }

    fn role(&self, by: &By) -> Option<Role> {
        self.users.get(&Self::name_of(by)).map(|(role, _)| *role)
    }

    fn need(&self, by: &By, role: Role) -> Result<(), &'static str> {
        let confined = self.within.contains_key(&Self::name_of(by));
        if self.role(by) >= Some(role) && !confined { Ok(()) } else { Err("EACCES") }
    }

    fn number(&mut self, kind: &'static str) -> Reply {
        let last = self.made.get_mut(kind).unwrap();
        *last += 1;
        Reply::Created(*last)
    }

    fn one(&mut self, by: &By, command: &Command) -> Answer {
        let agent = if *by == By::Agent { Ok(()) } else { Err("EACCES") };
        match command {
            Command::Init { .. } => Err("EEXIST"),
            Command::InviteNew { .. }
            | Command::NodeJoin { .. }
            | Command::NodeRaftNew { .. }
            | Command::NodeReach { .. }
            | Command::Node { .. }
            | Command::NodeSet { .. }
            | Command::LeaseRenew { .. }
            | Command::LeaseExpire { .. } => panic!("the model knows one node: tests/state/nodes.rs is about several"),
            Command::NodeUp { host_boot, memory_bytes, .. } => agent.map(|()| self.node_up(host_boot, *memory_bytes)),
            Command::NodeDown => agent.map(|()| {
                self.up = false;
                Reply::Done
            }),
            Command::VmNew { name, spec, .. } => self.vm_new(by, name.as_deref(), spec),
            Command::Vm { vm, verb, conditions } => self.vm_verb(by, vm.0, verb, conditions.version),
            Command::VmReport { vm, generation, report } => {
                agent.and_then(|()| self.vm_report(vm.0, *generation, report))
            }
            Command::ImageRegister { name, sha256, .. } => {
                agent.or_else(|_| self.need(by, Role::Admin))?;
                let now = (sha256.clone(), true);
                Ok(match self.images.insert(name.clone(), now.clone()) {
                    None => self.number("image"),
                    Some(before) if before == now => Reply::Unchanged,
                    Some(_) => Reply::Done,
                })
            }
            Command::ImageForget { name } => {
                agent.or_else(|_| self.need(by, Role::Admin))?;
                let is_used = self.vms.values().any(|vm| vm.spec.image == *name);
                match self.images.get_mut(name) {
                    None => return Err("ENOENT"),
                    Some((_, here)) if *by == By::Agent && !*here => return Ok(Reply::Unchanged),
                    Some((_, here)) if *by == By::Agent && is_used => {
                        *here = false;
                        return Ok(Reply::Done);
                    }
                    Some(_) if is_used => return Err("EBUSY"),
                    Some(_) => {}
                }
                self.images.remove(name);
                Ok(Reply::Done)
            }
            Command::PoolNew { name, network, .. } => {
                self.need(by, Role::Admin)?;
                if self.pools.contains_key(name) {
                    return Err("EEXIST");
                }
                let (ipnetwork::IpNetwork::V4(network), ..) = (network,) else { panic!("the model knows IPv4 only") };
                let (first, last) = (u32::from(network.network()) + 2, u32::from(network.broadcast()) - 1);
                self.pools.insert(name.clone(), ModelPool { first, last, ..ModelPool::default() });
                Ok(self.number("pool"))
            }
            Command::PoolDelete { name } => {
                self.need(by, Role::Admin)?;
                if !self.pools.get(name).ok_or("ENOENT")?.leases.is_empty() {
                    return Err("EBUSY");
                }
                self.pools.remove(name);
                Ok(Reply::Done)
            }
            Command::UserSet { name, role, uid } => {
                self.need(by, Role::Admin)?;
                self.user_set(name, *role, *uid)
            }
            Command::UserNew { name, role, uid } => {
                self.need(by, Role::Admin)?;
                match self.users.contains_key(name) {
                    true => Err("EEXIST"),
                    false => self.user_set(name, *role, *uid),
                }
            }
            Command::UserNewWithin { name, role, uid, within } => {
                self.user_confined(by, name, (*role, *uid), within, true)
            }
            Command::UserSetWithin { name, role, uid, within } => {
                self.user_confined(by, name, (*role, *uid), within, false)
            }
            Command::UserDelete { name } => {
                self.need(by, Role::Admin)?;
                let (role, _) = *self.users.get(name).ok_or("ENOENT")?;
                if role == Role::Admin && self.admins() == 1 {
                    return Err("EBUSY");
                }
                self.users.remove(name);
                self.within.remove(name);
                self.revoked.remove(name);
                Ok(Reply::Done)
            }
            Command::CertificateRevoke { name, serial } => {
                self.need(by, Role::Admin)?;
                self.users.get(name).ok_or("ENOENT")?;
                let revoked = self.revoked.entry(name.clone()).or_default();
                if revoked.contains(serial) {
                    return Ok(Reply::Unchanged);
                }
                revoked.push(serial.clone());
                Ok(Reply::Done)
            }
        }
    }

    fn user_set(&mut self, name: &str, role: Role, uid: Option<u32>) -> Answer {
        if uid.is_some() && self.users.iter().any(|(other, (_, theirs))| other != name && *theirs == uid) {
            return Err("EEXIST");
        }
        let known = self.users.get(name).copied();
        if known == Some((role, uid)) {
            return Ok(Reply::Unchanged);
        }
        if known.is_some_and(|(before, _)| before == Role::Admin) && role != Role::Admin && self.admins() == 1 {
            return Err("EBUSY");
        }
        if role == Role::Admin && self.within.contains_key(name) {
            return Err("EINVAL");
        }
        self.users.insert(name.to_owned(), (role, uid));
        Ok(if known.is_some() { Reply::Done } else { self.number("user") })
    }

    fn admins(&self) -> usize {
        self.users.values().filter(|(role, _)| *role == Role::Admin).count()
    }

    fn user_confined(
        &mut self,
        by: &By,
        name: &str,
        (role, uid): (Role, Option<u32>),
        within: &[VmId],
        is_new: bool,
    ) -> Answer {
        self.need(by, Role::Admin)?;
        let within: BTreeSet<u64> = within.iter().map(|id| id.0).collect();
        if !within.iter().all(|id| self.vms.contains_key(id)) {
            return Err("ENOENT");
        }
        if role == Role::Admin && !within.is_empty() {
            return Err("EINVAL");
        }
        if is_new && self.users.contains_key(name) {
            return Err("EEXIST");
        }
        let before = self.within.remove(name).unwrap_or_default();
        let within: Vec<u64> = within.into_iter().collect();
        if !within.is_empty() {
            self.within.insert(name.to_owned(), within.clone());
        }
        match self.user_set(name, role, uid)? {
            Reply::Unchanged if before != within => Ok(Reply::Done),
            reply => Ok(reply),
        }
    }

    fn node_up(&mut self, boot: &str, memory_bytes: u64) -> Reply {
        (self.up, self.memory_bytes) = (true, memory_bytes);
        if self.boot != boot {
            boot.clone_into(&mut self.boot);
            let mut ids: Vec<u64> = self.vms.keys().copied().collect();
            ids.sort_unstable();
            for id in ids {
                let vm = self.vms[&id].clone();
                let cell = self.cell(&vm, "host-reboot");
                self.go(id, vm, &cell, true).unwrap();
            }
        }
        Reply::Done
    }

    fn name_is_free(&self, name: &str, id: u64) -> Result<(), &'static str> {
        if RESERVED.contains(&name) || name.bytes().all(|b| b.is_ascii_digit()) {
            return Err("EINVAL");
        }
        let taken = self.vms.iter().any(|(other, vm)| *other != id && vm.name.as_deref() == Some(name));
        if taken { Err("EEXIST") } else { Ok(()) }
    }

    fn vm_new(&mut self, by: &By, name: Option<&str>, spec: &VmSpec) -> Answer {
        self.need(by, Role::Operator)?;
        name.map_or(Ok(()), |name| self.name_is_free(name, 0))?;
        if !self.images.contains_key(&spec.image) {
            return Err("ENOENT");
        }
        let (now_ms, id) = (self.now_ms, self.made["vm"] + 1);
        let pool = self.pools.get_mut(spec.pool.as_deref().unwrap_or("default")).ok_or("ENOENT")?;
        pool.quarantine.retain(|_, until_ms| *until_ms > now_ms);
        let wanted = spec.ip.map(|ip| match ip {
            IpAddr::V4(v4) => u32::from(v4),
            IpAddr::V6(_) => panic!("the model knows IPv4 only"),
        });
        let address = match wanted {
            Some(ip) if pool.leases.contains_key(&ip) => return Err("EEXIST"),
            Some(ip) if !(pool.first..=pool.last).contains(&ip) => return Err("EINVAL"),
            Some(ip) => ip,
            None => {
                let free = |ip: &u32| !pool.leases.contains_key(ip) && !pool.quarantine.contains_key(ip);
                (pool.first..=pool.last).find(free).ok_or("ENOSPC")?
            }
        };
        pool.quarantine.remove(&address);
        pool.leases.insert(address, id);
        let vm = ModelVm {
            name: name.map(str::to_owned),
            spec: spec.clone(),
            owner: Self::name_of(by),
            row: "S/defined".to_owned(),
            generation: 0,
            version: 1,
            ip: IpAddr::V4(address.into()),
            promised_bytes: 0,
            placed: false,
            failures: 0,
            ready: false,
            started_ms: None,
            stop_grace_ms: spec.grace_ms,
        };
        self.vms.insert(id, vm);
        Ok(self.number("vm"))
    }

    /// What the table says, by the VM's restart policy.
    fn cell(&self, vm: &ModelVm, column: &str) -> String {
        let ran_ms = vm.started_ms.map_or(0, |at| self.now_ms - at);
        let column = if column == "powered-off" && vm.spec.restart == Restart::Always && ran_ms >= 10_000 {
            "powered-off-later"
        } else {
            column
        };
        let at = (vm.row.clone(), column.to_owned());
        let policy = vm.spec.restart.to_string();
        let general = if self.table["verbs"].contains_key(&at) { "verbs" } else { "reports" };
        let special = self.table.get(&policy).and_then(|cells| cells.get(&at));
        special
            .or_else(|| self.table[general].get(&at))
            .or_else(|| {
                let at = (vm.row.clone(), "powered-off".to_owned());
                self.table["reports"].get(&at)
            })
            .unwrap()
            .clone()
    }

    fn vm_verb(&mut self, by: &By, id: u64, verb: &VmVerb, version: Option<u64>) -> Answer {
        let mut vm = self.vms.get(&id).cloned().ok_or("ENOENT")?;
        let role = self.role(by);
        if !(role == Some(Role::Admin) || role == Some(Role::Operator) && vm.owner == Self::name_of(by)) {
            return Err("EACCES");
        }
        if self.within.get(&Self::name_of(by)).is_some_and(|within| !within.contains(&id)) {
            return Err("EACCES");
        }
        if version.is_some_and(|version| version != vm.version) {
            return Err("ESTALE");
        }
        let column = match verb {
            VmVerb::Start => "start",
            VmVerb::Stop { .. } => "stop",
            VmVerb::Kill => "kill",
            VmVerb::Restart => "restart",
            VmVerb::Pause => "pause",
            VmVerb::Resume => "resume",
            VmVerb::Delete => "delete",
            VmVerb::Set { .. } => "set",
        };
        let mut cell = self.cell(&vm, column);
        let stopping = vm.row.ends_with("stopping");
        match verb {
            VmVerb::Stop { .. } | VmVerb::Kill
                if ["starting", "running", "stopping"].iter().any(|row| vm.row.contains(row))
                    || vm.row.ends_with("paused") =>
            {
                let grace_ms = match verb {
                    VmVerb::Stop { grace_ms } => grace_ms.unwrap_or(vm.spec.grace_ms),
                    _ => 0,
                };
                let shorter = !stopping || grace_ms < vm.stop_grace_ms;
                cell = if shorter || vm.row != "S/stopping" { "S/stopping" } else { "=" }.to_owned();
                vm.stop_grace_ms = if stopping { grace_ms.min(vm.stop_grace_ms) } else { grace_ms };
            }
            VmVerb::Start if cell.ends_with('+') => vm.failures = 0,
            VmVerb::Restart => vm.failures = 0,
            // No node has anything of it.
            VmVerb::Delete if cell == "D/deleting" && !vm.placed => cell = "gone".to_owned(),
            VmVerb::Delete => vm.name = None,
            VmVerb::Set { name, changes } => {
                if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
                    self.name_is_free(name, id)?;
                }
                if changes.image.as_ref().is_some_and(|image| !self.images.contains_key(image)) {
                    return Err("ENOENT");
                }
                let before = vm.clone();
                if let Some(name) = name {
                    vm.name = Some(name.clone()).filter(|name| !name.is_empty());
                }
                vm.spec = vm.spec.with(changes);
                if cell != "ENOENT" && vm == before {
                    cell = "=".to_owned();
                } else if vm.spec.restart == Restart::Never {
                    cell = cell.trim_end_matches('*').to_owned();
                }
            }
            _ => {}
        }
        self.go(id, vm, &cell, false)
    }

    fn vm_report(&mut self, id: u64, generation: u64, report: &VmReport) -> Answer {
        let mut vm = self.vms.get(&id).cloned().ok_or("ENOENT")?;
        if !vm.placed {
            return Err("EACCES");
        }
        if vm.generation != generation {
            return Err("ESTALE");
        }
        let column = match report {
            VmReport::Started { .. } => "started",
            VmReport::GuestReady => "ready",
            VmReport::Paused => "paused",
            VmReport::Resumed => "resumed",
            VmReport::Failed { may_retry: true, .. } => "failed",
            VmReport::Failed { may_retry: false, .. } => "failed-for-good",
            VmReport::PoweredOff => "powered-off",
            VmReport::Ended => "ended",
            VmReport::Fenced => "fenced",
            VmReport::RetryDue => "retry-due",
            VmReport::Removed => "removed",
            VmReport::Trouble { .. } => "trouble",
        };
        let mut cell = self.cell(&vm, column);
        if *report == VmReport::GuestReady {
            if vm.ready || vm.started_ms.is_none() {
                cell = "=".to_owned();
            } else if cell != "=" {
                vm.ready = true;
            }
        }
        self.go(id, vm, &cell, true)
    }

    /// Goes where a cell leads.
    fn go(&mut self, id: u64, mut vm: ModelVm, cell: &str, by_agent: bool) -> Answer {
        match cell {
            "=" => return Ok(Reply::Unchanged),
            "gone" => {
                let pool = self.pools.get_mut(vm.spec.pool.as_deref().unwrap_or("default")).unwrap();
                let until_ms = self.now_ms + 60_000;
                let held: Vec<u32> =
                    pool.leases.iter().filter(|(_, holder)| **holder == id).map(|(ip, _)| *ip).collect();
                for ip in held {
                    pool.leases.remove(&ip);
                    pool.quarantine.insert(ip, until_ms);
                }
                self.vms.remove(&id);
                return Ok(Reply::Done);
            }
            errno if !errno.contains('/') => {
                let known = ["EBUSY", "ENOENT", "EACCES", "EINVAL"].into_iter().find(|known| *known == errno);
                return Err(known.unwrap());
            }
            _ => {}
        }
        let mut next = cell.trim_end_matches('+').to_owned();
        vm.version += 1;
        if cell.ends_with('+') {
            if self.has_room(id, &vm) {
                vm.generation += 1;
                (vm.promised_bytes, vm.placed) = (vm.spec.memory_bytes, true);
                (vm.ready, vm.started_ms, vm.stop_grace_ms) = (false, None, vm.spec.grace_ms);
            } else if by_agent {
                next = format!("{}/waiting", &next[..1]);
                (vm.ready, vm.started_ms, vm.placed) = (false, None, false);
            } else {
                return Err("ENOSPC");
            }
        } else if next.contains("/failed") && !vm.row.contains("/failed") {
            self.fails(&mut vm, &mut next);
        }
        if next.ends_with("/running") && vm.row.ends_with("/starting") {
            vm.started_ms = Some(self.now_ms);
        }
        if next.ends_with("/stopped") {
            (vm.ready, vm.started_ms) = (false, None);
        }
        if ["/stopped", "/failed", "/deleting", "/waiting"].iter().any(|end| next.ends_with(end)) {
            vm.promised_bytes = 0;
        }
        vm.row = next;
        self.vms.insert(id, vm);
        Ok(Reply::Done)
    }

    fn fails(&self, vm: &mut ModelVm, next: &mut String) {
        if vm.started_ms.is_some_and(|at| self.now_ms - at >= 600_000) {
            vm.failures = 0;
        }
        vm.failures += 1;
        (vm.ready, vm.started_ms) = (false, None);
        if vm.failures >= 10 {
            *next = next.trim_end_matches('*').to_owned();
        }
    }
}
