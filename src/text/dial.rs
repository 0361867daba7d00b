//! Dial strings, as dial(3) of Plan 9 has them: `tcp!127.0.0.1!564`, `tls!alpha!5640`, `unix!/run/blixard/sock`.

use super::{Refusal, attrs::shown};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a unix socket, in bytes: sun_path of unix(7) less its NUL.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// The port that 9P has with IANA.
pub const NINEP_PORT: u16 = 564;

/// The port of 9P over TLS, unless another is given.
pub const TLS_PORT: u16 = 5640;

/// The host that stands for all addresses of this machine, where one listens.
pub const ANY_HOST: &str = "*";

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Dial {
    /// A host (name or address) and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port; 0 lets the kernel choose when listening.
        port: u16,
    },
    /// A host and a port at which TLS is spoken.
    Tls {
        /// Name or address.
        host: String,
        /// Port; 0 lets the kernel choose when listening.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// A port: a number, or what dial(3) calls the service.
fn port(text: &str, service: u16) -> Option<u16> {
    match text {
        "9fs" | "9pfs" => Some(service),
        // parse() would take "+564" too.
        number if number.bytes().all(|b| b.is_ascii_digit()) => number.parse().ok(),
        _ => None,
    }
}

impl FromStr for Dial {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Dial, Refusal> {
        let wrong = |why: &str| {
            let form = "a dial string is as tcp!127.0.0.1!564, tls!alpha!5640 or unix!/run/blixard/sock";
            Refusal::invalid(format!("invalid dial string '{}': {why}; {form}", shown(text)))
        };
        match text.split_once('!') {
            Some(("unix", path)) if path.len() > UNIX_PATH_BYTES_MAX => {
                Err(wrong(&format!("the path has {} bytes, and a socket's has at most 107", path.len())))
            }
            Some(("unix", "")) => Err(wrong("there is no path")),
            Some(("unix", path)) if path.contains('\0') => Err(wrong("the path has a NUL byte")),
            Some(("unix", path)) => Ok(Dial::Unix(path.into())),
            Some((network @ ("tcp" | "tls"), rest)) => {
                let service = if network == "tls" { TLS_PORT } else { NINEP_PORT };
                let (host, text) = rest.split_once('!').unwrap_or((rest, "9fs"));
                let port = port(text, service).ok_or_else(|| wrong("the port is no number up to 65535"))?;
                match (network, host) {
                    (_, "") => Err(wrong("there is no host")),
                    ("tls", host) => Ok(Dial::Tls { host: host.to_owned(), port }),
                    (_, host) => Ok(Dial::Tcp { host: host.to_owned(), port }),
                }
            }
            Some((network, _)) => Err(wrong(&format!("the network '{}' is unknown", shown(network)))),
            None => Err(wrong("there is no '!' in it")),
        }
    }
}

impl std::fmt::Display for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dial::Tcp { host, port } => write!(f, "tcp!{host}!{port}"),
            Dial::Tls { host, port } => write!(f, "tls!{host}!{port}"),
            Dial::Unix(path) => write!(f, "unix!{}", path.display()),
        }
    }
}

impl TryFrom<String> for Dial {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Dial, Refusal> {
        text.parse()
    }
}

impl From<Dial> for String {
    fn from(dial: Dial) -> String {
        dial.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dial_strings() {
        for text in ["tcp!127.0.0.1!564", "unix!/run/blixard/sock", "tcp!::1!5640", "tls!alpha!1", "tcp!*!564"] {
            assert_eq!(text.parse::<Dial>().unwrap().to_string(), text);
        }
        assert_eq!("tcp!alpha".parse::<Dial>().unwrap(), Dial::Tcp { host: "alpha".into(), port: 564 });
        assert_eq!("tls!alpha".parse::<Dial>().unwrap(), Dial::Tls { host: "alpha".into(), port: 5640 });
        assert_eq!("tls!alpha!9fs".parse::<Dial>().unwrap(), Dial::Tls { host: "alpha".into(), port: 5640 });
        for wrong in [
            "",
            "tcp",
            "tls",
            "tls!!1",
            "tls!h!65536",
            "tcp!",
            "tcp!h!70000",
            "tcp!h!+1",
            "tcp!h!",
            "tcp!h!1!2",
            "udp!h!1",
            "unix!/a\0b",
            "unix!",
            "/run/sock",
            &format!("unix!/{}", "x".repeat(200)),
        ] {
            assert!(wrong.parse::<Dial>().is_err(), "{wrong}");
        }
    }
}
