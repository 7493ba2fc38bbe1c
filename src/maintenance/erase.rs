//! Removes what one owner has in the store, at once: jobs that are final, rejected messages, pins, and what is noted of
//! connections. What is under way stays, and is counted by why.
//!
//! Nothing about the owner is written meanwhile, so that a round which was cut off is simply begun again. The audit log keeps
//! that somebody was erased, when and by whom, and forgets the owner. What is not
//! looked for: jobs of others in which the owner is named, such as by `requested_by`.

use std::collections::BTreeMap;

use super::{
    pace::Pace,
    prune::{MOST_LOOKED_AT, MOST_REMOVED, fitting},
};
use crate::{
    bounds::MAX_LIST,
    job::{Owner, Principal, State},
    rejected::names,
    store::{
        Decider, DeliveryFilter, EventsAfter, EventsOf, OldJob, OldMessage, Page, Pending, RejectedView,
        Result, SharedStore, StoreErrorKind, Which,
    },
    string_enum::string_enum,
};

/// A person waits, so pauses are as long as statements.
const PAUSES: u32 = 1;

#[derive(Debug)]
pub struct Erase {
    store: SharedStore,
    owner: Owner,
    by: Decider,
    dry_run: bool,
}

string_enum! {
    /// Why a job stayed.
    Left {
        /// It is not final: it waits, runs or is held.
        UnderWay = "under_way",
        /// Its reply is still to be published.
        Reply = "reply",
        /// Its call is still looked up in the execution log.
        LookUp = "look_up",
        /// It changed, or was locked, at the moment at which it would have been removed.
        Changed = "changed",
    }
}

impl Left {
    /// What makes it go.
    pub fn advice(self) -> &'static str {
        match self {
            Self::UnderWay => "let them end, or end them with `errand jobs cancel`; then erase again",
            Self::Reply => "wait until a worker has published their replies; then erase again",
            Self::LookUp => "wait until the look-up ends, at most verify.give_up_secs; then erase again",
            Self::Changed => "erase again",
        }
    }
}

/// What was removed; in a dry run, what would have been.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub jobs: BTreeMap<State, u64>,
    pub rejected: u64,
    /// Rejected messages that stayed, because somebody else had them locked.
    pub rejected_left: u64,
    pub pins: u64,
    /// Access keys.
    pub keys: u64,
    pub batches: u64,
    /// Actions by filter.
    pub actions: u64,
    /// Connections that no job waits for any more.
    pub awaited: u64,
    pub events: u64,
    /// Deliveries of events to URLs.
    pub deliveries: u64,
    /// Jobs that stayed.
    pub left: BTreeMap<(Left, State), u64>,
    /// Rejected messages that do not tell whose they are, because they are no JSON object, or that this version
    /// cannot read.
    pub unreadable: u64,
}

impl Erase {
    /// With `dry_run` nothing is removed.
    pub fn new(store: SharedStore, owner: Owner, by: Decider, dry_run: bool) -> Self {
        Self { store, owner, by, dry_run }
    }

    /// Goes through the store once. What was removed before an error of the store stays removed.
    pub async fn run_once(&self) -> Result<Report> {
        let mut report = Report::default();
        // Before anything goes, so that nothing can go without it.
        if !self.dry_run {
            self.store.note_erasure(&self.owner, &self.by).await?;
        }
        self.erase_jobs(&mut report).await?;
        self.erase_messages(&mut report).await?;
        self.erase_pins(&mut report).await?;
        self.erase_keys(&mut report).await?;
        self.erase_batches(&mut report).await?;
        self.erase_actions(&mut report).await?;
        self.erase_events(&mut report).await?;
        self.erase_deliveries(&mut report).await?;
        if !self.dry_run {
            report.awaited = self.store.forget_awaited(&self.owner).await?;
            // Last, because removing pins adds entries.
            while self.store.forget_owner(&self.owner, MOST_LOOKED_AT).await? > 0 {}
        }
        Ok(report)
    }

    async fn erase_jobs(&self, report: &mut Report) -> Result<()> {
        let (mut looks, mut removals) = (Pace::new(MOST_LOOKED_AT, PAUSES), Pace::new(MOST_REMOVED, PAUSES));
        let which = Which { owner: Some(self.owner.clone()), age: std::time::Duration::ZERO };
        let mut after = None;
        loop {
            let rows = looks.rows();
            let Page { items, end } = looks.step(self.store.old_jobs(&which, after, rows)).await?;
            let (mut go, stay): (Vec<OldJob>, Vec<OldJob>) = items.into_iter().partition(OldJob::may_go);
            for job in stay {
                let why = match job.pending {
                    _ if job.finished_for.is_none() => Left::UnderWay,
                    Some(Pending::LookUp) => Left::LookUp,
                    Some(Pending::Reply) | None => Left::Reply,
                };
                *report.left.entry((why, job.state)).or_default() += 1;
            }
            while !go.is_empty() {
                let batch: Vec<OldJob> = go.drain(..fitting(&go, removals.rows(), |job| job.bytes)).collect();
                let gone = if self.dry_run {
                    batch.iter().map(|job| job.id).collect()
                } else {
                    removals.step(self.store.remove_jobs(&batch)).await?
                };
                for OldJob { id, state, .. } in batch {
                    if gone.contains(&id) {
                        *report.jobs.entry(state).or_default() += 1;
                    } else {
                        *report.left.entry((Left::Changed, state)).or_default() += 1;
                    }
                }
            }
            let Some(end) = end else { return Ok(()) };
            after = Some(end);
        }
    }

