//! Our own client against our own server.

use super::raw::{PATIENCE, Running, until};
use super::toy::{MANY, README, big};
use blixard::ninep::client::{Client, ClientError, Follow, is_directory};
use blixard::ninep::linux::open;
use std::sync::atomic::Ordering;

#[tokio::test]
async fn reads_lists_and_stats_over_both_transports() {
    let running = Running::start();
    for dial in [running.unix(), running.tcp.clone()] {
        let client = Client::connect(&dial).await.unwrap();
        assert_eq!(client.read_all("README").await.unwrap(), README);
        assert_eq!(client.read_all("/big").await.unwrap(), big());
        let names: Vec<_> = client.list("many").await.unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, (0..MANY).map(|n| n.to_string()).collect::<Vec<_>>());
        let stat = client.stat("big", Follow::Last).await.unwrap();
        assert_eq!((stat.size, stat.uid, stat.gid, stat.mode), (100_000, 42, 43, 0o100_444));
        assert!(is_directory(&client.stat("/", Follow::Last).await.unwrap()));
    }
}

#[tokio::test]
async fn links_are_followed() {
    let running = Running::start();
    let client = Client::connect(&running.unix()).await.unwrap();
    assert_eq!(client.read_all("link/sub/leaf").await.unwrap(), b"leaf\n");
    assert_eq!(client.read_all("link/up").await.unwrap(), README);
    assert_eq!(client.readlink("dir/up").await.unwrap(), "../README");
    assert!(is_directory(&client.stat("link", Follow::Last).await.unwrap()));
    assert!(!is_directory(&client.stat("link", Follow::NotLast).await.unwrap()));
    // More names than one Twalk holds.
    let deep = format!("dir/{}sub/leaf", "sub/../".repeat(20));
    assert_eq!(client.read_all(&deep).await.unwrap(), b"leaf\n");
    let gone = client.read_all(&format!("dir/{}nowhere/leaf", "sub/../".repeat(20))).await.unwrap_err();
    assert_eq!(gone.to_string(), "No such file or directory");
    assert_eq!(client.read_all(&("dir/../".repeat(20) + "README")).await.unwrap(), README);
}

#[tokio::test]
async fn writes_and_refusals() {
    let running = Running::start();
    let client = Client::connect(&running.unix()).await.unwrap();
    let ctl = client.open("ctl", open::WRITE_ONLY).await.unwrap();
    ctl.write(0, b"ok\n").await.unwrap();
    let refused = ctl.write(0, b"strat\n").await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { errno: 22 }), "{refused}");
    assert_eq!(client.read_all("err").await.unwrap(), b"invalid command 'strat': only ok is known\n");
    let echo = client.open("echo", open::READ_WRITE).await.unwrap();
    echo.write(0, b"there and back").await.unwrap();
    assert_eq!(echo.read_all().await.unwrap(), b"there and back");
    assert!(matches!(client.remove("README").await, Err(ClientError::Refused { errno: 1 })));
    client.remove("dir/sub").await.unwrap();
    assert!(matches!(client.open("secret", open::READ_ONLY).await, Err(ClientError::Refused { errno: 13 })));
}

#[tokio::test]
async fn what_is_dropped_is_cancelled_and_closed() {
    let running = Running::start();
    let client = Client::connect(&running.unix()).await.unwrap();
    let waiting = || running.toy.waiting.load(Ordering::SeqCst);
    let open = || running.toy.open.load(Ordering::SeqCst);
    let block = client.open("block", open::READ_ONLY).await.unwrap();
    let mut read = Box::pin(block.read(0));
    assert!(futures::poll!(&mut read).is_pending());
    let see_it_wait = async {
        while waiting() == 0 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(PATIENCE, see_it_wait).await.unwrap();
    // Others are not held up by it.
    assert_eq!(client.read_all("README").await.unwrap(), README);
    drop(read);
    // The answer to a later request comes after the flush was handled.
    assert_eq!(client.read_all("README").await.unwrap(), README);
    assert_eq!(waiting(), 0);
    drop(block);
    assert_eq!(client.read_all("README").await.unwrap(), README);
    tokio::task::spawn_blocking({
        let toy = running.toy.clone();
        move || until("the files are closed", || toy.open.load(Ordering::SeqCst) == 0)
    })
    .await
    .unwrap();
    assert_eq!(open(), 0);
}

#[tokio::test]
async fn hundreds_at_a_time() {
    let running = Running::start();
    let client = Client::connect(&running.unix()).await.unwrap();
    let reads = (0..3000).map(|n| {
        let client = &client;
        async move { (n, client.read_all(&format!("many/{n}")).await.unwrap()) }
    });
    for (n, text) in futures::future::join_all(reads).await {
        assert_eq!(text, format!("{n}\n").as_bytes());
    }
}

#[tokio::test]
async fn the_end_of_the_server_is_told() {
    let mut running = Running::start();
    let client = Client::connect(&running.unix()).await.unwrap();
    let block = client.open("block", open::READ_ONLY).await.unwrap();
    let reading = async { block.read(0).await };
    let stopping = tokio::task::spawn_blocking({
        let toy = running.toy.clone();
        move || {
            until("the read waits", || toy.waiting.load(Ordering::SeqCst) == 1);
            running.stop();
            running.unix()
        }
    });
    let (read, dial) = tokio::join!(reading, stopping);
    assert!(matches!(read, Err(ClientError::Lost(_))), "{read:?}");
    assert!(matches!(client.read_all("README").await, Err(ClientError::Closed(_))));
    let again = Client::connect(&dial.unwrap()).await.err().unwrap().to_string();
    assert!(again.starts_with("no server answers at unix!"), "{again}");
}
