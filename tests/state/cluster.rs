//! A state with a clock and a counter of entries, to be driven command by command.

use blixard::clock::HybridTime;
use blixard::engine::state::{
    By, Command, Conditions, Entry, EntryId, Event, NodeId, NodeVerb, Outcome, Reply, Role, State, Vm, VmId, VmReport,
    VmSpec, VmVerb,
};
use blixard::text::{Code, Refusal};

pub const NODE: NodeId = NodeId(1);
pub const NODE_MEMORY_BYTES: u64 = 4 << 30;
/// 2026-01-01.
pub const BEGIN_MS: u64 = 1_767_225_600_000;

#[derive(Clone)]
pub struct Cluster {
    pub state: State,
    pub log: Vec<Entry>,
    pub events: Vec<Event>,
    pub now_ms: u64,
    n: u64,
}

pub fn user(name: &str) -> By {
    By::User(name.to_owned())
}

pub fn spec() -> VmSpec {
    VmSpec { memory_bytes: 256 << 20, ..VmSpec::default() }
}

pub fn new_vm(name: Option<&str>, spec: VmSpec) -> Command {
    Command::VmNew { name: name.map(str::to_owned), spec, key: None }
}

pub fn verb(vm: u64, verb: VmVerb) -> Command {
    Command::Vm { vm: VmId(vm), verb, conditions: Conditions::default() }
}

pub fn node_up(host_boot: &str) -> Command {
    Command::NodeUp {
        host_boot: host_boot.to_owned(),
        hypervisor: "simulated".to_owned(),
        memory_bytes: NODE_MEMORY_BYTES,
        cpus: 4,
        vcpus_max: None,
        arch: "x86_64".to_owned(),
        disk_bytes: 0,
    }
}

pub fn node_verb(node: u64, verb: NodeVerb) -> Command {
    Command::Node { node: NodeId(node), verb, conditions: Conditions::default() }
}

pub fn image(name: &str) -> Command {
    Command::ImageRegister { name: name.to_owned(), size_bytes: 1, sha256: "0".repeat(64) }
}

impl Cluster {
    /// Nothing yet.
    pub fn empty() -> Cluster {
        Cluster { state: State::new(), log: Vec::new(), events: Vec::new(), now_ms: BEGIN_MS, n: 0 }
    }

    /// One node that is up, the image `tiny`, the admin root, the operators ann and bob, the viewer eve.
    pub fn new() -> Cluster {
        let mut cluster = Cluster::empty();
        let text = str::to_owned;
        let init = Command::Init { cluster: text("c"), node: text("alpha"), admin: text("root"), admin_uid: 0 };
        cluster.done(By::Agent, init);
        cluster.done(By::Agent, node_up("boot-1"));
        cluster.done(By::Agent, image("tiny"));
        for (name, role, uid) in [("ann", Role::Operator, 1), ("bob", Role::Operator, 2), ("eve", Role::Viewer, 3)] {
            cluster.done(user("root"), Command::UserSet { name: text(name), role, uid: Some(uid) });
        }
        cluster
    }

    /// The next entry, not applied.
    pub fn entry(&mut self, by: By, commands: Vec<Command>) -> Entry {
        self.n += 1;
        let id = EntryId { node: NODE, boot: 1, n: self.n };
        Entry { id, at: HybridTime::from_millis(self.now_ms), by, commands }
    }

    pub fn apply(&mut self, entry: Entry) -> Outcome {
        let (next, outcome, events) = self.state.apply(self.state.seq() + 1, &entry);
        assert_eq!(next.check(), Ok(()), "after {entry:?}");
        self.state = next;
        self.events.extend(events);
        self.log.push(entry);
        outcome
    }

    pub fn all(&mut self, by: By, commands: Vec<Command>) -> Outcome {
        let entry = self.entry(by, commands);
        self.apply(entry)
    }

    pub fn one(&mut self, by: By, command: Command) -> Result<Reply, Refusal> {
        self.all(by, vec![command]).map(|replies| {
            assert_eq!(replies.len(), 1);
            replies[0].clone()
        })
    }

    pub fn done(&mut self, by: By, command: Command) -> Reply {
        let shown = format!("{command}");
        self.one(by, command).unwrap_or_else(|refusal| panic!("{shown}: {refusal}"))
    }

    pub fn refused(&mut self, by: By, command: Command) -> (Code, String) {
        let shown = format!("{command}");
        match self.one(by, command) {
            Err(refusal) => (refusal.code, refusal.sentence),
            Ok(reply) => panic!("{shown}: {reply:?}"),
        }
    }

    /// A VM of root's, and its number.
    pub fn vm(&mut self, spec: VmSpec) -> u64 {
        match self.done(user("root"), new_vm(None, spec)) {
            Reply::Created(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn verb(&mut self, vm: u64, what: VmVerb) -> Result<Reply, Refusal> {
        self.one(user("root"), verb(vm, what))
    }

    /// A report about the current generation.
    pub fn report(&mut self, vm: u64, report: VmReport) -> Result<Reply, Refusal> {
        let generation = self.get(vm).map_or(0, |vm| vm.generation);
        self.one(By::Agent, Command::VmReport { vm: VmId(vm), generation, report })
    }

    pub fn get(&self, vm: u64) -> Option<&Vm> {
        self.state.vm(VmId(vm)).map(|vm| &**vm)
    }

    pub fn is(&self, vm: u64) -> &Vm {
        self.get(vm).unwrap()
    }

    /// A VM that runs.
    pub fn running(&mut self, spec: VmSpec) -> u64 {
        let vm = self.vm(spec);
        self.verb(vm, VmVerb::Start).unwrap();
        self.report(vm, VmReport::Started { pid: 100 }).unwrap();
        vm
    }
}
