//! Messages as text, one line each, in the format of fcall(3), which plan9port's programs print with `-D`:
//!
//! ```text
//! Tversion tag 65535 msize 8192 version '9P2000'
//! Twalk tag 1 fid 0 newfid 1 nwname 2 0:vms 1:42
//! Rwalk tag 1 nwqid 2 0:(0000000000000002 3 d) 1:(000000000000002a 7 d)
//! ```
//! What fcall(3) has not, because 9P2000 has not, is printed in the same way: the name of each field, and its value.

use super::dialect::Dialect;
use super::field::{Data, Extended, List, NumericId, Qid, Tail};
use super::linux::Attributes;
use super::stat::{Counted, Stat, mode};
use super::{Reply, Request};
use std::fmt::{self, Display, Formatter, Write};

/// The bytes of data that are shown (DUMPL of fcall(3)).
const DATA_BYTES_SHOWN: usize = 64;

/// A message that can be printed as one line.
#[derive(Debug, Clone, Copy)]
pub struct Line<M> {
    dialect: Dialect,
    tag: u16,
    message: M,
}

/// A request as a line.
pub fn request<'m>(dialect: Dialect, tag: u16, message: &'m Request<'m>) -> Line<&'m Request<'m>> {
    Line { dialect, tag, message }
}

/// A reply as a line.
pub fn reply<'m>(dialect: Dialect, tag: u16, message: &'m Reply<'m>) -> Line<&'m Reply<'m>> {
    Line { dialect, tag, message }
}

impl Display for Line<&Request<'_>> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "T{} tag {}", self.message.name().to_ascii_lowercase(), self.tag)?;
        self.message.show_fields(self.dialect, to)
    }
}

impl Display for Line<&Reply<'_>> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "R{} tag {}", self.message.name().to_ascii_lowercase(), self.tag)?;
        self.message.show_fields(self.dialect, to)
    }
}

/// A field that can be shown, with its name and a space before it.
pub(super) trait Show {
    fn show(&self, dialect: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result;
}

macro_rules! shown_as_numbers {
    ($($type:ty),*) => {$(
        impl Show for $type {
            fn show(&self, _: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result {
                write!(to, " {name} {self}")
            }
        }
    )*};
}
shown_as_numbers!(u8, u16, u64);

impl Show for u32 {
    fn show(&self, _: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result {
        match name {
            "perm" => write!(to, " perm {}", Permissions(*self)),
            // NOFID is -1.
            _ if name.ends_with("fid") => write!(to, " {name} {}", self.cast_signed()),
            "flags" | "valid" => write!(to, " {name} {self:#x}"),
            _ => write!(to, " {name} {self}"),
        }
    }
}

/// Text on one line, whatever is in it.
struct OneLine<'a>(&'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|c| if c.is_control() { write!(to, "{}", c.escape_default()) } else { to.write_char(c) })
    }
}

impl Show for &str {
    fn show(&self, _: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result {
        match name {
            "version" => write!(to, " version '{}'", OneLine(self)),
            _ => write!(to, " {name} {}", OneLine(self)),
        }
    }
}

impl Show for NumericId {
    fn show(&self, dialect: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result {
        if dialect == Dialect::Plain { Ok(()) } else { write!(to, " {name} {}", self.0.cast_signed()) }
    }
}

impl<T: Show> Show for Extended<T> {
    fn show(&self, dialect: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result {
        if dialect == Dialect::Plain { Ok(()) } else { self.0.show(dialect, name, to) }
    }
}

impl<T: Show> Show for Tail<T> {
    fn show(&self, dialect: Dialect, name: &str, to: &mut Formatter<'_>) -> fmt::Result {
        self.0.show(dialect, name, to)
    }
}

impl Display for Qid {
    /// `(path version kind)`: QIDFMT of fcall(3), and the kind's letters.
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "({:016x} {} ", self.path, self.version)?;
        for (bit, letter) in [(Qid::DIRECTORY, 'd'), (0x40, 'a'), (0x20, 'l'), (0x08, 'A'), (Qid::LINK, 'L')] {
            if self.kind & bit != 0 {
                to.write_char(letter)?;
            }
        }
        to.write_char(')')
    }
}

impl Show for Qid {
    fn show(&self, _: Dialect, _: &str, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, " qid {self}")
    }
}

