//! The log as one node has it: the engine's trait over the simulated Raft.

use crate::raft::{Answer, Question};
use crate::world::World;
use async_trait::async_trait;
use blixard::engine::log::{AppendError, Health, Log, LogError, Record, Snapshot};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// As the real one: so long it is waited for a leader before an append is refused.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The handle of one life of a node's process.
pub struct SimLog {
    pub world: Arc<World>,
    pub node: usize,
    pub life: u64,
    pub mark_at_open: Option<(u64, [u8; 32])>,
}

impl SimLog {
    /// Asks whoever leads, as often as it takes to find one that does.
    async fn ask(&self, question: Question) -> Answer {
        let deadline = Instant::now() + LEADER_WITHIN;
        let question = Arc::new(question);
        loop {
            self.world.shuffle().await;
            let sent = self.world.raft().ask(&self.world, self.node, self.life, &question);
            let answer = match sent {
                Ok((answer, patience_ms)) => {
                    match tokio::time::timeout(Duration::from_millis(patience_ms), answer).await {
                        Ok(Ok(answer)) => answer,
                        _ => Err(AppendError::Unknown("no answer".to_owned())),
                    }
                }
                Err(error) => Err(error),
            };
            match answer {
                Err(AppendError::NotDone(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
                done => {
                    self.world.shuffle().await;
                    return done;
                }
            }
        }
    }
}

#[async_trait]
impl Log for SimLog {
    fn path(&self) -> String {
        format!("simulated-{}", self.node)
    }

    async fn append(&self, records: Vec<Bytes>) -> Result<(), AppendError> {
        self.world.reference().submitting(&self.world, self.node, &records);
        self.ask(Question::Append(records)).await.map(drop)
    }

    async fn read(&self, after: u64, max: usize) -> Result<Vec<Record>, LogError> {
        self.world.shuffle().await;
        self.world.raft().read(self.node, self.world.now(), after, max)
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        self.world.shuffle().await;
        Ok(self.world.raft().snapshot(self.node))
    }

    async fn save_snapshot(&self, snapshot: Snapshot) -> Result<(), AppendError> {
        self.ask(Question::Save(snapshot)).await.map(drop)
    }

    async fn cut(&self, upto: u64) -> Result<(), AppendError> {
        self.ask(Question::Cut(upto)).await.map(drop)
    }

    fn mark(&self, seq: u64, chain: [u8; 32]) -> Result<(), LogError> {
        self.world.raft().set_mark(self.node, self.life, (seq, chain));
        Ok(())
    }

    fn last_mark(&self) -> Option<(u64, [u8; 32])> {
        self.mark_at_open
    }

    async fn newest(&self) -> Result<u64, AppendError> {
        self.ask(Question::Newest).await
    }

    fn health(&self) -> Health {
        self.world.raft().health(self.node)
    }

    fn alone(&self) -> bool {
        false
    }

    async fn close(&self) {}
}
