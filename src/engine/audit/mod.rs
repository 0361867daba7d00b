//! The audit trail: every applied entry, accepted or refused, as a line. It outlives the log's records, which a snapshot makes
//! superfluous.
//!
//! Written beside the applier, not by it: steps go through a bounded channel to a scribe that writes what has gathered. The trail
//! goes on after a restart without gaps or repetitions, since no snapshot is stored before the trail has what is in it.

mod files;
mod line;

use super::blocking;
use super::replica::Step;
use super::state::Command;
use files::Writer;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot, watch};

/// Steps that may wait to be written. When the disk is slower than that, the applier waits: a trail with holes would be none.
const WAITING_MAX: usize = 1_024;
/// Steps that are written at once.
const BATCH_MAX: usize = 512;
/// Lines kept in memory where there is no folder: with a memory log, in tests and the simulator.
const KEPT_MAX: usize = 10_000;

/// A piece of the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLines {
    /// The number of the first entry that the trail still has.
    pub begins: u64,
    /// Each begins with the entry's number; no newline.
    pub lines: Vec<String>,
}

enum Message {
    Step(Box<Step>),
    /// The log has lost what comes after this entry.
    Rewind(u64),
    /// Answer when all before it is on the disk.
    Sync(oneshot::Sender<()>),
}

/// The applier's end.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    messages: mpsc::Sender<Message>,
    /// What the trail had when it was opened: what is replayed up to there is in it.
    had: u64,
}

/// The readers' end.
#[derive(Debug, Clone)]
pub(super) struct Trail {
    store: Arc<Store>,
    written: watch::Receiver<u64>,
}

#[derive(Debug)]
enum Store {
    Folder(PathBuf),
    Memory(Mutex<VecDeque<(u64, String)>>),
}

/// The writer's part.
pub(super) struct Scribe {
    messages: mpsc::Receiver<Message>,
    store: Arc<Store>,
    writer: Option<Writer>,
    written: watch::Sender<u64>,
}

/// Opens the trail in a folder, or in memory.
pub(super) fn open(folder: Option<&Path>) -> std::io::Result<(Recorder, Trail, Scribe)> {
    let writer = folder.map(|folder| Writer::open(folder, files::FILE_BYTES_MAX)).transpose()?;
    let had = writer.as_ref().map_or(0, Writer::newest);
    let store = Arc::new(match folder {
        Some(folder) => Store::Folder(folder.to_owned()),
        None => Store::Memory(Mutex::default()),
    });
    let (sender, messages) = mpsc::channel(WAITING_MAX);
    let (written_sender, written) = watch::channel(had);
    let trail = Trail { store: store.clone(), written };
    Ok((Recorder { messages: sender, had }, trail, Scribe { messages, store, writer, written: written_sender }))
}

impl Recorder {
    /// Hands a step to the scribe; waits only if the disk is far behind.
    pub(super) async fn record(&self, step: Step) -> Result<(), String> {
        if step.seq <= self.had {
            return Ok(());
        }
        self.messages.send(Message::Step(Box::new(step))).await.map_err(|_ended| ENDED.to_owned())
    }

    /// The log ends at `seq`: what the trail has beyond was lost by the log, and is put aside.
    pub(super) async fn begin_at(&mut self, seq: u64) -> Result<(), String> {
        if self.had <= seq {
            return Ok(());
        }
        self.had = seq;
        self.messages.send(Message::Rewind(seq)).await.map_err(|_ended| ENDED.to_owned())
    }

    /// Returns when everything recorded before is on the disk.
    pub(super) async fn sync(&self) -> Result<(), String> {
        let (done, synced) = oneshot::channel();
        self.messages.send(Message::Sync(done)).await.map_err(|_ended| ENDED.to_owned())?;
        synced.await.map_err(|_ended| ENDED.to_owned())
    }
}

const ENDED: &str = "the audit trail can't be written any more";

/// A lease that was renewed: tens of thousands a day that say nothing but that all is well.
fn is_renewal(step: &Step) -> bool {
    let renewal = |command: &Command| matches!(command, Command::LeaseRenew { .. });
    step.outcome.is_ok() && step.entry.commands.iter().all(renewal)
}

impl Scribe {
    /// Writes until there is no recorder left; the future gives how it ended. Files are written on a thread of its own: it lasts as long as
    /// the engine, and the runtime's pool is for what ends. Memory keeps nobody waiting.
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn start(self) -> std::io::Result<BoxFuture<'static, Result<(), String>>> {
        if self.writer.is_none() {
            return Ok(Box::pin(self.run_here()));
        }
        let (told, written) = oneshot::channel();
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || told.send(self.run()))?;
        Ok(Box::pin(async { written.await.map_err(|_panicked| "its thread has panicked".to_owned())? }))
    }

    async fn run_here(mut self) -> Result<(), String> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.messages.recv_many(&mut batch, BATCH_MAX).await > 0 {
            self.write(&mut batch).map_err(|error| format!("{ENDED}: {error}"))?;
        }
        Ok(())
    }

    fn run(mut self) -> Result<(), String> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.messages.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            self.write(&mut batch).map_err(|error| format!("{ENDED}: {error}"))?;
        }
        Ok(())
    }

    fn write(&mut self, batch: &mut Vec<Message>) -> std::io::Result<()> {
        let mut lines = String::new();
        let mut newest = *self.written.borrow();
        let mut waiting = Vec::new();
        for message in batch.drain(..) {
            match message {
                Message::Step(step) => {
                    if step.seq > newest + 1 && self.writer.is_some() {
                        lines.push_str(&format!("# entries {} to {} are missing here\n", newest + 1, step.seq - 1));
                    }
                    newest = step.seq;
                    if is_renewal(&step) {
                        continue;
                    }
                    let line = line::of(&step);
                    self.keep(newest, &line);
                    lines.push_str(&line);
                    lines.push('\n');
                }
                Message::Rewind(upto) => {
                    // Comes before anything else: there are no lines to write yet.
                    if let Some(writer) = &mut self.writer {
                        writer.rewind(upto)?;
                    }
                    newest = upto;
                }
                Message::Sync(done) => waiting.push(done),
            }
        }
        if let Some(writer) = &mut self.writer {
            writer.append(&lines, newest)?;
            if !waiting.is_empty() {
                writer.sync()?;
            }
        }
        self.written.send_replace(newest);
        for done in waiting {
            let _gone = done.send(());
        }
        Ok(())
    }

    /// Without a folder: into memory.
    fn keep(&self, seq: u64, line: &str) {
        if let Store::Memory(kept) = &*self.store {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back((seq, line.to_owned()));
            if kept.len() > KEPT_MAX {
                kept.pop_front();
            }
        }
    }
}

impl Trail {
    /// Up to `max` lines after `seq`, once the trail has the entry `applied`.
    pub(super) async fn after(&self, seq: u64, max: usize, applied: u64) -> Result<AuditLines, String> {
        let mut written = self.written.clone();
        written.wait_for(|newest| *newest >= applied).await.map_err(|_ended| ENDED.to_owned())?;
        let store = self.store.clone();
        let read = move || match &*store {
            Store::Folder(folder) => {
                files::read_after(folder, seq, max).map(|(begins, lines)| AuditLines { begins, lines })
            }
            Store::Memory(kept) => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let begins = kept.front().map_or(1, |(first, _)| *first);
                let lines = kept.iter().filter(|(number, _)| *number > seq).take(max);
                Ok(AuditLines { begins, lines: lines.map(|(_, line)| line.clone()).collect() })
            }
        };
        blocking::run(read).await?.map_err(|error| error.to_string())
    }
}
