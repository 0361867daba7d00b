//! The configuration of a node: a TOML file, then the environment, then flags; what comes later wins.
//!
//! Each key is one row of the table in `key.rs`. All that is given is checked, also what is overridden, and every
//! mistake is told at once, with its place, its key, what is wrong and what is allowed. Knows `text`, and the clock's
//! usual limit.

mod file;
mod key;
mod mistake;
mod places;

pub use mistake::{Mistake, Mistakes, Source};

use crate::clock::DRIFT_MAX_MS;
use crate::text::dial::UNIX_PATH_BYTES_MAX;
use crate::text::{Dial, columns::Table, name};
use key::{KEYS, Key, Text};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/blixard.toml";
const DEFAULT_DATA: &str = "/var/lib/blixard";
const DEFAULT_MOUNT: &str = "/n/blixard";
const DEFAULT_IMAGES: &str = "/var/lib/blixard/images";
/// A node that dies is replaced after 14 s: two renewals of three may be lost, and a leader. A time service slews by a twelfth at most
/// (83,333 ppm, chrony's `maxslewrate`): two machines that do so in opposite ways differ by 1.083 / 0.917. And a busy host's fence
/// comes late, and a killed process is not gone at once.
const DEFAULT_LEASE: Lease = Lease { length_ms: 10_000, drift_percent: 20, grace_ms: 2_000 };
/// The socket of a node with the default data folder; with another one it is `sock` in that.
pub const DEFAULT_SOCKET: &str = "/run/blixard/sock";
/// What each variable begins with: `trace.level` is BLIXARD_TRACE_LEVEL.
const VARIABLE_PREFIX: &str = "BLIXARD_";
/// Names the file, as `--config` does.
const FILE_VARIABLE: &str = "BLIXARD_CONFIG";

/// What runs the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// QEMU.
    Qemu,
    /// None at all: it only behaves as if.
    Simulated,
}

impl Hypervisor {
    const NAMES: &[&str] = &["qemu", "simulated"];

    /// `qemu` or `simulated`.
    pub fn name(self) -> &'static str {
        match self {
            Hypervisor::Qemu => "qemu",
            Hypervisor::Simulated => "simulated",
        }
    }
}

/// What the trace shows, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// As `info` or `warn,blixard::fs=debug`.
    pub level: String,
    /// One JSON object a line.
    pub json: bool,
}

/// Kept unless it is said: a node may be away for minutes while hundreds of commits a second go on, and needs no snapshot.
const LOG_KEEP: u64 = 100_000;

/// What is bounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory that all guests of this node may have together, in bytes; None: what the host has to spare.
    pub memory_bytes: Option<u64>,
    /// Virtual CPUs that all guests of this node may have together; None: no limit, they share the host's.
    pub cpus: Option<u32>,
    /// How far another node's stamp may be ahead of this machine's clock, in milliseconds.
    pub drift_max_ms: u64,
    /// Entries of the stores' log that are kept for nodes that are away.
    pub log_keep: u64,
}

/// How this node's lease is, and how those of the others are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// How long it lasts, in milliseconds.
    pub length_ms: u64,
    /// By how much the clocks of two machines may differ in speed, in hundredths.
    pub drift_percent: u32,
    /// What is waited besides, in milliseconds, before another one's lease is taken for over.
    pub grace_ms: u64,
}

/// The configuration of a node, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node's name.
    pub name: String,
    /// The data folder, absolute.
    pub data: PathBuf,
    /// Where the tree is mounted, absolute.
    pub mount: PathBuf,
    /// Where 9P is served. There is always a unix socket among them: the command line needs one.
    pub listen: Vec<Dial>,
    /// Where plain TCP is served besides, to whoever comes: they are nobody.
    pub insecure_listen: Vec<Dial>,
    /// What runs the machines.
    pub hypervisor: Hypervisor,
    /// The folder of the images, absolute.
    pub images: PathBuf,
    /// The trace.
    pub trace: Trace,
    /// The limits.
    pub limits: Limits,
    /// The leases.
    pub lease: Lease,
    /// Where each key that was set came from.
    sources: BTreeMap<&'static str, Source>,
}

/// What the flags of the command line say: text, as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `--config FILE`
    pub config: Option<PathBuf>,
    /// `--name NODE`
    pub name: Option<String>,
    /// `--data DIR`
    pub data: Option<String>,
    /// `--mount DIR`
    pub mount: Option<String>,
    /// `--listen DIAL`, as often as wanted
    pub listen: Vec<String>,
    /// `--insecure-listen DIAL`, as often as wanted
    pub insecure_listen: Vec<String>,
    /// `--hypervisor qemu|simulated`
    pub hypervisor: Option<String>,
    /// `--images DIR`
    pub images: Option<String>,
    /// `--trace LEVEL`
    pub trace: Option<String>,
    /// `--json`: the trace as JSON
    pub json: bool,
}

