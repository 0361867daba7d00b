//! Names: in what is written, and on the way to a file.

use super::Expected::{Refused, Taken};
use super::{Case, Does};
use blixard::text::Code::{self, Denied, Exists, Invalid, IsDirectory, NotDirectory, NotFound, NotPermitted};

/// A name's text as it is written, and what is said about it.
const ILLEGAL: &[(&str, &str)] = &[
    ("''", "at least one letter"),
    (".", "begins with a letter"),
    ("..", "begins with a letter"),
    ("-a", "begins with a letter"),
    ("a/b", "has only the letters"),
    ("../../etc/passwd", "begins with a letter"),
    ("Web", "begins with a letter"),
    ("wEB", "has only the letters"),
    ("ä", "begins with a letter"),
    ("a_b", "has only the letters"),
    ("'a b'", "has only the letters"),
    (r"'a\nb'", "has only the letters"),
    ("42", "only digits would be a number"),
    ("new", "a file beside the objects"),
    ("list", "a file beside the objects"),
    ("json", "a file beside the objects"),
    ("events", "a file beside the objects"),
];

fn written() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut refused = |path: &str, input: String, says| {
        cases.push(Case::of(Does::Write, path, input, Refused(Invalid, says)));
    };
    for (name, says) in ILLEGAL {
        refused("vms/new", format!("image=tiny name={name}"), says);
        refused("ipam/new", format!("network=10.77.0.0/24 name={name}"), says);
        refused("users/new", format!("name={name}"), says);
        // An empty name takes the name away.
        if *name != "''" {
            refused("vms/{id}/ctl", format!("set name={name}"), says);
        }
        refused("vms/new", format!("image={name}"), says);
        refused("vms/new", format!("image=tiny pool={name}"), says);
    }
    let long = "a".repeat(10 * 1024);
    for path in ["vms/new", "ipam/new", "users/new"] {
        refused(path, format!("name={long}"), "at most 63");
    }
    refused("vms/{id}/ctl", format!("set name={long}"), "at most 63");
    refused("vms/{id}/ctl", long.clone(), "invalid verb");
    refused("vms/new", format!("{long}=1"), "invalid attribute");
    refused("users/new", "name=none".to_owned(), "whoever the cluster doesn't know");
    for (path, with) in [("vms/new", "image=tiny name"), ("vms/{id}/ctl", "set name"), ("users/new", "name")] {
        cases.push(Case::of(Does::Write, path, format!("{with}=a\0b"), Refused(Invalid, "NUL")));
        let latin1 = [with.as_bytes(), b"=caf\xe9"].concat();
        cases.push(Case::of(Does::Write, path, latin1, Refused(Invalid, "not UTF-8")));
    }
    let taken = [
        ("vms/new", "image=tiny name=table-web"),
        ("vms/new", "image=tiny name=table-a\nimage=tiny name=table-a"),
        ("ipam/new", "name=default network=10.77.0.0/24"),
        ("users/new", "name={me}"),
        ("users/new", "name={me} role=viewer"),
    ];
    cases.extend(taken.map(|(path, input)| Case::of(Does::Write, path, input, Refused(Exists, "exists already"))));
    cases
}

/// Paths that lead nowhere.
const NOWHERE: &[&str] = &[
    "no-such",
    "vms/no-such/status",
    "vms/no-such",
    "vms/0/status",
    "vms/-1/status",
    "vms/+1/status",
    "vms/0{id}/status",
    "vms/{id} /status",
    "vms/999999999/status",
    "vms/281474976710656/status",
    "vms/18446744073709551615/status",
    "vms/18446744073709551616/status",
    "vms/{gone}/status",
    "vms/table-gone/status",
    "vms/{id}/no-such",
    "vms/{id}/STATUS",
    "nodes/1/status",
    "nodes/no-such/status",
    "images/no-such/status",
    "ipam/0/status",
    "users/none/status",
];

fn walked() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut at = |does, path: &[u8], code: Code, says: &'static str| {
        cases.push(Case::of(does, path, "start", Refused(code, says)).not_noted());
    };
    for path in NOWHERE {
        at(Does::Read, path.as_bytes(), NotFound, "not found");
        at(Does::Write, path.as_bytes(), NotFound, "not found");
    }
    at(Does::Write, b"vms/{gone}/ctl", NotFound, "not found");
    at(Does::Write, b"vms/999999999/ctl", NotFound, "not found");
    at(Does::Read, b"vms/caf\xe9/status", NotFound, "not found");
    at(Does::Read, &[b"vms/".to_vec(), vec![b'a'; 200]].concat(), NotFound, "not found");
    at(Does::Read, &[b"vms/".to_vec(), vec![b'a'; 300]].concat(), Code::NameTooLong, "");
    at(Does::Read, b"README/x", NotDirectory, "not a directory");
    at(Does::Read, b"vms/{id}/status/x", NotDirectory, "not a directory");
    at(Does::Write, b"vms", IsDirectory, "directory");
    at(Does::Write, b"vms/{id}", IsDirectory, "directory");
    at(Does::Rmdir, b"vms/999999999", NotFound, "not found");
    at(Does::Rmdir, b"vms/{gone}", NotFound, "not found");
    at(Does::Rm, b"vms/{id}/no-such", NotFound, "not found");
    cases
}

fn made_and_removed() -> Vec<Case> {
    let refused = |does, path: &str, says| Case::of(does, path, "", Refused(NotPermitted, says));
    let mut cases = vec![
        refused(Does::Mkdir, "vms/other", "vms/new"),
        refused(Does::Mkdir, "vms/4242", "vms/new"),
        refused(Does::Mkdir, "vms/{id}/other", "other"),
        refused(Does::Mkdir, "other", "other"),
        refused(Does::Create, "vms/other", "vms/new"),
        refused(Does::Create, "vms/{id}/.status.swp", "write to the files that are there"),
        refused(Does::Create, "ipam/other", "ipam/new"),
        refused(Does::Create, "images/other", "nothing can be made here"),
        refused(Does::Create, "other", "nothing can be made here"),
        refused(Does::Rm, "README", "part of the tree"),
        refused(Does::Rm, "vms/new", "part of the tree"),
        refused(Does::Rm, "vms/list", "part of the tree"),
        refused(Does::Rm, "vms/{id}/ctl", "rmdir"),
        refused(Does::Rm, "vms/{id}/status", "rmdir"),
        refused(Does::Rm, "vms/table-web", "set name="),
        refused(Does::Rm, "users/{me}/ctl", "belongs to its object"),
        refused(Does::Rmdir, "vms", "part of the tree"),
        refused(Does::Rmdir, "nodes/{node}", "/nodes"),
    ];
    let busy = |path: &str, says| Case::of(Does::Rmdir, path, "", Refused(Code::Busy, says));
    cases.push(busy("ipam/default", "leased"));
    cases.push(busy("images/tiny", "uses it"));
    cases.push(busy("users/{me}", "the last admin"));
    for only_read in ["README", "version", "me", "status", "vms/list", "vms/json", "vms/{id}/status", "vms/{id}/spec"] {
        cases.push(Case::of(Does::Write, only_read, "anything", Refused(Denied, "only read")));
    }
    for (path, input) in [("vms/{id}/ctl", ""), ("vms/new", ""), ("vms/{id}/ctl", "\n"), ("vms/{id}/ctl", "# only\r\n")]
    {
        cases.push(Case::of(Does::Write, path, input, Taken));
    }
    cases
}

pub fn cases() -> Vec<Case> {
    written().into_iter().chain(walked()).chain(made_and_removed()).collect()
}
