//! A machine that is not part of Raft: it follows the log of a member over 9P (`nodes/NAME/work`), has its appends carried to the node that leads
//! by the same member, and turns to another one when that one falls silent. Its guests run on meanwhile.

use crate::engine::log::followed::{Gathering, LINE_BYTES_MAX, Line, Part, SNAPSHOT_STEP_WITHIN, Upstream};
use crate::engine::log::forward::{Answered, FORWARDED_BYTES_MAX, Forwarded};
use crate::engine::log::{AppendError, Publisher};
use crate::ninep::client::{Client, File, Options};
use crate::ninep::linux::open as flags;
use crate::peers::Peer;
use crate::peers::lead::{self, Lines, NoAnswer};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a member may say nothing: leases are renewed more often, so that there always is something to say.
const SILENT_WITHIN: Duration = Duration::from_secs(5);
/// How long one step of asking for a part of the log may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// The pause before another member is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// The members, of which one is followed.
pub(super) struct Members {
    /// This machine's name among the nodes.
    name: String,
    /// The file of its identity.
    identity: PathBuf,
    lines: Lines,
    peers: watch::Receiver<Vec<Peer>>,
    /// Which of them is followed: counts on when one falls silent.
    turn: AtomicUsize,
    there: AtomicBool,
    /// A connection that is kept for parts of the log.
    client: Mutex<Option<Arc<Client>>>,
}

impl Members {
    /// For the worker of this name and number.
    pub(super) fn new(
        (name, node): (&str, u64),
        identity: PathBuf,
        lines: Lines,
        peers: watch::Receiver<Vec<Peer>>,
    ) -> Members {
        // Each begins with another one, so that all have about as many workers.
        let turn = AtomicUsize::new(usize::try_from(node).unwrap_or_default());
        Members {
            name: name.to_owned(),
            identity,
            lines,
            peers,
            turn,
            there: AtomicBool::new(false),
            client: Mutex::default(),
        }
    }

    /// The member whose turn it is.
    fn followed(&self, turn: usize) -> Result<Peer, String> {
        let peers = self.peers.borrow();
        let nth = turn.checked_rem(peers.len()).unwrap_or_default();
        peers.get(nth).cloned().ok_or_else(|| "this worker knows no member".to_owned())
    }

    fn turn(&self) -> usize {
        self.turn.load(Ordering::SeqCst)
    }

