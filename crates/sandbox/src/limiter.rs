//! The request limit that all keys of an organization share: a fixed window.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use super::world::RateLimit;

#[derive(Debug)]
pub(super) struct Limiter {
    limit: RateLimit,
    windows: Mutex<HashMap<Arc<str>, Window>>,
}

/// Where an organization stands in its window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) admitted: bool,
    pub(super) limit: u64,
    pub(super) remaining: u64,
    /// Whole seconds until the window ends, at least 1.
    pub(super) reset_seconds: i64,
    pub(super) window_seconds: u32,
}

#[derive(Debug)]
struct Window {
    number: i64,
    used: u64,
}

impl Limiter {
    pub(super) fn new(limit: RateLimit) -> Self {
        Self { limit, windows: Mutex::default() }
    }

    /// Counts one request of `org`.
    pub(super) fn take(&self, org: &Arc<str>, now: Timestamp) -> Standing {
        let number = now.as_second().div_euclid(i64::from(self.limit.window_seconds));
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = match windows.get_mut(org) {
            Some(window) => window,
            None => windows.entry(Arc::clone(org)).or_insert(Window { number, used: 0 }),
        };
        if window.number != number {
            *window = Window { number, used: 0 };
        }
        let admitted = window.used < self.limit.requests;
        window.used += u64::from(admitted);
        let used = window.used;
        drop(windows);
        self.standing(admitted, used, now)
    }

    /// The standing to show to a request that belongs to no organization.
    pub(super) fn untouched(&self, now: Timestamp) -> Standing {
        self.standing(true, 0, now)
    }

    fn standing(&self, admitted: bool, used: u64, now: Timestamp) -> Standing {
        let seconds = i64::from(self.limit.window_seconds);
        Standing {
            admitted,
            limit: self.limit.requests,
            remaining: self.limit.requests - used,
            reset_seconds: seconds - now.as_second().rem_euclid(seconds),
            window_seconds: self.limit.window_seconds,
        }
    }
}

/// The text of the limiter's answer, which has no envelope.
pub(super) fn rate_limit_message(limit: u64, window_seconds: u32) -> String {
    let window = match window_seconds % 60 {
        0 => format!("{} minutes", window_seconds / 60),
        _ => format!("{window_seconds} seconds"),
    };
    format!("Rate limit exceeded. Limit: {limit} requests per {window}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_admits_its_limit_and_the_next_one_starts_anew() {
        let limiter = Limiter::new(RateLimit { requests: 2, window_seconds: 60 });
        let org: Arc<str> = "acme".into();
        let start = Timestamp::from_second(600).unwrap();
        assert_eq!(limiter.take(&org, start).remaining, 1);
        assert!(limiter.take(&org, start).admitted);
        let refused = limiter.take(&org, Timestamp::from_second(650).unwrap());
        assert!(!refused.admitted);
        assert_eq!((refused.remaining, refused.reset_seconds), (0, 10));
        assert!(limiter.take(&"other".into(), start).admitted);
        assert!(limiter.take(&org, Timestamp::from_second(660).unwrap()).admitted);
    }
}
