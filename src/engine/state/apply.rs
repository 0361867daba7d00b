//! Taking an entry: is it new, is it allowed, does every command of it hold? All of them take effect, or none.

use super::{
    By, Command, DEFAULT_NETWORK, DEFAULT_POOL, Entry, Event, Image, ImageId, NOBODY, Node, NodeId, Operation, Outcome,
    Reply, Role, State, Subject, User, UserId, What,
};
use crate::clock::HybridTime;
use crate::text::{Code, Refusal, name};

/// The most images, nodes and users of a cluster.
const IMAGES_MAX: usize = 4_096;
const USERS_MAX: usize = 65_536;

/// An entry at work on a copy of the state.
pub(super) struct Work<'e> {
    pub(super) state: State,
    pub(super) seq: u64,
    pub(super) node: NodeId,
    pub(super) by: &'e By,
    events: Vec<Event>,
}

impl State {
    /// The state after the entry, what became of it, and what happened. `seq` is its place in the log, one more than [`State::seq`].
    ///
    /// An entry that was applied before changes nothing but `seq`.
    pub fn apply(&self, seq: u64, entry: &Entry) -> (State, Outcome, Vec<Event>) {
        let mut next = self.clone();
        next.seq = seq;
        if let Err(refusal) = next.admit(entry) {
            return (next, Err(refusal), Vec::new());
        }
        let mut work = Work { state: next.clone(), seq, node: entry.id.node, by: &entry.by, events: Vec::new() };
        match work.all(&entry.commands) {
            Ok(replies) => (work.state, Ok(replies), work.events),
            Err(refusal) => (next, Err(refusal), Vec::new()),
        }
    }

    /// Notes that the submitter has submitted this, unless it is not to be taken at all.
    fn admit(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let founding = self.cluster.is_none() && matches!(entry.commands.as_slice(), [Command::Init { .. }]);
        if !founding && !self.nodes.contains_key(&entry.id.node) {
            return Err(Refusal::denied(format!("no permission: node {} is no member of this cluster", entry.id.node)));
        }
        let place = (entry.id.boot, entry.id.n);
        if self.last_of(entry.id.node).is_some_and(|last| place <= last) {
            return Err(Refusal::exists(format!("the entry {} exists already: it was applied before", entry.id)));
        }
        self.submitters.insert(entry.id.node, place);
        if let Some(node) = self.nodes.get_mut(&entry.id.node) {
            if entry.at < node.newest_stamp {
                return Err(Refusal::invalid(format!(
                    "invalid entry {}: its stamp lies before an older one's",
                    entry.id
                )));
            }
            node.newest_stamp = entry.at;
        }
        self.tell_time(if founding { entry.at } else { self.median_stamp() });
        if entry.commands.is_empty() || entry.commands.len() > Entry::COMMANDS_MAX {
            let (given, most) = (entry.commands.len(), Entry::COMMANDS_MAX);
            return Err(Refusal::invalid(format!(
                "invalid entry: it has {given} commands, and 1 to {most} is allowed"
            )));
        }
        Ok(())
    }

    fn tell_time(&mut self, now: HybridTime) {
        self.now = self.now.max(now);
        let now = self.now;
        self.keys.forget(now);
    }

    /// The lower median, so that no minority of fast clocks moves it.
    fn median_stamp(&self) -> HybridTime {
        let mut stamps: Vec<_> = self.nodes.values().map(|n| n.newest_stamp).collect();
        stamps.sort_unstable();
        stamps.get(stamps.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }
}

impl Work<'_> {
    fn all(&mut self, commands: &[Command]) -> Result<Vec<Reply>, Refusal> {
        let mut replies = Vec::with_capacity(commands.len());
        for (index, command) in commands.iter().enumerate() {
            let reply = self.once(command).map_err(|refusal| match commands.len() {
                1 => refusal,
                _ => {
                    Refusal::new(refusal.code, format!("command {}: {}; nothing was done", index + 1, refusal.sentence))
                }
            })?;
            replies.push(reply);
        }
        Ok(replies)
    }

    /// A command, unless its key says that it was done before.
    fn once(&mut self, command: &Command) -> Result<Reply, Refusal> {
        let Some(key) = self.key_of(command) else { return self.one(command) };
        let user = self.user().to_owned();
        if let Some(reply) = self.state.keys.answer(&user, key, command)? {
            return Ok(reply);
        }
        let reply = self.one(command)?;
        let now = self.state.now;
        self.state.keys.keep(&user, key, command, reply.clone(), now);
        Ok(reply)
    }

