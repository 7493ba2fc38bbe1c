//! Which worker does what one does for all.

use std::time::Duration;

use errand::{job::WorkerId, store::Task};
use futures_util::future::join_all;
use uuid::Uuid;

use super::{TestStore, on_every_backend};

on_every_backend!(a_task_is_one_workers_until_it_leaves_it_or_its_time_is_over, async |t| {
    const MINUTE: Duration = Duration::from_secs(60);
    let [one, other] = [WorkerId(Uuid::now_v7()), WorkerId(Uuid::now_v7())];
    assert!(t.store.take_task(Task::TakeIn, one, MINUTE).await.unwrap());
    assert!(!t.other.take_task(Task::TakeIn, other, MINUTE).await.unwrap(), "it is the first one's");
    assert!(t.other.take_task(Task::PublishEvents, other, MINUTE).await.unwrap(), "another task");
    assert!(t.store.take_task(Task::TakeIn, one, MINUTE).await.unwrap(), "its own, again");
    t.store.leave_task(Task::TakeIn, other).await.unwrap();
    assert!(
        !t.store.take_task(Task::TakeIn, other, MINUTE).await.unwrap(),
        "nobody leaves what is another's"
    );
    t.store.leave_task(Task::TakeIn, one).await.unwrap();
    assert!(t.store.take_task(Task::TakeIn, other, Duration::ZERO).await.unwrap(), "it was left");
    assert!(t.other.take_task(Task::TakeIn, one, MINUTE).await.unwrap(), "its time was over");
    // Of many at once one has it.
    t.store.leave_task(Task::TakeIn, one).await.unwrap();
    let workers: Vec<WorkerId> = (0..8).map(|_| WorkerId(Uuid::now_v7())).collect();
    let asked = join_all(workers.iter().map(|worker| t.store.take_task(Task::TakeIn, *worker, MINUTE))).await;
    assert_eq!(asked.into_iter().filter(|taken| *taken.as_ref().unwrap()).count(), 1);
});
