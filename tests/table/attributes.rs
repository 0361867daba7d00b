//! What can be wrong with any attribute, whatever it means: each one of each file that takes some.

use super::Case;
use super::Does::Write;
use super::Expected::Refused;
use blixard::text::Code::Invalid;

/// A file, what a line of it begins with, and its attributes, each with a value that is right.
type Takes = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const TAKES: &[Takes] = &[
    (
        "vms/new",
        "",
        &[
            ("name", "table-x"),
            ("image", "tiny"),
            ("cpus", "1"),
            ("memory", "64M"),
            ("disk", "1G"),
            ("pool", "default"),
            ("ip", "10.42.9.9"),
            ("restart", "never"),
            ("grace", "1s"),
            ("id", "table-x"),
        ],
    ),
    (
        "vms/{id}/ctl",
        "set ",
        &[
            ("name", "table-x"),
            ("image", "tiny"),
            ("cpus", "1"),
            ("memory", "96M"),
            ("restart", "never"),
            ("grace", "1s"),
            ("version", "1"),
            ("id", "table-x"),
        ],
    ),
    ("vms/{id}/ctl", "start ", &[("version", "1"), ("id", "table-x")]),
    ("vms/{id}/ctl", "stop ", &[("grace", "1s"), ("version", "1"), ("id", "table-x")]),
    ("vms/{id}/ctl", "kill ", &[("version", "1"), ("id", "table-x")]),
    ("vms/{id}/ctl", "restart ", &[("version", "1"), ("id", "table-x")]),
    ("vms/{id}/ctl", "pause ", &[("version", "1"), ("id", "table-x")]),
    ("vms/{id}/ctl", "resume ", &[("version", "1"), ("id", "table-x")]),
    ("vms/{id}/ctl", "delete ", &[("version", "1"), ("id", "table-x")]),
    ("nodes/{node}/ctl", "trace ", &[("level", "info")]),
    (
        "ipam/new",
        "",
        &[
            ("name", "table-pool"),
            ("network", "10.77.0.0/24"),
            ("gateway", "10.77.0.1"),
            ("reserved", "10.77.0.2-10.77.0.9"),
        ],
    ),
    ("users/new", "", &[("name", "table-user"), ("role", "viewer"), ("uid", "4242"), ("within", "vms/{id}")]),
    ("users/{me}/ctl", "set ", &[("role", "admin"), ("uid", "0"), ("within", "vms/{id}")]),
    ("users/{me}/ctl", "revoke ", &[("cert", "ab12")]),
    ("events", "", &[("from", "1")]),
    ("log", "", &[("from", "1")]),
    ("vms/events", "", &[("from", "1")]),
    ("vms/{id}/events", "", &[("from", "1")]),
    ("nodes/{node}/events", "", &[("from", "1")]),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (path, begins, attributes) in TAKES {
        let mut refused = |input: String, says: &'static str| {
            cases.push(Case::of(Write, path, format!("{begins}{input}"), Refused(Invalid, says)));
        };
        for (key, value) in *attributes {
            refused(format!("{key}={value} {key}={value}"), "given twice");
            refused(format!("{key}={value} {key}=''"), "given twice");
            refused(format!("!{key}={value}"), "no secret");
            // `restart` is a verb as well.
            let bare = if (*begins, *key) == ("set ", "restart") { "'restart'" } else { "a value is missing" };
            refused((*key).to_owned(), bare);
            refused(format!("{key}={value} {key}-{key}=1"), "attribute");
            refused(format!("{key}={value} colour=red"), "'colour'");
            refused(format!("{key}='{value}"), "not closed");
            refused(format!("{key}={value} =1"), "no attribute before '='");
            // An empty name takes a VM's name away, an empty confinement a user's confinement.
            if !matches!((*begins, *key), ("set ", "name" | "within")) {
                refused(format!("{key}="), "");
            }
        }
    }
    cases
}
