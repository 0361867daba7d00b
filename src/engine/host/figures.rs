//! Figures of this host and of processes on it, as the kernel has them: proc(5).

use super::HostError;
use super::process::{fields, is_gone};
use std::time::Duration;

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// Time on a CPU, of all its threads.
    pub cpu: Duration,
    /// Memory that it has now, in bytes.
    pub resident_bytes: u64,
}

/// What has gone over a network device, as the host sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceFigures {
    /// Bytes that the host received from it.
    pub received_bytes: u64,
    /// Packets that the host received from it.
    pub received_packets: u64,
    /// Bytes that the host sent to it.
    pub sent_bytes: u64,
    /// Packets that the host sent to it.
    pub sent_packets: u64,
}

/// What a host has, and how busy it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFigures {
    /// Since it was started.
    pub uptime: Duration,
    /// Processes that ran or waited for a CPU or a disk, on the average of one, five and fifteen minutes.
    pub load: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// What programs could have of it, in bytes.
    pub available_bytes: u64,
}

fn read(path: &str) -> Result<String, HostError> {
    std::fs::read_to_string(path).map_err(|error| HostError::io(path, error))
}

fn odd(path: &str) -> HostError {
    HostError::io(path, "what is in it can't be understood")
}

/// Of a process; None: it has ended.
///
/// # Errors
/// The kernel does not say.
pub fn of_process(pid: u32) -> Result<Option<ProcessFigures>, HostError> {
    let (stat_path, status_path) = (format!("/proc/{pid}/stat"), format!("/proc/{pid}/status"));
    let [stat, status] = [&stat_path, &status_path].map(|path| match std::fs::read(path) {
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(HostError::io(path, error)),
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
    });
    let (Some(stat), Some(status)) = (stat?, status?) else { return Ok(None) };
    let ticks = cpu_ticks(&stat).ok_or_else(|| odd(&stat_path))?;
    let cpu_ms = ticks.saturating_mul(1_000) / rustix::param::clock_ticks_per_second().max(1);
    // What has ended, and was not waited for, has none.
    let resident_bytes = kib(&status, "VmRSS:").unwrap_or(0);
    Ok(Some(ProcessFigures { cpu: Duration::from_millis(cpu_ms), resident_bytes }))
}

/// Fields 14 and 15 of /proc/PID/stat: in user and in kernel mode.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = fields(stat)?.skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()?.saturating_add(next()?))
}

/// The bytes of a line `KEY  COUNT kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Of a network device of this process's network namespace; None: there is none of that name.
///
/// # Errors
/// The kernel does not say.
pub fn of_device(name: &str) -> Result<Option<DeviceFigures>, HostError> {
    // Not below /sys, which shows the namespace in which it was mounted.
    let path = "/proc/thread-self/net/dev";
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    line.map(|line| device(line).ok_or_else(|| odd(path))).transpose()
}

fn device(line: &str) -> Option<DeviceFigures> {
    let columns: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let at = |nth: usize| columns.get(nth).copied();
    Some(DeviceFigures { received_bytes: at(0)?, received_packets: at(1)?, sent_bytes: at(8)?, sent_packets: at(9)? })
}

/// Of this host.
///
/// # Errors
/// The kernel does not say.
pub fn of_host() -> Result<HostFigures, HostError> {
    let (uptime, load, memory) = (read("/proc/uptime")?, read("/proc/loadavg")?, read("/proc/meminfo")?);
    let seconds = uptime.split(['.', ' ']).next().and_then(|s| s.parse().ok()).ok_or_else(|| odd("/proc/uptime"))?;
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    let of = |key| kib(&memory, key).ok_or_else(|| odd("/proc/meminfo"));
    Ok(HostFigures {
        uptime: Duration::from_secs(seconds),
        load: load.join(" "),
        memory_bytes: of("MemTotal:")?,
        available_bytes: of("MemAvailable:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_what_it_has_used() {
        let own = || of_process(std::process::id()).unwrap().unwrap();
        let (before, begun) = (own(), std::time::Instant::now());
        let ballast = vec![1_u8; 64 << 20];
        while own().cpu < before.cpu + Duration::from_millis(50) {
            assert!(begun.elapsed() < Duration::from_secs(60), "its time does not go on");
        }
        assert!(own().resident_bytes >= before.resident_bytes + (32 << 20), "{}", ballast.len());
        assert_eq!(of_process(u32::MAX / 2).unwrap(), None);
    }

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 120 30 0 0 20 0 9 0 500 1 2";
        assert_eq!(cpu_ticks(stat), Some(150));
        assert_eq!(kib("VmPeak:\t  9 kB\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12 << 10));
        let line = " 1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0";
        let figures = DeviceFigures { received_bytes: 1000, received_packets: 10, sent_bytes: 2000, sent_packets: 20 };
        assert_eq!(device(line), Some(figures));
        assert_eq!(device(" 1 2 x"), None);
        assert!(of_device("lo").unwrap().is_some());
        assert_eq!(of_device("no-such-device").unwrap(), None);
        let host = of_host().unwrap();
        assert!(host.available_bytes > 0 && host.available_bytes <= host.memory_bytes, "{host:?}");
        assert!(host.load.split(' ').count() == 3 && host.uptime > Duration::ZERO, "{host:?}");
    }
}
