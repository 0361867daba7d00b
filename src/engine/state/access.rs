//! What narrows a user: the VMs that they are confined to, and the certificates of theirs that are not taken any more.

use super::apply::Work;
use super::{Reply, Role, State, Subject, User, VmId, What};
use crate::clock::HybridTime;
use crate::text::Refusal;
use crate::text::attrs::shown;
use serde::{Deserialize, Serialize};

/// The most VMs that a user is confined to: each `ls` looks at all of them, and whoever has more is better not confined.
pub const WITHIN_MAX: usize = 64;
/// The most certificates of one user that are revoked; beyond it the user is deleted and made anew.
pub const REVOKED_MAX: usize = 256;
/// The longest serial number of a certificate, in hexadecimal digits (RFC 5280: 20 bytes).
pub const SERIAL_DIGITS_MAX: usize = 40;
/// The most names that something is kept of: those of users, and those that users have had.
pub const ACCESS_MAX: usize = 131_072;

/// What is kept beside a user, by name. It outlives the user: who has the name next does not have its certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The VMs that they are confined to, by number; none: they are not confined.
    pub within: Vec<VmId>,
    /// The serial numbers of the certificates that are revoked, the oldest first.
    pub revoked: Vec<String>,
    /// What was issued before this was issued for an earlier user of the name.
    pub issued_from: HybridTime,
}

/// What an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The cluster, or what belongs to it: nodes, images, pools, users.
    Cluster,
    /// A VM.
    Vm(VmId),
}

impl State {
    /// What is kept beside the user of this name, if anything.
    pub fn access(&self, user: &str) -> Option<&Access> {
        self.access.get(user)
    }

    /// The VMs that a user is confined to; None: they are not confined.
    pub fn within(&self, user: &str) -> Option<&[VmId]> {
        self.access.get(user).map(|access| access.within.as_slice()).filter(|within| !within.is_empty())
    }

    /// Is this inside of what the user is confined to?
    pub fn reaches(&self, user: &str, about: About) -> bool {
        match (self.within(user), about) {
            (None, _) => true,
            (Some(within), About::Vm(id)) => within.contains(&id),
            (Some(_), About::Cluster) => false,
        }
    }

    /// May whoever has this certificate, which the authority has signed, come in as this user?
    ///
    /// # Errors
    /// EACCES with the reason.
    pub fn admits(&self, name: &str, serial: &str, issued_ms: u64) -> Result<(), Refusal> {
        let (access, known, name) = (self.access.get(name), self.users.contains_key(name), shown(name));
        if !known {
            let sentence =
                format!("no permission: there is no user '{name}'; an admin makes one by writing to users/new");
            return Err(Refusal::denied(sentence));
        }
        let Some(access) = access else { return Ok(()) };
        if access.revoked.iter().any(|revoked| revoked == serial) {
            return Err(Refusal::denied(format!(
                "no permission: the certificate {serial} of user '{name}' is revoked"
            )));
        }
        if issued_ms < access.issued_from.millis() {
            return Err(Refusal::denied(format!(
                "no permission: the certificate {serial} was issued for an earlier user '{name}', who was deleted; issue a \
                 new one"
            )));
        }
        Ok(())
    }

    /// What must hold of what is kept beside users.
    pub(super) fn check_access(&self) -> Result<(), String> {
        for (name, access) in &self.access {
            let user = self.users.get(name);
            let confined = !access.within.is_empty();
            let rules = [
                (
                    access.within.is_sorted_by(|a, b| a < b),
                    "the VMs that a user is confined to are in order, each once",
                ),
                (access.within.iter().all(|id| (1..=self.last_vm).contains(&id.0)), "and have been there"),
                (access.within.len() <= WITHIN_MAX && access.revoked.len() <= REVOKED_MAX, "they are bounded"),
                (user.is_some() || (!confined && access.revoked.is_empty()), "nobody is not narrowed"),
                (!confined || user.is_some_and(|u| u.role != Role::Admin), "no admin is confined"),
                (access.issued_from <= self.now, "its times are past"),
            ];
            if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
                return Err(format!("broken: {rule}: access of {name}"));
            }
        }
        if self.access.len() > ACCESS_MAX { Err("broken: access is bounded".to_owned()) } else { Ok(()) }
    }
}

