//! Ends the connections of those who are not to be in any more: whose certificate was revoked, who was deleted, whose uid is
//! another user's by now, whose node was removed, who is confined to something else. A role needs no watching: rights are asked for with each request.

use super::server::Server;
use super::sessions::Session;
use super::tree::{Credential, Tree};
use crate::engine::state::{Kind, State};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a node that was removed can still read: that it was removed, which a worker hears of in no other way.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

fn is_node(session: &Session) -> bool {
    matches!(session.who.credential, Credential::Node { .. })
}

impl Server {
    /// Watches for as long as the engine goes on.
    pub async fn watch_sessions(self) {
        let mut changes = self.engine().changes();
        let mut before = self.state();
        // All are looked at once: an earlier watch may have ended before it saw everything.
        let mut seen = None;
        let mut nodes_due = None;
        loop {
            changes.borrow_and_update();
            let now = self.state();
            let last = (now.directory(Kind::User).objects.seq, now.directory(Kind::Node).members.seq);
            if seen.replace(last) != Some(last) {
                let of_user = |session: &Session| self.why_end(&before, &now, session).filter(|_| !is_node(session));
                self.sessions().end(of_user);
                nodes_due.get_or_insert_with(|| Instant::now() + TOLD_WITHIN);
            }
            before = now;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep_until(nodes_due.unwrap_or_else(Instant::now)), if nodes_due.is_some() => {
                    nodes_due = None;
                    let of_node = |session: &Session| self.why_end(&before, &before, session).filter(|_| is_node(session));
                    self.sessions().end(of_node);
                }
            }
        }
    }

    fn why_end(&self, before: &State, now: &State, session: &Session) -> Option<String> {
        let who = &session.who;
        if let Err(refusal) = self.admit(&who.credential) {
            return Some(refusal.sentence);
        }
        let user = self.caller(&who.credential, who.recognised_by, "").user;
        if user != who.user {
            return Some(format!("user '{}' is '{user}' by now", who.user));
        }
        (before.within(&user) != now.within(&user)).then(|| format!("user '{user}' is confined otherwise by now"))
    }
}
