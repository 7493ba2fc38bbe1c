//! The journal: what a shutdown could not write to the store, in a local file that the next start writes
//! there.
//!
//! Guarantees:
//! * A file has its final name only when it is whole and on the disk.
//! * Files are readable by their owner only, because results are customers' data.
//! * Any change of a byte is noticed. Records that are whole are replayed all the same, and the file is
//!   kept.
//! * Replaying is writing what the holder of the attempt reports, late: the store's fences decide whether
//!   it still counts, and repeating it changes nothing. So processes may replay the same file at once, and
//!   one that dies in between leaves the file to the next.
//! * A file is removed only after the store has taken, or fenced off, every record in it.

mod record;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use self::record::{Line, Unusable};
use super::{
    persist::{Persist, write_finishes},
    shared::Shared,
};
use crate::{
    bounds::{FINISH_BATCH, MAX_JOURNAL_LINE_BYTES},
    failure::chain,
    job::WorkerId,
    store::{Finish, Finished},
    telemetry::metrics,
};

const JOURNAL: &str = "jsonl";
const DRAFT: &str = "draft";
const DAMAGED: &str = "jsonl.damaged";

/// A draft that was not touched for so long was left by a process that ended while it wrote.
const ABANDONED: Duration = Duration::from_secs(60);

/// A folder of journals. All of its methods block.
#[derive(Debug, Clone)]
struct Folder(PathBuf);

/// What a file of the folder contains.
#[derive(Debug, Default)]
struct Contents {
    finishes: Vec<Finish>,
    /// Records that are damaged or missing, as far as they can be counted.
    damaged: usize,
    /// Whether some of it was written in a format that this build does not know.
    unknown_version: bool,
}

impl Folder {
    /// Makes the folder, unless it is there, and finds out whether it can be written to.
    fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let probe = self.0.join(format!("{}.probe", WorkerId::new()));
        create(&probe)?;
        fs::remove_file(probe)
    }

    /// Writes a file of its own for this worker; returns where it is.
    fn write(&self, worker: WorkerId, finishes: &[Finish]) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let draft = self.0.join(format!("{worker}.{DRAFT}"));
        let path = self.0.join(format!("{worker}.{JOURNAL}"));
        let mut file = create(&draft)?;
        // One line at a time, so that results are not held in memory twice.
        file.write_all(record::head(finishes.len())?.as_bytes())?;
        for finish in finishes {
            file.write_all(record::record(finish)?.as_bytes())?;
        }
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        self.sync()?;
        Ok(path)
    }

    /// The files to replay, oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let path = entry.path();
            let found = match path.extension().and_then(|extension| extension.to_str()) {
                Some(JOURNAL) => true,
                Some(DRAFT) => is_abandoned(&path),
                _ => false,
            };
            if found {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Removes a file. Another process may have done it already.
    fn remove(&self, path: &Path) -> io::Result<()> {
        unless_gone(fs::remove_file(path))?;
        self.sync()
    }

    /// Renames a file so that it is kept and not looked at again; returns its new name.
    fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let aside = path.with_extension(DAMAGED);
        unless_gone(fs::rename(path, &aside))?;
        self.sync()?;
        Ok(aside)
    }

    /// Makes names durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn is_abandoned(draft: &Path) -> bool {
    let touched = fs::metadata(draft).and_then(|metadata| metadata.modified());
    touched.is_ok_and(|touched| touched.elapsed().is_ok_and(|age| age > ABANDONED))
}

fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Reads a file; lines of more than `max_line` bytes count as damaged.
fn read(path: &Path, max_line: u64) -> io::Result<Contents> {
    let mut file = BufReader::new(File::open(path)?);
    let mut contents = Contents::default();
    let mut promised = None;
    let mut line = Vec::new();
    let mut first = true;
    loop {
        line.clear();
        if file.by_ref().take(max_line).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.pop_if(|last| *last == b'\n').is_none() && line.len() as u64 == max_line {
            file.skip_until(b'\n')?;
        }
        match record::read(&line, first) {
            Ok(Line::Head { records }) => promised = Some(records),
            Ok(Line::Record(finish)) => contents.finishes.push(*finish),
            Err(Unusable::Damaged) => contents.damaged += 1,
            Err(Unusable::UnknownVersion) => contents.unknown_version = true,
        }
        first = false;
    }
    let readable = contents.finishes.len() + contents.damaged;
    contents.damaged += match promised {
        Some(records) if !contents.unknown_version => records.saturating_sub(readable),
        None if first => 1,
        _ => 0,
    };
    Ok(contents)
}

