//! A worker's line to the members, whose logs it follows: one at a time, and another one when that falls silent. What is told on it is the text
//! that members tell; it is cut, slow and silent as the network is.

use crate::raft::Question;
use crate::simlog::SimLog;
use crate::world::World;
use async_trait::async_trait;
use blixard::engine::log::followed::{Gathering, Part, Upstream};
use blixard::engine::log::forward::{Answered, Forwarded};
use blixard::engine::log::told::{Teller, Told, print};
use blixard::engine::log::{AppendError, Publisher, Snapshot};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// As a worker's real line has it: how long a member may say nothing.
const SILENT_WITHIN: Duration = Duration::from_secs(5);
/// And the pause before another one is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Records that a member tells at once.
const RECORDS_MAX: usize = 256;

/// See the module.
pub struct Line {
    pub world: Arc<World>,
    pub worker: usize,
    /// Counts on when the member that is followed falls silent.
    turn: AtomicUsize,
    there: AtomicBool,
}

impl Line {
    pub fn new(world: &Arc<World>, worker: usize) -> Line {
        let turn = AtomicUsize::new(world.random().index(world.nodes));
        Line { world: world.clone(), worker, turn, there: AtomicBool::new(false) }
    }

    fn turn(&self) -> usize {
        self.turn.load(Ordering::SeqCst)
    }

    fn turn_to_another(&self, was: usize) {
        if self.turn.compare_exchange(was, was + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.there.store(false, Ordering::SeqCst);
        }
    }

    fn followed(&self, turn: usize) -> Option<usize> {
        self.world.raft().nth_member(turn)
    }

    /// Something goes from one end to the other and is answered, or nothing comes back.
    async fn there_and_back(&self, member: usize) -> Result<(), String> {
        let lasts = self.world.raft().way(&self.world, self.worker, member);
        match lasts {
            Some(lasts_ms) => sleep(Duration::from_millis(lasts_ms)).await,
            None => {
                let refused = self.world.random().percent(50);
                sleep(if refused { Duration::from_millis(5) } else { SILENT_WITHIN }).await;
                return Err(format!("node {} does not answer", member + 1));
            }
        }
        Ok(())
    }

    /// What a member tells of its log after a record.
    async fn ask_part(&self, member: usize, after: u64, max: usize, wanted: bool) -> Result<Part, String> {
        self.there_and_back(member).await?;
        let (mark_at_open, life) = (None, self.world.raft().members[member].life);
        let log = SimLog { world: self.world.clone(), node: member, life, mark_at_open };
        let told = Teller::new(Arc::new(log)).after(after, max).await.map_err(|error| error.to_string())?;
        let mut gathering = Gathering::default();
        let mut gather = |text: &str| text.lines().try_for_each(|line| gathering.take(line.parse()?).map(drop));
        match told {
            Told::Records(records) => gather(&print(&records))?,
            Told::Snapshot(reader) if !wanted => return Ok(Part::Cut(reader.seq())),
            Told::Snapshot(reader) => {
                let mut nth = Some(0);
                while let Some(part) = nth {
                    let (text, next) = reader.text(part).await.map_err(|refusal| refusal.to_string())?;
                    gather(&text)?;
                    nth = next;
                }
            }
        }
        self.there.store(true, Ordering::SeqCst);
        gathering.part()
    }

    async fn follow_one(&self, member: usize, last: &mut u64, publisher: &Publisher) -> Result<(), String> {
        let mut heard = Instant::now();
        loop {
            let pause = self.world.random().between(1, 20);
            sleep(Duration::from_millis(pause)).await;
            let told = timeout(SILENT_WITHIN, self.ask_part(member, *last, RECORDS_MAX, false)).await;
            let told = told.map_err(|_| format!("node {} is silent", member + 1))??;
            match told {
                Part::Records(records) => {
                    if !records.is_empty() {
                        heard = Instant::now();
                    }
                    for record in records {
                        *last = record.seq;
                        publisher.publish(record);
                    }
                }
                // Whoever applies the records sees the gap, and asks for the snapshot.
                Part::Cut(seq) | Part::Snapshot(Snapshot { seq, .. }) => {
                    self.world.turned.fetch_add(1, Ordering::Relaxed);
                    self.world.note(format_args!("worker {} is told of a snapshot", self.worker + 1));
                    *last = seq;
                }
            }
            if heard.elapsed() > SILENT_WITHIN {
                return Err(format!("node {} has told nothing for a while", member + 1));
            }
        }
    }

    /// Follows the members' log, whichever of them there is.
    pub async fn follow(self: Arc<Line>, mut last: u64, publisher: Publisher) {
        loop {
            let turn = self.turn();
            if let Some(member) = self.followed(turn)
                && let Err(why) = self.follow_one(member, &mut last, &publisher).await
            {
                self.world.turned.fetch_add(1, Ordering::Relaxed);
                self.world.note(format_args!("worker {} turns to another: {why}", self.worker + 1));
            }
            self.turn_to_another(turn);
            sleep(AGAIN_AFTER).await;
        }
    }
}

#[async_trait]
impl Upstream for Line {
    async fn part(&self, after: u64, max: usize, wanted: bool) -> Result<Part, String> {
        let turn = self.turn();
        let member = self.followed(turn).ok_or("this worker knows no member")?;
        let part = timeout(SILENT_WITHIN, self.ask_part(member, after, max, wanted)).await;
        let part = part.unwrap_or_else(|_| Err(format!("node {} is silent", member + 1)));
        if part.is_err() {
            self.turn_to_another(turn);
        }
        part
    }

    async fn ask(&self, question: Forwarded) -> Result<Answered, AppendError> {
        let turn = self.turn();
        let member = self.followed(turn).ok_or_else(|| AppendError::NotDone("it knows no member".to_owned()))?;
        let asked = match question {
            Forwarded::Relayed(of_leader) => *of_leader,
            other => return Err(AppendError::NotDone(format!("a worker asks the leader itself: {other:?}"))),
        };
        let (question, is_read) = match asked {
            Forwarded::Append(records) => {
                self.world.reference().submitting(&self.world, self.worker, &records);
                (Question::Append(records), false)
            }
            _ => (Question::Newest, true),
        };
        if let Err(why) = self.there_and_back(member).await {
            self.turn_to_another(turn);
            // It may have arrived, if it was not refused: here it has not.
            return Err(AppendError::NotDone(why));
        }
        let life = self.world.raft().members[member].life;
        let answer = self.world.raft().ask(&self.world, member, life, &Arc::new(question));
        let (answer, patience_ms) = answer.map_err(|error| match error {
            AppendError::Fatal(why) => AppendError::NotDone(why),
            other => other,
        })?;
        let answer = timeout(Duration::from_millis(patience_ms), answer).await;
        // And the member's own answer may be lost on its way.
        let arrives = self.world.raft().way(&self.world, self.worker, member).is_some();
        match answer {
            Ok(Ok(answer)) if arrives => {
                answer.map(|newest| if is_read { Answered::Newest(newest) } else { Answered::Appended })
            }
            _ => {
                self.turn_to_another(turn);
                let why = "no answer".to_owned();
                Err(if is_read { AppendError::NotDone(why) } else { AppendError::Unknown(why) })
            }
        }
    }

    fn is_there(&self) -> bool {
        self.there.load(Ordering::SeqCst)
    }
}
