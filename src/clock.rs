//! Time has one owner: code that decides is given `now`, and whoever needs the clock holds a
//! [`Clock`]. Leases and due times are judged by the store's clock, never by this one.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

pub trait Clock: fmt::Debug + Send + Sync {
    fn now(&self) -> Timestamp;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

pub type SharedClock = Arc<dyn Clock>;

pub fn system() -> SharedClock {
    Arc::new(SystemClock)
}

/// A time in milliseconds, for fields of the log, in which larger numbers would be texts.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
