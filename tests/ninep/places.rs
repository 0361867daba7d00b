//! Where the server listens: taking over, refusing, cleaning up.

use super::raw::{Running, until};
use super::toy::Toy;
use blixard::fs::ninep::limits::FIRST_MESSAGE_WITHIN;
use blixard::fs::ninep::{ListenError, Options, Server};
use blixard::ninep::client::Client;
use blixard::ninep::holder::{Holder, Purpose};
use blixard::text::Dial;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

async fn bind(dial: &str) -> Result<Server, ListenError> {
    Server::bind(Arc::new(Toy::default()), &[dial.parse().unwrap()], Options::default()).await
}

fn refused(result: Result<Server, ListenError>) -> String {
    result.err().expect("it is refused").to_string()
}

#[tokio::test]
async fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/sub/sock");
    let dial = format!("unix!{}", path.display());
    let first = bind(&dial).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    assert!(refused(bind(&dial).await).starts_with("busy: another server listens on unix!"));
    drop(first);
    assert!(!path.exists(), "removed when it ends");
    // As a killed one leaves it.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let second = bind(&dial).await.unwrap();
    // Somebody has put their own in its place: that one stays.
    std::fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(second);
    assert!(path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let said = refused(bind(&format!("unix!{}", path.display())).await);
    assert!(said.contains("exists and is not a socket"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
    let said = refused(bind("unix!/proc/nowhere/sock").await);
    assert!(said.starts_with("can't listen on unix!/proc/nowhere/sock"), "{said}");
}

#[tokio::test]
async fn tcp_is_for_loopback_alone() {
    for dial in ["tcp!0.0.0.0!0", "tcp!::!0", "tcp!192.0.2.1!0", "tcp!*!0"] {
        let said = refused(bind(dial).await);
        assert!(said.starts_with("not permitted:") && said.contains("loopback only"), "{said}");
        assert!(said.contains("tls!") && said.contains("--insecure-listen"), "{said}");
    }
    let server = bind("tcp!127.0.0.1!0").await.unwrap();
    let dial = server.dials().unwrap().remove(0);
    assert!(matches!(&dial, Dial::Tcp { port, .. } if *port != 0));
    assert!(refused(bind(&dial.to_string()).await).starts_with("busy: another server"));
}

#[test]
fn the_end_removes_the_socket_and_ends_connections() {
    let mut running = Running::start();
    let mut raw = running.session();
    assert!(running.socket.exists());
    running.stop();
    assert!(!running.socket.exists());
    assert!(raw.is_closed());
}

/// Time stands still while anything happens, and jumps to the next deadline when nothing does.
#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_sent_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let server = bind(&format!("unix!{}", path.display())).await.unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(stop.clone()));
    let begun = tokio::time::Instant::now();
    let mut silent = tokio::net::UnixStream::connect(&path).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(begun.elapsed() >= FIRST_MESSAGE_WITHIN);
    // Who has spoken may be silent for as long as they like.
    let client = Client::connect(&Dial::Unix(path)).await.unwrap();
    tokio::time::sleep(100 * FIRST_MESSAGE_WITHIN).await;
    client.read_all("README").await.unwrap();
    stop.cancel();
    serving.await.unwrap();
}

#[test]
fn connections_are_limited_for_each_user_and_in_all() {
    use blixard::fs::ninep::limits::{CONNECTIONS_MAX, USERS_CONNECTIONS_MAX};
    use blixard::fs::sessions::CONNECTIONS_PER_USER_MAX;
    // A descriptor for each end, in this one process.
    let (soft, hard) = limits_of_descriptors();
    let needed = 2 * CONNECTIONS_MAX as u64 + 100;
    if hard.is_some_and(|hard| hard < needed) {
        eprintln!("not run: {hard:?} descriptors are allowed here, and {needed} are needed");
        return;
    }
    set_soft_limit(soft.max(needed), hard);
    // Over TCP nobody is believed: whoever comes there is another user than who comes by the socket.
    let running = Running::start_for_guests(None);
    let mut all: Vec<_> = (0..CONNECTIONS_PER_USER_MAX).map(|_| running.session_with(8192)).collect();
    assert!(is_sent_away(&mut running.connect().stream), "one more of the same user");
    let mut others: Vec<_> = (CONNECTIONS_PER_USER_MAX..USERS_CONNECTIONS_MAX).map(|_| running.connect_tcp()).collect();
    others.iter_mut().for_each(|raw| raw.greet(8192));
    all.pop();
    until("a place is free again", || {
        let mut raw = running.connect();
        raw.stream.write_all(VERSION).is_ok() && raw.try_receive().is_ok() && {
            all.push(raw);
            true
        }
    });
    until("one more is sent away", || is_sent_away(&mut running.connect_tcp().stream));
    assert!(is_answered(&running, Purpose::Node), "a node comes in all the same");
    assert!(!is_answered(&running, Purpose::User), "a user does not, by the port between nodes either");
    drop((all, others));
    until("there is room again", || {
        let mut raw = running.connect();
        raw.stream.write_all(VERSION).is_ok() && raw.try_receive().is_ok()
    });
}

/// Whether somebody with such a certificate is answered who comes in by the door.
fn is_answered(running: &Running, purpose: Purpose) -> bool {
    let issued_ms = blixard::clock::system_millis().unwrap();
    let (name, serial, expires_ms) = ("beta".to_owned(), "1".to_owned(), issued_ms + 3_600_000);
    let holder = Holder { name, serial, issued_ms, expires_ms, purpose, hosts: vec![] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(8192);
        tokio::spawn({
            let door = running.door.clone();
            async move { door.serve(far, holder, ([127, 0, 0, 1], 1).into()).await }
        });
        near.write_all(VERSION).await.is_ok() && near.read_exact(&mut [0; 4]).await.is_ok()
    })
}

/// A Tversion.
const VERSION: &[u8] = b"\x15\0\0\0\x64\xff\xff\0\x20\0\0\x08\x009P2000.L";

/// Nothing is said to it: it is closed at once, where others wait for a version.
fn is_sent_away(stream: &mut (impl Read + Write)) -> bool {
    // It may be closed already.
    let _ = stream.write_all(VERSION);
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

fn limits_of_descriptors() -> (u64, Option<u64>) {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    (limits.current.unwrap_or(u64::MAX), limits.maximum)
}

fn set_soft_limit(current: u64, maximum: Option<u64>) {
    let limits = rustix::process::Rlimit { current: Some(current), maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limits).unwrap();
}
