//! TLS for 9P: who one is (an [`Identity`]), and what the other side's certificate says (a [`Holder`]).
//!
//! Only TLS 1.3, only certificates of the cluster's own authority, on both sides. A certificate is either a user's (its common
//! name is the user) or a node's (its alternative names are the hosts); neither passes for the other. Sessions are never
//! resumed, so that each connection shows its certificate anew.

use super::holder::{Holder, Purpose};
use super::identity::{Identity, IdentityError};
use crate::text::time::rfc3339;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Connections at a time that have yet to prove who they are by TLS: whoever can reach the port can make as many, and must
/// not take the places of those who have come in.
pub const HANDSHAKES_MAX: usize = 128;

/// How long a TLS handshake may take: three round trips on the worst of lines.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Whether the holder of a certificate, which is otherwise right, may come in; if not, why.
pub type Admit = Arc<dyn Fn(&Holder) -> Result<(), String> + Send + Sync>;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for authority in identity.authorities() {
        roots.add(authority.clone()).map_err(|error| identity.unusable(&error))?;
    }
    Ok(Arc::new(roots))
}

/// What all servers have in common.
fn server_config(
    identity: &Identity,
    verifier: Certified,
    chain: Vec<CertificateDer<'static>>,
) -> Result<ServerConfig, IdentityError> {
    identity.check_purpose(Purpose::Node)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| identity.unusable(&error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, identity.key())
        .map_err(|error| identity.unusable(&error))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The server's half.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// For a node's identity.
    ///
    /// # Errors
    /// It is not a node's, or can't be used.
    pub fn new(identity: &Identity, admit: Admit) -> Result<Acceptor, IdentityError> {
        let by_authority = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider());
        let by_authority = by_authority.build().map_err(|error| identity.unusable(&error))?;
        let verifier = Certified { by_authority, admit, purposes: &[Purpose::User] };
        let config = server_config(identity, verifier, identity.chain())?;
        Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
    }

    /// The handshake, and whose certificate the client has shown. It has no deadline of its own.
    ///
    /// # Errors
    /// Why the client is not let in, as a sentence.
    pub async fn accept<S>(&self, stream: S) -> Result<(server::TlsStream<S>, Holder), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.0.accept(stream).await.map_err(|error| explain(&error, "client"))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let holder = Holder::of(shown.ok_or("the client has shown no certificate")?)?;
        Ok((stream, holder))
    }
}

/// The stream of a server's side.
pub type ServerStream = server::TlsStream<TcpStream>;

/// The server's half where nodes come in as well as users, each connection for a protocol that it names (ALPN).
#[derive(Clone)]
pub struct PeerAcceptor(TlsAcceptor);

impl PeerAcceptor {
    /// For a node's identity. Whoever shows no certificate gets through the handshake, too: they may have a protocol for it.
    ///
    /// # Errors
    /// It is not a node's, or can't be used.
    pub fn new(identity: &Identity, admit: Admit, protocols: &[&[u8]]) -> Result<PeerAcceptor, IdentityError> {
        let by_authority = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider());
        let by_authority = by_authority.allow_unauthenticated().build().map_err(|error| identity.unusable(&error))?;
        let verifier = Certified { by_authority, admit, purposes: &[Purpose::User, Purpose::Node] };
        // With the authority's, for those who know it by its hash alone.
        let mut chain = identity.chain();
        chain.extend(identity.authorities().iter().cloned());
        let mut config = server_config(identity, verifier, chain)?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(PeerAcceptor(TlsAcceptor::from(Arc::new(config))))
    }

    /// The handshake: whose certificate the client has shown, if any, and the protocol. It has no deadline of its own.
    ///
    /// # Errors
    /// Why the client is not let in, as a sentence.
    pub async fn accept(&self, stream: TcpStream) -> Result<(ServerStream, Option<Holder>, Option<Vec<u8>>), String> {
        let stream = self.0.accept(stream).await.map_err(|error| explain(&error, "client"))?;
        let connection = stream.get_ref().1;
        let holder =
            connection.peer_certificates().and_then(<[_]>::first).map(|shown| Holder::of(shown)).transpose()?;
        let protocol = connection.alpn_protocol().map(<[u8]>::to_vec);
        Ok((stream, holder, protocol))
    }
}

/// As [`connect`], for a protocol of [`PeerAcceptor`]'s.
///
/// # Errors
/// Why not, as a sentence.
pub async fn connect_for<S>(
    identity: &Identity,
    host: &str,
    stream: S,
    protocol: &[u8],
) -> Result<client::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = client_config(identity).map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    shake_hands(config, host, stream).await
}

