//! `blixard fence`: the parent of one machine's process, which ends it when its node's lease is over.
//!
//! It is a process of its own, so that a daemon that is stopped, killed or wedged is no reason for a machine to live on while others start
//! it elsewhere. The daemon starts it with the machine's command as arguments. The deadline is a file (`deadline.rs`), which the daemon
//! writes, and which this process reads when its timer goes off. Whatever is wrong with the file ends the machine, and so does the death
//! of this process: the command asks the kernel for SIGKILL when its parent dies.
//!
//! Small on purpose: no runtime, no threads, and nothing that waits for a disk between the timer and the SIGKILL.

use super::clock::{BootClock, HostClock};
use super::deadline::{self, Term};
use super::process::{is_gone, start_ticks};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

/// The variable by which the command is told who its parent is: if it finds another one, it came too late to hear of its death.
pub const PARENT_VARIABLE: &str = "BLIXARD_FENCE";
/// The longest line about a start, in bytes: what fits into a pipe at once (PIPE_BUF has 4096).
pub const TOLD_BYTES_MAX: usize = 512;

/// What a fence is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The deadline's file.
    pub deadline: PathBuf,
    /// The tenure in which the machine is started.
    pub tenure: u64,
    /// A pipe with a name (fifo(7)) for one line: what has become of the start.
    pub tell: PathBuf,
    /// The cgroups to be in, with the machine.
    pub cgroups: Vec<PathBuf>,
    /// The machine's command. The working folder is its run folder.
    pub command: Vec<OsString>,
}

/// The line about a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The machine's process is this one, and started then (field 22 of /proc/PID/stat).
    Started {
        /// Its number.
        pid: u32,
        /// In clock ticks since boot.
        start_ticks: u64,
    },
    /// There was one, and it has ended already.
    Ended,
    /// The lease was over before there was a process.
    Over,
    /// There is no process, because of this.
    Failed(String),
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Started { pid, start_ticks } => write!(f, "started {pid} {start_ticks}"),
            Told::Ended => f.write_str("ended"),
            Told::Over => f.write_str("over"),
            Told::Failed(why) => write!(f, "failed {}", why.replace('\n', " ")),
        }
    }
}

impl Told {
    /// From the line, without its end. None: nobody has written that.
    pub fn parse(line: &str) -> Option<Told> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("started", rest) => {
                let (pid, ticks) = rest.split_once(' ')?;
                Some(Told::Started { pid: pid.parse().ok()?, start_ticks: ticks.parse().ok()? })
            }
            ("ended", "") => Some(Told::Ended),
            ("over", "") => Some(Told::Over),
            ("failed", why) => Some(Told::Failed(why.to_owned())),
            _ => None,
        }
    }
}

/// Is this process a fence? Until it has become its command, a fence's child is one, too. None: it has ended.
///
/// # Errors
/// The kernel does not say.
pub fn is_fence(pid: u32) -> io::Result<Option<bool>> {
    let line = match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Err(error) if is_gone(&error) => return Ok(None),
        line => line?,
    };
    // What has ended has none.
    Ok((!line.is_empty()).then(|| line.split(|byte| *byte == 0).nth(1) == Some(b"fence")))
}

/// Starts the machine and stays until it has ended, one way or the other.
pub fn run(options: &Options) -> ExitCode {
    // Without somebody who listens there is nobody to start a machine for.
    let tell = File::options().write(true).custom_flags(nonblocking()).open(&options.tell);
    let Ok(mut tell) = tell else { return ExitCode::FAILURE };
    let begun = begin(options, &mut tell);
    drop(tell);
    match begun {
        Ok(Some(mut fenced)) => fenced.stay(),
        Ok(None) | Err(_) => ExitCode::FAILURE,
    }
}

fn nonblocking() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0)
}

fn say(tell: &mut File, told: &Told) -> io::Result<()> {
    let mut line = told.to_string();
    line.truncate(line.floor_char_boundary(TOLD_BYTES_MAX - 1));
    line.push('\n');
    tell.write_all(line.as_bytes())
}

fn begin(options: &Options, tell: &mut File) -> io::Result<Option<Fenced>> {
    match Fenced::start(options) {
        Ok(Some(mut fenced)) => {
            let told = fenced.told().and_then(|told| say(tell, &told));
            if told.is_err() {
                // A machine that nobody knows of.
                fenced.end()?;
                return Ok(None);
            }
            Ok(Some(fenced))
        }
        Ok(None) => say(tell, &Told::Over).map(|()| None),
        Err(error) => say(tell, &Told::Failed(error.to_string())).map(|()| None),
    }
}

