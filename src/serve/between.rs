//! What a node is to other nodes: the port where they come in, the tunnels by which it reaches them, and the answers to what they ask.

use super::{ServeError, start_once};
use crate::ca;
use crate::cluster;
use crate::engine::Engine;
use crate::engine::agent::{Policy, Supervisor};
use crate::engine::log::forward::{Answered, FORWARDED_BYTES_MAX, Forward, Forwarded, Whose};
use crate::engine::log::{AppendError, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, HiqliteLog, RECORD_BYTES_MAX};
use crate::engine::state::membership::unknown_token;
use crate::engine::state::{By, Command, Entry, Node, NodeId, NodeRole, RaftId, Reply, State};
use crate::fs::ninep::Door;
use crate::member::Member;
use crate::ninep::holder::{Holder, Purpose};
use crate::ninep::identity::Identity;
use crate::ninep::tls::{PeerAcceptor, ServerStream};
use crate::peers::ask::{Answer, Question, Welcome};
use crate::peers::entrance::{self, Served, Store};
use crate::peers::lead::{Line, Lines, NoAnswer};
use crate::peers::{Loopback, Peer, Service, host_and_port, tunnel};
use crate::text::dial::ANY_HOST;
use crate::text::{Dial, Refusal};
use bytes::Bytes;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long it may take until this node has noted who has joined: its own entry, and a file.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// What is there once the log is open.
struct Opened {
    engine: Engine,
    /// None: this machine is a worker, which is no part of Raft.
    store: Option<Arc<HiqliteLog>>,
}

/// What comes in is served by this; before the log is open, only the stores speak to each other.
#[derive(Clone)]
struct Hall(Arc<Inner>);

struct Inner {
    data: PathBuf,
    loopback: Loopback,
    /// The others, as the member file has them.
    peers: watch::Sender<Vec<Peer>>,
    /// The entry that last changed which nodes there are.
    nodes: watch::Sender<u64>,
    opened: OnceLock<Opened>,
    door: OnceLock<Door>,
}

/// This node among the others.
pub(super) struct Between {
    hall: Hall,
    pub(super) identity: Arc<Identity>,
    /// The others, for the tunnels.
    pub(super) peers: watch::Sender<Vec<Peer>>,
    /// The port where they come in; 0: none.
    pub(super) port: u16,
}

impl Between {
    /// Opens the port, if the node has an address, and the tunnels to the members that it knew last.
    pub(super) async fn start(
        member: &Member,
        data: &Path,
        listen: &[Dial],
        supervisor: &Supervisor,
    ) -> Result<Between, ServeError> {
        let identity = Arc::new(Identity::read(&ca::node_identity(data)).map_err(ServeError::Identity)?);
        let (peers, others) = watch::channel(member.peers.clone());
        let hall = Hall(Arc::new(Inner {
            data: data.to_owned(),
            loopback: member.loopback,
            peers: peers.clone(),
            nodes: watch::Sender::new(0),
            opened: OnceLock::new(),
            door: OnceLock::new(),
        }));
        let mut between = Between { hall, identity: identity.clone(), peers, port: 0 };
        if member.address.is_empty() {
            return Ok(between);
        }
        between.port = between.open_port(member, listen, supervisor).await?;
        if member.worker {
            return Ok(between);
        }
        let (loopback, own) = (member.loopback, member.raft);
        let carry = move |stop: tokio_util::sync::CancellationToken| {
            let carrying = tunnel::run(identity.clone(), loopback, own, others.clone());
            async move {
                tokio::select! {
                    ended = carrying => ended.map_err(|error| error.to_string()),
                    () = stop.cancelled() => Ok(()),
                }
            }
        };
        supervisor.start("tunnels", Policy::VITAL, carry).map_err(ServeError::Failed)?;
        Ok(between)
    }

    async fn open_port(&self, member: &Member, listen: &[Dial], supervisor: &Supervisor) -> Result<u16, ServeError> {
        let (host, port) = host_and_port(&member.address).map_err(|refusal| ServeError::Failed(refusal.sentence))?;
        let bound = TcpListener::bind(&places(&host, port, listen)[..]).await;
        let listener = bound.map_err(|source| ServeError::Port { port, source })?;
        let protocols: Vec<&[u8]> = Service::ALL.iter().map(|service| service.protocol()).collect();
        let hall = self.hall.clone();
        let admit = move |holder: &Holder| hall.admit(holder);
        let acceptor = PeerAcceptor::new(&self.identity, Arc::new(admit), &protocols).map_err(ServeError::Identity)?;
        let addresses = member.loopback.addresses(member.raft);
        let (raft, api) = addresses.map_err(|refusal| ServeError::Failed(refusal.sentence))?;
        let store = Store { id: member.raft, raft, api };
        let served: Arc<dyn Served> = Arc::new(self.hall.clone());
        start_once(supervisor, "peers", move |stop| entrance::serve(listener, acceptor, store, served, stop))?;
        Ok(port)
    }

