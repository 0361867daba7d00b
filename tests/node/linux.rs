//! Linux's own 9P client: Debian's kernel in a machine of its own mounts the tree through QEMU's user network, and everyday use is
//! typed at its console. `tests/transcripts/linux/*.sh` say what, and what is to be seen.

use crate::images::{images, peer};
use crate::support::Node;
use crate::transcripts::{Step, check, script, steps_of};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// A version, as mount(8) is told it, and the transcripts that hold for it.
struct Version {
    name: &'static str,
    transcripts: &'static [&'static str],
}

const VERSIONS: &[Version] = &[
    Version { name: "9p2000.L", transcripts: &["everyday.sh", "refusals.sh", "links.sh", "nonblocking.sh"] },
    Version { name: "9p2000.u", transcripts: &["everyday.sh", "refusals.sh", "links.sh"] },
    Version { name: "9p2000", transcripts: &["everyday.sh", "plain.sh"] },
];

/// What the transcripts use beside Debian's programs.
///
/// `blocked PID` waits until a process has a read that is not answered; `announce` says so of the `cat` in front of the console, at
/// which the test presses ^C.
const HELPERS: &str = r"
stty -echo -onlcr
waits() { grep -qs '^0 ' /proc/$1/syscall && grep -qs p9_client_rpc /proc/$1/wchan; }
blocked() { until waits $1; do grep -q '^State:.*zombie' /proc/$1/status && break; done; }
announce() { until reader=$(pidof cat); do :; done; blocked $reader; echo 'press ^C'; }
mounted() { mkdir -p /n/$1; mount -t 9p -o trans=tcp,port=$port,version=$1$2 10.0.2.2 /n/$1; cd /n/$1; }
";

/// The machine's command line: what makes it boot fast under emulation, and ends QEMU when it reboots.
fn kernel_arguments() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = cpu.lines().find_map(|l| l.strip_prefix("cpu MHz")?.split_once(": ")).unwrap().1;
    let khz = (mhz.parse::<f64>().unwrap() * 1e3) as u64;
    format!(
        "console=ttyS0 acpi=off tsc_early_khz={khz} lpj=4000000 tsc=reliable no_timer_check quiet loglevel=0 mitigations=off \
         random.trust_cpu=on cryptomgr.notests audit=0 apparmor=0 ipv6.disable=1 rcupdate.rcu_expedited=1 \
         8250.nr_uarts=1 panic=-1 reboot=t"
    )
}

/// The initrd with one more file in it: archives may follow each other (Linux's Documentation/driver-api/early-userspace).
fn initrd(folder: &Path, script: &str) -> std::path::PathBuf {
    std::fs::write(folder.join("script"), script).unwrap();
    let mut packer = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    packer.stdin.take().unwrap().write_all(b"script\n").unwrap();
    let packed = packer.wait_with_output().unwrap();
    assert!(packed.status.success());
    let mut bytes = std::fs::read(peer().join("initrd")).unwrap();
    bytes.extend(packed.stdout);
    let path = folder.join("initrd");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Boots the machine; the answer is what its console showed. Where it shows `press ^C`, that is done.
fn boot(script: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = Command::new("timeout")
        .args(["--kill-after=5", "150", "qemu-system-x86_64", "-M", "pc,vmport=off", "-accel", "tcg", "-m", "256"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
        .args(["-append", &kernel_arguments()])
        .arg("-kernel")
        .arg(peer().join("kernel"))
        .arg("-initrd")
        .arg(initrd(folder.path(), script))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keyboard, mut screen) = (machine.stdin.take().unwrap(), machine.stdout.take().unwrap());
    let (mut shown, mut some, mut seen) = (Vec::new(), [0; 4096], 0);
    while let Ok(count @ 1..) = screen.read(&mut some) {
        shown.extend_from_slice(&some[..count]);
        while let Some(at) = shown[seen..].windows(10).position(|w| w == b"\npress ^C\n") {
            keyboard.write_all(b"\x03").unwrap();
            seen += at + 9;
        }
    }
    let status = machine.wait().unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(status.success(), "the machine ended with {status}:\n{shown}");
    shown
}

/// A port that is free.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

mod guest {
    use super::*;

    #[test]
    fn everyday_use_in_every_version() {
        let (port, images, socket) = (free_port(), images(), tempfile::tempdir().unwrap());
        let listen = format!("unix!{}/sock", socket.path().display());
        let node = Node::with(&[
            "--hypervisor",
            "simulated",
            "--images",
            images.to_str().unwrap(),
            "--listen",
            &listen,
            "--listen",
            &format!("tcp!127.0.0.1!{port}"),
        ]);
        let mut steps: Vec<Step> = Vec::new();
        let mut typed = format!("{HELPERS}port={port}\n");
        for version in VERSIONS {
            let (name, free) = (version.name, version.name.to_lowercase());
            let these: Vec<Step> =
                version.transcripts.iter().flat_map(|file| steps_of(&format!("linux/{file}"))).collect();
            typed += &format!("mounted {name}; name={free}\n{}cd /; umount /n/{name}\n", script(&these));
            steps.extend(these);
        }
        let mounts = steps_of("linux/mounts.sh");
        typed += &script(&mounts);
        steps.extend(mounts);
        let shown = boot(&typed);
        check(&steps, &shown, &|| format!("trace:\n{}\nconsole:\n{shown}", node.trace_text()));
    }
}
