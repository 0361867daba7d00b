//! One list of promises for every hypervisor: QEMU with real guests, and the simulated one, which has to be like it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../images/mod.rs"]
mod images;

use blixard::engine::hypervisor::{
    Exit, Hypervisor, HypervisorError, Instance, Machine, Nic, Qemu, Record, Running, Simulated,
};
use images::images;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bed {
    folder: tempfile::TempDir,
    images: PathBuf,
    record: Mutex<Option<Record>>,
}

impl Bed {
    fn new() -> Bed {
        Bed {
            folder: tempfile::Builder::new().prefix("hv").tempdir().unwrap(),
            images: images(),
            record: Mutex::new(None),
        }
    }

    fn machine(&self, generation: u64) -> Machine {
        let run_dir = self.folder.path().join("vms/7").join(generation.to_string());
        std::fs::create_dir_all(&run_dir).unwrap();
        Machine {
            vm: 7,
            generation,
            uuid: "11111111-2222-4333-8444-555555555555".into(),
            cpus: 1,
            memory_bytes: 128 << 20,
            kernel: self.images.join("tiny/kernel"),
            initrd: self.images.join("tiny/initrd"),
            cmdline: "quiet loglevel=4 mitigations=off cryptomgr.notests rcupdate.rcu_expedited=1".into(),
            disk: None,
            nic: Some(Nic {
                tap: None,
                mac: "52:54:00:00:00:07".into(),
                addresses: vec![("10.42.0.7".parse().unwrap(), 16)],
                gateways: vec!["10.42.0.1".parse().unwrap()],
            }),
            run_dir,
            run_as: rustix::process::geteuid().is_root().then_some((2_000_000_007, 2_000_000_007)),
            cgroups: Vec::new(),
            fence: None,
        }
    }

    async fn launch(
        &self,
        hypervisor: &dyn Hypervisor,
        machine: &Machine,
    ) -> Result<Arc<dyn Instance>, HypervisorError> {
        let write = |record: &Record| {
            *self.record.lock().unwrap() = Some(record.clone());
            Ok(())
        };
        hypervisor.launch(machine, &write).await
    }

    fn record(&self) -> Record {
        self.record.lock().unwrap().clone().unwrap()
    }
}

