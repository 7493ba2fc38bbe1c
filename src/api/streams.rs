//! The streams of events that are open. One look at the store serves all of them, however many there are.
//!
//! A stream that does not take what the looks bring as fast as it comes is left behind, so that nobody who reads slowly keeps others
//! waiting or fills the memory. It begins anew.

use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, OwnedMutexGuard, Semaphore, SemaphorePermit, mpsc},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::limits::Room;
use crate::{
    failure::chain,
    job::{BatchId, JobId, Owner, Principal},
    store::{Event, EventsAfter, EventsOf, Result, SharedStore},
    sync::lock,
    telemetry::metrics,
};

/// The shortest time between two looks, and the longest where the database is slow to answer or away.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(2);

/// Most events that one look brings.
const MOST_AT_ONCE: usize = 5_000;

/// Most events that wait for one stream, beyond which it is left behind.
const MOST_WAITING: usize = 256;

/// Most streams that read by themselves at the same time: half of the connections that there are by default.
const MOST_READING: usize = 2;

/// Most owners of whom it is remembered that one of their streams reads.
const MAX_OWNERS: usize = 10_000;

/// Turns of streams that read by themselves: so many at a time that others have connections to the database, and one of an owner,
/// so that those of others wait for few.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    owners: Mutex<HashMap<Principal, Arc<tokio::sync::Mutex<()>>>>,
}

/// A turn that is over when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _all: Option<SemaphorePermit<'a>>,
    _own: OwnedMutexGuard<()>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Semaphore::new(MOST_READING), owners: Mutex::default() }
    }
}

impl Turns {
    pub(super) async fn take(&self, whose: &Principal) -> Turn<'_> {
        let own = {
            let mut owners = lock(&self.owners);
            if owners.len() >= MAX_OWNERS {
                // The map has the only one of those that nobody has or waits for.
                owners.retain(|_, own| Arc::strong_count(own) > 1);
            }
            owners.entry(whose.clone()).or_default().clone()
        };
        let own = own.lock_owned().await;
        // It is never closed, so that it is no error.
        Turn { _all: self.all.acquire().await.ok(), _own: own }
    }
}

/// All streams of a process.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) store: SharedStore,
    /// For so many of them, in all and of one owner.
    pub(super) room: Arc<Room>,
    /// To read what was missed.
    pub(super) turns: Turns,
    open: Mutex<Open>,
    /// Up to where everything was handed out, while there is a stream.
    position: AtomicU64,
    next: AtomicU64,
    begun: Notify,
    /// At which all of them end.
    pub(super) stop: CancellationToken,
}

/// By what they are of, and which of these they are.
type Open = BTreeMap<(Topic, u64), mpsc::Sender<Arc<Event>>>;

/// What a stream is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    All,
    Owner(Owner),
    Job(JobId),
    Batch(BatchId),
}

impl Topic {
    fn of(whose: &Principal, of: EventsOf) -> Self {
        match (of, whose) {
            (EventsOf::Job(job), _) => Self::Job(job),
            (EventsOf::Batch(batch), _) => Self::Batch(batch),
            (EventsOf::All, Principal::Owner(owner)) => Self::Owner(owner.clone()),
            (EventsOf::All, Principal::Operator) => Self::All,
        }
    }
}

impl Streams {
    /// Without any. After `stop` all end.
    pub(super) fn new(store: SharedStore, room: Arc<Room>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            store,
            room,
            turns: Turns::default(),
            open: Mutex::default(),
            position: AtomicU64::new(0),
            next: AtomicU64::new(0),
            begun: Notify::new(),
            stop,
        })
    }

    /// Begins to take what happens. All that comes later than [`Joined::behind`] is in the channel.
    pub(super) async fn join(self: &Arc<Self>, whose: &Principal, of: EventsOf) -> Result<Joined> {
        // What nobody followed is not looked at.
        let last = if self.is_empty() { Some(self.store.last_event().await?) } else { None };
        let place = (Topic::of(whose, of), self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = mpsc::channel(MOST_WAITING);
        let behind = {
            let mut open = lock(&self.open);
            match last {
                Some(last) if open.is_empty() => self.position.store(last, Ordering::Release),
                // The last one went meanwhile, a moment ago, so that what is to be read since then is little.
                _ => {}
            }
            open.insert(place.clone(), sender);
            self.position.load(Ordering::Acquire)
        };
        self.begun.notify_one();
        Ok(Joined { streams: self.clone(), place, events, behind })
    }

    fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// Looks for those who follow.
    pub(super) async fn run(&self) {
        let looking = async {
            loop {
                if self.is_empty() {
                    self.begun.notified().await;
                } else {
                    let begun = Instant::now();
                    self.look().await;
                    // A database that is slow to answer is left in peace for most of the time.
                    sleep((begun.elapsed() * 9).clamp(LOOK_EVERY, LOOK_AT_LEAST_EVERY)).await;
                }
            }
        };
        let _stopped: Option<()> = self.stop.run_until_cancelled(looking).await;
    }

    async fn look(&self) {
        let after = self.position.load(Ordering::Acquire);
        let reading = self.store.events(&Principal::Operator, EventsOf::All, Some(after), MOST_AT_ONCE);
        match AssertUnwindSafe(reading).catch_unwind().await {
            Ok(Ok(EventsAfter::Are { events, next })) => self.hand_out(after, events, next),
            // After a restore of the database, or a week without it. They read for themselves what there is.
            Ok(Ok(EventsAfter::Removed { .. } | EventsAfter::ToCome)) => lock(&self.open).clear(),
            Ok(Err(error)) => {
                tracing::debug!(error = %chain(&error), "the store cannot be asked for the events that are followed")
            }
            // The next look is for all who follow, so that it must not be the last one.
            Err(_) => metrics::PANICS.add([], 1),
        }
    }

    /// Hands out what was read between two positions.
    fn hand_out(&self, after: u64, events: Vec<Event>, next: u64) {
        let mut open = lock(&self.open);
        // Meanwhile all were gone, and somebody began anew.
        if self.position.load(Ordering::Acquire) != after {
            return;
        }
        for event in events.into_iter().map(Arc::new) {
            let topics = [
                Some(Topic::All),
                event.owner.clone().map(Topic::Owner),
                event.job.map(Topic::Job),
                event.batch.map(Topic::Batch),
            ];
            for topic in topics.into_iter().flatten() {
                let those = (topic.clone(), u64::MIN)..=(topic, u64::MAX);
                let is_left = |(_, stream): &(_, &mpsc::Sender<_>)| stream.try_send(event.clone()).is_err();
                let left: Vec<_> =
                    open.range(those).filter(is_left).map(|(place, _)| place.clone()).collect();
                // Before the next event: it would have a gap where this one was.
                for place in left {
                    open.remove(&place);
                }
            }
        }
        self.position.store(next, Ordering::Release);
    }
}

