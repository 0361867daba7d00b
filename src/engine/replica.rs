//! This node's copy of the state, and how a record changes it: decode, apply, chain. Pure but for its memory.

use super::log::{Record, Snapshot};
use super::state::{Claim, Entry, EntryId, Event, Outcome, State};
use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// First bytes of a snapshot: what it is and in which format.
const SNAPSHOT_MAGIC: &[u8; 8] = b"blxsnap2";
/// Length of a chain value.
const CHAIN_BYTES: usize = 32;

/// The state after `seq` records whose hashes chain up to `chain`.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) state: Arc<State>,
    pub(super) seq: u64,
    /// `chain(n) = SHA-256(chain(n-1) ‖ record n)`, and 32 zero bytes for n = 0. Two copies with the same chain have seen the same log.
    pub(super) chain: [u8; CHAIN_BYTES],
    /// The same over the records and what was decided about each, see [`decided`]. Two copies with the same digest are the same.
    pub(super) digest: [u8; CHAIN_BYTES],
}

/// What was decided about an entry, as bytes: what each command did, or which errno the entry was refused with and for which command; and
/// what happened to what. The sentences are not in it. They are for people, and a release that words one better decides nothing else: its
/// nodes must agree with those that are not upgraded yet.
fn decided(outcome: &Outcome, events: &[Event]) -> Result<Vec<u8>, String> {
    let outcome = outcome.as_ref().map_err(|refusal| (refusal.code, refusal.nth));
    let events: Vec<_> =
        events.iter().map(|Event { seq, at, subject, what }| (seq, at, subject, what.without_words())).collect();
    postcard::to_stdvec(&(outcome, events)).map_err(|error| error.to_string())
}

/// What a node says of the digest that it has after so many records.
pub(super) fn claim(seq: u64, digest: &[u8; CHAIN_BYTES]) -> Claim {
    let (first, _) = digest.split_first_chunk::<8>().map_or(([0; 8], [].as_slice()), |(first, rest)| (*first, rest));
    Claim { seq, digest: u64::from_be_bytes(first) }
}

/// The snapshot that a log begins with which goes on from this state and has none of its records, and the chain up to there: its own, as
/// no other log has these records.
pub fn first_snapshot(state: &State) -> (Snapshot, [u8; 32]) {
    let chain: [u8; CHAIN_BYTES] = Sha256::digest(state.encode()).into();
    let replica = Replica { state: Arc::new(state.clone()), seq: state.seq(), chain, digest: chain };
    (replica.snapshot(), chain)
}

/// What one record did.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) seq: u64,
    pub(super) entry: Entry,
    /// The entry had been applied before: appended twice, it took effect once.
    pub(super) repeated: bool,
    pub(super) outcome: Outcome,
    pub(super) events: Vec<Event>,
}

impl Replica {
    /// Before the first record.
    pub(super) fn new() -> Self {
        Replica { state: Arc::new(State::new()), seq: 0, chain: [0; CHAIN_BYTES], digest: [0; CHAIN_BYTES] }
    }

    /// The record that comes next, if it has this format or an older one. The error is a sentence: this program can't read the entry, and must not go on without it.
    pub(super) fn take(&mut self, record: &Record, newest_format: u8) -> Result<Step, String> {
        let seq = record.seq;
        if seq != self.seq + 1 {
            return Err(format!("record {seq} came where record {} was due", self.seq + 1));
        }
        let entry = Entry::decode_upto(&record.bytes, newest_format)
            .map_err(|error| format!("entry {seq} of the log can't be read: {error}; is it from a newer blixard?"))?;
        let repeated = self.has_applied(entry.id);
        let (state, outcome, events) = self.state.apply(seq, &entry);
        self.state = Arc::new(state);
        self.seq = seq;
        self.chain = Sha256::new().chain_update(self.chain).chain_update(&record.bytes).finalize().into();
        let decided = decided(&outcome, &events)?;
        self.digest =
            Sha256::new().chain_update(self.digest).chain_update(self.chain).chain_update(decided).finalize().into();
        Ok(Step { seq, entry, repeated, outcome, events })
    }

