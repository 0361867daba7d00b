//! An identity: who one is to others, in one PEM file with a private key, its certificate, and the authority's certificates.

use super::holder::{Holder, Purpose};
use crate::clock::system_millis;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest file, in bytes: a key and a dozen certificates.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Permission bits that nobody but the owner may have on a private key.
const OTHERS_MODE: u32 = 0o077;

/// Why an identity can't be used. Each message says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file can't be had.
    #[error("the identity {} can't be read: {source}; {advice}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What would make one.
        advice: &'static str,
    },
    /// Others may read the private key.
    #[error(
        "the identity {} has mode {mode:04o}, so that others can read its private key; chmod 600 it, or, if others may \
         have seen it, have it revoked and issue a new one", .path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Something is missing in it, or it is none.
    #[error("the identity {} is invalid: {why}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Who one is.
pub struct Identity {
    path: PathBuf,
    holder: Holder,
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("path", &self.path).field("holder", &self.holder).finish_non_exhaustive()
    }
}

impl Identity {
    /// The file of a user's identity: what BLIXARD_IDENTITY names, else `blixard/identity.pem` in the user's folder of
    /// configurations.
    pub fn usual_path() -> PathBuf {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || variable("HOME").unwrap_or_else(|| PathBuf::from("/")).join(".config");
        let configurations = || variable("XDG_CONFIG_HOME").unwrap_or_else(home);
        variable("BLIXARD_IDENTITY").unwrap_or_else(|| configurations().join("blixard/identity.pem"))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It is not there, others may read it, it is no identity, or its time has not come or is over.
    pub fn read(path: &Path) -> Result<Identity, IdentityError> {
        let unreadable = |source: io::Error| {
            let advice = match source.kind() {
                io::ErrorKind::NotFound => {
                    "a node's is made by 'blixard cluster init', a user's by 'blixard ca issue NAME'"
                }
                _ => "it must be a file that you may read",
            };
            IdentityError::Unreadable { path: path.to_owned(), source, advice }
        };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & OTHERS_MODE != 0 {
            return Err(IdentityError::Open { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(unreadable)?;
        Identity::parse(path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Identity, IdentityError> {
        let invalid = |why: String| IdentityError::Invalid { path: path.to_owned(), why };
        let parts = "a private key, its certificate, and the authority's certificate are needed, in PEM";
        let key =
            PrivateKeyDer::from_pem_slice(text).map_err(|_| invalid(format!("it has no private key; {parts}")))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
        let certificates = certificates.map_err(|error| invalid(format!("it is no PEM: {error}; {parts}")))?;
        let (own, authorities) = match certificates.split_first() {
            None => return Err(invalid(format!("it has no certificate; {parts}"))),
            Some((_, [])) => return Err(invalid(format!("it has only one certificate; {parts}"))),
            Some((own, authorities)) => (own.clone(), authorities.to_vec()),
        };
        let holder = Holder::of(&own).map_err(|why| invalid(format!("its certificate is not right: {why}")))?;
        let now_ms = system_millis().map_err(|error| invalid(format!("whether it is valid can't be told: {error}")))?;
        holder.check_time(now_ms).map_err(|why| {
            invalid(format!("its certificate, of '{}', is out of date: {why}; issue a new one", holder.name))
        })?;
        Ok(Identity { path: path.to_owned(), holder, chain: vec![own], authorities, key })
    }

    /// Whose it is.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Is it for this?
    ///
    /// # Errors
    /// It is for something else.
    pub fn check_purpose(&self, wanted: Purpose) -> Result<(), IdentityError> {
        self.holder.check_purpose(wanted).map_err(|why| self.unusable(&why))
    }

    /// Its certificate.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The authorities whose certificates it believes.
    pub(super) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// Its private key.
    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// The error of an identity that is none for this use.
    pub(super) fn unusable(&self, why: &dyn Display) -> IdentityError {
        IdentityError::Invalid { path: self.path.clone(), why: why.to_string() }
    }
}
