//! A node that serves everything at once: the mount, unix sockets, TLS, plain TCP on loopback, and TCP that proves nothing.

use crate::support::{Node, PATIENCE_S, begin};
use blixard::ninep::client::{Client, ClientError};
use blixard::text::Dial;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub struct Secure {
    pub node: Node,
    /// A loopback address of this test's own.
    pub host: String,
}

/// No two tests run in one process at a time, so that none listens where another does.
fn own_address() -> String {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    format!("127.{}.{b}.{c}", 64 + a % 64)
}

/// `blixard ca`.
pub fn ca(data: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blixard"))
        .arg("ca")
        .args(arguments)
        .env("BLIXARD_DATA", data)
        .env("BLIXARD", format!("unix!{}/sock", data.parent().unwrap().display()))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn ca_done(data: &Path, arguments: &[&str]) -> String {
    let output = ca(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn ca_refused(data: &Path, arguments: &[&str]) -> String {
    let output = ca(data, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Secure {
    pub fn start() -> Secure {
        let host = own_address();
        let listen = |dial: &str| dial.replace("HOST", &host);
        let (tls, tcp, insecure) = (listen("tls!HOST!5640"), listen("tcp!HOST!5641"), listen("tcp!HOST!5642"));
        let images = crate::support::images().to_str().unwrap().to_owned();
        let node = Node::prepared(|folder| {
            // Other nodes would come in elsewhere: here it is about those who are none.
            begin(&folder.join("data"), &["--advertise", &format!("{host}!5639")]);
            // Other users of the machine come to the socket and to the mount.
            std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
            let open = format!("unix!{}/sock", folder.display());
            let arguments = ["--hypervisor", "simulated", "--images", &images, "--listen", &tls, "--listen", &tcp];
            let more = ["--insecure-listen", &insecure, "--listen", &open];
            arguments.iter().chain(&more).map(|a| (*a).to_owned()).collect()
        });
        Secure { node, host }
    }

    pub fn unix(&self) -> String {
        format!("unix!{}/sock", self.node.folder().display())
    }

    pub fn tls(&self) -> String {
        format!("tls!{}!5640", self.host)
    }

    pub fn loopback(&self) -> String {
        format!("tcp!{}!5641", self.host)
    }

    pub fn insecure(&self) -> String {
        format!("tcp!{}!5642", self.host)
    }

    /// A new identity of this user.
    pub fn issue(&self, name: &str) -> PathBuf {
        let path = self.node.folder().join(format!("{name}.pem"));
        ca_done(&self.node.data(), &["issue", name, "--out", path.to_str().unwrap()]);
        path
    }

    /// A client as this identity.
    pub async fn client(&self, identity: &Path) -> Result<Client, ClientError> {
        let dial: Dial = self.tls().parse().unwrap();
        Client::connect_as(&dial, "", Some(identity)).await
    }

    /// The command line, as this user of the machine.
    pub fn blixard_as(&self, uid: u32, dial: &str, identity: Option<&Path>, arguments: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_blixard")]);
        command.args(["--at", dial]).args(arguments).stdin(Stdio::null());
        command.env("BLIXARD_IDENTITY", identity.unwrap_or(Path::new("/nowhere")));
        command.output().unwrap()
    }

    /// Waits until the trace has this.
    pub fn until_traced(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
        while !self.node.trace_text().contains(what) {
            assert!(Instant::now() < deadline, "the trace has no {what:?}:\n{}", self.node.trace_text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
