//! `blixard cluster`: the beginning of a cluster, invitations; and how a machine joins one.
//!
//! A token says everything that a machine needs to find the cluster and to know that it is the right one: where members are, the
//! hash of the authority's certificate, and a secret that works once. Knows `ca`, `member`, `peers`, `ninep` (identities) and `text`.

use crate::ca::{self, CaError};
use crate::durable;
use crate::member::{self, Member, MemberError};
use crate::ninep::identity::Identity;
use crate::ninep::tls;
use crate::peers::ask::{Answer, Question, SECRET_BYTES, Welcome, ask_to_join};
use crate::peers::host_and_port;
use crate::text::{Code, Refusal};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What a token begins with: what it is, and in which form.
const TOKEN_BEGINS: &str = "blixard1.";

/// The first node of a cluster.
#[derive(Debug, Clone, Args)]
pub struct First {
    /// Where everything is to be kept
    #[arg(long, env = "BLIXARD_DATA", value_name = "DIR", default_value = "/var/lib/blixard")]
    pub data: PathBuf,
    /// The node's name; default: the machine's
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// The name or address of this machine by which other nodes will reach it, as alpha or 10.0.0.1!5640; without, it stays alone
    #[arg(long, value_name = "HOST[!PORT]")]
    pub advertise: Option<String>,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Begin a cluster with this machine as its first node
    Init {
        /// The cluster's name
        name: String,
        /// Where and as what
        #[command(flatten)]
        first: First,
    },
    /// Print a token with which one machine may join: there, blixard serve --join TOKEN --advertise HOST
    Invite {
        /// What it is to be: voter, learner or worker
        #[arg(long, default_value = "voter")]
        role: String,
        /// How long the token is good
        #[arg(long, default_value = "1h")]
        expires: String,
    },
}

/// Why it can't be done. Each message says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A name, an address, a token, or the cluster said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The member file.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The secrets of the store.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Begins a cluster; the answer is what to print.
///
/// # Errors
/// See [`ClusterError`]; nothing is half made but an authority, which the next try finds.
pub fn init(name: &str, data: &Path, node: &str, advertise: Option<&str>) -> Result<String, ClusterError> {
    match Member::read(data) {
        Err(MemberError::Missing(_)) => {}
        Ok(Member { name, cluster, .. }) => {
            return Err(MemberError::Exists { path: data.to_owned(), name, cluster }.into());
        }
        Err(error) => return Err(error.into()),
    }
    let address = advertise.map(member::address).transpose().map_err(ClusterError::Refused)?.unwrap_or_default();
    let member = Member::first(name, node, &address).map_err(ClusterError::Refused)?;
    let hosts = hosts_of(&address)?;
    begin_authority(data, node, &hosts)?;
    // It comes last: without it the authority of an interrupted beginning is nobody's.
    member.write(data)?;
    let then = match address.is_empty() {
        true => "it is alone until it is started with --advertise HOST".to_owned(),
        false => format!("others will reach it at {address}; 'blixard cluster invite' lets one in"),
    };
    Ok(format!("cluster '{name}' begins with node '{node}' in {}: {then}\nstart it: blixard serve\n", data.display()))
}

/// Begins the authority of a new cluster; one that an interrupted beginning has left is taken.
///
/// # Errors
/// The authority's.
pub fn begin_authority(data: &Path, node: &str, hosts: &[String]) -> Result<(), CaError> {
    match ca::begin(data, node, hosts) {
        Err(CaError::Exists(_)) => ca::issue_own(data, node, hosts),
        begun => begun,
    }
}

/// The hosts of a certificate for an address.
///
/// # Errors
/// It is no address.
pub fn hosts_of(address: &str) -> Result<Vec<String>, ClusterError> {
    match address {
        "" => Ok(Vec::new()),
        address => Ok(vec![host_and_port(address).map_err(ClusterError::Refused)?.0]),
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    authority_sha256: [u8; 32],
    secret: [u8; SECRET_BYTES],
    addresses: Vec<String>,
}

fn invalid_token(why: &str) -> Refusal {
    Refusal::invalid(format!("invalid token: {why}; it is the whole of what 'blixard cluster invite' prints"))
}

impl Token {
    fn print(&self) -> Result<String, Refusal> {
        let bytes = postcard::to_stdvec(self).map_err(|error| Refusal::fault(error.to_string()))?;
        Ok(format!("{TOKEN_BEGINS}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    fn parse(text: &str) -> Result<Token, Refusal> {
        let text = text.trim();
        let body = text.strip_prefix(TOKEN_BEGINS).ok_or_else(|| invalid_token("it does not begin as one"))?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|error| invalid_token(&error.to_string()))?;
        postcard::from_bytes(&bytes).map_err(|_| invalid_token("it is not whole"))
    }
}

/// A new token, and the SHA-256 of its secret, which is what the cluster knows of it.
///
/// # Errors
/// No address to give, no random bytes, no identity.
pub fn token(identity: &Identity, addresses: Vec<String>) -> Result<(String, [u8; 32]), Refusal> {
    if addresses.is_empty() {
        return Err(Refusal::busy(
            "no node of this cluster can be reached by others (busy with itself): start one with --advertise HOST, then invite",
        ));
    }
    let mut secret = [0; SECRET_BYTES];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Refusal::fault(format!("no random bytes from the kernel: {error}")))?;
    let authority_sha256 =
        tls::authority_sha256(identity).ok_or_else(|| Refusal::fault("the node's identity names no authority"))?;
    let token = Token { authority_sha256, secret, addresses };
    Ok((token.print()?, Sha256::digest(secret).into()))
}

/// Who joins.
#[derive(Debug, Clone, Copy)]
pub struct Joiner<'a> {
    /// Its data folder.
    pub data: &'a Path,
    /// How it is to be called.
    pub name: &'a str,
    /// Where others will reach it.
    pub advertise: Option<&'a str>,
    /// The highest format of entries that it knows.
    pub entry_format: u8,
}

