//! What a certificate says of who holds it: the name, the number, the dates, what it is for.

use crate::text::time::rfc3339;
use std::net::IpAddr;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A user shows it to nodes (extended key usage: clientAuth alone).
    User,
    /// A node shows it to users and other nodes (serverAuth as well).
    Node,
    /// Something else, such as signing others.
    Other,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Purpose::User => "user",
            Purpose::Node => "node",
            Purpose::Other => "other",
        })
    }
}

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Their common name.
    pub name: String,
    /// The certificate's number, in lower hexadecimal digits.
    pub serial: String,
    /// From when it is valid, milliseconds since the epoch.
    pub issued_ms: u64,
    /// Until when it is valid, milliseconds since the epoch.
    pub expires_ms: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// The names and addresses that it is for.
    pub hosts: Vec<String>,
}

impl Holder {
    /// The holder of this certificate, whoever has signed it.
    ///
    /// # Errors
    /// Why the bytes are no certificate of ours, as a sentence.
    pub fn of(der: &[u8]) -> Result<Holder, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| format!("it can't be read: {error}"))?;
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let milliseconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        let validity = certificate.validity();
        Ok(Holder {
            name: name.ok_or("it has no common name")?.to_owned(),
            serial: serial(certificate.raw_serial()),
            issued_ms: milliseconds(validity.not_before.timestamp()),
            expires_ms: milliseconds(validity.not_after.timestamp()),
            purpose: purpose(&certificate),
            hosts: hosts(&certificate),
        })
    }

    /// Is it for this?
    ///
    /// # Errors
    /// What it is for, as a sentence.
    pub fn check_purpose(&self, wanted: Purpose) -> Result<(), String> {
        if self.purpose == wanted {
            return Ok(());
        }
        let this = match self.purpose {
            Purpose::User => "a user's",
            Purpose::Node => "a node's",
            Purpose::Other => "neither a user's nor a node's",
        };
        Err(format!("it is {this}, of '{}', and a {wanted}'s is needed", self.name))
    }

    /// Is it valid at this time?
    ///
    /// # Errors
    /// From or until when it is, as a sentence.
    pub fn check_time(&self, now_ms: u64) -> Result<(), String> {
        if now_ms < self.issued_ms {
            let (from, now) = (rfc3339(self.issued_ms), rfc3339(now_ms));
            Err(format!("it is not valid before {from}, and by this machine's clock it is {now}"))
        } else if now_ms > self.expires_ms {
            Err(format!("it expired at {}", rfc3339(self.expires_ms)))
        } else {
            Ok(())
        }
    }
}

/// Without the zero that keeps a DER integer positive.
fn serial(raw: &[u8]) -> String {
    let digits = match raw {
        [0, rest @ ..] if !rest.is_empty() => rest,
        raw => raw,
    };
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn purpose(certificate: &X509Certificate<'_>) -> Purpose {
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.server_auth => Purpose::Node,
        Ok(Some(usage)) if usage.value.client_auth => Purpose::User,
        _ => Purpose::Other,
    }
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let shown = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    };
    names.value.general_names.iter().filter_map(shown).collect()
}
