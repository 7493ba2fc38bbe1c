//! The journal: what a shutdown could not write to the store, in a local file that the next start writes there.
//!
//! Guarantees:
//! * A file has its final name only when it is whole and on the disk. What is being written has another name, which
//!   no start reads; a process that is killed meanwhile leaves that file behind, and its jobs to the rescue.
//! * Files are readable by their owner only, because results are customers' data.
//! * A file is read whole. One with a changed or missing byte is renamed, kept and reported.
//! * Replaying is a late report of the attempt's holder: the store's fences decide whether it still counts, and
//!   repeating it changes nothing. So processes may replay a file at once, and one that dies leaves it to the next.
//! * A file is removed only after the store has taken, or fenced off, every result in it.

mod file;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::file::Folder;
pub use self::file::{Unreadable, decode};
use super::{
    persist::{Persist, Unwritten, write_finishes},
    shared::Shared,
};
use crate::{
    bounds::FINISH_BATCH,
    failure::chain,
    store::{Finish, Finished},
    telemetry::metrics,
};

/// Writes what the store did not take to the journal; on failure says why not, for people.
pub(super) async fn write(shared: &Shared, finishes: Vec<Finish>) -> Result<PathBuf, String> {
    let Some(folder) = shared.options.journal_dir.clone().map(Folder) else {
        return Err("worker.journal_dir is empty".to_owned());
    };
    let (worker, count) = (shared.options.id, finishes.len() as u64);
    let path = blocking(move || folder.write(worker, &finishes)).await.map_err(|error| chain(&error))?;
    metrics::JOURNAL_RECORDS.add(["written"], count);
    Ok(path)
}

/// Replays all journals of the folder, and waits for the store; what is not replayed when this is dropped stays.
pub(super) async fn replay(shared: &Shared) {
    let Some(folder) = shared.options.journal_dir.clone().map(Folder) else {
        tracing::info!(
            "worker.journal_dir is empty: results that a shutdown cannot write are left to the rescue"
        );
        return;
    };
    let to_prepare = folder.clone();
    let files = match blocking(move || to_prepare.prepare().and_then(|()| to_prepare.files())).await {
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

#[derive(Debug, Default)]
struct Replayed {
    applied: u64,
    fenced: u64,
    /// The store does not know the job.
    unknown: u64,
    /// The store did not take them.
    failing: u64,
}

async fn replay_file(shared: &Shared, folder: &Folder, path: &Path) -> io::Result<()> {
    let file = path.to_owned();
    let finishes = match blocking(move || Ok(decode(&fs::read(&file)?))).await {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => match read? {
            Ok(finishes) => finishes,
            Err(unreadable) => return set_aside(folder, path, unreadable).await,
        },
    };
    let Replayed { applied, fenced, unknown, failing } = replay_results(shared, finishes).await;
    let counts = [("replayed", applied), ("fenced", fenced), ("unknown", unknown), ("failing", failing)];
    for (result, count) in counts {
        metrics::JOURNAL_RECORDS.add([result], count);
    }
    if applied > 0 {
        shared.services.relay_wake.notify_one();
    }
    if failing > 0 {
        tracing::error!(
            file = %path.display(), applied, fenced, failing,
            "a journal has results that the store did not take although it took others, and is kept: the next start \
             tries again"
        );
    } else if unknown > 0 {
        tracing::error!(
            file = %path.display(), applied, fenced, unknown,
            "a journal has results of jobs that this database does not know, and is kept: if it belongs to \
             another database, start a worker of that one; otherwise remove the file"
        );
    } else {
        let (folder, file) = (folder.clone(), path.to_owned());
        blocking(move || folder.remove(&file)).await?;
        tracing::info!(file = %path.display(), applied, fenced, "results of an earlier process are written");
    }
    Ok(())
}

/// Keeps a file that cannot be read, under a name that no start looks at.
async fn set_aside(folder: &Folder, path: &Path, unreadable: Unreadable) -> io::Result<()> {
    let (folder, file) = (folder.clone(), path.to_owned());
    let aside = blocking(move || folder.set_aside(&file)).await?;
    metrics::UNREADABLE_JOURNALS.add([], 1);
    let what = match unreadable {
        Unreadable::Damaged => {
            "a journal is damaged and is kept: its jobs are left to the rescue; look for held jobs (`errand jobs list \
             --state held`), then remove the file"
        }
        Unreadable::OtherVersion => {
            "a journal was written by another version of errand and is kept: start that version with it, renamed to \
             end in .json"
        }
    };
    tracing::error!(file = %aside.display(), "{what}");
    Ok(())
}

async fn replay_results(shared: &Shared, finishes: Vec<Finish>) -> Replayed {
    let mut replayed = Replayed::default();
    let mut waiting = finishes.into_iter();
    loop {
        let batch: Vec<Finish> = waiting.by_ref().take(FINISH_BATCH).collect();
        if batch.is_empty() {
            return replayed;
        }
        let ids: Vec<_> = batch.iter().map(|finish| finish.id).collect();
        let mut done = Vec::with_capacity(ids.len());
        let told = |place, answer| done.push((place, answer));
        let Unwritten { failing, left } = write_finishes(shared, batch, told).await;
        replayed.failing += (failing.len() + left.len()) as u64;
        for (place, answer) in done {
            match answer {
                Finished::Applied { .. } => replayed.applied += 1,
                // Somebody else has claimed the job, or it is not there, which may be because this is another database.
                Finished::Fenced => {
                    let persist = Persist::new(shared, "a job could not be read");
                    match persist.until_taken(|| shared.services.store.job(ids[place])).await {
                        Ok(Some(_)) => replayed.fenced += 1,
                        Ok(None) | Err(_) => replayed.unknown += 1,
                    }
                }
            }
        }
    }
}

/// Runs work that blocks where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
