//! What 9P messages are made of: numbers (little-endian), strings, counted data, qids, lists. Decoding borrows from the
//! received bytes, checks every bound, and allocates nothing. A field that only some dialects have takes no bytes in others.

use super::WALK_NAMES_MAX;
use super::dialect::Dialect;
use bytes::{BufMut, BytesMut};
use std::marker::PhantomData;

/// Why bytes are no message, or a message can't be made into bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends in the middle of a field, or a count says more than there is.
    #[error("invalid message: it ends {missing} bytes too early, or a count in it lies")]
    Truncated {
        /// How many bytes the field that doesn't fit needs more.
        missing: usize,
    },
    /// It goes on behind its last field.
    #[error("invalid message: {0} bytes follow its last field")]
    Trailing(usize),
    /// A string is not UTF-8.
    #[error("invalid message: a string in it is not UTF-8")]
    NotUtf8,
    /// More names or qids than a walk may have.
    #[error("invalid message: {0} names in a walk, and 16 is the most")]
    TooManyNames(usize),
    /// A string of more than 65,535 bytes, or data of more than 4 GiB.
    #[error("invalid message: a field of {0} bytes is too long for its count")]
    TooLong(usize),
    /// No message of the dialect has this number in this direction.
    #[error("invalid message: there is no message type {kind} in {dialect}")]
    UnknownType {
        /// The number.
        kind: u8,
        /// The dialect that is spoken.
        dialect: Dialect,
    },
    /// The size field says less than a header has, or more than was agreed on.
    #[error("invalid message: a size of {size} bytes, which is not within 7 and the agreed {size_max}")]
    Size {
        /// What the message says.
        size: u32,
        /// The agreed msize.
        size_max: u32,
    },
}

/// What is left to decode of a message.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Decodes from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    /// Is nothing left?
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`] if there are fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(Malformed::Truncated { missing: count.saturating_sub(self.rest.len()) });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Malformed::Truncated { missing: N.saturating_sub(self.rest.len()) });
        };
        self.rest = rest;
        Ok(*taken)
    }

    /// The end of the message.
    ///
    /// # Errors
    /// [`Malformed::Trailing`] if something is left.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }
}

/// One field of a message.
pub trait Field<'a>: Sized {
    /// Decodes it.
    ///
    /// # Errors
    /// What doesn't fit or isn't allowed.
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed>;

    /// Appends it to `into`.
    ///
    /// # Errors
    /// [`Malformed::TooLong`] for what its count can't say.
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed>;
}

macro_rules! number {
    ($($type:ty: $put:ident),*) => {$(
        impl Field<'_> for $type {
            fn get(_: Dialect, from: &mut Cursor<'_>) -> Result<Self, Malformed> {
                from.array().map(<$type>::from_le_bytes)
            }
            fn put(&self, _: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
                into.$put(*self);
                Ok(())
            }
        }
    )*};
}
number!(u8: put_u8, u16: put_u16_le, u32: put_u32_le, u64: put_u64_le);

impl<'a> Field<'a> for &'a str {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let count = u16::get(dialect, from)?;
        std::str::from_utf8(from.take(count.into())?).map_err(|_| Malformed::NotUtf8)
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        u16::try_from(self.len()).map_err(|_| Malformed::TooLong(self.len()))?.put(dialect, into)?;
        into.put_slice(self.as_bytes());
        Ok(())
    }
}

/// Bytes with a count of 32 bits before them: what Rread and Twrite carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data<'a>(pub &'a [u8]);

impl<'a> Field<'a> for Data<'a> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let count = usize::try_from(u32::get(dialect, from)?).map_err(|_| Malformed::TooLong(usize::MAX))?;
        from.take(count).map(Data)
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        u32::try_from(self.0.len()).map_err(|_| Malformed::TooLong(self.0.len()))?.put(dialect, into)?;
        into.put_slice(self.0);
        Ok(())
    }
}

/// A field that 9P2000 lacks: there it takes no bytes, and is read as the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extended<T>(pub T);

impl<'a, T: Field<'a> + Default> Field<'a> for Extended<T> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        match dialect {
            Dialect::Plain => Ok(Extended::default()),
            Dialect::U | Dialect::L => T::get(dialect, from).map(Extended),
        }
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        match dialect {
            Dialect::Plain => Ok(()),
            Dialect::U | Dialect::L => self.0.put(dialect, into),
        }
    }
}

/// A field at a message's end that some clients leave out; then it is read as the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail<T>(pub T);

impl<'a, T: Field<'a> + Default> Field<'a> for Tail<T> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        if from.is_empty() { Ok(Tail::default()) } else { T::get(dialect, from).map(Tail) }
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        self.0.put(dialect, into)
    }
}

/// A user's or group's number, which 9P2000 lacks: there it takes no bytes, and is read as [`NumericId::NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumericId(pub u32);