impl Options {
    /// What was given for a key, if anything.
    fn texts(&self, key: &Key) -> Option<Vec<String>> {
        let one = |text: &Option<String>| text.clone().map(|t| vec![t]);
        match key.name {
            "name" => one(&self.name),
            "data" => one(&self.data),
            "mount" => one(&self.mount),
            "listen" => (!self.listen.is_empty()).then(|| self.listen.clone()),
            "insecure_listen" => (!self.insecure_listen.is_empty()).then(|| self.insecure_listen.clone()),
            "hypervisor" => one(&self.hypervisor),
            "images" => one(&self.images),
            "trace.level" => one(&self.trace),
            "trace.json" => self.json.then(|| vec!["true".to_owned()]),
            _ => None,
        }
    }
}

/// A key with what one source says of it.
struct Given {
    key: &'static Key,
    source: Source,
    texts: Vec<Text>,
}

impl Config {
    /// The configuration from flags, variables and the file that they name (else [`DEFAULT_FILE`] if it is there).
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(
        options: &Options,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Mistakes> {
        let mut mistakes = Vec::new();
        let variables = Variables::read(variables, &mut mistakes);
        let mut given = match (&options.config, variables.file) {
            (Some(path), _) => file::read(path, &Source::Flag("--config"), &mut mistakes),
            (None, Some(path)) => file::read(&path, &Source::Variable(FILE_VARIABLE.to_owned()), &mut mistakes),
            (None, None) => file::read_if_there(Path::new(DEFAULT_FILE), &mut mistakes),
        };
        given.extend(variables.given);
        given.extend(flags(options));
        let mut config = Config::defaults();
        for Given { key, source, texts } in given {
            let wrong = (key.set)(&mut config, &texts);
            mistakes.extend(wrong.into_iter().map(|(source, what)| Mistake { source, key: key.name.to_owned(), what }));
            config.sources.insert(key.name, source);
        }
        config.complete(&mut mistakes);
        Mistakes::none_of(mistakes)?;
        Ok(config)
    }

    fn defaults() -> Config {
        Config {
            name: String::new(),
            data: DEFAULT_DATA.into(),
            mount: DEFAULT_MOUNT.into(),
            listen: Vec::new(),
            insecure_listen: Vec::new(),
            hypervisor: Hypervisor::Qemu,
            images: DEFAULT_IMAGES.into(),
            trace: Trace { level: "info".to_owned(), json: false },
            limits: Limits { memory_bytes: None, cpus: None, drift_max_ms: DRIFT_MAX_MS, log_keep: LOG_KEEP },
            lease: DEFAULT_LEASE,
            sources: BTreeMap::new(),
        }
    }

    /// Where the value of a key came from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// One line a key: its value and where that came from.
    pub fn print(&self) -> String {
        let mut table = Table::new(&["key", "value", "from"]);
        for key in KEYS {
            table.row([key.name.to_owned(), (key.get)(self), self.source(key.name).to_string()]);
        }
        table.print()
    }

    /// Can the folders be used by whoever runs this? To be asked before anything is made.
    ///
    /// # Errors
    /// All that can't be; as an ordinary user it says which flags to give.
    pub fn check_places(&self) -> Result<(), Mistakes> {
        Mistakes::none_of(places::check(self, &|path, how| rustix::fs::access(path, how)))
    }

    /// What follows from other keys, and what must fit together.
    fn complete(&mut self, mistakes: &mut Vec<Mistake>) {
        if !self.sources.contains_key("name") {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            match host_as_name(&host) {
                Some(name) => self.name = name,
                None => {
                    let what =
                        format!("invalid name: nothing of this machine's own, '{host}', can be one; give --name NODE");
                    mistakes.push(self.mistake("name", what));
                }
            }
        }
        let named = |key| move |dial| (key, dial);
        let all =
            self.listen.iter().map(named("listen")).chain(self.insecure_listen.iter().map(named("insecure_listen")));
        let all: Vec<_> = all.collect();
        for (index, (key, dial)) in all.iter().enumerate() {
            if all.iter().take(index).any(|(_, before)| before == dial) {
                mistakes.push(self.mistake(key, format!("invalid dial string '{dial}': it is given twice")));
            }
        }
        if !self.listen.iter().any(|dial| matches!(dial, Dial::Unix(_))) {
            let socket = self.default_socket();
            if socket.as_os_str().len() > UNIX_PATH_BYTES_MAX {
                let what = format!(
                    "invalid socket {}: a socket's path has at most {UNIX_PATH_BYTES_MAX} bytes; \
                     give --listen unix!PATH with a shorter one",
                    socket.display()
                );
                mistakes.push(self.mistake("data", what));
            }
            self.listen.insert(0, Dial::Unix(socket));
        }
        // Of a data folder that is hidden the socket within is not told as well.
        let data_hidden = self.data.starts_with(&self.mount);
        let told = |key: &str, path: &Path| key != "listen" || !data_hidden || !path.starts_with(&self.data);
        for (key, path) in self.own_paths().filter(|(key, path)| path.starts_with(&self.mount) && told(key, path)) {
            let (path, mount) = (path.display(), self.mount.display());
            let what = format!("invalid folder {path}: it would be hidden by the tree on {mount} (mount)");
            mistakes.push(self.mistake(key, what));
        }
    }

    fn mistake(&self, key: &str, what: String) -> Mistake {
        Mistake { source: self.source(key), key: key.to_owned(), what }
    }

    fn default_socket(&self) -> PathBuf {
        if self.data == Path::new(DEFAULT_DATA) { DEFAULT_SOCKET.into() } else { self.data.join("sock") }
    }

    /// Each path that the node uses beside the tree itself, with its key.
    fn own_paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let sockets = self.listen.iter().filter_map(|dial| match dial {
            Dial::Unix(path) => Some(("listen", path.as_path())),
            Dial::Tcp { .. } | Dial::Tls { .. } => None,
        });
        [("data", self.data.as_path()), ("images", self.images.as_path())].into_iter().chain(sockets)
    }
}

