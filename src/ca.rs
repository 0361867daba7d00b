//! `blixard ca`: the cluster's own authority, and the certificates by which users and nodes know each other over TLS.
//!
//! In DATA/ca, which is closed to others: `ca.key` and `ca.pem` are the authority, `node.pem` is the node's identity, `issued`
//! has a line for each certificate. Whoever has `ca.key` can be anybody. What is revoked is known to the cluster, not here.
//! Knows `ninep` (identities), `clock` and `text`.

use crate::clock::{ClockError, system_millis};
use crate::durable;
use crate::ninep::holder::{Holder, Purpose};
use crate::text::attrs::{quote, shown};
use crate::text::{Refusal, columns::Table, name, time::rfc3339};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the authority is valid, in days: longer than a cluster's machines last.
const AUTHORITY_DAYS: u64 = 3_650;
/// How long a certificate is valid unless it is said, in days.
const DAYS: u64 = 365;
/// The most days that can be asked for: no certificate outlives its authority.
const DAYS_MAX: u64 = AUTHORITY_DAYS;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Nodes' certificates begin so much earlier, for users whose clocks are behind.
const CLOCKS_BEHIND: Duration = Duration::from_secs(60 * 60);
/// A serial number, in bytes: random, so that none can be guessed and none comes twice.
const SERIAL_BYTES: usize = 16;
/// What is read of a file here at most, in bytes: a key, a certificate, or a hundred thousand lines of what was issued.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Where the authority is.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The node's data folder
    #[arg(long, env = "BLIXARD_DATA", value_name = "DIR", default_value = "/var/lib/blixard")]
    data: PathBuf,
}

/// What to do with it.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Issue a certificate: the identity of a user, or of another node
    Issue {
        /// Where the authority is
        #[command(flatten)]
        place: Place,
        /// The user's name, or the node's
        name: String,
        /// It is for a node
        #[arg(long, requires = "host")]
        node: bool,
        /// A name or address by which others reach that node; may be given more than once
        #[arg(long, value_name = "HOST", requires = "node")]
        host: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
        days: u64,
        /// The file to write, which must not be there yet; '-': the standard output; default: NAME.pem
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List what was issued
    List {
        /// Where the authority is
        #[command(flatten)]
        place: Place,
    },
    /// Have the cluster take a user's certificates no more: this one, or all that were issued here; ends their connections
    Revoke {
        /// Where the authority is
        #[command(flatten)]
        place: Place,
        /// The user's name
        name: String,
        /// Which, as `blixard ca list` shows it
        serial: Option<String>,
    },
}

/// Why it can't be done. Each message says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No authority.
    #[error("not found: there is no authority's key in {}: it is on the nodes that vote, since 'blixard cluster init'; or name the folder with --data", .0.display())]
    Missing(PathBuf),
    /// One already.
    #[error("there is an authority in {} already; whoever wants another one moves that folder away first, and issues all certificates anew", .0.display())]
    Exists(PathBuf),
    /// Others may read the authority's key.
    #[error("{} has mode {mode:04o}, so that others can read the authority's private key; chmod 600 it, or, if others may have seen it, make a new authority", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Not a name.
    #[error("{0}")]
    Name(Refusal),
    /// Nothing to revoke.
    #[error(
        "not found: no certificate that is still valid was issued here for user '{0}'; give its SERIAL, or see 'blixard ca list'"
    )]
    NothingIssued(String),
    /// Not a serial number.
    #[error("invalid serial number '{0}': it is hexadecimal digits, as 'blixard ca list' shows them")]
    Serial(String),
    /// This machine's clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Cryptography.
    #[error("the certificate can't be made: {0}")]
    Crypto(#[from] rcgen::Error),
    /// What was made is not what was wanted.
    #[error("the certificate can't be made: {0}")]
    Made(String),
}

/// The file of the node's identity.
pub fn node_identity(data: &Path) -> PathBuf {
    data.join("ca/node.pem")
}

