//! Work that would keep a thread of the runtime from its other tasks.
//!
//! A runtime of one thread has no other thread to spare: there the work is done at once. So nothing in a simulation depends on how fast a
//! thread of the pool is.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does it, on a thread that may block if there is one.
///
/// # Errors
/// It has panicked, or the runtime is going down: a sentence.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
