//! The engine over a log in memory: submitting, applying, recovering, and what it says when the log misbehaves.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use blixard::clock::HybridClock;
use blixard::engine::log::{AppendError, Committed, Log, LogError, MemoryLog, memory::Fault};
use blixard::engine::state::{By, Claim, Command, ENTRY_FORMAT, Entry, EntryId, NodeId, NodeRole, Role};
use blixard::engine::{Engine, Events, Failure, Options};
use blixard::text::Code;
use std::sync::Arc;
use std::time::Duration;

/// Generous: nothing here should take long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(30);

fn init() -> Vec<Command> {
    vec![Command::Init { cluster: "test".into(), node: "alpha".into(), admin: "root".into(), admin_uid: 0 }]
}

fn user(name: &str) -> Vec<Command> {
    vec![Command::UserSet { name: name.to_owned(), role: Role::Operator, uid: None }]
}

fn root() -> By {
    By::User("root".to_owned())
}

async fn start_with(log: (MemoryLog, Committed), boot: u64, options: Options) -> Result<Engine, LogError> {
    let clock = Arc::new(HybridClock::system());
    Engine::open_with(Arc::new(log.0), log.1, clock, NodeId(1), boot, options).await
}

async fn start(log: (MemoryLog, Committed), boot: u64) -> Engine {
    start_with(log, boot, Options { submit_patience: PATIENCE, ..Options::default() }).await.unwrap()
}

