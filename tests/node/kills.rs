//! SIGKILL at random moments: what was acknowledged is there, what runs is what should, and no guest was disturbed.

use crate::support::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): a few lines, and a seed that replays the choices.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Create,
    Start,
    Stop,
    Kill,
    Delete,
}

/// What one client knows of the one VM that it plays with.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Its number, if its creation was acknowledged and its deletion was not.
    id: Option<u64>,
    /// Numbers whose deletion was acknowledged.
    deleted: Vec<u64>,
    /// The last acknowledged start or stop.
    desired: Option<&'static str>,
    /// What was under way when the node died: it may have happened or not.
    pending: Option<Op>,
    /// (pid, generation), seen running and settled, and nothing asked of it since.
    settled: Option<(String, String)>,
    /// Commands that were acknowledged.
    acknowledged: u64,
}

/// One client: plays with the VM `name` until the node dies.
struct Client {
    name: String,
    /// Once its VM runs, it asks for nothing that would disturb it.
    gentle: bool,
    mount: PathBuf,
    known: Known,
    random: Random,
}

/// The node is gone, as the kernel says it of a FUSE mount; anything else is an answer.
fn died(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV | Errno::INTR))
}

impl Client {
    fn write(&self, path: &str, text: &str) -> std::io::Result<()> {
        use std::io::Write;
        std::fs::File::options().write(true).open(self.mount.join(path))?.write_all(text.as_bytes())
    }

    fn create(&self) -> std::io::Result<u64> {
        use std::io::{Read, Write};
        let mut file = std::fs::File::options().read(true).write(true).open(self.mount.join("vms/new"))?;
        // One write: `writeln!` would make several of it.
        file.write_all(format!("name={} image=tiny memory=128M grace=1s\n", self.name).as_bytes())?;
        let mut answer = String::new();
        file.read_to_string(&mut answer)?;
        Ok(answer.trim().parse().unwrap())
    }

