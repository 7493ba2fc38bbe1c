//! Time has one owner: code that decides is given `now`, and whoever needs the clock holds a
//! [`Clock`]. Leases and due times are judged by the store's clock, never by this one.

use std::{fmt, sync::Arc};

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