impl Work<'_> {
    /// Makes or changes a user together with their confinement.
    pub(super) fn user_confined(
        &mut self,
        called: &str,
        role: Role,
        uid: Option<u32>,
        within: &[VmId],
        is_new: bool,
    ) -> Result<Reply, Refusal> {
        let mut within = within.to_vec();
        within.sort_unstable();
        within.dedup();
        if within.len() > WITHIN_MAX {
            return Err(Refusal::no_space(format!("no capacity: a user is confined to {WITHIN_MAX} VMs at most")));
        }
        if let Some(id) = within.iter().find(|id| !self.state.vms.contains_key(*id)) {
            return Err(Refusal::not_found(format!("vm {id} was not found, so nobody can be confined to it")));
        }
        if role == Role::Admin && !within.is_empty() {
            return Err(Refusal::invalid("invalid within=: an admin can't be confined; give another role"));
        }
        let mut access = self.state.access.get(called).cloned().unwrap_or_default();
        let is_same = access.within == within;
        access.within = within;
        // First, so that a role of admin is looked at with the confinement that it is to have.
        self.keep_access(called, access)?;
        let reply = if is_new { self.user_new(called, role, uid)? } else { self.user_set(called, role, uid)? };
        match reply {
            Reply::Unchanged if !is_same => {
                self.touch_user(called);
                Ok(Reply::Done)
            }
            reply => Ok(reply),
        }
    }

    pub(super) fn user_delete(&mut self, called: &str) -> Result<Reply, Refusal> {
        let user = self.user_there(called)?;
        self.check_not_last_admin(&user)?;
        let issued_from = self.state.now;
        self.keep_access(called, Access { issued_from, ..Access::default() })?;
        self.state.users.remove(called);
        self.state.user_ids.remove(&user.id);
        if let Some(uid) = user.uid {
            self.state.user_uids.remove(&uid);
        }
        self.event(Subject::User(called.into()), What::Removed);
        Ok(Reply::Done)
    }

    pub(super) fn certificate_revoke(&mut self, called: &str, serial: &str) -> Result<Reply, Refusal> {
        self.user_there(called)?;
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if serial.is_empty() || serial.len() > SERIAL_DIGITS_MAX || !serial.bytes().all(is_digit) {
            return Err(Refusal::invalid(format!(
                "invalid cert='{}': it is the serial number, as 'blixard ca list' shows it: up to {SERIAL_DIGITS_MAX} \
                 hexadecimal digits",
                shown(serial)
            )));
        }
        let mut access = self.state.access.get(called).cloned().unwrap_or_default();
        if access.revoked.iter().any(|revoked| revoked == serial) {
            return Ok(Reply::Unchanged);
        }
        if access.revoked.len() >= REVOKED_MAX {
            return Err(Refusal::no_space(format!(
                "no capacity: {REVOKED_MAX} certificates of a user are revoked at most; delete the user, which ends all, \
                 and make a new one"
            )));
        }
        access.revoked.push(serial.to_owned());
        self.keep_access(called, access)?;
        self.touch_user(called);
        Ok(Reply::Done)
    }

    fn user_there(&self, called: &str) -> Result<User, Refusal> {
        let missing = || Refusal::not_found(format!("user '{}' was not found", shown(called)));
        self.state.users.get(called).cloned().ok_or_else(missing)
    }

    /// What says nothing is not kept.
    fn keep_access(&mut self, called: &str, access: Access) -> Result<(), Refusal> {
        if access == Access::default() {
            self.state.access.remove(called);
            return Ok(());
        }
        if self.state.access.len() >= ACCESS_MAX && !self.state.access.contains_key(called) {
            return Err(Refusal::no_space(format!("no capacity: {ACCESS_MAX} names are remembered at most")));
        }
        self.state.access.insert(called.to_owned(), access);
        Ok(())
    }

    /// Something of the user has changed that is kept beside them.
    fn touch_user(&mut self, called: &str) {
        if let Some(user) = self.state.users.get_mut(called) {
            (user.changed, user.changed_seq) = (self.state.now, self.seq);
            self.event(Subject::User(called.into()), What::Set);
        }
    }
}
