//! Several nodes: who is let in, who votes, who goes, leases; and that nothing of it can be had by a wrong word.

use crate::cluster::{Cluster, NODE, image, node_up, user};
use blixard::clock::HybridTime;
use blixard::engine::state::{
    By, Command, Conditions, ENTRY_FORMAT, ENTRY_FORMAT_MIN, Entry, EntryId, NodeId, NodeRole, NodeVerb, Outcome,
    RaftId, Reply, State,
};
use blixard::text::Code;

const HOUR_MS: u64 = 3_600_000;

fn invite(cluster: &mut Cluster, secret: u8, role: NodeRole) {
    let expires_ms = cluster.now_ms + HOUR_MS;
    cluster.done(user("root"), Command::InviteNew { secret_sha256: [secret; 32], role, expires_ms });
}

fn joining(secret: u8, name: &str) -> Command {
    Command::NodeJoin {
        secret_sha256: [secret; 32],
        name: name.to_owned(),
        address: format!("{name}!5640"),
        entry_format: ENTRY_FORMAT,
        release: "0.1.0".to_owned(),
    }
}

/// Lets a node in and brings it up; gives its number.
fn join(cluster: &mut Cluster, name: &str, role: NodeRole) -> u64 {
    invite(cluster, 1, role);
    let Reply::Created(id) = cluster.done(By::Agent, joining(1, name)) else { panic!() };
    said_by(cluster, id, node_up("boot-x")).unwrap();
    id
}

/// An entry of another node.
fn said_by(cluster: &mut Cluster, node: u64, command: Command) -> Outcome {
    let (boot, n) = cluster.state.last_of(NodeId(node)).unwrap_or((1, 0));
    let id = EntryId { node: NodeId(node), boot: boot.max(1), n: n + 1 };
    let at = HybridTime::from_millis(cluster.now_ms);
    cluster.apply(Entry { id, at, by: By::Agent, commands: vec![command] })
}

fn verb(node: u64, verb: NodeVerb) -> Command {
    Command::Node { node: NodeId(node), verb, conditions: Conditions::default() }
}

fn renew(counter: u64) -> Command {
    Command::LeaseRenew { counter, length_ms: 10_000, claim: Default::default() }
}

fn expire(node: u64, counter: u64) -> Command {
    Command::LeaseExpire { node: NodeId(node), counter }
}

#[test]
fn a_token_lets_one_machine_in() {
    let mut cluster = Cluster::new();
    let refused = |cluster: &mut Cluster, command| cluster.refused(By::Agent, command);
    assert!(refused(&mut cluster, joining(1, "beta")).1.contains("not known here"), "nobody was invited");
    invite(&mut cluster, 1, NodeRole::Voter);
    assert_eq!(refused(&mut cluster, joining(1, "alpha")).0, Code::Exists);
    assert_eq!(refused(&mut cluster, joining(1, "Beta")).0, Code::Invalid);
    let odd = |address: &str| match joining(1, "beta") {
        Command::NodeJoin { secret_sha256, name, entry_format, release, .. } => {
            Command::NodeJoin { secret_sha256, name, address: address.to_owned(), entry_format, release }
        }
        other => other,
    };
    for address in ["", "beta", "!1", "beta!0", "beta!70000", "*!5640", "a b!1", &format!("{}!1", "x".repeat(300))] {
        assert_eq!(refused(&mut cluster, odd(address)).0, Code::Invalid, "{address}");
    }
    assert_eq!(cluster.done(By::Agent, joining(1, "beta")), Reply::Created(2), "no refusal has used it up");
    assert_eq!(cluster.done(By::Agent, joining(1, "beta")), Reply::Created(2), "what it was told may have been lost");
    assert_eq!(refused(&mut cluster, joining(1, "gamma")).0, Code::Denied);
    said_by(&mut cluster, 2, node_up("boot-x")).unwrap();
    assert_eq!(refused(&mut cluster, joining(1, "beta")).0, Code::Denied, "it is in, and the token is used up");
    let beta = cluster.state.node(NodeId(2)).unwrap();
    assert_eq!((beta.raft, beta.role, beta.up), (RaftId(2), NodeRole::Voter, true));
    // A user can't let anybody in, however mighty; and only an admin invites.
    assert_eq!(cluster.refused(user("root"), joining(1, "x")).0, Code::Denied);
    let expires_ms = cluster.now_ms + 1;
    let by_operator = Command::InviteNew { secret_sha256: [2; 32], role: NodeRole::Voter, expires_ms };
    assert_eq!(cluster.refused(user("ann"), by_operator).0, Code::Denied);
}

