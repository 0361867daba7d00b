//! Open files. After the connection was lost a file is opened anew when it is used next; what can't go on where it was says so
//! once, with EIO.

use super::link::Session;
use super::{Does, JustOpened, MASK, Shared, Trouble, attributes};
use crate::fs::tree::{Answer, Handle, OpenMode, Opened};
use crate::ninep::client::{Ahead, File};
use crate::ninep::linux::open;
use crate::text::Refusal;
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much of a text is fetched together with its open, in bytes: all of most files here.
const AHEAD_BYTES: u32 = 8 * 1024;
/// How long the answer to a read of what is no stream may take.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// The open file of one connection.
struct Current {
    session: u64,
    file: Arc<File>,
    /// That the connection was lost has been said.
    told: bool,
}

/// What was fetched together with the open, and is given to who reads on from the start; once, since what is read later is to be
/// what is there later.
enum Fetched {
    Text(Bytes),
    /// All of it was read, up to here.
    End(u64),
    Nothing,
}

struct Open {
    shared: Arc<Shared>,
    inode: u64,
    how: OpenMode,
    stream: bool,
    /// The version of the text that was opened.
    version: u32,
    current: Mutex<Current>,
    fetched: Mutex<Fetched>,
}

/// An open file of a remote tree.
pub(super) struct Remote(Arc<Open>);

fn flags(how: OpenMode) -> u32 {
    let access = match (how.read, how.write) {
        (true, true) => open::READ_WRITE,
        (false, true) => open::WRITE_ONLY,
        _ => open::READ_ONLY,
    };
    let also = |wanted, flag| if wanted { flag } else { 0 };
    access | also(how.truncate, open::TRUNCATE) | also(how.append, open::APPEND) | also(how.nonblock, open::NONBLOCK)
}

fn cut() -> Refusal {
    Refusal::fault("the connection was lost, and what is read now does not follow what was read before")
}

/// Opens the file.
pub(super) async fn open(shared: Arc<Shared>, inode: u64, how: OpenMode) -> Result<Opened, Refusal> {
    let stream = shared.inodes.is_stream(inode);
    let begun = |session: Arc<Session>| begin(&shared, session, inode, how, stream);
    let (current, version, fetched) = shared.look(begun).await?;
    let (current, fetched) = (Mutex::new(current), Mutex::new(fetched));
    let open = Open { shared, inode, how, stream, version, current, fetched };
    Ok(Opened { handle: Arc::new(Remote(Arc::new(open))), stream, commands: false })
}

async fn begin(
    shared: &Shared,
    session: Arc<Session>,
    inode: u64,
    how: OpenMode,
    stream: bool,
) -> Result<(Current, u32, Fetched), Trouble> {
    let fid = shared.fid(&session, inode).await?;
    let current = |file| Current { session: session.number(), file: Arc::new(file), told: false };
    if stream || how.write {
        return Ok((current(fid.open(flags(how)).await?), 0, Fetched::Nothing));
    }
    let count = AHEAD_BYTES.min(session.data_bytes_max());
    let (file, Ahead { seen, data }) = fid.open_and_read(flags(how), MASK, count).await?;
    let whole = data.len() as u64 == seen.attributes.size;
    *shared.opened() = Some(JustOpened { attributes: attributes(inode, &seen), at: Instant::now() });
    Ok((current(file), seen.qid.version, if whole { Fetched::Text(data) } else { Fetched::Nothing }))
}

impl Open {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetched(&self) -> MutexGuard<'_, Fetched> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next part of what was fetched with the open, if this is who reads it.
    fn take(&self, offset: u64, count: usize) -> Option<Bytes> {
        let mut fetched = self.fetched();
        match std::mem::replace(&mut *fetched, Fetched::Nothing) {
            Fetched::Text(mut text) if offset == 0 => {
                if text.len() <= count {
                    *fetched = Fetched::End(text.len() as u64);
                }
                text.truncate(count);
                Some(text)
            }
            Fetched::End(end) if offset == end => Some(Bytes::new()),
            _ => None,
        }
    }

    /// The file over this connection, if it is open there.
    fn here(&self, session: &Session) -> Option<Arc<File>> {
        let current = self.current();
        (current.session == session.number()).then(|| current.file.clone())
    }

    /// That the connection was lost is to be said now.
    fn is_to_tell(&self) -> bool {
        !std::mem::replace(&mut self.current().told, true)
    }

    /// Opens it over this connection.
    async fn reopen(&self, session: &Session, offset: u64) -> Result<Arc<File>, Trouble> {
        let fid = self.shared.fid(session, self.inode).await?;
        let how = OpenMode { truncate: false, ..self.how };
        let file = Arc::new(fid.open(flags(how)).await?);
        if offset != 0 && !self.stream && fid.look(MASK).await?.qid.version != self.version {
            return Err(cut().into());
        }
        *self.current() = Current { session: session.number(), file: file.clone(), told: false };
        Ok(file)
    }

    async fn read(&self, offset: u64, count: u32) -> Result<Bytes, Refusal> {
        if self.stream {
            return self.read_stream(count).await;
        }
        let read = |session: Arc<Session>| async move {
            let file = match self.here(&session) {
                Some(file) => file,
                None => self.reopen(&session, offset).await?,
            };
            Ok(file.read_some(offset, count, Some(READ_WITHIN)).await?)
        };
        self.shared.look(read).await
    }

    async fn read_stream(&self, count: u32) -> Result<Bytes, Refusal> {
        let session = self.shared.link.session().await?;
        let file = match self.here(&session) {
            Some(file) => file,
            None if self.is_to_tell() => return Err(cut()),
            None => self.reopen(&session, 0).await.map_err(|trouble| trouble.refusal(Does::Look))?,
        };
        file.read_some(0, count, None).await.map_err(|error| {
            let trouble = Trouble::Client(error);
            if trouble.is_loss() {
                self.is_to_tell();
                return cut();
            }
            trouble.refusal(Does::Look)
        })
    }

    /// Writes, once: what was sent over a connection that is lost may have been done.
    async fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Refusal> {
        let write = |session: Arc<Session>| async move {
            let file = match self.here(&session) {
                Some(file) => file,
                None => self.reopen(&session, 0).await?,
            };
            file.write(offset, data).await?;
            Ok(data.len())
        };
        self.shared.change(write).await
    }
}

impl Handle for Remote {
    fn read(&self, offset: u64, count: usize) -> Answer<Bytes> {
        if let Some(part) = self.0.take(offset, count) {
            return Answer::Now(Ok(part));
        }
        let (open, count) = (self.0.clone(), u32::try_from(count).unwrap_or(u32::MAX));
        Answer::Later(Box::pin(async move { open.read(offset, count).await }))
    }

    fn write(&self, offset: u64, data: Bytes) -> Answer<usize> {
        *self.0.fetched() = Fetched::Nothing;
        let open = self.0.clone();
        Answer::Later(Box::pin(async move { open.write(offset, &data).await }))
    }
}