/// Does it; the answer is what to print.
///
/// # Errors
/// See [`CaError`].
pub fn run(verb: &Verb) -> Result<String, CaError> {
    match verb {
        Verb::Issue { place, name, node, host, days, out } => {
            let authority = Authority::read(&place.data)?;
            let purpose = if *node { Purpose::Node } else { Purpose::User };
            let identity = authority.issue(purpose, name, host, *days)?;
            write_out(out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.pem"))), &identity)
        }
        Verb::List { place } => list(&place.data),
        Verb::Revoke { place, name, serial } => revocation(&place.data, name, serial.as_deref()),
    }
}

/// The lines for `users/NAME/ctl` that revoke these certificates.
fn revocation(data: &Path, user: &str, serial: Option<&str>) -> Result<String, CaError> {
    name::check(user).map_err(CaError::Name)?;
    let line = |serial: &str| format!("revoke cert={}\n", quote(serial));
    if let Some(serial) = serial {
        let serial = serial.to_lowercase();
        let is_hexadecimal = !serial.is_empty() && serial.bytes().all(|b| b.is_ascii_hexdigit());
        return if is_hexadecimal { Ok(line(&serial)) } else { Err(CaError::Serial(shown(&serial))) };
    }
    let now_ms = system_millis()?;
    let issued = Authority::folder(data).issued()?;
    let valid = issued.iter().filter(|i| i.name == user && i.purpose == Purpose::User.to_string());
    let lines: String = valid.filter(|i| i.expires_ms > now_ms).map(|i| line(&i.serial)).collect();
    if lines.is_empty() { Err(CaError::NothingIssued(user.to_owned())) } else { Ok(lines) }
}

/// Makes the authority of a new cluster, and the identity of its first node, which others reach at these hosts.
///
/// # Errors
/// There is one already, or the system's.
pub fn begin(data: &Path, node: &str, hosts: &[String]) -> Result<(), CaError> {
    let folder = Authority::folder(data);
    if folder.0.join("ca.pem").exists() {
        return Err(CaError::Exists(folder.0));
    }
    make_folder(data)?;
    let key = KeyPair::generate()?;
    let certificate = authority_params(node)?.self_signed(&key)?;
    folder.put("ca.key", 0o600, &key.serialize_pem())?;
    folder.put("ca.pem", 0o644, &certificate.pem())?;
    issue_own(data, node, hosts)
}

/// Makes a new identity for this node, for these hosts.
///
/// # Errors
/// The authority's key is not here, or the system's.
pub fn issue_own(data: &Path, node: &str, hosts: &[String]) -> Result<(), CaError> {
    let authority = Authority::read(data)?;
    let identity = authority.issue(Purpose::Node, node, &with_own(hosts, node), DAYS_MAX)?;
    authority.folder.put("node.pem", 0o600, &identity)
}

/// Is the authority's key here, so that others can be let in?
pub fn is_here(data: &Path) -> bool {
    Authority::folder(data).0.join("ca.key").exists()
}

/// The authority's private key, for a node that is to let others in as well.
///
/// # Errors
/// It is not here, or can't be read.
pub fn authority_key(data: &Path) -> Result<String, CaError> {
    Authority::read(data)?;
    Authority::folder(data).text("ca.key")
}

/// A key for a machine that wants to join, and its request for a certificate; both in PEM.
///
/// # Errors
/// A name that can't be one.
pub fn request(node: &str) -> Result<(String, String), CaError> {
    name::check(node).map_err(CaError::Name)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node);
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// The certificate of a node that joins, and the authority's, in PEM. Of its request only the key counts.
///
/// # Errors
/// The authority's key is not here; the request is none.
pub fn sign_node(data: &Path, node: &str, hosts: &[String], request: &str) -> Result<String, CaError> {
    let authority = Authority::read(data)?;
    let request = CertificateSigningRequestParams::from_pem(request)?;
    let params = authority.params(Purpose::Node, node, &with_own(hosts, node), DAYS_MAX)?;
    let certificate = params.signed_by(&request.public_key, &authority.issuer)?;
    authority.folder.note(&Holder::of(certificate.der()).map_err(CaError::Made)?)?;
    Ok([certificate.pem(), authority.certificate].concat())
}

/// Keeps what a node was given that has joined.
///
/// # Errors
/// The system's.
pub fn keep(data: &Path, key: &str, certificates: &str, authority_key: Option<&str>) -> Result<(), CaError> {
    make_folder(data)?;
    let folder = Authority::folder(data);
    let authority = certificates.rfind("-----BEGIN CERTIFICATE-----").and_then(|at| certificates.get(at..));
    if let Some(authority_key) = authority_key {
        folder.put("ca.key", 0o600, authority_key)?;
    }
    folder.put("ca.pem", 0o644, authority.unwrap_or_default())?;
    folder.put("node.pem", 0o600, &[key, certificates].concat())
}

fn make_folder(data: &Path) -> Result<(), CaError> {
    for path in [data, &Authority::folder(data).0] {
        let failed = |source| CaError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    }
    Ok(())
}

/// The hosts of a node, with those by which it reaches itself.
fn with_own(hosts: &[String], node: &str) -> Vec<String> {
    let mut all: Vec<String> = hosts.to_vec();
    for own in [node, "localhost", "127.0.0.1", "::1"] {
        if !all.iter().any(|host| host == own) {
            all.push(own.to_owned());
        }
    }
    all
}

/// Where an authority is, or is to be.
struct Folder(PathBuf);

/// A certificate that was issued: a line of `issued`.
struct Issued {
    serial: String,
    purpose: String,
    name: String,
    issued: String,
    expires: String,
    expires_ms: u64,
}

impl Folder {
    fn io(&self, file: &str) -> impl Fn(io::Error) -> CaError {
        let path = self.0.join(file);
        move |source| CaError::Io { path: path.clone(), source }
    }

    /// Writes a file as a whole: it has what it had before, or this.
    fn put(&self, file: &str, mode: u32, text: &str) -> Result<(), CaError> {
        durable::replace(&self.0.join(file), mode, text.as_bytes()).map_err(self.io(file))
    }

    fn text(&self, file: &str) -> Result<String, CaError> {
        let mut text = String::new();
        match File::open(self.0.join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CaError::Missing(self.0.clone())),
            Err(error) => Err(self.io(file)(error)),
            Ok(input) => {
                input.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(self.io(file))?;
                Ok(text)
            }
        }
    }

    /// Notes a certificate before anybody has it.
    fn note(&self, holder: &Holder) -> Result<(), CaError> {
        let Holder { serial, purpose, name, issued_ms, expires_ms, .. } = holder;
        let line = format!("{serial} {purpose} {name} {} {} {expires_ms}\n", rfc3339(*issued_ms), rfc3339(*expires_ms));
        let noted = || {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.0.join("issued"))?;
            file.write_all(line.as_bytes())?;
            file.sync_all()
        };
        noted().map_err(self.io("issued"))
    }

    /// All that were issued, the oldest first.
    fn issued(&self) -> Result<Vec<Issued>, CaError> {
        let text = self.text("issued")?;
        let parse = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut next = || words.next();
            Some(Issued {
                serial: next()?,
                purpose: next()?,
                name: next()?,
                issued: next()?,
                expires: next()?,
                expires_ms: next()?.parse().ok()?,
            })
        };
        Ok(text.lines().filter_map(parse).collect())
    }
}

