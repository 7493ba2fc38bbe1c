//! What one key may take of an API that many share: requests per second, and room for bodies in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use uuid::Uuid;

use super::problem::{Kind, Problem};
use crate::sync::lock;

/// Most bytes of the bodies of all requests that are in memory at once.
const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;

/// The most of these that one key may take, so that others have room whatever it sends.
const MAX_BODY_BYTES_OF_KEY: usize = MAX_BODY_BYTES / 4;

/// In what room for bodies is counted, in bytes.
const PIECE: usize = 1024;

/// How long a request waits for room before it is refused.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// Most keys whose requests are counted at once. Those that asked for nothing for a second are forgotten first.
const MAX_COUNTED: usize = 10_000;

/// Lets through so many requests of each key per second, and as many at once. Keys without a use cost nothing.
#[derive(Debug)]
pub(super) struct Rate {
    /// `None` is no limit.
    per_second: Option<f64>,
    buckets: Mutex<HashMap<Uuid, Bucket>>,
}

/// What a key has left.
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

    /// Counts a request of this key; an error if it comes too soon.
    pub(super) fn take(&self, key: Uuid, now: Instant) -> Result<(), Problem> {
        let Some(most) = self.per_second else { return Ok(()) };
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= MAX_COUNTED && !buckets.contains_key(&key) {
            // They are full again, so that a new one is the same.
            buckets.retain(|_, bucket| now.duration_since(bucket.at) < Duration::from_secs(1));
            if buckets.len() >= MAX_COUNTED {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: most, at: now });
        let since = now.duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * most).min(most);
        bucket.at = now;
        if bucket.left < 1.0 {
            let detail =
                format!("this key may send {most} requests a second (`api.requests_per_second`); send fewer");
            return Err(Problem::new(Kind::TooManyRequests, detail).again_in(1));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

/// The room that the bodies of all requests share.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    of_keys: Mutex<HashMap<Option<Uuid>, usize>>,
}

/// Room that is taken, in pieces, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    key: Option<Uuid>,
    pieces: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(MAX_BODY_BYTES / PIECE)), of_keys: Mutex::default() })
    }

    /// Takes room for a body of up to so many bytes. Waits for it, but not for long.
    pub(super) async fn take(self: &Arc<Self>, key: Option<Uuid>, bytes: usize) -> Result<Taken, Problem> {
        let pieces = bytes.div_ceil(PIECE);
        let mut taken = self.reserve(key, pieces)?;
        let permits = u32::try_from(pieces).unwrap_or(u32::MAX);
        let permit = self.all.clone().acquire_many_owned(permits);
        match tokio::time::timeout(ROOM_TIMEOUT, permit).await {
            Ok(Ok(permit)) => {
                taken.permit = Some(permit);
                Ok(taken)
            }
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => {
                let detail = "too many large requests are under way; send this one again a little later";
                Err(Problem::new(Kind::Busy, detail))
            }
        }
    }

    /// Counts what a key takes, also while it waits.
    fn reserve(self: &Arc<Self>, key: Option<Uuid>, pieces: usize) -> Result<Taken, Problem> {
        let mut of_keys = lock(&self.of_keys);
        let of_key = of_keys.entry(key).or_default();
        if *of_key + pieces > MAX_BODY_BYTES_OF_KEY / PIECE {
            let detail = format!(
                "the requests of this key that are under way have {MAX_BODY_BYTES_OF_KEY} bytes of bodies together, which \
                 is the most; send fewer at once, and say how long each is (Content-Length)"
            );
            return Err(Problem::new(Kind::TooManyRequests, detail).again_in(1));
        }
        *of_key += pieces;
        Ok(Taken { room: self.clone(), key, pieces, permit: None })
    }
}

impl Taken {
    /// Gives back what a body does not need that came without its length.
    pub(super) fn keep(&mut self, bytes: usize) {
        let kept = bytes.div_ceil(PIECE).min(self.pieces);
        let more = self.pieces - kept;
        if let Some(permit) = &mut self.permit {
            drop(permit.split(more));
        }
        self.room.give_back(self.key, more);
        self.pieces = kept;
    }
}

impl Room {
    fn give_back(&self, key: Option<Uuid>, pieces: usize) {
        let mut of_keys = lock(&self.of_keys);
        if let Some(of_key) = of_keys.get_mut(&key) {
            *of_key = of_key.saturating_sub(pieces);
            if *of_key == 0 {
                of_keys.remove(&key);
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.give_back(self.key, self.pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::MAX_CHUNK_BYTES;

    #[test]
    fn a_key_over_its_rate_is_refused_and_others_are_not() {
        let (rate, now) = (Rate::new(3), Instant::now());
        let (busy, other) = (Uuid::now_v7(), Uuid::now_v7());
        let ms = |ms| now + Duration::from_millis(ms);
        for _ in 0..3 {
            rate.take(busy, now).unwrap();
        }
        assert!(rate.take(busy, now).is_err());
        rate.take(other, now).unwrap();
        assert!(rate.take(busy, ms(300)).is_err());
        rate.take(busy, ms(400)).unwrap();
        assert!(rate.take(busy, ms(401)).is_err());
        for _ in 0..3 {
            rate.take(busy, ms(60_000)).unwrap();
        }
        assert!(rate.take(busy, ms(60_000)).is_err(), "what is not used is not saved");
        let none = Rate::new(0);
        assert!((0..10_000).all(|_| none.take(busy, now).is_ok()));
    }

    #[test]
    fn no_more_keys_are_counted_than_there_is_room_for() {
        let (rate, now) = (Rate::new(1), Instant::now());
        for _ in 0..2 * MAX_COUNTED {
            rate.take(Uuid::now_v7(), now).unwrap();
        }
        assert!(lock(&rate.buckets).len() <= MAX_COUNTED);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_share_a_bounded_room_of_which_no_key_takes_all() {
        let room = Room::new();
        let keys: Vec<Option<Uuid>> = (0..4).map(|_| Some(Uuid::now_v7())).collect();
        let mut taken = Vec::new();
        for key in &keys {
            for _ in 0..MAX_BODY_BYTES_OF_KEY / MAX_CHUNK_BYTES {
                taken.push(room.take(*key, MAX_CHUNK_BYTES).await.unwrap());
            }
            room.take(*key, 1).await.unwrap_err();
        }
        // Now it is full, for a key of which nobody has heard, too.
        let newcomer = Some(Uuid::now_v7());
        let begun = Instant::now();
        room.take(newcomer, 10).await.unwrap_err();
        assert_eq!(begun.elapsed(), ROOM_TIMEOUT);
        // A body that was short gives the rest back at once.
        taken[0].keep(3);
        let some = room.take(newcomer, 10).await.unwrap();
        room.take(keys[0], PIECE).await.unwrap();
        drop((taken, some));
        assert!(lock(&room.of_keys).is_empty());
        assert_eq!(room.all.available_permits(), MAX_BODY_BYTES / PIECE);
    }
}
