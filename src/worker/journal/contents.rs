//! What the journals of a folder hold, for people: which jobs, and taking single ones out.

use std::{collections::HashSet, fs, io, path::PathBuf};

use super::file::{Folder, decode};
use crate::job::JobId;

/// A folder of journals, as `worker.journal_dir` names it. All methods block.
#[derive(Debug)]
pub struct Journals(Folder);

#[derive(Debug, Default)]
pub struct Contents {
    /// The jobs of which there are results, one for each result.
    pub jobs: Vec<JobId>,
    /// Files that cannot be read: damaged, of another version, or left behind by a process that was killed.
    pub unreadable: Vec<PathBuf>,
}

impl Journals {
    pub fn new(folder: PathBuf) -> Self {
        Self(Folder(folder))
    }

    /// What is in the folder; nothing where there is no folder.
    ///
    /// # Errors
    /// The folder or a file cannot be read.
    pub fn read(&self) -> io::Result<Contents> {
        let mut contents = Contents::default();
        for path in self.paths()? {
            match fs::read(&path) {
                // A worker was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => match decode(&read?) {
                    Ok(results) => contents.jobs.extend(results.iter().map(|finish| finish.id)),
                    Err(_) => contents.unreadable.push(path),
                },
            }
        }
        Ok(contents)
    }

    /// Takes the results of these jobs out, and returns how many there were. A worker that starts meanwhile may still
    /// write them, which the caller must bear.
    ///
    /// # Errors
    /// A file cannot be read or written; what was taken out before stays out.
    pub fn remove(&self, jobs: &HashSet<JobId>) -> io::Result<u64> {
        let mut removed = 0;
        for path in self.paths()? {
            // What cannot be read is in `Contents::unreadable`, and has nothing that could be taken out.
            let Ok(mut results) = fs::read(&path).map(|bytes| decode(&bytes).unwrap_or_default()) else {
                continue;
            };
            let before = results.len();
            results.retain(|finish| !jobs.contains(&finish.id));
            if results.len() == before {
                continue;
            }
            if results.is_empty() {
                self.0.remove(&path)?;
            } else {
                self.0.replace(&path, &results)?;
            }
            removed += (before - results.len()) as u64;
        }
        Ok(removed)
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.0.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        Ok(paths.into_iter().filter(|path| path.is_file()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        job::{AttemptEnd, AttemptOutcome, Ending, Fence, RequestId, Started, WorkerId},
        store::{By, Finish},
    };

    fn result_of(id: JobId) -> Finish {
        let started =
            Started { number: 1, request_id: RequestId::new(), version: None, at: jiff::Timestamp::now() };
        let ending = Ending::Snooze { after: Duration::ZERO, error: None };
        let (attempt, ending) = AttemptEnd::unanswered(AttemptOutcome::Interrupted, ending)
            .record(started, jiff::Timestamp::now());
        Finish { id, fence: Fence(1), by: By::Holder, attempt, ending }
    }

    #[test]
    fn single_results_are_taken_out_and_the_others_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let journals = Journals::new(dir.path().to_owned());
        assert!(Journals::new(dir.path().join("none")).read().unwrap().jobs.is_empty());
        let [stays, goes, alone] = [(); 3].map(|()| JobId::new());
        journals.0.write(WorkerId::new(), &[result_of(stays), result_of(goes)]).unwrap();
        journals.0.write(WorkerId::new(), &[result_of(alone)]).unwrap();
        fs::write(dir.path().join("x.json.damaged"), "{").unwrap();
        assert_eq!(journals.read().unwrap().jobs.len(), 3);
        assert_eq!(journals.remove(&HashSet::from([goes, alone])).unwrap(), 2);
        let left = journals.read().unwrap();
        assert_eq!((left.jobs, left.unreadable.len()), (vec![stays], 1));
        assert_eq!(journals.0.files().unwrap().len(), 1, "a file without results is gone");
        assert_eq!(journals.remove(&HashSet::from([goes, alone])).unwrap(), 0, "again");
    }
}
