//! The tree as a client uses it: by paths.

use blixard::fs::Server;
use blixard::fs::tree::{Answer, Caller, Credential, Handle, Kind, OpenMode, Place, Tree};
use blixard::text::Refusal;
use bytes::Bytes;
use std::sync::Arc;

/// A client of one node's tree.
#[derive(Clone)]
pub struct Client {
    server: Server,
    who: Caller,
}

async fn wait<T>(answer: Answer<T>) -> Result<T, Refusal> {
    match answer {
        Answer::Now(answer) => answer,
        Answer::Later(waiting) => waiting.await,
    }
}

impl Client {
    /// Root.
    pub fn new(server: Server) -> Client {
        let who = server.caller(&Credential::Uid(0), "the simulator", "direct");
        Client { server, who }
    }

    fn find(&self, path: &str) -> Result<Place, Refusal> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(Place::ROOT, |dir, name| {
            let place = self.server.walk(&self.who, dir, name)?;
            match self.server.identity(&self.who, place)?.kind {
                Kind::Link => self.server.walk(&self.who, dir, &self.server.readlink(&self.who, place)?),
                _ => Ok(place),
            }
        })
    }

    fn open(&self, path: &str, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
        self.server.open(&self.who, self.find(path)?, how).map(|opened| opened.handle)
    }

    /// `cat PATH`
    pub async fn read(&self, path: &str) -> Result<String, Refusal> {
        read_all(&*self.open(path, OpenMode { read: true, ..OpenMode::default() })?).await
    }

    /// `echo TEXT > PATH`
    pub async fn write(&self, path: &str, text: &str) -> Result<(), Refusal> {
        let handle = self.open(path, OpenMode { write: true, ..OpenMode::default() })?;
        wait(handle.write(0, Bytes::copy_from_slice(text.as_bytes()))).await.map(drop)
    }

    /// Writes, and reads the answer on the same open file.
    pub async fn ask(&self, path: &str, text: &str) -> Result<String, Refusal> {
        let handle = self.open(path, OpenMode { read: true, write: true, ..OpenMode::default() })?;
        wait(handle.write(0, Bytes::copy_from_slice(text.as_bytes()))).await?;
        read_all(&*handle).await
    }

    /// A linearizable barrier; then the tree shows at least what was committed when it began.
    pub async fn sync(&self) -> Result<u64, Refusal> {
        let handle = self.open("sync", OpenMode { read: true, ..OpenMode::default() })?;
        let text = wait(handle.read(0, 64)).await?;
        String::from_utf8_lossy(&text).trim().parse().map_err(|_| Refusal::fault("a barrier gives a number"))
    }
}

async fn read_all(handle: &dyn Handle) -> Result<String, Refusal> {
    let mut all = Vec::new();
    loop {
        let piece = wait(handle.read(all.len() as u64, 8_192)).await?;
        if piece.is_empty() {
            return String::from_utf8(all).map_err(|_| Refusal::fault("a text is not UTF-8"));
        }
        all.extend_from_slice(&piece);
    }
}