    fn one(&mut self, command: &Command) -> Result<Reply, Refusal> {
        match command {
            Command::Init { cluster, node, admin, admin_uid } => self.init(cluster, node, admin, *admin_uid),
            Command::NodeUp { host_boot, hypervisor, memory_bytes, cpus } => {
                self.agent_only()?;
                self.node_up(host_boot, hypervisor, *memory_bytes, *cpus)
            }
            Command::NodeDown => {
                self.agent_only()?;
                self.change_node(What::Down, |node| node.up = false)
            }
            Command::Barrier => Ok(Reply::Done),
            Command::VmNew { name, spec, .. } => {
                self.allowed(None, Operation::Create, "vms/new")?;
                let owner = self.user().to_owned();
                self.vm_new(name.as_deref(), spec, &owner)
            }
            Command::Vm { vm, verb, conditions } => self.vm_verb(*vm, verb, conditions),
            Command::VmReport { vm, generation, report } => {
                self.agent_only()?;
                self.vm_report(*vm, *generation, report)
            }
            Command::ImageRegister { name, size_bytes, sha256 } => {
                self.agent_or_admin("images")?;
                self.image_register(name, *size_bytes, sha256)
            }
            Command::ImageForget { name } => {
                self.agent_or_admin("images")?;
                self.image_forget(name)
            }
            Command::PoolNew { name, network, gateway, reserved } => {
                self.allowed(None, Operation::Administer, "ipam/new")?;
                let now = self.state.now;
                let id = self.state.ipam.new_pool(name, *network, *gateway, reserved, now, self.seq)?;
                self.event(Subject::Pool(name.as_str().into()), What::Created);
                Ok(Reply::Created(id))
            }
            Command::PoolDelete { name } => {
                self.allowed(None, Operation::Administer, &format!("ipam/{name}"))?;
                self.state.ipam.delete_pool(name)?;
                self.event(Subject::Pool(name.as_str().into()), What::Removed);
                Ok(Reply::Done)
            }
            Command::UserSet { name, role, uid } => {
                self.allowed(None, Operation::Administer, &format!("users/{name}"))?;
                self.user_set(name, *role, *uid)
            }
        }
    }

    /// Who is behind the entry.
    pub(super) fn user(&self) -> &str {
        match self.by {
            By::User(name) => name,
            By::Agent => NOBODY,
        }
    }

    pub(super) fn allowed(&self, owner: Option<&str>, operation: Operation, what: &str) -> Result<(), Refusal> {
        let user = self.user();
        if self.state.may(user, owner, operation) {
            return Ok(());
        }
        let role = self.state.user_named(user).map_or("no role".to_owned(), |u| format!("the role {}", u.role));
        Err(Refusal::denied(format!("no permission for {what}: user '{user}' has {role}")))
    }

    fn agent_only(&self) -> Result<(), Refusal> {
        if *self.by == By::Agent { Ok(()) } else { Err(Refusal::denied("no permission: only a node's agent reports")) }
    }

    fn agent_or_admin(&self, what: &str) -> Result<(), Refusal> {
        if *self.by == By::Agent { Ok(()) } else { self.allowed(None, Operation::Administer, what) }
    }

    pub(super) fn event(&mut self, subject: Subject, what: What) {
        self.events.push(Event { seq: self.seq, at: self.state.now, subject, what });
    }

    fn init(&mut self, cluster: &str, node: &str, admin: &str, admin_uid: u32) -> Result<Reply, Refusal> {
        if let Some(cluster) = self.state.cluster() {
            return Err(Refusal::exists(format!("the cluster '{cluster}' exists already")));
        }
        if self.node != NodeId(1) {
            return Err(Refusal::invalid("invalid entry: the first node of a cluster is number 1"));
        }
        name::check(cluster)?;
        name::check(node)?;
        self.state.cluster = Some(cluster.to_owned());
        let now = self.state.now;
        self.state.nodes.insert(
            NodeId(1),
            Node {
                id: NodeId(1),
                name: node.to_owned(),
                up: false,
                host_boot: String::new(),
                hypervisor: String::new(),
                memory_bytes: 0,
                cpus: 0,
                newest_stamp: now,
                version: 1,
                changed: now,
                changed_seq: self.seq,
            },
        );
        self.user_set(admin, Role::Admin, Some(admin_uid))?;
        let network = DEFAULT_NETWORK.parse().map_err(|e| Refusal::fault(format!("the default network: {e}")))?;
        self.state.ipam.new_pool(DEFAULT_POOL, network, None, &[], now, self.seq)?;
        self.event(Subject::Cluster, What::Created);
        Ok(Reply::Created(1))
    }

