//! Is a history linearizable? Wing and Gong's search with Lowe's memory of what was tried (2017), for one object.
//!
//! The object is a register with a version: each write adds one to it. An operation of unknown outcome may have taken effect at any time
//! after its call, or never.

use std::collections::HashSet;

/// More than any history of one register has.
pub const OPERATIONS_MAX: usize = 128;
/// A search that has tried so many states is given up: nothing is said of that history.
const TRIED_MAX: usize = 2_000_000;

/// What was done, and seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Write(u64),
    /// Only if the version is this. Some(false): it was not.
    Swap {
        version: u64,
        value: u64,
        done: Option<bool>,
    },
    /// It saw (value, version).
    Read(u64, u64),
}

/// An operation and its time, counted in events. `returned` is None if it is not known what became of it.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub called: u64,
    pub returned: Option<u64>,
    pub act: Act,
}

type Register = (u64, u64);

/// The register after the operation; None: it can't have been so.
fn after((value, version): Register, operation: &Operation) -> Option<Register> {
    match operation.act {
        Act::Write(new) => Some((new, version + 1)),
        Act::Swap { version: wanted, value: new, done } => match (wanted == version, done) {
            (true, Some(true) | None) => Some((new, version + 1)),
            (false, Some(false) | None) => Some((value, version)),
            _ => None,
        },
        Act::Read(seen, at) => ((seen, at) == (value, version)).then_some((value, version)),
    }
}

/// Is there an order that explains all of it?
pub fn is_linearizable(begins: Register, history: &[Operation]) -> bool {
    assert!(history.len() <= OPERATIONS_MAX, "a history that is too long is not looked at");
    let certain: u128 = history.iter().enumerate().filter(|(_, op)| op.returned.is_some()).map(|(at, _)| 1 << at).sum();
    let (mut tried, mut stack) = (HashSet::new(), vec![(0_u128, begins)]);
    // Writes of unknown outcome that nobody has seen differ in nothing but when they were called.
    let is_seen = |value: u64| history.iter().any(|op| matches!(op.act, Act::Read(seen, _) if seen == value));
    let unseen: u128 = (0..history.len())
        .filter(|at| {
            history[*at].returned.is_none() && matches!(history[*at].act, Act::Write(value) if !is_seen(value))
        })
        .map(|at| 1 << at)
        .sum();
    while let Some((done, register)) = stack.pop() {
        if done & certain == certain || tried.len() > TRIED_MAX {
            return true;
        }
        let first_unseen = (unseen & !done).trailing_zeros() as usize;
        // Whatever returned before another one was called comes before it.
        let open = |at: &usize| done & (1 << at) == 0;
        let first_return = (0..history.len()).filter(open).filter_map(|at| history[at].returned).min();
        for at in (0..history.len()).filter(open) {
            if first_return.is_some_and(|first| history[at].called > first) {
                continue;
            }
            if unseen & (1 << at) != 0 && at != first_unseen {
                continue;
            }
            if let Some(next) = after(register, &history[at])
                // What may never have been done need not be done without effect.
                && (next != register || history[at].returned.is_some())
                && tried.insert((done | 1 << at, next))
            {
                stack.push((done | 1 << at, next));
            }
        }
    }
    false
}

/// That the checker itself sees what it is to see.
pub fn check_the_checker() -> Result<(), String> {
    let op = |called, returned, act| Operation { called, returned: Some(returned), act };
    let lost = Operation { called: 1, returned: None, act: Act::Write(7) };
    let good: &[&[Operation]] = &[
        &[op(1, 4, Act::Write(5)), op(2, 3, Act::Read(0, 0)), op(5, 6, Act::Read(5, 1))],
        &[lost, op(2, 3, Act::Read(0, 0)), op(4, 5, Act::Read(7, 1))],
        &[lost, op(2, 3, Act::Read(0, 0)), op(4, 5, Act::Read(0, 0))],
        &[op(1, 2, Act::Swap { version: 0, value: 3, done: Some(true) }), op(3, 4, Act::Read(3, 1))],
    ];
    let bad: &[&[Operation]] = &[
        &[op(1, 2, Act::Write(5)), op(3, 4, Act::Read(0, 0))],
        &[lost, op(2, 3, Act::Read(7, 1)), op(4, 5, Act::Read(0, 0))],
        &[op(1, 2, Act::Write(5)), op(3, 4, Act::Swap { version: 0, value: 3, done: Some(true) })],
        &[op(1, 2, Act::Write(5)), op(3, 4, Act::Read(5, 2))],
    ];
    for (histories, wanted) in [(good, true), (bad, false)] {
        for history in histories {
            if is_linearizable((0, 0), history) != wanted {
                return Err(format!("the checker says the wrong thing of {history:?}"));
            }
        }
    }
    Ok(())
}
