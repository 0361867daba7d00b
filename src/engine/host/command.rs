//! Running a program of the host to its end, with a deadline and bounded output.

use super::HostError;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long `ip`, `qemu-img` and their like may take.
pub const PROGRAM_WITHIN: Duration = Duration::from_secs(20);
/// How much of what a program says goes into an error, in bytes.
const SAID_BYTES_MAX: usize = 512;

/// Runs it, and gives what it printed.
///
/// # Errors
/// It can't be run, fails (the error has what it said), or takes too long; then it is ended.
pub async fn run(program: &str, arguments: &[&str]) -> Result<Vec<u8>, HostError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let shown = format!("{program} {}", arguments.join(" "));
    let output = match tokio::time::timeout(PROGRAM_WITHIN, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(HostError(format!("{program} was not found: apt-get install {}", package(program))));
        }
        Ok(Err(error)) => return Err(HostError::io(shown, error)),
        Err(_elapsed) => return Err(HostError(format!("{shown}: no answer within {}s", PROGRAM_WITHIN.as_secs()))),
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said: Vec<u8> = output.stderr.into_iter().take(SAID_BYTES_MAX).collect();
    Err(HostError(format!("{shown}: {}", String::from_utf8_lossy(&said).trim())))
}

/// Debian's package of a program.
pub fn package(program: &str) -> &str {
    match program {
        "ip" => "iproute2",
        "qemu-img" => "qemu-utils",
        "qemu-system-x86_64" => "qemu-system-x86",
        "setpriv" | "setsid" => "util-linux",
        other => other,
    }
}
