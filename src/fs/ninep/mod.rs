//! The 9P server, in three dialects: the tree over unix sockets and loopback TCP. Knows `tree`, `ninep` and `text`.
//!
//! - [`listener`] and [`peer`]: where it listens, and who is at the other end
//! - [`connection`]: bytes in, bytes out, backpressure
//! - [`session`]: messages; `fids` is its table, `waiting` holds what can't be answered at once
//! - `files`, `attributes`: what the messages do; `plain` those that 9P2000.L has not
//! - [`limits`]: what is bounded

mod attributes;
mod connection;
mod fids;
mod files;
pub mod limits;
mod listener;
mod peer;
mod plain;
mod session;
mod waiting;

pub use listener::ListenError;

use super::tree::Tree;
use crate::text::Dial;
use connection::Connection;
use listener::{Accepted, Listener};
use session::Session;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// What the server has to be told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The uids under which guests run on this machine, if they are theirs alone; whoever has one is nobody. None: they run
    /// as somebody whose word counts, so that over TCP nobody is believed.
    pub guests_uids: Option<Range<u32>>,
}

/// A 9P server that has its sockets, but takes no connections yet.
pub struct Server {
    tree: Arc<dyn Tree>,
    listeners: Vec<Listener>,
    options: Options,
}

impl Server {
    /// Takes the sockets. Stale ones of unix are taken over.
    ///
    /// # Errors
    /// The first that can't be had; then none is kept.
    pub async fn bind(tree: Arc<dyn Tree>, dials: &[Dial], options: Options) -> Result<Server, ListenError> {
        let mut listeners = Vec::with_capacity(dials.len());
        for dial in dials {
            listeners.push(Listener::bind(dial).await?);
        }
        Ok(Server { tree, listeners, options })
    }

    /// Where it listens, with the ports that the kernel chose.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn dials(&self) -> io::Result<Vec<Dial>> {
        self.listeners.iter().map(Listener::dial).collect()
    }

    /// Serves until `stop`; then ends all connections and removes its sockets.
    pub async fn serve(self, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
        let mut acceptors = JoinSet::new();
        for listener in self.listeners {
            let (tree, options) = (self.tree.clone(), self.options.clone());
            let acceptor = Acceptor { listener, tree, options, places: places.clone() };
            acceptors.spawn(acceptor.run(stop.clone()));
        }
        while acceptors.join_next().await.is_some() {}
    }
}

/// One listener and its connections.
struct Acceptor {
    listener: Listener,
    tree: Arc<dyn Tree>,
    options: Options,
    /// Of all listeners together.
    places: Arc<Semaphore>,
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
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("a connection was refused: there are {} already", limits::CONNECTIONS_MAX);
            return;
        };
        let (tree, guests_uids) = (self.tree.clone(), self.options.guests_uids.clone());
        connections.spawn(async move {
            let _place = place;
            match accepted.peer(guests_uids).await {
                Ok(peer) => converse(accepted, Session::new(tree, peer)).await,
                Err(error) => tracing::warn!(%error, "it is not known who connected"),
            }
        });
    }
}

async fn converse(accepted: Accepted, session: Session) {
    let end = match accepted {
        Accepted::Unix(stream) => Connection::new(stream, session).run().await,
        Accepted::Tcp(stream, peer) => {
            // Answers are gathered before they are sent: there is nothing for Nagle's algorithm to wait for.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "TCP_NODELAY could not be set");
            }
            Connection::new(stream, session).run().await
        }
    };
    tracing::debug!(%end, "a 9P connection has ended");
}

/// A panic ends its own connection, and no other.
fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a 9P connection has panicked, and was closed");
    }
}
