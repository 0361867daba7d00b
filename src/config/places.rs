//! Can the folders be used by whoever runs this? Looked at before anything is made, so that the answer names flags.

use super::{Config, Mistake, Source};
use crate::text::Dial;
use rustix::fs::Access;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// access(2), or what a test puts in its place.
pub(super) type Accessible<'a> = &'a dyn Fn(&Path, Access) -> Result<(), Errno>;

/// What can't be used.
pub(super) fn check(config: &Config, access: Accessible<'_>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut note = |key: &str, result: Result<(), Unusable>| {
        if let Err(unusable) = result {
            let source = config.source(key);
            let advice = if source == Source::Default { advice(&unusable) } else { "" };
            mistakes.push(Mistake { key: key.to_owned(), what: format!("{unusable}{advice}"), source });
        }
    };
    note("data", can_make(&config.data, access));
    // A mount point that is there is the mount's own business: a dead mount, or a bare folder of mode 0555.
    if access(&config.mount, Access::EXISTS) == Err(Errno::NOENT) {
        note("mount", can_make(&config.mount, access));
    }
    note("images", can_read(&config.images, config.source("images"), access));
    for dial in &config.listen {
        if let Dial::Unix(path) = dial {
            note("listen", path.parent().map_or(Ok(()), |folder| can_make(folder, access)));
        }
    }
    mistakes
}

/// Why a folder can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("permission denied: {} can't be made, because {} can't be written", .path.display(), .within.display())]
    NotMade { path: PathBuf, within: PathBuf },
    #[error("permission denied: {} can't be {what}", .path.display())]
    Denied { path: PathBuf, what: &'static str },
    #[error("invalid folder {}: {} is a file", .path.display(), .within.display())]
    File { path: PathBuf, within: PathBuf },
    #[error("not found: there is no folder {}", .path.display())]
    Missing { path: PathBuf },
    #[error("{} can't be used: {errno}", .path.display())]
    Other { path: PathBuf, errno: Errno },
}

/// What to do where a default can't be used.
fn advice(unusable: &Unusable) -> &'static str {
    match unusable {
        Unusable::NotMade { .. } | Unusable::Denied { .. } => {
            "; run it as root, or give folders of your own: --data ~/.local/share/blixard --mount ~/n/blixard \
             --images ~/.local/share/blixard/images"
        }
        Unusable::File { .. } | Unusable::Missing { .. } | Unusable::Other { .. } => "",
    }
}

/// A folder that is there and can be written, or can be made.
fn can_make(path: &Path, access: Accessible<'_>) -> Result<(), Unusable> {
    for within in path.ancestors() {
        match access(within, Access::EXISTS) {
            // Not there, or beneath a file: the folder above tells more.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(Errno::ACCESS) => return Err(Unusable::Denied { path: path.to_owned(), what: "reached" }),
            Err(errno) => return Err(Unusable::Other { path: path.to_owned(), errno }),
            Ok(()) => {}
        }
        if !within.is_dir() {
            return Err(Unusable::File { path: path.to_owned(), within: within.to_owned() });
        }
        return match access(within, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::ROFS) if within == path => {
                Err(Unusable::Denied { path: path.to_owned(), what: "written" })
            }
            Err(Errno::ACCESS | Errno::ROFS) => {
                Err(Unusable::NotMade { path: path.to_owned(), within: within.to_owned() })
            }
            Err(errno) => Err(Unusable::Other { path: path.to_owned(), errno }),
        };
    }
    Err(Unusable::Missing { path: path.to_owned() })
}

/// A folder that can be read. One that nobody named need not be there: a node may have no images.
fn can_read(path: &Path, source: Source, access: Accessible<'_>) -> Result<(), Unusable> {
    match access(path, Access::READ_OK | Access::EXEC_OK) {
        Ok(()) if path.is_dir() => Ok(()),
        Ok(()) | Err(Errno::NOTDIR) => Err(Unusable::File { path: path.to_owned(), within: path.to_owned() }),
        Err(Errno::NOENT) if source == Source::Default => Ok(()),
        Err(Errno::NOENT) => Err(Unusable::Missing { path: path.to_owned() }),
        Err(Errno::ACCESS) => Err(Unusable::Denied { path: path.to_owned(), what: "read" }),
        Err(errno) => Err(Unusable::Other { path: path.to_owned(), errno }),
    }
}
