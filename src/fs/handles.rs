//! Open files: texts, ctls and clone files; and what holds for every open file.

use super::server::Server;
use super::table::{Asked, Content, File, Maker};
use super::tree::{Answer, Caller, Handle, OpenMode, Place};
use super::verbs::{Asking, Deed, Verb, ask, usage};
use crate::engine::state::{By, Command, Reply, State};
use crate::text::{Code, Refusal, attrs};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    pub(super) fn of(asked: &Asked<'_>) -> Open {
        Open { server: asked.server.clone(), who: asked.who.clone(), object: asked.object }
    }

    fn asked<'a>(&'a self, state: &'a Arc<State>) -> Asked<'a> {
        Asked { server: &self.server, state, who: &self.who, object: self.object }
    }

    /// Notes a refusal in the caller's `/err` on its way out.
    pub(super) fn noted<T>(&self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        result.inspect_err(|refusal| self.server.note_for(&self.who, refusal))
    }
}

/// Any open file: it is used for what it was opened for, read by who may still see it, and written by who may still write it.
pub(super) struct Guarded {
    pub(super) handle: Arc<dyn Handle>,
    pub(super) open: Open,
    pub(super) place: Place,
    pub(super) how: OpenMode,
}

impl Handle for Guarded {
    fn read(&self, offset: u64, count: usize) -> Answer<Bytes> {
        if !self.how.read {
            return Answer::Now(Err(not_for("reading")));
        }
        if let Err(refusal) = self.open.server.check_sight(&self.open.who, self.place) {
            return Answer::Now(Err(refusal));
        }
        match self.handle.read(offset, count) {
            Answer::Now(data) => Answer::Now(data),
            Answer::Later(wait) => {
                let (open, place) = (self.open.clone(), self.place);
                // Much may have been decided meanwhile.
                Answer::Later(Box::pin(async move {
                    let data = wait.await?;
                    open.server.check_sight(&open.who, place).map(|()| data)
                }))
            }
        }
    }

    fn write(&self, offset: u64, data: Bytes) -> Answer<usize> {
        if !self.how.write {
            return Answer::Now(self.open.noted(Err(not_for("writing"))));
        }
        match self.open.server.check_right(&self.open.who, self.place) {
            Ok(()) => self.handle.write(offset, data),
            Err(refusal) => Answer::Now(Err(refusal)),
        }
    }
}

/// A finite text. Made at the first read from the state at the open; a read at the beginning makes it anew (rule 8), unless nothing
/// has changed it since.
pub(super) struct TextHandle {
    open: Open,
    place: Place,
    file: &'static File,
    text: Mutex<Made>,
}

/// The text of an open, before and after it was made.
enum Made {
    NotYet(Arc<State>),
    /// With the entry that it is dated by, if one does.
    Kept(Option<u64>, Bytes),
}

impl TextHandle {
    pub(super) fn new(open: Open, place: Place, file: &'static File, state: Arc<State>) -> TextHandle {
        TextHandle { open, place, file, text: Mutex::new(Made::NotYet(state)) }
    }

    fn text(&self, anew: bool) -> Result<Bytes, Refusal> {
        let mut made = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let server = &self.open.server;
        let state = match &*made {
            Made::Kept(_, text) if !anew => return Ok(text.clone()),
            Made::Kept(..) => server.state(),
            Made::NotYet(state) => state.clone(),
        };
        let seq = Server::dated_by(&state, self.place, self.file);
        match &*made {
            Made::Kept(kept, text) if kept.is_some() && *kept == seq => Ok(text.clone()),
            _ => {
                let text = server.text_of(&self.open.asked(&state), self.place, self.file)?;
                *made = Made::Kept(seq, text.clone());
                Ok(text)
            }
        }
    }
}

