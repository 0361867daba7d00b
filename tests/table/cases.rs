//! Attributes, verbs, lines and whole writes.

use super::Expected::{Refused, Taken};
use super::{Case, Does};
use blixard::text::Code::{self, Busy, Exists, Invalid, NoSpace, NotFound, Stale, TooLong};

/// Lines that are written, the errno, and what must be said.
type Rows = &'static [(&'static str, Code, &'static str)];

/// What is wrong with each attribute of a VM: type, zero, negative, absurd, empty.
const VM_VALUES: Rows = &[
    ("cpus=two", Invalid, "cpus=two"),
    ("cpus=''", Invalid, "cpus="),
    ("cpus=0", Invalid, "1 to 64"),
    ("cpus=-1", Invalid, "whole number"),
    ("cpus=+1", Invalid, "whole number"),
    ("cpus=1.5", Invalid, "whole number"),
    ("cpus=0x2", Invalid, "whole number"),
    ("cpus=２", Invalid, "whole number"),
    ("cpus=65", Invalid, "1 to 64"),
    ("cpus=4294967297", Invalid, "cpus=4294967297"),
    ("cpus=99999999999999999999999", Invalid, "cpus=999"),
    ("memory=lots", Invalid, "memory"),
    ("memory=''", Invalid, "memory"),
    ("memory=0", Invalid, "32M to 1T"),
    ("memory=-1", Invalid, "memory"),
    ("memory=1.5G", Invalid, "memory"),
    ("memory=1E", Invalid, "32M to 1T"),
    ("memory=16E", Invalid, "memory"),
    ("memory=31M", Invalid, "32M to 1T"),
    ("memory=33554433", Invalid, "multiple of 1M"),
    ("memory=128MB", Invalid, "512M"),
    ("disk=big", Invalid, "disk"),
    ("disk=0", Invalid, "1M to 16T"),
    ("disk=-1M", Invalid, "disk"),
    ("disk=1K", Invalid, "1M to 16T"),
    ("disk=17T", Invalid, "1M to 16T"),
    ("disk=1048577", Invalid, "multiple of 1M"),
    ("pool=no-such", NotFound, "ipam/list"),
    ("ip=here", Invalid, "10.42.0.7"),
    ("ip=''", Invalid, "address"),
    ("ip=0", Invalid, "address"),
    ("ip=-1", Invalid, "address"),
    ("ip=10.42.0.7/16", Invalid, "address"),
    ("ip=10.42.0.999", Invalid, "address"),
    ("ip=192.0.2.7", Invalid, "192.0.2.7"),
    ("ip=fd00::7", Invalid, "fd00::7"),
    ("ip=10.42.0.0", Invalid, "10.42.0.0"),
    ("ip=10.42.0.1", Invalid, "10.42.0.1"),
    ("ip=10.42.255.255", Invalid, "10.42.255.255"),
    ("ip={ip}", Exists, "vms/{id}"),
    ("restart=sometimes", Invalid, "never, on-failure, always"),
    ("restart=''", Invalid, "never, on-failure, always"),
    ("restart=0", Invalid, "never, on-failure, always"),
    ("restart=Always", Invalid, "always"),
    ("grace=soon", Invalid, "30s"),
    ("grace=''", Invalid, "grace"),
    ("grace=0", Invalid, "30s"),
    ("grace=5", Invalid, "30s"),
    ("grace=-5s", Invalid, "30s"),
    ("grace=1h1ms", Invalid, "1h"),
    ("grace=99999999999999999999d", Invalid, "grace"),
];

/// What is wrong with a line of `vms/new` as a whole.
const VM_LINES: Rows = &[
    ("cpus=1", Invalid, "image= is missing"),
    ("name=table-x", Invalid, "image= is missing"),
    ("image", Invalid, "value is missing"),
    ("image=", Invalid, "at least one letter"),
    ("image=no-such", NotFound, "there are: "),
    ("image=tniy", NotFound, "did you mean 'tiny'?"),
    ("image=tiny colour=red", Invalid, "there are: name, image"),
    ("image=tiny cpu=2", Invalid, "did you mean 'cpus'?"),
    ("image=tiny Cpus=2", Invalid, "did you mean 'cpus'?"),
    ("image=tiny cpus=1 cpus=2", Invalid, "'cpus' is given twice"),
    ("image=tiny image=tiny", Invalid, "'image' is given twice"),
    ("image=tiny cpus", Invalid, "cpus=VALUE"),
    ("image=tiny start", Invalid, "'start'"),
    ("start image=tiny", Invalid, "'start'"),
    ("image=tiny =2", Invalid, "no attribute before '='"),
    ("image=tiny name='table-x", Invalid, "not closed"),
    (r"image=tiny id='\t'", Invalid, "escape"),
    ("image=tiny ''", Invalid, "empty"),
    ("image=tiny !name=table-x", Invalid, "no secret"),
    ("image=tiny !password=sesame", Invalid, "'password'"),
    ("image=tiny id=''", Invalid, "1 to 128"),
    (r"image=tiny id='a\nb'", Invalid, "1 to 128"),
    ("image=tiny version=1", Invalid, "'version'"),
    ("image=tiny\nimage=tiny cpus=0", Invalid, "line 2"),
    ("# two\nimage=tiny\n\nimage=no-such", NotFound, "line 4"),
    ("image=tiny\nimage='", Invalid, "line 2, column 7"),
    ("image=tiny\nimage=tiny ip=10.42.9.9\nimage=tiny ip=10.42.9.9", Exists, "line 3"),
    ("\n", Invalid, "nothing in it to make"),
    ("# nothing\r\n  \n", Invalid, "nothing in it to make"),
];

