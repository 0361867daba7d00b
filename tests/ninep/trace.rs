//! The server's trace: every message a line, when its target is asked for.

use super::raw::{Running, until};
use blixard::ninep::{Dialect, Reply, Request};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use tracing_subscriber::EnvFilter;

/// What was traced.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn with(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(word)).map(|line| line.trim().to_owned()).collect()
    }
}

#[test]
fn messages_are_traced_while_they_are_asked_for() {
    let lines = Lines::default();
    let writer = lines.clone();
    let (filter, switch) = tracing_subscriber::reload::Layer::new(EnvFilter::new("info"));
    let format = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false).without_time();
    use tracing_subscriber::prelude::*;
    tracing_subscriber::registry().with(filter).with(format).init();

    let running = Running::start();
    for dialect in Dialect::ALL {
        let raw = &mut running.session_in(dialect);
        raw.ask(4710, &Request::Clunk { fid: 4710 });
        assert!(lines.with("4710").is_empty(), "nobody asked for it");
        switch.reload(EnvFilter::new("info,blixard::ninep::trace=trace")).unwrap();
        raw.ask(4711, &Request::Clunk { fid: 0 });
        raw.send_bytes(b"\x07\0\0\0\xfe\x68\x12");
        let answer = raw.receive();
        assert!(matches!(answer.reply(), Reply::Error { .. } | Reply::Lerror { .. }));
        switch.reload(EnvFilter::new("info")).unwrap();
        raw.ask(4710, &Request::Clunk { fid: 4710 });
        let (asked, answered) = ("Tclunk tag 4711 fid 0", "Rclunk tag 4711");
        until("both are traced", || lines.with("tag 4711").len() == 2);
        let ends = |line: &str, end: &str| line.ends_with(end) && line.contains("TRACE blixard::ninep::trace");
        let traced = lines.with("tag 4711");
        assert!(ends(&traced[0], asked) && ends(&traced[1], answered), "{traced:?}");
        let unknown = lines.with("tag 4712");
        assert!(unknown[0].contains("T254 tag 4712: invalid message: there is no message type 254"), "{unknown:?}");
        assert_eq!(unknown.len(), 2);
        assert!(lines.with("4710").is_empty(), "nobody asked for it any more");
        lines.0.lock().unwrap().clear();
    }
}
