//! The user, and what a role may do.

use super::apply::Work;
use super::words::words;
use super::{About, Reply, State, Subject, UserId, What};
use crate::clock::HybridTime;
use crate::text::attrs::shown;
use crate::text::{Refusal, name};
use serde::{Deserialize, Serialize};

/// The name of whoever the cluster doesn't know: may read what all may read.
pub const NOBODY: &str = "none";

words!(
    /// What a user may do; each role may do what the ones before it may.
    Role: "role" {
        /// Read what all may read.
        Viewer = "viewer",
        /// Make objects, and change their own.
        Operator = "operator",
        /// Everything.
        Admin = "admin",
    }
);

/// The most users of a cluster.
pub const USERS_MAX: usize = 65_536;

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read what all may read.
    Read,
    /// Make an object.
    Create,
    /// Change an object.
    Control,
    /// Change what belongs to the cluster: nodes, images, pools, users.
    Administer,
}

/// Somebody whom the cluster knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Their number.
    pub id: UserId,
    /// Unique among users.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Their uid on the nodes.
    pub uid: Option<u32>,
    /// When they last changed.
    pub changed: HybridTime,
    /// The entry that last changed them.
    pub changed_seq: u64,
}

impl State {
    /// May this user do this to that? The mode bits are made by this, and `apply` asks it again.
    pub fn may(&self, user: &str, about: About, operation: Operation) -> bool {
        if !self.reaches(user, about) {
            return false;
        }
        let role = self.users.get(user).map(|u| u.role);
        let owner = match about {
            About::Vm(id) => self.owner_of(id),
            About::Cluster => None,
        };
        match operation {
            Operation::Read => true,
            Operation::Create => role >= Some(Role::Operator),
            Operation::Control => role == Some(Role::Admin) || (role == Some(Role::Operator) && owner == Some(user)),
            Operation::Administer => role == Some(Role::Admin),
        }
    }
}

impl Work<'_> {
    pub(super) fn user_new(&mut self, called: &str, role: Role, uid: Option<u32>) -> Result<Reply, Refusal> {
        name::check(called)?;
        if self.state.users.contains_key(called) {
            return Err(Refusal::exists(format!("the user '{called}' exists already; users/{called}/ctl changes it")));
        }
        self.user_set(called, role, uid)
    }

    pub(super) fn user_set(&mut self, called: &str, role: Role, uid: Option<u32>) -> Result<Reply, Refusal> {
        name::check(called)?;
        if called == NOBODY {
            let sentence = format!("invalid name '{NOBODY}': it stands for whoever the cluster doesn't know");
            return Err(Refusal::invalid(sentence));
        }
        if let Some(other) = uid.and_then(|uid| self.state.user_with_uid(uid)).filter(|u| u.name != called) {
            return Err(Refusal::exists(format!("the uid exists already: it is user '{}'s", shown(&other.name))));
        }
        let known = self.state.users.get(called).cloned();
        if known.as_ref().is_some_and(|u| u.role == role && u.uid == uid) {
            return Ok(Reply::Unchanged);
        }
        match &known {
            Some(user) if role != Role::Admin => self.check_not_last_admin(user)?,
            _ if role == Role::Admin && self.state.within(called).is_some() => {
                return Err(Refusal::invalid(format!(
                    "invalid role=admin: user '{called}' is confined; set role=admin within= lifts that"
                )));
            }
            _ => {}
        }
        if known.is_none() && self.state.users.len() >= USERS_MAX {
            return Err(Refusal::no_space(format!("no capacity: {USERS_MAX} users are the most")));
        }
        let id = known.as_ref().map_or(UserId(self.state.last_user + 1), |u| u.id);
        self.state.last_user = self.state.last_user.max(id.0);
        let user = User { id, name: called.to_owned(), role, uid, changed: self.state.now, changed_seq: self.seq };
        self.state.users.insert(called.to_owned(), user);
        self.state.user_ids.insert(id, called.to_owned());
        if let Some(before) = known.as_ref().and_then(|u| u.uid) {
            self.state.user_uids.remove(&before);
        }
        if let Some(uid) = uid {
            self.state.user_uids.insert(uid, called.to_owned());
        }
        let (what, reply) =
            if known.is_some() { (What::Set, Reply::Done) } else { (What::Created, Reply::Created(id.0)) };
        self.event(Subject::User(called.into()), what);
        Ok(reply)
    }

    /// A cluster always has somebody who may do everything.
    pub(super) fn check_not_last_admin(&self, user: &User) -> Result<(), Refusal> {
        let is_admin = |u: &User| u.role == Role::Admin;
        if is_admin(user) && self.state.users.values().filter(|u| is_admin(u)).count() == 1 {
            let name = &user.name;
            return Err(Refusal::busy(format!("user '{name}' is busy being the last admin: make another one first")));
        }
        Ok(())
    }
}