    fn change_node(&mut self, what: What, change: impl FnOnce(&mut Node)) -> Result<Reply, Refusal> {
        let (id, now, seq) = (self.node, self.state.now, self.seq);
        let Some(node) = self.state.nodes.get_mut(&id) else {
            return Err(Refusal::not_found(format!("node {id} was not found")));
        };
        change(node);
        node.version += 1;
        (node.changed, node.changed_seq) = (now, seq);
        self.event(Subject::Node(id), what);
        Ok(Reply::Done)
    }

    fn node_up(&mut self, host_boot: &str, hypervisor: &str, memory_bytes: u64, cpus: u32) -> Result<Reply, Refusal> {
        let before = self.state.node(self.node).map(|n| n.host_boot.clone()).unwrap_or_default();
        let reply = self.change_node(What::Up, |node| {
            node.up = true;
            host_boot.clone_into(&mut node.host_boot);
            hypervisor.clone_into(&mut node.hypervisor);
            (node.memory_bytes, node.cpus) = (memory_bytes, cpus);
        })?;
        if before != host_boot && !before.is_empty() {
            self.host_rebooted(self.node);
        }
        Ok(reply)
    }

    fn image_register(&mut self, called: &str, size_bytes: u64, sha256: &str) -> Result<Reply, Refusal> {
        name::check(called)?;
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Refusal::invalid("invalid sha256: it has 64 hexadecimal digits"));
        }
        let known = self.state.images.get(called).cloned();
        if known.as_ref().is_some_and(|i| i.size_bytes == size_bytes && i.sha256 == sha256) {
            return Ok(Reply::Unchanged);
        }
        if known.is_none() && self.state.images.len() >= IMAGES_MAX {
            return Err(Refusal::no_space(format!("no capacity: {IMAGES_MAX} images are the most")));
        }
        let id = known.as_ref().map_or(ImageId(self.state.last_image + 1), |i| i.id);
        self.state.last_image = self.state.last_image.max(id.0);
        let now = self.state.now;
        let image = Image {
            id,
            name: called.to_owned(),
            size_bytes,
            sha256: sha256.to_owned(),
            created: known.as_ref().map_or(now, |i| i.created),
            changed: now,
            changed_seq: self.seq,
        };
        self.state.images.insert(called.to_owned(), image);
        self.event(Subject::Image(called.into()), if known.is_some() { What::Set } else { What::Created });
        Ok(Reply::Created(id.0))
    }

    fn image_forget(&mut self, called: &str) -> Result<Reply, Refusal> {
        if self.state.images.get(called).is_none() {
            return Err(Refusal::not_found(format!("image '{called}' was not found")));
        }
        if let Some(user) = self.state.vms.values().find(|vm| vm.spec.image == called) {
            return Err(Refusal::new(Code::Busy, format!("image '{called}' is busy: vm {} uses it", user.id)));
        }
        self.state.images.remove(called);
        self.event(Subject::Image(called.into()), What::Removed);
        Ok(Reply::Done)
    }

    fn user_set(&mut self, called: &str, role: Role, uid: Option<u32>) -> Result<Reply, Refusal> {
        name::check(called)?;
        if called == NOBODY {
            return Err(Refusal::invalid(format!(
                "invalid name '{NOBODY}': it stands for whoever the cluster doesn't know"
            )));
        }
        if let Some(other) = uid.and_then(|uid| self.state.user_with_uid(uid)).filter(|u| u.name != called) {
            return Err(Refusal::exists(format!("the uid exists already: it is user '{}'s", other.name)));
        }
        let known = self.state.users.get(called).cloned();
        if known.as_ref().is_some_and(|u| u.role == role && u.uid == uid) {
            return Ok(Reply::Unchanged);
        }
        let admins = self.state.users.values().filter(|u| u.role == Role::Admin && u.name != called).count();
        if known.as_ref().is_some_and(|u| u.role == Role::Admin) && role != Role::Admin && admins == 0 {
            return Err(Refusal::busy(format!("user '{called}' is busy being the last admin: make another one first")));
        }
        if known.is_none() && self.state.users.len() >= USERS_MAX {
            return Err(Refusal::no_space(format!("no capacity: {USERS_MAX} users are the most")));
        }
        let id = known.as_ref().map_or(UserId(self.state.last_user + 1), |u| u.id);
        self.state.last_user = self.state.last_user.max(id.0);
        let user = User { id, name: called.to_owned(), role, uid, changed: self.state.now, changed_seq: self.seq };
        self.state.users.insert(called.to_owned(), user);
        self.event(Subject::User(called.into()), if known.is_some() { What::Set } else { What::Created });
        Ok(Reply::Created(id.0))
    }
}
