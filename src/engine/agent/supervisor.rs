//! Supervision: every background task of the program hangs in one tree, is restarted when it ends or panics, and is given up, or
//! ends the process, when that happens too often.
//!
//! After Erlang/OTP's supervisors (one_for_one): a child has a restart policy and an intensity, so many restarts within a time.
//! Beyond it the child is given up (one machine's actor harms no other) or the failure escalates: the process ends and is
//! started again. It is crash-only; the guests don't notice.

use futures::FutureExt;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The most children of one supervisor: one a machine of a host, and some.
pub const CHILDREN_MAX: usize = 200_000;
/// How long the children may take to end when they are told to, all together.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// The pause before a restart: a child that fails at once must not take a whole core.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// When a child that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restarts {
    /// Always: it is to run as long as the process does.
    Permanent,
    /// When it failed or panicked; a plain end is its end.
    Transient,
}

/// What happens when a child is restarted too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// The process is to end.
    Escalate,
    /// The child stays down, and the status says so.
    GiveUp,
}

/// How a child is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When it is started again.
    pub restarts: Restarts,
    /// So many restarts...
    pub most: usize,
    /// ...within this time.
    pub within: Duration,
    /// And beyond that.
    pub beyond: Beyond,
}

impl Policy {
    /// For what the process can't do without.
    pub const VITAL: Policy =
        Policy { restarts: Restarts::Permanent, most: 5, within: Duration::from_secs(60), beyond: Beyond::Escalate };
    /// For the actor of one machine.
    pub const ACTOR: Policy =
        Policy { restarts: Restarts::Transient, most: 5, within: Duration::from_secs(60), beyond: Beyond::GiveUp };
}

/// How a child is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It runs.
    Running,
    /// It has been given up, for this reason.
    GivenUp(String),
}

#[derive(Debug)]
struct Child {
    health: Health,
    restarts: u64,
    last_failure: Option<String>,
    task: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    children: Mutex<BTreeMap<Arc<str>, Child>>,
    escalated: watch::Sender<Option<String>>,
    stop: CancellationToken,
    /// Of all children but those that end last.
    stop_first: CancellationToken,
    last: &'static [&'static str],
}

/// A supervisor; a clone is the same one. Its children end with [`Supervisor::stop`], or with the last clone.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Shared>);

/// A supervisor as its children and what they share may hold it: it does not keep them alive.
#[derive(Debug, Clone)]
pub struct WeakSupervisor(Weak<Shared>);

impl WeakSupervisor {
    /// The supervisor; None once it is gone.
    pub fn upgrade(&self) -> Option<Supervisor> {
        self.0.upgrade().map(Supervisor)
    }
}

impl Default for Supervisor {
    fn default() -> Supervisor {
        Supervisor::new()
    }
}

impl Supervisor {
    /// One without children.
    pub fn new() -> Supervisor {
        Supervisor::with_last(&[])
    }

