//! One running machine.

use super::channel::Channel;
use super::console::ConsoleLine;
use super::fence::FenceProcess;
use super::launch::complaint;
use super::monitor::{Event, Monitor};
use crate::engine::host::figures::of_process;
use crate::engine::host::process::Process;
use crate::engine::hypervisor::{
    Console, DiskFigures, Exit, HypervisorError, Instance, MachineFigures, Record, Running,
};
use async_trait::async_trait;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

/// How long the guest's agent may take to say that it powers off; then the power button has to do.
const POWER_OFF_WITHIN: Duration = Duration::from_secs(2);
/// How long a process whose guest went off may take to end by itself; then it is killed.
const QUITS_WITHIN: Duration = Duration::from_secs(10);

/// A machine's processes and connections, as they were found.
pub(super) struct Parts {
    pub(super) record: Record,
    pub(super) run_dir: PathBuf,
    pub(super) process: Process,
    pub(super) fence: Option<FenceProcess>,
    pub(super) monitor: Monitor,
    pub(super) console: ConsoleLine,
    pub(super) channel: Channel,
}

/// A process, its three connections, and who watches for its end.
#[derive(Debug)]
pub(super) struct QemuInstance {
    record: Record,
    process: Arc<Process>,
    fence: Option<Arc<FenceProcess>>,
    monitor: Arc<Monitor>,
    console: ConsoleLine,
    channel: Channel,
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<Exit>>,
    _watcher: AbortOnDropHandle<()>,
}

impl QemuInstance {
    pub(super) async fn new(parts: Parts) -> Result<QemuInstance, HypervisorError> {
        let Parts { record, run_dir, process, fence, monitor, console, channel } = parts;
        // Listening before asking: an end between the two is seen by one of them.
        let events = monitor.events();
        let found = stopped_for_good(&status(&monitor).await?);
        let (process, monitor, killed) = (Arc::new(process), Arc::new(monitor), Arc::new(AtomicBool::new(false)));
        let (ended, exit) = watch::channel(None);
        let fence = fence.map(Arc::new);
        let watching = watch_end(process.clone(), fence.clone(), monitor.clone(), events, killed.clone(), run_dir);
        let watcher = tokio::spawn(async move {
            let exit = match found {
                Some(exit) => exit,
                None => watching.await,
            };
            ended.send_replace(Some(exit));
        });
        let _watcher = AbortOnDropHandle::new(watcher);
        Ok(QemuInstance { record, process, fence, monitor, console, channel, killed, exit, _watcher })
    }
}