    /// Plays until the node is gone.
    fn play(&mut self, stop: &AtomicBool) {
        self.known.pending = None;
        while !stop.load(Ordering::Relaxed) {
            let op = match (self.known.id, self.random.below(8)) {
                (None, _) => Op::Create,
                (Some(_), 0..=3) => Op::Start,
                (Some(_), 4..=6) if self.gentle => Op::Start,
                (Some(_), 4) => Op::Stop,
                (Some(_), 5) => Op::Kill,
                (Some(_), 6) => Op::Delete,
                (Some(id), _) => match self.settle(id) {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            self.known.pending = Some(op);
            match self.act(op) {
                Ok(()) => self.known.acknowledged += 1,
                Err(e) if died(&e) => return,
                Err(e) if e.kind() == ErrorKind::ResourceBusy => {}
                Err(e) => panic!("{op:?} on {}: {e}", self.name),
            }
            self.known.pending = None;
        }
    }

    /// Has its VM run, before anybody is killed.
    fn begin(&mut self) {
        self.act(Op::Create).unwrap();
        self.act(Op::Start).unwrap();
        self.settle(self.known.id.unwrap()).unwrap();
        assert!(self.known.settled.is_some(), "{} does not run", self.name);
    }

    fn settle(&mut self, id: u64) -> std::io::Result<()> {
        let state = std::fs::read_to_string(self.mount.join(format!("vms/{id}/wait")))?;
        if state.trim() == "running" {
            let status = std::fs::read_to_string(self.mount.join(format!("vms/{id}/status")))?;
            self.known.settled = Some((value(&status, "pid"), value(&status, "generation")));
        }
        Ok(())
    }

    fn act(&mut self, op: Op) -> std::io::Result<()> {
        let Some(id) = self.known.id else {
            self.known.id = Some(self.create()?);
            self.known.desired = Some("stopped");
            return Ok(());
        };
        // A start of what runs changes nothing, so it must not disturb the guest either.
        if op != Op::Start {
            self.known.settled = None;
        }
        let (verb, desired) = match op {
            Op::Start => ("start", "running"),
            Op::Stop => ("stop", "stopped"),
            Op::Kill => ("kill", "stopped"),
            Op::Delete | Op::Create => ("delete", ""),
        };
        self.write(&format!("vms/{id}/ctl"), &format!("{verb}\n"))?;
        if op == Op::Delete {
            self.known.deleted.push(id);
            (self.known.id, self.known.desired) = (None, None);
        } else {
            self.known.desired = Some(desired);
        }
        Ok(())
    }
}

fn value(text: &str, key: &str) -> String {
    let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    found.unwrap_or_default().trim().to_owned()
}

/// After a restart: nothing that was acknowledged is lost; what was under way happened whole or not at all.
fn check_acknowledged(node: &Node, client: &mut Client) {
    let known = &mut client.known;
    let link = std::fs::read_link(node.mount().join("vms").join(&client.name)).ok();
    let there: Option<u64> = link.map(|l| l.to_str().unwrap().parse().unwrap());
    match (known.id, there, known.pending) {
        (Some(id), Some(there), _) => assert_eq!(id, there),
        (Some(id), None, Some(Op::Delete)) => {
            known.deleted.push(id);
            known.id = None;
        }
        (None, Some(there), Some(Op::Create)) => {
            assert!(!known.deleted.contains(&there), "number {there} was used again");
            (known.id, known.desired) = (Some(there), Some("stopped"));
        }
        (None, None, _) => {}
        (id, there, pending) => {
            panic!("{}: acknowledged {id:?}, pending {pending:?}, but found {there:?}", client.name)
        }
    }
    let Some(id) = known.id else { return };
    let desired = node.value(&format!("vms/{id}/status"), "desired").unwrap();
    let allowed = match known.pending {
        Some(Op::Start) => vec![known.desired.unwrap(), "running"],
        Some(Op::Stop | Op::Kill) => vec![known.desired.unwrap(), "stopped"],
        _ => vec![known.desired.unwrap()],
    };
    assert!(allowed.contains(&desired.as_str()), "{}: desired {desired}, but {allowed:?} were asked for", client.name);
    known.desired = allowed.into_iter().find(|a| *a == desired);
}

/// Once all has settled: the tree, the processes and the leases say the same. Gives how many guests ran before and were not disturbed;
/// those that run now are watched from here on.
fn check_agreement(node: &Node, clients: &mut [Client]) -> u32 {
    let mut undisturbed = 0;
    let mut running = BTreeSet::new();
    let ids: BTreeSet<u64> = clients.iter().filter_map(|c| c.known.id).collect();
    for client in clients.iter_mut() {
        for gone in &client.known.deleted {
            node.wait_gone(*gone);
        }
        let Some(id) = client.known.id else { continue };
        let state = node.wait(id);
        assert_eq!(
            Some(state.as_str()).filter(|s| *s != "defined").unwrap_or("stopped"),
            client.known.desired.unwrap()
        );
        if state == "running" {
            running.insert(id);
        }
        let status = node.read(&format!("vms/{id}/status"));
        let now = (value(&status, "pid"), value(&status, "generation"));
        if let Some(settled) = &client.known.settled {
            assert_eq!(*settled, now, "{} was disturbed", client.name);
            undisturbed += 1;
        }
        client.known.settled = (state == "running").then_some(now);
    }
    let machines = node.machines();
    let by_vm: BTreeMap<u64, u32> = machines.iter().map(|(pid, vm)| (*vm, *pid)).collect();
    assert_eq!(by_vm.len(), machines.len(), "two processes of one VM: {machines:?}");
    assert_eq!(by_vm.keys().copied().collect::<BTreeSet<_>>(), running, "processes and tree differ");
    let leases = node.read("ipam/default/leases");
    let held: BTreeSet<u64> = leases
        .lines()
        .filter_map(|l| l.split_whitespace().find_map(|w| w.strip_prefix("vms/")?.parse().ok()))
        .collect();
    assert_eq!(held, ids, "leases and tree differ:\n{leases}");
    undisturbed
}

/// Kills the node again while it starts, at a moment within the time that its last start took. Was that before it was ready?
fn kill_a_start(node: &mut Node, random: &mut Random, start_took: Duration) -> bool {
    let moment = Duration::from_millis(random.below(u64::try_from(start_took.as_millis()).unwrap().max(1)));
    let mut child = node.spawn();
    std::thread::sleep(moment);
    child.kill().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child.wait().unwrap();
    !said.starts_with("ready")
}

/// Kills the node `times` times under load and checks everything after each restart.
fn kill_at_random_moments(times: u32) {
    let seed = std::env::var("BLIXARD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(u64::from(std::process::id()));
    println!("BLIXARD_SEED={seed} plays the same choices again");
    let mut random = Random(seed);
    let mut node = Node::qemu();
    let mut clients: Vec<Client> = (0..4)
        .map(|i| Client {
            name: format!("k{i}"),
            gentle: i == 0,
            mount: node.mount(),
            known: Known::default(),
            random: Random(seed ^ (i + 1)),
        })
        .collect();
    clients[0].begin();
    let (mut undisturbed, mut early) = (0, 0);
    let mut start_took = Duration::from_secs(1);
    for round in 0..times {
        for client in &mut clients[1..] {
            client.gentle = random.below(2) == 0;
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in &mut clients {
                let stop = &stop;
                scope.spawn(move || client.play(stop));
            }
            // The moment of the kill is what is random here; nothing is waited for.
            std::thread::sleep(Duration::from_millis(random.below(900)));
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        if round % 2 == 1 {
            early += u32::from(kill_a_start(&mut node, &mut random, start_took));
        }
        let begun = std::time::Instant::now();
        node.start();
        start_took = begun.elapsed();
        for client in &mut clients {
            check_acknowledged(&node, client);
        }
        undisturbed += check_agreement(&node, &mut clients);
        println!(
            "round {round}: {undisturbed} undisturbed so far, {early} starts killed, acknowledged {:?}",
            clients.iter().map(|c| c.known.acknowledged).collect::<Vec<_>>()
        );
    }
    for id in clients.iter().filter_map(|c| c.known.id) {
        node.write(&format!("vms/{id}/ctl"), "kill\n").unwrap();
        assert_eq!(node.wait(id).replace("defined", "stopped"), "stopped");
        node.delete(id);
    }
    node.stop();
    assert_eq!((node.machines(), node.host_objects()), (Vec::new(), Vec::new()), "left behind");
    let acknowledged: u64 = clients.iter().map(|c| c.known.acknowledged).sum();
    assert!(undisturbed >= times, "only {undisturbed} running guests were watched through {times} kills");
    assert!(times < 10 || early > 0, "no start was killed before it was ready");
    assert!(acknowledged > u64::from(times), "only {acknowledged} commands were acknowledged: that proves nothing");
}

mod guest {
    #[test]
    fn three_kills_lose_nothing() {
        super::kill_at_random_moments(3);
    }

    mod slow {
        #[test]
        fn fifty_kills_lose_nothing() {
            super::super::kill_at_random_moments(50);
        }
    }
}
