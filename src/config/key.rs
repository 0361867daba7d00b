//! The keys: one row each. What a key is called, what it takes, and how its text becomes a value.

use super::mistake::Source;
use super::{Config, Hypervisor, VARIABLE_PREFIX};
use crate::text::{Dial, dial::UNIX_PATH_BYTES_MAX, duration, name, nearest, percent, size, trace_level, unknown};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Guest memory of a node, in bytes: at least one small guest's.
const MEMORY_BYTES: RangeInclusive<u64> = 32 << 20..=1 << 50;
/// Virtual CPUs of a node.
const CPUS: RangeInclusive<u32> = 1..=65_536;
/// A lease in milliseconds: one that is shorter is over whenever a disk is slow, and with one that is longer nobody would wait for the end.
const LEASE_MS: RangeInclusive<u64> = 1_000..=600_000;
/// Difference of clocks in speed, in hundredths: where no time service slews, crystals differ by far less than one.
const LEASE_DRIFT_PERCENT: RangeInclusive<u32> = 1..=100;
/// What is waited besides, in milliseconds: below that a fence that is a little late is too late.
const LEASE_GRACE_MS: RangeInclusive<u64> = 1_000..=600_000;
/// Clock drift in milliseconds: more than a minute would make times useless to people.
const DRIFT_MS: RangeInclusive<u64> = 1..=60_000;
/// Entries of the stores' log: fewer, and a node that is started again would need a snapshot; with more the disk is full of them.
const LOG_KEEP: RangeInclusive<u64> = 1_000..=10_000_000;

/// What a key takes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A string or an integer.
    Number,
    /// `true` or `false`.
    Switch,
}

/// A text that somebody gave, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) source: Source,
}

/// What is wrong, and where.
type Wrong = Vec<(Source, String)>;

/// One key.
pub(super) struct Key {
    /// As in the file: `trace.level` is `level` in `[trace]`.
    pub(super) name: &'static str,
    /// The flag, if there is one.
    pub(super) flag: Option<&'static str>,
    /// What it takes in the file.
    pub(super) kind: Kind,
    /// A list in the file; several flags; words in the variable.
    pub(super) many: bool,
    /// What is allowed, with an example, for the sentences.
    pub(super) allowed: &'static str,
    /// Sets the value; what is wrong leaves it as it was.
    pub(super) set: fn(&mut Config, &[Text]) -> Wrong,
    /// The value as text.
    pub(super) get: fn(&Config) -> String,
}