impl Drop for Bed {
    /// Ends what a failed test leaves running.
    fn drop(&mut self) {
        for (pid, _) in blixard::engine::host::process::working_below(self.folder.path()).unwrap() {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

async fn lives_pauses_and_powers_down(hypervisor: &dyn Hypervisor) {
    let bed = Bed::new();
    let machine = bed.machine(1);
    let instance = bed.launch(hypervisor, &machine).await.unwrap();
    assert_eq!(instance.record(), bed.record());
    assert_eq!(instance.running().await, Ok(Running::Running));
    within("ready", instance.guest_ready()).await.unwrap();
    instance.pause().await.unwrap();
    instance.pause().await.unwrap();
    assert_eq!(instance.running().await, Ok(Running::Paused));
    instance.resume().await.unwrap();
    assert_eq!(instance.running().await, Ok(Running::Running));
    assert!(!hypervisor.console_log(&machine.run_dir).unwrap().is_empty());
    instance.power_down().await.unwrap();
    assert_eq!(within("off", instance.exited()).await, Exit::PoweredOff);
    assert_eq!(instance.running().await, Err(HypervisorError::Gone));
    within("discarded", instance.discard()).await;
    within("discarded again", instance.discard()).await;
    assert!(matches!(hypervisor.adopt(&machine, Some(&bed.record())).await, Err(HypervisorError::Gone)));
}

async fn is_killed_and_found_again(hypervisor: &dyn Hypervisor) {
    let bed = Bed::new();
    let machine = bed.machine(1);
    drop(bed.launch(hypervisor, &machine).await.unwrap());
    // The machine goes on without us, and is taken back: by its record, or, if that was not written, by its folder.
    let vms = bed.folder.path().join("vms");
    assert_eq!(hypervisor.orphans(&vms, std::slice::from_ref(&machine.run_dir)).await.unwrap(), []);
    assert_eq!(hypervisor.orphans(&vms, &[]).await.unwrap(), [(bed.record(), machine.run_dir.clone())]);
    drop(hypervisor.adopt(&machine, Some(&bed.record())).await.unwrap());
    let instance = hypervisor.adopt(&machine, None).await.unwrap();
    assert_eq!(instance.record(), bed.record());
    assert_eq!(instance.running().await, Ok(Running::Running));
    instance.kill().await.unwrap();
    instance.kill().await.unwrap();
    assert_eq!(within("killed", instance.exited()).await, Exit::Killed);
    assert_eq!(hypervisor.orphans(&vms, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn simulated_machines() {
    lives_pauses_and_powers_down(&Simulated::default()).await;
    is_killed_and_found_again(&Simulated::default()).await;
}

mod guest {
    use super::*;

    mod fence;

    fn qemu() -> Qemu {
        Qemu::new("qemu-system-x86_64").fenced_by(env!("CARGO_BIN_EXE_blixard").into())
    }

    #[tokio::test]
    async fn qemu_lives_pauses_and_powers_down() {
        lives_pauses_and_powers_down(&qemu()).await;
    }

    #[tokio::test]
    async fn qemu_is_killed_and_found_again() {
        is_killed_and_found_again(&qemu()).await;
    }

    #[tokio::test]
    async fn a_guest_answers_prints_and_types() {
        let (bed, qemu) = (Bed::new(), qemu());
        let machine = bed.machine(1);
        let instance = bed.launch(&qemu, &machine).await.unwrap();
        within("ready", instance.guest_ready()).await.unwrap();
        let (status, said) = instance.guest_run("ip -o addr show eth0; exit 3", PATIENCE).await.unwrap();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(status, 3, "{said}");
        assert!(said.contains("10.42.0.7/16"), "{said}");
        let (status, said) = instance.guest_run("ping -c 1 -w 30 10.42.0.1", PATIENCE).await.unwrap();
        assert_eq!(status, 0, "its gateway answers: {}", String::from_utf8_lossy(&said));

        let mut console = instance.console().await.unwrap();
        console.input.send("\necho typed-$((40 + 2))\n".into()).await.unwrap();
        let mut seen = String::new();
        within("the shell's answer", async {
            while !seen.contains("typed-42") {
                seen.push_str(&String::from_utf8_lossy(&console.output.recv().await.unwrap()));
            }
        })
        .await;
        let log = String::from_utf8_lossy(&qemu.console_log(&machine.run_dir).unwrap()).into_owned();
        assert!(log.contains("Linux version") && log.contains("blixard: ready"), "{log}");

        // Its own power-off is known as such, and its reset is none.
        let record = instance.record();
        drop(instance.guest_run("(sleep 0.2; reboot -f) >/dev/null 2>&1 &", PATIENCE).await);
        let mut marks = 1;
        within("a second boot", async {
            while marks < 2 {
                seen.push_str(&String::from_utf8_lossy(&console.output.recv().await.unwrap()));
                marks = 1 + seen.matches("blixard: ready").count();
            }
        })
        .await;
        assert_eq!(instance.running().await, Ok(Running::Running));
        assert_eq!(instance.record(), record);
        console.input.send("poweroff -f\n".into()).await.unwrap();
        assert_eq!(within("off", instance.exited()).await, Exit::PoweredOff);
    }

    #[tokio::test]
    async fn a_power_off_is_known_although_nobody_was_there() {
        let (bed, qemu) = (Bed::new(), qemu());
        let machine = bed.machine(1);
        let instance = bed.launch(&qemu, &machine).await.unwrap();
        within("ready", instance.guest_ready()).await.unwrap();
        let console = instance.console().await.unwrap();
        console.input.send("sleep 1; poweroff -f\n".into()).await.unwrap();
        let (_, echoed) = instance.guest_run("true", PATIENCE).await.unwrap();
        assert!(echoed.is_empty());
        drop((instance, console));
        // The guest goes off while no daemon is connected; its process stays and tells.
        tokio::time::sleep(Duration::from_secs(3)).await;
        for _ in 0..2 {
            // Whoever has heard of it may die before it is told further: the process waits until it is discarded.
            let instance = qemu.adopt(&machine, Some(&bed.record())).await.unwrap();
            assert_eq!(within("off", instance.exited()).await, Exit::PoweredOff);
        }
        let instance = qemu.adopt(&machine, Some(&bed.record())).await.unwrap();
        within("discarded", instance.discard()).await;
        assert!(matches!(qemu.adopt(&machine, Some(&bed.record())).await, Err(HypervisorError::Gone)));
    }

    #[tokio::test]
    async fn a_crash_is_told_from_an_end() {
        let (bed, qemu) = (Bed::new(), qemu());
        let instance = bed.launch(&qemu, &bed.machine(1)).await.unwrap();
        let pid = rustix::process::Pid::from_raw(instance.record().pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert!(
            matches!(within("gone", instance.exited()).await, Exit::Crashed(why) if why.contains("killed from outside"))
        );
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_why_and_leaves_nothing() {
        let bed = Bed::new();
        let refused = async |binary: &str, machine: &Machine| {
            let error = bed.launch(&Qemu::new(binary), machine).await.err().expect("it must be refused");
            assert_eq!(blixard::engine::host::process::working_below(bed.folder.path()).unwrap(), [], "{error}");
            error
        };
        let binary = "qemu-system-x86_64";
        let error = refused("qemu-that-is-not-there", &bed.machine(1)).await;
        assert!(
            matches!(&error, HypervisorError::Permanent(s) if s.contains("apt-get install qemu-system-x86")),
            "{error}"
        );

        let bad = bed.folder.path().join("bad");
        std::fs::write(&bad, "this is no kernel").unwrap();
        let error = refused(binary, &Machine { kernel: bad.clone(), ..bed.machine(2) }).await;
        assert!(matches!(&error, HypervisorError::Permanent(s) if s.contains("neither an ELF")), "{error}");
        let error = refused(binary, &Machine { initrd: bed.folder.path().join("none"), ..bed.machine(3) }).await;
        assert!(matches!(&error, HypervisorError::Permanent(s) if s.contains("incomplete")), "{error}");

        let machine = bed.machine(4);
        std::fs::write(machine.run_dir.join("qmp"), "").unwrap();
        let error = refused(binary, &machine).await;
        assert!(error.to_string().contains("in use"), "{error}");

        let error = refused(binary, &Machine { memory_bytes: 1 << 46, ..bed.machine(5) }).await;
        assert!(error.to_string().contains("memory"), "{error}");

        let nic = Nic { tap: Some("bxnosuchtap".into()), ..bed.machine(6).nic.unwrap() };
        let error = refused(binary, &Machine { nic: Some(nic), ..bed.machine(6) }).await;
        assert!(error.to_string().contains("tap"), "{error}");
    }

    #[tokio::test]
    async fn a_probe_finds_an_accelerator_that_works() {
        let found = qemu().probe(None).await;
        assert!(found.version.starts_with("QEMU "), "{found:?}");
        assert!(["kvm", "tcg"].contains(&found.accelerator.as_str()), "{found:?}");
        assert_eq!(found.accelerator == "tcg", found.warnings.iter().any(|w| w.contains("TCG")), "{found:?}");
        let missing = Qemu::new("qemu-that-is-not-there").probe(None).await;
        assert!(missing.warnings[0].contains("apt-get install qemu-system-x86"), "{missing:?}");
    }
}