/// Writes what the store did not take to the journal; on failure says why not, for people.
pub(super) async fn write(shared: &Shared, finishes: Vec<Finish>) -> Result<PathBuf, String> {
    let Some(folder) = folder(shared) else { return Err("worker.journal_dir is empty".to_owned()) };
    let (worker, count) = (shared.options.id, finishes.len() as u64);
    let path = blocking(move || folder.write(worker, &finishes)).await.map_err(|error| chain(&error))?;
    metrics::JOURNAL_RECORDS.add1("written", count);
    Ok(path)
}

/// Replays all journals of the folder. Waits for the store as long as it takes; the future may be dropped,
/// and then what is not replayed stays for the next start.
pub(super) async fn replay(shared: &Shared) {
    let Some(folder) = folder(shared) else {
        tracing::info!(
            "worker.journal_dir is empty: results that a shutdown cannot write are left to the rescue"
        );
        return;
    };
    let prepared = {
        let folder = folder.clone();
        blocking(move || folder.prepare().and_then(|()| folder.files())).await
    };
    let files = match prepared {
        Ok(files) => files,
        Err(error) => {
            tracing::error!(
                folder = %folder.0.display(), error = %chain(&error),
                "the journal cannot be used: results that a shutdown cannot write would be left to the rescue; \
                 set worker.journal_dir to a folder that can be written"
            );
            return;
        }
    };
    for path in files {
        if let Err(error) = replay_file(shared, &folder, &path).await {
            tracing::error!(file = %path.display(), error = %chain(&error), "a journal could not be replayed; the next start tries again");
        }
    }
}

/// What became of the records of one file.
#[derive(Debug, Default)]
struct Replayed {
    applied: u64,
    fenced: u64,
    /// The store does not know the job, or refuses the record.
    unknown: u64,
}

async fn replay_file(shared: &Shared, folder: &Folder, path: &Path) -> io::Result<()> {
    let file = path.to_owned();
    let contents = match blocking(move || read(&file, MAX_JOURNAL_LINE_BYTES)).await {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        contents => contents?,
    };
    let Contents { finishes, damaged, unknown_version } = contents;
    let replayed = replay_records(shared, finishes).await;
    let Replayed { applied, fenced, unknown } = replayed;
    for (result, count) in
        [("replayed", applied), ("fenced", fenced), ("unknown", unknown), ("damaged", damaged as u64)]
    {
        metrics::JOURNAL_RECORDS.add1(result, count);
    }
    if applied > 0 {
        shared.deps.relay_wake.notify_one();
    }
    let (folder, file) = (folder.clone(), path.to_owned());
    if damaged > 0 || unknown_version {
        let aside = blocking(move || folder.set_aside(&file)).await?;
        let what = if unknown_version {
            "a journal was written by another version of errand and is kept: start that version with it, \
             renamed to end in .jsonl"
        } else {
            "a journal is damaged and is kept: what could be read is replayed, and the other jobs are left to \
             the rescue; look for held jobs (`errand jobs list --state held`), then remove the file"
        };
        tracing::error!(file = %aside.display(), applied, fenced, unknown, damaged, "{what}");
    } else if unknown > 0 {
        tracing::error!(
            file = %path.display(), applied, fenced, unknown,
            "a journal has results of jobs that this database does not know, and is kept: if it belongs to \
             another database, start a worker of that one; otherwise remove the file"
        );
    } else {
        blocking(move || folder.remove(&file)).await?;
        tracing::info!(file = %path.display(), applied, fenced, "results of an earlier process are written");
    }
    Ok(())
}

async fn replay_records(shared: &Shared, finishes: Vec<Finish>) -> Replayed {
    let mut replayed = Replayed::default();
    let mut waiting = finishes.into_iter();
    loop {
        let batch: Vec<Finish> = waiting.by_ref().take(FINISH_BATCH).collect();
        if batch.is_empty() {
            return replayed;
        }
        let ids: Vec<_> = batch.iter().map(|finish| finish.id).collect();
        let (answers, left) = write_finishes(shared, batch).await;
        replayed.unknown += left.len() as u64;
        for (id, answer) in ids.into_iter().zip(answers) {
            match answer {
                Finished::Applied { .. } => replayed.applied += 1,
                // The answer is the same for a job that somebody else has claimed and for one that is not
                // there, which may be because this is another database.
                Finished::Fenced => {
                    let persist = Persist::new(shared, "a job could not be read");
                    match persist.until_taken(|| shared.deps.store.job(id)).await {
                        Ok(Some(_)) => replayed.fenced += 1,
                        Ok(None) | Err(_) => replayed.unknown += 1,
                    }
                }
            }
        }
    }
}

