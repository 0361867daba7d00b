//! The way to the node that leads the log: connections that are kept, one question at a time on each. What is in a question is not known here.

use super::tunnel;
use super::{Peer, Service};
use crate::ninep::identity::Identity;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

/// How long an answer may take: a commit, elections aside. Whoever leads and can't commit is not waited for longer, because
/// another may lead by then.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Connections that are kept: one for appends, one for reads.
const KEPT: usize = 2;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The question was not sent.
    NotSent(String),
    /// It may have been heard.
    Lost(String),
}

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Both for S {}

/// A kept connection, and to where.
type Line = Option<(String, Box<dyn Both>)>;

/// The lines to whoever leads.
pub struct Lines {
    identity: Arc<Identity>,
    peers: watch::Receiver<Vec<Peer>>,
    lines: [Mutex<Line>; KEPT],
}

impl Lines {
    /// No connection yet.
    pub fn new(identity: Arc<Identity>, peers: watch::Receiver<Vec<Peer>>) -> Lines {
        Lines { identity, peers, lines: Default::default() }
    }

    /// Asks the member with this identity in Raft, over the line of this number. Of two who use the same line one waits.
    ///
    /// # Errors
    /// No answer.
    pub async fn ask(&self, raft: u64, line: usize, question: &[u8], answer_max: u32) -> Result<Vec<u8>, NoAnswer> {
        let address = self.peers.borrow().iter().find(|peer| peer.raft == raft).map(|peer| peer.address.clone());
        let address = address.ok_or_else(|| NoAnswer::NotSent(format!("member {raft} is not known here yet")))?;
        let line = self.lines.get(line).ok_or_else(|| NoAnswer::NotSent("there is no such line".to_owned()))?;
        let mut line = line.lock().await;
        if line.as_ref().is_none_or(|(to, _)| *to != address) {
            let connected =
                tunnel::connect(&self.identity, &address, Service::Lead).await.map_err(NoAnswer::NotSent)?;
            *line = Some((address, Box::new(connected)));
        }
        // Taken out while it is used: a line that was given up half-way is of no more use.
        let Some((address, mut stream)) = line.take() else {
            return Err(NoAnswer::NotSent("the line is gone".to_owned()));
        };
        let conversation = async {
            write(&mut stream, question).await?;
            read(&mut stream, answer_max).await
        };
        let late = |_| NoAnswer::Lost(format!("no answer of {address} within {} s", ANSWER_WITHIN.as_secs()));
        let answer = timeout(ANSWER_WITHIN, conversation).await.map_err(late)?;
        let answer = answer.map_err(|error| NoAnswer::Lost(format!("{address}: {error}")))?;
        *line = Some((address, stream));
        Ok(answer)
    }
}

/// Reads one message of at most so many bytes.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), bytes_max: u32) -> std::io::Result<Vec<u8>> {
    let size = stream.read_u32().await?;
    if size > bytes_max {
        let why = format!("a message of {size} bytes, and at most {bytes_max} are taken");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    let mut bytes = Vec::new();
    stream.take(u64::from(size)).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 != u64::from(size) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Writes one message.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut message = Vec::with_capacity(bytes.len() + 4);
    message.extend(size.to_be_bytes());
    message.extend(bytes);
    stream.write_all(&message).await?;
    stream.flush().await
}
