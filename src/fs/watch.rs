//! Ends the connections of those who are not to be in any more: whose certificate was revoked, who was deleted, whose uid is
//! another user's by now, whose node was removed, who is confined to something else. A role needs no watching: rights are asked for with each request.

use super::server::Server;
use super::sessions::Session;
use super::tree::Tree;
use crate::engine::state::{Kind, State};

impl Server {
    /// Watches for as long as the engine goes on.
    pub async fn watch_sessions(self) {
        let mut changes = self.engine().changes();
        let mut before = self.state();
        // All are looked at once: an earlier watch may have ended before it saw everything.
        let mut seen = None;
        loop {
            changes.borrow_and_update();
            let now = self.state();
            let last = (now.directory(Kind::User).objects.seq, now.directory(Kind::Node).members.seq);
            if seen.replace(last) != Some(last) {
                self.sessions().end(|session| self.why_end(&before, &now, session));
            }
            before = now;
            if changes.changed().await.is_err() {
                return;
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
