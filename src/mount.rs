//! `blixard mount`: another node's tree on a folder of this machine, until SIGINT or SIGTERM.

use crate::fs::fuse::{self, Fuse, FuseError};
use crate::fs::remote::{Link, Remote};
use crate::ninep::client::{ClientError, Options};
use crate::text::Dial;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Threads that carry answers back. One does it: with more, each answer wakes up another.
const THREADS: usize = 1;
/// What is said on the standard error: what goes wrong, and what the connection does.
const TRACE: &str = "warn,polyfuse=error,blixard=info";

/// Why there is no mount, or no more.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The server.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The folder.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The system.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// Somebody else took it away.
    #[error("somebody has unmounted {0}")]
    Unmounted(String),
}

/// Mounts the tree of this server on a folder, for the user who does, until SIGINT or SIGTERM.
///
/// # Errors
/// See [`MountError`].
pub fn mount(dial: &Dial, options: Options, folder: &Path) -> Result<(), MountError> {
    let trace = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // Another trace, as in tests, stays.
    let _ = trace.with_env_filter(EnvFilter::new(TRACE)).try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| MountError::Io("no runtime", error))?;
    let mounted = runtime.block_on(run(dial, options, folder));
    runtime.shutdown_background();
    mounted
}

async fn run(dial: &Dial, options: Options, folder: &Path) -> Result<(), MountError> {
    let on = |kind| signal(kind).map_err(|error| MountError::Io("no signals", error));
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let remote = Remote::new(Link::connect(dial.clone(), options).await?);
    let how = fuse::Options { all_users: false, write_bytes_max: remote.write_bytes_max() };
    let fuse = Fuse::mount(Arc::new(remote), Handle::current(), folder, how)?;
    say_ready(folder);
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = fuse.ended() => Err(MountError::Unmounted(folder.display().to_string())),
    };
    fuse.unmount().await;
    ended
}

/// One line on stdout, for whoever started us and waits.
fn say_ready(folder: &Path) {
    let mut stdout = std::io::stdout();
    // Nobody listening is no fault: the line is lost, and the tree is there.
    let _ = writeln!(stdout, "ready {}", folder.display()).and_then(|()| stdout.flush());
}
