//! To whom an append goes: to this node's own Raft if it leads, else to the node that does.
//!
//! hiqlite would carry it there as well, over a connection that it gives up after a second when the leader has died, and after half a
//! minute when the leader is cut off. Ours is the appender's own, and is asked anew as soon as Raft has another leader.

use super::{HiqliteLog, members, rows};
use crate::clock::system_millis;
use crate::engine::log::forward::{Answered, Forwarded, Whose};
use crate::engine::log::{AppendError, Role};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long it is waited for a leader before an append is refused: some elections.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
/// The pause between two looks for one: Raft's figures can be looked at, not waited for.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long the quick way to a linearizable read may take before the sure one is taken.
const QUICK_WITHIN: Duration = Duration::from_millis(300);
/// How long hiqlite's client may take to notice that its own node leads.
const NOTICE_WITHIN: Duration = Duration::from_secs(1);

impl HiqliteLog {
    /// Asks whoever leads, as often as it takes to find one that does.
    pub(super) async fn ask_leader(&self, question: Forwarded, whose: Whose) -> Result<u64, AppendError> {
        let deadline = Instant::now() + LEADER_WITHIN;
        loop {
            let answer = match members::health(&self.client).leader {
                Some(leader) if leader == self.raft => self.answer(&question).await,
                Some(leader) => match &self.forward {
                    Some(forward) => forward.forward(leader, &question, whose).await,
                    None => Err(AppendError::NotDone("there is no way to the node that leads".to_owned())),
                },
                None => Err(AppendError::NotDone("no quorum: there is no leader".to_owned())),
            };
            match answer.and_then(Answered::into_result) {
                Err(AppendError::NotDone(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
                done => return done,
            }
        }
    }

    /// Does it, if this node leads.
    async fn answer(&self, question: &Forwarded) -> Result<Answered, AppendError> {
        let health = members::health(&self.client);
        if health.role != Role::Leader {
            return Ok(Answered::NotDone("this node does not lead".to_owned()));
        }
        if *question == Forwarded::Clock {
            return own_clock().map(Answered::Clock);
        }
        if self.led.swap(health.term, Ordering::SeqCst) != health.term {
            // hiqlite's client remembers who led; this is what makes it look.
            let noticed = self.client.wait_for_cluster_sync_timeout(NOTICE_WITHIN).await;
            noticed.map_err(|error| AppendError::NotDone(error.to_string()))?;
        }
        match question {
            Forwarded::Append(records) => {
                self.append_here(records).await?;
                Ok(Answered::Appended)
            }
            Forwarded::Newest => match tokio::time::timeout(QUICK_WITHIN, rows::newest(&self.client)).await {
                Ok(Ok(newest)) => Ok(Answered::Newest(newest)),
                // Its connection to its own port is not there yet: a write that changes nothing is a barrier as well.
                _ => {
                    let newest = rows::newest_by_write(&self.client).await?;
                    let now = members::health(&self.client);
                    // hiqlite takes a write elsewhere when this node leads no more, and then what is here may be old.
                    if (now.role, now.term) != (Role::Leader, health.term) {
                        return Ok(Answered::NotDone("this node does not lead any more".to_owned()));
                    }
                    Ok(Answered::Newest(newest))
                }
            },
            Forwarded::Clock | Forwarded::Relayed(_) => {
                Ok(Answered::NotDone("this is asked of the leader itself".to_owned()))
            }
        }
    }

    /// Answers another node.
    pub async fn take(&self, question: Forwarded) -> Answered {
        let answer = match question {
            Forwarded::Relayed(question) => match *question {
                Forwarded::Append(records) => {
                    self.ask_leader(Forwarded::Append(records), Whose::Relayed).await.map(|_| Answered::Appended)
                }
                Forwarded::Newest => self.newest_shared().await.map(Answered::Newest),
                Forwarded::Clock => match self.other_clock().await {
                    Ok(None) => own_clock().map(Answered::Clock),
                    Ok(Some(millis)) => Ok(Answered::Clock(millis)),
                    Err(error) => Err(error),
                },
                // It would be carried round and round.
                Forwarded::Relayed(_) => Ok(Answered::NotDone("a question is relayed once".to_owned())),
            },
            question => self.answer(&question).await,
        };
        answer.unwrap_or_else(Answered::from)
    }

    /// The leader's clock, if that is another node. Asked once: a measurement that took long is of no use.
    pub(super) async fn other_clock(&self) -> Result<Option<u64>, AppendError> {
        let no_leader = || AppendError::NotDone("no quorum: there is no leader".to_owned());
        let leader = members::health(&self.client).leader.ok_or_else(no_leader)?;
        match &self.forward {
            Some(forward) if leader != self.raft => {
                forward.forward(leader, &Forwarded::Clock, Whose::Own).await.and_then(Answered::into_result).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// One question for all who come while one is on its way: theirs must begin after they came.
    pub(super) async fn newest_shared(&self) -> Result<u64, AppendError> {
        let came = self.reads_begun.load(Ordering::SeqCst);
        let mut last = self.last_read.lock().await;
        if let (number, read) = &*last
            && *number > came
        {
            return read.clone();
        }
        let number = self.reads_begun.fetch_add(1, Ordering::SeqCst) + 1;
        let read = self.ask_leader(Forwarded::Newest, Whose::Own).await;
        *last = (number, read.clone());
        read
    }
}

fn own_clock() -> Result<u64, AppendError> {
    system_millis().map_err(|error| AppendError::NotDone(error.to_string()))
}
