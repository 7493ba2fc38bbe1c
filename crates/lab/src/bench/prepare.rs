//! What a build does to its own database before its worker is measured. The commands that do this are called as
//! those of `errand`, so that a build can be measured through either of its programs.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use errand::{
    admission::{Admission, Enqueued},
    app,
    bounds::CLAIM_BATCH,
    clock,
    config::Config,
    job::{Arrival, Rules, decode},
};

/// Makes the tables.
///
/// # Errors
/// The database cannot be used.
pub(crate) async fn migrate(config: &Config) -> Result<()> {
    let store = app::open_store(config)?;
    store.migrate().await?;
    store.close().await;
    Ok(())
}

/// Enqueues the jobs of a file of JSON Lines in the store, from where the relay brings them to a worker.
///
/// # Errors
/// The file or the database cannot be used, or a line is not taken.
pub(crate) async fn enqueue(config: &Config, file: &Path) -> Result<()> {
    let lane = config.worker.queues.first().context("there is no lane")?;
    let lines = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let jobs = BufReader::new(lines)
        .lines()
        .map(|line| Ok(Arc::new(decode(line?.as_bytes(), &Arrival::new(lane))?)))
        .collect::<Result<Vec<_>>>()?;
    let store = app::open_store(config)?;
    let admission = Admission::new(store.clone(), None, clock::system(), Rules::default(), Duration::ZERO);
    for chunk in jobs.chunks(CLAIM_BATCH) {
        let answers = admission.enqueue(chunk).await?;
        ensure!(answers.iter().all(|answer| matches!(answer, Enqueued::New { .. })), "a job was not taken");
    }
    store.close().await;
    Ok(())
}
