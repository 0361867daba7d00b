//! What the benches measure: a node of the built binary, and diod.
#![allow(dead_code, reason = "each bench uses some of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A port that is free.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A node of the built binary, ended with its VMs at the end.
pub struct Node {
    folder: tempfile::TempDir,
    child: Child,
    /// Where it listens on loopback.
    pub port: u16,
}

impl Node {
    pub fn start(hypervisor: &str) -> Node {
        let folder = tempfile::Builder::new().prefix("b").tempdir().unwrap();
        let images = std::env::var("BLIXARD_IMAGES").expect("./bench names the images");
        let (data, mount) = (folder.path().join("data"), folder.path().join("n"));
        let port = free_port();
        let begun = Command::new(env!("CARGO_BIN_EXE_blixard"))
            .args(["cluster", "init", "bench", "--data", data.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(begun.status.success(), "the cluster was not begun");
        let mut child = Command::new(env!("CARGO_BIN_EXE_blixard"))
            .args(["serve", "--hypervisor", hypervisor, "--images", &images, "--trace", "error"])
            .args(["--data", data.to_str().unwrap(), "--mount", mount.to_str().unwrap()])
            .args(["--listen", &format!("unix!{}/sock", data.display())])
            .args(["--listen", &format!("tcp!127.0.0.1!{port}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "the node did not start");
        Node { folder, child, port }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("n").join(path)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn new_vms(&self, lines: &str) -> Vec<u64> {
        let mut file = std::fs::File::options().read(true).write(true).open(self.at("vms/new")).unwrap();
        assert_eq!(file.write(lines.as_bytes()).unwrap(), lines.len());
        let mut numbers = String::new();
        file.read_to_string(&mut numbers).unwrap();
        numbers.lines().map(|n| n.parse().unwrap()).collect()
    }

    pub fn write(&self, path: &str, text: &str) {
        let n = std::fs::File::options().write(true).open(self.at(path)).unwrap().write(text.as_bytes()).unwrap();
        assert_eq!(n, text.len());
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
        for (pid, _) in blixard::engine::host::process::working_below(&self.data()).unwrap() {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = rustix::mount::unmount(self.at(""), rustix::mount::UnmountFlags::DETACH);
    }
}

/// diod over a folder in memory with files of these sizes.
pub struct Diod {
    child: Child,
    _folder: tempfile::TempDir,
    /// Where it listens on loopback.
    pub port: u16,
    /// What it exports.
    pub path: String,
}

impl Diod {
    /// Starts it; None: there is none here.
    pub fn start(files: &[(&str, usize)]) -> Option<Diod> {
        let folder = tempfile::Builder::new().prefix("diod").tempdir_in("/dev/shm").ok()?;
        for (name, size) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent()?).ok()?;
            std::fs::write(path, vec![b'x'; *size]).ok()?;
        }
        let (port, export) = (free_port(), folder.path().to_str()?.to_owned());
        let listen = format!("127.0.0.1:{port}");
        let child = Command::new("diod")
            .args(["-f", "-n", "-N", "-l", &listen, "-e", &export, "-L", "/dev/null", "-U", "root"])
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        // It says nothing when it is ready.
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(Diod { child, _folder: folder, port, path: export });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Diod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