/// All keys, in the order in which they are printed.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "name",
        flag: Some("--name"),
        kind: Kind::Text,
        many: false,
        allowed: "a name, as \"alpha\"",
        set: |config, texts| one(&mut config.name, texts, node_name),
        get: |config| config.name.clone(),
    },
    Key {
        name: "data",
        flag: Some("--data"),
        kind: Kind::Text,
        many: false,
        allowed: "a folder, as \"/var/lib/blixard\"",
        set: |config, texts| one(&mut config.data, texts, folder),
        get: |config| config.data.display().to_string(),
    },
    Key {
        name: "mount",
        flag: Some("--mount"),
        kind: Kind::Text,
        many: false,
        allowed: "a folder, as \"/n/blixard\"",
        set: |config, texts| one(&mut config.mount, texts, folder),
        get: |config| config.mount.display().to_string(),
    },
    Key {
        name: "listen",
        flag: Some("--listen"),
        kind: Kind::Text,
        many: true,
        allowed: "a list of dial strings, as [\"unix!/run/blixard/sock\", \"tls!*!5640\", \"tcp!127.0.0.1!564\"]",
        set: |config, texts| many(&mut config.listen, texts, dial),
        get: |config| dials(&config.listen),
    },
    Key {
        name: "insecure_listen",
        flag: Some("--insecure-listen"),
        kind: Kind::Text,
        many: true,
        allowed: "a list of tcp! dial strings, as [\"tcp!*!564\"]",
        set: |config, texts| many(&mut config.insecure_listen, texts, insecure_dial),
        get: |config| dials(&config.insecure_listen),
    },
    Key {
        name: "hypervisor",
        flag: Some("--hypervisor"),
        kind: Kind::Text,
        many: false,
        allowed: "\"qemu\" or \"simulated\"",
        set: |config, texts| one(&mut config.hypervisor, texts, hypervisor),
        get: |config| config.hypervisor.name().to_owned(),
    },
    Key {
        name: "images",
        flag: Some("--images"),
        kind: Kind::Text,
        many: false,
        allowed: "a folder, as \"/var/lib/blixard/images\"",
        set: |config, texts| one(&mut config.images, texts, folder),
        get: |config| config.images.display().to_string(),
    },
    Key {
        name: "trace.level",
        flag: Some("--trace"),
        kind: Kind::Text,
        many: false,
        allowed: "a level, as \"info\" or \"warn,blixard::fs=debug\"",
        set: |config, texts| one(&mut config.trace.level, texts, level),
        get: |config| config.trace.level.clone(),
    },
    Key {
        name: "trace.json",
        flag: Some("--json"),
        kind: Kind::Switch,
        many: false,
        allowed: "true or false",
        set: |config, texts| one(&mut config.trace.json, texts, switch),
        get: |config| config.trace.json.to_string(),
    },
    Key {
        name: "limits.memory",
        flag: None,
        kind: Kind::Number,
        many: false,
        allowed: "a size from 32M to 1P, as \"8G\"",
        set: |config, texts| one(&mut config.limits.memory_bytes, texts, |text| memory(text).map(Some)),
        get: |config| config.limits.memory_bytes.map(size::print).unwrap_or_default(),
    },
    Key {
        name: "limits.cpus",
        flag: None,
        kind: Kind::Number,
        many: false,
        allowed: "a number from 1 to 65536",
        set: |config, texts| one(&mut config.limits.cpus, texts, |text| cpus(text).map(Some)),
        get: |config| config.limits.cpus.map(|n| n.to_string()).unwrap_or_default(),
    },
    Key {
        name: "limits.drift",
        flag: None,
        kind: Kind::Text,
        many: false,
        allowed: "a duration from 1ms to 1m, as \"500ms\"",
        set: |config, texts| one(&mut config.limits.drift_max_ms, texts, |text| within(text, DRIFT_MS)),
        get: |config| duration::print(config.limits.drift_max_ms),
    },
    Key {
        name: "lease.length",
        flag: None,
        kind: Kind::Text,
        many: false,
        allowed: "a duration from 1s to 10m, as \"10s\"",
        set: |config, texts| one(&mut config.lease.length_ms, texts, |text| within(text, LEASE_MS)),
        get: |config| duration::print(config.lease.length_ms),
    },
    Key {
        name: "lease.drift",
        flag: None,
        kind: Kind::Text,
        many: false,
        allowed: "a difference in speed from 1% to 100%, as \"20%\"",
        set: |config, texts| one(&mut config.lease.drift_percent, texts, drift_percent),
        get: |config| percent::print(config.lease.drift_percent),
    },
    Key {
        name: "lease.grace",
        flag: None,
        kind: Kind::Text,
        many: false,
        allowed: "a duration from 1s to 10m, as \"2s\"",
        set: |config, texts| one(&mut config.lease.grace_ms, texts, |text| within(text, LEASE_GRACE_MS)),
        get: |config| duration::print(config.lease.grace_ms),
    },
    Key {
        name: "limits.log_keep",
        flag: None,
        kind: Kind::Number,
        many: false,
        allowed: "a number from 1000 to 10000000",
        set: |config, texts| one(&mut config.limits.log_keep, texts, log_keep),
        get: |config| config.limits.log_keep.to_string(),
    },
];

impl Key {
    /// The environment variable.
    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.replace('.', "_").to_uppercase())
    }
}

/// The variable that one of an unknown name was probably meant to be.
pub(super) fn nearest_variable(variable: &str) -> Option<String> {
    let word = variable.strip_prefix(VARIABLE_PREFIX)?.to_lowercase().replace('_', ".");
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let near = nearest(&word, &names)?;
    KEYS.iter().find(|key| key.name == near).map(Key::variable)
}

/// The key that a path of the file was probably meant to be: by its whole path, or by its last part in another section.
pub(super) fn nearest_key(path: &str) -> Option<&'static str> {
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    let lasts: Vec<&str> = names.iter().map(|name| last(name)).collect();
    let by_last = || {
        let near = nearest(path.rsplit('.').next()?, &lasts)?;
        names.iter().copied().find(|name| last(name) == near)
    };
    nearest(path, &names).or_else(by_last)
}

fn one<T>(into: &mut T, texts: &[Text], parse: impl Fn(&Text) -> Result<T, String>) -> Wrong {
    let mut wrong = Vec::new();
    for text in texts {
        match parse(text) {
            Ok(value) => *into = value,
            Err(what) => wrong.push((text.source.clone(), what)),
        }
    }
    wrong
}

fn many<T>(into: &mut Vec<T>, texts: &[Text], parse: impl Fn(&Text) -> Result<T, String>) -> Wrong {
    into.clear();
    let mut wrong = Vec::new();
    for text in texts {
        match parse(text) {
            Ok(value) => into.push(value),
            Err(what) => wrong.push((text.source.clone(), what)),
        }
    }
    wrong
}

fn node_name(text: &Text) -> Result<String, String> {
    name::check(&text.text).map(|()| text.text.clone()).map_err(|refusal| refusal.sentence)
}

/// A path, made absolute: in a variable or flag it may be relative to the working folder, in a file it may not, as
/// nobody could say to what.
fn folder(text: &Text) -> Result<PathBuf, String> {
    let shown = text.text.escape_debug();
    if text.text.is_empty() {
        return Err("invalid folder: it is empty; a folder is as /var/lib/blixard".to_owned());
    }
    if text.text.contains('\0') {
        return Err(format!("invalid folder '{shown}': it has a NUL byte"));
    }
    if matches!(text.source, Source::File { .. }) && !text.text.starts_with('/') {
        return Err(format!("invalid folder '{shown}': in a file it must be absolute, beginning with '/'"));
    }
    std::path::absolute(&text.text)
        .map_err(|e| format!("invalid folder '{shown}': the working folder can't be found: {e}"))
}

