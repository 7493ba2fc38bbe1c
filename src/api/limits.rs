//! What one owner may take of an API that many share, by all of its keys together: requests per second, room for bodies in
//! memory, turns to add items to batches, and streams.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::problem::{Kind, Problem};
use crate::{job::Principal, sync::lock};

/// Most bytes of the bodies of all requests that are in memory at once.
const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;

/// The most of these that one owner may take, so that others have room whatever it sends.
const MAX_BODY_BYTES_OF_ONE: usize = MAX_BODY_BYTES / 4;

/// In what room for bodies is counted, in bytes.
const PIECE: usize = 1024;

/// Most requests that add items to batches at once, of all and of one owner: each keeps a connection to the database busy.
const MAX_TURNS: usize = 4;
const MAX_TURNS_OF_ONE: usize = 2;

/// Which part of the connections may have requests of one owner.
const SHARE_OF_ONE: usize = 4;

/// Which part of the connections may be streams, so that there is room for requests, and those of one owner.
const SHARE_OF_STREAMS: (usize, usize) = (3, 4);
const SHARE_OF_STREAMS_OF_ONE: usize = 8;

/// How long a request waits for room before it is refused.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// Most owners whose requests are counted at once. Those that asked for nothing for a second are forgotten first.
const MAX_COUNTED: usize = 10_000;

/// Lets through so many requests of each owner per second, and as many at once. Owners that ask for nothing cost nothing.
#[derive(Debug)]
pub(super) struct Rate {
    /// `None` is no limit.
    per_second: Option<f64>,
    buckets: Mutex<HashMap<Principal, Bucket>>,
}

/// What an owner has left.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rate {
    /// With 0 there is no limit.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: (per_second > 0).then(|| f64::from(per_second)), buckets: Mutex::default() }
    }

    /// Counts a request; an error if it comes too soon.
    pub(super) fn take(&self, whose: &Principal, now: Instant) -> Result<(), Problem> {
        let Some(most) = self.per_second else { return Ok(()) };
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= MAX_COUNTED && !buckets.contains_key(whose) {
            // They are full again, so that a new one is the same.
            buckets.retain(|_, bucket| now.duration_since(bucket.at) < Duration::from_secs(1));
            if buckets.len() >= MAX_COUNTED {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(whose.clone()).or_insert(Bucket { left: most, at: now });
        let since = now.duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * most).min(most);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(too_much(format!(
                "an owner may send {most} requests a second (`api.requests_per_second`); send fewer"
            )));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

/// What the requests of all owners share, counted in pieces.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    most_of_one: usize,
    /// What is said to an owner who has taken the most.
    refusal: String,
    taken: Mutex<HashMap<Principal, usize>>,
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    whose: Principal,
    pieces: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for bodies, which [`Self::take_bytes`] takes.
    pub(super) fn for_bodies() -> Arc<Self> {
        let refusal = format!(
            "the requests of this owner that are under way have {MAX_BODY_BYTES_OF_ONE} bytes of bodies together, which is the \
             most; send fewer at once, and say how long each is (Content-Length)"
        );
        Self::new(MAX_BODY_BYTES / PIECE, MAX_BODY_BYTES_OF_ONE / PIECE, refusal)
    }

    /// Requests that are under way, each a piece, of those that as many connections can have. A waiting one lasts a minute, so that
    /// one owner could keep all others from connecting.
    pub(super) fn for_requests(connections: usize) -> Arc<Self> {
        let most_of_one = (connections / SHARE_OF_ONE).max(1);
        let refusal = format!(
            "{most_of_one} requests of this owner are under way, which is the most; send this one again when some are answered, \
             and wait for many jobs by their batch"
        );
        Self::new(connections, most_of_one, refusal)
    }

    /// Turns to add items to batches, each a piece.
    pub(super) fn for_turns() -> Arc<Self> {
        let refusal = format!(
            "{MAX_TURNS_OF_ONE} requests of this owner add items to batches, which is the most; send this one again when they \
             are answered"
        );
        Self::new(MAX_TURNS, MAX_TURNS_OF_ONE, refusal)
    }

    /// Streams, each a piece, of those that as many connections can be.
    pub(super) fn for_streams(connections: usize) -> Arc<Self> {
        let most_of_one = (connections / SHARE_OF_STREAMS_OF_ONE).max(1);
        let refusal = format!(
            "{most_of_one} streams of this owner are open, which is the most; close some, and follow many jobs by their batch or \
             their owner"
        );
        let (share, of) = SHARE_OF_STREAMS;
        Self::new((connections * share / of).max(1), most_of_one, refusal)
    }

    fn new(most: usize, most_of_one: usize, refusal: String) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(most)), most_of_one, refusal, taken: Mutex::default() })
    }

    /// Takes room for a body of up to so many bytes. Waits for it, but not for long.
    pub(super) async fn take_bytes(
        self: &Arc<Self>,
        whose: &Principal,
        bytes: usize,
    ) -> Result<Taken, Problem> {
        self.take(whose, bytes.div_ceil(PIECE)).await
    }

    /// Takes so many pieces. An owner who has taken the most is refused at once; while others have, it waits, but not for
    /// long.
    pub(super) async fn take(self: &Arc<Self>, whose: &Principal, pieces: usize) -> Result<Taken, Problem> {
        let mut taken = self.reserve(whose, pieces)?;
        let permits = u32::try_from(pieces).unwrap_or(u32::MAX);
        let permit = self.all.clone().acquire_many_owned(permits);
        match tokio::time::timeout(ROOM_TIMEOUT, permit).await {
            Ok(Ok(permit)) => {
                taken.permit = Some(permit);
                Ok(taken)
            }
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => {
                let detail = "too much of others is under way; send this again a little later";
                Err(Problem::new(Kind::Busy, detail))
            }
        }
    }

    /// Counts what an owner takes, also while it waits.
    pub(super) fn reserve(self: &Arc<Self>, whose: &Principal, pieces: usize) -> Result<Taken, Problem> {
        let mut all = lock(&self.taken);
        let of_one = all.get(whose).copied().unwrap_or(0) + pieces;
        if of_one > self.most_of_one {
            return Err(too_much(self.refusal.clone()));
        }
        all.insert(whose.clone(), of_one);
        Ok(Taken { room: self.clone(), whose: whose.clone(), pieces, permit: None })
    }

    fn give_back(&self, whose: &Principal, pieces: usize) {
        let mut all = lock(&self.taken);
        if let Some(of_one) = all.get_mut(whose) {
            *of_one = of_one.saturating_sub(pieces);
            if *of_one == 0 {
                all.remove(whose);
            }
        }
    }
}

