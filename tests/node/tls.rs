//! Certificates over TLS: the right one comes in, every wrong one is refused with its reason in the trace, and nothing hangs.

use crate::secure::{Secure, ca_done, ca_refused};
use crate::support::{PATIENCE_S, begin};
use blixard::ninep::identity::Identity;
use blixard::ninep::{Dialect, List, NOFID, NOTAG, NumericId, Request, tls};
use bytes::BytesMut;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(PATIENCE_S);

/// A Tversion.
const VERSION: &[u8] = b"\x15\0\0\0\x64\xff\xff\0\x20\0\0\x08\x009P2000.L";

/// A certificate, and its key.
type Shown = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn pem(path: &Path) -> Shown {
    let text = std::fs::read(path).unwrap();
    (CertificateDer::from_pem_slice(&text).unwrap(), PrivateKeyDer::from_pem_slice(&text).unwrap())
}

/// The authority of the node.
fn authority(secure: &Secure) -> Issuer<'static, KeyPair> {
    let read = |file: &str| std::fs::read_to_string(secure.node.data().join("ca").join(file)).unwrap();
    Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap()
}

/// Another authority that calls itself like the node's.
fn impostor(secure: &Secure) -> Issuer<'static, KeyPair> {
    let text = std::fs::read(secure.node.data().join("ca/ca.pem")).unwrap();
    let (_, own) = x509_parser::parse_x509_certificate(&CertificateDer::from_pem_slice(&text).unwrap())
        .map(|(a, c)| (a.len(), c.subject().to_string()))
        .unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, own.trim_start_matches("CN=").to_owned());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::new(params, KeyPair::generate().unwrap())
}

