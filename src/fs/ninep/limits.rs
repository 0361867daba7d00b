//! The limits of the 9P server. Each bounds what one client, or all together, can take from the others.

use std::time::Duration;

/// Connections to one server at a time. Each costs a file descriptor and some KiB; more than this is no use of one node.
pub const CONNECTIONS_MAX: usize = 2048;

/// How many of them users can have together; the rest is for nodes alone: for two of each worker, spread over three members.
pub const USERS_CONNECTIONS_MAX: usize = CONNECTIONS_MAX - 768;

/// Fids of one connection at a time: a kernel's client holds one for each cached name and each open file.
pub const FIDS_MAX: usize = 16 * 1024;

/// Requests of one connection that wait for their answers at a time, such as blocked reads.
pub const WAITING_REQUESTS_MAX: usize = 4096;

/// The data of all writes of one connection that wait for their answers, in bytes: sixteen of the longest messages.
pub const WAITING_WRITE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// While a client has this much to read from us, in bytes, its further requests are left in the socket, and answers that
/// have become ready are not fetched. One message may go beyond it.
pub const UNSENT_BYTES_MAX: usize = 256 * 1024;

/// How long a connection may last before its first Tversion is here: nobody holds a place without speaking 9P.
pub const FIRST_MESSAGE_WITHIN: Duration = Duration::from_secs(10);

/// How long the answers to the last requests of a client that has closed its sending side may take to send.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// How long it is waited before the next accept(2) when the machine has no descriptor or memory left for one.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
