//! What a node costs beside its peers, measured in the same run: reads over FUSE and 9P beside libfuse and diod, a VM's start beside plain
//! QEMU and libvirt, listing beside virsh, memory.
//!
//! `./bench` installs the peers and runs this. Figures are for ratios: the machine is shared and noisy.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "peers/mod.rs"]
mod peers;

use blixard::ninep::client::Client;
use peers::{Diod, Node};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SECONDS: f64 = 3.0;

/// How often `act` is done per second by so many threads.
fn rate(threads: usize, act: impl Fn() + Sync) -> f64 {
    let start = Instant::now();
    let counts: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut n = 0_u64;
                    while start.elapsed().as_secs_f64() < SECONDS {
                        act();
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    counts as f64 / start.elapsed().as_secs_f64()
}

fn row(what: &str, ours: f64, peer_name: &str, peer: f64, unit: &str) {
    println!("{what:<44} {ours:>12.1} {unit:<6} {peer_name:<22} {peer:>12.1}   ratio {:.2}", ours / peer);
}

fn one(what: &str, ours: f64, unit: &str) {
    println!("{what:<44} {ours:>12.1} {unit}");
}

/// libfuse's least program, mounted.
struct Hello {
    mount: tempfile::TempDir,
}

impl Hello {
    fn start() -> Option<Hello> {
        let binary = std::env::var("BLIXARD_BENCH_HELLO").ok()?;
        let mount = tempfile::tempdir().unwrap();
        let done =
            Command::new(binary).arg(mount.path()).args(["-o", "attr_timeout=0,entry_timeout=0"]).status().ok()?;
        done.success().then_some(Hello { mount })
    }
}

impl Drop for Hello {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.mount.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn read_file(path: &Path) {
    let mut text = Vec::new();
    std::fs::File::open(path).unwrap().read_to_end(&mut text).unwrap();
    assert!(!text.is_empty());
}

fn fuse_reads(node: &Node) {
    let Some(hello) = Hello::start() else { return println!("(no libfuse here: ./bench builds it)") };
    let (ours, theirs) = (node.at("vms/1/status"), hello.mount.path().join("vms/1/status"));
    for threads in [1, 4] {
        let peer = rate(threads, || read_file(&theirs));
        row(
            &format!("open, read, close of status, FUSE, {threads} readers"),
            rate(threads, || read_file(&ours)),
            "libfuse hello",
            peer,
            "/s",
        );
        let peer = rate(threads, || {
            std::fs::metadata(&theirs).unwrap();
        });
        row(
            &format!("stat of status, FUSE, {threads} readers"),
            rate(threads, || {
                std::fs::metadata(&ours).unwrap();
            }),
            "libfuse hello",
            peer,
            "/s",
        );
    }
}

/// Commands through a ctl, each in its own write(2), durable when that returns. Beside: what one command costs a shell that only
/// looks (`./bench commit` has bare hiqlite).
fn ctl_commits(node: &Node) {
    const WRITERS: [usize; 2] = [1, 64];
    let ids = node.new_vms(&"image=tiny memory=64M\n".repeat(WRITERS[1]));
    for writers in WRITERS {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let commits = rate(writers, || {
            // Each is another value, so that each is an entry that changes something.
            let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let id = ids[n % ids.len()];
            node.write(&format!("vms/{id}/ctl"), &format!("set grace={}s\n", 1 + n / ids.len() % 3600));
        });
        let peer = rate(writers, || read_file(&node.at("vms/1/status")));
        row(&format!("open, write, close of a ctl, FUSE, {writers} writers"), commits, "reading a status", peer, "/s");
    }
}

fn ninep_rate(runtime: &tokio::runtime::Runtime, dial: &str, aname: &str, path: &str, at_once: usize) -> f64 {
    let dial = dial.parse().unwrap();
    runtime.block_on(async {
        let client = Client::connect_to(&dial, aname).await.unwrap();
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed().as_secs_f64() < SECONDS {
            let reads = (0..at_once).map(|_| client.read_all(path));
            count += futures::future::join_all(reads)
                .await
                .into_iter()
                .map(|text| u64::from(!text.unwrap().is_empty()))
                .sum::<u64>();
        }
        count as f64 / start.elapsed().as_secs_f64()
    })
}

/// A node's tree through `blixard mount`.
struct Remote {
    mount: tempfile::TempDir,
    child: Child,
}

impl Remote {
    fn start(dial: &str) -> Remote {
        let mount = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blixard"))
            .args(["mount", dial, mount.path().to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "the tree was not mounted");
        Remote { mount, child }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn remote_reads(node: &Node) {
    let remote = Remote::start(&format!("unix!{}/sock", node.data().display()));
    let (far, near) = (remote.mount.path().join("vms/1/status"), node.at("vms/1/status"));
    for readers in [1, 4] {
        let (ours, direct) = (rate(readers, || read_file(&far)), rate(readers, || read_file(&near)));
        row(&format!("the same through blixard mount, {readers} readers"), ours, "direct FUSE mount", direct, "/s");
        let stat = |path: &Path| rate(readers, || assert!(std::fs::metadata(path).unwrap().len() > 0));
        row(
            &format!("stat through blixard mount, {readers} readers"),
            stat(&far),
            "direct FUSE mount",
            stat(&near),
            "/s",
        );
    }
}

fn ninep_reads(node: &Node) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(diod) = Diod::start(&[("status", node.read("vms/1/status").len())]) else {
        return println!("(no diod here: ./bench installs it)");
    };
    let ours = format!("unix!{}/sock", node.data().display());
    let theirs = format!("tcp!127.0.0.1!{}", diod.port);
    for at_once in [1, 16] {
        let peer = ninep_rate(&runtime, &theirs, &diod.path, "status", at_once);
        let mine = ninep_rate(&runtime, &ours, "", "vms/1/status", at_once);
        row(&format!("walk, open, read, clunk of status, 9P, {at_once} at once"), mine, "diod, tmpfs", peer, "/s");
    }
}

/// Until a file has something in it. The same look, a millisecond apart, at every contender's.
fn first_byte(path: &Path) {
    while std::fs::metadata(path).map_or(0, |m| m.len()) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn our_start(node: &Node, id: u64, generation: u64) -> f64 {
    let begun = Instant::now();
    node.write(&format!("vms/{id}/ctl"), "start\n");
    first_byte(&node.data().join(format!("vms/{id}/{generation}/console.log")));
    let took = begun.elapsed().as_secs_f64() * 1e3;
    node.write(&format!("vms/{id}/ctl"), "kill\n");
    assert_eq!(node.read(&format!("vms/{id}/wait")).trim(), "stopped");
    took
}

/// Our machine's own arguments, with paths instead of descriptors, and without the tap, which is ours alone.
fn plain_arguments(node: &Node, id: u64, folder: &Path) -> Vec<String> {
    node.write(&format!("vms/{id}/ctl"), "start\n");
    assert_eq!(node.read(&format!("vms/{id}/wait")).trim(), "running");
    let status = node.read(&format!("vms/{id}/status"));
    let pid = status.lines().find_map(|l| l.strip_prefix("pid ")).unwrap();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    node.write(&format!("vms/{id}/ctl"), "kill\n");
    assert_eq!(node.read(&format!("vms/{id}/wait")).trim(), "stopped");
    let images = std::env::var("BLIXARD_IMAGES").unwrap();
    let words = String::from_utf8(line).unwrap();
    words
        .trim_end_matches('\0')
        .split('\0')
        .skip(1)
        .map(|word| match word {
            "/proc/self/fd/3" => format!("{images}/tiny/kernel"),
            "/proc/self/fd/4" => format!("{images}/tiny/initrd"),
            word if word.starts_with("tap,") => "user,id=net".to_owned(),
            word if word.starts_with("socket,id=") => {
                let id = word.split(['=', ',']).nth(2).unwrap();
                let log =
                    if id == "console" { format!(",logfile={}/console.log", folder.display()) } else { String::new() };
                format!("socket,id={id},path={}/{id},server=on,wait=off{log}", folder.display())
            }
            word => word.to_owned(),
        })
        .collect()
}

fn plain_start(arguments: &[String], folder: &Path) -> f64 {
    let log = folder.join("console.log");
    let _ = std::fs::remove_file(&log);
    let begun = Instant::now();
    let mut child = Command::new("qemu-system-x86_64").args(arguments).stderr(Stdio::null()).spawn().unwrap();
    first_byte(&log);
    let took = begun.elapsed().as_secs_f64() * 1e3;
    child.kill().unwrap();
    child.wait().unwrap();
    took
}

fn virsh(arguments: &[&str]) -> Option<String> {
    let output = Command::new("virsh").args(["-q", "-c", "qemu:///system"]).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn domain(name: &str, log: &Path, cmdline: &str) -> String {
    let images = std::env::var("BLIXARD_IMAGES").unwrap();
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{images}/tiny/kernel</kernel>\
         <initrd>{images}/tiny/initrd</initrd><cmdline>{cmdline}</cmdline></os><features><acpi/></features>\
         <cpu mode='maximum'/><devices><serial type='file'><source path='{}'/></serial></devices></domain>",
        log.display()
    )
}

fn libvirt_start(cmdline: &str) -> Option<f64> {
    let folder = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (xml, log) = (folder.path().join("xml"), folder.path().join("log"));
    std::fs::write(&xml, domain("blixard-bench", &log, cmdline)).unwrap();
    let mut times = Vec::new();
    for _ in 0..5 {
        let _ = std::fs::remove_file(&log);
        let begun = Instant::now();
        virsh(&["create", xml.to_str().unwrap()])?;
        first_byte(&log);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        virsh(&["destroy", "blixard-bench"])?;
    }
    Some(median(times))
}

fn starts() {
    let node = Node::start("qemu");
    let id = node.new_vms("image=tiny memory=128M\n")[0];
    let folder = tempfile::tempdir().unwrap();
    let arguments = plain_arguments(&node, id, folder.path());
    let ours = median((0..7).map(|n| our_start(&node, id, n + 2)).collect());
    let plain = median((0..7).map(|_| plain_start(&arguments, folder.path())).collect());
    row("echo start to the guest's first line", ours, "plain QEMU", plain, "ms");
    one("  over plain QEMU", ours - plain, "ms");
    let at = arguments.iter().position(|a| a == "-append").unwrap();
    match libvirt_start(&arguments[at + 1]) {
        Some(libvirt) => row("  the same beside libvirt", ours, "virsh create", libvirt, "ms"),
        None => println!("  (no libvirt here, or it did not start the domain)"),
    }
}

fn thousands() {
    let node = Node::start("simulated");
    std::thread::sleep(Duration::from_millis(200));
    let idle = node.rss_kib();
    one("memory of an idle node", idle as f64 / 1024.0, "MiB");
    let make = |n: usize| {
        // 64 KiB a write at most.
        for chunk in (0..n).collect::<Vec<_>>().chunks(1_000) {
            let ids = node.new_vms(&"image=tiny memory=128M\n".repeat(chunk.len()));
            for id in ids {
                node.write(&format!("vms/{id}/ctl"), "start\n");
            }
        }
    };
    let begun = Instant::now();
    make(1_000);
    one("1,000 simulated VMs made and started", begun.elapsed().as_secs_f64() * 1e3, "ms");
    let domains = libvirt_thousand();
    let status = 1e6 / rate(1, || read_file(&node.at("vms/500/status")));
    let list = 1e3 / rate(1, || read_file(&node.at("vms/list")));
    match domains {
        Some((state, listing)) => {
            row("status of one of 1,000 VMs", status, "virsh domstate", state * 1e3, "µs");
            row("list of 1,000 VMs", list, "virsh list --all", listing, "ms");
        }
        None => {
            one("status of one of 1,000 VMs", status, "µs");
            one("list of 1,000 VMs", list, "ms");
        }
    }
    make(9_000);
    let last = node.read("vms/list").lines().count() - 1;
    assert_eq!(node.read(&format!("vms/{last}/wait")).trim(), "running");
    std::thread::sleep(Duration::from_secs(2));
    one("memory of a node with 10,000 running VMs", node.rss_kib() as f64 / 1024.0, "MiB");
    one("  a VM", (node.rss_kib() - idle) as f64 * 1024.0 / 10_000.0, "bytes");
    one("list of 10,000 VMs", 1e3 / rate(1, || read_file(&node.at("vms/list"))), "ms");
    one(
        "ls of 10,000 VMs",
        1e3 / rate(1, || assert!(std::fs::read_dir(node.at("vms")).unwrap().count() > 10_000)),
        "ms",
    );
}

/// Milliseconds of domstate and of list over one connection, with 1,000 defined domains.
fn libvirt_thousand() -> Option<(f64, f64)> {
    virsh(&["version"])?;
    let folder = tempfile::tempdir().unwrap();
    let mut script = String::new();
    for n in 0..1_000 {
        let file = folder.path().join(format!("{n}.xml"));
        std::fs::write(&file, domain(&format!("blixard-bench-{n}"), Path::new("/dev/null"), "quiet")).unwrap();
        script.push_str(&format!("define {}\n", file.display()));
    }
    let batch = |text: &str| {
        let mut child = Command::new("virsh")
            .args(["-q", "-c", "qemu:///system"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(text.as_bytes()).ok()?;
        child.wait().ok()
    };
    batch(&script)?;
    let time = |command: &str, n: usize| {
        let alone = Instant::now();
        batch("version\n")?;
        let empty = alone.elapsed();
        let begun = Instant::now();
        batch(&format!("{command}\n").repeat(n))?;
        Some((begun.elapsed().saturating_sub(empty)).as_secs_f64() * 1e3 / n as f64)
    };
    let figures = (time("domstate blixard-bench-500", 500)?, time("list --all", 20)?);
    let undo: String = (0..1_000).map(|n| format!("undefine blixard-bench-{n}\n")).collect();
    batch(&undo)?;
    Some(figures)
}

fn main() {
    let reads = Node::start("simulated");
    let id = reads.new_vms("name=web image=tiny memory=128M\n")[0];
    reads.write(&format!("vms/{id}/ctl"), "start\n");
    fuse_reads(&reads);
    ctl_commits(&reads);
    remote_reads(&reads);
    ninep_reads(&reads);
    drop(reads);
    starts();
    thousands();
}
