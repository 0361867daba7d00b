//! A refusal: what was asked for can't be, and why, in a sentence for the person who asked.
//!
//! A refusal is not a fault: it goes to the writer (as errno and sentence), not into the trace.

use serde::{Deserialize, Serialize};

/// What kind of refusal; each is one errno (`namespace` rule 5 says when each is used).
///
/// The order of the variants is part of the encoding of outcomes: add at the end only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// EINVAL: it can't be parsed, or a value is out of its bounds.
    Invalid,
    /// ENOENT: there is no such object or file.
    NotFound,
    /// EEXIST: there is one already.
    Exists,
    /// EACCES: it is not yours.
    Denied,
    /// EBUSY: not in this state.
    Busy,
    /// ENOSPC: no capacity, or a pool or a limit is exhausted.
    NoSpace,
    /// ESTALE: `version=` did not match.
    Stale,
    /// EAGAIN: no quorum (or not ready yet); nothing was done.
    Again,
    /// ETIMEDOUT: the outcome is unknown.
    TimedOut,
    /// EINTR: the caller interrupted it.
    Interrupted,
    /// EHOSTDOWN: the node that knows is gone.
    HostDown,
    /// EMSGSIZE: the write was split or is too long.
    TooLong,
    /// EISDIR: a directory where a file is needed.
    IsDirectory,
    /// ENOTDIR: a file where a directory is needed.
    NotDirectory,
    /// EPERM: this file can never take that operation.
    NotPermitted,
    /// ENOTEMPTY: the directory can't be removed.
    NotEmpty,
    /// ENAMETOOLONG: the name is longer than any name can be.
    NameTooLong,
    /// EBADF: the file was not opened for this.
    BadFile,
    /// EIO: a fault of ours; the trace has more.
    Fault,
    /// EOPNOTSUPP: this operation does not exist here.
    Unsupported,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 20] = [
        Code::Invalid,
        Code::NotFound,
        Code::Exists,
        Code::Denied,
        Code::Busy,
        Code::NoSpace,
        Code::Stale,
        Code::Again,
        Code::TimedOut,
        Code::Interrupted,
        Code::HostDown,
        Code::TooLong,
        Code::IsDirectory,
        Code::NotDirectory,
        Code::NotPermitted,
        Code::NotEmpty,
        Code::NameTooLong,
        Code::BadFile,
        Code::Fault,
        Code::Unsupported,
    ];

    /// The one with this errno, if there is one.
    pub fn of_errno(errno: i32) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.errno() == errno)
    }

    /// The Linux errno (positive), as 9P2000.L and FUSE carry it.
    pub fn errno(self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            Code::Invalid => Errno::INVAL,
            Code::NotFound => Errno::NOENT,
            Code::Exists => Errno::EXIST,
            Code::Denied => Errno::ACCESS,
            Code::Busy => Errno::BUSY,
            Code::NoSpace => Errno::NOSPC,
            Code::Stale => Errno::STALE,
            Code::Again => Errno::AGAIN,
            Code::TimedOut => Errno::TIMEDOUT,
            Code::Interrupted => Errno::INTR,
            Code::HostDown => Errno::HOSTDOWN,
            Code::TooLong => Errno::MSGSIZE,
            Code::IsDirectory => Errno::ISDIR,
            Code::NotDirectory => Errno::NOTDIR,
            Code::NotPermitted => Errno::PERM,
            Code::NotEmpty => Errno::NOTEMPTY,
            Code::NameTooLong => Errno::NAMETOOLONG,
            Code::BadFile => Errno::BADF,
            Code::Fault => Errno::IO,
            Code::Unsupported => Errno::OPNOTSUPP,
        };
        errno.raw_os_error()
    }
}

/// An errno and a whole sentence that says what was wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// Which errno.
    pub code: Code,
    /// The sentence, without a final newline.
    pub sentence: String,
    /// Which of several things that were asked for together it is about, counted from 0. None: all, or the only one.
    pub nth: Option<usize>,
}

impl Refusal {
    /// A refusal with this code and sentence.
    pub fn new(code: Code, sentence: impl Into<String>) -> Self {
        Refusal { code, sentence: sentence.into(), nth: None }
    }

    /// The same, about the nth of several.
    #[must_use]
    pub fn of_nth(self, nth: usize) -> Self {
        Refusal { nth: Some(nth), ..self }
    }
}

macro_rules! shorthand {
    ($($name:ident => $code:ident),* $(,)?) => {
        impl Refusal {
            $(
                #[doc = concat!("A refusal with [`Code::", stringify!($code), "`].")]
                pub fn $name(sentence: impl Into<String>) -> Self {
                    Refusal::new(Code::$code, sentence)
                }
            )*
        }
    };
}
shorthand! {
    invalid => Invalid,
    not_found => NotFound,
    exists => Exists,
    denied => Denied,
    busy => Busy,
    no_space => NoSpace,
    stale => Stale,
    again => Again,
    timed_out => TimedOut,
    fault => Fault,
    not_permitted => NotPermitted,
}
