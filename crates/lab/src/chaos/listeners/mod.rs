//! Listeners: whoever follows events in a round, in each of the ways that there are, and the count of those that were untold.
//!
//! A reader goes on behind the last position that it has, a queue is bound to the exchange for events, and a receiver takes
//! callbacks. At the end each must have had every event that the store has recorded, the first time in the order of its job or
//! batch. That some come again is allowed, and counted.

mod exchange;
mod reader;
mod receiver;
mod record;
mod told;

use std::time::Duration;

use anyhow::{Context as _, Result};
use errand::{
    job::Owner,
    relay::SCHEDULE,
    store::{EventListener, SharedStore},
};
use errand_testbed::services::{Place, rabbitmq::Vhost};
use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};

pub(super) use self::receiver::{Manner, Receiver};
use self::{
    exchange::Exchange,
    reader::Reader,
    told::{Compared, Heard, Told, compare},
};
use super::environment::patiently;

/// How long it may take until all is told: what the receiver has not taken three times comes again last, with what another
/// worker needs to take over, and a busy machine.
fn patience() -> Duration {
    SCHEDULE[..3].iter().sum::<Duration>().mul_f64(1.1) + Duration::from_secs(60)
}

/// How often it is looked whether all is told.
const LOOK: Duration = Duration::from_millis(250);

/// Most events that are named of each way.
const NAMED: usize = 5;

/// Whoever follows the events of a round.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) receiver: Receiver,
    reader: Reader,
    /// `None` where there is no broker.
    exchange: Option<Exchange>,
}

/// What became of the events of a round.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Those that were recorded.
    pub(super) events: u64,
    /// What was not told in some way, told in a wrong order, or told and not recorded.
    pub(super) untold: u64,
    /// How often one was told that had been told before.
    pub(super) repeats: u64,
    /// What was wrong, a line each; of each way, the first lines.
    pub(super) complaints: Vec<String>,
}

impl Verdict {
    fn add_untold(&mut self, lines: Vec<String>) {
        self.untold += lines.len() as u64;
        self.complaints.extend(lines.into_iter().take(NAMED));
    }
}

impl Listeners {
    /// Begins to listen, before there is an event: these are all owners.
    pub(super) async fn start(
        store: &SharedStore,
        vhost: Option<&Vhost>,
        place: &Place,
        owners: &[Owner],
    ) -> Result<Self> {
        let exchange = match vhost {
            Some(vhost) => Some(Exchange::start(vhost).await?),
            None => None,
        };
        let receiver = Receiver::start(store, place, owners).await?;
        let reader = Reader::start(store.clone());
        // Whoever asks first says where workers begin to tell: here before the first event, which may be an app's decision.
        let listeners = exchange.as_ref().map(|_| EventListener::Exchange);
        for listener in listeners.into_iter().chain([EventListener::Callbacks]) {
            store.heard(listener).await.context("cannot begin to listen to events")?;
        }
        Ok(Self { receiver, reader, exchange })
    }

    /// Waits until all is told that was recorded before this call, while workers run, and compares. `ends` are jobs and batches
    /// that rest, with the type of the last event of each.
    ///
    /// # Errors
    /// The store does not answer.
    pub(super) async fn verdict(&self, store: &SharedStore, ends: Vec<(String, String)>) -> Result<Verdict> {
        let cannot_read = "cannot read the events of a round";
        let due = patiently(|| record::read(store).boxed()).await.context(cannot_read)?;
        let mut verdict = Verdict { events: due.len() as u64, ..Verdict::default() };
        verdict.add_untold(record::complaints(&due, ends));
        let due: Vec<Told> = due.iter().map(Told::from).collect();
        let until = Instant::now() + patience();
        while !self.ways().all(|way| way.has_all(&due)) && Instant::now() < until {
            sleep(LOOK).await;
        }
        let heard: Vec<_> = self.ways().map(|way| (way, way.heard.so_far())).collect();
        // What was told meanwhile was recorded before.
        let recorded = patiently(|| record::read(store).boxed()).await.context(cannot_read)?;
        let recorded: Vec<Told> = recorded.iter().map(Told::from).collect();
        for (way, (arrivals, complaints)) in heard {
            let told: Vec<Told> = recorded.iter().filter(|event| way.tells(event)).cloned().collect();
            let due = due.iter().filter(|event| way.tells(event)).count();
            let Compared { untold, repeats } = compare(&told, due, &arrivals);
            let lines = untold.iter().map(|(event, how)| format!("{event} {} {}", how.as_str(), way.name));
            verdict.add_untold(lines.collect());
            verdict.repeats += repeats;
            tracing::info!(way = way.name, due, untold = untold.len(), repeats, "what was told is compared");
            verdict.complaints.extend(complaints.into_iter().take(NAMED));
        }
        Ok(verdict)
    }

    /// The ways in which events are told.
    fn ways(&self) -> impl Iterator<Item = Way<'_>> {
        let way = |name, heard| Way { name, heard, only_of_owners: false };
        let exchange = self.exchange.as_ref().map(|exchange| way("at the exchange", &exchange.heard));
        let callbacks = Way { only_of_owners: true, ..way("by callback", &self.receiver.heard) };
        [way("by position", &self.reader.heard), callbacks].into_iter().chain(exchange)
    }
}

/// A way in which events are told.
#[derive(Clone, Copy)]
struct Way<'a> {
    name: &'static str,
    heard: &'a Heard,
    /// Whether nobody can ask for the events of batches that are the operator's.
    only_of_owners: bool,
}

impl Way<'_> {
    fn tells(&self, event: &Told) -> bool {
        !self.only_of_owners || event.owner.is_some()
    }

    fn has_all(&self, events: &[Told]) -> bool {
        self.heard.has(events.iter().filter(|event| self.tells(event)))
    }
}
