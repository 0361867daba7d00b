//! The log that all nodes share, with what hiqlite does and may do to those who use it.
//!
//! Not Raft itself: what it promises, and how it behaves while it keeps that. One order of operations; an operation is committed when
//! whoever leads hears a majority. Requests and answers are lost, late, or come twice. What a leader took and could not commit is dropped, or is
//! committed much later by another. A node lags, is cut off and has old beliefs, installs a snapshot, ends, or loses its store.

mod membership;

use crate::network::Network;
use crate::store::{Op, Store};
use crate::world::World;
use blixard::engine::log::{AppendError, Health, LogError, Publisher, Record, Role, Snapshot};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What is asked of whoever leads.
#[derive(Debug)]
pub enum Question {
    Append(Vec<Bytes>),
    Save(Snapshot),
    Cut(u64),
    Newest,
}

pub type Answer = Result<u64, AppendError>;
/// Where an answer will be, and how long it is waited for, in milliseconds.
pub type Asked = (oneshot::Receiver<Answer>, u64);

/// So many of a hundred appends come twice.
const TWICE: u64 = 2;
/// So many of a hundred appends that a leader could not commit are committed later, by another one.
const LATE: u64 = 50;
/// The latest of them, in milliseconds.
const LATE_MOST_MS: u64 = 40_000;

struct Request {
    from: usize,
    question: Arc<Question>,
    answer: Option<oneshot::Sender<Answer>>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A request arrives at the node.
    Arrive(u64, usize),
    /// The leader of this term may have heard a majority by now.
    Commit(u64, usize, u64),
    /// As [`Event::Commit`]; the leader has made sure that it leads, and this was the newest record before.
    Confirm(u64, usize, u64, u64),
    /// What was given up is committed by whoever leads.
    Late(u64),
}

/// One node, as the log knows it.
#[derive(Default)]
pub struct Member {
    pub joined: bool,
    /// It is counted in majorities, and may lead.
    pub votes: bool,
    /// Its process runs.
    pub alive: bool,
    /// It runs, and is stopped: nothing gets an answer from it.
    pub stopped: bool,
    pub life: u64,
    pub store: Store,
    pub mark: Option<(u64, [u8; 32])>,
    publisher: Option<Publisher>,
    /// Nothing is applied before.
    pub lags_until: u64,
    next_delivery: u64,
    /// Records from this one on are announced, and can't be read before this time.
    unreadable: Option<(u64, u64)>,
    /// Who leads, as far as it knows.
    believes: Option<usize>,
    heard_at: u64,
    /// Its Raft core has ended; only a fresh store helps.
    pub dead: bool,
    /// Its host is gone for good.
    pub doomed: bool,
    /// Its store is gone, and it has no other one yet.
    lost: bool,
}

/// See the module.
pub struct Raft {
    ops: Vec<Arc<Op>>,
    /// The number of the newest committed record.
    newest: u64,
    /// Who has less than this needs a snapshot.
    kept_from: usize,
    retention: usize,
    leader: Option<usize>,
    term: u64,
    /// Since when the leader has heard no majority.
    alone_since: Option<u64>,
    elect_at: u64,
    pub members: Vec<Member>,
    requests: BTreeMap<u64, Request>,
    numbers: u64,
    due: BTreeMap<(u64, u64), Event>,
    pub network: Network,
}

impl Raft {
    pub fn new(nodes: usize, retention: usize) -> Raft {
        let mut raft = Raft {
            ops: Vec::new(),
            newest: 0,
            kept_from: 0,
            retention,
            leader: None,
            term: 0,
            alone_since: None,
            elect_at: 0,
            members: (0..nodes).map(|_| Member::default()).collect(),
            requests: BTreeMap::new(),
            numbers: 0,
            due: BTreeMap::new(),
            network: Network::default(),
        };
        raft.network.heal();
        raft
    }

    pub fn leader(&self) -> Option<usize> {
        self.leader
    }