/// The text of a finite file.
pub(super) fn render(file: &File, asked: &Asked<'_>) -> Result<Bytes, Refusal> {
    match &file.content {
        Content::Text(text) | Content::Live(text) | Content::Owned(text) => text(asked).map(Bytes::from),
        Content::Ctl(verbs) => Ok(usage(verbs)),
        Content::New(_) | Content::Stream(..) | Content::Private(_) => Ok(Bytes::new()),
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
}

/// What a write to a ctl asks for.
#[derive(Default)]
struct Plan {
    /// Each with its line.
    commands: Vec<(usize, Command)>,
    deeds: Vec<Deed>,
}

impl CtlHandle {
    pub(super) fn new(text: TextHandle, verbs: &'static [Verb]) -> CtlHandle {
        CtlHandle { text, verbs }
    }

    /// What a text asks for, or the first line that is wrong.
    fn plan(&self, data: &[u8]) -> Result<Plan, Refusal> {
        let lines = attrs::parse_lines(data)?;
        let open = &self.text.open;
        let state = open.server.state();
        let asked = open.asked(&state);
        let mut plan = Plan::default();
        for line in &lines {
            match ask(self.verbs, &asked, &line.attrs).map_err(|r| of_line(r, line.number, lines.len()))? {
                Asking::Command(command) => plan.commands.push((line.number, *command)),
                Asking::Deed(deed) => plan.deeds.push(deed),
                Asking::Nothing => {}
            }
        }
        Ok(plan)
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
        let Plan { commands, deeds } = match open.noted(self.plan(&data)) {
            Ok(plan) => plan,
            Err(refusal) => return Answer::Now(Err(refusal)),
        };
        let do_all = move |open: &Open| open.noted(deeds.into_iter().try_for_each(|deed| deed())).map(|()| data.len());
        if commands.is_empty() {
            return Answer::Now(do_all(&open));
        }
        Answer::Later(Box::pin(async move {
            submit(&open, commands).await?;
            do_all(&open)
        }))
    }
}

/// A clone file: attributes are written, the new objects' numbers are read back on the same open.
pub(super) struct NewHandle {
    open: Open,
    maker: &'static Maker,
    answer: Answers,
}

impl NewHandle {
    pub(super) fn new(open: Open, maker: &'static Maker) -> NewHandle {
        NewHandle { open, maker, answer: Answers::default() }
    }

    fn commands(&self, data: &[u8]) -> Result<Vec<(usize, Command)>, Refusal> {
        let lines = attrs::parse_lines(data)?;
        if lines.is_empty() {
            return Err(Refusal::invalid(
                "invalid text: there is nothing in it to make; reading this file shows what it takes",
            ));
        }
        let state = self.open.server.state();
        let made = |line: &attrs::Line| match (self.maker.command)(&state, &line.attrs) {
            Ok(command) => Ok((line.number, command)),
            Err(refusal) => Err(of_line(refusal, line.number, lines.len())),
        };
        lines.iter().map(made).collect()
    }
}

/// What is read back from a file that answers: one cursor, set back by a write. Before the first one its usage is read.
#[derive(Clone, Default)]
pub(super) struct Answers(Arc<Mutex<(Option<Bytes>, usize)>>);

impl Answers {
    fn lock(&self) -> MutexGuard<'_, (Option<Bytes>, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, text: String) {
        *self.lock() = (Some(Bytes::from(text)), 0);
    }

    pub(super) fn read(&self, count: usize, usage: impl FnOnce() -> Bytes) -> Bytes {
        let mut answer = self.lock();
        let text = answer.0.clone().unwrap_or_else(usage);
        let part = slice(&text, answer.1 as u64, count);
        *answer = (Some(text), answer.1 + part.len());
        part
    }

    /// Submits what was written, and answers with what `answer` makes of the replies.
    pub(super) fn submit(
        &self,
        open: &Open,
        size: usize,
        commands: Result<Vec<(usize, Command)>, Refusal>,
        answer: impl FnOnce(Vec<Reply>) -> String + Send + 'static,
    ) -> Answer<usize> {
        // After a refusal there is nothing to be read, least of all what an earlier write was answered.
        self.set(String::new());
        let (open, answers) = (open.clone(), self.clone());
        match open.noted(commands) {
            Err(refusal) => Answer::Now(Err(refusal)),
            Ok(commands) => Answer::Later(Box::pin(async move {
                let replies = submit(&open, commands).await?;
                answers.set(answer(replies));
                Ok(size)
            })),
        }
    }
}

impl Handle for NewHandle {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        let usage = || Bytes::from((self.maker.usage)(&self.open.server.state()));
        Answer::Now(Ok(self.answer.read(count, usage)))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        if data.is_empty() {
            return Answer::Now(Ok(0));
        }
        self.answer.submit(&self.open, data.len(), self.commands(&data), |replies| {
            let numbers = replies.iter().filter_map(|reply| match reply {
                Reply::Created(number) => Some(format!("{number}\n")),
                Reply::Done | Reply::Unchanged => None,
            });
            numbers.collect()
        })
    }
}
