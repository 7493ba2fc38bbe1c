//! The journal: what a shutdown could not write to the store, in a local file that the next start writes there.
//!
//! Guarantees:
//! * A file has its final name only when it is whole and on the disk. What is being written has another name, which
//!   no start reads; a process that is killed meanwhile leaves that file behind, and its jobs to the rescue.
//! * Files are readable by their owner only, because results are customers' data.
//! * A file is read whole. One with a changed or missing byte is renamed, kept and reported.
//! * Replaying is a late report of the attempt's holder: the store's fences decide whether it still counts, and
//!   repeating it changes nothing. So processes may replay a file at once, and one that dies leaves it to the next.
//! * A file is removed only after the store has taken, or fenced off, every result in it. Until then the worker goes on
//!   trying, beside its other work.

mod contents;
mod file;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use self::file::Folder;
pub use self::{
    contents::{Contents, Journals},
    file::{Unreadable, decode},
};
use super::{
    persist::{Persist, Unwritten, write_alone, write_finishes},
    shared::Shared,
};
use crate::{
    bounds::FINISH_BATCH,
    failure::chain,
    job::{JobId, Principal},
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

/// Replays all journals of the folder, and waits for the store; what is not replayed when this is dropped stays. Returns
/// what the store did not take although it took others, for [`write_rests`].
pub(super) async fn replay(shared: &Shared) -> Vec<Rest> {
    let mut rests = Vec::new();
    let Some(folder) = shared.options.journal_dir.clone().map(Folder) else {
        tracing::info!(
            "worker.journal_dir is empty: results that a shutdown cannot write are left to the rescue"
        );
        return rests;
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
            return rests;
        }
    };
    for path in files {
        match replay_file(shared, &folder, &path).await {
            Ok(rest) => rests.extend(rest),
            Err(error) => cannot_replay(&path, &error),
        }
    }
    rests
}

/// Goes on with what [`replay`] has left, until the store has it or `stop`. One result does not wait for another.
pub(super) async fn write_rests(shared: Arc<Shared>, rests: Vec<Rest>, stop: CancellationToken) {
    let each = rests.into_iter().map(|rest| rest.write(&shared));
    stop.run_until_cancelled(join_all(each)).await;
    // A part that ends by itself would pass for one that failed.
    stop.cancelled().await;
}

fn cannot_replay(path: &Path, error: &io::Error) {
    tracing::error!(file = %path.display(), error = %chain(error), "a journal could not be replayed; the next start tries again");
}

/// A file of which the store has not taken everything.
#[derive(Debug)]
pub(super) struct Rest {
    folder: Folder,
    path: PathBuf,
    /// What became of the others.
    replayed: Replayed,
    /// They stay in memory, so that the others are not written, nor counted, again.
    results: Vec<Finish>,
}

impl Rest {
    async fn write(mut self, shared: &Shared) {
        let written = join_all(self.results.iter().map(|finish| write_alone(shared, finish))).await;
        for (finish, finished) in self.results.iter().zip(written) {
            // The worker gave up.
            let Some(finished) = finished else { return };
            self.replayed.count(shared, finish.id, finished).await;
        }
        if let Err(error) = self.replayed.close(shared, &self.folder, &self.path).await {
            cannot_replay(&self.path, &error);
        }
    }
}

#[derive(Debug, Default)]
struct Replayed {
    applied: u64,
    fenced: u64,
    /// The store does not know the job.
    unknown: u64,
}

impl Replayed {
    async fn count(&mut self, shared: &Shared, id: JobId, finished: Finished) {
        match finished {
            Finished::Applied { .. } => self.applied += 1,
            // Somebody else has claimed the job, or it is not there, which may be because this is another database.
            Finished::Fenced => {
                let persist = Persist::new(shared, "a job could not be read");
                match persist.until_taken(|| shared.services.store.job(&Principal::Operator, id)).await {
                    Ok(Some(_)) => self.fenced += 1,
                    Ok(None) | Err(_) => self.unknown += 1,
                }
            }
        }
    }

    /// Tells what became of a file of which everything was written, and removes it unless a person has to look at it.
    async fn close(&self, shared: &Shared, folder: &Folder, path: &Path) -> io::Result<()> {
        let Self { applied, fenced, unknown } = *self;
        for (result, count) in [("replayed", applied), ("fenced", fenced), ("unknown", unknown)] {
            metrics::JOURNAL_RECORDS.add([result], count);
        }
        if applied > 0 {
            shared.services.relay_wake.notify_one();
        }
        if unknown > 0 {
            tracing::error!(
                file = %path.display(), applied, fenced, unknown,
                "a journal has results of jobs that this database does not know, and is kept: if it belongs to \
                 another database, start a worker of that one; otherwise remove the file"
            );
            return Ok(());
        }
        let (folder, file) = (folder.clone(), path.to_owned());
        blocking(move || folder.remove(&file)).await?;
        tracing::info!(file = %path.display(), applied, fenced, "results of an earlier process are written");
        Ok(())
    }
}

async fn replay_file(shared: &Shared, folder: &Folder, path: &Path) -> io::Result<Option<Rest>> {
    let file = path.to_owned();
    let finishes = match blocking(move || Ok(decode(&fs::read(&file)?))).await {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => match read? {
            Ok(finishes) => finishes,
            Err(unreadable) => return set_aside(folder, path, unreadable).await.map(|()| None),
        },
    };
    let (replayed, results) = replay_results(shared, finishes).await;
    if results.is_empty() {
        replayed.close(shared, folder, path).await?;
        return Ok(None);
    }
    metrics::JOURNAL_RECORDS.add(["failing"], results.len() as u64);
    tracing::warn!(
        file = %path.display(), failing = results.len(),
        "a journal has results that the store does not take although it takes others: they are tried again until it does"
    );
    Ok(Some(Rest { folder: folder.clone(), path: path.to_owned(), replayed, results }))
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

/// Writes results in batches; returns those that the store did not take, too.
async fn replay_results(shared: &Shared, finishes: Vec<Finish>) -> (Replayed, Vec<Finish>) {
    let (mut replayed, mut rest) = (Replayed::default(), Vec::new());
    let mut waiting = finishes.into_iter();
    loop {
        let batch: Vec<Finish> = waiting.by_ref().take(FINISH_BATCH).collect();
        if batch.is_empty() {
            return (replayed, rest);
        }
        let ids: Vec<_> = batch.iter().map(|finish| finish.id).collect();
        let mut done = Vec::with_capacity(ids.len());
        let told = |place, finished| done.push((place, finished));
        let Unwritten { failing, left } = write_finishes(shared, batch, told).await;
        rest.extend(failing.into_iter().chain(left).map(|(_, finish)| finish));
        for (place, finished) in done {
            replayed.count(shared, ids[place], finished).await;
        }
    }
}

/// Runs work that blocks where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
