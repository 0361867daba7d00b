//! Programs that nobody here wrote: those of Debian's `diod`, over both transports.

use super::raw::Running;
use super::toy::{MANY, README, big};
use std::process::{Command, Output};

/// What a tool says of the tree at `aname`.
fn run(tool: &str, server: &str, aname: &str, arguments: &[&str]) -> Output {
    let path = format!("/usr/sbin/{tool}");
    let mut command = Command::new(&path);
    command.args(["-t", "30", "-s", server, "-a", aname]).args(arguments);
    command.output().unwrap_or_else(|e| panic!("{path}: {e}: install Debian's diod"))
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn diodcat_and_diodls() {
    let running = Running::start();
    for server in [format!("127.0.0.1:{}", running.port()), running.socket.to_str().unwrap().to_owned()] {
        assert_eq!(said(&run("diodcat", &server, "/", &["README"])).as_bytes(), README, "{server}");
        assert_eq!(run("diodcat", &server, "/", &["big", "README"]).stdout, [&big()[..], README].concat());
        assert_eq!(said(&run("diodcat", &server, "/dir/sub", &["leaf"])), "leaf\n");
        let small = run("diodcat", &server, "/", &["-m", "8192", "big"]);
        assert_eq!(small.stdout, big(), "with the smallest msize");
        let listed = said(&run("diodls", &server, "/", &["/many"]));
        let mut names: Vec<_> = listed.split_whitespace().filter(|name| name.parse::<u64>().is_ok()).collect();
        names.sort_by_key(|name| name.parse::<u64>().unwrap());
        assert_eq!(names, (0..MANY).map(|n| n.to_string()).collect::<Vec<_>>());
        let long = said(&run("diodls", &server, "/", &["-l", "/"]));
        assert!(long.lines().any(|line| line.starts_with("-r--r--r--") && line.contains("README")), "{long}");
        assert!(long.lines().any(|line| line.starts_with("drwxr-xr-x") && line.contains("dir")), "{long}");
        for (tool, path) in [("diodcat", "secret"), ("diodcat", "nowhere"), ("diodls", "/nowhere")] {
            let failed = run(tool, &server, "/", &[path]);
            assert!(!failed.status.success() && !failed.stderr.is_empty(), "{tool} {path}");
        }
    }
}
