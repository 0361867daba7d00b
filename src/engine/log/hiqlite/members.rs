//! Who is in Raft: how it is, and the changes of it that its leader makes, by hiqlite's own ports on loopback.
//!
//! An identity in Raft is used once: a node that begins with a fresh store gets a new one, because the old one may have voted
//! for what the fresh store has not.

use crate::engine::log::forward::Forward;
use crate::engine::log::{AppendError, Health, Role};
use futures::FutureExt;
use hiqlite::Client;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a change of the membership may take: hiqlite waits up to 40 s for its commit.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);
/// A leader that a majority has not answered for so long, in milliseconds, does not know whether it still leads: two of the
/// longest election timeouts.
const QUORUM_ACK_MS: u64 = 2 * super::start::ELECTION_MS.1;
/// A learner that has all but so many entries is near enough to vote.
const NEAR_ENTRIES: u64 = 1_000;

/// Where a member's two ports of hiqlite are reached: on loopback, on every node the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Raft's own messages.
    pub raft: SocketAddr,
    /// What a follower asks its leader for, and changes of the membership.
    pub api: SocketAddr,
}

/// Who this node is in Raft, and whom it may ask to be let in.
#[derive(Clone)]
pub struct Member {
    /// Its identity in Raft. The first node of a cluster is 1, and a store is begun by that one alone.
    pub raft: u64,
    /// Where it listens.
    pub own: Addresses,
    /// Others, for a store that is yet to be let in.
    pub others: Vec<(u64, Addresses)>,
    /// The way to the one that leads; None: this node is alone.
    pub forward: Option<Arc<dyn Forward>>,
}

/// The members as this node knows them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Voters {
    /// Those with a vote.
    pub voters: BTreeSet<u64>,
    /// Those without.
    pub learners: BTreeSet<u64>,
    /// Learners that have nearly everything; only the leader knows.
    pub near: BTreeSet<u64>,
}

/// How it is; what hiqlite can't say counts as dead.
pub(super) fn health(client: &Client) -> Health {
    // Of a node's own Raft the figures are there at once.
    let metrics = match client.metrics_db().now_or_never() {
        Some(Ok(metrics)) => metrics,
        Some(Err(error)) => return dead(error.to_string()),
        None => return dead("its figures can't be read".to_owned()),
    };
    let role = match metrics.state {
        state if state.is_leader() => Role::Leader,
        state if state.is_candidate() => Role::Candidate,
        state if state.is_follower() => Role::Follower,
        _ => Role::Learner,
    };
    let alone = metrics.membership_config.nodes().count() == 1;
    let answered = || metrics.millis_since_quorum_ack.is_none_or(|ago| ago <= QUORUM_ACK_MS);
    let quorum = match role {
        Role::Leader => alone || answered(),
        _ => metrics.current_leader.is_some(),
    };
    let applied = metrics.last_applied.map_or(0, |last| last.index);
    Health {
        role,
        term: metrics.current_term,
        leader: metrics.current_leader,
        quorum,
        voters: metrics.membership_config.voter_ids().count(),
        lag: metrics.last_log_index.unwrap_or(0).saturating_sub(applied),
        dead: metrics.running_state.err().map(|fatal| fatal.to_string()),
    }
}

fn dead(why: String) -> Health {
    Health { role: Role::Learner, term: 0, leader: None, quorum: false, voters: 0, lag: 0, dead: Some(why) }
}

/// Is there one member alone?
pub(super) fn are_one(client: &Client) -> bool {
    matches!(client.metrics_db().now_or_never(), Some(Ok(metrics)) if metrics.membership_config.nodes().count() == 1)
}

/// The members.
pub(super) fn voters(client: &Client) -> Voters {
    let Some(Ok(metrics)) = client.metrics_db().now_or_never() else { return Voters::default() };
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let learners: BTreeSet<u64> =
        metrics.membership_config.nodes().map(|(id, _)| *id).filter(|id| !voters.contains(id)).collect();
    let last = metrics.last_log_index.unwrap_or(0);
    let replicated: BTreeMap<u64, u64> = metrics
        .replication
        .iter()
        .flatten()
        .filter_map(|(id, matched)| matched.as_ref().map(|matched| (*id, matched.index)))
        .collect();
    let is_near = |id: &u64| replicated.get(id).is_some_and(|index| last.saturating_sub(*index) <= NEAR_ENTRIES);
    let near = learners.iter().copied().filter(is_near).collect();
    Voters { voters, learners, near }
}

/// A change of the membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// A learner gets a vote.
    Promote(u64, Addresses),
    /// A voter loses its vote and stays.
    Demote(u64),
    /// It is no member any more.
    Remove(u64),
}

#[derive(Serialize)]
struct Learner {
    node_id: u64,
    addr_api: String,
    addr_raft: String,
}

#[derive(Serialize)]
struct Leave {
    node_id: u64,
    stay_as_learner: bool,
}

/// Makes a change, at this node's own port: it must be the leader.
pub(super) async fn change(own: Addresses, secret: &str, change: MemberChange) -> Result<(), AppendError> {
    let unknown = |error: reqwest::Error| AppendError::Unknown(error.to_string());
    let client = reqwest::Client::builder().no_proxy().timeout(CHANGE_WITHIN).build().map_err(unknown)?;
    let request = match change {
        MemberChange::Promote(id, addresses) => {
            let (addr_api, addr_raft) = (addresses.api.to_string(), addresses.raft.to_string());
            let url = format!("http://{}/cluster/become_member/sqlite", own.api);
            client.post(url).json(&Learner { node_id: id, addr_api, addr_raft })
        }
        MemberChange::Demote(id) => leave(&client, own, id, true),
        MemberChange::Remove(id) => leave(&client, own, id, false),
    };
    let answer = request.header("X-API-SECRET", secret).send().await.map_err(unknown)?;
    if answer.status().is_success() {
        return Ok(());
    }
    let status = answer.status();
    let said = answer.text().await.unwrap_or_default();
    Err(AppendError::Unknown(format!("{status}: {said}")))
}

fn leave(client: &reqwest::Client, own: Addresses, id: u64, stay_as_learner: bool) -> reqwest::RequestBuilder {
    let url = format!("http://{}/cluster/membership/sqlite", own.api);
    client.delete(url).json(&Leave { node_id: id, stay_as_learner })
}
