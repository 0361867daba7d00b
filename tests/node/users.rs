//! Users over every front: what a viewer may not, what is revoked while it waits, what those see who are confined.

use crate::secure::{Secure, ca_done, until};
use crate::support::Node;
use blixard::ninep::client::{Client, ClientError};
use blixard::ninep::linux::open;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const EACCES: i32 = 13;
const ENOENT: i32 = 2;
const VIC: u32 = 54_322;
const CON: u32 = 54_325;

/// The errno with which the server refused.
fn denied<T>(result: Result<T, ClientError>) -> i32 {
    match result.map(drop) {
        Err(ClientError::Refused { errno }) => errno,
        other => panic!("{other:?}"),
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].concat().iter().map(|b| char::from(*b)).collect()
}

/// A VM, and a viewer with an identity.
fn furnished() -> Secure {
    let secure = Secure::start();
    secure.node.new_vm("name=web image=tiny memory=64M").unwrap();
    secure.node.write("users/new", &format!("name=vic role=viewer uid={VIC}")).unwrap();
    secure
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_starts_nothing_over_any_front() {
    let secure = furnished();
    let identity = secure.issue("vic");
    let vm = secure.node.read("vms/1/status");
    let by_mount = Command::new("setpriv")
        .args([&format!("--reuid={VIC}"), "--regid=65534", "--clear-groups", "sh", "-c", "echo start > vms/1/ctl"])
        .current_dir(secure.node.mount())
        .output()
        .unwrap();
    assert!(!by_mount.status.success() && text(&by_mount).contains("Permission denied"), "{}", text(&by_mount));
    for (dial, user) in [(secure.unix(), "vic"), (secure.loopback(), "vic"), (secure.insecure(), "none")] {
        let me = secure.blixard_as(VIC, &dial, None, &["cat", "me"]);
        assert!(text(&me).starts_with(&format!("user {user}\n")), "{dial}: {}", text(&me));
        let started = secure.blixard_as(VIC, &dial, None, &["write", "vms/1/ctl", "start"]);
        assert!(text(&started).contains(&format!("no permission to write 'ctl': user '{user}'")), "{}", text(&started));
    }
    let over_tls = secure.client(&identity).await.unwrap();
    assert!(over_tls.read_all("me").await.unwrap().starts_with(b"user vic\nrole viewer\n"));
    assert_eq!(denied(over_tls.open("vms/1/ctl", open::WRITE_ONLY).await), EACCES);
    let insecure = Client::connect(&secure.insecure().parse().unwrap()).await.unwrap();
    assert_eq!(denied(insecure.open("vms/1/ctl", open::WRITE_ONLY).await), EACCES, "root is nobody there");
    // With the role everything is as it should be, at once and over the same connection.
    assert_eq!(secure.node.read("vms/1/status"), vm);
    secure.node.write("users/vic/ctl", "set role=admin").unwrap();
    let ctl = over_tls.open("vms/1/ctl", open::WRITE_ONLY).await.unwrap();
    ctl.write(0, b"start\n").await.unwrap();
    assert_eq!(secure.node.wait(1), "running");
    let log = secure.node.read("log");
    assert!(log.lines().any(|line| line.contains(" user=vic ") && line.contains("vms/1 start")), "{log}");
    secure.node.write("users/vic/ctl", "set role=viewer").unwrap();
    assert_eq!(denied(ctl.write(0, b"stop\n").await), EACCES, "what was open is no way round");
}

/// The words of each line of `nodes/NAME/sessions`.
pub fn sessions(node: &Node) -> Vec<Vec<String>> {
    let list = std::fs::read_dir(node.mount().join("nodes")).unwrap().flatten().find(|e| e.path().is_dir()).unwrap();
    let text = std::fs::read_to_string(list.path().join("sessions")).unwrap();
    text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_show_who_is_connected() {
    let secure = furnished();
    let client = secure.client(&secure.issue("vic")).await.unwrap();
    client.read_all("me").await.unwrap();
    let all = sessions(&secure.node);
    let columns = [
        "id",
        "user",
        "how",
        "from",
        "dialect",
        "msize",
        "fids",
        "waiting",
        "requests",
        "rate",
        "bytes-in",
        "bytes-out",
        "since",
    ];
    assert_eq!(all[0], columns);
    let row = all.iter().find(|row| row[1] == "vic").unwrap_or_else(|| panic!("{all:?}"));
    let at = |name: &str| row[columns.iter().position(|c| *c == name).unwrap()].as_str();
    let number = |name: &str| at(name).parse::<u64>().unwrap();
    assert_eq!((at("how"), at("dialect"), at("msize")), ("TLS-certificate", "9P2000.L", "131072"));
    assert!(at("from").starts_with(&format!("{}:", secure.host)) || at("from").starts_with("127."), "{row:?}");
    assert!(number("fids") >= 1 && number("requests") >= 6 && number("bytes-in") > 100 && number("bytes-out") > 100);
    drop(client);
    until("it is gone from the list", || !sessions(&secure.node).iter().any(|row| row[1] == "vic"));
}

#[test]
fn a_revoked_certificate_ends_what_waits_by_it() {
    let secure = furnished();
    let identity = secure.issue("vic");
    let cat = |what: &str| {
        Command::new(env!("CARGO_BIN_EXE_blixard"))
            .args(["--at", &secure.tls(), "--identity", identity.to_str().unwrap(), "cat", what])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let blocked = cat("events");
    let waiting = 7;
    until("it waits", || sessions(&secure.node).iter().any(|row| row[1] == "vic" && row[waiting] == "1"));
    ca_done(&secure.node.data(), &["revoke", "vic"]);
    let ended = blocked.wait_with_output().unwrap();
    assert!(!ended.status.success() && text(&ended).contains("the connection to the server has ended"));
    secure.until_traced("a connection was closed");
    secure.until_traced("of user 'vic' is revoked");
    assert!(!cat("me").wait_with_output().unwrap().status.success(), "and it comes in no more");
    let again = secure.node.folder().join("again.pem");
    ca_done(&secure.node.data(), &["issue", "vic", "--out", again.to_str().unwrap()]);
    let output = secure.blixard_as(0, &secure.tls(), Some(&again), &["cat", "me"]);
    assert!(text(&output).starts_with("user vic\n"), "a new one does: {}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_deleted_or_gets_another_uid_is_sent_away() {
    let secure = furnished();
    let client = secure.client(&secure.issue("vic")).await.unwrap();
    let events = client.open("events", open::READ_ONLY).await.unwrap();
    let waiting = tokio::spawn(async move {
        loop {
            // What happened to her is the last that she is told.
            if let Err(error) = events.read(0).await {
                return error;
            }
        }
    });
    let mount = secure.node.mount();
    let vic = mount.join("users/vic");
    tokio::task::spawn_blocking(move || std::fs::remove_dir(vic)).await.unwrap().unwrap();
    let ended = waiting.await.unwrap();
    assert!(matches!(ended, ClientError::Closed(_) | ClientError::Lost(_)), "{ended:?}");
    secure.until_traced("there is no user 'vic'");
    // By uid, over the socket.
    let root = Client::connect(&secure.unix().parse().unwrap()).await.unwrap();
    let events = root.open("events", open::READ_ONLY).await.unwrap();
    let waiting = tokio::spawn(async move { while events.read(0).await.is_ok() {} });
    secure.node.write("users/new", "name=other role=admin").unwrap();
    secure.node.write("users/root/ctl", "set uid=77").unwrap();
    waiting.await.unwrap();
    secure.until_traced("user 'root' is 'none' by now");
}

/// The names of a directory, by the command line.
fn listed(secure: &Secure, dial: &str, identity: Option<&Path>, path: &str) -> String {
    text(&secure.blixard_as(CON, dial, identity, &["ls", path])).replace('\n', " ")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_confined_sees_nothing_else_over_any_front() {
    let secure = furnished();
    secure.node.new_vm("image=tiny memory=64M name=hidden").unwrap();
    secure.node.write("users/new", &format!("name=con role=operator uid={CON} within=vms/web")).unwrap();
    let identity = secure.issue("con");
    std::os::unix::fs::chown(&identity, Some(CON), None).unwrap();
    for (dial, identity) in [(secure.unix(), None), (secure.loopback(), None), (secure.tls(), Some(&*identity))] {
        assert_eq!(listed(&secure, &dial, identity, "/"), "README version err sync me vms ", "{dial}");
        assert_eq!(listed(&secure, &dial, identity, "vms"), "1 web ", "{dial}");
        assert!(listed(&secure, &dial, identity, "vms/2").contains("No such file"), "{dial}");
        assert!(listed(&secure, &dial, identity, "users").contains("No such file"), "{dial}");
    }
    let by_mount = |line: &str| {
        let output = Command::new("setpriv")
            .args([&format!("--reuid={CON}"), "--regid=65534", "--clear-groups", "sh", "-c", line])
            .current_dir(secure.node.mount())
            .output()
            .unwrap();
        text(&output).replace('\n', " ")
    };
    // Root has looked at all of it before: what the kernel remembers of that shows nobody else anything.
    std::fs::read_to_string(secure.node.mount().join("vms/2/status")).unwrap();
    assert_eq!(by_mount("ls"), "README err me sync version vms ");
    assert_eq!(by_mount("ls vms"), "1 web ");
    for path in ["vms/2/status", "vms/hidden/status", "events", "log", "vms/list", "users/list", "nodes"] {
        assert!(
            by_mount(&format!("cat {path}")).contains("No such file"),
            "{path}: {}",
            by_mount(&format!("cat {path}"))
        );
    }
    assert!(by_mount("cat vms/web/state").contains("defined"));
    let client = secure.client(&identity).await.unwrap();
    for path in ["vms/2/ctl", "vms/new", "log"] {
        let refused = client.open(path, open::WRITE_ONLY).await.map(drop);
        assert!(matches!(refused, Err(ClientError::Refused { errno: ENOENT })), "{path}: {refused:?}");
    }
    let dial = secure.tls().parse().unwrap();
    let outside = Client::connect_as(&dial, "vms/2", Some(&identity)).await.map(drop);
    assert!(matches!(outside, Err(ClientError::Refused { errno: ENOENT })), "{outside:?}");
    // Another confinement ends the connection: what is open shows what was.
    let events = client.open("vms/1/events", open::READ_ONLY).await.unwrap();
    let waiting = tokio::spawn(async move { while events.read(0).await.is_ok() {} });
    secure.node.write("users/con/ctl", "set within=vms/2").unwrap();
    waiting.await.unwrap();
    secure.until_traced("user 'con' is confined otherwise by now");
    assert_eq!(by_mount("ls vms"), "2 hidden ");
}

/// In a network of its own, with an address that is not loopback.
#[test]
fn nobody_writes_over_a_network_without_a_certificate() {
    let folder = tempfile::Builder::new().prefix("n").tempdir().unwrap();
    let script = r#"
        set -eu
        ip link set lo up; ip link add d0 type veth peer name d1; ip address add 10.99.0.1/24 dev d0; ip link set d0 up; ip link set d1 up
        flags='--data data --mount mnt --hypervisor simulated --images images'
        blixard cluster init lab --data data --advertise '10.99.0.1!5639'
        mkdir images
        blixard serve $flags --listen 'tcp!10.99.0.1!564' 2>&1 && echo served-plainly
        blixard serve $flags --listen 'tcp!*!564' 2>&1 && echo served-plainly
        mkfifo ready; exec 3<>ready
        blixard serve $flags --listen 'tls!*!5640' --insecure-listen 'tcp!*!564' >ready 2>trace & node=$!
        trap 'kill $node; wait $node' EXIT
        read -r line <&3
        export BLIXARD=unix!$PWD/data/sock
        blixard write users/new 'name=ann role=admin'
        blixard ca issue ann --data data --out ann.pem
        for host in 10.99.0.1 127.0.0.1 ::1; do
            blixard --at "tcp!$host!564" cat me | head -n 1
            blixard --at "tcp!$host!564" write users/new name=eve 2>&1 && echo written-plainly
            blixard --at "tls!$host!5640" --identity ann.pem cat me | head -n 1
        done
        blixard --at 'tls!10.99.0.1!5640' --identity ann.pem write users/new name=bob
        blixard cat users/list
    "#;
    let binary = Path::new(env!("CARGO_BIN_EXE_blixard")).parent().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("plainly"), "{said}");
    let refusals = said.lines().filter(|line| line.contains("tls!HOST!PORT") && line.contains("--insecure-listen"));
    assert_eq!(refusals.count(), 2, "{said}");
    let count = |what: &str| said.lines().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("user none"), count("user ann")), (3, 3), "{said}");
    assert_eq!(said.matches("no permission to write 'new': user 'none'").count(), 3, "{said}");
    assert!(said.contains("\nbob ") && !said.contains("\neve "), "{said}");
}

/// Types the commands of a text in their order. What serves is there already, and has its authority; alpha is where it listens.
fn type_all(text_of: &str) -> (Secure, String) {
    let secure = Secure::start();
    let typed = text_of.lines().filter_map(|line| line.strip_prefix("    "));
    let typed: Vec<_> = typed.filter(|l| !l.contains("blixard serve") && !l.contains("blixard cluster init")).collect();
    let script =
        format!("set -eu\ncd ..\n{}\n", typed.join("\n")).replace("tls!alpha!", &format!("tls!{}!", secure.host));
    let (data, dial) = (secure.node.data(), secure.unix());
    let variables = [("BLIXARD_DATA", data.to_str().unwrap()), ("BLIXARD", &*dial)];
    let output = secure.node.shell_with("bash", &script, &variables);
    let said = text(&output);
    assert!(output.status.success(), "{script}\n{said}");
    assert!(secure.node.read("users/ann/status").contains("\nrevoked "), "the last that was done to her: {said}");
    (secure, said)
}

fn of_repository(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn what_the_documentation_of_users_shows() {
    let (secure, said) = type_all(&of_repository("docs/users.md"));
    for shown in ["\nuid 54321\n", "user ann\nrole viewer\n", "  user  ann  ", "beta.pem"] {
        assert!(said.contains(shown), "{shown}: {said}");
    }
    assert!(!secure.node.read("users/eve/status").contains("within"));
}

#[test]
fn what_the_readme_shows_of_users() {
    let readme = of_repository("README.md");
    let (_, part) = readme.split_once("## Who may do what\n").unwrap();
    type_all(part.split("\n## ").next().unwrap());
}
