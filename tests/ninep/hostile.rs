//! Our own client against servers that lie: each lie ends in an error, without a panic, a hang or memory that grows.

use super::raw::PATIENCE;
use blixard::ninep::client::{Client, ClientError};
use blixard::ninep::linux::open;
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::{Dialect, Header, Qid, Reply, Request};
use blixard::text::Dial;
use bytes::BytesMut;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use tokio::time::timeout;

/// What a server answers to a request; None: it closes the connection. Empty: nothing.
type Answers = fn(u16, &Request<'_>) -> Option<Vec<u8>>;

fn reply(tag: u16, reply: &Reply<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    reply.encode(Dialect::L, tag, &mut bytes).unwrap();
    bytes.to_vec()
}

/// A message with this body, whatever it is.
fn raw(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER_BYTES + body.len()).unwrap();
    [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes(), body].concat()
}

const FILE: Qid = Qid { kind: Qid::FILE, version: 1, path: 7 };

/// What an honest server with one file says.
fn honest(tag: u16, request: &Request<'_>) -> Option<Vec<u8>> {
    let mut scratch = BytesMut::new();
    Some(match request {
        Request::Version { .. } => reply(tag, &Reply::Version { msize: 8192, version: "9P2000.L" }),
        Request::Attach { .. } => reply(tag, &Reply::Attach { qid: Qid { kind: Qid::DIRECTORY, ..FILE } }),
        Request::Walk { names, .. } => {
            let qids = vec![FILE; names.len()];
            reply(tag, &Reply::Walk { qids: blixard::ninep::List::of(&qids, &mut scratch).unwrap() })
        }
        Request::Lopen { .. } => reply(tag, &Reply::Lopen { qid: FILE, iounit: 0 }),
        Request::Flush { .. } => reply(tag, &Reply::Flush {}),
        Request::Clunk { .. } => reply(tag, &Reply::Clunk {}),
        _ => reply(tag, &Reply::Lerror { ecode: 5 }),
    })
}

fn serve(mut stream: UnixStream, answers: Answers) {
    let mut header = [0; HEADER_BYTES];
    while stream.read_exact(&mut header).is_ok() {
        let Header { size, kind, tag } = Header::decode(&header).unwrap();
        let mut body = vec![0; size as usize - HEADER_BYTES];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let request = Request::decode(Dialect::L, kind, &body).unwrap();
        let Some(answer) = answers(tag, &request) else { return };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// A server that answers so, for the one connection that is made.
fn liar(answers: Answers) -> (Dial, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            serve(stream, answers);
        }
    });
    (Dial::Unix(socket), folder)
}

/// What comes of reading its file.
async fn read(answers: Answers) -> ClientError {
    let (dial, _folder) = liar(answers);
    let reading = async {
        let client = Client::connect(&dial).await?;
        client.open("file", open::READ_ONLY).await?.read(0).await
    };
    timeout(PATIENCE, reading).await.expect("no hang").unwrap_err()
}

fn is_protocol(error: &ClientError) -> bool {
    matches!(error, ClientError::Protocol(_))
}

/// The connection ended, for a reason that says what the server did.
fn ended(error: &ClientError, why: &str) -> bool {
    matches!(error, ClientError::Lost(_) | ClientError::Closed(_)) && error.to_string().contains(why)
}