    /// The way to the node that leads.
    pub(super) fn way(&self) -> Arc<dyn Forward> {
        Arc::new(Way(self.lines()))
    }

    /// Lines for questions to members.
    pub(super) fn lines(&self) -> Lines {
        Lines::new(self.identity.clone(), self.peers.subscribe())
    }

    /// The log is open: from now on questions are answered.
    pub(super) fn opened(&self, engine: &Engine, store: Option<&Arc<HiqliteLog>>) {
        let _first = self.hall.0.opened.set(Opened { engine: engine.clone(), store: store.cloned() });
    }

    /// To be told of the entry that last changed which nodes there are: what those have open who are none any more ends.
    pub(super) fn nodes(&self) -> watch::Sender<u64> {
        self.hall.0.nodes.clone()
    }

    /// The tree is there: from now on 9P is served at the port as well.
    pub(super) fn open_door(&self, door: Door) {
        let _first = self.hall.0.door.set(door);
    }
}

impl Hall {
    /// Users are asked about at the tree. A node that was removed is none any more.
    fn admit(&self, holder: &Holder) -> Result<(), String> {
        match (holder.purpose, self.0.door.get(), self.0.opened.get()) {
            (Purpose::User, Some(door), _) => door.admit(holder),
            (Purpose::User, None, _) => Err("the node is starting and has no tree yet; try again".to_owned()),
            (Purpose::Node, _, Some(opened)) if opened.engine.state().node_named(&holder.name).is_none() => {
                // One that has just joined, of which this node has not heard yet, tries again.
                Err(format!("node '{}' is not in this cluster, or not any more", holder.name))
            }
            _ => Ok(()),
        }
    }

    async fn join(&self, opened: &Opened, question: Question) -> Result<Answer, Refusal> {
        let Question::Join { secret, name, address, entry_format, release, request } = question else {
            return Err(Refusal::invalid("invalid question"));
        };
        if !ca::is_here(&self.0.data) {
            return Err(Refusal::again(
                "busy: this node has not the authority's key and can't let others in; another voter can",
            ));
        }
        let secret_sha256 = Sha256::digest(secret).into();
        // Whoever reaches the port can ask, so that nothing is signed or written into the log for who holds no token.
        if !opened.engine.state().knows_token(&secret_sha256) {
            opened.engine.sync().await?;
            if !opened.engine.state().knows_token(&secret_sha256) {
                return Err(unknown_token());
            }
        }
        let hosts = cluster::hosts_of(&address).map_err(|error| Refusal::invalid(error.to_string()))?;
        // Before anything is decided: a request that can't be signed lets nobody in.
        let signed = ca::sign_node(&self.0.data, &name, &hosts, &request);
        let certificates = signed.map_err(|error| Refusal::invalid(format!("invalid request: {error}")))?;
        let command = Command::NodeJoin { secret_sha256, name, address, entry_format, release };
        let replies = opened.engine.submit(By::Agent, vec![command]).await?;
        let node = replies.iter().find_map(|reply| match reply {
            Reply::Created(number) => Some(*number),
            _ => None,
        });
        let state = opened.engine.state();
        let gone = || Refusal::fault("the node that has just joined is gone already");
        let node = node.and_then(|id| state.node(NodeId(id))).ok_or_else(gone)?;
        if node.role != NodeRole::Worker {
            self.knows(node.raft.0).await?;
        }
        let fault = |error: &dyn std::fmt::Display| Refusal::fault(error.to_string());
        let authority_key = match node.role {
            NodeRole::Voter => Some(ca::authority_key(&self.0.data).map_err(|error| fault(&error))?),
            NodeRole::Learner | NodeRole::Worker => None,
        };
        let secrets = match (node.role, &opened.store) {
            (NodeRole::Voter | NodeRole::Learner, Some(store)) => Some(store.secrets().map_err(|error| fault(&error))?),
            _ => None,
        };
        Ok(Answer::Welcome(Box::new(Welcome {
            cluster: state.cluster().unwrap_or_default().to_owned(),
            node: node.id.0,
            raft: node.raft.0,
            loopback: self.0.loopback,
            certificates,
            authority_key,
            secrets,
            peers: peers_of(&state, node.id.0),
        })))
    }

    /// Until the member file of this node names the new member. Before that nobody is told that it is in: a node whose file says that it is
    /// alone would begin a store of its own from what it has.
    async fn knows(&self, raft: u64) -> Result<(), Refusal> {
        let mut peers = self.0.peers.subscribe();
        let known = peers.wait_for(|peers| peers.iter().any(|peer| peer.raft == raft));
        match timeout(KNOWN_WITHIN, known).await {
            Ok(Ok(_known)) => Ok(()),
            _ => Err(Refusal::again("busy: the node could not note who is in; join again with the same token")),
        }
    }

