//! The deadline of a node: until when its fenced machines may live, in a small file that their fences read.
//!
//! The agent writes it after each renewal of the node's lease that was acknowledged; nobody else writes it. It lies in memory
//! (tmpfs), where a disk that hangs holds up no fence, and where nothing of an earlier life of the host is found; the data folder
//! has a link to it.
//!
//! ```text
//! 00000000000000000001 00000004711000000000 93c2d1f0a5b6e788    tenure, end in ns of CLOCK_BOOTTIME, check
//! 00000000000000000001 00000004714333000000 07aa61bcd2e94f15
//! ```
//!
//! The two lines are written in turn, in place, so that a reader who comes in the middle of a write has the other one: the later of
//! those that are whole counts, and the end never goes back.
//!
//! A **tenure** is an unbroken chain of leases: each renewal was acknowledged before the lease before it was over. Once it was over others
//! may have started the machines, so what was started in an earlier tenure ends even if the node has a lease again before its fence
//! has come to look.

use super::HostError;
use super::clock::BootClock;
use crate::mutants::{Mutant, planted};
use rustix::fs::{FsWord, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A line of the file, in bytes.
const LINE_BYTES: usize = 20 + 1 + 20 + 1 + 16 + 1;
/// The link in the data folder.
const LINK: &str = "deadline";
/// The file systems that are in memory, by statfs(2).
const IN_MEMORY: [FsWord; 2] = [0x0102_1994, 0x8584_58f6];

/// Which lease it is, and until when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// Counts the unbroken chains of leases; 0: there never was one.
    pub tenure: u64,
    /// When the lease is over, in nanoseconds of the host's boot clock.
    pub ends_ns: u64,
}

impl Term {
    /// The term after a renewal that was acknowledged by `now_ns`, and by which the lease lasts until `ends_ns`.
    pub fn renewed(self, ends_ns: u64, now_ns: u64) -> Term {
        let unbroken = self.tenure > 0 && (now_ns < self.ends_ns || planted(Mutant::TenureKept));
        Term { tenure: if unbroken { self.tenure } else { self.tenure + 1 }, ends_ns: ends_ns.max(self.ends_ns) }
    }

    /// May a machine of this tenure live now?
    pub fn allows(self, tenure: u64, now_ns: u64) -> bool {
        self.tenure == tenure && (now_ns < self.ends_ns || planted(Mutant::FenceDeaf))
    }

    fn line(self) -> String {
        format!("{:020} {:020} {:016x}\n", self.tenure, self.ends_ns, self.check())
    }

    fn of_line(line: &[u8]) -> Option<Term> {
        let mut words = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.split(' ');
        let term = Term { tenure: words.next()?.parse().ok()?, ends_ns: words.next()?.parse().ok()? };
        (u64::from_str_radix(words.next()?, 16).ok()? == term.check()).then_some(term)
    }

    /// By which a line that is half an older one is told from a whole one: SplitMix64's mixing (Steele, Lea, Flood 2014).
    fn check(self) -> u64 {
        [self.tenure, self.ends_ns].into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash: u64, word| {
            let z = hash.wrapping_add(word);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }
}

/// Reads the term in an open file.
///
/// # Errors
/// It can't be read, or no line of it is whole.
pub fn read(file: &File) -> io::Result<Term> {
    let [first, second] = read_lines(file)?;
    first.max(second).ok_or_else(no_deadline)
}

fn no_deadline() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no deadline")
}

fn read_lines(file: &File) -> io::Result<[Option<Term>; 2]> {
    let mut bytes = [0; 2 * LINE_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => no_deadline(),
        _ => error,
    })?;
    let (first, second) = bytes.split_at(LINE_BYTES);
    Ok([Term::of_line(first), Term::of_line(second)])
}

/// Opens a deadline's file to read it.
///
/// # Errors
/// The system's.
pub fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// May a machine of this tenure live now, by the file of that path? One that can't be read allows nothing.
pub fn allows(path: &Path, tenure: u64, clock: &dyn BootClock) -> bool {
    open(path).and_then(|file| read(&file)).is_ok_and(|term| term.allows(tenure, clock.now_ns()))
}