#[test]
fn tokens_expire_and_are_bounded() {
    let mut cluster = Cluster::new();
    let at = |expires_ms| Command::InviteNew { secret_sha256: [9; 32], role: NodeRole::Voter, expires_ms };
    let now_ms = cluster.now_ms;
    for wrong in [0, now_ms, now_ms + 200 * HOUR_MS] {
        assert_eq!(cluster.refused(user("root"), at(wrong)).0, Code::Invalid, "{wrong}");
    }
    for secret in 0..64 {
        invite(&mut cluster, secret, NodeRole::Voter);
    }
    let full = cluster.refused(user("root"), at(now_ms + HOUR_MS));
    assert!(full.0 == Code::NoSpace && full.1.contains("64 invitations are open"), "{full:?}");
    cluster.now_ms += HOUR_MS;
    assert!(cluster.refused(By::Agent, joining(7, "beta")).1.contains("has expired"));
    invite(&mut cluster, 70, NodeRole::Learner);
    assert_eq!(cluster.done(By::Agent, joining(70, "beta")), Reply::Created(2));
    assert_eq!(cluster.state.node(NodeId(2)).unwrap().role, NodeRole::Learner);
}

#[test]
fn numbers_and_identities_are_never_used_again() {
    let mut cluster = Cluster::new();
    assert_eq!(join(&mut cluster, "beta", NodeRole::Voter), 2);
    join(&mut cluster, "gamma", NodeRole::Voter);
    cluster.done(user("root"), verb(3, NodeVerb::Remove));
    assert!(cluster.state.node(NodeId(3)).is_none());
    assert_eq!(join(&mut cluster, "gamma", NodeRole::Voter), 4);
    assert_eq!(cluster.state.node(NodeId(4)).unwrap().raft, RaftId(4));
    // What the removed one still sends is nobody's.
    let late = said_by(&mut cluster, 3, renew(1)).unwrap_err();
    assert_eq!(late.code, Code::Denied, "{late}");
    // A lost store: a new identity once, however often it is asked for.
    let lost = Command::NodeRaftNew { node: NodeId(2), was: RaftId(2) };
    assert_eq!(cluster.done(By::Agent, lost.clone()), Reply::Created(5));
    assert_eq!(cluster.done(By::Agent, lost), Reply::Created(5));
    assert_eq!(cluster.state.node_of_raft(RaftId(5)).unwrap().name, "beta");
    assert!(cluster.state.node_of_raft(RaftId(2)).is_none());
}

#[test]
fn a_majority_of_the_voters_stays() {
    let mut cluster = Cluster::new();
    let refused = |cluster: &mut Cluster, node, what| cluster.refused(user("root"), verb(node, what));
    assert!(refused(&mut cluster, 1, NodeVerb::Remove).1.contains("the last voter"));
    assert!(refused(&mut cluster, 1, NodeVerb::Demote).1.contains("the last voter"));
    join(&mut cluster, "beta", NodeRole::Voter);
    join(&mut cluster, "gamma", NodeRole::Voter);
    said_by(&mut cluster, 3, renew(1)).unwrap();
    cluster.done(By::Agent, expire(3, 1));
    let without = refused(&mut cluster, 2, NodeVerb::Remove);
    assert!(without.0 == Code::Busy && without.1.contains("without it 1 of 2 voters would be there"), "{without:?}");
    cluster.done(user("root"), verb(3, NodeVerb::Demote));
    cluster.done(user("root"), verb(2, NodeVerb::Remove));
    assert_eq!(refused(&mut cluster, 9, NodeVerb::Promote).0, Code::NotFound);
    assert_eq!(cluster.refused(user("ann"), verb(3, NodeVerb::Promote)).0, Code::Denied);
    let old = Command::Node {
        node: NodeId(3),
        verb: NodeVerb::Promote,
        conditions: Conditions { version: Some(1), key: None },
    };
    assert_eq!(cluster.refused(user("root"), old).0, Code::Stale);
    for n in 0..6 {
        join(&mut cluster, &format!("n{n}"), NodeRole::Voter);
    }
    assert_eq!(cluster.state.voters().count(), 7);
    assert_eq!(refused(&mut cluster, 3, NodeVerb::Promote).0, Code::NoSpace);
    invite(&mut cluster, 40, NodeRole::Voter);
    assert_eq!(cluster.refused(By::Agent, joining(40, "eighth")).0, Code::NoSpace);
}