    /// After the jobs, of which none is added any more.
    async fn erase_events(&self, report: &mut Report) -> Result<()> {
        if self.dry_run {
            let principal = Principal::Owner(self.owner.clone());
            if let EventsAfter::Are { events, .. } =
                self.store.events(&principal, EventsOf::All, None, MAX_LIST).await?
            {
                report.events = events.len() as u64;
            }
            return Ok(());
        }
        let mut removals = Pace::new(MOST_LOOKED_AT, PAUSES);
        loop {
            let rows = removals.rows();
            let gone = removals.step(self.store.remove_events_of(&self.owner, rows)).await?;
            report.events += gone;
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// After the events, of which deliveries are made.
    async fn erase_deliveries(&self, report: &mut Report) -> Result<()> {
        if self.dry_run {
            let filter = DeliveryFilter { owner: Some(self.owner.clone()), state: None };
            let found = self.store.deliveries(&Principal::Operator, &filter, None, MAX_LIST).await?;
            report.deliveries = found.len() as u64;
            return Ok(());
        }
        // Without it no more are sent.
        self.store.remove_callback_of(&self.owner).await?;
        let mut removals = Pace::new(MOST_LOOKED_AT, PAUSES);
        loop {
            let rows = removals.rows();
            let gone = removals.step(self.store.remove_deliveries_of(&self.owner, rows)).await?;
            report.deliveries += gone;
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// Whatever becomes of their jobs, nothing follows it.
    async fn erase_batches(&self, report: &mut Report) -> Result<()> {
        let principal = Principal::Owner(self.owner.clone());
        report.batches = if self.dry_run {
            self.store.batches(&principal, None, MAX_LIST).await?.len() as u64
        } else {
            self.store.remove_batches_of(&self.owner).await?
        };
        Ok(())
    }

    /// Whoever has such a key can do nothing from then on.
    async fn erase_keys(&self, report: &mut Report) -> Result<()> {
        let principal = Principal::Owner(self.owner.clone());
        report.keys = if self.dry_run {
            self.store.keys(&principal, None, MAX_LIST).await?.len() as u64
        } else {
            self.store.remove_keys(&self.owner).await?
        };
        Ok(())
    }

    /// One that is under way stops. In a dry run those of the operator are not counted that name the owner.
    async fn erase_actions(&self, report: &mut Report) -> Result<()> {
        let principal = Principal::Owner(self.owner.clone());
        report.actions = if self.dry_run {
            self.store.actions(&principal, None, MAX_LIST).await?.len() as u64
        } else {
            self.store.remove_actions(&self.owner).await?
        };
        Ok(())
    }

    /// Reads the bodies one by one, because each may be as large as the broker lets it be.
    async fn erase_messages(&self, report: &mut Report) -> Result<()> {
        let mut looks = Pace::new(MOST_LOOKED_AT, PAUSES);
        let mut before = None;
        loop {
            let rows = looks.rows();
            let Page { items, end } = looks.step(self.store.old_messages(before, rows)).await?;
            for message in items {
                let theirs = match self.store.rejected_message(&Principal::Operator, message.id).await {
                    Ok(None) => continue,
                    Ok(Some(view)) => are_of(&view, &self.owner),
                    Err(error) if error.kind() != StoreErrorKind::Corrupt => return Err(error),
                    // It is kept in words of a newer version.
                    Err(_) => None,
                };
                match theirs {
                    Some(true) if self.remove_message(message).await? => report.rejected += 1,
                    Some(true) => report.rejected_left += 1,
                    Some(false) => {}
                    None => report.unreadable += 1,
                }
            }
            let Some(end) = end else { return Ok(()) };
            before = Some(end);
        }
    }

    /// Whether it went.
    async fn remove_message(&self, message: OldMessage) -> Result<bool> {
        Ok(self.dry_run || !self.store.remove_messages(&[message]).await?.is_empty())
    }

    async fn erase_pins(&self, report: &mut Report) -> Result<()> {
        for pin in self.store.pins().await? {
            if pin.owner.as_ref() == Some(&self.owner)
                && (self.dry_run
                    || self
                        .store
                        .unset_pin(&Principal::Operator, Some(&self.owner), &pin.toolkit, &self.by)
                        .await?)
            {
                report.pins += 1;
            }
        }
        Ok(())
    }
}

/// Whether a message or the body that was taken instead of its own names this owner.
fn are_of(view: &RejectedView, owner: &Owner) -> Option<bool> {
    let corrected = view.corrected.as_deref().and_then(|body| names(body, owner));
    corrected.filter(|theirs| *theirs).or_else(|| names(&view.message.body, owner))
}