#[tokio::test]
async fn lies_in_the_greeting() {
    let said = |answers: Answers| async move { read(answers).await.to_string() };
    assert!(
        said(|tag, _| Some(reply(tag, &Reply::Version { msize: u32::MAX, version: "9P2000.L" })))
            .await
            .contains("msize")
    );
    assert!(said(|tag, _| Some(reply(tag, &Reply::Version { msize: 0, version: "9P2000.L" }))).await.contains("msize"));
    assert!(
        said(|tag, _| Some(reply(tag, &Reply::Version { msize: 8192, version: "unknown" })))
            .await
            .contains("'unknown'")
    );
    assert!(said(|tag, _| Some(reply(tag, &Reply::Clunk {}))).await.contains("Rclunk"));
    assert!(said(|_, _| None).await.contains("ended"));
    assert!(said(|_, _| Some(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".to_vec())).await.contains("invalid message"));
    let attach: Answers = |tag, request| match request {
        Request::Attach { .. } => Some(reply(tag, &Reply::Clunk {})),
        _ => honest(tag, request),
    };
    assert!(is_protocol(&read(attach).await));
}

#[tokio::test]
async fn lies_in_an_answer() {
    macro_rules! answers {
        ($pattern:pat => $with:expr) => {
            read(|tag, request| match request {
                $pattern => Some($with(tag)),
                _ => honest(tag, request),
            })
            .await
        };
    }
    // More data than was asked for, a count that lies, a type that is another's, a body that goes on, that ends too early.
    let many = answers!(Request::Walk { .. } => |tag| raw(111, tag, &[&[3, 0][..], &[0; 39]].concat()));
    assert!(is_protocol(&many), "{many}");
    let count = answers!(Request::Read { .. } => |tag| raw(117, tag, &[0xff, 0xff, 0xff, 0xff, 1, 2]));
    assert!(is_protocol(&count), "{count}");
    let kind = answers!(Request::Read { .. } => |tag| reply(tag, &Reply::Write { count: 1 }));
    assert!(is_protocol(&kind), "{kind}");
    let unknown = answers!(Request::Read { .. } => |tag| raw(250, tag, &[1, 2, 3]));
    assert!(is_protocol(&unknown), "{unknown}");
    let trailing = answers!(Request::Lopen { .. } => |tag| raw(13, tag, &[0; 30]));
    assert!(is_protocol(&trailing), "{trailing}");
    let short = answers!(Request::Lopen { .. } => |tag| raw(13, tag, &[0; 3]));
    assert!(is_protocol(&short), "{short}");
    let errno = answers!(Request::Read { .. } => |tag| reply(tag, &Reply::Lerror { ecode: u32::MAX }));
    assert!(matches!(errno, ClientError::Refused { .. }), "{errno}");
    // What makes everything after it unintelligible ends the connection.
    let tag = answers!(Request::Read { .. } => |tag| reply(tag ^ 1, &Reply::Read { data: blixard::ninep::Data(b"x") }));
    assert!(ended(&tag, "nobody has asked"), "{tag}");
    let flush = answers!(Request::Read { .. } => |tag| reply(tag + 0x4000, &Reply::Flush {}));
    assert!(ended(&flush, "nobody has asked"), "{flush}");
    let twice = answers!(Request::Lopen { .. } => |tag| reply(tag, &Reply::Lopen { qid: FILE, iounit: 0 }).repeat(2));
    assert!(ended(&twice, "nobody has asked"), "{twice}");
    let large = answers!(Request::Read { .. } => |tag| raw(117, tag, &vec![0; 8192]));
    assert!(ended(&large, "invalid message"), "{large}");
    let huge = answers!(Request::Read { .. } => |_| vec![0xff; 64]);
    assert!(ended(&huge, "invalid message"), "{huge}");
    let tiny = answers!(Request::Read { .. } => |_| vec![3, 0, 0, 0]);
    assert!(ended(&tiny, "invalid message"), "{tiny}");
}

#[tokio::test]
async fn a_text_and_a_directory_without_end() {
    let (dial, _folder) = liar(|tag, request| match request {
        Request::Read { count, .. } => {
            Some(reply(tag, &Reply::Read { data: blixard::ninep::Data(&vec![b'x'; *count as usize]) }))
        }
        Request::Readdir { offset, .. } => {
            let mut records = BytesMut::new();
            for n in 1..=100 {
                let name = "x".repeat(50);
                let entry = blixard::ninep::DirEntry { qid: FILE, offset: offset + n, kind: 8, name: &name };
                blixard::ninep::field::Field::put(&entry, Dialect::L, &mut records).unwrap();
            }
            Some(reply(tag, &Reply::Readdir { data: blixard::ninep::Data(&records) }))
        }
        _ => honest(tag, request),
    });
    let client = Client::connect(&dial).await.unwrap();
    let both = async { (client.read_all("file").await.unwrap_err(), client.list("").await.unwrap_err()) };
    let (text, list) = timeout(PATIENCE * 4, both).await.expect("no hang");
    assert!(matches!(text, ClientError::TooLong(_)), "{text}");
    assert!(matches!(list, ClientError::TooLong(_)), "{list}");
}

/// Whoever waits is told at once when the connection ends, and nothing is sent any more.
#[tokio::test]
async fn a_server_that_goes_away_in_the_middle() {
    let (dial, _folder) = liar(|tag, request| match request {
        Request::Read { .. } => None,
        _ => honest(tag, request),
    });
    let client = Client::connect(&dial).await.unwrap();
    let file = client.open("file", open::READ_WRITE).await.unwrap();
    assert!(matches!(timeout(PATIENCE, file.read(0)).await.unwrap(), Err(ClientError::Lost(_))));
    timeout(PATIENCE, client.ended()).await.unwrap();
    assert!(matches!(file.write(0, b"x").await, Err(ClientError::Closed(_))));
}

/// A server that answers nothing: what is dropped is cancelled, and tags are not given to others before the answer is here.
#[tokio::test]
async fn a_server_that_is_silent() {
    let (dial, _folder) = liar(|tag, request| match request {
        Request::Read { .. } | Request::Flush { .. } => Some(Vec::new()),
        _ => honest(tag, request),
    });
    let client = Client::connect(&dial).await.unwrap();
    let file = client.open("file", open::READ_ONLY).await.unwrap();
    for _ in 0..1024 {
        assert!(timeout(Duration::from_millis(1), file.read(0)).await.is_err(), "there is no answer");
    }
    // No tag is left: not even this is sent, and it can be given up all the same.
    assert!(timeout(Duration::from_millis(100), client.open("file", open::READ_ONLY)).await.is_err());
}
