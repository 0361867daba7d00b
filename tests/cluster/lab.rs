//! A lab: machines in network namespaces around a switch, which can be told what not to carry.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that ends by itself may take on a busy machine before the test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "eps"];

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn ip(line: &str) {
    let output = run("ip", &line.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The switch and the machines.
pub struct Lab {
    folder: tempfile::TempDir,
    tag: String,
    machines: usize,
}

impl Lab {
    /// So many machines that can all reach each other.
    pub fn new(machines: usize) -> Lab {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let tag = format!("bx{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("c").tempdir().unwrap();
        let lab = Lab { folder, tag, machines };
        let hub = lab.hub();
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link add switch type bridge"));
        ip(&format!("-n {hub} link set switch up"));
        for at in 0..machines {
            let namespace = lab.namespace(at);
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {hub} link add port{at} type veth peer name eth0 netns {namespace}"));
            ip(&format!("-n {hub} link set port{at} master switch up"));
            ip(&format!("-n {namespace} address add 10.98.0.{}/24 dev eth0", at + 1));
            ip(&format!("-n {namespace} link set eth0 up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        lab.carry_all();
        lab
    }

    fn hub(&self) -> String {
        format!("{}h", self.tag)
    }

    pub fn namespace(&self, at: usize) -> String {
        format!("{}n{at}", self.tag)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn nft(&self, rules: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.hub(), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The switch carries everything.
    pub fn carry_all(&self) {
        self.nft("add table bridge lab\ndelete table bridge lab\n");
    }

    /// The switch drops what goes from these to those.
    pub fn drop_from_to(&self, pairs: &[(usize, usize)]) {
        let mut rules = String::from(
            "add table bridge lab\ndelete table bridge lab\nadd table bridge lab\n\
             add chain bridge lab carry { type filter hook forward priority 0; }\n",
        );
        for (from, to) in pairs {
            rules.push_str(&format!("add rule bridge lab carry iifname \"port{from}\" oifname \"port{to}\" drop\n"));
        }
        self.nft(&rules);
    }

    /// The machine `to` gets the address of the machine `from`, besides its own, and `from` has it no more.
    pub fn give_address(&self, from: usize, to: usize) {
        let address = format!("10.98.0.{}/24", from + 1);
        ip(&format!("-n {} address delete {address} dev eth0", self.namespace(from)));
        ip(&format!("-n {} address add {address} dev eth0", self.namespace(to)));
        // Nobody is to remember where it was.
        (0..self.machines).for_each(|at| ip(&format!("-n {} neigh flush all", self.namespace(at))));
    }

    /// Cuts these off from all others.
    pub fn cut_off(&self, some: &[usize]) {
        let apart = |a: usize, b: usize| some.contains(&a) != some.contains(&b);
        let all = (0..self.machines).flat_map(|a| (0..self.machines).map(move |b| (a, b)));
        self.drop_from_to(&all.filter(|(a, b)| apart(*a, *b)).collect::<Vec<_>>());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for at in 0..self.machines {
            run("ip", &["netns", "delete", &self.namespace(at)]);
        }
        run("ip", &["netns", "delete", &self.hub()]);
    }
}

/// How the clocks of a machine differ.
#[derive(Debug, Clone, Default)]
pub struct Clocks {
    /// The time of day, by libfaketime: a file with seconds, which may change while a process runs.
    pub day: Option<PathBuf>,
    /// The clocks that count from the start of the host, in seconds, by a time namespace.
    pub boot: Option<u64>,
}

impl Clocks {
    /// For what the command starts.
    fn of(&self, command: &mut Command) {
        if let Some(seconds) = self.boot {
            command.args([
                "unshare",
                "--time",
                "--boottime",
                &seconds.to_string(),
                "--monotonic",
                &seconds.to_string(),
            ]);
        }
        let Some(file) = &self.day else { return };
        let found = std::fs::read_dir("/usr/lib").unwrap().flatten();
        let mut found = found.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = found.find(|file| file.exists()).expect("Debian's package faketime is needed");
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file);
        // The time of day alone, looked up at each question.
        command.envs([("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("FAKETIME_NO_CACHE", "1"), ("NO_FAKE_STAT", "1")]);
    }
}

/// A node on a machine of the lab.
pub struct Node {
    pub at: usize,
    /// qemu, or simulated.
    pub hypervisor: &'static str,
    /// What each start is told besides.
    pub flags: Vec<String>,
    /// How its clocks differ from the machine's.
    pub clocks: Clocks,
    /// What is started as its daemon.
    pub program: PathBuf,
    data: PathBuf,
    mount: PathBuf,
    trace: PathBuf,
    namespace: String,
    process: Option<Child>,
}

impl Node {
    /// A machine with nothing on it yet.
    pub fn new(lab: &Lab, at: usize) -> Node {
        let folder = lab.folder().join(NAMES[at]);
        std::fs::create_dir(&folder).unwrap();
        Node {
            at,
            hypervisor: "simulated",
            flags: Vec::new(),
            clocks: Clocks::default(),
            program: env!("CARGO_BIN_EXE_blixard").into(),
            data: folder.join("data"),
            mount: folder.join("n"),
            trace: folder.join("trace"),
            namespace: lab.namespace(at),
            process: None,
        }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn address(&self) -> String {
        format!("10.98.0.{}", self.at + 1)
    }

    /// blixard on this machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_blixard")), arguments)
    }

    fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace));
        self.clocks.of(&mut command);
        command.arg(program);
        command.args(arguments).stdin(Stdio::null());
        command.env("BLIXARD", format!("unix!{}/sock", self.data.display())).env("BLIXARD_DATA", &self.data);
        command
    }

    /// What a verb of the command line prints.
    pub fn blixard(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\ntrace:\n{}", self.trace_text());
        String::from_utf8(output.stdout).unwrap()
    }

    fn serve(&self, arguments: &[&str]) -> Command {
        let images = crate::images::images();
        let mut command = self.command_of(
            &self.program,
            &["serve", "--hypervisor", self.hypervisor, "--images", images.to_str().unwrap()],
        );
        command.args(["--data", self.data.to_str().unwrap(), "--mount", self.mount.to_str().unwrap()]);
        command.args(&self.flags).args(arguments);
        command
    }

    /// Starts it, and waits until its tree is there.
    pub fn start(&mut self, arguments: &[&str]) {
        self.spawn(arguments);
        self.await_ready();
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&mut self, arguments: &[&str]) {
        assert!(self.process.is_none());
        let trace = std::fs::File::options().create(true).append(true).open(&self.trace).unwrap();
        self.process = Some(self.serve(arguments).stdout(Stdio::piped()).stderr(trace).spawn().unwrap());
    }

    /// Waits until it says that it is ready.
    pub fn await_ready(&mut self) {
        let output = self.process.as_mut().unwrap().stdout.take().unwrap();
        let mut said = String::new();
        BufReader::new(output).read_line(&mut said).unwrap();
        if !said.starts_with("ready") {
            let ended = self.process.as_mut().unwrap().try_wait();
            panic!("{} did not start ({said:?}, {ended:?}); its trace:\n{}", NAMES[self.at], self.trace_text());
        }
    }

    /// What it says when it can't be started.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.serve(arguments).output().unwrap();
        assert!(!output.status.success(), "it was started");
        String::from_utf8(output.stderr).unwrap()
    }

    /// SIGKILL. Its mount is dead then, and is taken away, as a start would.
    pub fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        run("umount", &["-l", self.mount.to_str().unwrap()]);
    }

    /// SIGTERM, and its exit must be clean.
    pub fn stop(&mut self) {
        let mut child = self.process.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{}: {status}; its trace:\n{}", NAMES[self.at], self.trace_text());
    }

    /// Waits for an end of its own accord, and gives the trace.
    pub fn await_end(&mut self) -> String {
        let mut child = self.process.take().unwrap();
        until("its end", || child.try_wait().unwrap().is_some());
        self.trace_text()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// The same node, whose daemon somebody else has killed.
    pub fn again(&self) -> Node {
        run("umount", &["-l", self.mount.to_str().unwrap()]);
        let (data, mount, trace, namespace) =
            (self.data.clone(), self.mount.clone(), self.trace.clone(), self.namespace.clone());
        let (hypervisor, flags, clocks) = (self.hypervisor, self.flags.clone(), self.clocks.clone());
        let program = self.program.clone();
        Node { at: self.at, hypervisor, flags, clocks, program, data, mount, trace, namespace, process: None }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().unwrap()), signal).unwrap();
    }

    pub fn trace_text(&self) -> String {
        std::fs::read_to_string(&self.trace).unwrap_or_default()
    }

    /// Where a file of the tree is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    /// The state in which a VM has settled, when this node has heard of it.
    pub fn value_of_wait(&self, id: &str) -> String {
        self.read("sync");
        self.read(&format!("vms/{id}/wait")).trim().to_owned()
    }

    /// Reads a file of the tree; an error is given as text.
    pub fn try_read(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(self.mount.join(path)).map_err(|error| error.to_string())
    }

    pub fn read(&self, path: &str) -> String {
        let read = self.try_read(path);
        read.unwrap_or_else(|e| panic!("{}: {path}: {e}; trace:\n{}", NAMES[self.at], self.trace_text()))
    }

    /// Writes to a file of the tree, in one write(2).
    pub fn write(&self, path: &str, text: &str) -> std::io::Result<()> {
        let mut file = std::fs::File::options().write(true).open(self.mount.join(path))?;
        assert_eq!(file.write(text.as_bytes())?, text.len());
        Ok(())
    }

    /// What a file that blocks has first when this was written to it.
    pub fn answer(&self, path: &str, text: &str) -> String {
        let mut file = std::fs::File::options().read(true).write(true).open(self.mount.join(path)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut part = vec![0; 256];
        let count = file.read(&mut part).unwrap();
        String::from_utf8_lossy(&part[..count]).into_owned()
    }

    /// Writes to a clone file, and gives the answer.
    pub fn new_object(&self, path: &str, line: &str) -> std::io::Result<String> {
        let mut file = std::fs::File::options().read(true).write(true).open(self.mount.join(path))?;
        file.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        file.read_to_string(&mut answer)?;
        Ok(answer.trim().to_owned())
    }

    /// Types a line at a console, and reads until it has printed `until`.
    pub fn type_at_console(&self, path: &str, text: &str, until: &str) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (path, wanted) = (self.mount.join(path), until.to_owned());
        let mut file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::thread::spawn(move || {
            let mut said = String::new();
            let mut part = vec![0; 4096];
            while !said.contains(&wanted) {
                match file.read(&mut part) {
                    Ok(count) if count > 0 => said.push_str(&String::from_utf8_lossy(&part[..count])),
                    other => return sender.send(Err(format!("{other:?} after {said:?}"))),
                }
            }
            sender.send(Ok(()))
        });
        receiver.recv_timeout(PATIENCE).unwrap().unwrap();
    }

    /// A value of a `key value` file.
    pub fn value(&self, path: &str, key: &str) -> Option<String> {
        let text = self.try_read(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').map(|value| value.trim().to_owned()))
    }

    pub fn token(&self, role: &str) -> String {
        self.blixard(&["cluster", "invite", "--role", role]).trim().to_owned()
    }

    /// Joins by the invitation of another.
    pub fn join(&mut self, by: &Node) {
        self.join_as(by, "voter");
    }

    pub fn join_as(&mut self, by: &Node, role: &str) {
        let (token, address) = (by.token(role), self.address());
        self.start(&["--name", NAMES[self.at], "--join", &token, "--advertise", &address]);
    }

    /// Begins the cluster `lab` here, and starts.
    pub fn found(&mut self) {
        let init = ["cluster", "init", "lab", "--node", NAMES[self.at], "--advertise", &self.address()];
        self.blixard(&init.map(|word| word));
        self.start(&[]);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("trace of {}:\n{}", NAMES[self.at], self.trace_text());
        }
        if self.process.is_some() {
            // Whatever state it is in.
            self.signal(Signal::CONT);
            self.kill();
        }
        // What its fences looked at is in memory, and not below its folder.
        if let Ok(file) = std::fs::read_link(self.data.join("deadline")) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Nodes that form one cluster, all of them voters, once they are.
pub fn cluster(lab: &Lab, count: usize) -> Vec<Node> {
    cluster_of("simulated", lab, count)
}

/// The same with this hypervisor.
pub fn cluster_of(hypervisor: &'static str, lab: &Lab, count: usize) -> Vec<Node> {
    form(machines(hypervisor, lab, count))
}

/// The same with this configuration.
pub fn cluster_with(config: &str, hypervisor: &'static str, lab: &Lab, count: usize) -> Vec<Node> {
    let file = lab.folder().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let mut nodes = machines(hypervisor, lab, count);
    nodes.iter_mut().for_each(|node| node.flags = vec!["--config".to_owned(), file.to_str().unwrap().to_owned()]);
    form(nodes)
}

/// Machines with nothing on them yet.
fn machines(hypervisor: &'static str, lab: &Lab, count: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..count).map(|at| Node::new(lab, at)).collect();
    nodes.iter_mut().for_each(|node| node.hypervisor = hypervisor);
    nodes
}

/// Makes a cluster of these, all of them voters.
pub fn form(mut nodes: Vec<Node>) -> Vec<Node> {
    nodes[0].found();
    for at in 1..nodes.len() {
        let (before, rest) = nodes.split_at_mut(at);
        rest[0].join(&before[0]);
    }
    await_voters(&nodes, nodes.len());
    nodes
}

/// Waits until Raft itself has so many voters, as its leader sees it.
pub fn await_voters(nodes: &[Node], count: usize) {
    until("the voters", || {
        nodes.iter().any(|node| node.value("status", "raft-voters").is_some_and(|voters| voters == count.to_string()))
    });
}

/// The position of the node that leads.
pub fn leader(nodes: &[Node]) -> usize {
    let mut found = None;
    until("a leader", || {
        found = nodes.iter().filter(|node| node.process.is_some()).find_map(|node| {
            let leads = node.value(&format!("nodes/{}/status", NAMES[node.at]), "raft-role")? == "leader";
            leads.then_some(node.at)
        });
        found.is_some()
    });
    found.unwrap()
}

/// Waits until all that run are at the same record, and have decided the same.
pub fn await_same(nodes: &[Node]) {
    let place = |node: &Node| {
        let status = node.try_read("status").ok()?;
        let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        Some((of("seq ")?, of("state-hash ")?))
    };
    let mut last = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let places: Vec<_> = nodes.iter().filter(|node| node.process.is_some()).map(place).collect();
        if places.iter().all(|place| place.is_some() && *place == places[0]) {
            return;
        }
        last.clone_from(&places);
        assert!(Instant::now() < deadline, "they don't come to the same: {last:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