    async fn new_raft(&self, opened: &Opened, was: u64, who: &Holder) -> Result<Answer, Refusal> {
        let gone = || Refusal::not_found(format!("node '{}' was not found: it has been removed", who.name));
        let id = opened.engine.state().node_named(&who.name).map(|node| node.id).ok_or_else(gone)?;
        let command = Command::NodeRaftNew { node: id, was: RaftId(was) };
        let replies = opened.engine.submit(By::Agent, vec![command]).await?;
        match replies.first() {
            Some(Reply::Created(raft)) => {
                Ok(Answer::Raft { raft: *raft, peers: peers_of(&opened.engine.state(), id.0) })
            }
            other => Err(Refusal::fault(format!("invalid answer of the log: {other:?}"))),
        }
    }
}

/// Where the port is opened: where TLS is to be listened for at this port; else at the address by which others reach it; else, as a name
/// may stand for anything, everywhere.
fn places(host: &str, port: u16, listen: &[Dial]) -> Vec<SocketAddr> {
    let everywhere = vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    let told = listen.iter().find_map(|dial| match dial {
        Dial::Tls { host, port: at } if *at == port => Some(host.as_str()),
        _ => None,
    });
    match told.unwrap_or(host) {
        ANY_HOST => everywhere,
        host => host.parse::<IpAddr>().map_or(everywhere, |ip| vec![(ip, port).into()]),
    }
}

/// The members other than this node that can be reached.
pub(super) fn peers_of(state: &State, own: u64) -> Vec<Peer> {
    let is_member = |node: &&Node| node.role != NodeRole::Worker && !node.address.is_empty();
    let others = state.nodes().filter(|node| node.id.0 != own).filter(is_member);
    others.map(|node| Peer { raft: node.raft.0, address: node.address.clone() }).collect()
}

/// May this node have this appended? What can't be read must not get into the log, where nobody could go on behind it; and a machine that has no
/// part in the log speaks for itself alone. A member may relay what another has submitted.
fn acceptable(state: &State, of: &Holder, question: &Forwarded) -> Result<(), String> {
    let records = match question {
        Forwarded::Append(records) => records,
        Forwarded::Relayed(question) => return acceptable(state, of, question),
        Forwarded::Newest | Forwarded::Clock => return Ok(()),
    };
    let asker = state.node_named(&of.name).ok_or_else(|| format!("node '{}' is not in this cluster", of.name))?;
    let size = records.iter().map(Bytes::len).sum::<usize>();
    if records.len() > BATCH_RECORDS_MAX || size > BATCH_BYTES_MAX {
        return Err(format!(
            "invalid append: {} records of {size} bytes; {BATCH_RECORDS_MAX} and {BATCH_BYTES_MAX} are the most",
            records.len()
        ));
    }
    for record in records {
        let entry = Entry::decode(record).map_err(|error| format!("invalid entry: {error}"))?;
        if record.len() > RECORD_BYTES_MAX || (asker.role == NodeRole::Worker && entry.id.node != asker.id) {
            return Err(format!("invalid entry {}: not from node {}, or too large", entry.id, asker.id));
        }
    }
    Ok(())
}

/// The way of an append, and of a linearizable read, to the node that leads.
struct Way(Lines);

#[async_trait::async_trait]
impl Forward for Way {
    async fn forward(&self, leader: u64, question: &Forwarded, whose: Whose) -> Result<Answered, AppendError> {
        let bytes = postcard::to_stdvec(question).map_err(|error| AppendError::NotDone(error.to_string()))?;
        let line = match whose {
            _ if question.is_read() => Line::Read,
            Whose::Own => Line::Append,
            Whose::Relayed => Line::Relayed,
        };
        match self.0.ask(leader, line, &bytes, FORWARDED_BYTES_MAX).await {
            Ok(answer) => postcard::from_bytes(&answer).map_err(|error| AppendError::Unknown(error.to_string())),
            Err(NoAnswer::NotSent(why)) => Err(AppendError::NotDone(why)),
            // A read has changed nothing.
            Err(NoAnswer::Lost(why)) if question.is_read() => Err(AppendError::NotDone(why)),
            Err(NoAnswer::Lost(why)) => Err(AppendError::Unknown(why)),
        }
    }
}

