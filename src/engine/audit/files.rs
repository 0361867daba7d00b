//! The audit trail's files: `FIRST.log` is the current one, `FIRST.log.zst` are older ones, FIRST the number of the first line
//! that is or may be in it. The oldest go when they are too old, or all are too many bytes.

use super::line;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The current file is closed and compressed when it has so many bytes.
pub(super) const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// All files together: the oldest go beyond this.
const ALL_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Files whose last line is older than this go.
const AGE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// The fastest: lines wait meanwhile, and text packs well at any level.
const COMPRESSION_LEVEL: i32 = 1;
/// More than the longest line: 64 KiB of commands and one more command, all of it quotes to be doubled, and a reason.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// The trail being written.
pub(super) struct Writer {
    folder: PathBuf,
    current: File,
    current_bytes: u64,
    file_bytes_max: u64,
    /// The number of the last line.
    newest: u64,
}

impl Writer {
    /// Opens the trail; a line that was cut off at the end is taken away.
    pub(super) fn open(folder: &Path, file_bytes_max: u64) -> std::io::Result<Writer> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        drop_oldest(folder, ALL_BYTES_MAX, SystemTime::now())?;
        let files = list(folder)?;
        let (path, newest) = match files.last() {
            Some(file) if !file.packed => (file.path.clone(), repair(file)?),
            // It ended between compressing one file and making the next.
            Some(file) => {
                let newest = last_seq(file)?;
                (path_of(folder, newest + 1), newest)
            }
            None => (path_of(folder, 1), 0),
        };
        let current = append_to(&path)?;
        let current_bytes = current.metadata()?.len();
        Ok(Writer { folder: folder.to_owned(), current, current_bytes, file_bytes_max, newest })
    }

    /// The number of the last line; 0 if there is none.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Adds lines, each with its newline, up to the number `newest`.
    pub(super) fn append(&mut self, lines: &str, newest: u64) -> std::io::Result<()> {
        self.current.write_all(lines.as_bytes())?;
        self.current_bytes += lines.len() as u64;
        self.newest = newest;
        if self.current_bytes >= self.file_bytes_max { self.rotate() } else { Ok(()) }
    }

    /// Puts lines above `upto` aside, into files named `.lost`: the log has lost those entries, and will use their numbers again.
    pub(super) fn rewind(&mut self, upto: u64) -> std::io::Result<()> {
        let (kept, lost): (Vec<_>, Vec<_>) = list(&self.folder)?.into_iter().partition(|file| file.first <= upto);
        for file in lost {
            std::fs::rename(&file.path, format!("{}.lost", file.path.display()))?;
        }
        if let Some(last) = kept.last() {
            let lines: Vec<String> = lines_of(last)?.collect::<std::io::Result<_>>()?;
            let split =
                lines.iter().position(|line| line::seq(line).is_some_and(|seq| seq > upto)).unwrap_or(lines.len());
            let (stay, go) = lines.split_at_checked(split).unwrap_or((&lines, &[]));
            write_lines(&self.folder.join(format!("{:020}.log.lost", upto + 1)), go)?;
            let plain = path_of(&self.folder, last.first);
            write_lines(&plain.with_extension("new"), stay)?;
            std::fs::rename(plain.with_extension("new"), &plain)?;
            if last.packed {
                std::fs::remove_file(&last.path)?;
            }
        }
        *self = Writer::open(&self.folder, self.file_bytes_max)?;
        self.newest = upto;
        Ok(())
    }

    /// Brings all to the disk.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.current.sync_data()
    }

    /// Begins a new file, packs the old one, and lets the oldest go.
    fn rotate(&mut self) -> std::io::Result<()> {
        self.current.sync_all()?;
        let old: Vec<Segment> = list(&self.folder)?.into_iter().filter(|file| !file.packed).collect();
        self.current = append_to(&path_of(&self.folder, self.newest + 1))?;
        self.current_bytes = 0;
        for file in old {
            pack(&file.path)?;
        }
        drop_oldest(&self.folder, ALL_BYTES_MAX, SystemTime::now())
    }
}

