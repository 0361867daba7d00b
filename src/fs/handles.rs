//! Open files: texts, ctls and clone files.

use super::server::Server;
use super::table::{Asked, Content, File, Maker};
use super::tree::{Answer, Caller, Handle};
use super::verbs::{Asking, Verb, ask, usage};
use crate::engine::state::{By, Command, Reply, State};
use crate::text::{Code, Refusal, attrs};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Part of a text.
pub(super) fn slice(text: &Bytes, offset: u64, count: usize) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    text.slice(start..start.saturating_add(count).min(text.len()))
}

pub(super) fn not_for(what: &str) -> Refusal {
    Refusal::new(Code::BadFile, format!("invalid use: this file was not opened for {what}"))
}

/// What an open handle needs of its open: who, where, and the tree.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) server: Server,
    pub(super) who: Caller,
    pub(super) object: u64,
}

impl Open {
    pub(super) fn asked<'a>(&'a self, state: &'a Arc<State>) -> Asked<'a> {
        Asked { server: &self.server, state, who: &self.who, object: self.object }
    }

    /// Notes a refusal in the caller's `/err` on its way out.
    pub(super) fn noted<T>(&self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        result.inspect_err(|refusal| self.server.note_for(&self.who, refusal))
    }
}

/// A finite text. Made at the first read from the state at the open; a read at the beginning makes it anew (rule 8).
pub(super) struct TextHandle {
    open: Open,
    file: &'static File,
    text: Mutex<(Option<Arc<State>>, Option<Bytes>)>,
}

impl TextHandle {
    pub(super) fn new(open: Open, file: &'static File, state: Arc<State>) -> TextHandle {
        TextHandle { open, file, text: Mutex::new((Some(state), None)) }
    }

    fn text(&self, anew: bool) -> Result<Bytes, Refusal> {
        let mut kept = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = kept.1.as_ref().filter(|_| !anew) {
            return Ok(text.clone());
        }
        let state = kept.0.take().unwrap_or_else(|| self.open.server.state());
        let text = render(self.file, &self.open.asked(&state))?;
        kept.1 = Some(text.clone());
        Ok(text)
    }
}

/// The text of a finite file.
pub(super) fn render(file: &File, asked: &Asked<'_>) -> Result<Bytes, Refusal> {
    match &file.content {
        Content::Text(text) => text(asked).map(Bytes::from),
        Content::Ctl(verbs) => Ok(Bytes::from(usage(verbs))),
        Content::New(_) | Content::Stream(..) => Ok(Bytes::new()),
    }
}

impl Handle for TextHandle {
    fn read(&self, offset: u64, count: usize) -> Answer<Bytes> {
        Answer::Now(self.text(offset == 0).map(|text| slice(&text, offset, count)))
    }

    fn write(&self, _offset: u64, _data: Bytes) -> Answer<usize> {
        Answer::Now(Err(not_for("writing")))
    }
}

/// A ctl: its usage is read, verbs are written.
pub(super) struct CtlHandle {
    text: TextHandle,
    verbs: &'static [Verb],
    writable: bool,
}

impl CtlHandle {
    pub(super) fn new(text: TextHandle, verbs: &'static [Verb], writable: bool) -> CtlHandle {
        CtlHandle { text, verbs, writable }
    }

    /// The commands of a text, each with its line, or the first line that is wrong.
    fn commands(&self, data: &[u8]) -> Result<Vec<(usize, Command)>, Refusal> {
        let lines = attrs::parse_lines(data)?;
        let open = &self.text.open;
        let state = open.server.state();
        let asked = open.asked(&state);
        let mut commands = Vec::new();
        for line in &lines {
            match ask(self.verbs, &asked, &line.attrs).map_err(|r| of_line(r, line.number, lines.len()))? {
                Asking::Command(command) => commands.push((line.number, command)),
                Asking::Done => {}
            }
        }
        Ok(commands)
    }
}

/// A refusal of one line of several names it.
fn of_line(refusal: Refusal, number: usize, lines: usize) -> Refusal {
    match lines {
        1 => refusal,
        _ => Refusal::new(refusal.code, format!("line {number}: {}; nothing was done", refusal.sentence)),
    }
}

/// Submits what the lines of a write ask for; a refusal of one of several names its line.
async fn submit(open: &Open, lines: Vec<(usize, Command)>) -> Result<Vec<Reply>, Refusal> {
    let (numbers, commands): (Vec<usize>, Vec<Command>) = lines.into_iter().unzip();
    let by = By::User(open.who.user.clone());
    let outcome = open.server.engine().submit(by, commands).await.map_err(|refusal| {
        match refusal.nth.and_then(|nth| numbers.get(nth)) {
            Some(number) => of_line(refusal, *number, numbers.len()),
            None => refusal,
        }
    });
    open.noted(outcome)
}

impl Handle for CtlHandle {
    fn read(&self, offset: u64, count: usize) -> Answer<Bytes> {
        self.text.read(offset, count)
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        let open = self.text.open.clone();
        if !self.writable {
            return Answer::Now(open.noted(Err(not_for("writing"))));
        }
        match open.noted(self.commands(&data)) {
            Err(refusal) => Answer::Now(Err(refusal)),
            Ok(commands) if commands.is_empty() => Answer::Now(Ok(data.len())),
            Ok(commands) => Answer::Later(Box::pin(async move {
                submit(&open, commands).await?;
                Ok(data.len())
            })),
        }
    }
}

/// A clone file: attributes are written, the new objects' numbers are read back on the same open.
pub(super) struct NewHandle {
    open: Open,
    maker: &'static Maker,
    writable: bool,
    /// What is to be read, and how far it was.
    answer: Arc<Mutex<(Option<Bytes>, usize)>>,
}

impl NewHandle {
    pub(super) fn new(open: Open, maker: &'static Maker, writable: bool) -> NewHandle {
        NewHandle { open, maker, writable, answer: Arc::default() }
    }

    fn commands(&self, data: &[u8]) -> Result<Vec<(usize, Command)>, Refusal> {
        let lines = attrs::parse_lines(data)?;
        if lines.is_empty() {
            return Err(Refusal::invalid(
                "invalid text: there is nothing in it to make; reading this file shows what it takes",
            ));
        }
        let made = |line: &attrs::Line| match (self.maker.command)(&line.attrs) {
            Ok(command) => Ok((line.number, command)),
            Err(refusal) => Err(of_line(refusal, line.number, lines.len())),
        };
        lines.iter().map(made).collect()
    }
}

impl Handle for NewHandle {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match &answer.0 {
            Some(text) => text.clone(),
            None => Bytes::from((self.maker.usage)(&self.open.server.state())),
        };
        let part = slice(&text, answer.1 as u64, count);
        *answer = (Some(text), answer.1 + part.len());
        Answer::Now(Ok(part))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        let (open, answer) = (self.open.clone(), self.answer.clone());
        if !self.writable {
            return Answer::Now(open.noted(Err(not_for("writing"))));
        }
        if data.is_empty() {
            return Answer::Now(Ok(0));
        }
        match open.noted(self.commands(&data)) {
            Err(refusal) => Answer::Now(Err(refusal)),
            Ok(commands) => Answer::Later(Box::pin(async move {
                let replies = submit(&open, commands).await?;
                let mut numbers = String::new();
                for reply in replies {
                    if let Reply::Created(number) = reply {
                        numbers.push_str(&format!("{number}\n"));
                    }
                }
                *answer.lock().unwrap_or_else(PoisonError::into_inner) = (Some(Bytes::from(numbers)), 0);
                Ok(data.len())
            })),
        }
    }
}