impl Served for Hall {
    fn gone(&self, holder: Holder) -> BoxFuture<'static, ()> {
        let (hall, mut nodes) = (self.clone(), self.0.nodes.subscribe());
        Box::pin(async move {
            let is_out = |_changed: &u64| hall.admit(&holder).is_err();
            if nodes.wait_for(is_out).await.is_err() {
                std::future::pending().await
            }
        })
    }

    fn lead(&self, question: Vec<u8>, of: Holder) -> BoxFuture<'static, Option<Vec<u8>>> {
        let hall = self.clone();
        Box::pin(async move {
            let opened = hall.0.opened.get()?;
            let answer = match (postcard::from_bytes(&question), &opened.store) {
                (Ok(question), Some(store)) => match acceptable(&opened.engine.state(), &of, &question) {
                    Ok(()) => store.take(question).await,
                    Err(why) => Answered::NotDone(why),
                },
                (Ok(_), None) => Answered::NotDone("a worker has no log".to_owned()),
                (Err(error), _) => {
                    Answered::NotDone(format!("invalid question: {error}; is it another version of blixard?"))
                }
            };
            postcard::to_stdvec(&answer).ok()
        })
    }

    fn lead_bytes_max(&self) -> u32 {
        FORWARDED_BYTES_MAX
    }

    fn ninep(&self, stream: ServerStream, holder: Holder, from: SocketAddr) -> BoxFuture<'static, ()> {
        let door = self.0.door.get().cloned();
        Box::pin(async move {
            match door {
                Some(door) => door.serve(stream, holder, from).await,
                None => tracing::warn!(%from, "a connection was refused: the node is starting and has no tree yet"),
            }
        })
    }

    fn answer(&self, question: Question, who: Option<Holder>) -> BoxFuture<'static, Answer> {
        let hall = self.clone();
        Box::pin(async move {
            let Some(opened) = hall.0.opened.get() else {
                return Answer::Refused(Refusal::again("busy: the node is starting; ask again, or ask another"));
            };
            let answer = match (question, &who) {
                (question @ Question::Join { .. }, _) => hall.join(opened, question).await,
                (Question::NewRaft { was }, Some(who)) => hall.new_raft(opened, was, who).await,
                (Question::NewRaft { .. }, None) => Err(Refusal::denied("no permission: only a node asks this")),
            };
            answer.unwrap_or_else(Answer::Refused)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::EntryId;

    fn entry(node: u64, n: u64, by: By, commands: Vec<Command>) -> Entry {
        Entry { id: EntryId { node: NodeId(node), boot: 1, n }, at: HybridTime::from_millis(1_000), by, commands }
    }

    /// Alpha, which has founded the cluster, and the worker of this name.
    fn state(worker: &str) -> State {
        let (secret_sha256, admin) = ([7; 32], By::User("root".to_owned()));
        let init = Command::Init {
            cluster: "lab".to_owned(),
            node: "alpha".to_owned(),
            admin: "root".to_owned(),
            admin_uid: 0,
        };
        let invite = Command::InviteNew { secret_sha256, role: NodeRole::Worker, expires_ms: 60_000 };
        let join = Command::NodeJoin {
            secret_sha256,
            name: worker.to_owned(),
            address: "w!5640".to_owned(),
            entry_format: crate::engine::state::ENTRY_FORMAT,
            release: "1".to_owned(),
        };
        let entries =
            [entry(1, 1, By::Agent, vec![init]), entry(1, 2, admin, vec![invite]), entry(1, 3, By::Agent, vec![join])];
        (1..).zip(entries).fold(State::new(), |state, (seq, entry)| {
            let (next, outcome, _events) = state.apply(seq, &entry);
            outcome.unwrap();
            next
        })
    }

    #[test]
    fn what_is_appended_for_others_can_be_read_and_is_their_own() {
        let state = state("w");
        let of = |name: &str| Holder {
            name: name.to_owned(),
            purpose: Purpose::Node,
            serial: "1".to_owned(),
            issued_ms: 0,
            expires_ms: u64::MAX,
            hosts: Vec::new(),
        };
        let append = |bytes: Vec<u8>| Forwarded::Append(vec![bytes.into()]);
        let of_node = |node| entry(node, 9, By::User("root".to_owned()), vec![Command::NodeDown]).encode();
        let refused = |name: &str, question: Forwarded| acceptable(&state, &of(name), &question).unwrap_err();
        for name in ["alpha", "w"] {
            assert!(refused(name, append(b"x".to_vec())).contains("invalid entry"));
            let large = vec![of_node(2).into(); BATCH_RECORDS_MAX + 1];
            assert!(refused(name, Forwarded::Append(large)).contains("invalid append"));
        }
        let relayed = |bytes| Forwarded::Relayed(Box::new(append(bytes)));
        assert_eq!(acceptable(&state, &of("w"), &relayed(of_node(2))), Ok(()));
        assert!(refused("w", relayed(of_node(1))).contains("not from node 2"));
        assert_eq!(acceptable(&state, &of("alpha"), &append(of_node(2))), Ok(()), "a member relays");
        assert!(refused("x", append(of_node(2))).contains("not in this cluster"));
    }
}
