//! The messages of 9P: one table of requests, one of replies. A row is a number, the dialects that have the message, a name
//! and the fields in the order of the wire; encoding and decoding follow from it.

use super::dialect::{Dialect, Spoken};
use super::field::{Cursor, Data, Extended, Field, List, Malformed, NumericId, Qid, Tail};
use super::print::Show;
use super::stat::Counted;
use bytes::{BufMut, BytesMut};
use std::fmt::{self, Formatter};

/// The bytes before a message's fields: size[4] type[1] tag[2].
pub const HEADER_BYTES: usize = 7;

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The length of the whole message, this field included.
    pub size: u32,
    /// The number of the message's row in its table.
    pub kind: u8,
    /// Whose answer it is, or under which name it is to be answered.
    pub tag: u16,
}

impl Header {
    /// The header of a message of which at least 7 bytes are there.
    ///
    /// # Errors
    /// [`Malformed::Truncated`]: there are fewer.
    pub fn decode(bytes: &[u8]) -> Result<Header, Malformed> {
        let (any, cursor) = (Dialect::Plain, &mut Cursor::new(bytes));
        Ok(Header { size: u32::get(any, cursor)?, kind: u8::get(any, cursor)?, tag: u16::get(any, cursor)? })
    }
}

/// Appends a message: its header, then what `fields` puts. On an error nothing is appended.
fn append(
    kind: u8,
    tag: u16,
    into: &mut BytesMut,
    fields: impl FnOnce(&mut BytesMut) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let start = into.len();
    into.put_u32_le(0);
    into.put_u8(kind);
    into.put_u16_le(tag);
    let done = fields(into).and_then(|()| {
        let length = into.len().saturating_sub(start);
        u32::try_from(length).map_err(|_| Malformed::TooLong(length))
    });
    match (done, into.get_mut(start..).and_then(|message| message.first_chunk_mut::<4>())) {
        (Ok(size), Some(field)) => {
            *field = size.to_le_bytes();
            Ok(())
        }
        (Err(malformed), _) => {
            into.truncate(start);
            Err(malformed)
        }
        (Ok(_), None) => Err(Malformed::Truncated { missing: HEADER_BYTES }),
    }
}

