//! The FUSE front: a mount, a few threads that take requests, and an end.
//!
//! polyfuse decodes and leaves the loop to us, because a process that is blocked in a read must be interruptible (docs/decisions.md).
//! What is answered at once is answered on the thread that took the request; what waits becomes a task, and occupies no thread.
//!
//! - `mounted.rs`: what can be mounted; `local.rs`: a tree of this process as such
//! - `operations.rs`: one function a request
//! - `waiting.rs`: requests that wait, and their interruption
//! - `files.rs`: open files; `mountpoint.rs`: where to mount, and what may be there

mod files;
mod local;
mod mounted;
mod mountpoint;
mod operations;
mod waiting;

pub use local::Local;
pub use mounted::{Attributes, FileSystem, Found, Listing, Mounted, ROOT_INODE};

use operations::Front;
use polyfuse::{KernelConfig, Session};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;

/// The longest write that arrives as one, in bytes: a page more than the tree takes. Wherever in a page a program's text begins, so
/// many pages hold one that is not too long, and of one that is too long at least a byte too many: it is refused whole. No more,
/// since polyfuse zeroes a buffer of this size for each request.
pub const WRITE_BYTES_MAX: u32 = 64 * 1024 + PAGE_BYTES;
/// A page: by these the kernel cuts a write.
pub const PAGE_BYTES: u32 = 4096;
/// Threads that take requests. More than the cores: one may be in the middle of rendering a long list.
const THREADS: usize = 4;
/// How long the end waits for the threads. They stay as long as some process holds a file or its working folder in the mount; the
/// end of our process ends them.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The place can't be used.
    #[error("{0}")]
    Place(String),
    /// The kernel or fusermount3 refused.
    #[error("{path} can't be mounted: {error}; is Debian's package fuse3 installed?")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What was said.
        error: io::Error,
    },
    /// No thread could be started.
    #[error("no thread for the mount: {0}")]
    Thread(io::Error),
}

/// How it is mounted.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// For all users of the host, where root mounts it; else only for the user who does.
    pub all_users: bool,
    /// The longest write that arrives as one, in bytes; 4096 at least.
    pub write_bytes_max: u32,
}

/// Something mounted.
pub struct Fuse {
    path: PathBuf,
    front: Arc<Front>,
    running: watch::Receiver<usize>,
}

impl Fuse {
    /// Mounts it; requests that wait run on `runtime`.
    ///
    /// # Errors
    /// See [`FuseError`].
    pub fn mount(
        mounted: Arc<dyn Mounted>,
        runtime: Runtime,
        path: &Path,
        options: Options,
    ) -> Result<Fuse, FuseError> {
        mountpoint::device_opens()?;
        mountpoint::prepare(path)?;
        let path = path.canonicalize().map_err(|error| FuseError::Mount { path: path.to_owned(), error })?;
        let mut config = KernelConfig::default();
        config.fusermount_path("/usr/bin/fusermount3").auto_unmount(false);
        config.max_write(options.write_bytes_max.max(PAGE_BYTES));
        config
            .mount_option("fsname=blixard")
            .mount_option("subtype=blixard")
            .mount_option("nosuid")
            .mount_option("nodev");
        if options.all_users && rustix::process::geteuid().is_root() {
            config.mount_option("allow_other");
        }
        let session = Session::mount(path.clone(), config);
        let session = Arc::new(session.map_err(|error| FuseError::Mount { path: path.clone(), error })?);
        let front = Arc::new(Front::new(mounted, runtime));
        let (running, left) = (watch::Sender::new(THREADS), Arc::new(AtomicUsize::new(THREADS)));
        let receiver = running.subscribe();
        for n in 0..THREADS {
            let (session, front, running, left) = (session.clone(), front.clone(), running.clone(), left.clone());
            let body = move || {
                serve(&session, &front);
                drop(session);
                running.send_replace(left.fetch_sub(1, Ordering::AcqRel).saturating_sub(1));
            };
            std::thread::Builder::new().name(format!("fuse-{n}")).spawn(body).map_err(FuseError::Thread)?;
        }
        Ok(Fuse { path, front, running: receiver })
    }

    /// Resolves when the mount has gone, by us or by somebody else.
    pub async fn ended(&self) {
        let mut running = self.running.clone();
        // A closed channel means the same: no thread is left.
        let _ = running.wait_for(|n| *n == 0).await;
    }

    /// Unmounts, also when it is in use: who uses it gets ENOTCONN.
    pub async fn unmount(&self) {
        if let Err(error) = mountpoint::detach(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "can't be unmounted");
        }
        self.front.interrupt_all();
        // Threads that stay longer end with the process.
        let _ = tokio::time::timeout(END_WITHIN, self.ended()).await;
    }
}

/// Takes requests until the mount is gone.
fn serve(session: &Session, front: &Arc<Front>) {
    loop {
        match session.next_request() {
            Ok(Some(request)) => front.answer(request),
            Ok(None) => return,
            // A signal, or a request that was taken back while it was read.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "the kernel's requests can't be read any more");
                return;
            }
        }
    }
}
