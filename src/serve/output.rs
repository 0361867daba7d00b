//! The standard output: one line of ours, for whoever started us and waits. hiqlite prints there as well, when it installs a snapshot; that
//! goes where the trace goes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

/// Our own end of it.
pub(super) struct Output(OwnedFd);

impl Output {
    /// From here on whatever else is printed goes to the standard error.
    pub(super) fn take() -> io::Result<Output> {
        let own = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
        rustix::stdio::dup2_stdout(io::stderr())?;
        Ok(Output(own))
    }

    /// As it was, for a program that is to be in this one's place.
    pub(super) fn give_back(&self) {
        if let Err(error) = rustix::stdio::dup2_stdout(&self.0) {
            tracing::warn!(%error, "the standard output can't be handed on");
        }
    }

    /// Writes a line there.
    pub(super) fn say(&self, line: &str) {
        let written = self.0.try_clone().and_then(|own| File::from(own).write_all(format!("{line}\n").as_bytes()));
        // Nobody listening is no fault: the line is lost, and the node serves.
        if let Err(error) = written {
            tracing::debug!(%error, "nobody reads the standard output");
        }
    }
}
