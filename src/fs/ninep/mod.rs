//! The 9P server, in three dialects: the tree over unix sockets, TLS and TCP. Knows `tree`, `sessions`, `ninep` and `text`.
//!
//! - [`listener`], [`peer`], [`sock_diag`], [`entrance`]: where it listens, who is at the other end, and whether they may come in
//! - [`connection`], over a [`counted`] stream: bytes in, bytes out, backpressure
//! - [`session`]: messages; `fids` is its table, `waiting` holds what can't be answered at once
//! - `files`, `attributes`: what the messages do; `plain` those that 9P2000.L has not
//! - [`limits`]: what is bounded

mod attributes;
mod connection;
mod counted;
mod entrance;
mod fids;
mod files;
pub mod limits;
mod listener;
mod peer;
mod plain;
mod session;
mod sock_diag;
mod waiting;

pub use listener::ListenError;

use super::sessions::Sessions;
use super::tree::Tree;
use crate::ninep::holder::{Holder, Purpose};
use crate::ninep::identity::{Identity, IdentityError};
use crate::ninep::tls;
use crate::text::Dial;
use entrance::Entrance;
use listener::{Accepted, Listener};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// What the server has to be told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The uids under which guests run on this machine, if they are theirs alone; whoever has one is nobody. None: they run
    /// as somebody whose word counts, so that over TCP nobody is believed.
    pub guests_uids: Option<Range<u32>>,
    /// Where plain TCP is served although nothing is known of who is there: everybody is nobody.
    pub insecure: Vec<Dial>,
    /// The node's identity, for TLS.
    pub identity: PathBuf,
    /// Where connections are entered.
    pub sessions: Arc<Sessions>,
}

/// A 9P server that has its sockets, but takes no connections yet.
pub struct Server {
    listeners: Vec<Listener>,
    door: Door,
}

/// Where connections are served whose handshake was done elsewhere.
#[derive(Clone)]
pub struct Door {
    tree: Arc<dyn Tree>,
    entrance: Arc<Entrance>,
    places: Places,
}

/// The places for connections, of all listeners together.
#[derive(Clone)]
struct Places {
    all: Arc<Semaphore>,
    /// How many of them users can have.
    of_users: Arc<Semaphore>,
}

/// A connection's place, given back when it is dropped; a user's is one of the users', too.
type Taken = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Places {
    fn new() -> Places {
        let (all, of_users) = (Semaphore::new(limits::CONNECTIONS_MAX), Semaphore::new(limits::USERS_CONNECTIONS_MAX));
        Places { all: Arc::new(all), of_users: Arc::new(of_users) }
    }

    /// One for a user, whoever that is.
    fn for_user(&self) -> Result<Taken, TryAcquireError> {
        let of_users = self.of_users.clone().try_acquire_owned()?;
        Ok((self.all.clone().try_acquire_owned()?, Some(of_users)))
    }

    /// One for a node of the cluster.
    fn for_node(&self) -> Result<Taken, TryAcquireError> {
        Ok((self.all.clone().try_acquire_owned()?, None))
    }
}

impl Door {
    /// May the holder of a certificate come in? The error is a sentence.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, holder: &Holder) -> Result<(), String> {
        self.tree.admit(&entrance::credential(holder)).map_err(|refusal| refusal.sentence)
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin, holder: Holder, from: SocketAddr) {
        let is_node = holder.purpose == Purpose::Node;
        let place = if is_node { self.places.for_node() } else { self.places.for_user() };
        let Ok(_place) = place else {
            tracing::warn!(%from, "a connection was refused: all places are taken");
            return;
        };
        self.entrance.certified(stream, holder, from).await;
    }
}

impl Server {
    /// Takes the sockets. Stale ones of unix are taken over.
    ///
    /// # Errors
    /// The first that can't be had; then none is kept.
    pub async fn bind(tree: Arc<dyn Tree>, dials: &[Dial], options: Options) -> Result<Server, ListenError> {
        let mut listeners = Vec::with_capacity(dials.len() + options.insecure.len());
        for dial in dials {
            listeners.push(Listener::bind(dial, || acceptor(&tree, &options)).await?);
        }
        for dial in &options.insecure {
            listeners.push(Listener::bind_insecure(dial).await?);
        }
        let Options { guests_uids, sessions, .. } = options;
        let entrance = Arc::new(Entrance::new(tree.clone(), guests_uids, sessions));
        Ok(Server { listeners, door: Door { tree, entrance, places: Places::new() } })
    }

    /// Where it listens, with the ports that the kernel chose.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn dials(&self) -> io::Result<Vec<Dial>> {
        self.listeners.iter().map(Listener::dial).collect()
    }

    /// For connections that come in elsewhere.
    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// Serves until `stop`; then ends all connections and removes its sockets.
    pub async fn serve(self, stop: CancellationToken) {
        let Door { entrance, places, .. } = self.door;
        let mut acceptors = JoinSet::new();
        for listener in self.listeners {
            let acceptor = Acceptor { listener, entrance: entrance.clone(), places: places.clone() };
            acceptors.spawn(acceptor.run(stop.clone()));
        }
        while acceptors.join_next().await.is_some() {}
    }
}

/// Reads the node's identity, anew for each listener. Whoever has a certificate is asked about at the tree.
fn acceptor(tree: &Arc<dyn Tree>, options: &Options) -> Result<tls::Acceptor, IdentityError> {
    let tree = tree.clone();
    let admit = move |holder: &_| tree.admit(&entrance::credential(holder)).map_err(|refusal| refusal.sentence);
    tls::Acceptor::new(&Identity::read(&options.identity)?, Arc::new(admit))
}

/// One listener and its connections.
struct Acceptor {
    listener: Listener,
    entrance: Arc<Entrance>,
    places: Places,
}

impl Acceptor {
    async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => note_panic(ended),
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => self.serve(accepted, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "no connection could be accepted");
                        tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }

    fn serve(&self, accepted: Accepted, connections: &mut JoinSet<()>) {
        let Ok(place) = self.places.for_user() else {
            tracing::warn!("a connection was refused: users have {} already", limits::USERS_CONNECTIONS_MAX);
            return;
        };
        let entrance = self.entrance.clone();
        connections.spawn(async move {
            let _place = place;
            entrance.serve(accepted).await;
        });
    }
}

/// A panic ends its own connection, and no other.
fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a 9P connection has panicked, and was closed");
    }
}
