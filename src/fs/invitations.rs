//! `/nodes/new`: an invitation is written, the token is read back on the same open. The token is nowhere else: the cluster keeps the
//! hash of its secret alone.

use super::handles::{Answers, Open};
use super::table::Asked;
use super::tree::{Answer, Handle, OpenMode};
use super::verbs::Attributes;
use crate::engine::state::{Command, NodeRole};
use crate::text::{Refusal, attrs, duration};
use bytes::Bytes;
use std::sync::Arc;

/// How long an invitation is open unless it is said, in milliseconds.
const OPEN_MS: u64 = 3_600_000;

const USAGE: &str = "# Write attr=value here, for one machine; read the token back on the same open file, and start that machine with\n\
     #     blixard serve --join TOKEN --advertise HOST\n\
     # role=voter   voter (has the log, and a vote), learner (has the log) or worker (follows it); three or five voters are usual\n\
     # expires=1h   how long the token is good, at most 168h; it works once\n";

struct Invitation {
    open: Open,
    answer: Answers,
}

/// Opens it.
pub(super) fn open(asked: &Asked<'_>, _how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    Ok(Arc::new(Invitation { open: Open::of(asked), answer: Answers::default() }))
}

impl Invitation {
    /// The command, and the token that goes with it.
    fn made(&self, data: &[u8]) -> Result<(usize, Command, String), Refusal> {
        let lines = attrs::parse_lines(data)?;
        let [line] = lines.as_slice() else {
            return Err(Refusal::invalid(
                "invalid text: one line is one invitation; reading this file shows what it takes",
            ));
        };
        let attributes = Attributes::new(&line.attrs, &["role", "expires"], "nodes/new")?;
        let role = attributes.parsed("role", str::parse::<NodeRole>)?.unwrap_or_default();
        let open_ms = attributes.parsed("expires", duration::parse)?.unwrap_or(OPEN_MS);
        let (token, secret_sha256) = self.open.server.host().invite()?;
        // Not the state's time: while nothing happens that stands still.
        let now = self.open.server.engine().time().map_err(|error| Refusal::again(error.to_string()))?;
        // By the cluster's time, if this machine's clock is behind it.
        let now = now.max(self.open.server.state().now());
        let expires_ms = now.millis().saturating_add(open_ms);
        Ok((line.number, Command::InviteNew { secret_sha256, role, expires_ms }, token))
    }
}

impl Handle for Invitation {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        Answer::Now(Ok(self.answer.read(count, || Bytes::from_static(USAGE.as_bytes()))))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        if data.is_empty() {
            return Answer::Now(Ok(0));
        }
        let (commands, token) = match self.made(&data) {
            Ok((number, command, token)) => (Ok(vec![(number, command)]), token),
            Err(refusal) => (Err(refusal), String::new()),
        };
        self.answer.submit(&self.open, data.len(), commands, move |_replies| format!("{token}\n"))
    }
}
