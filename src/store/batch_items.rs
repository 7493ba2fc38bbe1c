//! Items that are added to a batch: how they are cut into parts, and which of them repeat each other. Pure, and the same for
//! both backends.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::{BatchView, Conflict, NotAdded};
use crate::{
    bounds::{MAX_BATCH_ITEMS, MAX_BATCH_PARTS},
    job::{BatchId, Digest, JobSpec},
};

/// Most items of one part, which is what is counted together.
pub(super) const PART_ITEMS: usize = 1_000;

/// The digest of items by which a repetition is recognized.
pub(super) fn digest_of(settings: Option<Digest>, items: &[Arc<JobSpec>]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(settings.map_or([0; 16], |digest| digest.0));
    for item in items {
        hash.update(item.id.0.as_bytes());
        hash.update(item.digest.0);
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.finalize()[..16]);
    Digest(digest)
}

/// Items in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) batch: BatchId,
    /// The index of the first.
    pub(super) first: u64,
    pub(super) items: &'a [Arc<JobSpec>],
}

impl Part<'_> {
    pub(super) fn first(&self) -> i64 {
        i64::try_from(self.first).unwrap_or(i64::MAX)
    }

    pub(super) fn digest(&self) -> Digest {
        digest_of(None, self.items)
    }
}

/// The parts of items that follow each other.
pub(super) fn parts(batch: BatchId, from: u64, items: &[Arc<JobSpec>]) -> impl Iterator<Item = Part<'_>> {
    let firsts = (from..).step_by(PART_ITEMS);
    items.chunks(PART_ITEMS).zip(firsts).map(move |(items, first)| Part { batch, first, items })
}

/// Whether a batch takes items at this index, or why not. `parts` are those that it has, and `more` those that come.
pub(super) fn takes(
    batch: &BatchView,
    from: u64,
    items: usize,
    parts: u64,
) -> std::result::Result<(), NotAdded> {
    let more = items.div_ceil(PART_ITEMS) as u64;
    if batch.sealed_at.is_some() {
        Err(NotAdded::Sealed)
    } else if from != batch.items {
        Err(NotAdded::Gap { next: batch.items })
    } else if from + items as u64 > MAX_BATCH_ITEMS || parts + more > MAX_BATCH_PARTS {
        Err(NotAdded::Full)
    } else {
        Ok(())
    }
}

/// The items of which the same is not among those before them, and what each of the others repeats: a place among the former.
pub(super) struct Distinct {
    pub(super) specs: Vec<Arc<JobSpec>>,
    /// For each item, which of the distinct ones it is.
    pub(super) places: Vec<usize>,
}

/// Sorts items out that repeat each other.
///
/// # Errors
/// Those whose ID or key another item has that is not the same.
pub(super) fn distinct(items: &[Arc<JobSpec>]) -> std::result::Result<Distinct, Vec<(usize, Conflict)>> {
    let (mut specs, mut places, mut conflicts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut by_id, mut by_key) = (HashMap::new(), HashMap::new());
    for (index, item) in items.iter().enumerate() {
        let key = item.idempotency_key.as_deref().map(|key| (&item.owner, key));
        let known = by_id.get(&item.id).map(|place| (*place, false));
        let known = known.or_else(|| Some((*by_key.get(&key?)?, true)));
        let place = match known {
            None => {
                let place = specs.len();
                specs.push(item.clone());
                place
            }
            Some((place, is_by_key)) => {
                let first: &Arc<JobSpec> = &specs[place];
                if first.owner != item.owner {
                    conflicts.push((index, Conflict::Owner));
                } else if first.digest != item.digest {
                    conflicts.push((
                        index,
                        if is_by_key { Conflict::Key { first: None } } else { Conflict::Body },
                    ));
                }
                place
            }
        };
        by_id.entry(item.id).or_insert(place);
        if let Some(key) = key {
            by_key.entry(key).or_insert(place);
        }
        places.push(place);
    }
    if conflicts.is_empty() { Ok(Distinct { specs, places }) } else { Err(conflicts) }
}