/// Connects without an identity, to a server whose authority's certificate has this SHA-256.
///
/// # Errors
/// Why not, as a sentence.
pub async fn connect_pinned<S>(
    authority_sha256: [u8; 32],
    host: &str,
    stream: S,
    protocol: &[u8],
) -> Result<client::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { authority_sha256 }))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    shake_hands(config, host, stream).await
}

async fn shake_hands<S>(config: ClientConfig, host: &str, stream: S) -> Result<client::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("'{host}' is no host's name or address"))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| explain(&error, "server"))
}

/// The SHA-256 of the first authority's certificate of an identity, by which others know it.
pub fn authority_sha256(identity: &Identity) -> Option<[u8; 32]> {
    identity.authorities().first().map(|authority| Sha256::digest(authority).into())
}

/// Believes the authority whose certificate has this hash, if the server shows it along with its own.
#[derive(Debug)]
struct Pinned {
    authority_sha256: [u8; 32],
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_pinned =
            |certificate: &&CertificateDer<'_>| <[u8; 32]>::from(Sha256::digest(certificate)) == self.authority_sha256;
        let Some(authority) = intermediates.iter().find(is_pinned) else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(shown, &[], host, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Connects as this identity, to a server whose certificate must be for `host`. It has no deadline of its own.
///
/// # Errors
/// Why not, as a sentence.
pub async fn connect<S>(identity: &Identity, host: &str, stream: S) -> Result<client::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    shake_hands(client_config(identity).map_err(|error| error.to_string())?, host, stream).await
}

/// What the end of a connection was, as a sentence. In TLS 1.3 a server looks at the client's certificate when the client has done
/// its part, so that a refusal comes with the first read.
pub fn end_of(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::AlertReceived(alert)) => format!(
            "the server has refused this identity ({alert:?}): it may have been revoked, be out of date, or be another \
             cluster's; the server's trace says which"
        ),
        _ => error.to_string(),
    }
}

fn client_config(identity: &Identity) -> Result<ClientConfig, IdentityError> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| identity.unusable(&error))?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain(), identity.key())
        .map_err(|error| identity.unusable(&error))
}

/// Lets in who has a certificate of the authority for one of these purposes, and is still welcome.
struct Certified {
    by_authority: Arc<dyn ClientCertVerifier>,
    admit: Admit,
    /// In the order in which the first is told to whoever has none of them.
    purposes: &'static [Purpose],
}

impl fmt::Debug for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certified").finish_non_exhaustive()
    }
}

/// A reason of our own for not taking a certificate.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAdmitted(String);

impl ClientCertVerifier for Certified {
    fn client_auth_mandatory(&self) -> bool {
        self.by_authority.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.by_authority.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.by_authority.verify_client_cert(shown, intermediates, now)?;
        let admitted = Holder::of(shown).and_then(|holder| {
            if !self.purposes.contains(&holder.purpose) {
                holder.check_purpose(Purpose::User)?;
            }
            (self.admit)(&holder)
        });
        let refused = |why| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NotAdmitted(why)))));
        admitted.map(|()| verified).map_err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls12_signature(message, shown, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls13_signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

/// What went wrong in a handshake, for people; `other` is the side that is not ours.
fn explain(error: &io::Error, other: &str) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("the {other} closed the connection during the TLS handshake"),
            _ => format!("the connection to the {other} failed during the TLS handshake: {error}"),
        };
    };
    match tls {
        Error::NoCertificatesPresented => format!("the {other} has shown no certificate"),
        Error::InvalidCertificate(why) => format!("the {other}'s certificate is not taken: {}", certificate(why)),
        Error::InvalidMessage(_) => {
            format!("what came from the {other} is not TLS: is plain 9P spoken there, as to a tcp! dial string?")
        }
        Error::AlertReceived(alert) => format!("the {other} has refused: {alert:?}"),
        Error::PeerIncompatible(_) => format!("the {other} does not speak TLS 1.3 as it is spoken here: {tls}"),
        other => other.to_string(),
    }
}

fn certificate(why: &CertificateError) -> String {
    let date = |time: &UnixTime| rfc3339(time.as_secs().saturating_mul(1000));
    match why {
        CertificateError::ExpiredContext { not_after, .. } => format!("it expired at {}", date(not_after)),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("it is not valid before {}, and by this machine's clock it is {}", date(not_before), date(time))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is not signed by this cluster's authority".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!("it is not for {}, only for {}", expected.to_str(), names.join(", "))
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it was issued for another purpose: a user's is no node's".to_owned()
        }
        CertificateError::Other(other) => other.to_string(),
        other => other.to_string(),
    }
}

/// A name as webpki shows it, `DnsName("alpha")` or `IpAddress(10.0.0.1)`, without what is around it.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"')
}