macro_rules! messages {
    (
        $(#[$about:meta])*
        $table:ident<$life:lifetime> {
            $( $(#[doc = $doc:literal])* $number:literal $spoken:ident $name:ident { $($field:ident: $type:ty),* } )*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $table<$life> {
            $(
                $(#[doc = $doc])*
                $name {
                    $(
                        #[doc = concat!("`", stringify!($field), "` of the protocol.")]
                        $field: $type,
                    )*
                },
            )*
        }

        impl<$life> $table<$life> {
            /// The message of this type with these fields, which must be all of `body`.
            ///
            /// # Errors
            /// Whatever is wrong with the bytes.
            pub fn decode(dialect: Dialect, kind: u8, body: &$life [u8]) -> Result<Self, Malformed> {
                #[allow(unused_mut, reason = "a message without fields takes nothing")]
                let mut cursor = Cursor::new(body);
                let message = match kind {
                    $( $number if Spoken::$spoken.includes(dialect) => {
                        $table::$name { $($field: <$type as Field>::get(dialect, &mut cursor)?),* }
                    } )*
                    _ => return Err(Malformed::UnknownType { kind, dialect }),
                };
                cursor.finish()?;
                Ok(message)
            }

            /// Appends the whole message to `into`; on an error nothing.
            ///
            /// # Errors
            /// [`Malformed::TooLong`]: a field is longer than its count can say. [`Malformed::UnknownType`]: the dialect
            /// does not have it.
            pub fn encode(&self, dialect: Dialect, tag: u16, into: &mut BytesMut) -> Result<(), Malformed> {
                if !self.is_in(dialect) {
                    return Err(Malformed::UnknownType { kind: self.kind(), dialect });
                }
                append(self.kind(), tag, into, |into| match self {
                    $( $table::$name { $($field),* } => {
                        $( Field::put($field, dialect, into)?; )*
                        let _ = into;
                        Ok(())
                    } )*
                })
            }

            /// Does the dialect have it?
            pub fn is_in(&self, dialect: Dialect) -> bool {
                match self {
                    $( $table::$name { .. } => Spoken::$spoken.includes(dialect), )*
                }
            }

            /// The number of its type.
            pub fn kind(&self) -> u8 {
                match self {
                    $( $table::$name { .. } => $number, )*
                }
            }

            /// Prints each field, its name before it.
            pub(super) fn show_fields(&self, dialect: Dialect, to: &mut Formatter<'_>) -> fmt::Result {
                match self {
                    $( $table::$name { $($field),* } => {
                        $( $field.show(dialect, stringify!($field), to)?; )*
                        let _ = (dialect, to);
                        Ok(())
                    } )*
                }
            }

            /// Its name, without the T or R.
            pub fn name(&self) -> &'static str {
                match self {
                    $( $table::$name { .. } => stringify!($name), )*
                }
            }
        }
    };
}

messages! {
    /// What a client asks: the T-messages.
    Request<'a> {
        /// statfs(2).
        8 InL Statfs { fid: u32 }
        /// Opens a fid with Linux's flags.
        12 InL Lopen { fid: u32, flags: u32 }
        /// Makes a file in the directory of a fid and opens it there.
        14 InL Lcreate { fid: u32, name: &'a str, flags: u32, mode: u32, gid: u32 }
        /// Makes a symbolic link.
        16 InL Symlink { fid: u32, name: &'a str, target: &'a str, gid: u32 }
        /// Makes a special file.
        18 InL Mknod { dfid: u32, name: &'a str, mode: u32, major: u32, minor: u32, gid: u32 }
        /// Moves a file to another directory and name.
        20 InL Rename { fid: u32, dfid: u32, name: &'a str }
        /// Reads a symbolic link.
        22 InL Readlink { fid: u32 }
        /// stat(2).
        24 InL Getattr { fid: u32, request_mask: u64 }
        /// chmod(2), chown(2), truncate(2), utimes(2).
        26 InL Setattr {
            fid: u32, valid: u32, mode: u32, uid: u32, gid: u32, size: u64,
            atime_sec: u64, atime_nsec: u64, mtime_sec: u64, mtime_nsec: u64
        }
        /// Makes `newfid` stand for an extended attribute, or for the list of them.
        30 InL Xattrwalk { fid: u32, newfid: u32, name: &'a str }
        /// Makes a fid stand for an extended attribute that is to be written.
        32 InL Xattrcreate { fid: u32, name: &'a str, attr_size: u64, flags: u32 }
        /// Reads an opened directory.
        40 InL Readdir { fid: u32, offset: u64, count: u32 }
        /// fsync(2). Clients that keep to the first draft of .L, such as those of rs9p and hugelgupf/p9, send no `datasync`.
        50 InL Fsync { fid: u32, datasync: Tail<u32> }
        /// Takes or gives back a lock.
        52 InL Lock { fid: u32, kind: u8, flags: u32, start: u64, length: u64, proc_id: u32, client_id: &'a str }
        /// Asks whether a lock could be had.
        54 InL Getlock { fid: u32, kind: u8, start: u64, length: u64, proc_id: u32, client_id: &'a str }
        /// Makes a hard link.
        70 InL Link { dfid: u32, fid: u32, name: &'a str }
        /// Makes a directory.
        72 InL Mkdir { dfid: u32, name: &'a str, mode: u32, gid: u32 }
        /// Moves a name to another directory and name.
        74 InL Renameat { olddirfid: u32, oldname: &'a str, newdirfid: u32, newname: &'a str }
        /// Removes a name.
        76 InL Unlinkat { dirfid: u32, name: &'a str, flags: u32 }
        /// Begins a session: the dialect and the longest message.
        100 Everywhere Version { msize: u32, version: &'a str }
        /// Begins authentication.
        102 Everywhere Auth { afid: u32, uname: &'a str, aname: &'a str, n_uname: NumericId }
        /// Makes a fid stand for the root, or for the subtree `aname`.
        104 Everywhere Attach { fid: u32, afid: u32, uname: &'a str, aname: &'a str, n_uname: NumericId }
        /// Cancels a request.
        108 Everywhere Flush { oldtag: u16 }
        /// Makes `newfid` stand for what is reached from `fid` by these names.
        110 Everywhere Walk { fid: u32, newfid: u32, names: List<'a, &'a str> }
        /// Opens a fid.
        112 NotInL Open { fid: u32, mode: u8 }
        /// Makes a file or a directory in the directory of a fid, which then stands for it, and opens it.
        114 NotInL Create { fid: u32, name: &'a str, perm: u32, mode: u8, extension: Extended<&'a str> }
        /// Reads an opened file, or in 9P2000 and .u an opened directory.
        116 Everywhere Read { fid: u32, offset: u64, count: u32 }
        /// Writes an opened file.
        118 Everywhere Write { fid: u32, offset: u64, data: Data<'a> }
        /// Forgets a fid.
        120 Everywhere Clunk { fid: u32 }
        /// Removes the file of a fid, and forgets the fid.
        122 Everywhere Remove { fid: u32 }
        /// What kind of file it is, how long, whose.
        124 NotInL Stat { fid: u32 }
        /// Changes some of that.
        126 NotInL Wstat { fid: u32, stat: Counted<'a> }
    }
}

messages! {
    /// What a server answers: the R-messages.
    Reply<'a> {
        /// It failed, with Linux's errno.
        7 InL Lerror { ecode: u32 }
        /// To Tstatfs.
        9 InL Statfs {
            kind: u32, bsize: u32, blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, fsid: u64, namelen: u32
        }
        /// To Tlopen.
        13 InL Lopen { qid: Qid, iounit: u32 }
        /// To Tlcreate.
        15 InL Lcreate { qid: Qid, iounit: u32 }
        /// To Tsymlink.
        17 InL Symlink { qid: Qid }
        /// To Tmknod.
        19 InL Mknod { qid: Qid }
        /// To Trename.
        21 InL Rename { }
        /// To Treadlink.
        23 InL Readlink { target: &'a str }
        /// To Tgetattr.
        25 InL Getattr { valid: u64, qid: Qid, attributes: super::linux::Attributes }
        /// To Tsetattr.
        27 InL Setattr { }
        /// To Txattrwalk.
        31 InL Xattrwalk { size: u64 }
        /// To Txattrcreate.
        33 InL Xattrcreate { }
        /// To Treaddir: whole records.
        41 InL Readdir { data: Data<'a> }
        /// To Tfsync.
        51 InL Fsync { }
        /// To Tlock.
        53 InL Lock { status: u8 }
        /// To Tgetlock.
        55 InL Getlock { kind: u8, start: u64, length: u64, proc_id: u32, client_id: &'a str }
        /// To Tlink.
        71 InL Link { }
        /// To Tmkdir.
        73 InL Mkdir { qid: Qid }
        /// To Trenameat.
        75 InL Renameat { }
        /// To Tunlinkat.
        77 InL Unlinkat { }
        /// To Tversion.
        101 Everywhere Version { msize: u32, version: &'a str }
        /// To Tauth.
        103 Everywhere Auth { aqid: Qid }
        /// To Tattach.
        105 Everywhere Attach { qid: Qid }
        /// It failed, with a sentence, and in .u with Linux's errno.
        107 NotInL Error { ename: &'a str, errno: Extended<u32> }
        /// To Tflush.
        109 Everywhere Flush { }
        /// To Twalk: one qid for each name that was reached.
        111 Everywhere Walk { qids: List<'a, Qid> }
        /// To Topen.
        113 NotInL Open { qid: Qid, iounit: u32 }
        /// To Tcreate.
        115 NotInL Create { qid: Qid, iounit: u32 }
        /// To Tread.
        117 Everywhere Read { data: Data<'a> }
        /// To Twrite.
        119 Everywhere Write { count: u32 }
        /// To Tclunk.
        121 Everywhere Clunk { }
        /// To Tremove.
        123 Everywhere Remove { }
        /// To Tstat.
        125 NotInL Stat { stat: Counted<'a> }
        /// To Twstat.
        127 NotInL Wstat { }
    }
}

/// Appends the header of an Rread or Rreaddir (`kind`) whose `count` bytes of data follow it without a copy.
///
/// # Errors
/// [`Malformed::TooLong`]: more than a message can hold.
pub fn append_data_header(kind: u8, tag: u16, count: usize, into: &mut BytesMut) -> Result<(), Malformed> {
    let size = u32::try_from(HEADER_BYTES + 4 + count).map_err(|_| Malformed::TooLong(count))?;
    into.put_u32_le(size);
    into.put_u8(kind);
    into.put_u16_le(tag);
    into.put_u32_le(size.saturating_sub(HEADER_BYTES as u32 + 4));
    Ok(())
}
