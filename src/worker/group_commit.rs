//! Group commit: items that arrive while a write is in progress are written together by the next
//! one. There is no timer; a lone item is written at once.

use std::{future::Future, sync::Mutex};

use tokio::sync::{mpsc, oneshot};

use crate::sync::lock;

type Submission<T, R> = (T, oneshot::Sender<R>);

#[derive(Debug)]
pub(super) struct GroupCommit<T, R> {
    sender: Mutex<Option<mpsc::UnboundedSender<Submission<T, R>>>>,
}

#[derive(Debug)]
pub(super) struct Runner<T, R> {
    receiver: mpsc::UnboundedReceiver<Submission<T, R>>,
    max: usize,
}

/// Makes both sides. Every submitter waits for its answer, so the jobs in flight bound the channel.
pub(super) fn group_commit<T, R>(max: usize) -> (GroupCommit<T, R>, Runner<T, R>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (GroupCommit { sender: Mutex::new(Some(sender)) }, Runner { receiver, max })
}

impl<T, R> GroupCommit<T, R> {
    /// Submits one item and waits until it is written. `None` when the writer has given up.
    pub(super) async fn submit(&self, item: T) -> Option<R> {
        let (answer, written) = oneshot::channel();
        lock(&self.sender).as_ref()?.send((item, answer)).ok()?;
        written.await.ok()
    }

    /// Lets the writer end once everything submitted is written.
    pub(super) fn close(&self) {
        drop(lock(&self.sender).take());
    }
}

impl<T, R> Runner<T, R> {
    /// Writes batches with `write`, which is told how many items wait behind the batch, and returns an answer per item in
    /// order, or `None` for one that is given up. Ends when the submitting side is closed.
    pub(super) async fn run<F>(mut self, mut write: impl FnMut(Vec<T>, usize) -> F)
    where
        F: Future<Output = Vec<Option<R>>>,
    {
        let mut waiting = Vec::new();
        while self.receiver.recv_many(&mut waiting, self.max).await > 0 {
            let (items, answers): (Vec<T>, Vec<_>) = waiting.drain(..).unzip();
            let written = write(items, self.receiver.len()).await;
            for (answer, result) in answers.into_iter().zip(written) {
                // A submitter that went away is not interested in its answer.
                if let Some(result) = result {
                    drop(answer.send(result));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinHandle;

    use super::*;

    fn submit(commit: &Arc<GroupCommit<u32, u32>>, n: u32) -> JoinHandle<Option<u32>> {
        let commit = commit.clone();
        tokio::spawn(async move { commit.submit(n).await })
    }

    #[tokio::test]
    async fn items_that_arrive_during_a_write_share_the_next_one() {
        let (commit, runner) = group_commit::<u32, u32>(100);
        let commit = Arc::new(commit);
        let (sizes_in, mut sizes) = mpsc::unbounded_channel();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let gated = gate.clone();
        let writer = tokio::spawn(runner.run(move |items: Vec<u32>, _| {
            let (sizes_in, gate) = (sizes_in.clone(), gated.clone());
            async move {
                sizes_in.send(items.len()).unwrap();
                gate.acquire().await.unwrap().forget();
                items.into_iter().map(|n| Some(n * 2)).collect()
            }
        }));
        let submit = |n| submit(&commit, n);
        let first = submit(1);
        assert_eq!(sizes.recv().await, Some(1), "a lone item is written at once");
        let rest: Vec<_> = (2..=9).map(submit).collect();
        // The submitters run before the next statement on this single-threaded runtime.
        tokio::task::yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Some(2));
        for (n, answer) in (2..=9).zip(rest) {
            assert_eq!(answer.await.unwrap(), Some(n * 2));
        }
        assert_eq!(sizes.recv().await, Some(8));
        commit.close();
        writer.await.unwrap();
        assert_eq!(commit.submit(1).await, None);
    }

    #[tokio::test]
    async fn items_that_the_writer_gives_up_have_no_answer() {
        let (commit, runner) = group_commit::<u32, u32>(100);
        let commit = Arc::new(commit);
        let submitted: Vec<_> = (0..3).map(|n| submit(&commit, n)).collect();
        // The submitters run before the writer on this single-threaded runtime.
        tokio::task::yield_now().await;
        let writer = tokio::spawn(runner.run(|items: Vec<u32>, _| async move {
            items.iter().map(|n| (n % 2 == 0).then_some(*n)).collect()
        }));
        let mut answers = Vec::new();
        for answer in submitted {
            answers.push(answer.await.unwrap());
        }
        assert_eq!(answers, [Some(0), None, Some(2)]);
        commit.close();
        writer.await.unwrap();
    }
}