/// What is wrong with what is written to a VM's ctl; the VM was never started.
const VM_VERBS: Rows = &[
    ("fly", Invalid, "there are: start, stop"),
    ("strat", Invalid, "did you mean 'start'?"),
    ("START", Invalid, "there are: start"),
    ("start stop", Invalid, "one verb a line"),
    ("start now", Invalid, "'now'"),
    ("start fast=yes", Invalid, "'fast'"),
    ("start wait=30s", Invalid, "`wait`"),
    ("stop wait=30s", Invalid, "`wait`"),
    ("name=table-x", Invalid, "where a verb must be"),
    ("start version=99", Stale, "has version"),
    ("start version=0", Stale, "has version"),
    ("start version=x", Invalid, "version=x"),
    ("start version=-1", Invalid, "whole number"),
    ("start version", Invalid, "version=VALUE"),
    ("start version=1 version=1", Invalid, "twice"),
    ("start !version=1", Invalid, "no secret"),
    ("start id=''", Invalid, "1 to 128"),
    ("stop grace=soon", Invalid, "30s"),
    ("stop grace=-1s", Invalid, "30s"),
    ("stop grace=0", Invalid, "30s"),
    ("stop grace=2h", Invalid, "1h"),
    ("kill grace=1s", Invalid, "'grace'"),
    ("restart", Busy, "start it"),
    ("pause", Busy, "only a running one"),
    ("resume", Busy, "only a paused one"),
    ("set", Invalid, "no attribute to change"),
    ("set version=1", Invalid, "no attribute to change"),
    ("set colour=red", Invalid, "there are: name"),
    ("set disk=1G", Invalid, "'disk'"),
    ("set cpus=0", Invalid, "1 to 64"),
    ("set cpus=many", Invalid, "whole number"),
    ("set memory=1E", Invalid, "32M to 1T"),
    ("set grace=2h", Invalid, "1h"),
    ("set restart=maybe", Invalid, "never"),
    ("set image=no-such", NotFound, "there are: "),
    ("set cpus=2 cpus=3", Invalid, "twice"),
    ("delete now=1", Invalid, "'now'"),
    ("start\nfly", Invalid, "line 2"),
    ("set cpus=2\n# then\nstart version=99", Stale, "line 3"),
    ("delete\nstart", NotFound, "line 2"),
    ("start\ndelete", Busy, "line 2"),
    ("start\0", Invalid, "NUL"),
];

