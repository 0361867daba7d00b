//! What a member tells of its log to those that follow it: records, or the newest snapshot where they have been cut.
//!
//! A snapshot can have hundreds of megabytes, and after a loss of power all workers want it at once. So it is in memory once, unpacked, for as
//! long as anybody reads it; it is made into text a few parts at a time; and few get more than its first part at a time. The others wait for a
//! place, and who waits in vain asks again. The first part alone costs no place: it tells a follower where the log goes on.

use super::followed::PART_BYTES;
use super::{Log, LogError, Record, Snapshot};
use crate::text::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// How many are told a whole snapshot at a time: enough to fill a network, and few enough that each is done soon.
const READERS_MAX: usize = 8;
/// Parts of a snapshot that are made into text at once.
const PARTS_AT_ONCE: usize = 8;
/// How long it is waited for a place. Whoever asks waits somewhat longer, see [`super::followed::SNAPSHOT_STEP_WITHIN`].
const PLACE_WITHIN: Duration = Duration::from_secs(15);
/// Who has read nothing for so long has no place any more.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// The log as it is told.
pub struct Teller {
    log: Arc<dyn Log>,
    /// What was loaded last, while anybody reads it. Locked while it is loaded: there is never more than one on its way.
    newest: tokio::sync::Mutex<Weak<Snapshot>>,
    places: Arc<Semaphore>,
}

/// What the log has after a place.
pub enum Told {
    /// The records that follow; none: there are no more yet.
    Records(Vec<Record>),
    /// They have been cut; it goes on after this.
    Snapshot(SnapshotReader),
}

