//! The connection to the server, made anew when it is lost: at once, and then after pauses that grow.

use super::{Seen, Trouble};
use crate::fs::fuse::ROOT_INODE;
use crate::ninep::client::{Client, ClientError, Fid, Options};
use crate::ninep::linux::getattr;
use crate::text::{Code, Dial, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The pause before the second attempt; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: whoever starts the server again does not wait for longer.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// One connection.
pub(super) struct Session {
    client: Client,
    root: Arc<Fid>,
    /// Counts the connections.
    number: u64,
    root_path: u64,
    /// The server knows our own bits of getattr.
    hints: bool,
}

/// What the server tells of a file to who asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hints {
    /// Offsets mean nothing.
    pub stream: bool,
    /// Its name never means another file.
    pub lasting: bool,
}

impl Session {
    async fn connect(dial: &Dial, options: &Options, number: u64) -> Result<Session, ClientError> {
        let client = Client::connect_with(dial, options).await?;
        let root = Arc::new(client.root());
        let seen = root.look(super::MASK).await?;
        // A root is no stream: who says so repeats what it does not know.
        let hints = seen.valid & getattr::STREAM == 0;
        Ok(Session { client, root, number, root_path: seen.qid.path, hints })
    }

    pub(super) fn root(&self) -> Arc<Fid> {
        self.root.clone()
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn data_bytes_max(&self) -> u32 {
        self.client.data_bytes_max()
    }

    pub(super) fn hints(&self, seen: &Seen) -> Hints {
        let has = |bit| self.hints && seen.valid & bit != 0;
        Hints { stream: has(getattr::STREAM), lasting: has(getattr::LASTING) }
    }

    /// The inode of a qid.path. The kernel wants the root to be 1; another server's may be something else, and changes places.
    pub(super) fn inode(&self, path: u64) -> Result<u64, Trouble> {
        match path {
            path if path == self.root_path => Ok(ROOT_INODE),
            ROOT_INODE => Ok(self.root_path),
            0 => Err(ClientError::Protocol("a file has the qid.path 0, which no inode may have".into()).into()),
            path => Ok(path),
        }
    }
}

#[derive(Clone)]
enum State {
    /// Connected.
    Up(Arc<Session>),
    /// The connection was lost a moment ago, and the first attempt at the next one is under way.
    Trying,
    /// It failed, for this reason.
    Down(Arc<str>),
}

/// The way to a server. Dropped, it is given up.
pub struct Link {
    state: watch::Receiver<State>,
    data_bytes_max: u32,
    _keeper: DropGuard,
}

impl Link {
    /// Connects, and stays connected.
    ///
    /// # Errors
    /// The server can't be used.
    pub async fn connect(dial: Dial, options: Options) -> Result<Link, ClientError> {
        let session = Arc::new(Session::connect(&dial, &options, 1).await?);
        let data_bytes_max = session.data_bytes_max();
        let (sender, state) = watch::channel(State::Up(session.clone()));
        let end = CancellationToken::new();
        let keeper = Keeper { dial, options, state: sender };
        tokio::spawn(end.clone().run_until_cancelled_owned(keeper.keep(session)));
        Ok(Link { state, data_bytes_max, _keeper: end.drop_guard() })
    }

    /// The most data that a message of the first connection held.
    pub(super) fn data_bytes_max(&self) -> u32 {
        self.data_bytes_max
    }

    /// The connection; that it is made is waited for only while the first attempt lasts.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Refusal> {
        if let State::Up(session) = &*self.state.borrow() {
            return Ok(session.clone());
        }
        self.settled(|_| true).await
    }

    /// The connection after this one, which was lost.
    pub(super) async fn after(&self, lost: &Session) -> Result<Arc<Session>, Refusal> {
        self.settled(|session| session.number != lost.number).await
    }

    async fn settled(&self, wanted: impl Fn(&Session) -> bool) -> Result<Arc<Session>, Refusal> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| match state {
            State::Up(session) => wanted(session),
            State::Trying => false,
            State::Down(_) => true,
        });
        let down = |why: &str| Refusal::new(Code::HostDown, format!("no server: {why}"));
        match settled.await.map(|state| state.clone()) {
            Ok(State::Up(session)) => Ok(session),
            Ok(State::Down(why)) => Err(down(&why)),
            Ok(State::Trying) | Err(_) => Err(down("the mount ends")),
        }
    }
}

struct Keeper {
    dial: Dial,
    options: Options,
    state: watch::Sender<State>,
}

impl Keeper {
    async fn keep(self, mut session: Arc<Session>) {
        loop {
            session.client.ended().await;
            tracing::warn!(server = %self.dial, "the connection is lost");
            self.state.send_replace(State::Trying);
            session = self.connect(session.number + 1).await;
            tracing::info!(server = %self.dial, "connected again");
            self.state.send_replace(State::Up(session.clone()));
        }
    }

    async fn connect(&self, number: u64) -> Arc<Session> {
        let mut pause = PAUSE_MIN;
        loop {
            match Session::connect(&self.dial, &self.options, number).await {
                Ok(session) => return Arc::new(session),
                Err(error) => {
                    tracing::debug!(%error, "no connection");
                    self.state.send_replace(State::Down(error.to_string().into()));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
