//! What works on this host: is QEMU there, and does KVM really run a machine?

use super::Accelerator;
use crate::engine::host::command::{package, run};
use crate::engine::hypervisor::Capabilities;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long the attempt with KVM may take: a working one needs a tenth of a second.
const KVM_WITHIN: Duration = Duration::from_secs(5);
/// What the host keeps of its memory for itself: a part of 8.
const KEPT_PART: u64 = 8;

pub(super) async fn probe(binary: &str) -> (Accelerator, Capabilities) {
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
    let accelerator = match kvm_works(binary).await {
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

/// The presence of /dev/kvm proves nothing: it may be there and not be able to run a usual CPU. So a machine without memory
/// worth mentioning is made, with its CPU, and ended.
async fn kvm_works(binary: &str) -> Result<(), String> {
    std::fs::File::options().read(true).write(true).open("/dev/kvm").map_err(|e| format!("/dev/kvm: {e}"))?;
    let arguments =
        ["-accel", "kvm", "-cpu", "host", "-machine", "q35,sata=off,usb=off", "-nodefaults", "-no-user-config"];
    let mut command = Command::new(binary);
    command.args(arguments).args(["-m", "16M", "-display", "none", "-S", "-qmp", "stdio"]);
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
        Ok(Ok(status)) => Err(format!("/dev/kvm is there, but a machine made with it ended with {status}")),
        Ok(Err(error)) => Err(format!("a machine with KVM could not be tried: {error}")),
        Err(_elapsed) => {
            Err(format!("/dev/kvm is there, but a machine made with it hung for {}s", KVM_WITHIN.as_secs()))
        }
    }
}

fn memory_for_guests() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let total_bytes = total.unwrap_or(0).saturating_mul(1024);
    // In whole units of what a VM may have.
    (total_bytes - total_bytes / KEPT_PART) >> 20 << 20
}
