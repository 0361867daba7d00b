//! The dialects of 9P: which one a session speaks is agreed on by Tversion.

use std::fmt;

/// One of the three dialects that are spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// 9P2000: Plan 9's own.
    Plain,
    /// 9P2000.u: the same messages, some with fields more, for what Unix has and Plan 9 has not.
    U,
    /// 9P2000.L: Linux's system calls as messages.
    L,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 3] = [Dialect::Plain, Dialect::U, Dialect::L];

    /// How Tversion and Rversion name it.
    pub const fn name(self) -> &'static str {
        match self {
            Dialect::Plain => "9P2000",
            Dialect::U => "9P2000.u",
            Dialect::L => "9P2000.L",
        }
    }

    /// What is agreed on with a client that asks for `version`; none: "unknown".
    ///
    /// version(5): what follows a period is a variant, which may be answered with the protocol without it, and 9Pnnnn may be
    /// answered with any number that is not larger. lib9p answers so too, and Linux's client and 9pserve go on in 9P2000 then.
    pub fn agreed(version: &str) -> Option<Dialect> {
        if let Some(spoken) = Dialect::ALL.into_iter().find(|dialect| dialect.name() == version) {
            return Some(spoken);
        }
        let (protocol, _variant) = version.split_once('.').unwrap_or((version, ""));
        let year = protocol.strip_prefix("9P").filter(|digits| digits.len() == 4)?;
        let is_number = year.bytes().all(|digit| digit.is_ascii_digit());
        (is_number && year >= "2000").then_some(Dialect::Plain)
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// In which dialects a message exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    /// In every one.
    Everywhere,
    /// In 9P2000.L alone.
    InL,
    /// In 9P2000 and 9P2000.u.
    NotInL,
}

impl Spoken {
    pub(super) const fn includes(self, dialect: Dialect) -> bool {
        match self {
            Spoken::Everywhere => true,
            Spoken::InL => matches!(dialect, Dialect::L),
            Spoken::NotInL => !matches!(dialect, Dialect::L),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_agreed_on() {
        for (version, agreed) in [
            ("9P2000", Some(Dialect::Plain)),
            ("9P2000.u", Some(Dialect::U)),
            ("9P2000.L", Some(Dialect::L)),
            ("9P2000.e", Some(Dialect::Plain)),
            ("9P2000.Lx", Some(Dialect::Plain)),
            ("9P2000.L.x", Some(Dialect::Plain)),
            ("9P2000.", Some(Dialect::Plain)),
            ("9P2001", Some(Dialect::Plain)),
            ("9P2020.L", Some(Dialect::Plain)),
            ("9P1999", None),
            ("9P", None),
            ("9P20000", None),
            ("9P200", None),
            ("9P2O00", None),
            ("9p2000.L", None),
            ("10P2000", None),
            ("", None),
            ("unknown", None),
        ] {
            assert_eq!(Dialect::agreed(version), agreed, "{version}");
        }
    }
}
