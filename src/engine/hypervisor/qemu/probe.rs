//! What works on this host: is QEMU there, and does KVM really run a machine?

use super::{Accelerator, as_user};
use crate::engine::host::command::{package, run};
use crate::engine::hypervisor::Capabilities;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long the attempt with KVM may take: a working one needs a tenth of a second.
const KVM_WITHIN: Duration = Duration::from_secs(5);
/// KVM's device.
const KVM: &str = "/dev/kvm";
/// What the kernel has below this if KVM runs on the processor's own virtualisation. Others that offer the device (pvm) run
/// the firmware of a machine, and stop at instructions of usual kernels.
const KVM_OF_PROCESSORS: [&str; 2] = ["/sys/module/kvm_intel", "/sys/module/kvm_amd"];
/// What the host keeps of its memory for itself: a part of 8.
const KEPT_PART: u64 = 8;

/// The group that may use KVM's device.
pub(super) fn kvm_group() -> Option<u32> {
    const GROUP_READS_AND_WRITES: u32 = 0o060;
    let metadata = std::fs::metadata(KVM).ok()?;
    (metadata.mode() & GROUP_READS_AND_WRITES == GROUP_READS_AND_WRITES).then(|| metadata.gid())
}

pub(super) async fn probe(binary: &str, run_as: Option<(u32, u32)>) -> (Accelerator, Capabilities) {
    let mut capabilities = Capabilities { memory_bytes: memory_for_guests(), ..Capabilities::default() };
    match run(binary, &["--version"]).await {
        Ok(said) => capabilities.version = version(&String::from_utf8_lossy(&said)),
        Err(error) => {
            let sentence = format!("no VM can run here: {error} (apt-get install {})", package("qemu-system-x86_64"));
            capabilities.warnings.push(sentence);
            "none".clone_into(&mut capabilities.accelerator);
            return (Accelerator::Tcg, capabilities);
        }
    }
    let accelerator = match kvm_works(binary, run_as).await {
        Ok(()) => Accelerator::Kvm,
        Err(why) => {
            capabilities.warnings.push(format!("guests are emulated (TCG) and slow: {why}"));
            Accelerator::Tcg
        }
    };
    (if accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }).clone_into(&mut capabilities.accelerator);
    (accelerator, capabilities)
}

/// "QEMU 7.2.22" of "QEMU emulator version 7.2.22 (Debian ...)".
fn version(said: &str) -> String {
    let number = said.split_whitespace().skip_while(|w| *w != "version").nth(1).unwrap_or("of unknown version");
    format!("QEMU {number}")
}

/// The presence of /dev/kvm proves nothing: it may be there and not be able to run a usual CPU, or not for this user. So a machine
/// without memory worth mentioning is made as guests' are, with its CPU, and ended.
async fn kvm_works(binary: &str, run_as: Option<(u32, u32)>) -> Result<(), String> {
    std::fs::metadata(KVM).map_err(|e| format!("{KVM}: {e}"))?;
    if !KVM_OF_PROCESSORS.iter().any(|module| Path::new(module).exists()) {
        return Err(format!("{KVM} is there, but not by the processor's own virtualisation (kvm_intel or kvm_amd)"));
    }
    let arguments =
        ["-accel", "kvm", "-cpu", "host", "-machine", "q35,sata=off,usb=off", "-nodefaults", "-no-user-config"];
    let user = run_as.map(|ids| as_user(ids, Accelerator::Kvm)).unwrap_or_default();
    let mut words = user.iter().map(String::as_str).chain([binary]);
    let mut command = Command::new(words.next().unwrap_or(binary));
    command.args(words).args(arguments).args(["-m", "16M", "-display", "none", "-S", "-qmp", "stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let attempt = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A process that has ended already is told by its status.
            let _ = stdin
                .write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"cont\"}{\"execute\":\"quit\"}\n")
                .await;
            return child.wait().await;
        }
        child.wait().await
    };
    match tokio::time::timeout(KVM_WITHIN, attempt).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!(
            "{KVM} is there, but a machine made with it ended with {status}: may its group (kvm) read and write it?"
        )),
        Ok(Err(error)) => Err(format!("a machine with KVM could not be tried: {error}")),
        Err(_elapsed) => Err(format!("{KVM} is there, but a machine made with it hung for {}s", KVM_WITHIN.as_secs())),
    }
}

fn memory_for_guests() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let total_bytes = total.unwrap_or(0).saturating_mul(1024);
    // In whole units of what a VM may have.
    (total_bytes - total_bytes / KEPT_PART) >> 20 << 20
}