impl NumericId {
    /// Nobody's: the name counts, or there is nothing to be said.
    pub const NONE: NumericId = NumericId(u32::MAX);
}

impl Field<'_> for NumericId {
    fn get(dialect: Dialect, from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        match dialect {
            Dialect::Plain => Ok(NumericId::NONE),
            Dialect::U | Dialect::L => u32::get(dialect, from).map(NumericId),
        }
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        match dialect {
            Dialect::Plain => Ok(()),
            Dialect::U | Dialect::L => self.0.put(dialect, into),
        }
    }
}

/// The server's own name of a file: its kind, its version, its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Qid {
    /// [`Qid::DIRECTORY`], [`Qid::LINK`], or [`Qid::FILE`].
    pub kind: u8,
    /// Changes when the content does.
    pub version: u32,
    /// One file's alone, for ever.
    pub path: u64,
}

impl Qid {
    /// The kind of a directory (QTDIR).
    pub const DIRECTORY: u8 = 0x80;
    /// The kind of a symbolic link (QTSYMLINK of .u and .L).
    pub const LINK: u8 = 0x02;
    /// The kind of a file (QTFILE).
    pub const FILE: u8 = 0;
}

impl Field<'_> for Qid {
    fn get(dialect: Dialect, from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Qid { kind: u8::get(dialect, from)?, version: u32::get(dialect, from)?, path: u64::get(dialect, from)? })
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        self.kind.put(dialect, into)?;
        self.version.put(dialect, into)?;
        self.path.put(dialect, into)
    }
}

/// Names and qids are the same in every dialect.
const ANY: Dialect = Dialect::Plain;

/// The names of a Twalk or the qids of an Rwalk: at most 16, checked when it was decoded, decoded again as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List<'a, T> {
    count: u16,
    raw: &'a [u8],
    of: PhantomData<T>,
}

impl<'a, T: Field<'a>> List<'a, T> {
    /// A list of these, whose bytes are kept in `scratch`.
    ///
    /// # Errors
    /// More than 16, or a name that is too long.
    pub fn of(items: &[T], scratch: &'a mut BytesMut) -> Result<Self, Malformed> {
        let count = u16::try_from(items.len()).map_err(|_| Malformed::TooManyNames(items.len()))?;
        if items.len() > WALK_NAMES_MAX {
            return Err(Malformed::TooManyNames(items.len()));
        }
        scratch.clear();
        items.iter().try_for_each(|item| item.put(ANY, scratch))?;
        Ok(List { count, raw: scratch, of: PhantomData })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count.into()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// They, in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let mut cursor = Cursor::new(self.raw);
        (0..self.count).map_while(move |_| T::get(ANY, &mut cursor).ok())
    }
}

impl<'a, T: Field<'a>> Field<'a> for List<'a, T> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let count = u16::get(dialect, from)?;
        if usize::from(count) > WALK_NAMES_MAX {
            return Err(Malformed::TooManyNames(count.into()));
        }
        let before = from.rest;
        for _ in 0..count {
            T::get(dialect, from)?;
        }
        let length = before.len().saturating_sub(from.rest.len());
        Ok(List { count, raw: before.get(..length).unwrap_or_default(), of: PhantomData })
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        self.count.put(dialect, into)?;
        into.put_slice(self.raw);
        Ok(())
    }
}

/// One record in the data of an Rreaddir.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Which file.
    pub qid: Qid,
    /// The offset of the Treaddir that goes on after it.
    pub offset: u64,
    /// Its kind, as d_type of readdir(3) has it.
    pub kind: u8,
    /// Its name.
    pub name: &'a str,
}

impl DirEntry<'_> {
    /// The bytes of a record besides its name's.
    const FIXED_BYTES: usize = 13 + 8 + 1 + 2;

    /// How many bytes it takes in an Rreaddir.
    pub fn size(&self) -> usize {
        DirEntry::FIXED_BYTES + self.name.len()
    }
}

impl<'a> Field<'a> for DirEntry<'a> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(DirEntry {
            qid: Qid::get(dialect, from)?,
            offset: u64::get(dialect, from)?,
            kind: u8::get(dialect, from)?,
            name: <&str>::get(dialect, from)?,
        })
    }
    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        self.qid.put(dialect, into)?;
        self.offset.put(dialect, into)?;
        self.kind.put(dialect, into)?;
        self.name.put(dialect, into)
    }
}
