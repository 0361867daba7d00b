//! The guest channel: a virtio-serial port with a line protocol (`setup/guest/agent` is the other end).
//!
//! The guest is not trusted: a connection begins with a random marker that it must echo, lines are bounded, and whatever does not
//! fit ends the call, never us.

use crate::engine::hypervisor::HypervisorError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

/// The longest line from the guest, in bytes: 48 KiB of output in base64, and a little.
const LINE_BYTES_MAX: u64 = 66 << 10;
/// Calls that wait: one actor and a few readers use a channel.
const QUEUE_MAX: usize = 16;

struct Call {
    request: String,
    answer: oneshot::Sender<String>,
}

/// The host's end.
#[derive(Debug)]
pub(super) struct Channel {
    calls: mpsc::Sender<Call>,
    ready: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Result<Channel, HypervisorError> {
        let mut marker = [0_u8; 16];
        rustix::rand::getrandom(&mut marker, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| HypervisorError::Transient(format!("the kernel gives no random bytes: {e}")))?;
        let marker: String = marker.iter().map(|b| format!("{b:02x}")).collect();
        let (calls, asked) = mpsc::channel(QUEUE_MAX);
        let (now_ready, ready) = watch::channel(false);
        let task = tokio::spawn(talk(stream, marker, asked, now_ready));
        Ok(Channel { calls, ready, _task: AbortOnDropHandle::new(task) })
    }

    /// Has the guest answered?
    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Resolves when the guest has answered.
    pub(super) async fn ready(&self) -> Result<(), HypervisorError> {
        self.ready.clone().wait_for(|ready| *ready).await.map(drop).map_err(|_| HypervisorError::Gone)
    }

    /// One request and what the guest says to it, without the number.
    async fn call(&self, request: String, within: Duration) -> Result<String, HypervisorError> {
        let call = async {
            let (answer, answered) = oneshot::channel();
            self.calls.send(Call { request, answer }).await.map_err(|_| HypervisorError::Gone)?;
            answered.await.map_err(|_| HypervisorError::Gone)
        };
        tokio::time::timeout(within, call).await.unwrap_or_else(|_| {
            Err(HypervisorError::Transient(format!("the guest did not answer within {}s", within.as_secs())))
        })
    }

    /// Asks the guest to power off.
    pub(super) async fn power_off(&self, within: Duration) -> Result<(), HypervisorError> {
        self.call("poweroff".to_owned(), within).await.map(drop)
    }

    /// Runs a shell line in the guest: its exit status and its output.
    pub(super) async fn run(&self, line: &str, within: Duration) -> Result<(i32, Vec<u8>), HypervisorError> {
        let said = self.call(format!("run {}", BASE64.encode(line)), within).await?;
        let nonsense = || HypervisorError::Transient("the guest's answer makes no sense".to_owned());
        let (status, output) = said.split_once(' ').unwrap_or((said.as_str(), ""));
        Ok((status.parse().map_err(|_| nonsense())?, BASE64.decode(output).map_err(|_| nonsense())?))
    }
}

/// Owns the connection until it ends.
async fn talk(stream: UnixStream, marker: String, mut asked: mpsc::Receiver<Call>, ready: watch::Sender<bool>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    // Written now, read by the guest when its agent is up. What it says before the marker was for somebody else.
    if writer.write_all(format!("\nhello {marker}\n").as_bytes()).await.is_err() {
        return;
    }
    loop {
        match line(&mut reader).await {
            Some(said) if said == format!("hello {marker}") => break,
            Some(_) => {}
            None => return,
        }
    }
    ready.send_replace(true);
    let mut last = 0_u64;
    while let Some(call) = asked.recv().await {
        last += 1;
        if writer.write_all(format!("{last} {}\n", call.request).as_bytes()).await.is_err() {
            return;
        }
        let own = format!("{last} ");
        // An answer to a call that was given up comes before the one to this: passed over.
        loop {
            let Some(said) = line(&mut reader).await else { return };
            if let Some(answer) = said.strip_prefix(&own) {
                let _ = call.answer.send(answer.to_owned());
                break;
            }
            if call.answer.is_closed() {
                break;
            }
        }
    }
}

/// The next line; None at the end and at one that is too long or no text.
async fn line(reader: &mut BufReader<impl tokio::io::AsyncRead + Unpin>) -> Option<String> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await.ok()?;
    if line.pop() != Some(b'\n') {
        return None;
    }
    String::from_utf8(line).ok().map(|l| l.trim_end_matches('\r').to_owned())
}
