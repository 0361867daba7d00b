//! `tests/transcripts/*.sh`: what a person types and what they see, run in every shell that Debian's users have.

use crate::support::Node;
use std::path::Path;

/// One typed line and what is to come back.
pub struct Step {
    pub typed: String,
    expected: Vec<String>,
}

/// What stands between the answers to two lines.
const MARKER: &str = "--8<--";

/// The lines of a file below tests/transcripts.
pub fn steps_of(name: &str) -> Vec<Step> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name);
    steps(&std::fs::read_to_string(file).unwrap())
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(typed), _) => steps.push(Step { typed: typed.to_owned(), expected: Vec::new() }),
            (None, Some(step)) => step.expected.push(line.to_owned()),
            (None, None) => panic!("a transcript begins with a line that is typed, not {line:?}"),
        }
    }
    steps
}

/// `...` stands for anything: within a line, or, alone on a line, for any lines.
fn matches(expected: &[String], seen: &[&str]) -> bool {
    match expected.split_first() {
        None => seen.is_empty(),
        Some((first, rest)) if first == "..." => (0..=seen.len()).any(|skip| matches(rest, &seen[skip..])),
        Some((first, rest)) => {
            seen.split_first().is_some_and(|(s, more)| line_matches(first, s) && matches(rest, more))
        }
    }
}

fn line_matches(expected: &str, seen: &str) -> bool {
    let mut parts = expected.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = seen.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// All lines as one script for one shell, as they would go to it by hand; a marker tells the answers apart.
pub fn script(steps: &[Step]) -> String {
    steps.iter().map(|s| format!("{}\necho '{MARKER}'\n", s.typed)).collect()
}

/// Is what the script printed what the steps expect? `about` goes with what is wrong.
pub fn check(steps: &[Step], said: &str, about: &dyn Fn() -> String) {
    let lines: Vec<&str> = said.lines().collect();
    let answers: Vec<&[&str]> = lines.split(|l| *l == MARKER).collect();
    for (step, answer) in steps.iter().zip(&answers) {
        assert!(
            matches(&step.expected, answer),
            "$ {}\nexpected {:#?}\nsaw {answer:#?}\n{}",
            step.typed,
            step.expected,
            about()
        );
    }
    assert!(answers.len() > steps.len(), "it ended early: {said}{}", about());
}

fn play(node: &Node, shell: &str, name: &str) {
    let steps = steps_of(name);
    let output = node.shell(shell, &script(&steps));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let about = || format!("{shell}, {name}; stderr: {errors}\ntrace:\n{}", node.trace_text());
    check(&steps, &said, &about);
}

mod guest {
    use super::*;

    /// The lines of README.md that a reader types into the other shell.
    #[test]
    fn what_the_readme_shows() {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
        let (_, after) = text.split_once("Then, in another shell:\n\n").unwrap();
        let typed: Vec<&str> = after.lines().map_while(|l| l.strip_prefix("    ")).collect();
        assert!(typed.len() > 5 && typed[0] == "cd /n/blixard", "{typed:#?}");
        let node = Node::qemu();
        let script = format!("set -e\n{}\ncat vms/$id/wait\n", typed[1..].join("\n"));
        let output = node.shell("bash", &script);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let shown = ["running\n", "\nstate running\n", "Linux version", "stopped\n"];
        assert!(shown.iter().all(|part| said.contains(part)), "{said}");
    }

    #[test]
    fn one_machine_in_bash() {
        play(&Node::qemu(), "bash", "one-machine.sh");
    }

    #[test]
    fn one_machine_in_dash() {
        play(&Node::qemu(), "dash", "one-machine.sh");
    }

    #[test]
    fn one_machine_in_zsh() {
        play(&Node::qemu(), "zsh", "one-machine.sh");
    }
}

#[test]
fn dots_stand_for_anything() {
    let expected = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    assert!(matches(&expected(&["a...c", "..."]), &["abc", "x", "y"]));
    assert!(matches(&expected(&["...b..."]), &["abc"]));
    assert!(!matches(&expected(&["a"]), &["a", "b"]));
    assert!(!matches(&expected(&["a...d"]), &["abc"]));
}