    /// One whose children of these names go on until [`Supervisor::stop`], since others need them to end well.
    pub fn with_last(last: &'static [&'static str]) -> Supervisor {
        let stop = CancellationToken::new();
        let (stop_first, escalated) = (stop.child_token(), watch::Sender::new(None));
        Supervisor(Arc::new(Shared { children: Mutex::default(), escalated, stop, stop_first, last }))
    }

    /// For those whose life is the supervisor's to end.
    pub fn downgrade(&self) -> WeakSupervisor {
        WeakSupervisor(Arc::downgrade(&self.0))
    }

    fn children(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Child>> {
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child. `start` makes its future, anew for each restart; the token tells it to end.
    ///
    /// # Errors
    /// There is a child of that name, or there are too many.
    pub fn start<F, R>(&self, name: &str, policy: Policy, start: F) -> Result<(), String>
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.start_and_tell(name, policy, start, |_failure| std::future::ready(()))
    }

    /// As [`Supervisor::start`]; when the child is given up, `given_up` is told its last failure.
    ///
    /// # Errors
    /// As [`Supervisor::start`].
    pub fn start_and_tell<F, R, G, T>(&self, name: &str, policy: Policy, start: F, given_up: G) -> Result<(), String>
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
        G: FnOnce(String) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let name: Arc<str> = name.into();
        let mut children = self.children();
        if children.contains_key(&name) {
            return Err(format!("the task {name} exists already"));
        }
        if children.len() >= CHILDREN_MAX {
            return Err(format!("no capacity: {CHILDREN_MAX} tasks are the most"));
        }
        let child = Child { health: Health::Running, restarts: 0, last_failure: None, task: None };
        children.insert(name.clone(), child);
        // A weak reference: a task must not keep the supervisor that owns it.
        let keeper = Keeper { name: name.clone(), shared: Arc::downgrade(&self.0), policy };
        let stop = if self.0.last.contains(&&*name) { &self.0.stop } else { &self.0.stop_first };
        let task = AbortOnDropHandle::new(tokio::spawn(keeper.run(start, given_up, stop.child_token())));
        if let Some(child) = children.get_mut(&name) {
            child.task = Some(task);
        }
        Ok(())
    }

    /// Takes a child that has been given up off the list. One that runs stays.
    pub fn forget(&self, name: &str) {
        let mut children = self.children();
        if children.get(name).is_some_and(|child| child.health != Health::Running) {
            children.remove(name);
        }
    }

    /// Resolves, with the reason, when the process has to end.
    pub async fn escalated(&self) -> String {
        let mut escalated = self.0.escalated.subscribe();
        // What is looked at must not be held while waiting: it would bind whoever waits to one thread.
        let reason = match escalated.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_ended) => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// One line a child that is alone in its kind (`KIND/NUMBER`), one line a kind else, and one for each that had trouble.
    pub fn lines(&self) -> Vec<String> {
        let children = self.children();
        let mut lines = Vec::new();
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, child) in children.iter() {
            let kind = name.split_once('/').map(|(kind, _)| kind);
            if let Some(kind) = kind {
                *kinds.entry(kind).or_default() += 1;
            }
            if kind.is_some() && child.restarts == 0 && child.health == Health::Running {
                continue;
            }
            let health = match &child.health {
                Health::Running => "running".to_owned(),
                Health::GivenUp(why) => format!("given up: {why}"),
            };
            let last = child.last_failure.as_ref().map(|f| format!(" last-failure={f:?}")).unwrap_or_default();
            lines.push(format!("{name} {health} restarts={}{last}", child.restarts));
        }
        lines.extend(kinds.iter().map(|(kind, count)| format!("{kind}/* {count}")));
        lines
    }

    /// Tells all children to end, at once, and waits for them, all within bounded time.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        let children = std::mem::take(&mut *self.children());
        Supervisor::await_ends(children).await;
    }

    /// The same of all that don't end last; no others begin any more.
    pub async fn stop_first(&self) {
        self.0.stop_first.cancel();
        let ending = {
            let mut children = self.children();
            let (last, ending) =
                std::mem::take(&mut *children).into_iter().partition(|(name, _)| self.0.last.contains(&&**name));
            *children = last;
            ending
        };
        Supervisor::await_ends(ending).await;
    }

    async fn await_ends(children: BTreeMap<Arc<str>, Child>) {
        let deadline = Instant::now() + STOP_WITHIN;
        for task in children.into_values().filter_map(|child| child.task) {
            // One that does not end in time is dropped, which aborts it.
            let _ = tokio::time::timeout_at(deadline, task).await;
        }
    }
}

/// Keeps one child alive.
struct Keeper {
    name: Arc<str>,
    shared: Weak<Shared>,
    policy: Policy,
}

