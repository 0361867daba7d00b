//! Who may do what to which file: the whole table, and what those see who are confined.

use crate::harness::{Cluster, answer, blocks, read_all, write};
use blixard::engine::state::{Command, Role, VmId};
use blixard::fs::tree::{Caller, Credential, DirEntry, Kind, OpenMode, Place, Tree};
use blixard::text::Code;
use std::collections::BTreeSet;

const READ: OpenMode = OpenMode { read: true, write: false, truncate: false, append: false, nonblock: true };
const WRITE: OpenMode = OpenMode { read: false, write: true, truncate: false, append: false, nonblock: true };

/// The file, and what these may do: the admin root, the operator ann, the viewer vic, whoever is unknown, and con, an operator
/// who is confined to vms/1 (root's) and vms/4 (con's own); vms/3 is ann's.
/// r: read; w: write; l: list or follow; d: delete; 0: nothing; -: it is not there. The first line that fits counts.
const TABLE: &str = "
/README             r   r   r   r   r
/version            r   r   r   r   r
/err                r   r   r   r   r
/sync               r   r   r   r   r
/me                 r   r   r   r   r
/events             rw  rw  rw  rw  -
/log                rw  rw  rw  rw  -
/backup             r   0   0   0   -
/ctl                rw  r   r   r   -
/status             r   r   r   r   -
/clock              r   r   r   r   -
/vms                l   l   l   l   l
/vms/new            rw  rw  r   r   -
/vms/list           r   r   r   r   -
/vms/json           r   r   r   r   -
/vms/events         rw  rw  rw  rw  -
/vms/1              ld  l   l   l   l
/vms/1/ctl          rw  r   r   r   r
/vms/1/console      rw  r   r   r   r
/vms/1/events       rw  rw  rw  rw  rw
/vms/1/*            r   r   r   r   r
/vms/web            l   l   l   l   l
/vms/2              ld  l   l   l   -
/vms/2/ctl          rw  r   r   r   -
/vms/2/console      rw  r   r   r   -
/vms/2/events       rw  rw  rw  rw  -
/vms/2/*            r   r   r   r   -
/vms/3              ld  ld  l   l   -
/vms/3/ctl          rw  rw  r   r   -
/vms/3/console      rw  rw  r   r   -
/vms/3/events       rw  rw  rw  rw  -
/vms/3/*            r   r   r   r   -
/vms/anns           l   l   l   l   -
/vms/4              ld  l   l   l   ld
/vms/4/ctl          rw  r   r   r   rw
/vms/4/console      rw  r   r   r   rw
/vms/4/events       rw  rw  rw  rw  rw
/vms/4/*            r   r   r   r   r
/nodes              l   l   l   l   -
/nodes/list         r   r   r   r   -
/nodes/alpha        l   l   l   l   -
/nodes/alpha/ctl    rw  r   r   r   -
/nodes/alpha/events rw  rw  rw  rw  -
/nodes/alpha/work   rw  0   0   0   -
/nodes/alpha/*      r   r   r   r   -
/ipam               l   l   l   l   -
/ipam/list          r   r   r   r   -
/ipam/new           rw  r   r   r   -
/nodes/new          rw  r   r   r   -
/ipam/default       ld  l   l   l   -
/ipam/default/ctl   rw  r   r   r   -
/ipam/default/*     r   r   r   r   -
/images             l   l   l   l   -
/images/list        r   r   r   r   -
/images/tiny        ld  l   l   l   -
/images/tiny/ctl    rw  r   r   r   -
/images/tiny/*      r   r   r   r   -
/users              l   l   l   l   -
/users/list         r   r   r   r   -
/users/new          rw  r   r   r   -
/users/*            ld  l   l   l   -
/users/*/ctl        rw  r   r   r   -
/users/*/*          r   r   r   r   -
";

struct Row {
    pattern: &'static str,
    cells: Vec<&'static str>,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let mut words = line.split_whitespace();
        Row { pattern: words.next().unwrap(), cells: words.collect() }
    };
    TABLE.lines().filter(|line| !line.is_empty()).map(row).collect()
}

fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(p, name)| *p == "*" || *p == name)
}

fn confined(within: &[u64]) -> Command {
    let within = within.iter().map(|id| VmId(*id)).collect();
    Command::UserSetWithin { name: "con".into(), role: Role::Operator, uid: Some(1003), within }
}

/// Four VMs, and con.
async fn furnished() -> Cluster {
    let cluster = Cluster::new().await;
    cluster.submit(confined(&[])).await;
    cluster.vm("name=web image=tiny memory=64M").await;
    cluster.vm("image=tiny memory=64M").await;
    cluster.write_as(&cluster.caller(1001), "vms/new", "image=tiny memory=64M name=anns").await.unwrap();
    cluster.write_as(&cluster.caller(1003), "vms/new", "image=tiny memory=64M").await.unwrap();
    cluster.submit(confined(&[1, 4])).await;
    cluster
}

/// The users of the table's columns.
fn columns(cluster: &Cluster) -> [Caller; 5] {
    [0, 1001, 1002, 4_000_000_000, 1003].map(|uid| cluster.caller(uid))
}

async fn check_file(cluster: &Cluster, who: &Caller, path: &str, place: Place, cell: &str) {
    let said = format!("{path} for {}", who.user);
    let expected = |letter: char| if cell.contains(letter) { None } else { Some(Code::Denied) };
    let opened = cluster.server.open(who, place, READ);
    if cell.contains('r') {
        read_all(&*opened.unwrap_or_else(|refusal| panic!("{said}: {refusal}")).handle).await.unwrap();
    } else {
        assert_eq!(opened.err().map(|refusal| refusal.code), expected('r'), "{said}");
    }
    let mode = cluster.server.stat(who, place).unwrap().mode;
    let bits = [('r', 0o444), ('w', 0o222)].map(|(letter, bits)| if cell.contains(letter) { bits } else { 0 });
    assert_eq!(mode, bits[0] | bits[1], "{said}");
    assert_eq!(cluster.server.open(who, place, WRITE).err().map(|r| r.code), expected('w'), "{said}");
    assert_eq!(cluster.server.truncate(who, place, 0).err().map(|r| r.code), expected('w'), "{said}");
}

/// What is not there for somebody: by no operation, even for who has the place from elsewhere.
async fn check_absent(cluster: &Cluster, who: &Caller, path: &str, (dir, place): (Place, Place)) {
    let (server, name) = (&cluster.server, path.rsplit('/').next().unwrap());
    let codes = [
        server.walk(who, dir, name).err().map(|r| r.code),
        server.stat(who, place).err().map(|r| r.code),
        server.open(who, place, READ).err().map(|r| r.code),
        server.open(who, place, WRITE).err().map(|r| r.code),
        server.truncate(who, place, 0).err().map(|r| r.code),
        server.readlink(who, place).err().map(|r| r.code),
        server.name(who, place).err().map(|r| r.code),
        server.readdir(who, place, 0, &mut |_| panic!("{path} has something")).err().map(|r| r.code),
        answer(server.remove(who, dir, name, true)).await.err().map(|r| r.code),
        answer(server.remove(who, dir, name, false)).await.err().map(|r| r.code),
    ];
    assert_eq!(codes, [Some(Code::NotFound); 10], "{path} for {}", who.user);
    let mut listed = Vec::new();
    let mut keep = |entry: DirEntry| {
        listed.push(entry.name);
        true
    };
    // The directory may not be there either.
    let _ = server.readdir(who, dir, 0, &mut keep);
    assert!(!listed.iter().any(|other| other == name), "{path} is listed for {}", who.user);
}

async fn check_entry(cluster: &Cluster, who: &Caller, path: &str, (dir, entry): (Place, &DirEntry), cell: &str) {
    let (place, name) = (entry.place, path.rsplit('/').next().unwrap());
    if cell == "-" {
        return check_absent(cluster, who, path, (dir, place)).await;
    }
    assert_eq!(cluster.server.walk(who, dir, name).unwrap(), place, "{path} for {}", who.user);
    match entry.kind {
        Kind::File | Kind::Stream => check_file(cluster, who, path, place, cell).await,
        Kind::Link => drop(cluster.server.readlink(who, place).unwrap()),
        Kind::Directory => {
            cluster.server.readdir(who, place, 0, &mut |_| true).unwrap();
            if !cell.contains('d') {
                let refusal = answer(cluster.server.remove(who, dir, name, true)).await.unwrap_err();
                assert!(
                    matches!(refusal.code, Code::Denied | Code::NotPermitted),
                    "{path} for {}: {refusal}",
                    who.user
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_for_everybody_is_as_in_the_table() {
    let cluster = furnished().await;
    let (rows, everybody) = (rows(), columns(&cluster));
    let mut used = BTreeSet::new();
    for (path, dir, entry) in cluster.everything() {
        let row = rows.iter().find(|row| fits(row.pattern, &path)).unwrap_or_else(|| panic!("{path} is in no row"));
        assert_eq!(row.cells.len(), everybody.len(), "{}", row.pattern);
        used.insert(row.pattern);
        for (who, cell) in everybody.iter().zip(&row.cells) {
            check_entry(&cluster, who, &path, (dir, &entry), cell).await;
        }
    }
    let unused: Vec<_> = rows.iter().map(|row| row.pattern).filter(|pattern| !used.contains(pattern)).collect();
    assert!(unused.is_empty(), "{unused:?}");
    // Nobody could remove what they may not; whoever may, can.
    let all = cluster.everything().len();
    for (user, path) in [(4, "4"), (1, "3"), (0, "2")] {
        let vms = cluster.find("vms").unwrap();
        answer(cluster.server.remove(&everybody[user], vms, path, true)).await.unwrap();
    }
    assert!(cluster.everything().len() < all);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_confined_sees_the_way_down_and_no_more() {
    let cluster = furnished().await;
    let con = cluster.caller(1003);
    let names = |dir: Place, after: u64, most: usize| {
        let mut found = Vec::new();
        let mut keep = |entry: DirEntry| {
            found.push((entry.name, entry.cookie));
            found.len() < most
        };
        cluster.server.readdir(&con, dir, after, &mut keep).unwrap();
        found
    };
    let only = |found: Vec<(String, u64)>| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(only(names(Place::ROOT, 0, 99)), ["README", "version", "err", "sync", "me", "vms"]);
    let vms = cluster.find("vms").unwrap();
    assert_eq!(only(names(vms, 0, 99)), ["1", "4", "web"]);
    // One at a time, while the others come and go.
    let (mut one_by_one, mut after) = (Vec::new(), 0);
    while let Some((name, cookie)) = names(vms, after, 1).pop() {
        (after, _) = (cookie, one_by_one.push(name));
        cluster.vm("image=tiny memory=64M").await;
    }
    assert_eq!(one_by_one, ["1", "4", "web"]);
    // What others do is not to be seen from the directory either.
    let before = cluster.server.stat(&con, vms).unwrap();
    cluster.vm("image=tiny memory=64M").await;
    assert_eq!(cluster.server.stat(&con, vms).unwrap(), before);
    cluster.write("vms/1/ctl", "set name=shop").await.unwrap();
    assert_ne!(cluster.server.stat(&con, vms).unwrap().version, before.version, "a name in it has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_seen_no_longer_than_its_user_may() {
    let cluster = furnished().await;
    let con = cluster.caller(1003);
    let how = OpenMode { read: true, write: true, ..OpenMode::default() };
    let status = cluster.open(&con, "vms/1/status", READ).unwrap().handle;
    let ctl = cluster.open(&con, "vms/4/ctl", how).unwrap().handle;
    let wait = cluster.open(&con, "vms/4/events", how).unwrap().handle;
    read_all(&*status).await.unwrap();
    answer(wait.read(0, 1 << 16)).await.unwrap();
    assert!(blocks(wait.read(0, 100)), "there is nothing yet");
    let blocked = wait.read(0, 100);
    cluster.submit(confined(&[2])).await;
    cluster.write("vms/4/ctl", "set cpus=3").await.unwrap();
    assert_eq!(answer(blocked).await.unwrap_err().code, Code::NotFound, "what came meanwhile is not told");
    assert_eq!(answer(wait.read(0, 100)).await.unwrap_err().code, Code::NotFound);
    assert_eq!(read_all(&*status).await.unwrap_err().code, Code::NotFound);
    assert_eq!(write(&*ctl, "stop").await.unwrap_err().code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_confined_revoked_and_deleted_by_their_files() {
    let cluster = furnished().await;
    let within = "name=nel role=operator uid=1004 within=vms/web,/vms/3/";
    cluster.write("users/new", within).await.unwrap();
    let said = cluster.read("users/list").await;
    assert!(said.lines().any(|line| line.ends_with("operator  1004  vms/1,vms/3")), "{said}");
    for wrong in ["within=nodes/alpha", "within=1", "within=vms/99", "within=vms/none-such"] {
        let refusal = cluster.write("users/con/ctl", &format!("set {wrong}")).await.unwrap_err();
        assert!(matches!(refusal.code, Code::Invalid | Code::NotFound), "{wrong}: {refusal}");
    }
    cluster.write("users/con/ctl", "set within=''").await.unwrap();
    assert!(!cluster.read("users/con/status").await.contains("within"));
    cluster.write("users/con/ctl", "revoke cert=AB12\nrevoke cert=cd").await.unwrap();
    assert!(cluster.read("users/con/status").await.contains("\nrevoked ab12,cd\n"));
    let certificate =
        |serial: &str| Credential::Certificate { name: "con".into(), serial: serial.into(), issued_ms: u64::MAX };
    assert!(cluster.server.admit(&certificate("ab12")).is_err() && cluster.server.admit(&certificate("ab")).is_ok());
    assert_eq!(cluster.server.caller(&certificate("ab12"), "", "").user, "none");
    assert_eq!(cluster.server.caller(&certificate("ab"), "", "").user, "con");
    let users = cluster.find("users").unwrap();
    answer(cluster.server.remove(&cluster.root(), users, "con", true)).await.unwrap();
    assert_eq!(cluster.find("users/con").unwrap_err().code, Code::NotFound);
    assert!(cluster.read("vms/4/status").await.contains("\nowner con\n"), "what was theirs stays so");
    let last = answer(cluster.server.remove(&cluster.root(), users, "root", true)).await.unwrap_err();
    assert_eq!(last.code, Code::Busy, "{last}");
}
