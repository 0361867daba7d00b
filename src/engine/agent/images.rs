//! The images that this host has: a folder each, with an `image.toml` that says what is what.

use crate::text::name;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// How an image is booted: paths are relative to its folder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageFile {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    #[serde(default)]
    pub(super) cmdline: String,
}

/// An image as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
}

/// Reads `DIR/NAME/image.toml`. The error is a sentence.
pub(super) fn read(images: &Path, image: &str) -> Result<(ImageFile, PathBuf), String> {
    let folder = images.join(image);
    let file = folder.join("image.toml");
    let text = std::fs::read_to_string(&file).map_err(|e| {
        format!("the image '{image}' is not on this node: {}: {e}; ./run --setup makes 'tiny'", file.display())
    })?;
    let parsed: ImageFile = toml::from_str(&text).map_err(|e| format!("{}: {}", file.display(), e.message()))?;
    Ok((parsed, folder))
}

/// A file's hash is remembered under its size and time: an image has many megabytes, and seldom changes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Hashes(BTreeMap<PathBuf, (u64, u128, String)>);

impl Hashes {
    fn of(&mut self, path: &Path) -> io::Result<(u64, String)> {
        let metadata = std::fs::metadata(path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_nanos();
        if let Some((size, time, hash)) = self.0.get(path)
            && (*size, *time) == (metadata.len(), modified)
        {
            return Ok((*size, hash.clone()));
        }
        let (mut file, mut hasher, mut buffer) = (std::fs::File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
        loop {
            let n = file.read(&mut buffer)?;
            let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
            hasher.update(piece);
        }
        let hash = hex(&hasher.finalize());
        self.0.insert(path.to_owned(), (metadata.len(), modified, hash.clone()));
        Ok((metadata.len(), hash))
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Every image in the folder, and what is wrong with those that can't be used. Slow: run it where it may block.
pub(super) fn scan(images: &Path, data: &Path) -> (Vec<Found>, Vec<String>) {
    let cache = data.join("image-hashes");
    let mut hashes: Hashes =
        std::fs::read(&cache).ok().and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default();
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    let entries = match std::fs::read_dir(images) {
        Ok(entries) => entries,
        Err(error) => {
            return (found, vec![format!("no images: {}: {error}; ./run --setup makes 'tiny'", images.display())]);
        }
    };
    for name in entries.flatten().filter_map(|e| e.file_name().into_string().ok()) {
        if name.starts_with('.') || !images.join(&name).is_dir() {
            continue;
        }
        match hash(images, &name, &mut hashes) {
            Ok(image) => found.push(image),
            Err(why) => wrong.push(format!("the image '{name}' can't be used: {why}")),
        }
    }
    // Without the cache the next start takes longer, that is all.
    let _ = serde_json::to_vec(&hashes).map_err(io::Error::from).and_then(|text| std::fs::write(&cache, text));
    found.sort_by(|a, b| a.name.cmp(&b.name));
    (found, wrong)
}

fn hash(images: &Path, image: &str, hashes: &mut Hashes) -> Result<Found, String> {
    name::check(image).map_err(|r| r.sentence)?;
    let (file, folder) = read(images, image)?;
    let (mut size_bytes, mut all) = (0, Sha256::new());
    for part in [Path::new("image.toml"), &file.kernel, &file.initrd] {
        let path = folder.join(part);
        let (size, hash) = hashes.of(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        size_bytes += size;
        all.update(hash);
    }
    Ok(Found { name: image.to_owned(), size_bytes, sha256: hex(&all.finalize()) })
}