impl Keeper {
    async fn run<F, R, G, T>(self, start: F, given_up: G, stop: CancellationToken)
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
        G: FnOnce(String) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let mut restarts: VecDeque<Instant> = VecDeque::new();
        loop {
            // Boxed: the future lives only as long as it runs, and panics inside making it are caught as well.
            let ended = AssertUnwindSafe(async { Box::pin(start(stop.clone())).await }).catch_unwind().await;
            let failure = match ended {
                _ if stop.is_cancelled() => return,
                Ok(Ok(())) if self.policy.restarts == Restarts::Transient => return self.ended(),
                Ok(Ok(())) => "it ended by itself".to_owned(),
                Ok(Err(why)) => why,
                Err(panic) => format!("it panicked: {}", said(&*panic)),
            };
            tracing::error!(task = %self.name, %failure, "a task has failed");
            let now = Instant::now();
            restarts.push_back(now);
            while restarts.front().is_some_and(|at| now.duration_since(*at) > self.policy.within) {
                restarts.pop_front();
            }
            let too_often = restarts.len() > self.policy.most;
            self.failed(&failure, too_often);
            if too_often {
                tokio::select! {
                    () = given_up(failure) => {}
                    () = stop.cancelled() => {}
                }
                return;
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    fn ended(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        shared.children.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }

    fn failed(&self, failure: &str, too_often: bool) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut children = shared.children.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = children.get_mut(&self.name) {
            child.restarts += u64::from(!too_often);
            child.last_failure = Some(failure.to_owned());
            if too_often {
                child.health = Health::GivenUp(failure.to_owned());
            }
        }
        drop(children);
        if too_often && self.policy.beyond == Beyond::Escalate {
            let reason = format!("the task {} failed more than {} times: {failure}", self.name, self.policy.most);
            shared.escalated.send_if_modified(|told| {
                let first = told.is_none();
                told.get_or_insert(reason);
                first
            });
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the trace has more").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::Notify;

    /// Fails in turn by panic and by error, `failures` times, then runs on and says so.
    fn failing(
        failures: u64,
    ) -> (Arc<Notify>, impl Fn(CancellationToken) -> futures::future::BoxFuture<'static, Result<(), String>>) {
        let (count, runs) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
        let told = runs.clone();
        let start = move |stop: CancellationToken| {
            let (n, runs) = (count.fetch_add(1, Ordering::Relaxed), runs.clone());
            async move {
                match n {
                    n if n >= failures => {
                        runs.notify_one();
                        stop.cancelled().await;
                        Ok(())
                    }
                    n if n % 2 == 0 => panic!("number {n}"),
                    n => Err(format!("number {n}")),
                }
            }
            .boxed()
        };
        (told, start)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_child_is_restarted_and_harms_nobody() {
        let supervisor = Supervisor::new();
        let (steady_runs, steady) = failing(0);
        let (runs, shaky) = failing(4);
        supervisor.start("steady", Policy::VITAL, steady).unwrap();
        supervisor.start("shaky", Policy::VITAL, shaky).unwrap();
        steady_runs.notified().await;
        runs.notified().await;
        let lines = supervisor.lines();
        assert_eq!(lines, ["shaky running restarts=4 last-failure=\"number 3\"", "steady running restarts=0"]);
        supervisor.stop().await;
        assert!(supervisor.lines().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_failures_escalate_or_are_given_up() {
        let supervisor = Supervisor::new();
        let (_, actor) = failing(100);
        supervisor.start("vm/1", Policy::ACTOR, actor).unwrap();
        let (runs, fine) = failing(0);
        supervisor.start("vm/2", Policy::ACTOR, fine).unwrap();
        runs.notified().await;
        let (_, vital) = failing(100);
        supervisor.start("vital", Policy::VITAL, vital).unwrap();
        let reason = supervisor.escalated().await;
        assert!(reason.starts_with("the task vital failed more than 5 times"), "{reason}");
        let lines = supervisor.lines().join("\n");
        assert!(lines.contains("vm/1 given up: number 5"), "{lines}");
        assert!(lines.contains("vm/* 2") && !lines.contains("vm/2 "), "{lines}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_far_apart_are_forgiven() {
        let supervisor = Supervisor::new();
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let start = move |_| {
            let n = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_secs(30)).await;
                if n < 50 { Err("again".to_owned()) } else { Ok(()) }
            }
        };
        supervisor.start("slow", Policy { restarts: Restarts::Transient, ..Policy::VITAL }, start).unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(30 * 60), supervisor.escalated()).await.is_err());
        assert_eq!(count.load(Ordering::Relaxed), 51);
        assert!(supervisor.lines().is_empty(), "it ended");
    }

    #[tokio::test(start_paused = true)]
    async fn children_that_do_not_end_cost_one_deadline_together() {
        let supervisor = Supervisor::new();
        for n in 0..100 {
            supervisor.start(&format!("deaf/{n}"), Policy::ACTOR, |_| std::future::pending()).unwrap();
        }
        let begin = Instant::now();
        supervisor.stop().await;
        assert!(begin.elapsed() < STOP_WITHIN * 2, "{:?}", begin.elapsed());
        assert!(supervisor.lines().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn children_end_with_the_last_handle_and_those_given_up_can_be_forgotten() {
        let supervisor = Supervisor::new();
        let (held, weak) = (Arc::new(()), supervisor.downgrade());
        let kept = held.clone();
        let start = move |_| {
            let kept = kept.clone();
            async move {
                std::future::pending::<()>().await;
                drop(kept);
                Ok(())
            }
        };
        supervisor.start("lasting", Policy::VITAL, start).unwrap();
        supervisor.forget("lasting");
        assert_eq!(supervisor.lines(), ["lasting running restarts=0"]);
        let (told, telling) = tokio::sync::oneshot::channel();
        let given_up = move |failure| async move { told.send(failure).unwrap() };
        supervisor.start_and_tell("failing", Policy::ACTOR, |_| async { Err("again".to_owned()) }, given_up).unwrap();
        assert_eq!(telling.await.unwrap(), "again");
        supervisor.forget("failing");
        assert_eq!(supervisor.lines(), ["lasting running restarts=0"]);
        drop(supervisor);
        assert!(weak.upgrade().is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
