//! Files that wait or never end: they wake for what happens, resume where they are told, and end when they are dropped.

use crate::harness::{Cluster, PATIENCE, answer, blocks, next, read_all, write};
use blixard::engine::log::followed::{Gathering, Line, Part};
use blixard::engine::state::{Command, VmId, VmReport};
use blixard::fs::tree::{Answer, Handle, OpenMode};
use bytes::Bytes;
use std::sync::Arc;

const BLOCKING: OpenMode = OpenMode { read: true, write: false, truncate: false, append: false, nonblock: false };

fn report(vm: u64, report: VmReport) -> Command {
    Command::VmReport { vm: VmId(vm), generation: 1, report }
}

/// A read that has looked once and now waits.
fn waiting(handle: &Arc<dyn Handle>) -> tokio::task::JoinHandle<String> {
    let Answer::Later(mut read) = handle.read(0, 1 << 16) else { panic!("it has something already") };
    assert!(futures::FutureExt::now_or_never(&mut read).is_none(), "it has something already");
    tokio::spawn(async move {
        let bytes = tokio::time::timeout(PATIENCE, read).await.expect("it wakes").unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_gives_the_state_once_it_has_settled_and_ends() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    assert_eq!(cluster.read("vms/1/wait").await, "defined\n");
    cluster.write("vms/1/ctl", "start").await.unwrap();
    let open = || cluster.open(&cluster.root(), "vms/1/wait", BLOCKING).unwrap().handle;
    let (first, second) = (open(), open());
    let (one, two) = (waiting(&first), waiting(&second));
    let also = waiting(&first);
    assert_eq!(cluster.read("vms/1/wait").await, "", "who does not want to wait is told nothing");
    cluster.report(report(1, VmReport::Started { pid: 7 })).await;
    assert_eq!(two.await.unwrap(), "running\n");
    let mut both = [one.await.unwrap(), also.await.unwrap()];
    both.sort();
    assert_eq!(both, ["", "running\n"], "two readers of one open share one line");
    assert_eq!(next(&*first).await, "", "and that was the end");
    cluster.write("vms/1/ctl", "stop").await.unwrap();
    let third = open();
    let stopped = waiting(&third);
    cluster.report(report(1, VmReport::Ended)).await;
    assert_eq!(stopped.await.unwrap(), "stopped\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_when_the_machine_is_deleted_under_it() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    cluster.write("vms/1/ctl", "start").await.unwrap();
    cluster.report(report(1, VmReport::Started { pid: 7 })).await;
    cluster.write("vms/1/ctl", "kill").await.unwrap();
    let handle = cluster.open(&cluster.root(), "vms/1/wait", BLOCKING).unwrap().handle;
    let gone = waiting(&handle);
    cluster.engine.submit(blixard::engine::state::By::Agent, vec![report(1, VmReport::Ended)]).await.unwrap();
    let said = gone.await.unwrap();
    assert_eq!(said, "stopped\n");
    cluster.write("vms/1/ctl", "delete").await.unwrap();
    let handle = cluster.open(&cluster.root(), "vms/1/wait", BLOCKING).unwrap().handle;
    let gone = waiting(&handle);
    cluster.report(report(1, VmReport::Removed)).await;
    assert_eq!(gone.await.unwrap(), "deleted\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_happen_with_their_number() {
    let cluster = Cluster::new().await;
    let handle = cluster.open(&cluster.root(), "events", BLOCKING).unwrap().handle;
    let event = waiting(&handle);
    cluster.vm("image=tiny memory=64M").await;
    let line = event.await.unwrap();
    let seq = cluster.engine.state().seq();
    assert!(line.starts_with(&format!("{seq} ")) && line.ends_with('\n') && line.contains("vms/1"), "{line}");
    // What is of no VM is not among the VMs' events.
    let vms = cluster.open(&cluster.root(), "vms/events", BLOCKING).unwrap().handle;
    let event = waiting(&vms);
    cluster.write("ipam/new", "name=lab network=10.50.0.0/24").await.unwrap();
    cluster.write("vms/1/ctl", "set cpus=2").await.unwrap();
    let line = event.await.unwrap();
    assert!(line.contains("vms/1") && line.lines().count() == 1, "{line}");
    assert!(next(&*handle).await.contains("lab"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_is_told_even_under_a_reader_who_waits() {
    let cluster = Cluster::new().await;
    let before = cluster.engine.state().seq();
    for _ in 0..3 {
        cluster.vm("image=tiny memory=64M").await;
    }
    for file in ["events", "vms/events"] {
        let handle = cluster.both(file);
        let reader = waiting(&handle);
        write(&*handle, format!("from={}", before + 2)).await.unwrap();
        let text = reader.await.unwrap();
        let seqs: Vec<u64> = text.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(seqs, [before + 2, before + 3], "{file}: {text}");
        assert!(blocks(handle.read(0, 100)), "and then live");
        write(&*handle, format!("from={}\n", before + 3)).await.unwrap();
        assert_eq!(next(&*handle).await.lines().count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_open_share_its_events_and_none_comes_twice() {
    let cluster = Cluster::new().await;
    let handle = cluster.open(&cluster.root(), "events", BLOCKING).unwrap().handle;
    let mut readers = Vec::new();
    for _ in 0..4 {
        let handle = handle.clone();
        readers.push(tokio::spawn(async move {
            let mut got = Vec::new();
            while !got.iter().any(|line: &String| line.contains("vms/50 ")) {
                let text = next(&*handle).await;
                got.extend(text.lines().map(str::to_owned));
                if text.is_empty() {
                    break;
                }
            }
            got
        }));
    }
    let first = cluster.engine.state().seq();
    for _ in 0..50 {
        cluster.vm("image=tiny memory=64M").await;
    }
    let (done, _, rest) = futures::future::select_all(readers).await;
    let mut all = done.unwrap();
    // One of them has the last; the others wait, and are told of one more each.
    for reader in rest {
        reader.abort();
        if let Ok(got) = reader.await {
            all.extend(got);
        }
    }
    let mut seqs: Vec<u64> = all.iter().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
    let count = seqs.len();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), count, "twice: {all:?}");
    assert!(seqs.iter().all(|seq| *seq > first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_is_too_slow_is_told_what_it_lost_and_where_to_go_on() {
    let cluster = Cluster::new().await;
    let handle = cluster.both("events");
    let create = "image=tiny memory=64M\n".repeat(2_500);
    for _ in 0..8 {
        write(&*cluster.both("vms/new"), &create).await.unwrap();
    }
    let lost = String::from_utf8(read_all(&*handle).await.unwrap()).unwrap();
    assert!(lost.starts_with("# lost: ") && lost.lines().count() == 1, "{lost}");
    assert_eq!(next(&*handle).await, "", "then the end of the file");
    let from = lost.split("from=").nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next().unwrap();
    write(&*handle, format!("from={from}")).await.unwrap();
    assert!(next(&*handle).await.starts_with(&format!("{from} ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machines_events_begin_with_its_history() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M name=web").await;
    cluster.vm("image=tiny memory=64M").await;
    cluster.write("vms/1/ctl", "start").await.unwrap();
    let past = cluster.read("vms/1/events").await;
    assert_eq!(past.lines().count(), 2, "{past}");
    assert!(past.lines().all(|l| l.contains("vms/1")), "{past}");
    let handle = cluster.open(&cluster.root(), "vms/1/events", BLOCKING).unwrap().handle;
    assert_eq!(next(&*handle).await, past);
    let live = waiting(&handle);
    cluster.report(report(1, VmReport::Started { pid: 7 })).await;
    assert!(live.await.unwrap().contains("vms/1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_has_what_was_done_and_what_was_refused() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M name=web").await;
    cluster.write("vms/1/ctl", "pause").await.unwrap_err();
    let log = cluster.read("log").await;
    assert!(log.lines().any(|l| l.contains("vms/new name=web image=tiny")), "{log}");
    assert!(log.lines().any(|l| l.contains("vms/1 pause") && l.contains("busy")), "{log}");
    let last = cluster.engine.state().seq();
    let handle = cluster.both("log");
    write(&*handle, format!("from={last}")).await.unwrap();
    let text = String::from_utf8(read_all(&*handle).await.unwrap()).unwrap();
    assert!(text.starts_with(&format!("{last} ")) && text.lines().count() == 1, "{text}");
    // What has happened since the open is there for who asks again.
    cluster.write("vms/1/ctl", "set cpus=2").await.unwrap();
    write(&*handle, format!("from={}", last + 1)).await.unwrap();
    let text = String::from_utf8(read_all(&*handle).await.unwrap()).unwrap();
    assert!(text.contains("set cpus=2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_is_a_barrier() {
    let cluster = Cluster::new().await;
    let before = cluster.engine.state().seq();
    let seq: u64 = cluster.read("sync").await.trim().parse().unwrap();
    assert!(seq >= before && cluster.engine.state().seq() >= seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_is_read_and_written_through_one_open() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    let handle = cluster.both("vms/1/console");
    let reader = waiting(&handle);
    write(&*handle, "ls\n").await.unwrap();
    assert_eq!(cluster.host.typed.lock().unwrap().try_recv().unwrap(), "ls\n");
    cluster.host.output.send(Bytes::from_static(b"bin etc\n")).unwrap();
    assert_eq!(reader.await.unwrap(), "bin etc\n");
    // Bytes that are no text go through as they are, and a short read loses none.
    cluster.host.output.send(Bytes::from_static(b"\xff\0\x1b[0m")).unwrap();
    assert_eq!(answer(handle.read(0, 2)).await.unwrap(), &b"\xff\0"[..]);
    assert_eq!(answer(handle.read(0, 100)).await.unwrap(), &b"\x1b[0m"[..]);
    // A reader who goes away takes nothing with it.
    drop(handle.read(0, 100));
    let Answer::Later(mut read) = handle.read(0, 100) else { panic!("there is nothing yet") };
    assert!(futures::FutureExt::now_or_never(&mut read).is_none());
    drop(read);
    cluster.host.output.send(Bytes::from_static(b"late\n")).unwrap();
    assert_eq!(next(&*handle).await, "late\n");
    assert_eq!(cluster.read("vms/1/log").await, "tiny: booting\ntiny: ready\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_tells_a_slow_reader_that_it_has_lost_something() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    let handle = cluster.both("vms/1/console");
    write(&*handle, "\n").await.unwrap();
    for n in 0..40 {
        cluster.host.output.send(Bytes::from(format!("{n}\n"))).unwrap();
    }
    let text = next(&*handle).await;
    assert!(text.contains("# lost: ") && text.contains("/log"), "{text}");
}

/// Lines of a stream, until one is enough.
async fn lines_until(handle: &Arc<dyn Handle>, enough: impl Fn(&Line) -> bool) -> Vec<Line> {
    let (mut text, mut lines) = (String::new(), Vec::new());
    while !lines.last().is_some_and(&enough) {
        text += &next(&**handle).await;
        let (whole, rest) = text.rsplit_once('\n').unwrap_or(("", &text));
        lines.extend(whole.lines().map(|line| line.parse::<Line>().unwrap()));
        text = rest.to_owned();
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn work_tells_a_snapshot_in_parts_where_the_log_was_cut_and_then_goes_on() {
    let cluster = Cluster::new().await;
    for _ in 0..600 {
        cluster.vm("image=tiny memory=64M").await;
    }
    let work = || async {
        let both = OpenMode { write: true, ..BLOCKING };
        let handle = cluster.open(&cluster.root(), "nodes/alpha/work", both).unwrap().handle;
        write(&*handle, "from=1\n").await.unwrap();
        handle
    };
    let is_record = |line: &Line| matches!(line, Line::Record(_));
    let late = tokio::time::Instant::now() + PATIENCE;
    while is_record(&lines_until(&work().await, |_| true).await[0]) {
        assert!(tokio::time::Instant::now() < late, "the log was not cut");
        cluster.engine.snapshot();
        cluster.vm("image=tiny memory=64M").await;
    }
    // After the newest snapshot, that there is a record after it.
    cluster.vm("image=tiny memory=64M").await;
    let mut lines = lines_until(&work().await, is_record).await;
    let at = lines.iter().position(is_record).unwrap();
    let records = lines.split_off(at);
    let mut gathering = Gathering::default();
    assert!(lines.len() > 2, "{} parts", lines.len());
    assert!(lines.into_iter().fold(false, |_, line| gathering.take(line).unwrap()), "it ends");
    let Part::Snapshot(snapshot) = gathering.part().unwrap() else { panic!("no snapshot") };
    assert!(matches!(&records[0], Line::Record(record) if record.seq == snapshot.seq + 1));

    // Who wants to know where it goes on reads one part, and goes on there.
    let follower = work().await;
    let Answer::Later(first) = follower.read(0, 1 << 16) else { panic!("it is loaded first") };
    let first = String::from_utf8(first.await.unwrap().to_vec()).unwrap();
    assert_eq!(first.lines().count(), 1, "the first part comes alone");
    let Ok(Line::Snapshot(seq, 1, ..)) = first.trim_end().parse() else { panic!("{first}") };
    write(&*follower, format!("from={}\n", seq + 1)).await.unwrap();
    let lines = lines_until(&follower, |_| true).await;
    assert!(matches!(&lines[0], Line::Record(record) if record.seq == seq + 1));
}