impl Show for List<'_, &str> {
    fn show(&self, _: Dialect, _: &str, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, " nwname {}", self.len())?;
        self.iter().enumerate().try_for_each(|(n, name)| write!(to, " {n}:{}", OneLine(name)))
    }
}

impl Show for List<'_, Qid> {
    fn show(&self, _: Dialect, _: &str, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, " nwqid {}", self.len())?;
        self.iter().enumerate().try_for_each(|(n, qid)| write!(to, " {n}:{qid}"))
    }
}

impl Show for Data<'_> {
    fn show(&self, _: Dialect, _: &str, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, " count {} '", self.0.len())?;
        let shown = self.0.get(..DATA_BYTES_SHOWN).unwrap_or(self.0);
        if shown.iter().all(|byte| matches!(byte, 0 | b'\n' | b'\t' | b' '..=b'~')) {
            for byte in shown {
                match byte {
                    0 => to.write_str("\\0")?,
                    b'\n' => to.write_str("\\n")?,
                    b'\t' => to.write_str("\\t")?,
                    byte => to.write_char(char::from(*byte))?,
                }
            }
        } else {
            for (n, four) in shown.chunks(4).enumerate() {
                to.write_str(if n == 0 { "" } else { " " })?;
                four.iter().try_for_each(|byte| write!(to, "{byte:02x}"))?;
            }
        }
        to.write_char('\'')
    }
}

impl Show for Counted<'_> {
    fn show(&self, dialect: Dialect, _: &str, to: &mut Formatter<'_>) -> fmt::Result {
        let Stat { kind, qid, mode, atime, mtime, .. } = &self.0;
        // As fcall(3) prints them: what a Twstat leaves alone is -1.
        let (length, dev) = (self.0.length.cast_signed(), self.0.dev.cast_signed());
        let Stat { name, uid, gid, muid, extension, n_uid, n_gid, n_muid, .. } = &self.0;
        to.write_str(" stat")?;
        [name, uid, gid, muid].into_iter().try_for_each(|text| write!(to, " '{}'", OneLine(text)))?;
        write!(to, " q {qid} m 0{mode:o} at {atime} mt {mtime} l {length} t {kind} d {dev}")?;
        extension.show(dialect, "ext", to)?;
        n_uid.show(dialect, "n_uid", to)?;
        n_gid.show(dialect, "n_gid", to)?;
        n_muid.show(dialect, "n_muid", to)
    }
}

impl Show for Attributes {
    fn show(&self, _: Dialect, _: &str, to: &mut Formatter<'_>) -> fmt::Result {
        let Attributes { mode, uid, gid, nlink, size, mtime_sec, data_version, .. } = self;
        write!(
            to,
            " mode 0{mode:o} uid {uid} gid {gid} nlink {nlink} size {size} mtime {mtime_sec} version {data_version}"
        )
    }
}

/// Permissions as `ls -l` has them: dirmodefmt of fcall(3).
struct Permissions(u32);