/// An engine with a cluster in it, and another handle of its log.
async fn cluster() -> (Engine, MemoryLog) {
    let (log, committed) = MemoryLog::open();
    let engine = start((log.clone(), committed), 1).await;
    engine.submit(By::Agent, init()).await.unwrap();
    (engine, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_submitted_is_seen_at_once_and_after_a_restart() {
    let (engine, log) = cluster().await;
    let reply = engine.submit(root(), user("ann")).await.unwrap();
    assert_eq!(reply.len(), 1);
    assert!(engine.state().user_named("ann").is_some());
    assert_eq!(*engine.changes().borrow(), 2);
    let hash = engine.state().hash();
    engine.close().await;
    let refusal = engine.submit(root(), user("late")).await.unwrap_err();
    assert_eq!(refusal.code, Code::Again);
    let engine = start(log.reopen(), 2).await;
    assert_eq!(engine.state().hash(), hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_come_together_share_appends_and_each_gets_its_own_answer() {
    let (engine, log) = cluster().await;
    let before = log.appends();
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.submit(root(), user(&format!("user{n}"))).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let state = engine.state();
    assert!((0..500).all(|n| state.user_named(&format!("user{n}")).is_some()));
    assert!(log.appends() - before <= 500);
    assert_eq!(state.seq(), 501);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_state_machine_is_the_submitters_answer() {
    let (engine, _log) = cluster().await;
    let refusal = engine.submit(By::User("nobody".into()), user("ann")).await.unwrap_err();
    assert_eq!(refusal.code, Code::Denied);
    assert_eq!(engine.submit(root(), vec![]).await.unwrap_err().code, Code::Invalid);
    let many = vec![Command::NodeDown; 16_385];
    assert_eq!(engine.submit(root(), many).await.unwrap_err().code, Code::TooLong);
    let long = vec![Command::PoolDelete { name: "x".repeat(300_000) }];
    assert_eq!(engine.submit(root(), long).await.unwrap_err().code, Code::TooLong);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_takes_effect_once() {
    for faults in [
        vec![Fault::LoseAnswer],
        vec![Fault::LoseRequest],
        vec![Fault::LoseRequest, Fault::LoseAnswer, Fault::LoseRequest],
        // Once in doubt, "not done" is no answer for what was sent before.
        vec![Fault::LoseRequest, Fault::Refuse(AppendError::NotDone("no leader".into()))],
    ] {
        let (engine, log) = cluster().await;
        log.inject(faults.clone());
        engine.submit(root(), user("ann")).await.unwrap();
        engine.submit(root(), user("bob")).await.unwrap();
        let page = engine.audit_after(0, 100).await.unwrap();
        let done = |name: &str| page.lines.iter().filter(|l| l.contains(name) && !l.contains("repeated")).count();
        assert_eq!((done("users/ann"), done("users/bob")), (1, 1), "{faults:?}: {page:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_certainly_not_written_is_refused_as_such() {
    let (engine, log) = cluster().await;
    log.inject([
        Fault::Refuse(AppendError::NotDone("there is no leader".into())),
        Fault::Refuse(AppendError::Full("no space left".into())),
    ]);
    let refusal = engine.submit(root(), user("ann")).await.unwrap_err();
    assert_eq!((refusal.code, refusal.sentence.contains("nothing was done")), (Code::Again, true));
    assert_eq!(engine.submit(root(), user("ann")).await.unwrap_err().code, Code::NoSpace);
    assert!(engine.state().user_named("ann").is_none());
    engine.submit(root(), user("ann")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_said_to_be_unknown_and_names_the_entry() {
    let (log, committed) = MemoryLog::open();
    let options = Options { submit_patience: Duration::from_millis(50), ..Options::default() };
    let engine = start_with((log.clone(), committed), 1, options).await.unwrap();
    engine.submit(By::Agent, init()).await.unwrap();
    log.inject(vec![Fault::LoseRequest; 4]);
    let refusal = engine.submit(root(), user("ann")).await.unwrap_err();
    assert_eq!(refusal.code, Code::TimedOut);
    assert!(refusal.sentence.contains("1.1.2") && refusal.sentence.contains("/log"), "{refusal}");
    // The appender goes on without the submitter.
    let mut changes = engine.changes();
    tokio::time::timeout(PATIENCE, changes.wait_for(|seq| *seq >= 2)).await.unwrap().unwrap();
    assert!(engine.state().user_named("ann").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitter_who_goes_away_takes_nothing_back() {
    let (engine, _log) = cluster().await;
    let _polled_once_and_dropped = futures::FutureExt::now_or_never(engine.submit(root(), user("ann")));
    let mut changes = engine.changes();
    tokio::time::timeout(PATIENCE, changes.wait_for(|seq| *seq >= 2)).await.unwrap().unwrap();
    assert!(engine.state().user_named("ann").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_go_on_fails_the_engine() {
    let (engine, log) = cluster().await;
    log.inject([Fault::Refuse(AppendError::Fatal("the disk is gone".into()))]);
    let submitting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.submit(root(), user("ann")).await }
    });
    let reason = tokio::time::timeout(PATIENCE, engine.failed()).await.unwrap();
    assert!(matches!(&reason, Failure::LogEnded(why) if why.contains("the disk is gone")), "{reason}");
    submitting.abort();
    let refusal = engine.submit(root(), user("bob")).await.unwrap_err();
    assert_eq!(refusal.code, Code::Again);
}

/// What renewals of two other voters say is not what this node has: it is the one that has gone wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_decides_otherwise_than_the_others_ends() {
    let (engine, log) = cluster().await;
    for (nth, name) in [(1, "beta"), (2, "gamma")] {
        let (secret_sha256, role) = ([nth; 32], NodeRole::Voter);
        let expires_ms = engine.state().now().millis() + 60_000;
        engine.submit(root(), vec![Command::InviteNew { secret_sha256, role, expires_ms }]).await.unwrap();
        let (name, address, release) = (name.to_owned(), format!("{name}!5640"), "1".to_owned());
        let joins = Command::NodeJoin { secret_sha256, name, address, entry_format: ENTRY_FORMAT, release };
        engine.submit(By::Agent, vec![joins]).await.unwrap();
    }
    let here = engine.claim();
    assert_eq!(here.seq, 5);
    let renewal = |node: u64, n: u64, digest: u64| {
        let claim = Claim { digest, ..here };
        let commands = vec![Command::LeaseRenew { counter: n, length_ms: 10_000, claim }];
        let id = EntryId { node: NodeId(node), boot: 1, n };
        Entry { id, at: engine.state().now(), by: By::Agent, commands }.encode().into()
    };
    log.append(vec![renewal(2, 1, here.digest), renewal(3, 1, 0), renewal(2, 2, here.digest)]).await.unwrap();
    engine.submit(root(), user("ann")).await.unwrap();
    log.append(vec![renewal(2, 3, 0)]).await.unwrap();
    let reason = tokio::time::timeout(PATIENCE, engine.failed()).await.unwrap();
    assert!(matches!(&reason, Failure::Diverged(why) if why.contains("2 of 3 voters")), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_did_not_fit_are_read() {
    let (engine, log) = cluster().await;
    engine.close().await;
    let engine = start(log.reopen_with_room_for(1), 2).await;
    let tasks: Vec<_> = (0..300)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.submit(root(), user(&format!("user{n}"))).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(engine.state().seq(), 301);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_made_the_log_is_cut_and_a_start_from_them_gives_the_same_state() {
    let (log, committed) = MemoryLog::open();
    let options = Options { snapshot_every_records: 10, submit_patience: PATIENCE, ..Options::default() };
    let engine = start_with((log.clone(), committed), 1, options.clone()).await.unwrap();
    engine.submit(By::Agent, init()).await.unwrap();
    let mut n = 0;
    // Until two snapshots have been made, and the log was cut behind the first.
    while blixard::engine::log::Log::read(&log, 0, 1).await.is_ok() {
        engine.submit(root(), user(&format!("user{n}"))).await.unwrap();
        n += 1;
        assert!(n < 10_000, "no snapshot was made");
    }
    let hash = engine.state().hash();
    engine.close().await;
    let engine = start_with(log.reopen(), 2, options).await.unwrap();
    assert_eq!(engine.state().hash(), hash);
    engine.submit(root(), user("afterwards")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_made_when_somebody_wants_one() {
    let (engine, log) = cluster().await;
    engine.submit(root(), user("ann")).await.unwrap();
    assert!(log.snapshot().await.unwrap().is_none(), "none is due for long");
    engine.snapshot();
    engine.submit(root(), user("bob")).await.unwrap();
    let late = tokio::time::Instant::now() + PATIENCE;
    while log.snapshot().await.unwrap().is_none() {
        assert!(tokio::time::Instant::now() < late, "no snapshot was made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The entry before was answered, and may still have been at work.
    let seq = log.snapshot().await.unwrap().unwrap().seq;
    assert!((2..=3).contains(&seq), "{seq}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_is_refused_with_advice() {
    let (engine, log) = cluster().await;
    engine.submit(root(), user("ann")).await.unwrap();
    engine.close().await;
    log.lose_tail(1);
    let error = start_with(log.reopen(), 2, Options::default()).await.unwrap_err();
    let sentence = error.to_string();
    assert!(matches!(error, LogError::Damaged { .. }));
    assert!(sentence.contains("record 1") && sentence.contains("--accept-loss"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_number_was_used_is_refused() {
    let (engine, log) = cluster().await;
    engine.close().await;
    let error = start_with(log.reopen(), 1, Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("number 1") && error.contains("boot"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_order_and_what_was_before_the_start_is_said_to_be_lost() {
    let (engine, log) = cluster().await;
    engine.submit(root(), user("ann")).await.unwrap();
    let Events::Some(all) = engine.events_after(0, 1000) else { panic!("lost") };
    assert!(all.windows(2).all(|pair| pair[0].seq <= pair[1].seq));
    assert!(all.iter().any(|event| event.seq == 2));
    assert_eq!(engine.events_after(2, 1000), Events::Some(vec![]));
    engine.close().await;
    // Replayed from the log: the events are made again.
    let engine = start(log.reopen(), 2).await;
    assert_eq!(engine.events_after(0, 1000), Events::Some(all));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_puts_nothing_into_the_log() {
    let (engine, _log) = cluster().await;
    assert_eq!((engine.sync().await.unwrap(), engine.sync().await.unwrap()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_of_leases_are_not_in_the_audit_trail() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { audit: Some(folder.path().join("audit")), submit_patience: PATIENCE, ..Options::default() };
    let engine = start_with(MemoryLog::open(), 1, options).await.unwrap();
    engine.submit(By::Agent, init()).await.unwrap();
    for counter in 1..=3 {
        engine
            .submit(By::Agent, vec![Command::LeaseRenew { counter, length_ms: 10_000, claim: Default::default() }])
            .await
            .unwrap();
    }
    engine
        .submit(By::Agent, vec![Command::LeaseRenew { counter: 1, length_ms: 10_000, claim: Default::default() }])
        .await
        .unwrap_err();
    engine.submit(root(), user("ann")).await.unwrap();
    let lines = engine.audit_after(0, 100).await.unwrap().lines;
    let begins: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(begins, ["1", "5", "6"], "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_is_in_the_audit_trail_with_who_what_and_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (log, committed) = MemoryLog::open();
    let options = Options { audit: Some(folder.path().join("audit")), submit_patience: PATIENCE, ..Options::default() };
    let engine = start_with((log.clone(), committed), 1, options.clone()).await.unwrap();
    engine.submit(By::Agent, init()).await.unwrap();
    engine.submit(root(), user("ann")).await.unwrap();
    engine.submit(By::User("it's me".into()), user("bob")).await.unwrap_err();
    engine.close().await;
    let engine = start_with(log.reopen(), 2, options).await.unwrap();
    engine.submit(root(), user("cid")).await.unwrap();
    let page = engine.audit_after(0, 100).await.unwrap();
    assert_eq!((page.begins, page.lines.len()), (1, 4), "{page:?}");
    let [first, second, third, fourth] = &page.lines[..] else { panic!("{page:?}") };
    assert!(first.starts_with("1 20") && first.contains(" user=agent node=1 id=1.1.1 result=created:1 "), "{first}");
    assert!(second.contains(" user=root ") && second.contains("users/ann"), "{second}");
    assert!(third.contains(" user='it''s me' ") && third.contains(" result=Denied reason="), "{third}");
    assert!(fourth.starts_with("4 ") && fourth.contains(" id=1.2.1 "), "{fourth}");
    assert_eq!(engine.audit_after(2, 1).await.unwrap().lines, vec![third.clone()]);
}