/// One file of the trail.
struct Segment {
    path: PathBuf,
    first: u64,
    packed: bool,
}

fn path_of(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.log"))
}

fn append_to(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn write_lines(path: &Path, lines: &[String]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.sync_all()
}

/// The files in order. Of a file that is there twice (packing was interrupted) the plain one counts.
fn list(folder: &Path) -> std::io::Result<Vec<Segment>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let (name, packed) = name.strip_suffix(".zst").map_or((name, false), |name| (name, true));
        let Some(first) = name.strip_suffix(".log").and_then(|first| first.parse().ok()) else { continue };
        files.push(Segment { path, first, packed });
    }
    files.sort_by_key(|file| (file.first, file.packed));
    files.dedup_by_key(|file| file.first);
    Ok(files)
}

/// Cuts what is after the last whole line off a plain file, and gives that line's number.
fn repair(file: &Segment) -> std::io::Result<u64> {
    let mut reader = BufReader::new(File::open(&file.path)?);
    let (mut whole, mut newest) = (0_u64, file.first.saturating_sub(1));
    let mut line = String::new();
    loop {
        line.clear();
        // A power cut can leave zeros or worse: what isn't text ends the trail as well.
        match reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
            Ok(size) if size > 0 && line.ends_with('\n') => {
                match line::seq(&line) {
                    Some(seq) => newest = seq,
                    None if line.starts_with('#') => {}
                    None => break,
                }
                whole += size as u64;
            }
            _ => break,
        }
    }
    let length = std::fs::metadata(&file.path)?.len();
    if length > whole {
        tracing::warn!(path = %file.path.display(), bytes = length - whole, "an unfinished line at the end of the audit trail is taken away");
        OpenOptions::new().write(true).open(&file.path)?.set_len(whole)?;
    }
    Ok(newest)
}

fn last_seq(file: &Segment) -> std::io::Result<u64> {
    let mut newest = file.first.saturating_sub(1);
    for line in lines_of(file)? {
        newest = line::seq(&line?).unwrap_or(newest);
    }
    Ok(newest)
}

/// A file's whole lines, unpacked as they are read.
fn lines_of(file: &Segment) -> std::io::Result<Box<dyn Iterator<Item = std::io::Result<String>>>> {
    let plain = File::open(&file.path)?;
    if file.packed {
        let unpacked = zstd::stream::read::Decoder::new(plain)?;
        return Ok(Box::new(BufReader::new(unpacked).lines()));
    }
    // The last line may be on its way; up to its newline only.
    let whole = whole_bytes(&plain)?;
    Ok(Box::new(BufReader::new(plain.take(whole)).lines()))
}

/// How many bytes of a file that is being written end with a newline.
fn whole_bytes(mut file: &File) -> std::io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let tail = length.min(LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(length - tail))?;
    let mut bytes = Vec::new();
    file.take(tail).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::Start(0))?;
    let cut = bytes.iter().rev().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    Ok(length.saturating_sub(cut as u64))
}

/// Replaces a plain file by a packed one, so that one of the two is whole at any moment.
fn pack(path: &Path) -> std::io::Result<()> {
    let with = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    let (temporary, packed) = (with(".zst.new"), with(".zst"));
    let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    zstd::stream::copy_encode(File::open(path)?, &to, COMPRESSION_LEVEL)?;
    to.sync_all()?;
    std::fs::rename(&temporary, &packed)?;
    std::fs::remove_file(path)
}

/// Lets the oldest packed files go until all together are within the bounds.
fn drop_oldest(folder: &Path, bytes_max: u64, now: SystemTime) -> std::io::Result<()> {
    let mut files = Vec::new();
    for file in list(folder)?.into_iter().filter(|file| file.packed) {
        let metadata = std::fs::metadata(&file.path)?;
        files.push((file.path, metadata.len(), metadata.modified()?));
    }
    let mut all: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (path, bytes, modified) in files {
        let age = now.duration_since(modified).unwrap_or_default();
        if all <= bytes_max && age <= AGE_MAX {
            break;
        }
        std::fs::remove_file(&path)?;
        all -= bytes;
    }
    Ok(())
}