    /// Whose turn it was has failed: the next one. Of several who find that out the first is right, and the others would turn away from a
    /// member that nobody has tried yet.
    fn turn_to_another(&self, was: usize) {
        if self.turn.compare_exchange(was, was.wrapping_add(1), Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.there.store(false, Ordering::SeqCst);
            self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    async fn connect(&self, turn: usize) -> Result<Client, String> {
        let Peer { address, .. } = self.followed(turn)?;
        let dial = format!("tls!{address}").parse().map_err(|error| format!("{address}: {error}"))?;
        let options = Options { identity: Some(self.identity.clone()), ..Options::default() };
        Client::connect_with(&dial, &options).await.map_err(|error| error.to_string())
    }

    /// The member's `work`, to be read after a record.
    async fn open(&self, client: &Client, after: u64, how: u32) -> Result<File, String> {
        let path = format!("nodes/{}/work", self.name);
        let file = client.open(&path, flags::READ_WRITE | how).await.map_err(|error| error.to_string())?;
        go_on(&file, after).await?;
        Ok(file)
    }

    async fn kept(&self, turn: usize) -> Result<Arc<Client>, String> {
        let kept = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = kept {
            return Ok(client);
        }
        let client = Arc::new(self.connect(turn).await?);
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    async fn gather(&self, turn: usize, after: u64, max: usize, wanted: bool) -> Result<Part, String> {
        let client = self.kept(turn).await?;
        let file = self.open(&client, after, flags::NONBLOCK).await?;
        let (mut gathering, mut lines) = (Gathering::default(), Splitter::default());
        let mut is_whole = false;
        while !is_whole && gathering.records() < max {
            // What comes first is not known before it is there.
            let may_be_snapshot = lines.read == 0 || gathering.is_snapshot();
            let within = if may_be_snapshot { SNAPSHOT_STEP_WITHIN } else { STEP_WITHIN };
            let data = file.read_some(lines.read, u32::MAX, Some(within)).await;
            let data = data.map_err(|error| error.to_string())?;
            self.there.store(true, Ordering::SeqCst);
            if data.is_empty() {
                break;
            }
            for line in lines.take(&data)? {
                match line {
                    Line::Snapshot(seq, ..) if !wanted => return Ok(Part::Cut(seq)),
                    line => is_whole |= gathering.take(line)?,
                }
            }
        }
        gathering.part()
    }

    /// Follows a member's log from after a record, until it falls silent.
    async fn follow_one(&self, turn: usize, last: &mut u64, publisher: &Publisher) -> Result<(), String> {
        let client = self.connect(turn).await?;
        let file = self.open(&client, *last, 0).await?;
        let mut lines = Splitter::default();
        loop {
            // It has just answered; what comes first may be a snapshot.
            let within = if lines.read == 0 { SNAPSHOT_STEP_WITHIN } else { SILENT_WITHIN };
            let reading = timeout(within, file.read(lines.read)).await;
            let silent = |_| format!("it has said nothing for {} s", within.as_secs());
            let data = reading.map_err(silent)?.map_err(|error| error.to_string())?;
            if data.is_empty() {
                return Err("it tells no more of its log".to_owned());
            }
            self.there.store(true, Ordering::SeqCst);
            for line in lines.take(&data)? {
                match line {
                    Line::Record(record) => {
                        *last = record.seq;
                        publisher.publish(record);
                    }
                    // Whoever applies the records sees the gap, and asks for the snapshot: here it is not needed.
                    Line::Snapshot(seq, ..) => {
                        *last = seq;
                        go_on(&file, seq).await?;
                        lines = Splitter { read: lines.read, ..Splitter::default() };
                        break;
                    }
                }
            }
        }
    }

    /// Follows the members' log until `stop`, whichever of them there is.
    pub(super) async fn follow(
        self: Arc<Members>,
        mut last: u64,
        publisher: Publisher,
        stop: CancellationToken,
    ) -> Result<(), String> {
        loop {
            let turn = self.turn();
            let followed = tokio::select! {
                followed = self.follow_one(turn, &mut last, &publisher) => followed,
                () = stop.cancelled() => return Ok(()),
            };
            if let Err(why) = followed {
                let member = self.followed(turn).map(|peer| peer.address).unwrap_or_default();
                tracing::warn!(member, why, "a member is not followed any more; another one is tried");
            }
            self.turn_to_another(turn);
            tokio::select! {
                () = tokio::time::sleep(AGAIN_AFTER) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// Has a member tell of its log from after a record on.
async fn go_on(work: &File, after: u64) -> Result<(), String> {
    let from = format!("from={}\n", after + 1);
    work.write(0, from.as_bytes()).await.map(drop).map_err(|error| error.to_string())
}

/// Makes lines of what is read.
#[derive(Default)]
struct Splitter {
    /// How far it was read.
    read: u64,
    rest: Vec<u8>,
}

impl Splitter {
    fn take(&mut self, data: &[u8]) -> Result<Vec<Line>, String> {
        self.read += data.len() as u64;
        self.rest.extend_from_slice(data);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            if self.rest.len() > LINE_BYTES_MAX {
                return Err(format!("a line of its log has more than {LINE_BYTES_MAX} bytes"));
            }
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let text = String::from_utf8(whole).map_err(|error| error.to_string())?;
        text.lines().map(str::parse).collect()
    }
}

#[async_trait::async_trait]
impl Upstream for Members {
    async fn part(&self, after: u64, max: usize, wanted: bool) -> Result<Part, String> {
        let turn = self.turn();
        let part = self.gather(turn, after, max, wanted).await;
        if part.is_err() {
            self.turn_to_another(turn);
        }
        part
    }

    async fn ask(&self, question: Forwarded) -> Result<Answered, AppendError> {
        let turn = self.turn();
        let member = self.followed(turn).map_err(AppendError::NotDone)?;
        let bytes = postcard::to_stdvec(&question).map_err(|error| AppendError::NotDone(error.to_string()))?;
        let is_read = question.is_read();
        let line = if is_read { lead::Line::Read } else { lead::Line::Append };
        let error = match self.lines.ask(member.raft, line, &bytes, FORWARDED_BYTES_MAX).await {
            Ok(answer) => {
                return postcard::from_bytes(&answer).map_err(|error| AppendError::Unknown(error.to_string()));
            }
            Err(NoAnswer::NotSent(why)) => AppendError::NotDone(why),
            // A read has changed nothing.
            Err(NoAnswer::Lost(why)) if is_read => AppendError::NotDone(why),
            Err(NoAnswer::Lost(why)) => AppendError::Unknown(why),
        };
        self.turn_to_another(turn);
        Err(error)
    }

    fn is_there(&self) -> bool {
        self.there.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_pieces() {
        let mut lines = Splitter::default();
        assert_eq!(lines.take(b"1 Y").unwrap(), []);
        assert_eq!(lines.take(b"Q\n2 YQ\n3").unwrap().len(), 2);
        assert_eq!(lines.read, 11);
        assert!(lines.take(b" *\n").is_err());
        assert!(Splitter::default().take(&vec![b'x'; LINE_BYTES_MAX + 1]).is_err());
    }
}
