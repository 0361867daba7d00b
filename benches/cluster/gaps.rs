//! For how long nobody's write succeeds when the leader dies: a write is begun every few milliseconds, each by another client, whether or
//! not the earlier ones have been answered, through a node that stays.

use crate::load::{Client, Peer, Task, within};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The pause between two writes.
const EVERY: Duration = Duration::from_millis(10);
/// Clients: so many writes can be on their way before the first has to be answered.
const CLIENTS: usize = 256;
/// What goes well before the leader is ended.
const BEFORE: Duration = Duration::from_secs(1);
/// So many writes that were begun after the end must have succeeded until it is over.
const AFTER: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of the writes.
#[derive(Default)]
struct Written {
    /// When a write succeeded.
    times: Vec<Instant>,
    ended: Option<Instant>,
    /// How many of those have succeeded that were begun after the end.
    after: usize,
    refused: usize,
}

/// The longest time without a success, and how many were refused meanwhile, when `end` ends the leader.
pub fn gap<P: Peer>(peer: &P, namespace: &str, at: usize, end: impl FnOnce() + Send) -> (Duration, usize) {
    within(namespace, || async {
        let clients = peer.connect(at, Task::Write, CLIENTS).await.unwrap();
        let idle = Rc::new(RefCell::new(VecDeque::from(clients)));
        let written = Rc::new(RefCell::new(Written::default()));
        let begun = Instant::now();
        let mut end = Some(end);
        let mut ticks = tokio::time::interval(EVERY);
        while written.borrow().after < AFTER {
            ticks.tick().await;
            assert!(begun.elapsed() < PATIENCE, "{}: no write succeeds again", peer.name());
            if begun.elapsed() >= BEFORE
                && let Some(end) = end.take()
            {
                written.borrow_mut().ended = Some(Instant::now());
                end();
            }
            // All may be waiting for their answers.
            let Some(mut client) = idle.borrow_mut().pop_front() else { continue };
            let (idle, written) = (idle.clone(), written.clone());
            tokio::task::spawn_local(async move {
                let sent = Instant::now();
                let done = client.operate().await;
                let mut written = written.borrow_mut();
                match done {
                    Ok(()) => {
                        written.times.push(Instant::now());
                        written.after += usize::from(written.ended.is_some_and(|ended| sent > ended));
                    }
                    Err(_) => written.refused += 1,
                }
                idle.borrow_mut().push_back(client);
            });
        }
        let written = written.borrow();
        let last = Instant::now();
        let from = written.ended.unwrap_or(last);
        // The success before the end is the first that counts.
        let before = written.times.iter().copied().filter(|time| *time <= from).max().unwrap_or(from);
        let times: Vec<Instant> =
            std::iter::once(before).chain(written.times.iter().copied().filter(|time| *time > from)).collect();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        (longest, written.refused)
    })
}
