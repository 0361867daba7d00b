//! QMP, QEMU's monitor protocol (docs/interop/qmp-spec): JSON lines over a unix socket.
//!
//! One task owns the connection. Calls and their answers go through it by number; events go to whoever listens. A call that
//! is given up leaves nothing behind, and an event that we don't know is passed over.

use crate::engine::hypervisor::HypervisorError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// How long QEMU may take to answer a command: its main loop is never busy for long.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest message from QEMU, in bytes; the largest of those we ask for is far below.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Calls under way and events not yet looked at: a handful at most, one actor uses a monitor.
const QUEUE_MAX: usize = 64;

type Answer = Result<Value, String>;

struct Call {
    command: &'static str,
    answer: oneshot::Sender<Answer>,
}

/// A connection to a monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Event>,
    _task: AbortOnDropHandle<()>,
}

/// What we listen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself: it starts anew.
    GuestReset,
    /// Its CPUs were stopped, by whatever.
    Stopped,
}

impl Monitor {
    /// Waits for the greeting and agrees on capabilities.
    pub(super) async fn connect(stream: UnixStream) -> Result<Monitor, HypervisorError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = tokio::time::timeout(ANSWER_WITHIN, message(&mut reader)).await;
        let greeting = greeting.map_err(|_| late("its greeting"))?.ok_or(HypervisorError::Gone)?;
        if greeting.get("QMP").is_none() {
            return Err(HypervisorError::Transient(format!("QEMU's monitor greets with {greeting}, which is no QMP")));
        }
        let (calls, asked) = mpsc::channel(QUEUE_MAX);
        let (events, _) = broadcast::channel(QUEUE_MAX);
        let task = tokio::spawn(serve(reader, writer, asked, events.clone()));
        let monitor = Monitor { calls, events, _task: AbortOnDropHandle::new(task) };
        monitor.execute("qmp_capabilities").await?;
        Ok(monitor)
    }

    /// Runs a command without arguments.
    pub(super) async fn execute(&self, command: &'static str) -> Result<Value, HypervisorError> {
        let call = async {
            let (answer, answered) = oneshot::channel();
            self.calls.send(Call { command, answer }).await.map_err(|_| HypervisorError::Gone)?;
            answered.await.map_err(|_| HypervisorError::Gone)
        };
        match tokio::time::timeout(ANSWER_WITHIN, call).await {
            Ok(answer) => answer?.map_err(|said| HypervisorError::Transient(format!("QEMU refused {command}: {said}"))),
            Err(_elapsed) => Err(late(command)),
        }
    }

    /// Events from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

fn late(what: &str) -> HypervisorError {
    HypervisorError::Transient(format!("QEMU hangs: no answer to {what} within {}s", ANSWER_WITHIN.as_secs()))
}

/// The next message; None at the end, at what is no JSON, and at what is too long: the connection is of no use then.
async fn message(reader: &mut (impl AsyncBufRead + Unpin)) -> Option<Value> {
    let mut line = Vec::new();
    loop {
        let buffer = reader.fill_buf().await.ok().filter(|b| !b.is_empty())?;
        let end = buffer.iter().position(|b| *b == b'\n');
        let taken = end.map_or(buffer.len(), |e| e + 1);
        line.extend_from_slice(buffer.get(..taken)?);
        reader.consume(taken);
        if line.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        if end.is_some() {
            return serde_json::from_slice(&line).ok();
        }
    }
}

/// Owns the connection until it or the monitor ends.
async fn serve(
    mut reader: impl AsyncBufRead + Unpin,
    mut writer: impl AsyncWriteExt + Unpin,
    mut asked: mpsc::Receiver<Call>,
    events: broadcast::Sender<Event>,
) {
    let mut pending: BTreeMap<u64, oneshot::Sender<Answer>> = BTreeMap::new();
    let mut last = 0;
    let (messages, mut read) = mpsc::channel(QUEUE_MAX);
    // Reading a message is not cancellable half-way, so it has a loop of its own; both end together.
    let reading = async {
        while let Some(message) = message(&mut reader).await {
            if messages.send(message).await.is_err() {
                return;
            }
        }
    };
    let serving = async {
        loop {
            tokio::select! {
                call = asked.recv() => {
                    let Some(call) = call else { return };
                    pending.retain(|_, answer| !answer.is_closed());
                    last += 1;
                    let text = format!("{}\n", json!({ "execute": call.command, "id": last }));
                    if writer.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                    pending.insert(last, call.answer);
                }
                message = read.recv() => {
                    let Some(message) = message else { return };
                    take(&message, &mut pending, &events);
                }
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = serving => {}
    }
}

fn take(message: &Value, pending: &mut BTreeMap<u64, oneshot::Sender<Answer>>, events: &broadcast::Sender<Event>) {
    if let Some(name) = message.get("event").and_then(Value::as_str) {
        let guest = message.pointer("/data/guest").and_then(Value::as_bool).unwrap_or(false);
        let event = match name {
            "SHUTDOWN" if guest => Event::GuestShutdown,
            "RESET" if guest => Event::GuestReset,
            "STOP" => Event::Stopped,
            _ => return,
        };
        // Nobody listening is no fault.
        let _ = events.send(event);
        return;
    }
    let Some(answer) = message.get("id").and_then(Value::as_u64).and_then(|id| pending.remove(&id)) else { return };
    let result = match (message.get("return"), message.pointer("/error/desc").and_then(Value::as_str)) {
        (Some(value), _) => Ok(value.clone()),
        (None, said) => Err(said.unwrap_or("no reason given").to_owned()),
    };
    // Who asked may have given up.
    let _ = answer.send(result);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that says `script` for each line it gets, after the greeting.
    async fn qemu(script: &'static [&'static str]) -> Result<Monitor, HypervisorError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
            for say in ["{\"return\": {}, \"id\": 1}"].iter().chain(script) {
                let Ok(Some(_)) = lines.next_line().await else { return };
                if writer.write_all(format!("{say}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
            let _ = lines.next_line().await;
        });
        Monitor::connect(ours).await
    }

    #[tokio::test]
    async fn answers_errors_and_unknown_events() {
        let script = &[
            "{\"event\": \"NEW_IN_QEMU_99\"}\n{\"return\": {\"status\": \"running\"}, \"id\": 2}",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 3}",
        ];
        let monitor = qemu(script).await.unwrap();
        assert_eq!(monitor.execute("query-status").await.unwrap()["status"], "running");
        let refused = monitor.execute("cont").await.unwrap_err();
        assert_eq!(refused, HypervisorError::Transient("QEMU refused cont: no".into()));
    }

    #[tokio::test]
    async fn events_of_the_guest_are_told() {
        let script = &["{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n{\"return\": {}, \"id\": 2}"];
        let monitor = qemu(script).await.unwrap();
        let mut events = monitor.events();
        monitor.execute("cont").await.unwrap();
        assert_eq!(events.recv().await.unwrap(), Event::GuestShutdown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_monitor_that_hangs_is_told_from_one_that_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(matches!(Monitor::connect(ours).await, Err(HypervisorError::Transient(s)) if s.contains("hangs")));
        drop(theirs);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(Monitor::connect(ours).await, Err(HypervisorError::Gone)));
    }
}