/// Where deadlines lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadlineFolder {
    /// Below the first of these folders that is in memory.
    Memory(Vec<PathBuf>),
    /// In the data folder itself: for machines that are simulated, which hang with no disk and outlive no host.
    Data,
}

impl DeadlineFolder {
    /// The folders in memory that hosts have: /run on most, /dev/shm in containers too.
    pub fn of_host() -> DeadlineFolder {
        let own = if rustix::process::geteuid().is_root() {
            Some("/run".into())
        } else {
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute())
        };
        DeadlineFolder::Memory(own.into_iter().chain([PathBuf::from("/dev/shm")]).collect())
    }

    /// The path of a file that is to be made.
    fn new_file(&self, data: &Path) -> Result<PathBuf, HostError> {
        let DeadlineFolder::Memory(folders) = self else { return Ok(data.join(LINK)) };
        let mut why = String::new();
        for above in folders {
            match private_folder(above).and_then(|folder| Ok(folder.join(random_name()?))) {
                Ok(path) => return Ok(path),
                Err(error) => why.push_str(&format!("; {}: {error}", above.display())),
            }
        }
        Err(HostError(format!("there is no folder in memory where a deadline could lie, and so no ha=restart{why}")))
    }
}

/// A folder of ours alone in one that is in memory.
fn private_folder(above: &Path) -> io::Result<PathBuf> {
    let above_is = rustix::fs::statfs(above)?.f_type;
    if !IN_MEMORY.contains(&above_is) {
        return Err(io::Error::other("it is not in memory (tmpfs)"));
    }
    // Not /run/blixard: who runs us as a service may have that removed at each end.
    let uid = rustix::process::geteuid().as_raw();
    let folder = above.join(format!("blixard-deadlines-{uid}"));
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(&folder)?;
    if found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0 {
        return Ok(folder);
    }
    Err(io::Error::other(format!("{} is not a folder of our own alone", folder.display())))
}

fn random_name() -> io::Result<String> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}

/// The deadline's file as who writes it has it.
#[derive(Debug)]
pub struct DeadlineFile {
    file: File,
    path: PathBuf,
    /// The line that is written next.
    next: usize,
    term: Term,
}

impl DeadlineFile {
    /// The file of this data folder, if there is one.
    ///
    /// # Errors
    /// It can't be opened or read.
    pub fn find(data: &Path, folder: &DeadlineFolder) -> Result<Option<DeadlineFile>, HostError> {
        let link = data.join(LINK);
        let failed = |error: io::Error| HostError::io(link.display(), error);
        let path = match folder {
            DeadlineFolder::Data => link.clone(),
            DeadlineFolder::Memory(_) => match std::fs::read_link(&link) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                target => target.map_err(failed)?,
            },
        };
        let file = match File::options().read(true).write(true).custom_flags(nofollow()).open(&path) {
            // As after a start of the host.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let here = rustix::fs::fstatfs(file.as_fd()).map_err(|e| failed(e.into()))?.f_type;
        if matches!(folder, DeadlineFolder::Memory(_)) && !IN_MEMORY.contains(&here) {
            return Ok(None);
        }
        let lines = match read_lines(&file) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
            lines => lines.map_err(failed)?,
        };
        let [first, second] = lines;
        // The one that is not whole, or older, is written first.
        let next = usize::from(first >= second);
        Ok(first.max(second).map(|term| DeadlineFile { file, path, next, term }))
    }

    /// The file of this data folder; made with this term if there is none.
    ///
    /// # Errors
    /// It can be neither found nor made.
    pub fn find_or_make(data: &Path, folder: &DeadlineFolder, term: Term) -> Result<DeadlineFile, HostError> {
        if let Some(mut found) = DeadlineFile::find(data, folder)? {
            found.write(term).map_err(|e| HostError::io(found.path.display(), e))?;
            return Ok(found);
        }
        let path = folder.new_file(data)?;
        let failed = |error: io::Error| HostError::io(path.display(), error);
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        file.write_all_at(term.line().repeat(2).as_bytes(), 0).map_err(failed)?;
        if *folder != DeadlineFolder::Data {
            let new = data.join(format!("{LINK}.new"));
            let _ = std::fs::remove_file(&new);
            let linked = std::os::unix::fs::symlink(&path, &new).and_then(|()| std::fs::rename(&new, data.join(LINK)));
            if let Err(error) = linked {
                // Nobody would ever find it.
                let _ = std::fs::remove_file(&path);
                return Err(HostError::io(data.join(LINK).display(), error));
            }
        }
        Ok(DeadlineFile { file, path, next: 0, term })
    }

    /// Where it is: in memory, and the same as long as the host is up.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Writes a term down. One that is not later than what it says is none.
    ///
    /// # Errors
    /// The system's; the file says what it said.
    pub fn write(&mut self, term: Term) -> io::Result<()> {
        if term <= self.term {
            return Ok(());
        }
        let at = u64::try_from(self.next * LINE_BYTES).unwrap_or(0);
        self.file.write_all_at(term.line().as_bytes(), at)?;
        (self.next, self.term) = (1 - self.next, term);
        Ok(())
    }
}