/// The same for the other files that take something.
const OTHERS: &[(&str, Rows)] = &[
    (
        "nodes/{node}/ctl",
        &[
            (
                "reboot",
                Invalid,
                "there are: promote, demote, cordon, drain, undrain, leave, remove, forget, set, trace",
            ),
            ("trace", Invalid, "level= is missing"),
            ("trace level=''", Invalid, "level"),
            ("trace level=inof", Invalid, "did you mean 'info'?"),
            ("trace level=info level=debug", Invalid, "twice"),
            ("trace level=info\nfly", Invalid, "line 2"),
        ],
    ),
    (
        "ipam/new",
        &[
            ("network=10.77.0.0/24", Invalid, "name= is missing"),
            ("name=table-pool", Invalid, "network= is missing"),
            ("name=table-pool network=here", Invalid, "10.43.0.0/16"),
            ("name=table-pool network=10.77.0.0/33", Invalid, "network"),
            ("name=table-pool network=10.77.0.0/-1", Invalid, "network"),
            ("name=table-pool network=10.42.7.0/24", Invalid, "overlaps"),
            ("name=table-pool network=127.0.0.0/8", Invalid, "127.0.0.0"),
            ("name=table-pool network=10.77.0.0/24 gateway=10.78.0.1", Invalid, "10.78.0.1"),
            ("name=table-pool network=10.77.0.0/24 gateway=me", Invalid, "gateway"),
            ("name=table-pool network=10.77.0.0/24 reserved=all", Invalid, "reserved"),
            ("name=table-pool network=10.77.0.0/24 reserved=10.77.0.9-10.77.0.2", Invalid, "10.77.0"),
            ("name=table-pool network=10.77.0.0/24 mtu=1500", Invalid, "there are: name, network"),
            ("name=table-pool network=10.77.0.0/24\nname=table-pool network=10.78.0.0/24", Exists, "line 2"),
        ],
    ),
    ("ipam/default/ctl", &[("delete", Busy, "leased"), ("empty", Invalid, "there are: delete")]),
    (
        "images/tiny/ctl",
        &[("delete", Busy, "uses it"), ("delete force=1", Invalid, "takes none"), ("download", Invalid, "delete")],
    ),
    (
        "users/new",
        &[
            ("role=viewer", Invalid, "name= is missing"),
            ("name=table-user role=king", Invalid, "viewer, operator, admin"),
            ("name=table-user role=''", Invalid, "viewer, operator, admin"),
            ("name=table-user uid=root", Invalid, "whole number"),
            ("name=table-user uid=-1", Invalid, "whole number"),
            ("name=table-user uid=4294967296", Invalid, "uid=4294967296"),
            ("name=table-user shell=sh", Invalid, "there are: name, role, uid"),
        ],
    ),
    (
        "users/{me}/ctl",
        &[
            ("set", Invalid, "no attribute to change"),
            ("set role=king", Invalid, "viewer"),
            ("set within=nodes/alpha", Invalid, "within= takes VMs"),
            ("set within=vms/999999999", NotFound, "not found"),
            ("set within=vms/{id}", Invalid, "an admin can't be confined"),
            ("revoke", Invalid, "cert= is missing"),
            ("revoke cert=xyz", Invalid, "hexadecimal"),
            ("delete", Busy, "the last admin"),
            ("fly", Invalid, "set"),
        ],
    ),
    (
        "vms/{id}/events",
        &[
            ("from", Invalid, "from=VALUE"),
            ("from=then", Invalid, "whole number"),
            ("from=-1", Invalid, "whole number"),
            ("to=1", Invalid, "there are: from"),
            ("from=1 from=2", Invalid, "twice"),
            ("from=1\nfrom=2", Invalid, "line 2"),
            ("\n", Invalid, "from=SEQ"),
        ],
    ),
    ("events", &[("from=then", Invalid, "whole number")]),
    ("log", &[("from=then", Invalid, "whole number")]),
];

/// What shells write: all of it is taken, and changes nothing here.
const HABITS: &[&str] = &[
    "stop",
    "stop\n",
    "stop\r\n",
    "  stop  # never started\n",
    "stop\n\n\n# a comment\n\tstop\n",
    "stop grace=1h",
    "stop id=table-key",
    "stop id=table-key",
    "set grace=30s restart='on-failure'",
];

/// Whole writes.
fn writes() -> Vec<Case> {
    let write = |path: &str, input: Vec<u8>, code, says| Case::of(Does::Write, path, input, Refused(code, says));
    let two_thousand = |good: &str, bad: &str| format!("{}{bad}", format!("{good}\n").repeat(1_999)).into_bytes();
    let mut not_utf8 = b"start\nset restart=".to_vec();
    not_utf8.push(0xff);
    let long_key = format!("image=tiny id={}", "k".repeat(129));
    vec![
        write("vms/new", vec![b'#'; 64 * 1024 + 1], TooLong, "65536"),
        write("vms/{id}/ctl", vec![b'#'; 64 * 1024 + 1], TooLong, "65536"),
        write("vms/new", two_thousand("image=tiny", "image=tiny cpus=0"), Invalid, "line 2000"),
        write("vms/new", two_thousand("image=tiny", "image=tiny name=table-web"), Exists, "line 2000"),
        write("vms/new", two_thousand("image=tiny", "image=tiny memory="), Invalid, "line 2000"),
        write("vms/{id}/ctl", two_thousand("set cpus=2", "fly"), Invalid, "line 2000"),
        write("vms/{id}/ctl", two_thousand("set cpus=2", "start version=99"), Stale, "line 2000"),
        write("vms/{id}/ctl", two_thousand("set cpus=2", "pause"), Busy, "line 2000"),
        write("vms/{id}/ctl", not_utf8, Invalid, "line 2, column 13"),
        write("vms/new", long_key.into_bytes(), Invalid, "1 to 128"),
        // Two machines of one transaction want the same address: neither is made.
        write("vms/new", b"image=tiny ip=10.42.7.7\nimage=tiny ip=10.42.7.7\n".to_vec(), Exists, "line 2"),
        write("vms/{id}/ctl", b"set memory=1T\nstart".to_vec(), NoSpace, "line 2"),
    ]
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut refused = |path: &str, input: String, (code, says): (Code, &'static str)| {
        cases.push(Case::of(Does::Write, path, input, Refused(code, says)));
    };
    for (value, code, says) in VM_VALUES {
        refused("vms/new", format!("image=tiny {value}"), (*code, says));
    }
    let of_vms = [("vms/new", VM_LINES), ("vms/{id}/ctl", VM_VERBS)];
    for (path, rows) in of_vms.iter().chain(OTHERS) {
        for (input, code, says) in *rows {
            refused(path, (*input).to_owned(), (*code, says));
        }
    }
    cases.extend(HABITS.iter().map(|input| Case::of(Does::Write, "vms/{id}/ctl", input, Taken)));
    cases.extend(writes());
    cases
}
