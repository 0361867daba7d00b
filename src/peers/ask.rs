//! What one machine asks another beside the log: to be let in, for a new identity in Raft.
//!
//! One question a connection, one answer: a length of four bytes (big-endian), then JSON. What is in an answer can be secret, so it
//! goes to whoever has proved who they are, by a certificate or by a token, and never into the tree.

use super::{CONNECT_WITHIN, Loopback, Peer, Service, tunnel};
use crate::ninep::identity::Identity;
use crate::ninep::tls;
use crate::text::{Code, Refusal};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Length of the secret in a token, in bytes.
pub const SECRET_BYTES: usize = 16;
/// The longest question or answer, in bytes: a key, a few certificates, and a hundred members.
const MESSAGE_BYTES_MAX: u32 = 256 * 1024;
/// How long an answer may take: an entry of the log, elections included.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// To be let in.
    Join {
        /// The secret of the token.
        secret: [u8; SECRET_BYTES],
        /// How the node is to be called.
        name: String,
        /// Where others will reach it.
        address: String,
        /// The highest format of entries that it knows.
        entry_format: u8,
        /// The version of its blixard.
        release: String,
        /// A request for a certificate (PKCS #10), in PEM.
        request: String,
    },
    /// For a new identity in Raft: the store is lost.
    NewRaft {
        /// The identity that it had.
        was: u64,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Come in.
    Welcome(Box<Welcome>),
    /// The new identity, and who else is there.
    Raft {
        /// The identity.
        raft: u64,
        /// The other members.
        peers: Vec<Peer>,
    },
    /// No.
    Refused(Refusal),
}

/// What a machine is given that comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster's name.
    pub cluster: String,
    /// The node's number.
    pub node: u64,
    /// Its identity in Raft.
    pub raft: u64,
    /// The network of the stores.
    pub loopback: Loopback,
    /// Its certificate and the authority's, in PEM.
    pub certificates: String,
    /// The authority's key, for who may let others in.
    pub authority_key: Option<String>,
    /// The two secrets of the stores, for who has one.
    pub secrets: Option<(String, String)>,
    /// The other members.
    pub peers: Vec<Peer>,
}

/// Asks a member. `identity` is this node's.
///
/// # Errors
/// It could not be reached, or refused.
pub async fn ask(identity: &Identity, address: &str, question: &Question) -> Result<Answer, Refusal> {
    let stream = tunnel::connect(identity, address, Service::Ask).await.map_err(unreachable)?;
    converse(stream, question).await
}

/// Asks a member to let this machine in, which has no certificate yet; the member's authority must be the one of the token.
///
/// # Errors
/// It could not be reached, is another cluster's, or refused.
pub async fn ask_to_join(authority_sha256: [u8; 32], address: &str, question: &Question) -> Result<Answer, Refusal> {
    let (host, stream) = tunnel::dial(address).await.map_err(unreachable)?;
    let shaking = tls::connect_pinned(authority_sha256, &host, stream, Service::Join.protocol());
    let late = |_| unreachable(format!("{address} has not answered within {} s", CONNECT_WITHIN.as_secs()));
    let stream = timeout(CONNECT_WITHIN, shaking).await.map_err(late)?.map_err(unreachable)?;
    converse(stream, question).await
}

fn unreachable(why: String) -> Refusal {
    Refusal::new(Code::HostDown, why)
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, question: &Question) -> Result<Answer, Refusal> {
    let conversation = async {
        write(&mut stream, question).await?;
        read(&mut stream).await
    };
    let answered = timeout(ANSWER_WITHIN, conversation).await;
    let late = |_| {
        Refusal::timed_out(format!("no answer within {} s; what became of it is not known", ANSWER_WITHIN.as_secs()))
    };
    match answered.map_err(late)?.map_err(unreachable)? {
        Answer::Refused(refusal) => Err(refusal),
        answer => Ok(answer),
    }
}

/// Reads one message.
///
/// # Errors
/// As a sentence.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, String> {
    let size = stream.read_u32().await.map_err(|error| format!("the connection has ended: {}", tls::end_of(&error)))?;
    if size > MESSAGE_BYTES_MAX {
        return Err(format!("invalid message of {size} bytes: at most {MESSAGE_BYTES_MAX} are taken"));
    }
    let mut text = Vec::new();
    let read = stream.take(u64::from(size)).read_to_end(&mut text).await;
    read.map_err(|error| format!("the connection has ended: {error}"))?;
    serde_json::from_slice(&text)
        .map_err(|error| format!("invalid message: {error}; is it another version of blixard?"))
}

/// Writes one message.
///
/// # Errors
/// As a sentence.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    let size = u32::try_from(text.len()).map_err(|error| error.to_string())?;
    let written = async {
        stream.write_u32(size).await?;
        stream.write_all(&text).await?;
        stream.flush().await
    };
    written.await.map_err(|error| format!("the connection has ended: {error}"))
}
