//! 9P: the messages of its three dialects, how they travel, and a client. Knows `text`, and from `clock` what time it is, for certificates.
//!
//! - [`dialect`]: 9P2000, 9P2000.u, 9P2000.L
//! - [`message`]: every message, as one table of requests and one of replies
//! - [`field`]: what messages are made of: numbers, strings, qids, lists; bounds-checked, borrowed from the received bytes
//! - [`frame`]: messages in a stream of bytes: buffers for both directions
//! - [`stat`]: what 9P2000 and .u say of a file
//! - [`print`]: messages as lines of text
//! - [`linux`]: the numbers that .L takes from Linux: open flags, attribute masks, modes
//! - [`client`]: a client
//! - [`tls`], with [`identity`] and [`holder`]: who is who, by certificates
//!
//! Protocol: intro(5) of Plan 9's manual and the files beside it; for .u its draft by E. Van Hensbergen; for .L diod's `protocol.md` and Linux's `net/9p/client.c`.

pub mod client;
pub mod dialect;
pub mod field;
pub mod frame;
pub mod holder;
pub mod identity;
pub mod linux;
pub mod message;
pub mod print;
pub mod stat;
pub mod tls;

pub use dialect::Dialect;
pub use field::{Data, DirEntry, Extended, List, Malformed, NumericId, Qid};
pub use message::{Header, Reply, Request};
pub use stat::Stat;

/// 9P2000.L as Tversion names it.
pub const VERSION_L: &str = Dialect::L.name();
/// What Rversion says when the dialect that was asked for is not spoken.
pub const VERSION_UNKNOWN: &str = "unknown";

/// The tag of Tversion, and of nothing else.
pub const NOTAG: u16 = u16::MAX;
/// The afid of a Tattach without authentication.
pub const NOFID: u32 = u32::MAX;
/// The n_uname of who gives a name, or nothing.
pub const NONUNAME: NumericId = NumericId::NONE;

/// What Twrite and Rread need besides their data, with room to spare (IOHDRSZ of fcall(3)), in bytes.
pub const IO_HEADER_BYTES: u32 = 24;
/// The most names that one Twalk holds (MAXWELEM of fcall(3)).
pub const WALK_NAMES_MAX: usize = 16;

/// The smallest msize that is agreed on, in bytes: what Plan 9 and old Linux use by default.
pub const MSIZE_MIN: u32 = 8 * 1024;
/// The largest msize, in bytes: Linux's own limit on TCP. It bounds what one message can cost.
pub const MSIZE_MAX: u32 = 1024 * 1024;