fn dials(dials: &[Dial]) -> String {
    dials.iter().map(Dial::to_string).collect::<Vec<_>>().join(",")
}

fn insecure_dial(text: &Text) -> Result<Dial, String> {
    match text.text.parse::<Dial>().map_err(|refusal| refusal.sentence)? {
        dial @ Dial::Tcp { .. } => Ok(dial),
        dial => Err(format!("invalid dial string '{dial}': only tcp! can be insecure; give it as --listen {dial}")),
    }
}

fn dial(text: &Text) -> Result<Dial, String> {
    match text.text.parse::<Dial>().map_err(|refusal| refusal.sentence)? {
        Dial::Unix(path) => {
            let path = folder(&Text { text: path.to_string_lossy().into_owned(), source: text.source.clone() })?;
            match path.as_os_str().len() {
                ..=UNIX_PATH_BYTES_MAX => Ok(Dial::Unix(path)),
                bytes => Err(format!(
                    "invalid dial string: the socket's whole path, {}, has {bytes} bytes, and {UNIX_PATH_BYTES_MAX} are \
                     the most",
                    path.display()
                )),
            }
        }
        dial @ Dial::Tls { .. } => Ok(dial),
        Dial::Tcp { host, port } => {
            let address = host.parse::<IpAddr>().ok();
            if host == "localhost" || address.is_some_and(|a| a.to_canonical().is_loopback()) {
                return Ok(Dial::Tcp { host, port });
            }
            let name = if address.is_some() { "an address of this machine alone" } else { "known to be this machine" };
            Err(format!(
                "invalid dial string '{}': '{}' is not {name}, and over plain TCP only loopback is served, because the \
                 kernel can't say who asks from elsewhere; use tls!HOST!PORT, where certificates say it, or \
                 --insecure-listen, where everybody may read and nobody may write, or tcp!127.0.0.1!{port}",
                text.text.escape_debug(),
                host.escape_debug()
            ))
        }
    }
}

fn hypervisor(text: &Text) -> Result<Hypervisor, String> {
    match text.text.as_str() {
        "qemu" => Ok(Hypervisor::Qemu),
        "simulated" => Ok(Hypervisor::Simulated),
        other => Err(unknown("hypervisor", other, Hypervisor::NAMES).sentence),
    }
}

fn level(text: &Text) -> Result<String, String> {
    trace_level::check(&text.text).map(|()| text.text.clone()).map_err(|refusal| refusal.sentence)
}

fn switch(text: &Text) -> Result<bool, String> {
    text.text.parse().map_err(|_| format!("invalid value '{}': it is true or false", text.text.escape_debug()))
}

fn memory(text: &Text) -> Result<u64, String> {
    let bytes = size::parse(&text.text).map_err(|refusal| refusal.sentence)?;
    let (least, most) = (size::print(*MEMORY_BYTES.start()), size::print(*MEMORY_BYTES.end()));
    if MEMORY_BYTES.contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("invalid size '{}': it is from {least} to {most}", text.text.escape_debug()))
    }
}

fn cpus(text: &Text) -> Result<u32, String> {
    let number = text.text.parse().ok().filter(|n| CPUS.contains(n));
    number.ok_or_else(|| {
        format!("invalid number '{}': it is from {} to {}", text.text.escape_debug(), CPUS.start(), CPUS.end())
    })
}

fn log_keep(text: &Text) -> Result<u64, String> {
    let number = text.text.parse().ok().filter(|n| LOG_KEEP.contains(n));
    number.ok_or_else(|| {
        let (least, most) = (LOG_KEEP.start(), LOG_KEEP.end());
        format!("invalid number '{}': it is from {least} to {most}", text.text.escape_debug())
    })
}

/// A duration in milliseconds.
fn within(text: &Text, range_ms: RangeInclusive<u64>) -> Result<u64, String> {
    let ms = duration::parse(&text.text).map_err(|refusal| refusal.sentence)?;
    let (least, most) = (duration::print(*range_ms.start()), duration::print(*range_ms.end()));
    if range_ms.contains(&ms) {
        Ok(ms)
    } else {
        Err(format!("invalid duration '{}': it is from {least} to {most}", text.text.escape_debug()))
    }
}

fn drift_percent(text: &Text) -> Result<u32, String> {
    let number = percent::parse(&text.text).ok().filter(|n| LEASE_DRIFT_PERCENT.contains(n));
    number.ok_or_else(|| {
        let (least, most) = (LEASE_DRIFT_PERCENT.start(), LEASE_DRIFT_PERCENT.end());
        format!("invalid difference '{}': it is from {least}% to {most}%", text.text.escape_debug())
    })
}