    fn has_applied(&self, id: EntryId) -> bool {
        self.state.last_of(id.node).is_some_and(|last| (id.boot, id.n) <= last)
    }

    /// As a snapshot.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state.encode();
        let mut bytes = BytesMut::with_capacity(SNAPSHOT_MAGIC.len() + 2 * CHAIN_BYTES + state.len());
        bytes.put_slice(SNAPSHOT_MAGIC);
        bytes.put_slice(&self.chain);
        bytes.put_slice(&self.digest);
        bytes.put_slice(&state);
        Snapshot { seq: self.seq, bytes: bytes.freeze() }
    }

    /// From a snapshot; the error is a sentence.
    pub(super) fn from_snapshot(snapshot: &Snapshot) -> Result<Self, String> {
        let bytes: &Bytes = &snapshot.bytes;
        let body = bytes.strip_prefix(SNAPSHOT_MAGIC).ok_or("it is in a format that this blixard doesn't know")?;
        let (chain, body) = body.split_first_chunk::<CHAIN_BYTES>().ok_or("it is too short")?;
        let (digest, state) = body.split_first_chunk::<CHAIN_BYTES>().ok_or("it is too short")?;
        let state = State::decode(state).map_err(|error| error.to_string())?;
        Ok(Replica { state: Arc::new(state), seq: snapshot.seq, chain: *chain, digest: *digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::{NodeId, Reply, Subject, VmId, What};
    use crate::text::{Code, Refusal};

    fn event(what: What) -> Event {
        Event { seq: 7, at: HybridTime::from_millis(1_000), subject: Subject::Vm(VmId(1)), what }
    }

    #[test]
    fn what_is_decided_has_no_words() {
        let refused = |sentence: &str| decided(&Err(Refusal::busy(sentence).of_nth(1)), &[]).unwrap();
        assert_eq!(refused("busy: it runs"), refused("busy: it is running; stop it first"));
        let happened = |what| decided(&Ok(vec![Reply::Done]), &[event(what)]).unwrap();
        for what in [What::Failed, What::Trouble, What::Waiting] {
            assert_eq!(happened(what("no room".into())), happened(what("no node has room".into())));
        }
    }

    #[test]
    fn everything_else_is_in_it() {
        let refusal = |code, nth| Err(Refusal { code, sentence: String::new(), nth });
        let vm = |what| vec![event(what)];
        let node = |name: &str| Event { subject: Subject::Node(NodeId(1), name.into()), ..event(What::Up) };
        let all: Vec<(Outcome, Vec<Event>)> = vec![
            (Ok(vec![Reply::Done]), vec![]),
            (Ok(vec![Reply::Unchanged]), vec![]),
            (Ok(vec![Reply::Created(1)]), vec![]),
            (Ok(vec![Reply::Created(2)]), vec![]),
            (refusal(Code::Busy, None), vec![]),
            (refusal(Code::Busy, Some(0)), vec![]),
            (refusal(Code::Busy, Some(1)), vec![]),
            (refusal(Code::Denied, None), vec![]),
            (Ok(vec![]), vm(What::Failed("".into()))),
            (Ok(vec![]), vm(What::Trouble("".into()))),
            (Ok(vec![]), vm(What::Waiting("".into()))),
            (Ok(vec![]), vm(What::Starting { generation: 1 })),
            (Ok(vec![]), vm(What::Starting { generation: 2 })),
            (Ok(vec![]), vm(What::Moving("alpha".into()))),
            (Ok(vec![]), vm(What::Moving("beta".into()))),
            (Ok(vec![]), vec![node("alpha")]),
            (Ok(vec![]), vec![node("beta")]),
        ];
        let texts: std::collections::BTreeSet<Vec<u8>> =
            all.iter().map(|(outcome, events)| decided(outcome, events).unwrap()).collect();
        assert_eq!(texts.len(), all.len());
    }
}
