//! From a path to a fid: walks of any length, and symbolic links, which a 9P server leaves to its clients.

use super::{Client, ClientError, Fid};
use crate::ninep::{Qid, WALK_NAMES_MAX};

/// Links in one path; more is taken for a circle, as Linux does with 40.
const LINKS_MAX: usize = 16;

/// What is done with a link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It stands for what it leads to.
    Last,
    /// It stands for itself.
    NotLast,
}

/// What a path led to.
pub(super) struct Found {
    pub fid: Fid,
    pub qid: Qid,
    /// The names from the root to it, without links unless it is one.
    pub names: Vec<String>,
}

/// How far a walk came.
struct Reached {
    fid: Option<Fid>,
    /// One for each name that was reached.
    qids: Vec<Qid>,
}

impl Client {
    pub(super) async fn walk(&self, path: &str, follow: Follow) -> Result<Found, ClientError> {
        let mut names: Vec<String> = parts(path).collect();
        for _ in 0..LINKS_MAX {
            let Reached { fid, qids } = self.walk_as_far(&names).await?;
            let last = qids.last().copied();
            let link = last.is_some_and(|qid| qid.kind == Qid::LINK) && (fid.is_none() || follow == Follow::Last);
            if link {
                names = self.replace_link(names, qids.len()).await?;
            } else if let Some(fid) = fid {
                let qid = last.unwrap_or(Qid { kind: Qid::DIRECTORY, ..Qid::default() });
                return Ok(Found { fid, qid, names });
            } else {
                return self.why_not(&names, qids.len()).await;
            }
        }
        const ELOOP: i32 = 40;
        Err(ClientError::Refused { errno: ELOOP })
    }

    /// Walks to names in which there are no links.
    pub(super) async fn walk_names(&self, names: &[String]) -> Result<Found, ClientError> {
        let reached = self.walk_as_far(names).await?;
        match (reached.fid, reached.qids.last().copied()) {
            (Some(fid), qid) => {
                let qid = qid.unwrap_or(Qid { kind: Qid::DIRECTORY, ..Qid::default() });
                Ok(Found { fid, qid, names: names.to_vec() })
            }
            (None, _) => self.why_not(names, reached.qids.len()).await,
        }
    }

    /// The names with the link that the first `count` of them lead to replaced by its target, which is relative to where the
    /// link is.
    async fn replace_link(&self, names: Vec<String>, count: usize) -> Result<Vec<String>, ClientError> {
        let (before, after) = names.split_at_checked(count).unwrap_or((&names, &[]));
        let link = self.walk_as_far(before).await?;
        let fid = link.fid.ok_or_else(|| ClientError::Protocol("a link has gone while it was read".into()))?;
        let target = fid.readlink().await?;
        let parent = before.split_last().map(|(_, parent)| parent).unwrap_or_default();
        let parent = if target.starts_with('/') { &[] } else { parent };
        Ok(parent.iter().cloned().chain(parts(&target)).chain(after.iter().cloned()).collect())
    }

    /// A partial walk says how far it came, but not why: asking for the next name alone does.
    async fn why_not(&self, names: &[String], reached: usize) -> Result<Found, ClientError> {
        let start = self.walk_as_far(names.get(..reached).unwrap_or_default()).await?;
        let next = names.get(reached..).and_then(|rest| rest.split_first()).map(|(next, _)| next.as_str());
        if let (Some(fid), Some(next)) = (start.fid, next) {
            let mut further = fid.fresh();
            fid.step(&mut further, &[next]).await?;
        }
        Err(ClientError::Protocol("a walk that failed does not fail any more".into()))
    }

    async fn walk_as_far(&self, names: &[String]) -> Result<Reached, ClientError> {
        let root = self.root();
        let mut fid = root.fresh();
        let mut qids = Vec::with_capacity(names.len());
        let mut chunks = names.chunks(WALK_NAMES_MAX);
        loop {
            let chunk: Vec<&str> = chunks.next().unwrap_or_default().iter().map(String::as_str).collect();
            let step = if fid.known { fid.step_on(&chunk).await } else { root.step(&mut fid, &chunk).await };
            let reached = match step {
                // An error is about the first name: the walk before it got as far as it got.
                Err(ClientError::Refused { .. }) if !qids.is_empty() => return Ok(Reached { fid: None, qids }),
                other => other?,
            };
            let whole = reached.len() == chunk.len();
            qids.extend(reached);
            if !whole {
                return Ok(Reached { fid: None, qids });
            }
            if qids.len() == names.len() {
                return Ok(Reached { fid: Some(fid), qids });
            }
        }
    }
}

/// The names in a path.
fn parts(path: &str) -> impl Iterator<Item = String> {
    path.split('/').filter(|name| !matches!(*name, "" | ".")).map(str::to_owned)
}
