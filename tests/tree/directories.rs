//! Directories: reading one in pieces while it changes, links, attributes.

use crate::harness::Cluster;
use blixard::engine::state::{Command, Role};
use blixard::fs::tree::{DirEntry, Kind, Tree};

/// At most `max` entries after a cookie.
fn some(cluster: &Cluster, path: &str, after: u64, max: usize) -> Vec<DirEntry> {
    let mut entries = Vec::new();
    let mut keep = |entry| {
        entries.push(entry);
        entries.len() < max
    };
    cluster.server.readdir(&cluster.root(), cluster.find(path).unwrap(), after, &mut keep).unwrap();
    entries
}

fn names(entries: &[DirEntry]) -> Vec<&str> {
    entries.iter().map(|e| e.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_read_on_where_it_was_left() {
    let cluster = Cluster::new().await;
    for n in 0..20 {
        cluster.vm(&format!("image=tiny memory=64M name=m{n}")).await;
    }
    for path in ["", "vms", "vms/1", "nodes", "ipam", "users", "images"] {
        let whole = some(&cluster, path, 0, usize::MAX);
        for step in [1, 2, 7] {
            let mut pieces: Vec<DirEntry> = Vec::new();
            loop {
                let piece = some(&cluster, path, pieces.last().map_or(0, |e| e.cookie), step);
                if piece.is_empty() {
                    break;
                }
                pieces.extend(piece);
            }
            assert_eq!(pieces, whole, "{path} by {step}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_stay_valid_while_objects_come_and_go() {
    let cluster = Cluster::new().await;
    for n in 1..=6 {
        cluster.vm(&format!("image=tiny memory=64M name=m{n}")).await;
    }
    let all = some(&cluster, "vms", 0, usize::MAX);
    let after = |name: &str| all.iter().find(|e| e.name == name).unwrap().cookie;
    for id in [2, 3, 5] {
        cluster.write(&format!("vms/{id}/ctl"), "delete").await.unwrap();
    }
    cluster.vm("image=tiny memory=64M name=m0").await;
    let rest = some(&cluster, "vms", after("3"), usize::MAX);
    assert_eq!(names(&rest), ["4", "6", "7", "m1", "m4", "m6", "m0"], "after one that is gone");
    assert_eq!(names(&some(&cluster, "vms", after("m3"), usize::MAX)), ["m4", "m6", "m0"]);
    assert!(some(&cluster, "vms", u64::MAX, 10).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_links_to_numbers() {
    let cluster = Cluster::new().await;
    let id = cluster.vm("image=tiny memory=64M name=web").await;
    let root = cluster.root();
    let vms = cluster.find("vms").unwrap();
    let link = cluster.server.walk(&root, vms, "web").unwrap();
    let stat = cluster.server.stat(&root, link).unwrap();
    assert_eq!((stat.kind, stat.size, stat.nlink), (Kind::Link, 1, 1));
    assert_eq!(cluster.server.readlink(&root, link).unwrap(), id.to_string());
    assert!(cluster.server.readlink(&root, vms).is_err());
    assert_eq!(cluster.find("vms/web/status").unwrap(), cluster.find(&format!("vms/{id}/status")).unwrap());
    cluster.write("vms/web/ctl", "set name=''").await.unwrap();
    assert!(cluster.server.stat(&root, link).is_err());
    assert!(cluster.find("vms/web").is_err());
    cluster.write(&format!("vms/{id}/ctl"), "set name=db").await.unwrap();
    assert_eq!(cluster.server.walk(&root, vms, "db").unwrap(), link, "the link's place is its object's");
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_times_and_versions_are_the_objects() {
    let cluster = Cluster::new().await;
    let ann = cluster.caller(1001);
    cluster.write_as(&ann, "vms/new", "image=tiny memory=64M").await.unwrap();
    let before = cluster.stat("vms/1/status");
    assert_eq!((before.owner.as_str(), before.owner_uid), ("ann", 1001));
    // What is of another object changes neither; what is of this one does.
    cluster.vm("image=tiny memory=64M").await;
    assert_eq!(cluster.stat("vms/1/status"), before);
    let list = cluster.stat("vms/list");
    let folder = cluster.stat("vms");
    cluster.write_as(&ann, "vms/1/ctl", "set cpus=2").await.unwrap();
    let after = cluster.stat("vms/1/status");
    assert!(after.version != before.version && after.mtime_ms >= before.mtime_ms);
    assert_ne!(cluster.stat("vms/list").version, list.version, "a line of it has changed");
    assert_eq!(cluster.stat("vms"), folder, "the same are in it");
    // A command that is refused, or changes nothing, changes no version.
    cluster.write_as(&ann, "vms/1/ctl", "pause").await.unwrap_err();
    cluster.write_as(&ann, "vms/1/ctl", "set cpus=2").await.unwrap();
    assert_eq!(cluster.stat("vms/1/status"), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn qid_versions_change_with_the_content() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    let files =
        ["README", "version", "err", "me", "status", "nodes/list", "nodes/alpha/status", "ipam/list", "vms/1/log"];
    let mut before = Vec::new();
    for file in files {
        before.push((file, cluster.stat(file).version, cluster.read(file).await));
    }
    cluster.write("vms/1/ctl", "fly").await.unwrap_err();
    cluster.write("vms/1/ctl", "start").await.unwrap();
    *cluster.host.log.lock().unwrap() = "tiny: Ready\n".into();
    for (file, version, text) in before {
        let same = cluster.read(file).await == text;
        assert_eq!(cluster.stat(file).version == version, same, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_users_are_listed_in_bounded_time() {
    let cluster = Cluster::new().await;
    let user = |n: u32| Command::UserSet { name: format!("u{n}"), role: Role::Viewer, uid: Some(100_000 + n) };
    let root = blixard::engine::state::By::User("root".into());
    for from in (0..20_000).step_by(4_000) {
        cluster.engine.submit(root.clone(), (from..from + 4_000).map(user).collect()).await.unwrap();
    }
    let entries = some(&cluster, "users", 0, usize::MAX);
    assert_eq!(entries.iter().filter(|e| e.kind == Kind::Directory).count(), 20_003);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_files_last_and_names_do_not() {
    let cluster = Cluster::new().await;
    let id = cluster.vm("image=tiny memory=64M name=web").await;
    let vms = cluster.find("vms").unwrap();
    let web = cluster.server.walk(&cluster.root(), vms, "web").unwrap();
    assert!(!cluster.server.stat(&cluster.root(), web).unwrap().lasting, "another VM can take the name");
    for (path, dir, entry) in cluster.everything() {
        let named = entry.kind == Kind::Link
            || ["nodes", "images", "ipam", "users"].map(|k| cluster.find(k)).contains(&Ok(dir))
                && entry.kind == Kind::Directory;
        assert_eq!(cluster.server.stat(&cluster.root(), entry.place).unwrap().lasting, !named, "{path}");
    }
    let place = cluster.find(&format!("vms/{id}")).unwrap();
    cluster.write(&format!("vms/{id}/ctl"), "delete").await.unwrap();
    assert_ne!(cluster.vm("image=tiny memory=64M name=web").await, id);
    assert!(cluster.server.stat(&cluster.root(), place).is_err(), "what lasts is a name's meaning, not what it means");
}