#[test]
fn a_lease_is_a_counter_and_no_time_of_day() {
    let mut cluster = Cluster::new();
    join(&mut cluster, "beta", NodeRole::Voter);
    let lease = |cluster: &Cluster| cluster.state.node(NodeId(2)).unwrap().lease;
    assert_eq!(cluster.done(By::Agent, expire(2, 0)), Reply::Unchanged, "it never had one");
    assert_eq!(said_by(&mut cluster, 2, renew(2)).unwrap_err().code, Code::Stale, "none is left out");
    said_by(&mut cluster, 2, renew(1)).unwrap();
    said_by(&mut cluster, 2, renew(2)).unwrap();
    assert_eq!(cluster.done(By::Agent, expire(2, 1)), Reply::Unchanged, "it was renewed since");
    cluster.now_ms += 1_000 * HOUR_MS;
    cluster.done(By::Agent, Command::NodeDown);
    assert!(!lease(&cluster).expired, "no clock ends it");
    cluster.done(By::Agent, expire(2, 2));
    assert!(lease(&cluster).expired && !cluster.state.node(NodeId(2)).unwrap().up);
    assert_eq!(cluster.done(By::Agent, expire(2, 2)), Reply::Unchanged, "once");
    said_by(&mut cluster, 2, renew(3)).unwrap();
    assert!(cluster.state.node(NodeId(2)).unwrap().is_there(), "it is back");
    assert_eq!(cluster.refused(user("root"), expire(2, 3)).0, Code::Denied, "no user says so");
}

#[test]
fn a_lost_node_gets_no_machines() {
    let mut cluster = Cluster::new();
    join(&mut cluster, "beta", NodeRole::Voter);
    said_by(&mut cluster, 2, renew(1)).unwrap();
    cluster.done(By::Agent, expire(2, 1));
    for _ in 0..4 {
        let vm = cluster.running(crate::cluster::spec());
        assert_eq!(cluster.is(vm).node, Some(NODE));
    }
    let busy = cluster.refused(user("root"), verb(1, NodeVerb::Remove));
    assert_eq!(busy.0, Code::Busy);
    cluster.done(By::Agent, image("other"));
}

#[test]
fn entries_are_written_in_the_oldest_format_that_has_them() {
    let entry = |commands: Vec<Command>| Entry {
        id: EntryId { node: NODE, boot: 1, n: 1 },
        at: HybridTime::from_millis(1),
        by: By::Agent,
        commands,
    };
    for (commands, format) in [
        (vec![Command::NodeDown], ENTRY_FORMAT_MIN),
        (vec![verb(1, NodeVerb::Remove)], ENTRY_FORMAT_MIN),
        (vec![verb(1, NodeVerb::Drain)], 5),
        (vec![Command::NodeDown, verb(1, NodeVerb::Cordon), Command::NodeDown], 5),
    ] {
        let entry = entry(commands);
        let bytes = entry.encode();
        assert_eq!((bytes[0], entry.format()), (format, format));
        assert_eq!(Entry::decode(&bytes).unwrap(), entry);
    }
    let mut newer = entry(vec![Command::NodeDown]).encode();
    newer[0] = ENTRY_FORMAT + 1;
    assert!(Entry::decode(&newer).unwrap_err().to_string().contains("format 6"));
}

#[test]
fn a_cluster_writes_what_its_oldest_node_can_read() {
    let mut cluster = Cluster::new();
    join(&mut cluster, "beta", NodeRole::Voter);
    let reach = |format| Command::NodeReach { address: "beta!5640".into(), entry_format: format, release: "0".into() };
    assert_eq!(cluster.state.entry_format(), ENTRY_FORMAT);
    assert!(said_by(&mut cluster, 2, reach(4)).is_err(), "nobody goes back while the others write the newer one");
    assert_eq!(cluster.state.entry_format(), ENTRY_FORMAT);
    let encoded: State = State::decode(&cluster.state.encode()).unwrap();
    assert_eq!(encoded, cluster.state);
}

/// A process that renews and never gets as far as to look after machines must not be given any.
#[test]
fn a_start_whose_agent_is_not_up_holds_the_lease_and_is_given_nothing() {
    let mut cluster = Cluster::new();
    let beta = join(&mut cluster, "beta", NodeRole::Voter);
    said_by(&mut cluster, beta, renew(1)).unwrap();
    let is_up = |cluster: &Cluster| cluster.state.node(NodeId(beta)).unwrap().up;
    assert!(is_up(&cluster));
    let of_start = |cluster: &mut Cluster, boot, n, command| {
        let id = EntryId { node: NodeId(beta), boot, n };
        let at = HybridTime::from_millis(cluster.now_ms);
        cluster.apply(Entry { id, at, by: By::Agent, commands: vec![command] }).unwrap();
    };
    of_start(&mut cluster, 2, 1, renew(2));
    assert!(!is_up(&cluster), "the next start has only renewed yet");
    cluster.done(By::Agent, expire(beta, 2));
    of_start(&mut cluster, 2, 2, renew(3));
    let node = cluster.state.node(NodeId(beta)).unwrap();
    assert!(!node.up && !node.lease.expired, "it is back, and no more");
    of_start(&mut cluster, 2, 3, node_up("boot-x"));
    assert!(is_up(&cluster));
    cluster.done(By::Agent, expire(beta, 3));
    of_start(&mut cluster, 2, 4, renew(4));
    assert!(is_up(&cluster), "its agent was up all the time");
}