/// A certificate for ann, valid in these years.
fn made(by: &Issuer<'static, KeyPair>, purposes: &[ExtendedKeyUsagePurpose], years: (i32, i32)) -> Shown {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ann");
    params.extended_key_usages = purposes.to_vec();
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    (certificate.der().clone(), PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
}

/// How a client that shows this connects.
fn connector(secure: &Secure, shown: Option<&Shown>) -> (TlsConnector, ServerName<'static>) {
    let mut roots = RootCertStore::empty();
    let text = std::fs::read(secure.node.data().join("ca/ca.pem")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&text).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = match shown {
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap(),
        None => config.with_no_client_auth(),
    };
    (TlsConnector::from(Arc::new(config)), ServerName::try_from(secure.host.clone()).unwrap())
}

/// Does the server speak 9P to whoever shows this? It has to say so, or to end it.
async fn is_let_in(secure: &Secure, shown: Option<&Shown>, port: u16) -> bool {
    let (connector, name) = connector(secure, shown);
    let attempt = async {
        let stream = TcpStream::connect((secure.host.as_str(), port)).await?;
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(VERSION).await?;
        let mut reply = [0; 7];
        stream.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>(reply[4] == 101)
    };
    timeout(PATIENCE, attempt).await.expect("the server says something or ends it").unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_certificate_comes_in_and_every_other_is_refused_with_a_reason() {
    let secure = Secure::start();
    secure.node.write("users/new", "name=ann role=operator").unwrap();
    // Who says nothing waits for the deadline of the handshake meanwhile.
    let mut silent = TcpStream::connect((secure.host.as_str(), 5640)).await.unwrap();
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (own, other) = (authority(&secure), impostor(&secure));
    let right = made(&own, &client, (2020, 2100));
    assert!(is_let_in(&secure, Some(&right), 5640).await);
    let revoked = secure.issue("ann");
    let list = ca_done(&secure.node.data(), &["list"]);
    let serial = list.lines().find(|line| line.contains("  ann  ")).unwrap().split(' ').next().unwrap();
    secure.node.write("users/ann/ctl", &format!("revoke cert={serial}")).unwrap();
    let cases: &[(Option<Shown>, &str)] = &[
        (None, "the client has shown no certificate"),
        (Some(made(&other, &client, (2020, 2100))), "it is not signed by this cluster's authority"),
        (Some(made(&own, &client, (2020, 2021))), "it expired at 2021-01-01T00:00:00.000Z"),
        (Some(made(&own, &client, (2100, 2101))), "it is not valid before 2100-01-01T00:00:00.000Z"),
        (Some(made(&own, &both, (2020, 2100))), "it is a node's, of 'ann', and a user's is needed"),
        (Some(made(&own, &[], (2020, 2100))), "it is neither a user's nor a node's, of 'ann'"),
        (Some(pem(&secure.node.data().join("ca/node.pem"))), "it is a node's"),
        (Some(pem(&secure.issue("nemo"))), "there is no user 'nemo'"),
        (Some(pem(&revoked)), &format!("the certificate {serial} of user 'ann' is revoked")),
    ];
    for (shown, reason) in cases {
        assert!(!is_let_in(&secure, shown.as_ref(), 5640).await, "{reason}");
        secure.until_traced(reason);
    }
    assert!(!is_let_in(&secure, Some(&right), 5641).await, "TLS on a plain port");
    secure.until_traced("it looks like TLS, which is spoken on listeners of tls! alone");
    for bytes in [VERSION, b"GET / HTTP/1.1\r\n\r\n"] {
        let mut plain = TcpStream::connect((secure.host.as_str(), 5640)).await.unwrap();
        plain.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // An alert may come before the end, which may be a reset.
        let _ = timeout(PATIENCE, plain.read_to_end(&mut answer)).await.expect("it is closed");
        assert!(answer.len() < 8, "{answer:?}");
    }
    secure.until_traced("what came from the client is not TLS");
    assert_eq!(timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it is closed").unwrap_or(0), 0);
    secure.until_traced("it has not proved who it is within 10 s");
    assert!(is_let_in(&secure, Some(&right), 5640).await, "and all the same the right one comes in");
}

/// However much waits in the server, in TLS and in the sockets, all of it comes in the end.
#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_however_late_it_is_read() {
    let secure = Secure::start();
    secure.node.write("users/new", "name=ann role=viewer").unwrap();
    let (connector, name) = connector(&secure, Some(&pem(&secure.issue("ann"))));
    let stream = TcpStream::connect((secure.host.as_str(), 5640)).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(connector.connect(name, stream).await.unwrap());
    let mut bytes = BytesMut::new();
    let mut say = |tag: u16, request: Request<'_>| request.encode(Dialect::L, tag, &mut bytes).unwrap();
    let mut scratch = BytesMut::new();
    let (afid, n_uname) = (NOFID, NumericId::NONE);
    say(NOTAG, Request::Version { msize: 65_536, version: "9P2000.L" });
    say(1, Request::Attach { fid: 0, afid, uname: "", aname: "", n_uname });
    say(1, Request::Walk { fid: 0, newfid: 1, names: List::of(&["README"], &mut scratch).unwrap() });
    say(1, Request::Lopen { fid: 1, flags: 0 });
    let reads = 4_000;
    for tag in 0..reads {
        say(tag, Request::Read { fid: 1, offset: 0, count: 60_000 });
    }
    // Nobody reads until the server takes no more: its socket is full then.
    let writing = tokio::spawn(async move { writer.write_all(&bytes).await.map(|()| writer) });
    let row = |node: &crate::support::Node| crate::users::sessions(node).into_iter().find(|row| row[1] == "ann");
    let mut before = None;
    crate::secure::until("the server is held up", || {
        let now = row(&secure.node).map(|row| (row[8].clone(), row[11].clone()));
        let is_still = now.is_some() && now == before && now.as_ref().is_some_and(|(requests, _)| requests != "0");
        before = now;
        std::thread::sleep(Duration::from_millis(20));
        is_still
    });
    for answer in 0..u32::from(reads) + 4 {
        let reading = async {
            let size = reader.read_u32_le().await.unwrap();
            let mut rest = vec![0; size as usize - 4];
            reader.read_exact(&mut rest).await.unwrap();
            assert_ne!(rest[0], 7, "an error");
        };
        timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("answer {answer} does not come"));
    }
    writing.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_takes_no_server_but_its_own() {
    let secure = Secure::start();
    let identity = Identity::read(&secure.issue("ann")).unwrap();
    let stream = || async { TcpStream::connect((secure.host.as_str(), 5640)).await.unwrap() };
    let said = tls::connect(&identity, "beta.example", stream().await).await.err().unwrap();
    let names = format!("it is not for beta.example, only for {}", secure.host);
    assert!(said.contains(&names) && said.contains("localhost"), "{said}");
    // A user of another cluster.
    let other = tempfile::tempdir().unwrap();
    begin(other.path(), &[]);
    let path = other.path().join("ann.pem");
    ca_done(other.path(), &["issue", "ann", "--out", path.to_str().unwrap()]);
    let said = tls::connect(&Identity::read(&path).unwrap(), &secure.host, stream().await).await.err().unwrap();
    assert!(said.contains("the server's certificate is not taken: it is not signed by this cluster's"), "{said}");
}

#[test]
fn a_bad_identity_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (data, path) = (folder.path().join("data"), folder.path().join("ann.pem"));
    let said = |path: &Path| Identity::read(path).unwrap_err().to_string();
    assert!(said(&path).contains("a user's by 'blixard ca issue NAME'"), "{}", said(&path));
    assert!(ca_refused(&data, &["issue", "ann"]).contains("since 'blixard cluster init'"));
    assert!(ca_refused(&data, &["list"]).contains("there is no authority's key in"));
    begin(&data, &["--node", "alpha", "--advertise", "alpha.example"]);
    let node = Identity::read(&data.join("ca/node.pem")).unwrap();
    let hosts = ["alpha.example", "alpha", "localhost", "127.0.0.1", "::1"];
    assert!(hosts.iter().all(|host| node.holder().hosts.iter().any(|h| h == host)), "{:?}", node.holder());
    let issue = ["issue", "ann", "--out", path.to_str().unwrap()];
    ca_done(&data, &issue);
    assert!(ca_refused(&data, &issue).contains("ann.pem: File exists"), "nothing is written over");
    assert!(ca_refused(&data, &["issue", "Ann"]).contains("invalid name 'Ann'"));
    let list = ca_done(&data, &["list"]);
    assert_eq!(list.lines().filter(|line| line.contains("  user  ann")).count(), 2, "{list}");
    let (mode, text) = (|mode| PermissionsExt::from_mode(mode), std::fs::read_to_string(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&path, mode(0o640)).unwrap();
    assert!(
        said(&path).contains("has mode 0640, so that others can read its private key; chmod 600"),
        "{}",
        said(&path)
    );
    std::fs::set_permissions(&path, mode(0o600)).unwrap();
    let (key, certificates) = text.split_once("-----BEGIN CERTIFICATE-----").unwrap();
    let one = format!("{key}-----BEGIN CERTIFICATE-----{}", certificates.split("-----BEGIN").next().unwrap());
    for (text, wrong) in [
        ("", "it has no private key"),
        ("hello", "it has no private key"),
        (key, "it has no certificate"),
        (certificates, "it has no private key"),
        (&one, "it has only one certificate"),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(said(&path).contains(wrong), "{}", said(&path));
    }
    let key = data.join("ca/ca.key");
    std::fs::set_permissions(&key, mode(0o644)).unwrap();
    assert!(ca_refused(&data, &["issue", "bob"]).contains("mode 0644, so that others can read the authority's"));
    assert!(ca_refused(&data, &["revoke", "zoe"]).contains("no certificate that is still valid was issued here"));
    assert!(ca_refused(&data, &["revoke", "ann", "xyz"]).contains("invalid serial number 'xyz'"));
}

/// What has expired is told with its date, before anything is sent.
#[test]
fn an_expired_identity_says_since_when() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    begin(&data, &[]);
    let read = |file: &str| std::fs::read_to_string(data.join("ca").join(file)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let path = data.join("old.pem");
    std::fs::write(&path, [key.serialize_pem(), certificate.pem(), read("ca.pem")].concat()).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let said = Identity::read(&path).unwrap_err().to_string();
    assert!(said.contains("it expired at 2021-01-01T00:00:00.000Z; issue a new one"), "{said}");
}