impl Taken {
    /// Gives back what a body does not need that came without its length.
    pub(super) fn keep_bytes(&mut self, bytes: usize) {
        let kept = bytes.div_ceil(PIECE).min(self.pieces);
        let more = self.pieces - kept;
        if let Some(permit) = &mut self.permit {
            drop(permit.split(more));
        }
        self.room.give_back(&self.whose, more);
        self.pieces = kept;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.give_back(&self.whose, self.pieces);
    }
}

fn too_much(detail: String) -> Problem {
    Problem::new(Kind::TooManyRequests, detail).again_in(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bounds::MAX_CHUNK_BYTES,
        job::{Owner, OwnerKind},
    };

    fn owner(id: &str) -> Principal {
        Principal::Owner(Owner::new(OwnerKind::User, id).unwrap())
    }

    #[test]
    fn an_owner_over_its_rate_is_refused_and_others_are_not() {
        let (rate, now) = (Rate::new(3), Instant::now());
        let (busy, other) = (owner("busy"), Principal::Operator);
        let ms = |ms| now + Duration::from_millis(ms);
        for _ in 0..3 {
            rate.take(&busy, now).unwrap();
        }
        assert!(rate.take(&busy, now).is_err());
        rate.take(&other, now).unwrap();
        assert!(rate.take(&busy, ms(300)).is_err());
        rate.take(&busy, ms(400)).unwrap();
        assert!(rate.take(&busy, ms(401)).is_err());
        for _ in 0..3 {
            rate.take(&busy, ms(60_000)).unwrap();
        }
        assert!(rate.take(&busy, ms(60_000)).is_err(), "what is not used is not saved");
        let none = Rate::new(0);
        assert!((0..10_000).all(|_| none.take(&busy, now).is_ok()));
    }

    #[test]
    fn no_more_owners_are_counted_than_there_is_room_for() {
        let (rate, now) = (Rate::new(1), Instant::now());
        for number in 0..2 * MAX_COUNTED {
            rate.take(&owner(&number.to_string()), now).unwrap();
        }
        assert!(lock(&rate.buckets).len() <= MAX_COUNTED);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_share_a_bounded_room_of_which_no_owner_takes_all() {
        let room = Room::for_bodies();
        let owners: Vec<Principal> = ["a", "b", "c", "d"].map(owner).into();
        let mut taken = Vec::new();
        for owner in &owners {
            for _ in 0..MAX_BODY_BYTES_OF_ONE / MAX_CHUNK_BYTES {
                taken.push(room.take_bytes(owner, MAX_CHUNK_BYTES).await.unwrap());
            }
            room.take_bytes(owner, 1).await.unwrap_err();
        }
        // Now it is full, for an owner of whom nobody has heard, too.
        let newcomer = owner("newcomer");
        let begun = Instant::now();
        room.take_bytes(&newcomer, 10).await.unwrap_err();
        assert_eq!(begun.elapsed(), ROOM_TIMEOUT);
        // A body that was short gives the rest back at once.
        taken[0].keep_bytes(3);
        let some = room.take_bytes(&newcomer, 10).await.unwrap();
        room.take_bytes(&owners[0], PIECE).await.unwrap();
        drop((taken, some));
        assert!(lock(&room.taken).is_empty());
        assert_eq!(room.all.available_permits(), MAX_BODY_BYTES / PIECE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_adds_items_with_all_that_it_has_leaves_turns_to_others() {
        let turns = Room::for_turns();
        let (busy, other) = (owner("busy"), owner("other"));
        let begun = Instant::now();
        let (first, _second) = (turns.take(&busy, 1).await.unwrap(), turns.take(&busy, 1).await.unwrap());
        for _ in 0..100 {
            turns.take(&busy, 1).await.unwrap_err();
        }
        let _others = (turns.take(&other, 1).await.unwrap(), turns.take(&other, 1).await.unwrap());
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody has waited");
        drop(first);
        turns.take(&busy, 1).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_one_owner_leave_room_for_those_of_others_and_all_of_them_for_requests() {
        let room = Room::for_streams(16);
        let mut open = Vec::new();
        for owner in ["a", "b", "c", "d", "e", "f"].map(owner) {
            for _ in 0..2 {
                open.push(room.take(&owner, 1).await.unwrap());
            }
            room.take(&owner, 1).await.unwrap_err();
        }
        room.take(&owner("newcomer"), 1).await.unwrap_err();
        assert_eq!(open.len(), 12, "of sixteen connections");
        open.pop();
        room.take(&owner("newcomer"), 1).await.unwrap();
    }
}
