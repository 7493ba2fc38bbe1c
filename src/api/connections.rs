//! The open connections of the API, whose number is bounded.
//!
//! Where all are taken, a further one takes the place of the one that has sent no request for the longest time, so that
//! whoever connects and asks for nothing, or sends half the head of a request, keeps nobody from being answered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics;

/// All of them.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    room: Arc<Semaphore>,
    idle: Arc<Idle>,
}

/// Those of which no request is under way.
#[derive(Debug, Default)]
struct Idle {
    /// By the order in which they became so.
    places: Mutex<Places>,
    /// That there is a further one, or that one which was told to go stays for a request.
    came: Notify,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    leave: BTreeMap<u64, CancellationToken>,
    /// The one that was told to go and has not gone yet. Nobody else is, meanwhile.
    going: Option<u64>,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most)), idle: Arc::default() }
    }

    /// Makes room for a further connection. Waits while a request is under way at every other one.
    pub(super) async fn enter(&self) -> Open {
        loop {
            let came = self.idle.came.notified();
            if self.room.available_permits() == 0 {
                self.idle.let_eldest_go();
            }
            tokio::select! {
                // Never closed, so that this is no error.
                Ok(permit) = self.room.clone().acquire_owned() => return Open::new(permit, self.idle.clone()),
                () = came => {}
            }
        }
    }
}

impl Idle {
    /// Nothing in here can be half done where a thread panics.
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_eldest_go(&self) {
        let mut places = self.places();
        if places.going.is_none()
            && let Some((eldest, leave)) = places.leave.pop_first()
        {
            places.going = Some(eldest);
            leave.cancel();
            metrics::API_EVICTIONS.add([], 1);
        }
    }
}

/// An open connection, which is counted. It is idle but for while a request is under way, of which it has one at a time.
#[derive(Debug)]
pub(super) struct Open {
    _permit: OwnedSemaphorePermit,
    _counted: metrics::Counted,
    idle: Arc<Idle>,
    leave: CancellationToken,
    /// Its place among the idle ones.
    place: Mutex<Option<u64>>,
}

impl Open {
    fn new(permit: OwnedSemaphorePermit, idle: Arc<Idle>) -> Self {
        let (leave, place) = (CancellationToken::new(), Mutex::default());
        let open = Self { _permit: permit, _counted: metrics::API_CONNECTIONS.counted(), idle, leave, place };
        open.waits();
        open
    }

    /// Ends when it has to make room for another one. A request that has come since is still answered.
    pub(super) async fn has_to_go(&self) {
        self.leave.cancelled().await;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.place().is_some()
    }

    /// Has it keep its place until what is returned is dropped, which is when the request has its answer, or the stream that is its
    /// answer is over. Who is slow to read
    /// a long one counts as idle, because anybody may ask for the description of the API and not read it.
    pub(super) fn asks(self: &Arc<Self>) -> Asking {
        if self.leaves_the_idle() {
            // Another one has to go in its place.
            self.idle.came.notify_waiters();
        }
        Asking(self.clone())
    }

    fn waits(&self) {
        let mut places = self.idle.places();
        let place = places.next;
        places.next += 1;
        places.leave.insert(place, self.leave.clone());
        *self.place() = Some(place);
        drop(places);
        self.idle.came.notify_waiters();
    }

    /// Whether it was told to go.
    fn leaves_the_idle(&self) -> bool {
        let mut places = self.idle.places();
        let Some(place) = self.place().take() else { return false };
        places.leave.remove(&place);
        places.going.take_if(|going| *going == place).is_some()
    }

    fn place(&self) -> MutexGuard<'_, Option<u64>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Who waits for its place is woken by the permit, which is free a moment later: before that nobody else has to go.
        let _was_told = self.leaves_the_idle();
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Asking(Arc<Open>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.waits();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    async fn two() -> (Connections, Arc<Open>, Arc<Open>) {
        let connections = Connections::new(2);
        let (first, second) = (connections.enter().await, connections.enter().await);
        (connections, Arc::new(first), Arc::new(second))
    }

    #[tokio::test]
    async fn a_further_connection_takes_the_place_of_the_one_that_is_idle_for_the_longest_time() {
        let (connections, first, second) = two().await;
        drop(first.asks());
        let entering = connections.enter();
        tokio::pin!(entering);
        assert!(entering.as_mut().now_or_never().is_none(), "it waits for the place");
        assert!(second.has_to_go().now_or_never().is_some(), "the first has asked since");
        assert!(first.has_to_go().now_or_never().is_none(), "one place is enough");
        drop(second);
        entering.await;
    }

    #[tokio::test]
    async fn a_connection_with_a_request_under_way_keeps_its_place_until_it_has_its_answer() {
        let (connections, first, second) = two().await;
        let (asking, _also) = (first.asks(), second.asks());
        let entering = connections.enter();
        tokio::pin!(entering);
        assert!(entering.as_mut().now_or_never().is_none(), "there is no room");
        assert!(first.has_to_go().now_or_never().is_none(), "its request is under way");
        drop(asking);
        assert!(entering.as_mut().now_or_never().is_none(), "it waits for the place");
        assert!(first.has_to_go().now_or_never().is_some(), "it is idle now, and somebody waits");
        assert!(second.has_to_go().now_or_never().is_none(), "its request is under way");
        drop(first);
        entering.await;
    }

    #[tokio::test]
    async fn one_connection_goes_for_each_that_comes_and_another_one_where_it_stays_for_a_request() {
        let connections = Connections::new(3);
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(Arc::new(connections.enter().await));
        }
        let entering = connections.enter();
        tokio::pin!(entering);
        assert!(entering.as_mut().now_or_never().is_none(), "it waits for the place");
        // An answer to another one is no reason to tell a second one to go.
        drop(all[1].asks());
        assert!(entering.as_mut().now_or_never().is_none(), "it waits for the place");
        let told = |all: &[Arc<Open>]| all.iter().map(|open| open.leave.is_cancelled()).collect::<Vec<_>>();
        assert_eq!(told(&all), [true, false, false]);
        let _asking = all[0].asks();
        assert!(entering.as_mut().now_or_never().is_none(), "it waits for the place");
        assert_eq!(told(&all), [true, false, true], "the eldest of those that are idle still");
        drop(all.pop());
        entering.await;
    }

    #[tokio::test]
    async fn a_request_that_comes_when_its_connection_has_to_go_is_seen() {
        let (connections, first, _second) = two().await;
        let entering = connections.enter();
        tokio::pin!(entering);
        assert!(entering.as_mut().now_or_never().is_none(), "it waits for the place");
        assert!(first.has_to_go().now_or_never().is_some() && first.is_idle());
        let asking = first.asks();
        assert!(!first.is_idle(), "it is answered first");
        drop((asking, first));
        entering.await;
    }
}
