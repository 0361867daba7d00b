//! From a machine to a process whose monitor answers, and back to one that runs already.
//!
//! The three sockets are made here and handed down as descriptors: who connects is queued by the kernel from the first moment on, so
//! nothing has to be waited for but the monitor's greeting. A shell opens the files to boot, then becomes `setsid`, `setpriv`
//! and QEMU in turn: one process, one pid, and no descriptor that a process started at the same moment might inherit. With a fence
//! (`fence.rs`) that shell is the fence's child.

use super::arguments::{CHANNEL_FD, INITRD_FD, KERNEL_FD, arguments};
use super::channel::Channel;
use super::console::ConsoleLine;
use super::fence::{self, FenceProcess, Pipe};
use super::instance::{Parts, QemuInstance};
use super::monitor::Monitor;
use super::{Accelerator, as_user, files, record_of};
use crate::engine::host::command::package;
use crate::engine::host::process::{Process, boot_id};
use crate::engine::hypervisor::{HypervisorError, Instance, Machine, Record, Spawned, no_record};
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::net::UnixStream;

/// How much of what QEMU complained about goes into a sentence, in bytes.
const COMPLAINT_BYTES_MAX: u64 = 400;

/// What is run for a machine.
pub(super) struct Programs<'p> {
    /// QEMU's binary.
    pub(super) qemu: &'p str,
    /// A blixard, for fences.
    pub(super) fence: Option<&'p Path>,
}

pub(super) async fn launch(
    programs: &Programs<'_>,
    accelerator: Accelerator,
    machine: &Machine,
    spawned: Spawned<'_>,
) -> Result<Arc<dyn Instance>, HypervisorError> {
    check_kernel(&machine.kernel)?;
    readable(&machine.initrd)?;
    let pipe = machine.fence.as_ref().map(|_| Pipe::make(&machine.run_dir)).transpose()?;
    let mut command = command(programs, accelerator, machine, pipe.as_ref())?;
    let mut child =
        command.spawn().map_err(|e| HypervisorError::Transient(format!("no process could be started: {e}")))?;
    let pid = child.id();
    let found = record_of(pid).and_then(|record| match record {
        Some(record) => open(&record).map(|process| (record, process)),
        None => Err(HypervisorError::Gone),
    });
    let (record, process) = match found {
        Ok(found) => found,
        Err(error) => {
            // It is our child, so its number is its own until we have looked.
            let ended = child.kill().and_then(|()| child.wait());
            ended.map_err(|e| HypervisorError::Transient(format!("process {pid} can't be ended: {e}")))?;
            return Err(gone_or(error, programs.qemu, machine));
        }
    };
    // The fence, if there is one, comes first: while it is there it may make the other.
    let mut processes = vec![process];
    let launched = async {
        let record = match pipe {
            Some(pipe) => {
                let first = processes.first().ok_or(HypervisorError::Gone)?;
                let record = pipe.told(first).await?;
                processes.push(open(&record)?);
                record
            }
            None => record,
        };
        spawned(&record).map_err(|error| no_record(&error))?;
        if machine.fence.is_none() {
            join_cgroups(machine, pid)?;
        }
        let process = processes.last().ok_or(HypervisorError::Gone)?;
        tokio::select! {
            attached = attach(machine, &record) => attached,
            () = process.ended() => Err(HypervisorError::Gone),
        }
    };
    match launched.await {
        Err(error) => {
            for process in processes {
                let killed = process.kill();
                process.ended().await;
                let pid = process.pid();
                killed.map_err(|e| HypervisorError::Transient(format!("process {pid} can't be ended: {e}")))?;
            }
            Err(gone_or(error, programs.qemu, machine))
        }
        launched => launched,
    }
}

/// A fence does so itself, before it starts the machine.
fn join_cgroups(machine: &Machine, pid: u32) -> Result<(), HypervisorError> {
    for cgroup in &machine.cgroups {
        let file = cgroup.join("cgroup.procs");
        let joined = std::fs::write(&file, pid.to_string());
        joined.map_err(|e| HypervisorError::Transient(format!("{}: {e}", file.display())))?;
    }
    Ok(())
}

/// Of a process that was gone as soon as it was there: what it complained about.
fn gone_or(error: HypervisorError, binary: &str, machine: &Machine) -> HypervisorError {
    if error == HypervisorError::Gone { explain(&complaint(binary, &machine.run_dir)) } else { error }
}