fn folder(shared: &Shared) -> Option<Folder> {
    shared.options.journal_dir.clone().map(Folder)
}

/// Runs work that blocks where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::{collection::vec, prelude::*};

    use super::{record::tests::finishes, *};

    fn folder() -> (tempfile::TempDir, Folder) {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder(parent.path().join("journal"));
        folder.prepare().unwrap();
        (parent, folder)
    }

    fn shown(finishes: &[Finish]) -> Vec<String> {
        finishes.iter().map(|finish| format!("{finish:?}")).collect()
    }

    fn read_all(path: &Path) -> Contents {
        read(path, MAX_JOURNAL_LINE_BYTES).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_file_gives_back_what_was_written(written in vec(finishes(), 0..6)) {
            let (_parent, folder) = folder();
            let path = folder.write(WorkerId::new(), &written).unwrap();
            prop_assert_eq!(folder.files().unwrap(), vec![path.clone()]);
            let contents = read_all(&path);
            prop_assert_eq!(shown(&contents.finishes), shown(&written));
            prop_assert!(contents.damaged == 0 && !contents.unknown_version);
            folder.remove(&path).unwrap();
            folder.remove(&path).unwrap();
            prop_assert_eq!(folder.files().unwrap(), Vec::<PathBuf>::new());
        }

        /// At most the two lines beside the byte are lost, and that is always noticed.
        #[test]
        fn a_changed_byte_is_noticed_wherever_it_is(
            written in vec(finishes(), 1..6), at in any::<prop::sample::Index>(), flip in 1u8..=255
        ) {
            let (_parent, folder) = folder();
            let path = folder.write(WorkerId::new(), &written).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
            let joined = bytes[at] == b'\n';
            bytes[at] ^= flip;
            fs::write(&path, bytes).unwrap();

            let contents = read_all(&path);
            prop_assert!(contents.damaged > 0 || contents.unknown_version);
            // The head is line 0.
            let touched = [Some(line), joined.then_some(line + 1)];
            let whole: Vec<&Finish> = written.iter().enumerate()
                .filter(|(place, _)| !touched.contains(&Some(place + 1)))
                .map(|(_, finish)| finish)
                .collect();
            let whole: Vec<String> = whole.into_iter().map(|finish| format!("{finish:?}")).collect();
            prop_assert_eq!(shown(&contents.finishes), whole);
        }

        #[test]
        fn a_missing_end_is_noticed(written in vec(finishes(), 1..5), cut in any::<prop::sample::Index>()) {
            let (_parent, folder) = folder();
            let path = folder.write(WorkerId::new(), &written).unwrap();
            let bytes = fs::read(&path).unwrap();
            // Without its last line break only, the file is still whole.
            let kept = cut.index(bytes.len() - 1);
            fs::write(&path, &bytes[..kept]).unwrap();
            let contents = read_all(&path);
            prop_assert!(contents.damaged > 0);
            prop_assert!(contents.finishes.len() < written.len());
        }
    }

    fn one() -> Finish {
        use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
        finishes().new_tree(&mut TestRunner::deterministic()).unwrap().current()
    }

    #[test]
    fn files_belong_to_their_owner_alone() {
        let (_parent, folder) = folder();
        let path = folder.write(WorkerId::new(), &[one()]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder.0)), (0o600, 0o700));
    }

    #[test]
    fn a_line_beyond_the_limit_is_damage_and_does_not_hide_the_next() {
        let (_parent, folder) = folder();
        let (short, mut long) = (one(), one());
        long.attempt.log_id = Some("x".repeat(100_000));
        let path = folder.write(WorkerId::new(), &[long, short.clone()]).unwrap();
        let contents = read(&path, 50_000).unwrap();
        assert_eq!(contents.damaged, 1);
        assert_eq!(shown(&contents.finishes), shown(&[short]));
    }

    #[test]
    fn a_draft_is_left_alone_until_its_process_must_be_gone() {
        let (_parent, folder) = folder();
        let path = folder.write(WorkerId::new(), &[one()]).unwrap();
        let draft = path.with_extension(DRAFT);
        fs::rename(&path, &draft).unwrap();
        assert!(folder.files().unwrap().is_empty());
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED;
        File::options().write(true).open(&draft).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(folder.files().unwrap(), std::slice::from_ref(&draft));
        let aside = folder.set_aside(&draft).unwrap();
        assert!(aside.exists() && folder.files().unwrap().is_empty());
    }

    #[test]
    fn an_empty_file_is_damage() {
        let (_parent, folder) = folder();
        let path = folder.0.join(format!("empty.{JOURNAL}"));
        File::create(&path).unwrap();
        assert_eq!(read_all(&path).damaged, 1);
    }
}