/// A machine with its fence around.
struct Fenced {
    child: Child,
    /// Readable when the child has ended.
    ended: OwnedFd,
    /// Readable when it is time to look at the deadline.
    timer: OwnedFd,
    deadline: File,
    tenure: u64,
}

impl Fenced {
    /// None: the lease is over.
    fn start(options: &Options) -> io::Result<Option<Fenced>> {
        let named = |what: &Path| {
            let what = what.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        let deadline = deadline::open(&options.deadline).map_err(named(&options.deadline))?;
        for cgroup in &options.cgroups {
            let procs = cgroup.join("cgroup.procs");
            std::fs::write(&procs, std::process::id().to_string()).map_err(named(&procs))?;
        }
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let term = deadline::read(&deadline).map_err(named(&options.deadline))?;
        if !term.allows(options.tenure, HostClock.now_ns()) {
            return Ok(None);
        }
        arm(&timer, term)?;
        let Some((program, arguments)) = options.command.split_first() else {
            return Err(io::Error::other("there is no command"));
        };
        let mut command = Command::new(program);
        command.args(arguments).env(PARENT_VARIABLE, std::process::id().to_string());
        let mut child = command.spawn().map_err(named(Path::new(program)))?;
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(io::Error::from);
        // The sockets of the machine are its own from here on: who connects to one that is gone must hear so.
        match ended.and_then(|ended| let_go_of_sockets().map(|()| ended)) {
            Ok(ended) => Ok(Some(Fenced { child, ended, timer, deadline, tenure: options.tenure })),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn told(&self) -> io::Result<Told> {
        let pid = self.child.id();
        // It is not reaped yet, so its number is its own.
        let started = start_ticks(pid)?;
        Ok(match started {
            Some(start_ticks) => Told::Started { pid, start_ticks },
            None => Told::Ended,
        })
    }

    /// Until the machine has ended, or its time is over.
    fn stay(&mut self) -> ExitCode {
        // What has been used so far stays in memory, so that ending a machine waits for no disk; a part of it at least was used already.
        // Who may not lock memory does without.
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
        loop {
            match self.look() {
                Ok(Look::Goes) => {}
                Ok(Look::Ended) => {
                    return if self.child.wait().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                }
                // Also if it can't be found out.
                Ok(Look::Over) | Err(_) => break,
            }
        }
        let ended = self.child.kill();
        // The agent is told after the deed: this may wait for a disk.
        let noted = std::env::current_dir().and_then(|run_dir| deadline::note_fenced(&run_dir));
        match (ended, noted, self.child.wait()) {
            (Ok(()), Ok(()), Ok(_)) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// Waits for the timer or the machine's end.
    fn look(&self) -> io::Result<Look> {
        let mut either = [PollFd::new(&self.ended, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        match poll(&mut either, None) {
            // It was stopped, and goes on: the time counted meanwhile.
            Err(Errno::INTR) => {}
            polled => drop(polled?),
        }
        let [ended, _] = either;
        if ended.revents().contains(PollFlags::IN) {
            return Ok(Look::Ended);
        }
        let term = deadline::read(&self.deadline)?;
        if !term.allows(self.tenure, HostClock.now_ns()) {
            return Ok(Look::Over);
        }
        // Set anew it is not readable any more.
        arm(&self.timer, term)?;
        Ok(Look::Goes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

/// What a fence sees.
enum Look {
    Goes,
    Ended,
    Over,
}

/// The timer goes off when the term is over.
fn arm(timer: &OwnedFd, term: Term) -> io::Result<()> {
    const NS: u64 = 1_000_000_000;
    let seconds = i64::try_from(term.ends_ns / NS).unwrap_or(i64::MAX);
    let nanoseconds = i64::try_from(term.ends_ns % NS).unwrap_or(0);
    let at = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once)?;
    Ok(())
}

fn let_go_of_sockets() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let told = [Told::Started { pid: 7, start_ticks: 99 }, Told::Ended, Told::Over, Told::Failed("a: b c".into())];
        for told in told {
            assert_eq!(Told::parse(&told.to_string()), Some(told));
        }
        for line in ["", "started", "started 7", "started x 1", "over there", "begun 1 2"] {
            assert_eq!(Told::parse(line), None, "{line}");
        }
        assert_eq!(Told::Failed("two\nlines".into()).to_string(), "failed two lines");
    }
}