/// Connects to a machine that runs.
pub(super) async fn attach(machine: &Machine, record: &Record) -> Result<Arc<dyn Instance>, HypervisorError> {
    if boot_id().is_ok_and(|id| id != record.boot_id) {
        return Err(HypervisorError::Gone);
    }
    let process = open(record)?;
    let fence = match machine.fence.is_some().then(|| FenceProcess::of(&process, &machine.run_dir)).transpose()? {
        // Nothing would end it in time: it must not run.
        Some(None) => {
            tracing::warn!(pid = record.pid, "a machine that is to have a fence has none, and is ended");
            process.kill().map_err(|e| HypervisorError::Transient(format!("process {}: {e}", record.pid)))?;
            process.ended().await;
            return Err(HypervisorError::Gone);
        }
        fence => fence.flatten(),
    };
    let folder = folder(&machine.run_dir)?;
    let monitor = Monitor::connect(connect(&folder, files::MONITOR).await?).await?;
    let uuid = monitor.execute("query-uuid").await?;
    if uuid.get("UUID").and_then(serde_json::Value::as_str) != Some(machine.uuid.as_str()) {
        return Err(HypervisorError::Gone);
    }
    let console = ConsoleLine::new(connect(&folder, files::CONSOLE).await?, machine.run_dir.join(files::CONSOLE_LOG));
    let channel = Channel::new(connect(&folder, files::CHANNEL).await?)?;
    let (record, run_dir) = (record.clone(), machine.run_dir.clone());
    let parts = Parts { record, run_dir, process, fence, monitor, console, channel };
    Ok(Arc::new(QemuInstance::new(parts).await?))
}

pub(super) fn open(record: &Record) -> Result<Process, HypervisorError> {
    match Process::open(record.pid, record.start_ticks) {
        Ok(Some(process)) => Ok(process),
        Ok(None) => Err(HypervisorError::Gone),
        Err(error) => Err(HypervisorError::Transient(format!("process {}: {error}", record.pid))),
    }
}

/// The run folder as a descriptor: paths through it are short, and a socket's may have 107 bytes at most.
fn folder(run_dir: &Path) -> Result<OwnedFd, HypervisorError> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(run_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| HypervisorError::Transient(format!("{}: {e}", run_dir.display())))
}

fn short(folder: &OwnedFd, file: &str) -> String {
    format!("/proc/self/fd/{}/{file}", folder.as_raw_fd())
}

async fn connect(folder: &OwnedFd, file: &str) -> Result<UnixStream, HypervisorError> {
    UnixStream::connect(short(folder, file)).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => HypervisorError::Gone,
        _ => HypervisorError::Transient(format!("the machine's socket {file}: {error}")),
    })
}

/// A listening socket that QEMU is to be handed.
fn listen(folder: &OwnedFd, run_dir: &Path, file: &str) -> Result<Stdio, HypervisorError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => HypervisorError::Permanent(format!(
            "the socket {} is in use: another machine, or what is left of one, has it; delete the file if nothing uses it",
            run_dir.join(file).display()
        )),
        _ => HypervisorError::Transient(format!("the socket {}: {error}", run_dir.join(file).display())),
    };
    let listener = UnixListener::bind(short(folder, file)).map_err(failed)?;
    Ok(Stdio::from(OwnedFd::from(listener)))
}

