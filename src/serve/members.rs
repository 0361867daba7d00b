//! Follows who belongs to the cluster: keeps the tunnels and the member file as the state has it, and, on the node that leads Raft,
//! makes Raft as the state wants it: one change at a time.

use super::between::peers_of;
use crate::engine::Engine;
use crate::engine::log::{Addresses, HiqliteLog, Log, MemberChange, Role};
use crate::engine::state::{Kind, NodeId, NodeRole, State};
use crate::member::Member;
use crate::peers::{Loopback, Peer};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The pause before a change is tried again that could not be made, or whose time has not come: a learner that is still behind.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A node that was removed is told by the log, which it no longer gets when it is out of Raft.
const HEARS_WITHIN: Duration = Duration::from_secs(1);
/// A node that gets nothing for so long looks whether there is something that it should have got.
const SILENCE: Duration = Duration::from_secs(15);

/// What a node finds out about itself that ends its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is no member any more.
    Removed,
    /// It must begin with a fresh store.
    StaleStore,
    /// There is no room on its disk for what comes from the others.
    NoRoom,
}

/// What it works with.
#[derive(Clone)]
pub(super) struct Follower {
    pub(super) engine: Engine,
    pub(super) log: Arc<dyn Log>,
    /// None: this machine is a worker, which is no part of Raft.
    pub(super) store: Option<Arc<HiqliteLog>>,
    pub(super) data: PathBuf,
    pub(super) member: Member,
    pub(super) peers: watch::Sender<Vec<Peer>>,
    /// The entry that last changed which nodes there are.
    pub(super) nodes: watch::Sender<u64>,
    /// Where what it finds out about this node is left for who ends it.
    pub(super) verdict: Arc<OnceLock<Verdict>>,
}

impl Follower {
    /// Until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let mut changes = self.engine.changes();
        loop {
            changes.borrow_and_update();
            let (state, looked) = (self.engine.state(), Instant::now());
            let nodes = state.directory(Kind::Node).objects;
            if state.cluster().is_some() && state.node(NodeId(self.member.node)).is_none() {
                return Err(self.end(
                    Verdict::Removed,
                    "this node has been removed from the cluster: its machines are its own business now; to have it in again, \
                     invite it anew",
                ));
            }
            let changed = state.directory(Kind::Node).members.seq;
            self.nodes.send_if_modified(|known| std::mem::replace(known, changed) != changed);
            self.keep_peers(&state)?;
            let more = self.reconcile(&state).await;
            drop(state);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    changed = changes.changed() => changed.map_err(|_| "the engine has ended".to_owned())?,
                    () = tokio::time::sleep(AGAIN_AFTER), if more => break,
                    () = tokio::time::sleep(SILENCE), if self.store.is_some() && !self.log.alone() => self.look(&mut changes).await?,
                }
                // Thousands of entries a second are about something else: then it is looked only now and then, for who leads may have changed.
                if self.engine.state().directory(Kind::Node).objects != nodes || looked.elapsed() >= AGAIN_AFTER {
                    break;
                }
            }
        }
    }

    fn keep_peers(&self, state: &State) -> Result<(), String> {
        let peers = peers_of(state, self.member.node);
        if *self.peers.borrow() == peers {
            return Ok(());
        }
        let member = Member { peers: peers.clone(), formed: true, ..self.member.clone() };
        member.write(&self.data).map_err(|error| error.to_string())?;
        self.peers.send_replace(peers);
        Ok(())
    }

    /// One change of Raft's membership, if one is due and this node leads. True: come back soon.
    async fn reconcile(&self, state: &State) -> bool {
        let Some(store) = self.store.as_ref().filter(|store| store.health().role == Role::Leader) else { return false };
        let Some(change) = due(state, store, self.member.loopback) else { return false };
        let Due::Now(change) = change else { return true };
        if let MemberChange::Remove(_) = change {
            // What is removed here may have joined in this moment: look again when everything committed is here.
            let newer = self.engine.sync().await;
            tokio::time::sleep(HEARS_WITHIN).await;
            if newer.is_err() || due(&self.engine.state(), store, self.member.loopback) != Some(Due::Now(change)) {
                return true;
            }
        }
        tracing::info!(?change, "Raft's membership is changed");
        if let Err(error) = store.change_members(change).await {
            tracing::warn!(?change, %error, "Raft's membership could not be changed; it is tried again");
        }
        true
    }

    /// Nothing has come for a while: is there something that should have?
    async fn look(&self, changes: &mut watch::Receiver<u64>) -> Result<(), String> {
        if let Some(why) = self.log.health().dead {
            return Err(self.end(Verdict::StaleStore, &format!("the store of this node can't go on: {why}")));
        }
        let seen = *changes.borrow();
        let Ok(newest) = self.log.newest().await else { return Ok(()) };
        if newest <= seen {
            return Ok(());
        }
        match tokio::time::timeout(SILENCE, changes.changed()).await {
            Ok(_came) => Ok(()),
            Err(_silent) => {
                let why = format!("the others are at record {newest}, and nothing after {seen} comes here");
                Err(self.end(Verdict::StaleStore, &why))
            }
        }
    }

    /// Leaves the verdict, and gives the sentence.
    fn end(&self, verdict: Verdict, why: &str) -> String {
        let _first = self.verdict.set(verdict);
        why.to_owned()
    }
}

/// What is to be done about Raft's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now(MemberChange),
    /// A learner that is to vote has not everything yet.
    Later,
}

/// The first thing that is not as the state wants it.
fn due(state: &State, log: &HiqliteLog, loopback: Loopback) -> Option<Due> {
    let now = log.voters();
    let members = state.nodes().filter(|node| node.role != NodeRole::Worker);
    let wanted: BTreeMap<u64, NodeRole> = members.map(|node| (node.raft.0, node.role)).collect();
    let members = now.voters.iter().chain(&now.learners);
    // Those that are to go come first: a dead one counts in every majority.
    if let Some(id) = members.copied().find(|id| !wanted.contains_key(id)) {
        return Some(Due::Now(MemberChange::Remove(id)));
    }
    let is = |id: &u64, role| wanted.get(id) == Some(&role);
    if let Some(id) = now.learners.iter().find(|id| is(id, NodeRole::Voter) && now.near.contains(id)) {
        let (raft, api) = loopback.addresses(*id).ok()?;
        return Some(Due::Now(MemberChange::Promote(*id, Addresses { raft, api })));
    }
    if let Some(id) = now.voters.iter().find(|id| is(id, NodeRole::Learner)) {
        return Some(Due::Now(MemberChange::Demote(*id)));
    }
    now.learners.iter().any(|id| is(id, NodeRole::Voter)).then_some(Due::Later)
}
