//! The port between nodes and the lines to whoever leads, with real TLS on loopback: who is silent, and who is too many, is in nobody else's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use blixard::ca;
use blixard::ninep::holder::Holder;
use blixard::ninep::identity::Identity;
use blixard::ninep::tls::{self, HANDSHAKE_WITHIN, PeerAcceptor, ServerStream};
use blixard::peers::ask::{Answer, Question, ask_to_join};
use blixard::peers::entrance::{self, JOINS_MAX, Served, Store};
use blixard::peers::lead::{ANSWER_WITHIN, Line, Lines, NoAnswer};
use blixard::peers::{Peer, Service};
use blixard::text::Refusal;
use futures::future::{BoxFuture, join_all};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// The longest question, in bytes.
const QUESTION_BYTES_MAX: u32 = 1024;
/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(2);

/// A node that answers each question with itself; but for one, to which there never is an answer.
struct Echo {
    /// Cancelled when an answer that never comes is not waited for any more.
    given_up: CancellationToken,
}

const NEVER: &[u8] = b"never";

impl Served for Echo {
    fn ninep(&self, _stream: ServerStream, _holder: Holder, _from: SocketAddr) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn gone(&self, _holder: Holder) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn lead(&self, question: Vec<u8>, _of: Holder) -> BoxFuture<'static, Option<Vec<u8>>> {
        let given_up = self.given_up.clone();
        Box::pin(async move {
            if question == NEVER {
                let _told = given_up.drop_guard();
                std::future::pending::<()>().await;
            }
            Some(question)
        })
    }

    fn lead_bytes_max(&self) -> u32 {
        QUESTION_BYTES_MAX
    }

    fn answer(&self, _question: Question, _who: Option<Holder>) -> BoxFuture<'static, Answer> {
        Box::pin(std::future::ready(Answer::Refused(Refusal::denied("no permission: nobody is let in here"))))
    }
}

/// Two members, one that answers and one at whose address a machine is silent; and the lines to them.
struct Bed {
    lines: Lines,
    address: String,
    authority_sha256: [u8; 32],
    stop: CancellationToken,
    given_up: CancellationToken,
    _silent: TcpListener,
    _folder: TempDir,
}

const ANSWERS: u64 = 1;
const SILENT: u64 = 2;

