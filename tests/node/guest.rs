//! Real guests: a Debian kernel under QEMU, one process each.

use crate::support::{Node, images};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

mod fence;

#[test]
fn eight_at_once_and_nothing_left() {
    let node = Node::qemu();
    let ids: Vec<u64> =
        (0..8).map(|i| node.new_vm(&format!("name=g{i} image=tiny cpus=1 memory=128M")).unwrap()).collect();
    for id in &ids {
        node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    }
    for id in &ids {
        assert_eq!(node.wait(*id), "running");
        node.wait_line(&format!("vms/{id}/events"), "guest ready");
    }

    let machines = node.machines();
    assert_eq!(machines.iter().map(|(_, vm)| *vm).collect::<BTreeSet<_>>(), ids.iter().copied().collect());
    let status = |id: &u64, key: &str| node.value(&format!("vms/{id}/status"), key);
    assert_eq!(ids.iter().filter_map(|id| status(id, "ip")).collect::<BTreeSet<_>>().len(), 8, "an address twice");
    for id in &ids {
        let pid: u32 = status(id, "pid").unwrap().parse().unwrap();
        assert!(machines.contains(&(pid, *id)), "vm {id}: status says pid {pid}, the host has {machines:?}");
        // The guest answers when it is ready, and prints it besides: which of the two comes first nobody has promised.
        let mut log = String::new();
        crate::secure::until("the ready line", || {
            log = node.read(&format!("vms/{id}/log"));
            log.contains("blixard: ready")
        });
        let ip = status(id, "ip").unwrap();
        assert!(log.contains(&ip), "vm {id}: its console does not show its own address {ip}:\n{log}");
    }

    for id in &ids {
        node.write(&format!("vms/{id}/ctl"), "stop\n").unwrap();
    }
    for id in &ids {
        assert_eq!(node.wait(*id), "stopped");
        node.delete(*id);
    }
    assert_eq!(node.machines(), []);
    let left: Vec<_> = std::fs::read_dir(node.data().join("vms")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "files left: {left:?}");
    assert_eq!(node.read("ipam/default/leases").lines().filter(|l| l.contains("vm")).count(), 0, "leases are left");
    // The pool's bridge stays for the next VM, until the node ends.
    let mut left = node.host_objects();
    left.retain(|path| !path.to_string_lossy().ends_with("-p1"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "a tap or a cgroup is left");
    let host = node
        .read(&format!("nodes/{}/status", node.read("nodes/list").lines().nth(1).unwrap().split(' ').next().unwrap()));
    assert!(!host.lines().any(|l| l.starts_with("leftover ")), "{host}");
}

#[test]
fn a_disk_keeps_what_was_written_to_it() {
    let node = Node::qemu();
    let id = node.new_vm("image=tiny memory=128M disk=64M").unwrap();
    let start = || {
        node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
        assert_eq!(node.wait(id), "running");
        let generation = node.value(&format!("vms/{id}/status"), "generation").unwrap();
        node.wait_line(&format!("vms/{id}/events"), &format!("guest ready generation {generation}"));
    };
    let stop = || {
        node.write(&format!("vms/{id}/ctl"), "stop\n").unwrap();
        assert_eq!(node.wait(id), "stopped");
    };
    start();
    node.type_at_console(id, "echo kept-over-a-stop >/dev/vda; sync; echo wrote-$((40 + 2))", "wrote-42");
    stop();
    start();
    node.type_at_console(id, "head -c 16 /dev/vda; echo; echo read-$((40 + 2))", "kept-over-a-stop");
    stop();
    node.delete(id);
}

#[test]
fn a_stop_in_the_middle_of_a_boot_is_heard() {
    let node = Node::qemu();
    // Its grace is longer than this test's patience.
    let id = node.new_vm("image=tiny memory=128M grace=1h").unwrap();
    node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(node.wait(id), "running");
    node.write(&format!("vms/{id}/ctl"), "stop\n").unwrap();
    assert_eq!(node.wait(id), "stopped");
    node.delete(id);
}

#[test]
fn a_stopped_node_leaves_no_device_behind() {
    let mut node = Node::qemu();
    let id = node.new_vm("image=tiny memory=128M").unwrap();
    node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(node.wait(id), "running");
    assert!(node.host_objects().len() >= 2, "a tap and its bridge, a cgroup");
    node.write(&format!("vms/{id}/ctl"), "kill\n").unwrap();
    assert_eq!(node.wait(id), "stopped");
    node.delete(id);
    node.stop();
    assert_eq!(node.host_objects(), Vec::<std::path::PathBuf>::new(), "left behind");
}

#[test]
fn a_guest_outlives_the_daemon() {
    let mut node = Node::qemu();
    let id = node.new_vm("name=web image=tiny memory=128M").unwrap();
    node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(node.wait(id), "running");
    node.wait_line(&format!("vms/{id}/events"), "guest ready");
    let (machines, status) = (node.machines(), node.read("vms/web/status"));
    for end in [Node::kill, Node::stop] {
        end(&mut node);
        assert_eq!(node.machines(), machines, "the guest must not notice");
        node.start();
        assert_eq!(node.machines(), machines);
        assert_eq!(node.read("vms/web/status"), status, "the same tree");
        assert_eq!(node.wait(id), "running");
    }
    node.write("vms/web/ctl", "stop\n").unwrap();
    assert_eq!(node.wait(id), "stopped");
    assert_eq!(node.machines(), []);
}

/// What an ordinary user types; $B is the program, $IMAGES the images. The user is Debian's `daemon`: fusermount3 wants one with a name.
const ORDINARY: &str = r#"
set -eu
"$B" cluster init lab --data "$HOME/data" > /dev/null
exec 3< <(exec "$B" serve --data "$HOME/data" --mount "$HOME/n" --images "$IMAGES" --listen "tcp!127.0.0.1!$PORT")
node=$!
trap 'kill $node; wait $node' EXIT
read -r ready <&3
cd "$HOME/n"
id=$("$B" --at "unix!$HOME/data/sock" new vms name=web image=tiny memory=128M)
echo start > vms/$id/ctl
cat vms/$id/wait
timeout 120 grep -m 1 -o 'guest ready' vms/$id/events
cat nodes/*/status
# What the guest does to its host: 9P from its console, by way of its gateway, which is the host's own loopback.
exec 4<>vms/$id/console
for says in "$ME" "$NEW"; do
    echo "{ printf '$says'; sleep 2; } | nc 10.42.0.1 $PORT | od -An -v -tx1 | tr -d ' \n'; echo =host-\$((40 + 2))" >&4
    timeout 60 sed -u '/=host-42/q' <&4
done
exec 4<&-
cat vms/list
echo stop > vms/$id/ctl
cat vms/$id/wait
echo delete > vms/$id/ctl
cd /
"#;

/// A message of 9P2000.L as printf(1) is told it, in octal.
fn message(kind: u8, tag: u16, fields: &[&[u8]]) -> String {
    let body = fields.concat();
    let size = u32::try_from(7 + body.len()).unwrap();
    let bytes = [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes(), &body].concat();
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

fn string(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
}

/// Version, attach, walk to `path`, open with these flags and read: what a client says all at once.
fn conversation(path: &[&str], flags: u32) -> String {
    let number = |n: u32| n.to_le_bytes();
    let (root, fid, nobody) = (number(0), number(1), number(u32::MAX));
    let names: Vec<u8> = path.iter().flat_map(|name| string(name)).collect();
    let count = u16::try_from(path.len()).unwrap().to_le_bytes();
    [
        message(100, u16::MAX, &[&number(8192), &string("9P2000.L")]),
        message(104, 1, &[&root, &nobody, &string("root"), &string(""), &number(0)]),
        message(110, 2, &[&root, &fid, &count, &names]),
        message(12, 3, &[&fid, &number(flags)]),
        message(116, 4, &[&fid, &[0; 8], &number(4096)]),
    ]
    .concat()
}

/// Bytes as od(1) prints them.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ends the machines below a folder, which outlive a node that is not told to stop them: a test that fails leaves none.
struct EndsBelow(std::path::PathBuf);

impl Drop for EndsBelow {
    fn drop(&mut self) {
        let found = blixard::engine::host::process::working_below(&self.0).unwrap_or_default();
        found.into_iter().for_each(|(pid, _)| crate::support::end(pid));
    }
}

/// A port that is free now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn an_ordinary_user_has_all_but_cgroups_and_taps_and_its_guest_is_nobody() {
    let home = tempfile::Builder::new().prefix("plain").tempdir().unwrap();
    let _ends = EndsBelow(home.path().to_owned());
    let at = |name: &str| home.path().join(name).display().to_string();
    // The program, the images and a device that all may open, each where the user can get at it, in a mount namespace of its own.
    let script = format!(
        "set -eu; chmod 755 {home}; touch {B} {fuse}; mkdir {images} {user}
         mount --bind {built} {B}; mount --bind {made} {images}
         rm {fuse}; mknod -m 666 {fuse} c 10 229; mount --bind {fuse} /dev/fuse
         chown 1:1 {user}
         exec setpriv --reuid 1 --regid 1 --clear-groups --inh-caps=-all \
             env HOME={user} B={B} IMAGES={images} bash -c \"$ORDINARY\"",
        home = home.path().display(),
        B = at("blixard"),
        fuse = at("fuse"),
        images = at("images"),
        user = at("user"),
        built = env!("CARGO_BIN_EXE_blixard"),
        made = images().display(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", &script])
        .env("ORDINARY", ORDINARY)
        .env("PORT", free_port().to_string())
        .env("ME", conversation(&["me"], 0))
        .env("NEW", conversation(&["vms", "new"], 2))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{wrong}");
    assert!(said.starts_with("running\nguest ready\n") && said.ends_with("stopped\n"), "{said}\n{wrong}");
    assert!(said.contains("missing not running as root: guests have no cgroups and no taps"), "{said}");
    assert!(said.contains("guest-uid 1\n") && said.contains("network user\n"), "{said}");
    // The guest says that it is root, and its QEMU has the uid of the node's own admin.
    let answers: Vec<&str> = said.lines().filter(|line| line.contains("=host-42")).collect();
    let [me, new] = answers[..] else { panic!("the guest did not ask twice: {said}") };
    assert!([me, new].iter().all(|answer| answer.contains(&hexadecimal(b"9P2000.L"))), "it reached its host: {said}");
    assert!(me.contains(&hexadecimal(b"user none\nrole none\n")), "{said}");
    let denied = hexadecimal(&[11, 0, 0, 0, 7, 3, 0, 13, 0, 0, 0]);
    assert!(new.contains(&denied), "Tlopen for writing is EACCES: {said}");
}