    /// The process of a node begins: what it will see of what is committed goes there.
    pub fn begin(&mut self, node: usize, life: u64, publisher: Publisher) -> Option<(u64, [u8; 32])> {
        let member = &mut self.members[node];
        (member.alive, member.stopped, member.life, member.believes) = (true, false, life, None);
        // What was committed shortly before is replayed: it comes again.
        for record in member.store.records.iter().rev().take(3).rev() {
            publisher.publish(record.clone());
        }
        member.publisher = Some(publisher);
        member.mark
    }

    pub fn end(&mut self, node: usize) {
        let member = &mut self.members[node];
        (member.alive, member.stopped, member.publisher, member.unreadable) = (false, false, None, None);
    }

    /// The node's store is gone.
    pub fn forget(&mut self, node: usize) {
        let member = &mut self.members[node];
        (member.store, member.mark, member.dead, member.lost) = (Store::default(), None, false, true);
    }

    /// A node whose store is not there gets a whole one from whoever leads. False: it can't be had now.
    pub fn is_provided(&mut self, node: usize) -> bool {
        if !self.members[node].lost {
            return true;
        }
        let Some(leader) = self.leader.filter(|leader| self.network.both(*leader, node)) else { return false };
        let store = self.members[leader].store.clone();
        (self.members[node].store, self.members[node].lost) = (store, false);
        true
    }

    fn is_up(&self, node: usize) -> bool {
        let member = &self.members[node];
        member.joined && member.alive && !member.stopped && !member.dead
    }

    fn has_majority(&self, node: usize) -> bool {
        let hears = |other: &usize| self.members[*other].votes && self.is_up(*other) && self.network.both(node, *other);
        self.is_up(node) && 2 * (0..self.members.len()).filter(hears).count() > self.voters()
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.numbers += 1;
        self.due.insert((at, self.numbers), event);
    }

    /// Sends a question to whoever leads, as far as the node knows.
    pub fn ask(
        &mut self,
        world: &World,
        node: usize,
        life: u64,
        question: &Arc<Question>,
    ) -> Result<Asked, AppendError> {
        let (now, mut random) = (world.now(), world.random());
        let member = &self.members[node];
        if member.life != life || member.dead {
            return Err(AppendError::Fatal("its core has ended".to_owned()));
        }
        let Some(leader) = member.believes else {
            return Err(AppendError::NotDone("no quorum: there is no leader".to_owned()));
        };
        let (sender, receiver) = oneshot::channel();
        self.numbers += 1;
        let number = self.numbers;
        self.requests.insert(number, Request { from: node, question: question.clone(), answer: Some(sender) });
        let twice = matches!(**question, Question::Append(_)) && random.percent(TWICE);
        for _ in 0..1 + u64::from(twice) {
            if let Some(delay) = self.network.carry(node, leader, &mut random) {
                self.schedule(now + delay, Event::Arrive(number, leader));
            }
        }
        Ok((receiver, random.between(1_000, 5_000)))
    }

