//! Why an engine can't go on. The difference decides with what the node begins again.

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// This node's copy of the log is not what the others have: it needs a fresh one.
    #[error("this node's copy of the log has diverged: {0}")]
    Diverged(String),
    /// The log can't go on in this process; what it has on the disk is as good as after any death.
    #[error("the log has ended: {0}")]
    LogEnded(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure::Other(why)
    }
}
