//! Clients: random work on files, and a record of what they were told.

use crate::history::{Begun, Told};
use crate::linear::Act;
use crate::tree::Client;
use crate::wishes;
use crate::world::World;
use blixard::text::{Code, Refusal, duration};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Machines beside the registers, at most: more make runs slower, not better.
const MACHINES_MAX: usize = 8;

/// One client.
pub struct Worker {
    pub world: Arc<World>,
    pub node: usize,
    pub tree: Client,
    /// The newest version of each register that it has seen.
    pub seen: BTreeMap<u64, u64>,
}

/// What the answer to a write says of it.
fn told(answer: &Result<(), Refusal>, certain: Told) -> Told {
    match answer {
        Ok(()) => certain,
        Err(refusal) if refusal.code == Code::TimedOut => Told::Unknown,
        Err(_) => Told::Refused,
    }
}

impl Worker {
    /// Until its node ends.
    pub async fn work(mut self) {
        loop {
            let pause = self.world.random().between(5, 330);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if !self.world.busy.load(Ordering::Relaxed) {
                continue;
            }
            let choice = self.world.random().below(100);
            match choice {
                0..20 => self.write_register(false).await,
                20..32 => self.write_register(true).await,
                32..52 => self.read_register(true).await,
                52..60 => self.read_register(false).await,
                60..70 => self.new_machine().await,
                70..74 => self.write_again().await,
                74..93 => self.tell_machine().await,
                93..98 => self.tell_node().await,
                _ => drop(self.tree.read("vms/list").await),
            }
        }
    }

    fn register(&self) -> Option<u64> {
        let registers = self.world.history().registers();
        let register = self.world.random().pick(&registers).copied()?;
        self.world.history().has_room(register).then_some(register)
    }

    /// Sets the value; `only_if`: only if nobody else has meanwhile.
    async fn write_register(&mut self, only_if: bool) {
        let Some(register) = self.register() else { return };
        let version = self.seen.get(&register).copied().filter(|_| only_if);
        let value = self.world.history().token();
        let act = match version {
            Some(version) => Act::Swap { version, value, done: None },
            None => Act::Write(value),
        };
        let condition = version.map(|version| format!(" version={version}")).unwrap_or_default();
        let text = format!("set grace={value}ms{condition}");
        self.world.history().submit(value, format!("vms/{register} {text}"), false);
        let begun = self.world.history().call(register, act);
        let answer = self.tree.write(&format!("vms/{register}/ctl"), &text).await;
        self.write_returned(value, begun, act, &answer);
        // The tree that took a write shows it.
        let before = self.seen.get(&register).copied().unwrap_or(0);
        if let (Ok(()), Ok((_, version))) = (answer, self.look(register).await) {
            self.sees(register, version);
            if version <= before {
                self.world.violation(format!("node {} does not show what was written there: {text}", self.node + 1));
            }
        }
    }

    fn write_returned(&self, value: u64, begun: Begun, act: Act, answer: &Result<(), Refusal>) {
        let mut history = self.world.history();
        history.told(value, told(answer, Told::Done));
        let ended = |is_done| match act {
            Act::Swap { version, value, .. } => Act::Swap { version, value, done: Some(is_done) },
            plain => plain,
        };
        match answer {
            Ok(()) => history.returned(begun, Some(ended(true))),
            Err(refusal) if refusal.code == Code::TimedOut => {}
            Err(refusal) if refusal.code == Code::Stale => history.returned(begun, Some(ended(false))),
            Err(_) => history.returned(begun, None),
        }
    }

    async fn look(&self, register: u64) -> Result<(u64, u64), Refusal> {
        let status = self.tree.read(&format!("vms/{register}/status")).await?;
        let field = |key: &str| {
            let mut lines = status.lines();
            let found = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            found.map(str::to_owned).ok_or_else(|| Refusal::fault(format!("a status has no {key}: {status}")))
        };
        let version = field("version")?.parse().map_err(|_| Refusal::fault("a version is a number"))?;
        Ok((duration::parse(&field("grace")?)?, version))
    }