    /// The answer travels back, if it can.
    fn answer(&mut self, world: &World, number: u64, from: usize, answer: Answer) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        let arrives = self.network.carry(from, request.from, &mut world.random()).is_some();
        if let Some(sender) = request.answer.take_if(|_| arrives) {
            let _gone = sender.send(answer);
        }
    }

    /// What is due happens: messages, elections, deliveries.
    pub fn step(&mut self, world: &World) {
        let now = world.now();
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            self.happen(world, event);
        }
        self.elect(world);
        for node in 0..self.members.len() {
            self.hear(world, node);
            self.deliver(world, node);
        }
        let needed = self.ops.len().saturating_sub(self.retention);
        self.kept_from = self.kept_from.max(needed);
    }

    fn happen(&mut self, world: &World, event: Event) {
        let now = world.now();
        match event {
            Event::Arrive(number, at) => self.arrive(world, number, at),
            Event::Commit(number, leader, term) => {
                if self.leader == Some(leader) && self.term == term && self.has_majority(leader) {
                    self.commit(world, number);
                    self.answer(world, number, leader, Ok(0));
                } else {
                    self.give_up(world, number);
                }
            }
            Event::Confirm(number, leader, term, newest) => {
                if self.leader == Some(leader) && self.term == term && self.has_majority(leader) {
                    self.answer(world, number, leader, Ok(newest));
                }
            }
            Event::Late(number) => match self.leader {
                Some(leader) if self.has_majority(leader) => {
                    world.note(format_args!("late commit of request {number}"));
                    self.commit(world, number);
                }
                _ => self.schedule(now + 1_000, Event::Late(number)),
            },
        }
    }

    fn arrive(&mut self, world: &World, number: u64, at: usize) {
        let now = world.now();
        let Some(request) = self.requests.get(&number) else { return };
        let (question, member) = (request.question.clone(), &self.members[at]);
        if member.alive && member.stopped {
            return self.schedule(now + 50, Event::Arrive(number, at));
        }
        if !self.is_up(at) || (self.leader != Some(at) && member.believes != Some(at)) {
            let says = self.is_up(at) || world.random().percent(50);
            if says {
                self.answer(world, number, at, Err(AppendError::NotDone("this node does not lead".to_owned())));
            }
            return;
        }
        let later = now + world.random().between(1, 12);
        let leads = self.leader == Some(at);
        match &*question {
            // One that was deposed and has not heard of it: nobody confirms.
            Question::Newest if leads => {
                let newest = self.newest;
                self.schedule(later, Event::Confirm(number, at, self.term, newest));
            }
            Question::Newest => {}
            _ if leads => self.schedule(later, Event::Commit(number, at, self.term)),
            _ => self.give_up(world, number),
        }
    }

    /// A leader has taken it, and could not commit it.
    fn give_up(&mut self, world: &World, number: u64) {
        let mut random = world.random();
        let later = random.percent(LATE).then(|| random.between(200, LATE_MOST_MS));
        drop(random);
        match later {
            Some(later) => self.schedule(world.now() + later, Event::Late(number)),
            None => drop(self.requests.remove(&number)),
        }
    }

    fn commit(&mut self, world: &World, number: u64) {
        let Some(request) = self.requests.get(&number) else { return };
        let op = match &*request.question {
            Question::Append(records) => Op::Records(records.clone()),
            Question::Save(snapshot) => Op::Save(snapshot.clone()),
            Question::Cut(upto) => Op::Cut(*upto),
            Question::Newest => return,
        };
        if let Op::Records(records) = &op {
            self.newest += records.len() as u64;
            world.reference().committed(world, records);
        }
        self.ops.push(Arc::new(op));
        // The leader's own copy has it before it answers.
        if let Some(leader) = self.leader {
            self.deliver_all(world, leader);
        }
    }

    fn elect(&mut self, world: &World) {
        let now = world.now();
        if let Some(leader) = self.leader {
            if self.has_majority(leader) {
                self.alone_since = None;
                return;
            }
            let since = *self.alone_since.get_or_insert(now);
            // One that has died is missed sooner than one that is cut off steps down.
            if now < since + 300 {
                return;
            }
            (self.leader, self.alone_since) = (None, None);
            self.elect_at = now + world.random().between(100, 1_500);
        }
        if now < self.elect_at {
            return;
        }
        let able = |node: &usize| self.members[*node].votes && self.has_majority(*node);
        let mut able: Vec<usize> = (0..self.members.len()).filter(able).collect();
        world.random().shuffle(&mut able);
        let Some(next) = able.first().copied() else { return };
        self.lead(world, next);
    }

    /// From now on this one leads.
    fn lead(&mut self, world: &World, next: usize) {
        (self.leader, self.alone_since) = (Some(next), None);
        self.term += 1;
        world.note(format_args!("node {} leads in term {}", next + 1, self.term));
        self.deliver_all(world, next);
    }

    /// Another one leads, though nothing was wrong with the last.
    pub fn change_leader(&mut self, world: &World) {
        self.leader = None;
        self.elect_at = world.now() + world.random().between(0, 800);
    }

    /// Who leads, as far as this node hears.
    fn hear(&mut self, world: &World, node: usize) {
        if !self.is_up(node) {
            return;
        }
        let now = world.now();
        let heard = self.leader.filter(|leader| self.is_up(*leader) && self.network.both(*leader, node));
        let member = &mut self.members[node];
        match heard {
            Some(leader) => (member.believes, member.heard_at) = (Some(leader), now),
            // Who led goes on believing it; the others find out that they hear nobody.
            None if member.believes != Some(node) && now > member.heard_at + 1_000 => member.believes = None,
            None => {}
        }
    }

    fn deliver(&mut self, world: &World, node: usize) {
        let now = world.now();
        let Some(leader) = self.leader else { return };
        let member = &self.members[node];
        let waits = now < member.lags_until.max(member.next_delivery);
        if node == leader || waits || !self.is_up(node) || !self.network.both(leader, node) {
            return;
        }
        if member.store.applied >= self.ops.len() {
            return;
        }
        let mut random = world.random();
        let (most, pause) = (random.between(1, 64) as usize, random.below(self.network.delay_most_ms + 1));
        let survives = random.percent(60);
        drop(random);
        if member.store.applied < self.kept_from {
            let survives = survives || !self.can_spare(node);
            return self.install(world, node, leader, survives);
        }
        self.members[node].next_delivery = now + pause;
        self.deliver_some(world, node, most);
    }

    /// It was away for too long: it gets the leader's store whole, and is told of no record of that. Its Raft core may not survive it.
    fn install(&mut self, world: &World, node: usize, leader: usize, survives: bool) {
        let store = self.members[leader].store.clone();
        let member = &mut self.members[node];
        (member.store, member.dead) = (store, !survives);
        world.fault(format_args!(
            "node {} installs a snapshot, and {}",
            node + 1,
            if survives { "goes on" } else { "ends" }
        ));
    }

    fn deliver_all(&mut self, world: &World, node: usize) {
        self.deliver_some(world, node, usize::MAX);
    }

    fn deliver_some(&mut self, world: &World, node: usize, most: usize) {
        let member = &mut self.members[node];
        let ops: Vec<Arc<Op>> = self.ops.iter().skip(member.store.applied).take(most).cloned().collect();
        for op in ops {
            let records = member.store.apply(&op);
            let Some(first) = records.first() else { continue };
            if world.random().percent(10) {
                member.unreadable = Some((first.seq, world.now() + world.random().below(40)));
            }
            for record in records {
                if let Some(publisher) = &member.publisher {
                    publisher.publish(record);
                }
            }
        }
    }

    pub fn read(&self, node: usize, now: u64, after: u64, max: usize) -> Result<Vec<Record>, LogError> {
        let Member { store, unreadable, .. } = &self.members[node];
        if after < store.cut {
            return Err(LogError::Failed(format!("records up to {} have been cut", store.cut)));
        }
        let readable = |record: &&Record| unreadable.is_none_or(|(from, until)| record.seq < from || now >= until);
        let skip = usize::try_from(after - store.cut).unwrap_or(usize::MAX);
        Ok(store.records.iter().skip(skip).take(max).take_while(readable).cloned().collect())
    }

    pub fn snapshot(&self, node: usize) -> Option<Snapshot> {
        self.members[node].store.snapshots.last().cloned()
    }

    pub fn set_mark(&mut self, node: usize, life: u64, mark: (u64, [u8; 32])) {
        let member = &mut self.members[node];
        if member.life == life && member.alive {
            member.mark = Some(mark);
        }
    }

    pub fn health(&self, node: usize) -> Health {
        let member = &self.members[node];
        let role = match member.believes {
            Some(leader) if leader == node => Role::Leader,
            Some(_) => Role::Follower,
            None => Role::Candidate,
        };
        let quorum = if role == Role::Leader { self.has_majority(node) } else { member.believes.is_some() };
        Health {
            role,
            term: self.term,
            leader: member.believes.map(|leader| leader as u64 + 1),
            quorum,
            voters: self.voters(),
            lag: 0,
            dead: member.dead.then(|| "its core has ended".to_owned()),
        }
    }
}