/// QEMU's word for what the machine is doing.
async fn status(monitor: &Monitor) -> Result<String, HypervisorError> {
    let said = monitor.execute("query-status").await?;
    Ok(said.get("status").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
}

/// The sum of what QEMU says of each disk.
fn disks(said: &serde_json::Value) -> DiskFigures {
    let all = said.as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |key: &str| {
        let of = all.iter().filter_map(|disk| disk.get("stats")?.get(key)?.as_u64());
        of.fold(0, u64::saturating_add)
    };
    DiskFigures {
        reads: sum("rd_operations"),
        read_bytes: sum("rd_bytes"),
        writes: sum("wr_operations"),
        written_bytes: sum("wr_bytes"),
    }
}

/// What a machine came to that will never run again, though its process is there.
fn stopped_for_good(status: &str) -> Option<Exit> {
    match status {
        "shutdown" => Some(Exit::PoweredOff),
        "internal-error" => Some(Exit::Crashed(
            "QEMU stopped the guest for an error of its own or of KVM: what it did can't be run here; see the log"
                .to_owned(),
        )),
        _ => None,
    }
}

/// Until the machine is no more. A guest that went off leaves its process to us.
async fn watch_end(
    process: Arc<Process>,
    fence: Option<Arc<FenceProcess>>,
    monitor: Arc<Monitor>,
    mut events: broadcast::Receiver<Event>,
    killed: Arc<AtomicBool>,
    run_dir: PathBuf,
) -> Exit {
    let unfenced = async {
        match &fence {
            Some(fence) => fence.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(unfenced);
    loop {
        tokio::select! {
            () = process.ended() => break,
            () = &mut unfenced => {
                // The kernel has seen to that already, unless the process has told it not to.
                if let Err(error) = process.kill() {
                    tracing::error!(pid = process.pid(), %error, "its fence is gone, and it can't be killed");
                }
                process.ended().await;
                break;
            }
            event = events.recv() => match event {
                Ok(Event::GuestShutdown) => return Exit::PoweredOff,
                Ok(Event::GuestReset) => tracing::info!(run_dir = %run_dir.display(), "the guest has reset itself"),
                // Lost events, or stopped CPUs: ask for what.
                Ok(Event::Stopped) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    if let Some(exit) = status(&monitor).await.ok().and_then(|status| stopped_for_good(&status)) {
                        return exit;
                    }
                }
                // A closed monitor: the process is ending.
                Err(broadcast::error::RecvError::Closed) => {
                    process.ended().await;
                    break;
                }
            },
        }
    }
    if let Some(fence) = &fence
        && fence.has_ended_it().await
    {
        return Exit::Fenced;
    }
    if killed.load(Ordering::Relaxed) {
        Exit::Killed
    } else {
        let said = complaint("qemu", &run_dir);
        Exit::Crashed(format!("QEMU (process {}) ended by itself or was killed from outside: {said}", process.pid()))
    }
}

#[async_trait]
impl Instance for QemuInstance {
    fn record(&self) -> Record {
        self.record.clone()
    }

    async fn running(&self) -> Result<Running, HypervisorError> {
        match status(&self.monitor).await?.as_str() {
            "running" => Ok(Running::Running),
            status if stopped_for_good(status).is_some() => Err(HypervisorError::Gone),
            _ => Ok(Running::Paused),
        }
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.monitor.execute("stop").await.map(drop)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.monitor.execute("cont").await.map(drop)
    }

    async fn power_down(&self) -> Result<(), HypervisorError> {
        // A stopped CPU hears neither.
        self.resume().await?;
        if self.channel.is_ready() && self.channel.power_off(POWER_OFF_WITHIN).await.is_ok() {
            return Ok(());
        }
        self.monitor.execute("system_powerdown").await.map(drop)
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        self.killed.store(true, Ordering::Relaxed);
        self.process.kill().map_err(|e| HypervisorError::Transient(format!("process {}: {e}", self.record.pid)))
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The watcher lives as long as we do.
        told.unwrap_or_else(|| Exit::Crashed("nobody watched its end".to_owned()))
    }

    async fn discard(&self) {
        let quits = async {
            // It may be gone already, or hang; the deadline is for both.
            let _ = self.monitor.execute("quit").await;
            self.process.ended().await;
        };
        if tokio::time::timeout(QUITS_WITHIN, quits).await.is_err()
            && let Err(error) = self.process.kill()
        {
            tracing::warn!(pid = self.record.pid, %error, "does not quit and can't be killed");
        }
        // Whoever waits for it takes it off the kernel's list of processes.
        if let Some(fence) = &self.fence {
            fence.ends_too().await;
        }
    }

    async fn guest_ready(&self) -> Result<(), HypervisorError> {
        self.channel.ready().await
    }

    async fn guest_run(&self, command: &str, deadline: Duration) -> Result<(i32, Vec<u8>), HypervisorError> {
        self.channel.run(command, deadline).await
    }

    async fn figures(&self) -> Result<MachineFigures, HypervisorError> {
        let said = self.monitor.execute("query-blockstats").await?;
        let process = of_process(self.record.pid).map_err(|error| HypervisorError::Transient(error.to_string()))?;
        Ok(MachineFigures { process: Some(process.ok_or(HypervisorError::Gone)?), disks: Some(disks(&said)) })
    }

    async fn console(&self) -> Result<Console, HypervisorError> {
        self.console.open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_added_up() {
        let disk = |bytes: u64| serde_json::json!({"device": "d", "stats": {"rd_bytes": bytes, "rd_operations": 2, "wr_bytes": 1, "wr_operations": 1}});
        let said = serde_json::json!([disk(512), disk(1024), {"device": "empty"}]);
        let expected = DiskFigures { reads: 4, read_bytes: 1536, writes: 2, written_bytes: 2 };
        assert_eq!(disks(&said), expected);
        assert_eq!(disks(&serde_json::json!({})), DiskFigures::default());
    }
}