impl Teller {
    /// Of this log.
    pub fn new(log: Arc<dyn Log>) -> Teller {
        Teller { log, newest: tokio::sync::Mutex::default(), places: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// What is in the log after a record: at most `max` records.
    ///
    /// # Errors
    /// The log's.
    pub async fn after(&self, after: u64, max: usize) -> Result<Told, LogError> {
        let missing = match self.records_after(after, max).await {
            Ok(records) => return Ok(Told::Records(records)),
            Err(missing) => missing,
        };
        let snapshot = self.snapshot_after(after).await?;
        snapshot.map(|snapshot| Told::Snapshot(SnapshotReader::new(snapshot, self.places.clone()))).ok_or(missing)
    }

    async fn records_after(&self, after: u64, max: usize) -> Result<Vec<Record>, LogError> {
        let records = self.log.read(after, max).await?;
        if records.first().is_none_or(|first| first.seq == after + 1) {
            return Ok(records);
        }
        Err(LogError::Failed(format!("the record {} is not in the log any more", after + 1)))
    }

    /// The one that others read, if the log still goes on after it, else the newest.
    async fn snapshot_after(&self, after: u64) -> Result<Option<Arc<Snapshot>>, LogError> {
        let mut newest = self.newest.lock().await;
        if let Some(snapshot) = newest.upgrade().filter(|snapshot| snapshot.seq > after)
            && self.records_after(snapshot.seq, 1).await.is_ok()
        {
            return Ok(Some(snapshot));
        }
        let snapshot = self.log.snapshot().await?.filter(|snapshot| snapshot.seq > after).map(Arc::new);
        *newest = snapshot.as_ref().map(Arc::downgrade).unwrap_or_default();
        Ok(snapshot)
    }
}

/// Records as text, a line each.
pub fn print(records: &[Record]) -> String {
    let mut text = String::new();
    for Record { seq, bytes } in records {
        let result = writeln!(text, "{seq} {}", STANDARD_NO_PAD.encode(bytes));
        debug_assert!(result.is_ok(), "text takes everything");
    }
    text
}

/// Up to so many parts of a snapshot as text, a line each, from the `nth` on (0 is the first); and which one is next, if there is one.
fn print_parts(Snapshot { seq, bytes }: &Snapshot, nth: usize, max: usize) -> (String, Option<usize>) {
    let count = bytes.len().div_ceil(PART_BYTES);
    let mut text = String::new();
    for (nth, part) in bytes.chunks(PART_BYTES).enumerate().skip(nth).take(max) {
        let result = writeln!(text, "snapshot {seq} {}/{count} {}", nth + 1, STANDARD_NO_PAD.encode(part));
        debug_assert!(result.is_ok(), "text takes everything");
    }
    (text, nth.checked_add(max).filter(|next| *next < count))
}

/// What a reader holds until it has been silent for too long.
struct Held {
    snapshot: Arc<Snapshot>,
    place: Option<OwnedSemaphorePermit>,
}

/// A snapshot that is being read.
pub struct SnapshotReader {
    seq: u64,
    held: Arc<Mutex<Option<Held>>>,
    places: Arc<Semaphore>,
    /// Told of each read.
    read: watch::Sender<()>,
    _keeper: AbortOnDropHandle<()>,
}

fn locked(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SnapshotReader {
    fn new(snapshot: Arc<Snapshot>, places: Arc<Semaphore>) -> SnapshotReader {
        let seq = snapshot.seq;
        let held = Arc::new(Mutex::new(Some(Held { snapshot, place: None })));
        let (read, mut reads) = watch::channel(());
        let keeping = Arc::downgrade(&held);
        let keeper = tokio::spawn(async move {
            while let Ok(Ok(())) = timeout(READ_WITHIN, reads.changed()).await {}
            if let Some(held) = keeping.upgrade() {
                locked(&held).take();
            }
        });
        SnapshotReader { seq, held, places, read, _keeper: AbortOnDropHandle::new(keeper) }
    }

    /// The last record that is in it.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// As text from its `nth` part on (0 is the first), and which part is next, if there is one. The first comes alone, at once; who reads
    /// on waits for a place. Asking for the same part again gives the same.
    ///
    /// # Errors
    /// EAGAIN: there was no place; nothing was read for too long.
    pub async fn text(&self, nth: usize) -> Result<(String, Option<usize>), Refusal> {
        self.read.send_replace(());
        let given_up = || {
            let sentence = format!("interrupted: nothing was read for {} s: begin anew", READ_WITHIN.as_secs());
            Refusal::again(sentence)
        };
        let look = || locked(&self.held).as_ref().map(|held| (held.snapshot.clone(), held.place.is_some()));
        let (snapshot, has_place) = look().ok_or_else(given_up)?;
        if nth == 0 {
            return Ok(print_parts(&snapshot, 0, 1));
        }
        if !has_place {
            let place = self.place().await?;
            locked(&self.held).as_mut().ok_or_else(given_up)?.place = Some(place);
        }
        Ok(print_parts(&snapshot, nth, PARTS_AT_ONCE))
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let waited = timeout(PLACE_WITHIN, self.places.clone().acquire_owned()).await;
        waited.ok().and_then(Result::ok).ok_or_else(|| {
            let sentence =
                format!("busy: {READERS_MAX} others are told a snapshot by this node: ask again, or another");
            Refusal::again(sentence)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::log::followed::{Gathering, LINE_BYTES_MAX, Part};
    use crate::engine::log::{MemoryLog, RECORD_BYTES_MAX};

    /// Ten records of which the first eight have been cut, and a snapshot of so many bytes.
    async fn cut(size: usize) -> (Arc<MemoryLog>, Snapshot) {
        let (log, _committed) = MemoryLog::open();
        log.append((0..10).map(|n| vec![n].into()).collect()).await.unwrap();
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let snapshot = Snapshot { seq: 8, bytes: bytes.into() };
        log.save_snapshot(snapshot.clone()).await.unwrap();
        log.cut(8).await.unwrap();
        (Arc::new(log), snapshot)
    }

    fn gathered(text: &str) -> Result<Part, String> {
        let mut gathering = Gathering::default();
        for line in text.lines() {
            assert!(line.len() <= LINE_BYTES_MAX);
            gathering.take(line.parse()?)?;
        }
        gathering.part()
    }

    async fn reader(teller: &Teller) -> SnapshotReader {
        let Told::Snapshot(reader) = teller.after(2, 4).await.unwrap() else { panic!("records") };
        reader
    }

    #[tokio::test]
    async fn records_are_told_as_they_are() {
        let record = |seq, size| Record { seq, bytes: vec![7; size].into() };
        for records in [vec![], vec![record(3, 0), record(4, 1), record(5, RECORD_BYTES_MAX)]] {
            assert_eq!(gathered(&print(&records)).unwrap(), Part::Records(records));
        }
        let (log, _) = cut(1).await;
        let teller = Teller::new(log);
        let numbers = |told| match told {
            Told::Records(records) => records.iter().map(|record: &Record| record.seq).collect::<Vec<_>>(),
            Told::Snapshot(_) => panic!("they are there"),
        };
        assert_eq!(numbers(teller.after(8, 4).await.unwrap()), [9, 10]);
        assert_eq!(numbers(teller.after(9, 4).await.unwrap()), [10]);
        assert!(numbers(teller.after(10, 4).await.unwrap()).is_empty());
    }

    #[tokio::test]
    async fn what_was_cut_is_told_as_a_snapshot_a_few_parts_at_a_time() {
        for size in [1, PART_BYTES, PART_BYTES + 1, 3 * PARTS_AT_ONCE * PART_BYTES + 1] {
            let (log, snapshot) = cut(size).await;
            let reader = reader(&Teller::new(log)).await;
            assert_eq!(reader.seq(), 8);
            let (mut text, mut next, mut count) = (String::new(), Some(0), 0);
            while let Some(nth) = next {
                let (more, then) = reader.text(nth).await.unwrap();
                assert!(more.lines().count() <= PARTS_AT_ONCE);
                assert_eq!(reader.text(nth).await.unwrap(), (more.clone(), then), "the same again");
                (text, next, count) = (text + &more, then, count + 1);
            }
            assert_eq!(count, 1 + (size.div_ceil(PART_BYTES) - 1).div_ceil(PARTS_AT_ONCE));
            assert_eq!(gathered(&text).unwrap(), Part::Snapshot(snapshot));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_read_it_at_a_time_and_share_it() {
        let (log, _) = cut(3 * PART_BYTES).await;
        let teller = Teller::new(log.clone());
        let first = reader(&teller).await;
        let mut reading = Vec::new();
        for _ in 0..READERS_MAX {
            let one = reader(&teller).await;
            one.text(1).await.unwrap();
            reading.push(one);
        }
        let theirs = locked(&reading[0].held).as_ref().unwrap().snapshot.clone();
        assert!(Arc::ptr_eq(&theirs, &locked(&first.held).as_ref().unwrap().snapshot), "it is loaded once");
        // The first part is for all, the rest is waited for, but not for ever.
        first.text(0).await.unwrap();
        let refusal = first.text(1).await.unwrap_err();
        assert!(refusal.sentence.starts_with("busy"), "{refusal}");
        let (waited, ()) = tokio::join!(first.text(1), async { drop(reading.pop()) });
        waited.unwrap();
        // When the records after it have been cut, it is of no more use.
        log.save_snapshot(Snapshot { seq: 9, ..(*theirs).clone() }).await.unwrap();
        assert_eq!(reader(&teller).await.seq(), 8);
        log.cut(9).await.unwrap();
        assert_eq!(reader(&teller).await.seq(), 9);
        drop((theirs, reading, first));
        assert_eq!(teller.newest.lock().await.strong_count(), 0, "nobody reads it, and it is kept all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_on_holds_nothing() {
        let (log, _) = cut(3 * PART_BYTES).await;
        let teller = Teller::new(log);
        let (silent, steady) = (reader(&teller).await, reader(&teller).await);
        silent.text(1).await.unwrap();
        steady.text(1).await.unwrap();
        for _ in 0..3 {
            tokio::time::sleep(READ_WITHIN / 2).await;
            steady.text(1).await.unwrap();
        }
        let refusal = silent.text(2).await.unwrap_err();
        assert!(refusal.sentence.starts_with("interrupted"), "{refusal}");
        assert_eq!(teller.places.available_permits(), READERS_MAX - 1);
    }
}
