//! Who is connected: one entry a connection, counted by the connection itself, seen in `/nodes/NAME/sessions`; and how one
//! is ended from outside. Bounded: in all by the places that the server has, for each user by [`CONNECTIONS_PER_USER_MAX`].

use super::tree::Credential;
use crate::clock::system_millis;
use crate::text::{Code, Refusal};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections of one user, or for one node, at a time: less than users have together, so that nobody can keep all others out.
pub const CONNECTIONS_PER_USER_MAX: usize = 1024;

/// Over how long a rate is taken.
const RATE_WINDOW_MS: u64 = 10_000;

/// Who comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// The user that the tree takes them for.
    pub user: String,
    /// What is known of them.
    pub credential: Credential,
    /// How they were recognised.
    pub recognised_by: &'static str,
    /// Where they are.
    pub from: String,
}

/// A connection. Its counters have one writer, the connection's own task.
#[derive(Debug)]
pub struct Session {
    /// Its number, counted up since the server was started.
    pub id: u64,
    /// Who it is.
    pub who: Newcomer,
    /// Since when, milliseconds since the epoch.
    pub since_ms: u64,
    begun: Instant,
    dialect: Mutex<Option<&'static str>>,
    msize: AtomicU32,
    fids: AtomicUsize,
    waiting: AtomicUsize,
    requests: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    rate: Rate,
    closed_for: OnceLock<String>,
    close: CancellationToken,
}

/// Requests of this window of time and of the one before.
#[derive(Debug, Default)]
struct Rate {
    window: AtomicU64,
    now: AtomicU64,
    before: AtomicU64,
}

impl Rate {
    /// Moves on to a window.
    fn turn(&self, window: u64) {
        let last = self.window.load(Ordering::Relaxed);
        if last != window {
            let kept = if last + 1 == window { self.now.load(Ordering::Relaxed) } else { 0 };
            self.before.store(kept, Ordering::Relaxed);
            self.now.store(0, Ordering::Relaxed);
            self.window.store(window, Ordering::Relaxed);
        }
    }

    fn count(&self, at_ms: u64) {
        self.turn(at_ms / RATE_WINDOW_MS);
        add(&self.now, 1);
    }

    /// Of the last [`RATE_WINDOW_MS`] before this time: what is left of the window before counts by its part.
    fn a_second(&self, at_ms: u64) -> u64 {
        let (window, into_ms) = (at_ms / RATE_WINDOW_MS, at_ms % RATE_WINDOW_MS);
        let (now, before) = (self.now.load(Ordering::Relaxed), self.before.load(Ordering::Relaxed));
        let (now, before) = match window.saturating_sub(self.window.load(Ordering::Relaxed)) {
            0 => (now, before),
            1 => (0, now),
            _ => (0, 0),
        };
        let weighed = now * RATE_WINDOW_MS + before * (RATE_WINDOW_MS - into_ms);
        // The first window is shorter than the others.
        let span_ms = at_ms.clamp(1, RATE_WINDOW_MS);
        weighed * 1000 / RATE_WINDOW_MS / span_ms
    }
}

/// There is one writer: no read-modify-write is needed.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl Session {
    fn age_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A version was agreed on.
    pub fn agreed(&self, dialect: &'static str, msize: u32) {
        *self.dialect.lock().unwrap_or_else(PoisonError::into_inner) = Some(dialect);
        self.msize.store(msize, Ordering::Relaxed);
    }

    /// A request was handled; so many fids and waiting requests there are now.
    pub fn handled(&self, fids: usize, waiting: usize) {
        add(&self.requests, 1);
        self.rate.count(self.age_ms());
        self.fids.store(fids, Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// So many bytes have come.
    pub fn received(&self, bytes: usize) {
        add(&self.bytes_in, bytes as u64);
    }

    /// So many bytes have gone.
    pub fn sent(&self, bytes: usize) {
        add(&self.bytes_out, bytes as u64);
    }

    /// Is to be ended for this reason.
    pub fn end(&self, why: String) {
        // The first reason is the one that is told.
        let _ = self.closed_for.set(why);
        self.close.cancel();
    }

    /// Waits until it is to be ended, and says why.
    pub async fn ended(&self) -> String {
        self.close.cancelled().await;
        self.closed_for.get().cloned().unwrap_or_default()
    }

    /// What can be said of it now.
    pub fn seen(&self) -> Seen {
        Seen {
            dialect: *self.dialect.lock().unwrap_or_else(PoisonError::into_inner),
            msize: self.msize.load(Ordering::Relaxed),
            fids: self.fids.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            requests_a_second: self.rate.a_second(self.age_ms()),
        }
    }
}

/// The counters of a connection at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The dialect, once one is agreed on.
    pub dialect: Option<&'static str>,
    /// The longest message, in bytes; 0 until it is agreed on.
    pub msize: u32,
    /// Fids.
    pub fids: usize,
    /// Requests that wait for their answers.
    pub waiting: usize,
    /// Requests so far.
    pub requests: u64,
    /// Bytes received so far.
    pub bytes_in: u64,
    /// Bytes sent so far.
    pub bytes_out: u64,
    /// Requests a second, over the last ten seconds or so.
    pub requests_a_second: u64,
}

/// Whose places a connection takes. A node's are its own, whoever it asks for: strangers can't take them, though a node is nobody, as they
/// are, until it has said for whom it asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    User(String),
    Node(String),
}