/// What the variables say.
struct Variables {
    given: Vec<Given>,
    file: Option<PathBuf>,
}

impl Variables {
    fn read(variables: impl IntoIterator<Item = (OsString, OsString)>, mistakes: &mut Vec<Mistake>) -> Variables {
        let mut read = Variables { given: Vec::new(), file: None };
        for (variable, value) in variables {
            let Some(variable) = variable.to_str().filter(|v| v.starts_with(VARIABLE_PREFIX)) else { continue };
            let source = Source::Variable(variable.to_owned());
            let mut wrong = |what: &str| {
                mistakes.push(Mistake { source: source.clone(), key: String::new(), what: what.to_owned() })
            };
            let key = KEYS.iter().find(|key| key.variable() == variable);
            match (key, value.to_str()) {
                (None, _) if variable == FILE_VARIABLE => read.file = Some(value.into()),
                (None, _) => {
                    // Others may have variables of this prefix too, as our own scripts do: only what is nearly a
                    // key's is a mistake.
                    if let Some(near) = key::nearest_variable(variable) {
                        wrong(&format!("invalid variable: there is none of this name; did you mean {near}?"));
                    }
                }
                (Some(_), None) => wrong("invalid value: it is not UTF-8"),
                (Some(key), Some(value)) => read.given.push(Given::words(key, value, source)),
            }
        }
        read
    }
}

impl Given {
    /// From a variable: what may be given several times is separated by spaces.
    fn words(key: &'static Key, value: &str, source: Source) -> Given {
        let text = |text: &str| Text { text: text.to_owned(), source: source.clone() };
        let texts = if key.many { value.split_whitespace().map(text).collect() } else { vec![text(value)] };
        Given { key, source, texts }
    }
}

fn flags(options: &Options) -> impl Iterator<Item = Given> {
    KEYS.iter().filter_map(|key| {
        let source = Source::Flag(key.flag?);
        let texts = options.texts(key)?.into_iter().map(|text| Text { text, source: source.clone() }).collect();
        Some(Given { key, source, texts })
    })
}

/// This machine's name as a node's.
///
/// # Errors
/// Nothing of it can be one.
pub fn machine_name() -> Result<String, String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    host_as_name(&host)
        .ok_or(format!("invalid name: nothing of this machine's own, '{host}', can be one; give --node NODE"))
}

/// A machine's name as a node's: its first label, in lower case, `-` for what a name can't have, `node-` before a mere
/// number.
fn host_as_name(host: &str) -> Option<String> {
    let label = host.split('.').next().unwrap_or_default().to_lowercase();
    let letter = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let legal: String = label.chars().map(letter).take(name::NAME_BYTES_MAX).collect();
    let legal = legal.trim_matches('-');
    let named = if legal.bytes().all(|b| b.is_ascii_digit()) && !legal.is_empty() {
        format!("node-{legal}").chars().take(name::NAME_BYTES_MAX).collect()
    } else {
        legal.to_owned()
    };
    name::check(&named).is_ok().then_some(named)
}

#[cfg(test)]
mod tests;
