//! `/vms`: the virtual machines.

use super::table::{Asked, Content, File, Kind, Maker, Object};
use super::verbs::{Act, Attributes, Verb};
use super::{console, events, stats, streams, vm_attrs, vm_text};
use crate::engine::state::{Command, Conditions, Kind as Entity, Operation, VmId, VmVerb};
use crate::text::{Refusal, duration};

static FILES: &[File] = &[
    File { number: 1, name: "new", content: Content::New(&MAKER), help: "write attributes, read the new VM's number" },
    File { number: 2, name: "list", content: Content::Text(vm_text::list), help: "one line a VM" },
    File { number: 3, name: "json", content: Content::Text(vm_text::all_json), help: "all VMs as a JSON array" },
    File {
        number: 4,
        name: "events",
        content: Content::Stream(events::of_vms, Some(Operation::Read)),
        help: "live: one line an event of a VM",
    },
];

static MAKER: Maker = Maker { right: Operation::Create, command: vm_attrs::new, usage: vm_attrs::usage };

static OBJECT_FILES: &[File] = &[
    File { number: 1, name: "ctl", content: Content::Ctl(VERBS), help: "verbs; reading it shows them" },
    File { number: 2, name: "status", content: Content::Text(vm_text::status), help: "key value lines" },
    File { number: 3, name: "state", content: Content::Text(vm_text::state), help: "the actual state, one word" },
    File {
        number: 4,
        name: "spec",
        content: Content::Text(vm_text::spec),
        help: "what was asked for, as `new` takes it",
    },
    File { number: 5, name: "json", content: Content::Text(vm_text::json), help: "spec and status as a JSON object" },
    File {
        number: 6,
        name: "events",
        content: Content::Stream(events::of_vm, Some(Operation::Read)),
        help: "what has happened to it, then live",
    },
    File {
        number: 7,
        name: "wait",
        content: Content::Stream(streams::wait, None),
        help: "blocks until it has settled; then its state",
    },
    File {
        number: 8,
        name: "console",
        content: Content::Stream(console::open, Some(Operation::Control)),
        help: "the serial console: read and write",
    },
    File { number: 9, name: "log", content: Content::Owned(log), help: "the console's past output" },
    File {
        number: 10,
        name: "why",
        content: Content::Live(vm_text::why),
        help: "why it is where it is, or nowhere: what each node has against it",
    },
    File {
        number: 11,
        name: "stats",
        content: Content::Stream(stats::of_vm, None),
        help: "what its machine has used: CPU, memory, disk, network",
    },
];

pub(super) static KIND: Kind = Kind {
    number: 1,
    name: "vms",
    files: FILES,
    object_files: OBJECT_FILES,
    numbered: true,
    find: |state, name| state.vm_named(name).map(|vm| vm.id.0),
    object: |state, id| {
        let vm = state.vm(VmId(id))?;
        Some(Object {
            name: vm.name.clone(),
            owner: Some(vm.owner.clone()),
            changed: vm.changed,
            changed_seq: vm.changed_seq,
        })
    },
    after: |state, after| Box::new(state.vms_after(VmId(after)).map(|vm| (vm.id.0, vm.name.as_deref()))),
    linked_after: |state, after| Box::new(state.named_vms_after(VmId(after)).map(|vm| (vm.id.0, vm.name.as_deref()))),
    entity: Entity::Vm,
    delete: |_, id| {
        let (vm, verb, conditions) = (VmId(id), VmVerb::Delete, Conditions::default());
        Some(Command::Vm { vm, verb, conditions })
    },
};

/// Attributes that every verb takes.
const CONDITIONS: &[&str] = &["version", "id"];

static VERBS: &[Verb] = &[
    Verb {
        name: "start",
        attributes: CONDITIONS,
        help: "let it run",
        act: Act::Command(|a, at| verb(a, at, VmVerb::Start)),
    },
    Verb {
        name: "stop",
        attributes: &["grace", "version", "id"],
        help: "ask the guest to power off; after the grace time it is ended",
        act: Act::Command(stop),
    },
    Verb {
        name: "kill",
        attributes: CONDITIONS,
        help: "end it at once",
        act: Act::Command(|a, at| verb(a, at, VmVerb::Kill)),
    },
    Verb {
        name: "restart",
        attributes: CONDITIONS,
        help: "stop it and start it again",
        act: Act::Command(|a, at| verb(a, at, VmVerb::Restart)),
    },
    Verb {
        name: "pause",
        attributes: CONDITIONS,
        help: "stop its CPUs",
        act: Act::Command(|a, at| verb(a, at, VmVerb::Pause)),
    },
    Verb {
        name: "resume",
        attributes: CONDITIONS,
        help: "let its CPUs run again",
        act: Act::Command(|a, at| verb(a, at, VmVerb::Resume)),
    },
    Verb {
        name: "delete",
        attributes: CONDITIONS,
        help: "remove it with its disk; not while it runs",
        act: Act::Command(|a, at| verb(a, at, VmVerb::Delete)),
    },
    Verb {
        name: "set",
        attributes: vm_attrs::SETTABLE,
        help: "change attributes; image, cpus and memory take effect at the next start",
        act: Act::Command(|asked, attributes| verb(asked, attributes, vm_attrs::set(attributes)?)),
    },
];

fn verb(asked: &Asked<'_>, attributes: &Attributes<'_>, verb: VmVerb) -> Result<Command, Refusal> {
    Ok(Command::Vm { vm: VmId(asked.object), verb, conditions: attributes.conditions()? })
}

fn stop(asked: &Asked<'_>, attributes: &Attributes<'_>) -> Result<Command, Refusal> {
    let grace_ms = attributes.parsed("grace", duration::parse)?;
    let most_ms = *crate::engine::state::spec::GRACE_MS.end();
    if grace_ms.is_some_and(|ms| ms > most_ms) {
        return Err(Refusal::invalid(format!("invalid grace=: {} is the most", duration::print(most_ms))));
    }
    verb(asked, attributes, VmVerb::Stop { grace_ms })
}

fn log(asked: &Asked<'_>) -> Result<String, Refusal> {
    vm_text::vm(asked)?;
    let log = asked.server.host().console_log(VmId(asked.object))?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}
