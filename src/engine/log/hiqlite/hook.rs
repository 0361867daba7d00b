//! The wake-up: SQLite's own writer calls us for each record that is inserted, in the order of the log.
//!
//! SQLite lets a process register an "auto-extension", called for each connection that is opened. Ours gives the
//! connections of a log's database the function `blixard_committed(seq, bytes)`; a trigger on the table calls it. So what is
//! committed reaches the applier within the write itself, on hiqlite's writer thread, with no polling.
//!
//! Rules for what runs there: it never opens a database, never fails, never panics, never waits. An error would make this
//! node alone skip the record. It runs just before SQLite's commit: the record may not be readable for a moment.
//!
//! This is the one module of Blixard with unsafe code.
#![allow(unsafe_code)]

use crate::engine::log::{Publisher, Record};
use bytes::Bytes;
use hiqlite::rusqlite::functions::{Context, FunctionFlags};
use hiqlite::rusqlite::{self, Connection, auto_extension, ffi};
use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The name of the function that the trigger calls.
pub(super) const FUNCTION: &str = "blixard_committed";

/// The logs of this process, by the folder of their database: one, or a few in tests.
static LOGS: Mutex<Vec<(PathBuf, Publisher)>> = Mutex::new(Vec::new());

/// Connects a database folder with a publisher until it is dropped. Connections that are open by then keep theirs.
#[derive(Debug)]
pub(super) struct Hook {
    folder: PathBuf,
}

impl Hook {
    /// Registers the extension, once a process, and the folder. Before the first connection is opened. `folder` must be
    /// canonical: it is compared with the path that SQLite says it has opened.
    pub(super) fn new(folder: PathBuf, publisher: Publisher) -> Result<Hook, String> {
        static REGISTERED: OnceLock<Result<(), String>> = OnceLock::new();
        REGISTERED.get_or_init(register).clone()?;
        let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
        logs.retain(|(known, _)| *known != folder);
        logs.push((folder.clone(), publisher));
        Ok(Hook { folder })
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        LOGS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| *known != self.folder);
    }
}

fn register() -> Result<(), String> {
    // SAFETY: the contract of `register_auto_extension` is that the handler opens no database, does not close the one it
    // is given, and leaves the list of auto-extensions alone. `extension` only calls `on_open`, which only calls
    // `create_scalar_function` on the connection. `Connection::from_handle`, used inside, does not close it on drop.
    unsafe { auto_extension::register_auto_extension(extension) }.map_err(|error| error.to_string())
}

/// What SQLite calls for each connection that is opened in this process.
///
/// # Safety
/// Called by SQLite alone, with pointers valid for the call.
unsafe extern "C" fn extension(
    database: *mut ffi::sqlite3,
    error: *mut *mut c_char,
    _routines: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: the pointers are SQLite's, passed on unchanged; for the rest see `register`. Panics are caught inside.
    unsafe { auto_extension::init_auto_extension(database, error, on_open) }
}

/// Gives the connection the function, if its database is one of ours.
fn on_open(connection: Connection) -> rusqlite::Result<()> {
    let Some(folder) = connection.path().and_then(|path| Path::new(path).parent()) else { return Ok(()) };
    let publisher = {
        let logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
        logs.iter().find(|(known, _)| known == folder).map(|(_, publisher)| publisher.clone())
    };
    let Some(publisher) = publisher else { return Ok(()) };
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function(FUNCTION, 2, flags, move |call| {
        if let Some(record) = record(call) {
            publisher.publish(record);
        }
        Ok(rusqlite::types::Null)
    })
}

/// The arguments, if they are what the trigger passes; anything else is not from the trigger.
fn record(call: &Context<'_>) -> Option<Record> {
    let seq = call.get_raw(0).as_i64().ok().and_then(|seq| u64::try_from(seq).ok())?;
    let bytes = call.get_raw(1).as_blob().ok()?;
    Some(Record { seq, bytes: Bytes::copy_from_slice(bytes) })
}
