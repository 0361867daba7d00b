//! The command line's verbs, as they are typed, against the toy tree.

use super::raw::{Running, until};
use super::toy::README;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;

fn blixard(running: &Running, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    command.args(arguments).env("BLIXARD", running.unix().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(running: &Running, arguments: &[&str]) -> Output {
    blixard(running, arguments).output().unwrap()
}

/// What it prints.
fn said(running: &Running, arguments: &[&str]) -> String {
    let output = run(running, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What it says when it fails.
fn refused(running: &Running, arguments: &[&str]) -> String {
    let output = run(running, arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn with_input(running: &Running, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = blixard(running, arguments).stdin(Stdio::piped()).spawn().unwrap();
    // It may refuse before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn ls_and_cat() {
    let running = Running::start();
    assert_eq!(said(&running, &["ls", "dir"]), "sub\nup\n");
    assert_eq!(said(&running, &["ls", "link/sub"]), "leaf\n");
    assert_eq!(said(&running, &["ls", "README"]), "README\n");
    assert!(said(&running, &["ls"]).starts_with("README\nbig\necho\n"));
    let long = said(&running, &["ls", "-l"]);
    assert!(long.contains("-r--r--r--   1    42    43       15 2023-11-14T22:13:20.123Z README\n"), "{long}");
    assert!(long.contains(" link -> dir\n"), "{long}");
    assert_eq!(said(&running, &["ls", "-l", "many"]).lines().count(), 5000);
    assert_eq!(
        said(&running, &["cat", "README", "dir/sub/leaf", "dir/up"]).as_bytes(),
        [README, b"leaf\n", README].concat()
    );
    assert_eq!(refused(&running, &["cat", "nowhere"]), "blixard: nowhere: No such file or directory\n");
    assert_eq!(refused(&running, &["cat", "secret"]), "blixard: secret: permission denied: the toy tree says so\n");
    let tcp = running.tcp.to_string();
    assert_eq!(said(&running, &["--at", &tcp, "cat", "README"]).as_bytes(), README);
}

#[test]
fn writes_are_one_write_and_refusals_have_their_sentence() {
    let running = Running::start();
    assert_eq!(said(&running, &["write", "ctl", "ok"]), "");
    assert_eq!(said(&running, &["write", "--append", "ctl", "ok\nok"]), "");
    let sentence = "blixard: ctl: invalid command 'strat': only ok is known\n";
    assert_eq!(refused(&running, &["write", "ctl", "strat"]), sentence);
    assert_eq!(refused(&running, &["write", "ctl", "strat"]), sentence, "the second time too");
    assert!(refused(&running, &["write", "README", "x"]).starts_with("blixard: README: permission denied"));
    for arguments in [&["write", "ctl"][..], &["write", "ctl", "-"]] {
        assert!(with_input(&running, arguments, b"ok\nok\n").status.success());
        let long = with_input(&running, arguments, &vec![b'x'; 2 << 20]);
        let sentence = String::from_utf8(long.stderr).unwrap();
        assert!(sentence.contains("more than 131048 bytes"), "{sentence}");
    }
    assert!(refused(&running, &["rm", "README"]).contains("not permitted: rmdir the object's directory"));
    assert_eq!(said(&running, &["rm", "link/sub"]), "");
}

#[test]
fn messages_are_printed() {
    let running = Running::start();
    let output = run(&running, &["-D", "cat", "README"]);
    assert_eq!(output.stdout, README);
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "Tversion tag 65535 msize 131072 version '9P2000.L'");
    assert_eq!(lines[1], "Rversion tag 65535 msize 131072 version '9P2000.L'");
    let walk = |line: &&str| line.starts_with("Twalk tag ") && line.ends_with(" nwname 1 0:README");
    assert!(lines.iter().any(walk), "{text}");
    let read = |line: &&str| line.starts_with("Rread tag ") && line.contains("count 15 '");
    assert!(lines.iter().any(read), "{text}");
    assert!(lines.iter().all(|line| line.starts_with(['T', 'R'])), "{text}");
}

#[test]
fn nobody_there() {
    let running = Running::start();
    let said = refused(&running, &["--at", "unix!/nowhere/sock", "status"]);
    assert!(said.starts_with("blixard: no server answers at unix!/nowhere/sock: "), "{said}");
    assert!(
        said.ends_with("is a node running? start one with 'blixard serve', or name another with --at or BLIXARD\n")
    );
    let wrong = run(&running, &["--at", "/nowhere/sock", "status"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("a dial string is as tcp!127.0.0.1!564"));
}

fn wait(mut child: Child) -> Option<i32> {
    let mut code = None;
    until("the command ends", || {
        code = child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    });
    code.flatten()
}

#[test]
fn cat_of_a_stream_comes_as_it_comes_and_ends_with_its_reader() {
    let running = Running::start();
    let waits = || running.toy.waiting.load(Ordering::SeqCst) == 1;
    let mut cat = blixard(&running, &["cat", "block"]).spawn().unwrap();
    let mut lines = BufReader::new(cat.stdout.take().unwrap());
    let mut line = String::new();
    for _ in 0..2 {
        until("it waits", waits);
        running.toy.release();
        lines.read_line(&mut line).unwrap();
    }
    assert_eq!(line, "released\nreleased\n");
    until("it waits", waits);
    // The pipe's reader goes while nothing comes: there is no write that could fail.
    drop(lines);
    let mut error = cat.stderr.take().unwrap();
    assert_eq!(wait(cat), Some(141));
    let mut complaint = String::new();
    error.read_to_string(&mut complaint).unwrap();
    assert_eq!(complaint, "");
    until("its read is cancelled", || running.toy.waiting.load(Ordering::SeqCst) == 0);
}
