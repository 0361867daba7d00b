//! From an accepted connection to a session: who is it, and may they come in? Whoever may not is named in the trace, with the
//! reason.

use super::connection::{Connection, End};
use super::counted::Counted;
use super::listener::Accepted;
use super::peer::Peer;
use super::session::{Broken, Session};
use crate::clock::system_millis;
use crate::fs::sessions::{Place, Sessions};
use crate::fs::tree::{Credential, Tree};
use crate::ninep::Malformed;
use crate::ninep::holder::{Holder, Purpose};
use crate::ninep::tls::{self, HANDSHAKE_WITHIN, HANDSHAKES_MAX};
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// The first bytes of a TLS handshake: the type of the record, and the major version.
const TLS_BEGINS: [u8; 2] = [0x16, 0x03];

/// What a certificate proves.
pub(super) fn credential(holder: &Holder) -> Credential {
    let Holder { name, serial, issued_ms, purpose, .. } = holder.clone();
    match purpose {
        Purpose::Node => Credential::Node { name, user: String::new() },
        Purpose::User | Purpose::Other => Credential::Certificate { name, serial, issued_ms },
    }
}

/// Where everybody comes in, by whatever listener.
pub(super) struct Entrance {
    tree: Arc<dyn Tree>,
    guests_uids: Option<Range<u32>>,
    sessions: Arc<Sessions>,
    handshakes: Semaphore,
}

impl Entrance {
    pub fn new(tree: Arc<dyn Tree>, guests_uids: Option<Range<u32>>, sessions: Arc<Sessions>) -> Entrance {
        Entrance { tree, guests_uids, sessions, handshakes: Semaphore::new(HANDSHAKES_MAX) }
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, accepted: Accepted) {
        let guests_uids = self.guests_uids.clone();
        match accepted {
            Accepted::Unix(stream) => match Peer::of_unix(&stream, guests_uids) {
                Ok(peer) => self.converse(stream, peer).await,
                Err(error) => refuse("unix", &format!("the kernel does not say who that is: {error}")),
            },
            Accepted::Loopback(stream, address) => {
                without_delay(&stream, address);
                match loopback_peer(&stream, address, guests_uids).await {
                    Ok(peer) => self.converse(stream, peer).await,
                    Err(why) => refuse(&address.to_string(), &why),
                }
            }
            Accepted::Insecure(stream, address) => {
                without_delay(&stream, address);
                self.converse(stream, Peer::of_insecure(address)).await;
            }
            Accepted::Tls(stream, address, acceptor) => {
                without_delay(&stream, address);
                match self.handshake(stream, &acceptor).await {
                    Ok((stream, holder)) => self.certified(stream, holder, address).await,
                    Err(why) => refuse(&address.to_string(), &why),
                }
            }
        }
    }

    /// Serves whoever has proved to hold this certificate.
    pub async fn certified(&self, stream: impl AsyncRead + AsyncWrite + Unpin, holder: Holder, from: SocketAddr) {
        let peer = Peer::of_certificate(from, credential(&holder));
        until_expired(&holder, self.converse(stream, peer)).await;
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        acceptor: &tls::Acceptor,
    ) -> Result<(impl AsyncRead + AsyncWrite + Unpin + use<>, Holder), String> {
        let Ok(_place) = self.handshakes.try_acquire() else {
            return Err(format!("{HANDSHAKES_MAX} others are proving who they are, which is the most at a time"));
        };
        let late = |_elapsed| format!("it has not proved who it is within {} s", HANDSHAKE_WITHIN.as_secs());
        timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await.map_err(late)?
    }

    async fn converse(&self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer) {
        let from = peer.from.clone();
        let place = match self.enter(&peer) {
            Ok(place) => place,
            Err(why) => return refuse(&from, &why),
        };
        let counted = place.session().clone();
        let session = Session::new(self.tree.clone(), peer, counted.clone());
        let connection = Connection::new(Counted { stream, session: counted.clone() }, session);
        tokio::select! {
            end = connection.run() => tell(&from, &end),
            why = counted.ended() => {
                tracing::warn!(%from, user = %counted.who.user, %why, "a connection was closed");
            }
        }
    }

    /// First in, then looked at again: whoever watches for what changes sees all who are in, so that a change between the two
    /// looks is missed by neither.
    fn enter(&self, peer: &Peer) -> Result<Place, String> {
        let newcomer = peer.newcomer(&*self.tree);
        let place = self.sessions.enter(newcomer.clone()).map_err(|refusal| refusal.sentence)?;
        self.tree.admit(&peer.credential).map_err(|refusal| refusal.sentence)?;
        if peer.newcomer(&*self.tree) == newcomer {
            Ok(place)
        } else {
            Err("busy: who that is has just changed; connect again".to_owned())
        }
    }
}

fn tell(from: &str, end: &End) {
    match end {
        End::Broken(broken) => refuse(from, &format!("{broken}{}", hint(broken))),
        End::Silent => refuse(from, &end.to_string()),
        End::Closed | End::Socket(_) => tracing::debug!(%from, %end, "a 9P connection has ended"),
    }
}

fn refuse(from: &str, why: &str) {
    tracing::warn!(%from, %why, "a connection was refused");
}

/// Answers are gathered before they are sent: there is nothing for Nagle's algorithm to wait for.
fn without_delay(stream: &TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY could not be set");
    }
}

async fn loopback_peer(
    stream: &TcpStream,
    address: SocketAddr,
    guests_uids: Option<Range<u32>>,
) -> Result<Peer, String> {
    let own = stream.local_addr().map_err(|error| error.to_string())?;
    if !address.ip().to_canonical().is_loopback() {
        return Err("it does not come from loopback, where alone plain TCP is served".to_owned());
    }
    let looked_up = tokio::task::spawn_blocking(move || Peer::of_loopback(address, own, guests_uids)).await;
    let unknown = |error| format!("the kernel does not say who that is: {error}");
    looked_up.map_err(|error| unknown(error.to_string()))?.map_err(|error| unknown(error.to_string()))
}

/// What the client was probably trying, where it can be told from the bytes.
fn hint(broken: &Broken) -> &'static str {
    match broken {
        Broken::Malformed(Malformed::Size { size, .. }) if size.to_le_bytes().starts_with(&TLS_BEGINS) => {
            "; it looks like TLS, which is spoken on listeners of tls! alone"
        }
        _ => "",
    }
}

/// A connection lasts no longer than the certificate by which it came in.
async fn until_expired(holder: &Holder, conversation: impl Future<Output = ()>) {
    let now_ms = match system_millis() {
        Ok(now_ms) => now_ms,
        Err(error) => return refuse(&holder.name, &format!("whether the certificate is valid can't be told: {error}")),
    };
    let left_ms = holder.expires_ms.saturating_sub(now_ms);
    tokio::select! {
        () = conversation => {}
        () = sleep(Duration::from_millis(left_ms)) => {
            tracing::warn!(user = %holder.name, serial = %holder.serial, "a connection was closed: its certificate has expired");
        }
    }
}
