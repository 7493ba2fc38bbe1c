//! Journal files: one JSON object with the version of its format, the results, and a SHA-256 checksum over them.
//!
//! Results are written as the domain types serialize, so a change of their JSON is a new [`VERSION`].

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, fchown},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{job::WorkerId, store::Finish};

const VERSION: u32 = 1;

const JOURNAL: &str = "json";
const SET_ASIDE: &str = "json.damaged";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not whole, or a byte of it has changed.
    Damaged,
    /// Another version of errand wrote it, in a format that this one does not know.
    OtherVersion,
}

#[derive(Deserialize)]
struct Journal<'a> {
    version: u32,
    #[serde(borrow)]
    results: &'a RawValue,
    checksum: &'a str,
}

/// Decodes a journal, whole or not at all.
pub fn decode(bytes: &[u8]) -> Result<Vec<Finish>, Unreadable> {
    let damaged = |_| Unreadable::Damaged;
    let journal: Journal<'_> = serde_json::from_slice(bytes).map_err(damaged)?;
    if journal.version != VERSION {
        return Err(Unreadable::OtherVersion);
    }
    let results = journal.results.get();
    if journal.checksum != hex(Sha256::new_with_prefix(results)) {
        return Err(Unreadable::Damaged);
    }
    // It is what was written, so only another build can have done that.
    serde_json::from_str(results).map_err(|_| Unreadable::OtherVersion)
}

/// Writes a journal without holding its text in memory, because the results are there already.
fn encode(out: impl Write, results: &[Finish]) -> io::Result<()> {
    let mut out = Hashing { out, hash: Sha256::new() };
    write!(out.out, r#"{{"version":{VERSION},"results":"#)?;
    serde_json::to_writer(&mut out, results)?;
    let Hashing { mut out, hash } = out;
    write!(out, r#","checksum":"{}"}}"#, hex(hash))?;
    out.flush()
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder of journals. All of its methods block.
#[derive(Debug, Clone)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Makes the folder, unless it is there, and finds out whether files can be made in it.
    pub(super) fn prepare(&self) -> io::Result<()> {
        self.draft().map(drop)
    }

    /// Writes a file of its own for this worker; returns where it is.
    pub(super) fn write(&self, worker: WorkerId, results: &[Finish]) -> io::Result<PathBuf> {
        let path = self.0.join(format!("{worker}.{JOURNAL}"));
        self.replace(&path, results)?;
        Ok(path)
    }

    /// Writes a file, in the place of the one of this name if there is one. It is still that one's user who can read it.
    pub(super) fn replace(&self, path: &Path, results: &[Finish]) -> io::Result<()> {
        let draft = self.draft()?;
        if let Ok(old) = fs::metadata(path) {
            fchown(draft.as_file(), Some(old.uid()), Some(old.gid()))?;
        }
        encode(BufWriter::new(draft.as_file()), results)?;
        draft.as_file().sync_all()?;
        draft.persist(path)?;
        self.sync()
    }

    /// The files to replay, oldest first.
    pub(super) fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.0)?.map(|entry| Ok(entry?.path()));
        let mut files: Vec<PathBuf> = entries.collect::<io::Result<_>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == JOURNAL));
        // Workers' IDs sort by time.
        files.sort();
        Ok(files)
    }

    /// Removes a file. Another process may have done it already.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        unless_gone(fs::remove_file(path))?;
        self.sync()
    }

    /// Renames a file so that it is kept and not read again; returns its new name.
    pub(super) fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let aside = path.with_extension(SET_ASIDE);
        unless_gone(fs::rename(path, &aside))?;
        self.sync()?;
        Ok(aside)
    }

    /// A file that only its owner can read, that no start takes for a journal, and that goes when it is dropped.
    fn draft(&self) -> io::Result<NamedTempFile> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        NamedTempFile::new_in(&self.0)
    }

    /// Makes names durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
