//! What a user who is confined to some objects sees: those, the way down to them, and what is about the user alone. Everything
//! else is not there for them, over whatever front they come.

use super::place::{LINK, Parts, ROOT};
use super::root::FILES as ROOT_FILES;
use super::server::Server;
use super::tree::{Caller, DirEntry, Kind, Place, gone};
use super::vms;
use crate::engine::state::{About, State, Touched, VmId};
use crate::text::Refusal;

/// The files of the root that are about nobody else.
const OPEN_TO_ALL: &[&str] = &["README", "version", "err", "sync", "me"];

/// What an operation on a place is about.
pub(super) fn about(place: Place) -> About {
    match Parts::of(place) {
        Parts { kind, object, .. } if kind == vms::KIND.number && object != 0 => About::Vm(VmId(object)),
        _ => About::Cluster,
    }
}

/// Is this place there, for this user?
pub(super) fn sees(state: &State, user: &str, place: Place) -> bool {
    if state.within(user).is_none() {
        return true;
    }
    match Parts::of(place) {
        Parts { kind: ROOT, file: 0, .. } => true,
        Parts { kind: ROOT, file, .. } => ROOT_FILES.iter().any(|f| f.number == file && OPEN_TO_ALL.contains(&f.name)),
        Parts { kind, file: 0, object: 0 } => kind == vms::KIND.number,
        Parts { object: 0, .. } => false,
        _ => state.reaches(user, about(place)),
    }
}

/// ENOENT of what is not there for the caller.
pub(super) fn check_seen(state: &State, who: &Caller, place: Place) -> Result<(), Refusal> {
    if sees(state, &who.user, place) { Ok(()) } else { Err(gone()) }
}

/// What changed last in `/vms`, as far as this user sees it.
pub(super) fn touched(state: &State, within: &[VmId]) -> Touched {
    let vms = within.iter().filter_map(|id| state.vm(*id));
    let last = vms.map(|vm| (vm.changed_seq, vm.changed)).max().unwrap_or_default();
    Touched { seq: last.0, at: last.1 }
}

/// The entries of `/vms` after a cookie: as [`Server::visit_folder`] gives them, of these VMs alone.
pub(super) fn visit_vms(state: &State, within: &[VmId], after: u64, visit: &mut dyn FnMut(DirEntry) -> bool) {
    let number = |place: Parts| place.pack();
    let there = || within.iter().filter_map(|id| state.vm(*id));
    let directories = there().map(|vm| DirEntry {
        name: vm.id.to_string(),
        place: number(Parts::new(vms::KIND.number, 0, vm.id.0)),
        kind: Kind::Directory,
        cookie: Server::OBJECTS_FROM + vm.id.0,
    });
    let links = there().filter_map(|vm| {
        Some(DirEntry {
            name: vm.name.clone()?,
            place: number(Parts::new(vms::KIND.number, LINK, vm.id.0)),
            kind: Kind::Link,
            cookie: Server::LINKS_FROM + vm.id.0,
        })
    });
    // `all` ends when the visitor has had enough.
    directories.chain(links).filter(|entry| entry.cookie > after).all(visit);
}
