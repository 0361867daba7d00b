//! What the clients did, and what they were told.

use crate::linear::{Act, OPERATIONS_MAX, Operation, is_linearizable};
use crate::reference::Effect;
use std::collections::BTreeMap;

/// What a client was told of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It took effect.
    Done,
    /// It was so already, or it was asked for before.
    Unchanged,
    /// It took no effect and never will.
    Refused,
    /// Nothing that is certain, or nothing at all.
    Unknown,
}

#[derive(Debug)]
struct Submitted {
    what: String,
    /// It may be written again with its key.
    keyed: bool,
    told: Told,
}

/// See the module.
#[derive(Default)]
pub struct History {
    clock: u64,
    registers: BTreeMap<u64, Vec<Operation>>,
    /// (value, version) that each register began with.
    begun: BTreeMap<u64, (u64, u64)>,
    commands: BTreeMap<u64, Submitted>,
    last_token: u64,
    /// Commands with keys: each token and line of `vms/new`.
    pub again: Vec<(u64, String)>,
    /// Writes that were answered.
    pub answered: u64,
    pub reads: u64,
}

/// Where an operation's end is to be noted.
pub type Begun = (u64, usize);

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A number that no other command has.
    pub fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// An object is used as a register from now on.
    pub fn register(&mut self, register: u64, value: u64, version: u64) {
        self.begun.insert(register, (value, version));
    }

    pub fn registers(&self) -> Vec<u64> {
        self.begun.keys().copied().collect()
    }

    /// Is there room for more of this register's history?
    pub fn has_room(&self, register: u64) -> bool {
        self.registers.get(&register).is_none_or(|history| history.len() < OPERATIONS_MAX)
    }

    /// An operation on a register begins.
    pub fn call(&mut self, register: u64, act: Act) -> Begun {
        let called = self.tick();
        let history = self.registers.entry(register).or_default();
        history.push(Operation { called, returned: None, act });
        (register, history.len() - 1)
    }

    /// It ended, and this is what it was; None: it did nothing, and never will.
    pub fn returned(&mut self, (register, at): Begun, act: Option<Act>) {
        let now = self.tick();
        if let Some(operation) = self.registers.get_mut(&register).and_then(|history| history.get_mut(at)) {
            match act {
                Some(act) => (operation.act, operation.returned) = (act, Some(now)),
                // A swap that is known not to have been done and may always be: no demand on the order.
                None => {
                    (operation.act, operation.called) = (Act::Swap { version: u64::MAX, value: 0, done: None }, now)
                }
            }
        }
    }

    /// A command is written.
    pub fn submit(&mut self, token: u64, what: String, keyed: bool) {
        self.commands.entry(token).or_insert(Submitted { what, keyed, told: Told::Unknown });
    }

    /// What its writer was told. Of one that was written again with its key, that it was done counts most.
    pub fn told(&mut self, token: u64, told: Told) {
        self.answered += u64::from(told != Told::Unknown);
        if let Some(command) = self.commands.get_mut(&token)
            && !(command.keyed && matches!(command.told, Told::Done | Told::Unchanged))
        {
            command.told = told;
        }
    }

    /// What was said and what has happened must be the same; one sentence each for what is not.
    pub fn check(&self, effects: &BTreeMap<u64, Effect>) -> Vec<String> {
        let mut wrong = Vec::new();
        let none = Effect::default();
        for (token, Submitted { what, keyed, told }) in &self.commands {
            let effect = effects.get(token).unwrap_or(&none);
            let times = if *keyed { effect.made.len() } else { effect.entries.len() };
            if times > 1 {
                wrong.push(format!("'{what}' took effect {times} times: {effect:?}"));
            }
            match told {
                Told::Done if effect.entries.is_empty() => wrong.push(format!("'{what}' was acknowledged and is lost")),
                Told::Refused if !effect.entries.is_empty() && !keyed => {
                    wrong.push(format!("'{what}' was refused and took effect: {effect:?}"));
                }
                _ => {}
            }
        }
        for (register, history) in &self.registers {
            let begins = self.begun.get(register).copied().unwrap_or_default();
            if !is_linearizable(begins, history) {
                wrong.push(format!("the history of register {register} is not linearizable: {history:?}"));
            }
        }
        wrong
    }
}