fn list(data: &Path) -> Result<String, CaError> {
    let mut table = Table::new(&["serial", "for", "name", "issued", "expires"]);
    for Issued { serial, purpose, name, issued, expires, .. } in Authority::folder(data).issued()? {
        table.row([serial, purpose, name, issued, expires]);
    }
    Ok(table.print())
}

/// The authority.
struct Authority {
    folder: Folder,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn folder(data: &Path) -> Folder {
        Folder(data.join("ca"))
    }

    fn read(data: &Path) -> Result<Authority, CaError> {
        let folder = Authority::folder(data);
        let (certificate, key) = (folder.text("ca.pem")?, folder.text("ca.key")?);
        let path = folder.0.join("ca.key");
        let mode = path.metadata().map_err(folder.io("ca.key"))?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(CaError::Open { path, mode });
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Authority { folder, certificate, issuer })
    }

    /// A new identity, in PEM: its key, its certificate, and the authority's.
    fn issue(&self, purpose: Purpose, called: &str, hosts: &[String], days: u64) -> Result<String, CaError> {
        let params = self.params(purpose, called, hosts, days)?;
        let key = KeyPair::generate()?;
        let certificate: Certificate = params.signed_by(&key, &self.issuer)?;
        self.folder.note(&Holder::of(certificate.der()).map_err(CaError::Made)?)?;
        Ok([key.serialize_pem(), certificate.pem(), self.certificate.clone()].concat())
    }
}

impl Authority {
    /// What a new certificate says, with a number of its own.
    fn params(
        &self,
        purpose: Purpose,
        called: &str,
        hosts: &[String],
        days: u64,
    ) -> Result<CertificateParams, CaError> {
        name::check(called).map_err(CaError::Name)?;
        let mut params = leaf_params(purpose, called, hosts, days)?;
        let mut serial = [0; SERIAL_BYTES];
        rustix::rand::getrandom(&mut serial, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| self.folder.io("issued")(errno.into()))?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        Ok(params)
    }
}

/// Valid from so long ago for so many days.
fn set_validity(params: &mut CertificateParams, ago: Duration, days: u64) -> Result<(), ClockError> {
    let now = Duration::from_millis(system_millis()?);
    let epoch = date_time_ymd(1970, 1, 1);
    let days = u32::try_from(days).unwrap_or(u32::MAX);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(ago).as_secs());
    params.not_after = epoch + Duration::from_secs((now + DAY * days).as_secs());
    Ok(())
}

fn authority_params(node: &str) -> Result<CertificateParams, ClockError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("blixard authority of {node}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Days more than any certificate of it, so that those of the same day fit in.
    set_validity(&mut params, CLOCKS_BEHIND, AUTHORITY_DAYS + 1)?;
    Ok(params)
}

fn leaf_params(purpose: Purpose, called: &str, hosts: &[String], days: u64) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, called);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = match purpose {
        Purpose::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Purpose::User | Purpose::Other => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    // A user's begins now: what was issued for an earlier user of the name is told by it.
    let ago = if purpose == Purpose::Node { CLOCKS_BEHIND } else { Duration::ZERO };
    set_validity(&mut params, ago, days)?;
    Ok(params)
}

/// Writes an identity where it was wanted; the answer is what to print.
fn write_out(path: PathBuf, identity: &str) -> Result<String, CaError> {
    if path == Path::new("-") {
        return Ok(identity.to_owned());
    }
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(identity.as_bytes())?;
        file.sync_all()
    };
    written().map_err(|source| CaError::Io { path: path.clone(), source })?;
    Ok(format!("wrote the identity {}\n", path.display()))
}