impl Bed {
    async fn new() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        ca::begin(folder.path(), "alpha", &[]).unwrap();
        let identity = Arc::new(Identity::read(&ca::node_identity(folder.path())).unwrap());
        let protocols: Vec<&[u8]> = Service::ALL.iter().map(|service| service.protocol()).collect();
        let acceptor = PeerAcceptor::new(&identity, Arc::new(|_: &Holder| Ok(())), &protocols).unwrap();
        let listen = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
        let (port, silent) = (listen().await, listen().await);
        let address = |listener: &TcpListener| format!("127.0.0.1!{}", listener.local_addr().unwrap().port());
        let peer = |raft, listener| Peer { raft, address: address(listener) };
        let (_, peers) = watch::channel(vec![peer(ANSWERS, &port), peer(SILENT, &silent)]);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let (store, stop) = (Store { id: 1, raft: nowhere, api: nowhere }, CancellationToken::new());
        let (address, authority_sha256) = (address(&port), tls::authority_sha256(&identity).unwrap());
        let lines = Lines::new(identity, peers);
        let given_up = CancellationToken::new();
        let echo = Arc::new(Echo { given_up: given_up.clone() });
        tokio::spawn(entrance::serve(port, acceptor, store, echo, stop.clone()));
        Bed { lines, address, authority_sha256, stop, given_up, _silent: silent, _folder: folder }
    }

    async fn ask(&self, raft: u64, line: Line, question: &[u8]) -> Result<Vec<u8>, NoAnswer> {
        self.lines.ask(raft, line, question, QUESTION_BYTES_MAX).await
    }

    /// A machine without a certificate that says nothing after the handshake.
    async fn stranger(&self) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
        let stream = TcpStream::connect(self.address.replace('!', ":")).await.unwrap();
        let protocol = Service::Join.protocol();
        tls::connect_pinned(self.authority_sha256, "127.0.0.1", stream, protocol).await.unwrap()
    }

    /// What a machine is told that wants to join.
    async fn join(&self) -> Refusal {
        let text = str::to_owned;
        let (name, address, release, request) = (text("beta"), text("beta!1"), text("1"), text(""));
        let question = Question::Join { secret: [0; 16], name, address, entry_format: 1, release, request };
        ask_to_join(self.authority_sha256, &self.address, &question).await.unwrap_err()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn a_member_that_is_silent_costs_all_who_ask_it_one_deadline() {
    let bed = Bed::new().await;
    let begun = Instant::now();
    let relayed = join_all((0..100).map(|_| bed.ask(SILENT, Line::Relayed, b"?")));
    let own = async {
        // Those are on their way, or wait.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = bed.ask(ANSWERS, Line::Append, b"own").await;
        (answer, begun.elapsed())
    };
    let (relayed, (own, own_took)) = tokio::join!(relayed, own);
    assert_eq!(own.unwrap(), b"own");
    assert!(own_took < ANSWER_WITHIN, "{own_took:?}: this node's own question has waited for others'");
    assert!(relayed.iter().all(|answer| matches!(answer, Err(NoAnswer::NotSent(_)))), "{relayed:?}");
    assert!(begun.elapsed() < ANSWER_WITHIN + SLACK, "{:?}", begun.elapsed());
    assert_eq!(bed.ask(ANSWERS, Line::Relayed, b"again").await.unwrap(), b"again", "another leads");
}

#[tokio::test]
async fn who_gives_up_tells_those_who_wait_behind() {
    let bed = Bed::new().await;
    let begun = Instant::now();
    let own = Duration::from_millis(500);
    // The first is dropped by whoever asked, before its own deadline.
    let (first, second) = tokio::join!(timeout(own, bed.ask(SILENT, Line::Append, b"?")), async {
        tokio::time::sleep(own / 5).await;
        bed.ask(SILENT, Line::Append, b"?").await
    });
    assert!(first.is_err(), "{first:?}");
    assert!(matches!(second, Err(NoAnswer::NotSent(_))), "{second:?}");
    assert!(begun.elapsed() < ANSWER_WITHIN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_question_that_is_carried_on_for_nobody_ends() {
    let bed = Bed::new().await;
    let (one, other) = (bed.ask(ANSWERS, Line::Append, NEVER), bed.ask(ANSWERS, Line::Read, b"read"));
    let (lost, read) = tokio::join!(one, other);
    assert_eq!(read.unwrap(), b"read");
    assert!(matches!(lost, Err(NoAnswer::Lost(_))), "{lost:?}");
    timeout(SLACK, bed.given_up.cancelled()).await.expect("the node still works on what nobody waits for");
    assert_eq!(bed.ask(ANSWERS, Line::Append, b"next").await.unwrap(), b"next");
}

#[tokio::test]
async fn strangers_have_few_places_and_not_for_long() {
    let bed = Bed::new().await;
    assert!(bed.join().await.sentence.contains("nobody is let in"));
    let mut strangers = join_all((0..JOINS_MAX).map(|_| bed.stranger())).await;
    let full = async {
        while bed.join().await.sentence.contains("nobody is let in") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SLACK, full).await.expect("one stranger more has a place");
    assert_eq!(bed.ask(ANSWERS, Line::Append, b"node").await.unwrap(), b"node", "nodes have theirs");
    tokio::time::pause();
    tokio::time::advance(HANDSHAKE_WITHIN).await;
    tokio::time::resume();
    for stranger in &mut strangers {
        let end = timeout(SLACK, stranger.read(&mut [0; 1])).await.expect("who says nothing has a place for ever");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    assert!(bed.join().await.sentence.contains("nobody is let in"), "there is room again");
}