/// Up to `max` lines after `seq`, and the number of the first line that there still is.
pub(super) fn read_after(folder: &Path, seq: u64, max: usize) -> std::io::Result<(u64, Vec<String>)> {
    let files = list(folder)?;
    let begins = files.first().map_or(1, |file| file.first);
    // The last file that begins at or before the wanted line, and all later ones.
    let start = files.partition_point(|file| file.first <= seq + 1).saturating_sub(1);
    let mut found = Vec::new();
    for file in files.iter().skip(start) {
        for line in lines_of(file)? {
            if found.len() >= max {
                return Ok((begins, found));
            }
            let line = line?;
            if line::seq(&line).is_some_and(|number| number > seq) {
                found.push(line);
            }
        }
    }
    Ok((begins, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(writer: &mut Writer, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            writer.append(&format!("{number} a line of some length\n"), number).unwrap();
        }
    }

    fn numbers(folder: &Path, after: u64, max: usize) -> Vec<u64> {
        let (_, lines) = read_after(folder, after, max).unwrap();
        lines.iter().map(|line| line::seq(line).unwrap()).collect()
    }

    #[test]
    fn rotates_packs_and_reads_across_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), 500).unwrap();
        fill(&mut writer, 1..=100);
        assert!(list(folder.path()).unwrap().iter().filter(|file| file.packed).count() > 3);
        assert_eq!(numbers(folder.path(), 0, 1000), (1..=100).collect::<Vec<_>>());
        assert_eq!(numbers(folder.path(), 41, 5), vec![42, 43, 44, 45, 46]);
        assert_eq!(numbers(folder.path(), 100, 5), Vec::<u64>::new());
    }

    #[test]
    fn goes_on_where_it_was_and_takes_away_half_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), 1000).unwrap();
        fill(&mut writer, 1..=10);
        writer.append("11 half a li", 10).unwrap();
        drop(writer);
        assert_eq!(numbers(folder.path(), 8, 10), vec![9, 10]);
        let mut writer = Writer::open(folder.path(), 1000).unwrap();
        assert_eq!(writer.newest(), 10);
        fill(&mut writer, 11..=12);
        assert_eq!(numbers(folder.path(), 8, 10), vec![9, 10, 11, 12]);
    }

    #[test]
    fn survives_the_end_between_packing_and_the_next_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), 200).unwrap();
        fill(&mut writer, 1..=30);
        drop(writer);
        let current = list(folder.path()).unwrap().pop().unwrap();
        if !current.packed {
            pack(&current.path).unwrap();
        }
        assert_eq!(Writer::open(folder.path(), 200).unwrap().newest(), 30);
    }

    #[test]
    fn lines_of_lost_entries_are_put_aside() {
        for upto in [0, 3, 25, 29] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = Writer::open(folder.path(), 300).unwrap();
            fill(&mut writer, 1..=30);
            writer.rewind(upto).unwrap();
            fill(&mut writer, upto + 1..=upto + 20);
            drop(writer);
            assert_eq!(numbers(folder.path(), 0, 1000), (1..=upto + 20).collect::<Vec<_>>());
            assert_eq!(Writer::open(folder.path(), 300).unwrap().newest(), upto + 20);
            let lost = std::fs::read_dir(folder.path())
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "lost"));
            assert!(lost.count() > 0);
        }
    }

    #[test]
    fn the_oldest_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), 300).unwrap();
        fill(&mut writer, 1..=100);
        drop_oldest(folder.path(), 300, SystemTime::now()).unwrap();
        let (begins, lines) = read_after(folder.path(), 0, 1000).unwrap();
        assert!(begins > 1);
        assert_eq!(line::seq(&lines[0]), Some(begins));
        drop_oldest(folder.path(), u64::MAX, SystemTime::now() + AGE_MAX * 2).unwrap();
        assert!(list(folder.path()).unwrap().iter().all(|file| !file.packed));
    }
}