    /// `sync`: behind a barrier, and so part of the history. Else it is only seen whether what one tree shows goes back.
    async fn read_register(&mut self, sync: bool) {
        let Some(register) = self.register() else { return };
        if !sync {
            if let Ok((_, version)) = self.look(register).await {
                self.sees(register, version);
            }
            return;
        }
        let begun = self.world.history().call(register, Act::Read(0, 0));
        let seen = match self.tree.sync().await {
            Ok(_) => self.look(register).await,
            Err(refusal) => Err(refusal),
        };
        let mut history = self.world.history();
        history.reads += u64::from(seen.is_ok());
        history.returned(begun, seen.as_ref().ok().map(|(value, version)| Act::Read(*value, *version)));
        drop(history);
        if let Ok((_, version)) = seen {
            self.sees(register, version);
        }
    }

    fn sees(&mut self, register: u64, version: u64) {
        let newest = self.seen.entry(register).or_default();
        if version < *newest {
            let node = self.node + 1;
            self.world
                .violation(format!("node {node} shows version {version} of vm {register} after version {newest}"));
        }
        *newest = version.max(*newest);
    }

    async fn new_machine(&mut self) {
        let there = self.world.reference().state.vms().len();
        if there >= MACHINES_MAX + self.world.history().registers().len() {
            return;
        }
        let token = self.world.history().token();
        let (keyed, restart, ha) = {
            let mut random = self.world.random();
            let restarts = ["never", "on-failure", "always"];
            let ha = if random.percent(60) { "restart" } else { "stay" };
            (random.percent(40), random.pick(&restarts).copied().unwrap_or_default(), ha)
        };
        let key = if keyed { format!(" id=k{token}") } else { String::new() };
        let disk = if self.world.random().percent(25) { " disk=1M" } else { "" };
        let (memory, wishes) = {
            let nodes: Vec<String> = (0..self.world.nodes).map(|index| self.world.name_of(index)).collect();
            let mut random = self.world.random();
            (wishes::memory(&mut random), wishes::of_new(&mut random, &nodes))
        };
        let text = format!("image=tiny memory={memory} restart={restart} ha={ha}{disk}{wishes} grace={token}ms{key}");
        self.world.history().submit(token, format!("vms/new {text}"), keyed);
        let answer = self.tree.ask("vms/new", &text).await.map(drop);
        let told = told(&answer, Told::Done);
        let mut history = self.world.history();
        history.told(token, told);
        if keyed && told != Told::Refused {
            history.again.push((token, text));
        }
    }

    /// What has a key is written once more, by whoever comes along, on whatever node: so it is done once, if it was not.
    async fn write_again(&mut self) {
        let last = self.world.history().again.pop();
        let Some((token, text)) = last else { return };
        let answer = self.tree.ask("vms/new", &text).await.map(drop);
        let told = told(&answer, Told::Done);
        // That it is not done now says nothing of the first time.
        self.world.history().told(token, if told == Told::Refused { Told::Unknown } else { told });
    }

    async fn tell_machine(&mut self) {
        let registers = self.world.history().registers();
        let machines: Vec<u64> = {
            let reference = self.world.reference();
            reference.state.vms().map(|vm| vm.id.0).filter(|id| !registers.contains(id)).collect()
        };
        let (machine, verb) = {
            let mut random = self.world.random();
            let Some(machine) = random.pick(&machines).copied() else { return };
            let verbs = ["start", "start", "start", "stop", "kill", "restart", "pause", "resume", "delete", "set"];
            match random.pick(&verbs).copied().unwrap_or_default() {
                "set" => (machine, wishes::of_machine(&mut random)),
                verb => (machine, verb.to_owned()),
            }
        };
        let token = self.world.history().token();
        self.world.history().submit(token, format!("vms/{machine} {verb}"), true);
        let answer = self.tree.write(&format!("vms/{machine}/ctl"), &format!("{verb} id=k{token}")).await;
        self.world.history().told(token, told(&answer, Told::Unchanged));
    }

    /// Nodes are emptied, and filled again.
    async fn tell_node(&mut self) {
        let (node, verb) = {
            let mut random = self.world.random();
            let verbs =
                ["drain", "drain", "cordon", "undrain", "undrain", "demote", "promote", "promote", "set", "set", "set"];
            let node = self.world.name_of(random.index(self.world.nodes));
            match random.pick(&verbs).copied().unwrap_or_default() {
                "set" => (node, wishes::of_node(&mut random)),
                verb => (node, verb.to_owned()),
            }
        };
        let _ = self.tree.write(&format!("nodes/{node}/ctl"), &verb).await;
    }
}