/// A stream among the others, until it is dropped.
#[derive(Debug)]
pub(super) struct Joined {
    streams: Arc<Streams>,
    place: (Topic, u64),
    /// What happens; it ends where the stream is left behind.
    pub(super) events: mpsc::Receiver<Arc<Event>>,
    /// What is not later was not handed out to it.
    pub(super) behind: u64,
}

impl Joined {
    /// Up to where everything was handed out.
    pub(super) fn position(&self) -> u64 {
        self.streams.position.load(Ordering::Acquire)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        lock(&self.streams.open).remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        clock,
        job::OwnerKind,
        store::{
            EventKind,
            sqlite::{SqliteOptions, SqliteStore},
        },
    };

    fn owner(id: &str) -> Owner {
        Owner::new(OwnerKind::User, id).unwrap()
    }

    /// With a store that nobody asks here.
    fn streams() -> Arc<Streams> {
        let options =
            SqliteOptions { path: "nowhere.db".into(), clock: clock::system(), records_events: false };
        let store = Arc::new(SqliteStore::new(options));
        Streams::new(store, Room::for_streams(8), CancellationToken::new())
    }

    /// Who follows this, beside somebody because of whom the store is not asked where to begin.
    async fn follows(streams: &Arc<Streams>, whose: Principal) -> Joined {
        let (sender, _) = mpsc::channel(1);
        lock(&streams.open).insert((Topic::Owner(owner("somebody")), u64::MAX), sender);
        streams.join(&whose, EventsOf::All).await.unwrap()
    }

    /// So many events of an owner, from a position on.
    fn events(of: &str, from: u64, count: u64) -> Vec<Event> {
        let event = |position| Event {
            position,
            at: jiff::Timestamp::UNIX_EPOCH,
            kind: EventKind::JobSucceeded,
            sequence: 1,
            job: Some(JobId::new()),
            batch: None,
            owner: Some(owner(of)),
            tool: None,
            toolkit: None,
            queue: None,
            attempt: None,
            held_reason: None,
            error_kind: None,
        };
        (from..from + count).map(event).collect()
    }

    fn taken(joined: &mut Joined) -> Vec<u64> {
        std::iter::from_fn(|| joined.events.try_recv().ok()).map(|event| event.position).collect()
    }

    #[tokio::test]
    async fn who_does_not_keep_up_is_left_behind_without_a_gap_and_others_are_not() {
        let streams = streams();
        let mut slow = follows(&streams, Principal::Owner(owner("a"))).await;
        let mut other = follows(&streams, Principal::Owner(owner("b"))).await;
        let most = MOST_WAITING as u64;
        streams.hand_out(0, [events("a", 1, most + 10), events("b", most + 11, 3)].concat(), most + 13);
        assert_eq!(slow.position(), most + 13);
        assert_eq!(taken(&mut slow), (1..=most).collect::<Vec<_>>());
        assert!(slow.events.is_closed(), "it reads by itself what it has missed");
        // Although there is room again.
        streams.hand_out(most + 13, events("a", most + 14, 1), most + 14);
        assert!(taken(&mut slow).is_empty());
        assert_eq!(taken(&mut other), [most + 11, most + 12, most + 13]);
        assert!(!other.events.is_closed());
        // What was read before somebody began anew is not handed out.
        streams.hand_out(0, events("b", 1, 1), 1);
        assert_eq!((taken(&mut other), other.position()), (vec![], most + 14));
    }

    #[tokio::test]
    async fn one_stream_of_an_owner_reads_at_a_time_so_that_others_have_their_turns() {
        let turns = Turns::default();
        let (busy, other) = (Principal::Owner(owner("busy")), Principal::Owner(owner("other")));
        let first = turns.take(&busy).await;
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(turns.take(&busy))).collect();
        assert!(waiting.iter_mut().all(|next| next.now_or_never().is_none()));
        let second = turns.take(&other).now_or_never().expect("it waits for none of the others");
        assert!(turns.take(&Principal::Operator).now_or_never().is_none(), "so many read at a time");
        drop((first, second));
        waiting.remove(0).now_or_never().expect("the next of those that wait has its turn");
    }
}
