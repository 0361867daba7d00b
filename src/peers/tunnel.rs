//! Tunnels: this node's stores reach another member's at its address on loopback; here that address is listened at, and each
//! connection is carried to the node in TLS.

use super::{CONNECT_WITHIN, Loopback, Peer, SILENT_WITHIN, Service, host_and_port};
use crate::ninep::identity::Identity;
use crate::ninep::tls;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Connections through one listener at a time: a store has one to each other, and a few that are being replaced.
const CONNECTIONS_MAX: usize = 32;

/// Why there can be no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Another process has the address.
    #[error(
        "busy: {address} on loopback, by which the member {raft} would be reached, is taken: another node of this cluster runs on this \
         machine; each needs a machine or a network namespace of its own ({source})"
    )]
    Taken {
        /// The address.
        address: SocketAddr,
        /// Whose it is.
        raft: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// More identities than addresses.
    #[error("{0}")]
    NoAddress(crate::text::Refusal),
}

/// Carries the connections to `peers`, as they come and go, until it is dropped. `own` is this node's identity in Raft.
///
/// # Errors
/// An address can't be had; the others' tunnels end with it.
pub async fn run(
    identity: Arc<Identity>,
    loopback: Loopback,
    own: u64,
    mut peers: watch::Receiver<Vec<Peer>>,
) -> Result<(), TunnelError> {
    let mut tunnels: BTreeMap<Peer, [AbortOnDropHandle<()>; 2]> = BTreeMap::new();
    loop {
        let wanted: Vec<Peer> = peers.borrow_and_update().iter().filter(|peer| peer.raft != own).cloned().collect();
        // First those that go: the next one may have the same address.
        tunnels.retain(|peer, _| wanted.contains(peer));
        for peer in wanted {
            if !tunnels.contains_key(&peer) && !peer.address.is_empty() {
                let made = open(&identity, loopback, &peer).await?;
                tunnels.insert(peer, made);
            }
        }
        if peers.changed().await.is_err() {
            // Nobody changes them any more; those that are there go on.
            std::future::pending::<()>().await;
        }
    }
}

async fn open(
    identity: &Arc<Identity>,
    loopback: Loopback,
    peer: &Peer,
) -> Result<[AbortOnDropHandle<()>; 2], TunnelError> {
    let (raft, api) = loopback.addresses(peer.raft).map_err(TunnelError::NoAddress)?;
    let listen = |address| async move {
        let bound = TcpListener::bind(address).await;
        bound.map_err(|source| TunnelError::Taken { address, raft: peer.raft, source })
    };
    let (raft, api) = (listen(raft).await?, listen(api).await?);
    let start = |listener, service| {
        let carrying = accept(listener, identity.clone(), peer.clone(), service);
        AbortOnDropHandle::new(tokio::spawn(carrying))
    };
    Ok([start(raft, Service::Raft), start(api, Service::Api)])
}

async fn accept(listener: TcpListener, identity: Arc<Identity>, peer: Peer, service: Service) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((near, _)) => {
                    let (identity, peer) = (identity.clone(), peer.clone());
                    connections.spawn(async move { carry(near, &identity, &peer, service).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(super::entrance::ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// One connection, from its beginning to its end. When the node can't be reached, the near side is closed: the store tries again.
///
/// It begins with the identity in Raft that is meant: a node that has another one by now must not answer for the old one, whose log
/// it has not.
async fn carry(near: TcpStream, identity: &Identity, peer: &Peer, service: Service) {
    let reached = match connect(identity, &peer.address, service).await {
        Ok(mut far) => far.write_u64(peer.raft).await.map(|()| far).map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    match reached {
        Ok(mut far) => splice(near, &mut far).await,
        Err(why) => tracing::debug!(?peer, ?service, why, "another node can't be reached"),
    }
}

/// Copies both ways until either side ends.
pub(super) async fn splice(mut near: TcpStream, far: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    without_delay(&near);
    if let Err(error) = copy_bidirectional(&mut near, far).await {
        tracing::debug!(%error, "a connection between nodes has ended");
    }
}

/// Connects to another node, for this.
///
/// # Errors
/// Why not, as a sentence.
pub async fn connect(
    identity: &Identity,
    address: &str,
    service: Service,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, String> {
    let (host, stream) = dial(address).await?;
    let shaking = tls::connect_for(identity, &host, stream, service.protocol());
    timeout(CONNECT_WITHIN, shaking).await.map_err(|_elapsed| late(address))?
}

/// A TCP connection to an address, and its host.
pub(super) async fn dial(address: &str) -> Result<(String, TcpStream), String> {
    let (host, port) = host_and_port(address).map_err(|refusal| refusal.sentence)?;
    let connecting = timeout(CONNECT_WITHIN, TcpStream::connect((host.as_str(), port)));
    let stream = connecting.await.map_err(|_elapsed| late(address))?.map_err(|error| format!("{address}: {error}"))?;
    tend(&stream);
    Ok((host, stream))
}

fn late(address: &str) -> String {
    format!("{address} has not answered within {} s", CONNECT_WITHIN.as_secs())
}

/// No waiting for more to send, and no waiting for who is gone.
pub(super) fn tend(stream: &TcpStream) {
    without_delay(stream);
    let silent_ms = u32::try_from(SILENT_WITHIN.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(stream, silent_ms) {
        tracing::debug!(%error, "TCP_USER_TIMEOUT could not be set");
    }
}

fn without_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
}