impl Whose {
    fn of(who: &Newcomer) -> Whose {
        match &who.credential {
            Credential::Node { name, .. } => Whose::Node(name.clone()),
            _ => Whose::User(who.user.clone()),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::User(name) => write!(f, "user '{name}'"),
            Whose::Node(name) => write!(f, "node '{name}'"),
        }
    }
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    sessions: BTreeMap<u64, Arc<Session>>,
    counts: BTreeMap<Whose, usize>,
}

/// All connections of a server.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Open>);

impl Sessions {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets somebody in, for as long as the answer is kept.
    ///
    /// # Errors
    /// EAGAIN: the user has as many connections as a user may have, or this machine's clock can't be read.
    pub fn enter(self: &Arc<Self>, who: Newcomer) -> Result<Place, Refusal> {
        let since_ms = system_millis().map_err(|error| Refusal::again(error.to_string()))?;
        let mut open = self.open();
        let whose = Whose::of(&who);
        let count = open.counts.entry(whose.clone()).or_default();
        if *count >= CONNECTIONS_PER_USER_MAX {
            let sentence = format!("busy: {whose} has {CONNECTIONS_PER_USER_MAX} connections, which is the most");
            return Err(Refusal::new(Code::Again, sentence));
        }
        *count += 1;
        open.last += 1;
        let session = Arc::new(Session {
            id: open.last,
            who,
            since_ms,
            begun: Instant::now(),
            dialect: Mutex::default(),
            msize: AtomicU32::new(0),
            fids: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            rate: Rate::default(),
            closed_for: OnceLock::new(),
            close: CancellationToken::new(),
        });
        open.sessions.insert(session.id, session.clone());
        Ok(Place { sessions: self.clone(), session })
    }

    /// All, in the order in which they came.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.open().sessions.values().cloned().collect()
    }

    /// Ends those for which there is a reason.
    pub fn end(&self, why: impl Fn(&Session) -> Option<String>) {
        for session in self.all() {
            if let Some(why) = why(&session) {
                session.end(why);
            }
        }
    }
}

/// A connection's place among the others; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
}

impl Place {
    /// The connection's entry.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.sessions.open();
        open.sessions.remove(&self.session.id);
        let whose = Whose::of(&self.session.who);
        if let Some(count) = open.counts.get_mut(&whose) {
            *count -= 1;
            if *count == 0 {
                open.counts.remove(&whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomer(user: &str) -> Newcomer {
        Newcomer { user: user.into(), credential: Credential::Unknown, recognised_by: "test", from: "here".into() }
    }

    #[test]
    fn a_user_has_so_many_connections_and_no_more() {
        let sessions = Arc::new(Sessions::default());
        let mut places: Vec<_> =
            (0..CONNECTIONS_PER_USER_MAX).map(|_| sessions.enter(newcomer("ann")).unwrap()).collect();
        let refusal = sessions.enter(newcomer("ann")).unwrap_err();
        assert_eq!(refusal.code, Code::Again);
        assert!(sessions.enter(newcomer("bob")).is_ok(), "others come in");
        places.pop();
        assert!(sessions.enter(newcomer("ann")).is_ok());
        drop(places);
        assert!(sessions.all().is_empty() && sessions.open().counts.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn strangers_take_no_place_of_a_node() {
        let sessions = Arc::new(Sessions::default());
        let _strangers: Vec<_> =
            (0..CONNECTIONS_PER_USER_MAX).map(|_| sessions.enter(newcomer("none")).unwrap()).collect();
        let node = |name: &str| {
            let credential = Credential::Node { name: name.into(), user: String::new() };
            Newcomer { credential, ..newcomer("none") }
        };
        let _beta: Vec<_> = (0..CONNECTIONS_PER_USER_MAX).map(|_| sessions.enter(node("beta")).unwrap()).collect();
        let refusal = sessions.enter(node("beta")).unwrap_err();
        assert!(refusal.sentence.contains("node 'beta'"), "{refusal}");
        assert!(sessions.enter(node("gamma")).is_ok(), "other nodes come in");
    }

    #[tokio::test]
    async fn ended_with_the_first_reason() {
        let sessions = Arc::new(Sessions::default());
        let (ann, bob) = (sessions.enter(newcomer("ann")).unwrap(), sessions.enter(newcomer("bob")).unwrap());
        sessions.end(|session| (session.who.user == "ann").then(|| "revoked".to_owned()));
        sessions.end(|session| (session.who.user == "ann").then(|| "again".to_owned()));
        assert_eq!(ann.session().ended().await, "revoked");
        assert!(futures::FutureExt::now_or_never(bob.session().ended()).is_none());
    }

    #[test]
    fn rates() {
        let rate = Rate::default();
        (0..1000).for_each(|_| rate.count(500));
        assert_eq!(rate.a_second(500), 2000, "of the half second that there was");
        assert_eq!(rate.a_second(10_000), 100);
        assert_eq!(rate.a_second(15_000), 50);
        assert_eq!(rate.a_second(20_000), 0);
        (0..1000).for_each(|_| rate.count(12_000));
        assert_eq!(rate.a_second(12_000), 180);
        assert_eq!(rate.a_second(31_000), 0, "long ago");
    }
}
