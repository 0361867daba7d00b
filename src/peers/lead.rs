//! The way to the node that leads the log: connections that are kept, one question at a time on each. What is in a question is not known here.
//!
//! Invariant: a node that does not answer any more costs each who asks it one deadline, however many ask. Who waits for a place waits no longer
//! than for an answer, and goes away without asking when whom they mean has fallen silent meanwhile: by then another may lead.

use super::tunnel;
use super::{Peer, Service};
use crate::ninep::identity::Identity;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

/// How long an answer may take: a commit, elections aside. Whoever leads and can't commit is not waited for longer, because
/// another may lead by then.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Questions of others that are on their way at a time: a commit takes no longer for what comes with it, so that a few are enough for
/// hundreds of workers.
const RELAYED_MAX: usize = 8;

/// What a question is for. Each kind has connections of its own, so that none waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// An append of this node: one at a time.
    Append,
    /// A read: one at a time, which is shared by all who come together.
    Read,
    /// An append that is carried for a machine that is not part of Raft.
    Relayed,
}

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

/// A connection that waits for the next question, and to where.
type Kept = (String, Box<dyn Both>);

/// The connections for one kind of question.
struct Group {
    /// One for each question that may be on its way.
    places: Semaphore,
    /// No more than there are places.
    kept: Mutex<Vec<Kept>>,
    /// Who has left a question without an answer last, and when that was known.
    silent: Mutex<Option<(u64, Instant)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    fn new(places: usize) -> Group {
        Group { places: Semaphore::new(places), kept: Mutex::default(), silent: Mutex::default() }
    }

    /// A kept connection to there. Those to elsewhere are of no more use: there is one leader.
    fn take(&self, address: &str) -> Option<Kept> {
        let mut kept = locked(&self.kept);
        kept.retain(|(to, _)| to == address);
        kept.pop()
    }

    fn silent_since(&self, raft: u64, came: Instant) -> bool {
        locked(&self.silent).is_some_and(|(silent, known)| silent == raft && known >= came)
    }
}

/// A question on its way: when it is given up, for whatever reason, those who wait behind it hear of it.
struct Asking<'a> {
    group: &'a Group,
    raft: u64,
    answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered {
            *locked(&self.group.silent) = Some((self.raft, Instant::now()));
        }
    }
}

/// The lines to whoever leads.
pub struct Lines {
    identity: Arc<Identity>,
    peers: watch::Receiver<Vec<Peer>>,
    append: Group,
    read: Group,
    relayed: Group,
}

impl Lines {
    /// No connection yet.
    pub fn new(identity: Arc<Identity>, peers: watch::Receiver<Vec<Peer>>) -> Lines {
        Lines { identity, peers, append: Group::new(1), read: Group::new(1), relayed: Group::new(RELAYED_MAX) }
    }

    /// Asks the member with this identity in Raft. Who finds all places of its kind taken waits for one, in turn.
    ///
    /// # Errors
    /// No answer.
    pub async fn ask(&self, raft: u64, line: Line, question: &[u8], answer_max: u32) -> Result<Vec<u8>, NoAnswer> {
        let group = match line {
            Line::Append => &self.append,
            Line::Read => &self.read,
            Line::Relayed => &self.relayed,
        };
        let came = Instant::now();
        let not_sent = |why: String| NoAnswer::NotSent(why);
        let late = |_| not_sent(format!("the questions before it have taken {} s", ANSWER_WITHIN.as_secs()));
        let place = timeout(ANSWER_WITHIN, group.places.acquire()).await.map_err(late)?;
        let _place = place.map_err(|_closed| not_sent("the lines are closed".to_owned()))?;
        if group.silent_since(raft, came) {
            return Err(not_sent(format!("member {raft} has left the question before it without an answer")));
        }
        // Not before there is a place: it may have moved.
        let address = self.peers.borrow().iter().find(|peer| peer.raft == raft).map(|peer| peer.address.clone());
        let address = address.ok_or_else(|| not_sent(format!("member {raft} is not known here yet")))?;
        let mut asking = Asking { group, raft, answered: false };
        let answer = self.converse(group, address, question, answer_max).await?;
        asking.answered = true;
        Ok(answer)
    }

    async fn converse(
        &self,
        group: &Group,
        address: String,
        question: &[u8],
        answer_max: u32,
    ) -> Result<Vec<u8>, NoAnswer> {
        let silent = || format!("no answer of {address} within {} s", ANSWER_WITHIN.as_secs());
        // Out of the kept ones while it is used: a line that was given up half-way is of no more use.
        let mut stream = match group.take(&address) {
            Some((_, stream)) => stream,
            None => {
                let connecting = timeout(ANSWER_WITHIN, tunnel::connect(&self.identity, &address, Service::Lead));
                let connected = connecting.await.unwrap_or_else(|_late| Err(silent()));
                Box::new(connected.map_err(NoAnswer::NotSent)?) as Box<dyn Both>
            }
        };
        let conversation = async {
            write(&mut stream, question).await?;
            read(&mut stream, answer_max).await
        };
        let answer = timeout(ANSWER_WITHIN, conversation).await.map_err(|_late| NoAnswer::Lost(silent()))?;
        let answer = answer.map_err(|error| NoAnswer::Lost(format!("{address}: {error}")))?;
        locked(&group.kept).push((address, stream));
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
