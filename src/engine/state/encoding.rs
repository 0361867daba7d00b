//! Entries and states as bytes: a byte for the format, then postcard's encoding, which is canonical (one value, one text).

use super::{Entry, State};
use crate::mutants::{Mutant, planted};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The newest format of an encoded [`Entry`], its first byte. A new kind of command is a new format, and an entry is written in the
/// oldest one that has its commands: so a cluster whose nodes are upgraded one by one writes what all of them can read.
pub const ENTRY_FORMAT: u8 = 5;
/// The oldest one that is read.
pub const ENTRY_FORMAT_MIN: u8 = 4;
/// The format of an encoded [`State`], its first byte.
pub const STATE_FORMAT: u8 = 5;

/// Length of a SHA-256.
const HASH_BYTES: usize = 32;

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
        append(vec![self.format()], self)
    }

    /// The oldest format that has all its commands.
    pub fn format(&self) -> u8 {
        self.commands.iter().map(super::Command::since).max().unwrap_or(ENTRY_FORMAT_MIN)
    }

    /// From [`Entry::encode`]'s bytes.
    ///
    /// # Errors
    /// Another format, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Entry, DecodeError> {
        Entry::decode_upto(bytes, ENTRY_FORMAT)
    }

    /// The same, for who reads nothing newer than this format.
    ///
    /// # Errors
    /// Another format, or damaged.
    pub fn decode_upto(bytes: &[u8], newest: u8) -> Result<Entry, DecodeError> {
        let format = bytes.first().copied().filter(|found| (ENTRY_FORMAT_MIN..=newest).contains(found));
        decode(of_format(bytes, format.unwrap_or(newest))?)
    }
}

impl State {
    /// As bytes, for a snapshot: the format, SHA-256 of the rest, and the rest.
    pub fn encode(&self) -> Vec<u8> {
        let mut whole = self.clone();
        if planted(Mutant::SnapshotPart) {
            whole.keys = super::Keys::default();
        }
        let mut bytes = append(vec![STATE_FORMAT; 1 + HASH_BYTES], &whole);
        if let Some((head, body)) = bytes.split_at_mut_checked(1 + HASH_BYTES)
            && let Some((_format, hash)) = head.split_first_mut()
        {
            hash.copy_from_slice(&Sha256::digest(body));
        }
        bytes
    }

    /// From [`State::encode`]'s bytes.
    ///
    /// # Errors
    /// Another format, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<State, DecodeError> {
        let rest = of_format(bytes, STATE_FORMAT)?;
        // The hash comes first: a map that is told a damaged length would reserve memory for it.
        match rest.split_first_chunk::<HASH_BYTES>() {
            Some((hash, body)) if Sha256::digest(body).as_slice() == hash => decode(body),
            Some(_) => Err(DecodeError::Damaged("its hash does not match".to_owned())),
            None => Err(DecodeError::Damaged("it is too short".to_owned())),
        }
    }

    /// SHA-256 over the canonical encoding of everything but [`State::seq`]: equal on nodes that have taken the same
    /// decisions, and not changed by an entry that is not taken. It costs as much as a snapshot.
    pub fn hash(&self) -> [u8; 32] {
        let mut decided = self.clone();
        decided.seq = 0;
        Sha256::digest(append(vec![STATE_FORMAT], &decided)).into()
    }
}

/// The bytes with the value's encoding after them.
pub(super) fn append(bytes: Vec<u8>, value: &impl Serialize) -> Vec<u8> {
    // Into a Vec postcard fails only for what hides its length, and no type here does. An empty text is no format.
    let appended = postcard::to_extend(value, bytes);
    debug_assert!(appended.is_ok(), "{appended:?}");
    appended.unwrap_or_default()
}

/// What comes after the format, if it is this one.
fn of_format(bytes: &[u8], known: u8) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&found, rest)) if found == known => Ok(rest),
        Some((&found, _)) => Err(DecodeError::UnknownFormat { found, known }),
        None => Err(DecodeError::Damaged("it is empty".to_owned())),
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, more)) => Err(DecodeError::Damaged(format!("{} bytes too many", more.len()))),
        Err(error) => Err(DecodeError::Damaged(error.to_string())),
    }
}