fn nofollow() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

/// The file by which a fence says that it has ended a machine: which generation. It lies beside the run folder and not in it, which is
/// the guest's.
fn note(run_dir: &Path) -> Option<(PathBuf, &str)> {
    Some((run_dir.parent()?.join("fenced"), run_dir.file_name()?.to_str()?))
}

/// A fence has ended the machine of this run folder.
///
/// # Errors
/// The system's.
pub fn note_fenced(run_dir: &Path) -> io::Result<()> {
    let (note, generation) = note(run_dir).ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::write(note, format!("{generation}\n"))
}

/// Did a fence say that it has ended the machine of this run folder?
pub fn was_fenced(run_dir: &Path) -> bool {
    note(run_dir).is_some_and(|(note, generation)| {
        std::fs::read_to_string(note).is_ok_and(|text| text.strip_suffix('\n') == Some(generation))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_goes_on_only_while_it_is_not_over() {
        let first = Term::default().renewed(100, 0);
        assert_eq!(first, Term { tenure: 1, ends_ns: 100 });
        assert_eq!(first.renewed(150, 99), Term { tenure: 1, ends_ns: 150 });
        assert_eq!(first.renewed(90, 50), first, "it never goes back");
        assert_eq!(first.renewed(200, 100), Term { tenure: 2, ends_ns: 200 }, "acknowledged as it was over");
        assert!(first.allows(1, 99) && !first.allows(1, 100) && !first.allows(2, 99) && !first.allows(0, 0));
    }

    #[test]
    fn what_is_written_is_read_and_never_goes_back() {
        let data = tempfile::tempdir().unwrap();
        let of = DeadlineFolder::Data;
        assert!(DeadlineFile::find(data.path(), &of).unwrap().is_none());
        let mut file = DeadlineFile::find_or_make(data.path(), &of, Term { tenure: 1, ends_ns: 5 }).unwrap();
        let reader = open(file.path()).unwrap();
        assert_eq!(read(&reader).unwrap(), Term { tenure: 1, ends_ns: 5 });
        for (tenure, ends_ns, says) in [(1, 9, 9), (1, 7, 9), (1, 12, 12), (0, 99, 12), (2, 20, 20)] {
            file.write(Term { tenure, ends_ns }).unwrap();
            assert_eq!(read(&reader).unwrap().ends_ns, says);
        }
        let again = DeadlineFile::find_or_make(data.path(), &of, Term { tenure: 1, ends_ns: 99 }).unwrap();
        assert_eq!(again.term(), Term { tenure: 2, ends_ns: 20 });
    }

    /// Whatever part of a write a reader sees, it reads the term before or the one after.
    #[test]
    fn half_a_write_is_none() {
        let data = tempfile::tempdir().unwrap();
        let terms = [5, 19, 123, 99_999, 100_000].map(|ends_ns| Term { tenure: 1, ends_ns });
        let mut file = DeadlineFile::find_or_make(data.path(), &DeadlineFolder::Data, terms[0]).unwrap();
        let reader = open(file.path()).unwrap();
        for pair in terms.windows(2) {
            let before = std::fs::read(file.path()).unwrap();
            file.write(pair[1]).unwrap();
            let after = std::fs::read(file.path()).unwrap();
            for cut in 0..=after.len() {
                for torn in [[&after[..cut], &before[cut..]].concat(), [&before[..cut], &after[cut..]].concat()] {
                    std::fs::write(file.path(), torn).unwrap();
                    assert!(pair.contains(&read(&reader).unwrap()), "{pair:?} cut at {cut}");
                }
            }
            std::fs::write(file.path(), after).unwrap();
        }
        // A next life writes over the line that is not whole.
        let mut torn = std::fs::read(file.path()).unwrap();
        torn[3] ^= 1;
        std::fs::write(file.path(), torn).unwrap();
        let mut found = DeadlineFile::find(data.path(), &DeadlineFolder::Data).unwrap().unwrap();
        let whole = found.term();
        found.write(Term { tenure: 1, ends_ns: 200_000 }).unwrap();
        let lines = read_lines(&reader).unwrap();
        assert_eq!(lines.iter().flatten().count(), 2, "{lines:?}");
        assert!(lines.contains(&Some(whole)));
    }

    #[test]
    fn what_is_no_deadline_allows_nothing() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("deadline");
        let clock = super::super::clock::HostClock;
        assert!(!allows(&path, 1, &clock));
        for text in ["", "soon\n", &"9".repeat(2 * LINE_BYTES)] {
            std::fs::write(&path, text).unwrap();
            assert!(read(&open(&path).unwrap()).is_err() && !allows(&path, 1, &clock), "{text}");
            assert!(DeadlineFile::find(data.path(), &DeadlineFolder::Data).unwrap().is_none(), "{text}");
        }
        std::fs::write(&path, Term { tenure: 1, ends_ns: u64::MAX }.line().repeat(2)).unwrap();
        assert!(allows(&path, 1, &clock));
    }

    #[test]
    fn it_lies_in_memory_and_is_ours_alone() {
        let (data, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap());
        let of = DeadlineFolder::Memory(vec![disk.path().to_owned(), "/dev/shm".into()]);
        let term = Term { tenure: 1, ends_ns: 7 };
        let file = DeadlineFile::find_or_make(data.path(), &of, term).unwrap();
        let path = file.path().to_owned();
        assert!(path.starts_with("/dev/shm"), "{path:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_link(data.path().join(LINK)).unwrap(), path);
        assert_eq!(DeadlineFile::find(data.path(), &of).unwrap().unwrap().term(), term);
        // After a start of the host the link leads to nothing.
        std::fs::remove_file(&path).unwrap();
        assert!(DeadlineFile::find(data.path(), &of).unwrap().is_none());
        // What lies on a disk may be of an earlier one.
        std::fs::write(disk.path().join("old"), term.line().repeat(2)).unwrap();
        std::fs::remove_file(data.path().join(LINK)).unwrap();
        std::os::unix::fs::symlink(disk.path().join("old"), data.path().join(LINK)).unwrap();
        assert!(DeadlineFile::find(data.path(), &of).unwrap().is_none());
        let nowhere = DeadlineFolder::Memory(vec![disk.path().to_owned()]);
        let error = DeadlineFile::find_or_make(data.path(), &nowhere, term).unwrap_err();
        assert!(error.to_string().contains("not in memory"), "{error}");
    }

    #[test]
    fn a_note_is_of_one_generation() {
        let of_vm = tempfile::tempdir().unwrap();
        let run_dir = |generation: &str| of_vm.path().join(generation);
        assert!(!was_fenced(&run_dir("3")));
        note_fenced(&run_dir("3")).unwrap();
        assert!(was_fenced(&run_dir("3")) && !was_fenced(&run_dir("2")) && !was_fenced(&run_dir("33")));
    }
}