/// The command of a machine, and of its fence, which has the same sockets until it has handed them on.
fn command(
    programs: &Programs<'_>,
    accelerator: Accelerator,
    machine: &Machine,
    pipe: Option<&Pipe>,
) -> Result<Command, HypervisorError> {
    let run_dir = &machine.run_dir;
    let folder = folder(run_dir)?;
    // The redirections follow the order of the descriptors in `arguments.rs`.
    let script = format!(
        "kernel=$1 initrd=$2; shift 2; exec \"$@\" {KERNEL_FD}<\"$kernel\" {INITRD_FD}<\"$initrd\" {CHANNEL_FD}<&2 2>{}",
        files::ERRORS
    );
    let mut words: Vec<OsString> = ["/bin/sh", "-c", script.as_str(), "sh"].map(OsString::from).into();
    words.extend([machine.kernel.clone().into(), machine.initrd.clone().into()]);
    let fenced = machine.fence.is_some();
    let mut user = if fenced { vec!["setpriv".to_owned()] } else { vec!["setsid".to_owned()] };
    if let Some((uid, gid)) = machine.run_as {
        let as_user = as_user((uid, gid), accelerator);
        user.extend(as_user.into_iter().skip(usize::from(fenced)));
        own(run_dir, uid, gid)?;
    }
    words.extend(user.into_iter().map(OsString::from));
    if fenced {
        words.extend(fence::dies_with_it().map(OsString::from));
    }
    words.push(programs.qemu.into());
    words.extend(arguments(machine, accelerator).into_iter().map(OsString::from));
    if let Some(pipe) = pipe {
        words = fence::around(programs.fence, machine, pipe, words)?;
    }
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    let (option, value) = fence::SMALL;
    command.args(words).current_dir(run_dir).env(option, value);
    command.stdin(listen(&folder, run_dir, files::MONITOR)?);
    command.stdout(listen(&folder, run_dir, files::CONSOLE)?);
    command.stderr(listen(&folder, run_dir, files::CHANNEL)?);
    Ok(command)
}

/// The process works in its run folder and writes the console's log there.
fn own(run_dir: &Path, uid: u32, gid: u32) -> Result<(), HypervisorError> {
    let failed = |e: io::Error| HypervisorError::Transient(format!("{}: {e}", run_dir.display()));
    std::os::unix::fs::chown(run_dir, Some(uid), Some(gid)).map_err(failed)?;
    std::fs::set_permissions(run_dir, PermissionsExt::from_mode(0o700)).map_err(failed)
}

fn readable(file: &Path) -> Result<std::fs::File, HypervisorError> {
    std::fs::File::open(file).map_err(|e| {
        let sentence =
            format!("the image is incomplete: {}: {e}; make it anew (./run --setup makes 'tiny')", file.display());
        HypervisorError::Permanent(sentence)
    })
}

/// An ELF file, or a bzImage ("HdrS" at 0x202, Linux's Documentation/arch/x86/boot.rst).
fn check_kernel(kernel: &Path) -> Result<(), HypervisorError> {
    let mut file = readable(kernel)?;
    let mut head = Vec::new();
    let read = file.by_ref().take(0x206).read_to_end(&mut head);
    read.map_err(|e| HypervisorError::Permanent(format!("the kernel {}: {e}", kernel.display())))?;
    if head.starts_with(b"\x7fELF") || head.get(0x202..).is_some_and(|magic| magic == b"HdrS") {
        return Ok(());
    }
    Err(HypervisorError::Permanent(format!(
        "the kernel {} is neither an ELF file nor a bzImage: the image is bad, make it anew",
        kernel.display()
    )))
}

/// The end of what QEMU wrote to stderr.
pub(super) fn complaint(binary: &str, run_dir: &Path) -> String {
    let mut text = Vec::new();
    let opened = files::open(&run_dir.join(files::ERRORS), std::fs::File::options().read(true));
    let read = opened.and_then(|mut file| {
        let skip = file.metadata()?.len().saturating_sub(COMPLAINT_BYTES_MAX);
        file.seek(SeekFrom::Start(skip))?;
        file.take(COMPLAINT_BYTES_MAX).read_to_end(&mut text)
    });
    let said = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
    match read {
        Ok(_) if !said.is_empty() => said,
        _ => format!("{binary} ended at once and said nothing"),
    }
}

/// What to do about a complaint.
fn explain(said: &str) -> HypervisorError {
    let has = |part: &str| said.contains(part);
    if has("Cannot allocate memory") || has("cannot set up guest memory") {
        return HypervisorError::Transient(format!(
            "the host has not enough memory: {said}; stop another VM or give it less memory"
        ));
    }
    let not_there = has("No such file or directory") && (has("setpriv") || has("setsid") || has("exec"));
    // A shell that may not look everywhere says so rather than that it has found nothing.
    if not_there || has("not found") || has("exec: ") && has("Permission denied") {
        return HypervisorError::Permanent(format!(
            "QEMU can't be run: {said}; apt-get install {}",
            package("qemu-system-x86_64")
        ));
    }
    if has("Device or resource busy") || has("could not configure /dev/net/tun") {
        return HypervisorError::Transient(format!("the tap is busy or not ours: {said}"));
    }
    HypervisorError::Transient(format!("QEMU could not start the machine: {said}"))
}