/// Joins the cluster of a token. When this fails the data folder belongs to no cluster, as before.
///
/// # Errors
/// See [`ClusterError`].
pub async fn join(token: &str, joiner: Joiner<'_>) -> Result<Member, ClusterError> {
    let Joiner { data, name, advertise, entry_format } = joiner;
    let token = Token::parse(token).map_err(ClusterError::Refused)?;
    let address = advertise.map(member::address).transpose().map_err(ClusterError::Refused)?.ok_or_else(|| {
        ClusterError::Refused(Refusal::invalid(
            "invalid: --advertise HOST is missing: the name or address of this machine by which the other nodes reach it",
        ))
    })?;
    let (key, request) = ca::request(name)?;
    let question = Question::Join {
        secret: token.secret,
        name: name.to_owned(),
        address: address.clone(),
        entry_format,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        request,
    };
    let welcome = welcome(&token, &question).await.map_err(ClusterError::Refused)?;
    if let Some(secrets) = &welcome.secrets {
        keep_secrets(data, secrets)?;
    }
    ca::keep(data, &key, &welcome.certificates, welcome.authority_key.as_deref())?;
    let Welcome { cluster, node, raft, loopback, secrets, peers, .. } = welcome;
    let (name, worker) = (name.to_owned(), secrets.is_none());
    let member = Member { cluster, name, node, raft, loopback, address, formed: false, worker, peers };
    member.write(data)?;
    Ok(member)
}

/// Asks one member after the other until one answers.
async fn welcome(token: &Token, question: &Question) -> Result<Welcome, Refusal> {
    let mut unanswered = Vec::new();
    for address in &token.addresses {
        match ask_to_join(token.authority_sha256, address, question).await {
            Ok(Answer::Welcome(welcome)) => return Ok(*welcome),
            Ok(_other) => return Err(Refusal::fault(format!("invalid answer of {address}"))),
            // It can't be reached, or is none that can let others in at this moment: another may be.
            Err(refusal) if matches!(refusal.code, Code::HostDown | Code::Again) => unanswered.push(refusal.sentence),
            Err(refusal) => return Err(refusal),
        }
    }
    Err(Refusal::new(
        Code::HostDown,
        format!("no member of the cluster could let this machine in: {}", unanswered.join("; ")),
    ))
}

/// What the stores know each other by, where the store will look for it.
fn keep_secrets(data: &Path, (raft, api): &(String, String)) -> Result<(), ClusterError> {
    let folder = data.join("log");
    let path = folder.join("secret");
    let written = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        durable::replace(&path, 0o600, format!("{raft}\n{api}\n").as_bytes())
    };
    written().map_err(|source| ClusterError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let token = Token { authority_sha256: [7; 32], secret: [9; 16], addresses: vec!["alpha!5640".into()] };
        let text = token.print().unwrap();
        assert_eq!(Token::parse(&format!(" {text}\n")).unwrap(), token);
        let cut = &text[..text.len() - 8];
        for wrong in ["", "blixard1.", "blixard2.AAAA", "hello", cut] {
            assert!(Token::parse(wrong).unwrap_err().sentence.starts_with("invalid token"), "{wrong}");
        }
    }

    #[test]
    fn a_cluster_is_begun_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        assert!(init("Lab", &data, "alpha", None).is_err(), "not a name");
        assert!(init("lab", &data, "alpha", Some("*")).is_err(), "not an address");
        assert!(!data.exists());
        init("lab", &data, "alpha", Some("localhost")).unwrap();
        let again = init("lab", &data, "alpha", None).unwrap_err().to_string();
        assert!(again.contains("is node 'alpha' of cluster 'lab' already"), "{again}");
        let identity = Identity::read(&ca::node_identity(&data)).unwrap();
        assert!(token(&identity, Vec::new()).unwrap_err().sentence.contains("--advertise"));
        let (text, sha256) = token(&identity, vec!["localhost!5640".into()]).unwrap();
        assert_eq!(<[u8; 32]>::from(Sha256::digest(Token::parse(&text).unwrap().secret)), sha256);
    }
}
