//! The columns of what people and keys make and ask for beside jobs.

use sqlx::{Postgres, Sqlite};
use uuid::Uuid;

use crate::{
    access::NewKey,
    job::{CallbackUrl, Owner},
    store::{
        AuditLimits, ChangeFilter, NewAction, NewBatch, NewDelivery, RejectedFilter, Step, TriedDelivery,
        actions::json,
        batch_items::Part,
        changes::NewChange,
        convert::{micros, to_i32, to_millis},
        events::to_position,
        sql::{Bound, Columns, Declared, Text, column, sparse_column},
    },
};

columns! {
    /// A new access key.
    Key "key" of<'a> &'a NewKey as key {
        id: uuid = key.id,
        digest: bytea = &key.digest.0[..],
        owner_kind: text or null = key.principal.owner().map(|owner| owner.kind().as_str()),
        owner_id: text or null = key.principal.owner().map(Owner::id),
        scopes: text = key.scopes.to_string(),
    }
}

columns! {
    /// A new batch.
    Batch "batch" of<'a> &'a NewBatch as batch {
        id: uuid = batch.id.0,
        owner_kind: text or null = batch.principal.owner().map(|owner| owner.kind().as_str()),
        owner_id: text or null = batch.principal.owner().map(Owner::id),
        deadline: timestamptz or null = batch.deadline,
        stop_percent: integer or null = batch.stop.map(|stop| i32::from(stop.failed_percent)),
        stop_sample: integer or null = batch.stop.map(|stop| to_i32(stop.of_at_least)),
        follow_up: text or null = batch.follow_up.as_deref(),
        callback_url: text or null = batch.callback.as_ref().map(CallbackUrl::as_str),
    }
}

columns! {
    /// A new delivery, and the secret of an owner who has none.
    NewDeliveryColumns "new_delivery" of<'a> &'a NewDelivery as new {
        delivery: list DeliveryColumns = new,
        fresh: bytea = new.fresh.expose_bytes(),
    }
}

columns! {
    /// What is written of it.
    DeliveryColumns "delivery" of<'a> &'a NewDelivery as delivery {
        id: uuid = delivery.id,
        receiver: uuid = delivery.receiver,
        owner_kind: text = delivery.owner.kind().as_str(),
        owner_id: text = delivery.owner.id(),
        url: text = &*delivery.url,
        event_id: uuid = delivery.event_id,
        kind: text = delivery.kind,
        event: text = &*delivery.event,
        subject: uuid = delivery.subject(),
        position: bigint = to_position(delivery.position),
        job_id: uuid or null = delivery.job.map(|job| job.0),
        batch_id: uuid or null = delivery.batch.map(|batch| batch.0),
    }
}

columns! {
    /// Whether a receiver has taken what it was sent.
    ReceiverColumns "answers" of<'a> &'a (Uuid, bool) as answer {
        id: uuid = answer.0,
        is_taken: boolean = answer.1,
    }
}

columns! {
    /// What became of a delivery.
    TriedColumns "tried" of<'a> &'a TriedDelivery as tried {
        id: uuid = tried.id,
        state: text = tried.state().as_str(),
        after: bigint or null = tried.after().map(micros),
        was_tried: integer = to_i32(tried.tries),
        is_sent: boolean = tried.is_sent,
        last_status: integer or null = tried.status.map(i32::from),
        last_error: text or null = tried.error,
    }
}

columns! {
    /// A new action.
    NewActionColumns "new_action" of<'a> &'a NewAction as action {
        id: uuid = action.id,
        kind: text = action.decision.kind().as_str(),
        how: text or null = action.decision.how().map(|how| how.as_str()),
        force: boolean = action.force.effect,
        asked_force: boolean = action.force.effect,
        early: boolean = action.force.early,
        filter: text = action.filter_json(),
        preview: text or null = action.preview_json(),
        made_by: text = &*action.by,
    }
}

columns! {
    /// A part of a batch, without its jobs.
    BatchPart "part" of<'a> &'a Part<'a> as part {
        batch_id: uuid = part.batch.0,
        first: bigint = part.first(),
        items: integer = i32::try_from(part.items.len()).unwrap_or(i32::MAX),
    }
}

columns! {
    /// What is recorded of an action that is carried out.
    StepColumns "step_record" of<'a> &'a Step as step {
        step: list StepFields = step,
        lease: bigint or null = step.lease().map(micros),
        ends: boolean = step.ends(),
    }
}

columns! {
    /// What of that is written as it is.
    StepFields "step" of<'a> &'a Step as step {
        progress: text = json(&step.progress),
        place_at: bigint or null = step.place.map(|place| place.at),
        place_id: uuid or null = step.place.map(|place| place.id),
        deciding: text = step.deciding_json(),
        deciding_to_at: bigint or null = step.deciding_to().map(|to| to.at),
        deciding_to_id: uuid or null = step.deciding_to().map(|to| to.id),
    }
}

columns! {
    /// A new entry of the audit log, as far as it does not depend on what is changed.
    ChangeColumns "change" of<'a> &'a NewChange<'a> as change {
        change_id: uuid = change.id,
        what: text = change.what.as_str(),
        decider: text = &*change.decider.by,
        origin: text = &*change.decider.origin,
        as_operator: boolean = change.as_operator,
    }
}

columns! {
    /// Which entries of the audit log are meant; the times are in the stretch.
    ChangesWanted "wanted" of<'a> &'a ChangeFilter as filter {
        kind: text or null = filter.kind.map(|kind| format!("{kind}.")),
        object: text or null = filter.object.as_deref(),
        wanted_kind: text or null = filter.owner.as_ref().map(|owner| owner.kind().as_str()),
        wanted_id: text or null = filter.owner.as_ref().map(Owner::id),
        wanted_by: text or null = filter.by.as_deref(),
    }
}

columns! {
    /// Which rejected messages are meant; the times are in the stretch.
    Messages "messages" of<'a> &'a RejectedFilter as filter {
        reason: text or null = filter.reason.map(|reason| reason.as_str()),
        queue: text or null = filter.queue.as_ref().map(|queue| queue.as_str()),
    }
}

columns! {
    /// From when on an audit calls something wrong.
    Limits "limits" of<'a> &'a AuditLimits as limits {
        lease: bigint = micros(limits.lease),
        lost: bigint = micros(limits.lost),
        overdue: bigint = micros(limits.overdue),
        overrun: bigint = micros(limits.overrun),
        timeout_ms: bigint or null = to_millis(Some(limits.timeout)),
        publications: integer = to_i32(limits.publications),
        verified: boolean = limits.verified,
    }
}
