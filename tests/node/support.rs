//! A real node for the tests: the built binary, its data in a folder that goes away, its tree on a FUSE mount.

pub use crate::images::images;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long anything that ends by itself may take on a busy machine, in seconds, before the test gives up on it.
pub const PATIENCE_S: u64 = 120;

/// `blixard cluster init` in this data folder.
pub fn begin(data: &Path, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    let command = command.args(["cluster", "init", "lab", "--data", data.to_str().unwrap()]).args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A node of its own: data, mount and socket below one folder.
pub struct Node {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Node {
    /// Starts a node that drives real QEMU.
    pub fn qemu() -> Node {
        let images = images();
        Node::with(&["--hypervisor", "qemu", "--images", images.to_str().unwrap()])
    }

    /// Starts a node with these further arguments.
    pub fn with(arguments: &[&str]) -> Node {
        let mut node = Node::unstarted(arguments);
        node.start();
        node
    }

    /// Starts a node with what `prepare` says once it has been told the folder, in which `data` is to be the node's data.
    pub fn prepared(prepare: impl FnOnce(&Path) -> Vec<String>) -> Node {
        let folder = tempfile::Builder::new().prefix("n").tempdir().unwrap();
        let arguments = prepare(folder.path());
        let mut node = Node { folder, arguments, process: None };
        node.start();
        node
    }

    /// A node that is to be started with these further arguments.
    pub fn unstarted(arguments: &[&str]) -> Node {
        let folder = tempfile::Builder::new().prefix("n").tempdir().unwrap();
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Node { folder, arguments, process: None }
    }

    /// The folder with everything of the node.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The mounted tree.
    pub fn mount(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// The dial string of its unix socket.
    pub fn dial(&self) -> String {
        format!("unix!{}/sock", self.data().display())
    }

    /// Where its trace goes.
    pub fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    /// Starts the daemon and waits until the tree is there.
    pub fn start(&mut self) {
        assert!(self.process.is_none());
        let mut child = self.spawn();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        self.process = Some(child);
        assert!(said.starts_with("ready"), "the node did not start; its trace:\n{}", self.trace_text());
    }

    /// Begins a cluster of this node alone, unless there is one.
    pub fn begin(&self, arguments: &[&str]) {
        if !self.data().join("member.toml").exists() {
            begin(&self.data(), arguments);
        }
    }

    /// Starts the daemon and waits for nothing; whoever calls this ends it.
    pub fn spawn(&self) -> Child {
        self.begin(&[]);
        let trace = std::fs::File::options().create(true).append(true).open(self.trace()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_blixard"))
            .args(["serve", "--data", self.data().to_str().unwrap(), "--mount", self.mount().to_str().unwrap()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(trace)
            .spawn()
            .unwrap()
    }

    /// SIGKILL, as when the machine's memory runs out.
    pub fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and its exit must be clean.
    pub fn stop(&mut self) {
        let mut child = self.process.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "the node ended with {status}; its trace:\n{}", self.trace_text());
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().unwrap()), signal).unwrap();
    }

    /// What of it is in memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.process.as_ref().unwrap().id());
        let pages: u64 = std::fs::read_to_string(path).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.as_ref().unwrap().id())).unwrap().count()
    }

    /// Stops the daemon, until what is given back is dropped: when this returns, none of its threads runs any more.
    pub fn freeze(&self) -> Frozen<'_> {
        self.signal(Signal::STOP);
        let frozen = Frozen(self);
        let tasks = format!("/proc/{}/task", self.process.as_ref().unwrap().id());
        let runs = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            !stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" T"))
        };
        // There is no event for "all threads have stopped".
        while std::fs::read_dir(&tasks).unwrap().any(runs) {
            std::thread::sleep(Duration::from_millis(1));
        }
        frozen
    }

    /// What the daemon wrote to stderr.
    pub fn trace_text(&self) -> String {
        std::fs::read_to_string(self.trace()).unwrap_or_default()
    }

    /// Reads a file of the tree.
    pub fn read(&self, path: &str) -> String {
        let at = self.mount().join(path);
        std::fs::read_to_string(&at).unwrap_or_else(|e| panic!("reading {path}: {e}; trace:\n{}", self.trace_text()))
    }

    /// Writes to a file of the tree, in one write(2).
    pub fn write(&self, path: &str, text: &str) -> std::io::Result<()> {
        let mut file = std::fs::File::options().write(true).open(self.mount().join(path))?;
        let n = file.write(text.as_bytes())?;
        assert_eq!(n, text.len(), "a short write to {path}");
        Ok(())
    }

    /// Makes a VM and gives its number.
    pub fn new_vm(&self, line: &str) -> std::io::Result<u64> {
        let mut file = std::fs::File::options().read(true).write(true).open(self.mount().join("vms/new"))?;
        file.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        file.read_to_string(&mut answer)?;
        Ok(answer.trim().parse().unwrap_or_else(|_| panic!("new answered {answer:?}")))
    }

    /// A value of a `key value` file.
    pub fn value(&self, path: &str, key: &str) -> Option<String> {
        let text = self.read(path);
        text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ').map(|v| v.trim().to_owned()))
    }

    /// The VM's `wait` file: blocks until it has settled.
    pub fn wait(&self, id: u64) -> String {
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = self.mount().join(format!("vms/{id}/wait"));
        std::thread::spawn(move || sender.send(std::fs::read_to_string(path)));
        match receiver.recv_timeout(Duration::from_secs(PATIENCE_S)) {
            Ok(text) => text.unwrap_or_else(|e| panic!("vms/{id}/wait: {e}")).trim().to_owned(),
            Err(_) => panic!(
                "vm {id} does not settle; {}\ntrace:\n{}",
                self.read(&format!("vms/{id}/status")),
                self.trace_text()
            ),
        }
    }

    /// Waits until a VM that was deleted is gone.
    pub fn wait_gone(&self, id: u64) {
        match std::fs::read_to_string(self.mount().join(format!("vms/{id}/wait"))) {
            Ok(state) => assert_eq!(state.trim(), "deleted"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
        }
    }

    /// Deletes a VM, and waits until nothing of it is left.
    pub fn delete(&self, id: u64) {
        let mut wait = std::fs::File::open(self.mount().join(format!("vms/{id}/wait"))).unwrap();
        self.write(&format!("vms/{id}/ctl"), "delete\n").unwrap();
        let mut state = String::new();
        wait.read_to_string(&mut state).unwrap();
        assert_eq!(state.trim(), "deleted");
    }

    /// Blocks until a line of the stream contains `what`.
    pub fn wait_line(&self, stream: &str, what: &str) -> String {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (path, wanted) = (self.mount().join(stream), what.to_owned());
        std::thread::spawn(move || {
            let file = BufReader::new(std::fs::File::open(path).unwrap());
            let found = file.lines().map_while(Result::ok).find(|l| l.contains(&wanted));
            sender.send(found)
        });
        match receiver.recv_timeout(Duration::from_secs(PATIENCE_S)) {
            Ok(Some(line)) => line,
            other => panic!("{stream} has no {what:?} ({other:?}); trace:\n{}", self.trace_text()),
        }
    }

    /// Types a line at the console of a machine, and waits until it has printed `until`.
    pub fn type_at_console(&self, id: u64, line: &str, until: &str) {
        let console = self.mount().join(format!("vms/{id}/console"));
        let mut console = std::fs::File::options().read(true).write(true).open(console).unwrap();
        console.write_all(format!("{line}\n").as_bytes()).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let until_text = until.to_owned();
        std::thread::spawn(move || {
            let (mut seen, mut part) = (Vec::new(), [0; 4096]);
            while !String::from_utf8_lossy(&seen).contains(&until_text) {
                match console.read(&mut part) {
                    Ok(length @ 1..) => seen.extend_from_slice(&part[..length]),
                    _ => return,
                }
            }
            let _ = sender.send(());
        });
        let seen = receiver.recv_timeout(Duration::from_secs(PATIENCE_S));
        assert!(seen.is_ok(), "the console has no {until:?}; log:\n{}", self.read(&format!("vms/{id}/log")));
    }

    /// The machines' processes of this node: (pid, VM number), found by the folder in their command line.
    pub fn machines(&self) -> Vec<(u32, u64)> {
        let below = format!("{}/vms/", self.data().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let is_qemu = line.split('\0').next().is_some_and(|p| p.contains("qemu-system"));
            if let Some(rest) = line.split_once(&below).filter(|_| is_qemu).map(|(_, rest)| rest) {
                let id = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                found.push((pid, id.parse().unwrap()));
            }
        }
        found.sort_unstable();
        found
    }

    /// What the host has of this node beside its processes: bridges, taps and cgroups, as paths below /sys.
    pub fn host_objects(&self) -> Vec<PathBuf> {
        let tag = blixard::engine::agent::device_tag(&self.data());
        let below = |folder: PathBuf| -> Vec<PathBuf> {
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let mut found = below("/sys/class/net".into());
        found.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("bx{tag}-"))));
        let bases = below("/sys/fs/cgroup".into()).into_iter().chain([PathBuf::from("/sys/fs/cgroup")]);
        for base in bases.map(|root| root.join("blixard").join(&tag)).filter(|base| base.is_dir()) {
            found.extend(below(base.clone()).into_iter().filter(|p| p.is_dir()));
            found.push(base);
        }
        found
    }

    /// Runs a shell line with the tree as working folder and `blixard` on the path.
    pub fn shell(&self, shell: &str, line: &str) -> std::process::Output {
        self.shell_with(shell, line, &[])
    }

    /// The same, with these variables.
    pub fn shell_with(&self, shell: &str, line: &str, variables: &[(&str, &str)]) -> std::process::Output {
        let binary = Path::new(env!("CARGO_BIN_EXE_blixard")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
        Command::new(shell)
            .args(["-c", line])
            .current_dir(self.mount())
            .env("PATH", path)
            .env("BLIXARD", self.dial())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

/// A daemon that is stopped.
pub struct Frozen<'a>(&'a Node);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

impl Drop for Node {
    /// Leaves no process and no mount, whatever happened.
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
        for (pid, _) in self.machines() {
            end(pid);
        }
        // What its fences looked at is in memory, and not below its folder.
        if let Ok(file) = std::fs::read_link(self.data().join("deadline")) {
            let _ = std::fs::remove_file(file);
        }
        let _ = rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH);
        for object in self.host_objects() {
            if object.starts_with("/sys/class/net") {
                let _ = Command::new("ip").args(["link", "delete"]).arg(object.file_name().unwrap()).output();
            } else {
                let _ = std::fs::remove_dir(object);
            }
        }
    }
}

/// A node whose machines are simulated.
pub fn simulated() -> Node {
    // A host of a real size: the simulated one has no end.
    let limits = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/small.toml");
    let (limits, images) = (limits.to_str().unwrap(), images());
    Node::with(&["--hypervisor", "simulated", "--images", images.to_str().unwrap(), "--config", limits])
}

/// SIGKILL by pid, and waits until the process is gone.
pub fn end(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
    await_end(&handle);
}

/// Waits until the process behind a pidfd is gone.
pub fn await_end(handle: &OwnedFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: PATIENCE_S as i64, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&patience));
}
