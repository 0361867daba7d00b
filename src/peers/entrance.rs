//! The port at which other nodes, and users over TLS, come in: the handshake, who it is, what for, and on to whoever serves that.

use super::ask::{ANSWER_WITHIN, Answer, Question, read, write};
use super::{Service, lead, tunnel};
use crate::ninep::holder::{Holder, Purpose};
use crate::ninep::tls::{HANDSHAKE_WITHIN, HANDSHAKES_MAX, PeerAcceptor, ServerStream};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long it is waited before the next accept(2) when the machine has no descriptor or memory left for one.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Connections of nodes at a time. Those of users are counted where 9P is served.
const CONNECTIONS_MAX: usize = 4096;
/// Of them, machines that want to join at a time. They have proved nothing, so that they have few places, and none of the others'.
pub const JOINS_MAX: usize = 16;

/// Who serves what comes in.
pub trait Served: Send + Sync + 'static {
    /// A connection for 9P, of a user or a node, to its end.
    fn ninep(&self, stream: ServerStream, holder: Holder, from: SocketAddr) -> BoxFuture<'static, ()>;
    /// A question to the node that leads the log, as bytes; the answer, too. None: the node has no log yet.
    fn lead(&self, question: Vec<u8>, of: Holder) -> BoxFuture<'static, Option<Vec<u8>>>;
    /// Returns when this node is no member any more.
    fn gone(&self, holder: Holder) -> BoxFuture<'static, ()>;
    /// The longest such question, in bytes.
    fn lead_bytes_max(&self) -> u32;
    /// A question of a node; `who` is None for one that wants to join.
    fn answer(&self, question: Question, who: Option<Holder>) -> BoxFuture<'static, Answer>;
}

/// Where the store of this node listens.
#[derive(Debug, Clone, Copy)]
pub struct Store {
    /// Whose it is in Raft.
    pub id: u64,
    /// Raft's port.
    pub raft: SocketAddr,
    /// The one for clients.
    pub api: SocketAddr,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    acceptor: PeerAcceptor,
    store: Store,
    served: Arc<dyn Served>,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended { tracing::error!(%error, "a connection has panicked, and was closed") }
            }
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, from)) => {
                    let Ok(place) = handshakes.clone().try_acquire_owned() else {
                        tracing::warn!(%from, "a connection was refused: {HANDSHAKES_MAX} others are proving who they are");
                        continue;
                    };
                    let (acceptor, served, joins) = (acceptor.clone(), served.clone(), joins.clone());
                    connections.spawn(async move {
                        let taken = come_in(stream, from, &acceptor, store, &served, place, &joins).await;
                        if let Err(why) = taken {
                            tracing::warn!(%from, %why, "a connection was refused");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

/// A connection from its handshake to its end; `place` is given back when it is known who that is.
async fn come_in(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: &PeerAcceptor,
    store: Store,
    served: &Arc<dyn Served>,
    place: OwnedSemaphorePermit,
    joins: &Semaphore,
) -> Result<(), String> {
    tunnel::tend(&stream);
    let late = |_| format!("it has not proved who it is within {} s", HANDSHAKE_WITHIN.as_secs());
    let (stream, holder, protocol) = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await.map_err(late)??;
    drop(place);
    let service = Service::of(protocol.as_deref());
    // What a node has open ends when it is removed; whose 9P is served is looked at there.
    let gone = match (&holder, service) {
        (Some(holder), Some(service)) if service != Service::Ninep => served.gone(holder.clone()),
        _ => Box::pin(std::future::pending()),
    };
    tokio::select! {
        () = gone => Err("the node was removed".to_owned()),
        taken = take(stream, holder, service, from, store, served, joins) => taken,
    }
}

async fn take(
    mut stream: ServerStream,
    holder: Option<Holder>,
    service: Option<Service>,
    from: SocketAddr,
    store: Store,
    served: &Arc<dyn Served>,
    joins: &Semaphore,
) -> Result<(), String> {
    let service = service.ok_or("it asks for a protocol that is not spoken here")?;
    let to_store = match (service, holder) {
        (Service::Join, _) => {
            let many = |_| format!("{JOINS_MAX} others ask to be let in, which is the most at a time");
            let _place = joins.try_acquire().map_err(many)?;
            return answer(stream, None, served).await;
        }
        (_, None) => return Err("the client has shown no certificate".to_owned()),
        (Service::Ninep, Some(holder)) => {
            served.ninep(stream, holder, from).await;
            return Ok(());
        }
        (_, Some(holder)) => {
            holder.check_purpose(Purpose::Node)?;
            match service {
                Service::Ask => return answer(stream, Some(holder), served).await,
                Service::Lead => return lead(stream, holder, served).await,
                Service::Raft => store.raft,
                _ => store.api,
            }
        }
    };
    let meant = timeout(HANDSHAKE_WITHIN, stream.read_u64()).await.map_err(|_| "it does not say whom it means")?;
    let meant = meant.map_err(|error| error.to_string())?;
    if store.id != meant {
        tracing::debug!(%from, meant, "a connection for an identity in Raft that this node does not have, or not any more");
        return Ok(());
    }
    match timeout(super::CONNECT_WITHIN, TcpStream::connect(to_store)).await {
        Ok(Ok(near)) => {
            tunnel::splice(near, &mut stream).await;
            Ok(())
        }
        // It is starting, or ending.
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "the store takes no connection");
            Ok(())
        }
        Err(_late) => Err("the store of this node takes no connection".to_owned()),
    }
}

/// Answers one question after the other, until the other side has had enough.
async fn lead(mut stream: ServerStream, holder: Holder, served: &Arc<dyn Served>) -> Result<(), String> {
    loop {
        // Its end is no fault.
        let Ok(question) = lead::read(&mut stream, served.lead_bytes_max()).await else { return Ok(()) };
        // Whoever asks waits no longer, and asks another: what is carried on for nobody stands in the way of those who still wait.
        let Ok(answer) = timeout(lead::ANSWER_WITHIN, served.lead(question, holder.clone())).await else {
            return Ok(());
        };
        let answer = answer.ok_or("the node is starting and has no log yet")?;
        if let Err(error) = lead::write(&mut stream, &answer).await {
            tracing::debug!(%error, "an answer could not be given");
            return Ok(());
        }
    }
}

async fn answer(mut stream: ServerStream, who: Option<Holder>, served: &Arc<dyn Served>) -> Result<(), String> {
    let asked = timeout(HANDSHAKE_WITHIN, read(&mut stream)).await;
    let question: Question = asked.map_err(|_| "it has not said what it wants".to_owned())??;
    let conversation = async {
        let joins = matches!(question, Question::Join { .. });
        if joins != who.is_none() {
            return Err("a machine joins before it has a certificate, and asks everything else with it".to_owned());
        }
        let answer = served.answer(question, who).await;
        write(&mut stream, &answer).await
    };
    timeout(ANSWER_WITHIN, conversation).await.map_err(|_| "the answer took too long".to_owned())?
}
