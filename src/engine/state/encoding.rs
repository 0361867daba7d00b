//! Entries and states as bytes: a byte for the format, then postcard's encoding, which is canonical (one value, one text).

use super::{Entry, State};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The format of an encoded [`Entry`], its first byte. A new kind of command is a new format.
const ENTRY_FORMAT: u8 = 1;
/// The format of an encoded [`State`], its first byte.
const STATE_FORMAT: u8 = 1;

/// Why stored bytes are no state or entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a blixard with another format.
    #[error("it has format {found}, and this blixard knows format {known}")]
    UnknownFormat {
        /// Its first byte.
        found: u8,
        /// The byte that would be right.
        known: u8,
    },
    /// Not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl Entry {
    /// As bytes, for the log.
    pub fn encode(&self) -> Vec<u8> {
        append(vec![ENTRY_FORMAT], self)
    }

    /// From [`Entry::encode`]'s bytes.
    ///
    /// # Errors
    /// Another format, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Entry, DecodeError> {
        decode(bytes, ENTRY_FORMAT)
    }
}

impl State {
    /// As bytes, for a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        append(vec![STATE_FORMAT], self)
    }

    /// From [`State::encode`]'s bytes.
    ///
    /// # Errors
    /// Another format, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<State, DecodeError> {
        decode(bytes, STATE_FORMAT)
    }

    /// SHA-256 over the canonical encoding of everything but [`State::seq`]: equal on nodes that have taken the same
    /// decisions, and not changed by an entry that is not taken. It costs as much as a snapshot.
    pub fn hash(&self) -> [u8; 32] {
        let mut decided = self.clone();
        decided.seq = 0;
        Sha256::digest(decided.encode()).into()
    }
}

/// The bytes with the value's encoding after them.
pub(super) fn append(bytes: Vec<u8>, value: &impl Serialize) -> Vec<u8> {
    // Into a Vec postcard fails only for what hides its length, and no type here does. An empty text is no format.
    let appended = postcard::to_extend(value, bytes);
    debug_assert!(appended.is_ok(), "{appended:?}");
    appended.unwrap_or_default()
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], known: u8) -> Result<T, DecodeError> {
    let Some((&found, rest)) = bytes.split_first() else {
        return Err(DecodeError::Damaged("it is empty".to_owned()));
    };
    if found != known {
        return Err(DecodeError::UnknownFormat { found, known });
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        Ok((_, more)) => Err(DecodeError::Damaged(format!("{} bytes too many", more.len()))),
        Err(error) => Err(DecodeError::Damaged(error.to_string())),
    }
}