impl Display for Permissions {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let has = |bit| self.0 & bit != 0;
        let kind = match () {
            () if has(mode::DIRECTORY) => 'd',
            () if has(mode::APPEND) => 'a',
            () if has(mode::LINK) => 'L',
            () if has(mode::SPECIAL) => 'D',
            () => '-',
        };
        to.write_char(kind)?;
        to.write_char(if has(mode::EXCLUSIVE) { 'l' } else { '-' })?;
        let letters = ['r', 'w', 'x'].into_iter().cycle().zip((0..9).rev());
        letters.into_iter().try_for_each(|(letter, bit)| to.write_char(if has(1 << bit) { letter } else { '-' }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ninep::{NOFID, NOTAG};
    use bytes::BytesMut;

    fn asked(dialect: Dialect, message: &Request<'_>) -> String {
        request(dialect, 1, message).to_string()
    }

    fn answered(dialect: Dialect, message: &Reply<'_>) -> String {
        reply(dialect, 1, message).to_string()
    }

    #[test]
    fn as_fcall_prints_them() {
        use Dialect::Plain;
        let version = Request::Version { msize: 8192, version: "9P2000" };
        let line = request(Plain, NOTAG, &version).to_string();
        assert_eq!(line, "Tversion tag 65535 msize 8192 version '9P2000'");
        let attach = Request::Attach { fid: 0, afid: NOFID, uname: "me", aname: "", n_uname: NumericId(7) };
        assert_eq!(asked(Plain, &attach), "Tattach tag 1 fid 0 afid -1 uname me aname ");
        assert_eq!(asked(Dialect::U, &attach), "Tattach tag 1 fid 0 afid -1 uname me aname  n_uname 7");
        let mut scratch = BytesMut::new();
        let names = List::of(&["vms", "42"], &mut scratch).unwrap();
        let walk = Request::Walk { fid: 0, newfid: 1, names };
        assert_eq!(asked(Plain, &walk), "Twalk tag 1 fid 0 newfid 1 nwname 2 0:vms 1:42");
        let (mut scratch, qid) = (BytesMut::new(), Qid { kind: 0x80, version: 3, path: 2 });
        let qids = List::of(&[qid], &mut scratch).unwrap();
        assert_eq!(answered(Plain, &Reply::Walk { qids }), "Rwalk tag 1 nwqid 1 0:(0000000000000002 3 d)");
        assert_eq!(answered(Plain, &Reply::Open { qid, iounit: 9 }), "Ropen tag 1 qid (0000000000000002 3 d) iounit 9");
        let create = Request::Create { fid: 2, name: "x", perm: 0x8000_01ed, mode: 1, extension: Extended("") };
        assert_eq!(asked(Plain, &create), "Tcreate tag 1 fid 2 name x perm d-rwxr-xr-x mode 1");
        assert_eq!(asked(Plain, &Request::Flush { oldtag: 5 }), "Tflush tag 1 oldtag 5");
        assert_eq!(answered(Plain, &Reply::Flush {}), "Rflush tag 1");
        let error = Reply::Error { ename: "not\nfound", errno: Extended(2) };
        assert_eq!(answered(Plain, &error), "Rerror tag 1 ename not\\nfound");
        assert_eq!(answered(Dialect::U, &error), "Rerror tag 1 ename not\\nfound errno 2");
        let wstat = Request::Wstat { fid: 2, stat: Counted(Stat { length: 0, name: "n", ..Stat::UNTOUCHED }) };
        let qid = "(ffffffffffffffff 4294967295 dalAL)";
        let rest = "m 037777777777 at 4294967295 mt 4294967295 l 0 t 65535 d -1";
        assert_eq!(asked(Plain, &wstat), format!("Twstat tag 1 fid 2 stat 'n' '' '' '' q {qid} {rest}"));
        assert!(asked(Dialect::U, &wstat).ends_with(" ext  n_uid -1 n_gid -1 n_muid -1"));
        assert_eq!(asked(Dialect::L, &Request::Lopen { fid: 1, flags: 0x8000 }), "Tlopen tag 1 fid 1 flags 0x8000");
    }

    #[test]
    fn data_is_cut_and_stays_on_the_line() {
        let shown = |data: &[u8]| answered(Dialect::Plain, &Reply::Read { data: Data(data) });
        assert_eq!(shown(b"a\tb\0\n"), "Rread tag 1 count 5 'a\\tb\\0\\n'");
        assert_eq!(shown(b"\xff\x01abc"), "Rread tag 1 count 5 'ff016162 63'");
        assert_eq!(shown(&[b'x'; 100]), format!("Rread tag 1 count 100 '{}'", "x".repeat(64)));
        assert_eq!(shown(b""), "Rread tag 1 count 0 ''");
    }
}
