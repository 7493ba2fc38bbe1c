//! `errand batches`: jobs that were enqueued together, watched and decided about as a whole.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format, ToldOwner},
    server::{Call, JSON, MAX_LIMIT, Page, Server, one_wait},
    setup::Setup,
    value,
};
use crate::{
    cursor::BatchCursor,
    desk_json::{BatchItemJson, BatchJson},
    job::{BatchId, Principal},
    store::{BatchDecided, BatchView, SharedStore},
};

const EXAMPLES: &str = "\
Examples:
  errand batches list
  errand batches show 0190b0a0-0000-7000-8000-000000000001 --wait=600
  errand batches items 0190b0a0-0000-7000-8000-000000000001 --json | jq 'select(.state == \"failed\")'
  errand batches retry 0190b0a0-0000-7000-8000-000000000001

Apps make batches over HTTP, and `errand enqueue-bulk` makes one at a server. A batch is complete
when it is sealed and all of its jobs have ended; a retry of its failed jobs is a new generation.
With --wait, the exit code is 0 only if the batch is complete and every job has succeeded. Waiting
ends, too, when of a sealed batch only held jobs are left.";

/// List and show batches and their items, cancel and retry them as a whole.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List batches, the newest first.
    List {
        /// Go on with a list that ended here.
        #[arg(long, value_name = "CURSOR")]
        before: Option<BatchCursor>,
        /// List up to N batches.
        #[arg(long, default_value_t = 50, value_parser = value::limit)]
        limit: usize,
        #[command(flatten)]
        format: Format,
    },
    /// Show a batch, and how many of its jobs are in each state.
    Show {
        /// The batch.
        id: BatchId,
        /// Wait up to N seconds (300 without a number) until it is complete, or only held jobs are left.
        #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
        wait: Option<u64>,
        #[command(flatten)]
        format: Format,
    },
    /// List the items of a batch in their order, with their jobs.
    Items {
        /// The batch.
        id: BatchId,
        /// Begin with the item of this index.
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        from: u64,
        /// List up to N items.
        #[arg(long, default_value_t = 50, value_parser = value::limit)]
        limit: usize,
        #[command(flatten)]
        format: Format,
    },
    /// Seal a batch that is open: it takes no more items.
    Seal {
        /// The batch.
        id: BatchId,
        #[command(flatten)]
        format: Format,
    },
    /// Cancel those jobs of a batch that have not ended. Calls that are under way are not interrupted.
    Cancel(One),
    /// Retry the failed jobs of a batch that is complete, as its next generation.
    Retry {
        #[command(flatten)]
        one: One,
        /// Also jobs whose last call may have had its effect, which would be repeated.
        #[arg(long)]
        force: bool,
    },
}

/// A batch that is decided about.
#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// The batch.
    id: BatchId,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    format: Format,
}

/// How often a batch of the database is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match &setup.server {
        Some(server) => run_at(command, server).await,
        None => {
            let store = setup.store()?;
            let exit = run_in(command, &store, setup).await?;
            store.close().await;
            Ok(exit)
        }
    }
}

async fn run_at(command: Command, server: &Server) -> anyhow::Result<Exit> {
    match command {
        Command::List { before, limit, format } => {
            let list =
                Call::get("/v1/batches").with("cursor", before).with("limit", Some(limit.min(MAX_LIMIT)));
            print_page(&server.page(list).await?, format)?;
        }
        Command::Show { id, wait, format } => {
            let until = Instant::now() + Duration::from_secs(wait.unwrap_or(0));
            let left = || until.saturating_duration_since(Instant::now());
            let call = || Call::get(format!("/v1/batches/{id}"));
            // Only a server that has answered once is waited for.
            let mut json: Box<RawValue> = server.ask(call()).await?;
            let errand = server.errand();
            loop {
                if let Some(exit) = shown(&json, wait, one_wait(left()).is_zero(), format, &errand)? {
                    return Ok(exit);
                }
                let waiting = |left: Duration| {
                    let wait = one_wait(left);
                    call().with("wait", Some(wait.as_secs())).waits(wait)
                };
                let goes_on =
                    || format!("the batch {id} goes on; look again with `{errand} batches show {id}`");
                json = server.keep_asking(until, waiting).await.with_context(goes_on)?;
            }
        }
        Command::Items { id, from, limit, format } => {
            let list = Call::get(format!("/v1/batches/{id}/items"));
            let list = list.with("from", Some(from)).with("limit", Some(limit.min(MAX_LIMIT)));
            print_items(&server.page(list).await?, format)?;
        }
        Command::Seal { id, format } => decide(server, id, "seal", Call::repeatable, format).await?,
        Command::Cancel(One { id, who, format }) => {
            who.is_the_key()?;
            decide(server, id, "cancel", Call::repeatable, format).await?;
        }
        Command::Retry { one: One { id, who, format }, force } => {
            who.is_the_key()?;
            let force = json!({"force": force}).to_string().into_bytes();
            // Not repeatable: each retry begins a generation.
            decide(server, id, "retry", |call| call.body(JSON, force), format).await?;
        }
    }
    Ok(Exit::Success)
}

async fn decide(
    server: &Server,
    id: BatchId,
    verb: &str,
    how: impl FnOnce(Call) -> Call,
    format: Format,
) -> anyhow::Result<()> {
    let json: Box<RawValue> = server.ask(how(Call::post(format!("/v1/batches/{id}/{verb}")))).await?;
    match serde_json::from_str::<ToldBatch>(json.get()) {
        Ok(_) => print(&json, format),
        // Without the scope `read` the answer has only the ID.
        Err(_) => output::print_json(&json),
    }
}

async fn run_in(command: Command, store: &SharedStore, setup: &Setup) -> anyhow::Result<Exit> {
    match command {
        Command::List { before, limit, format } => {
            let batches = store.batches(&Principal::Operator, before.map(|cursor| cursor.0), limit).await?;
            let next =
                batches.last().filter(|_| batches.len() == limit).map(|batch| BatchCursor::of(batch.place()));
            print_page(&Page::of(batches.into_iter().map(BatchJson::from), next)?, format)?;
        }
        Command::Show { id, wait, format } => {
            let (begun, budget) = (Instant::now(), Duration::from_secs(wait.unwrap_or(0)));
            loop {
                let json = to_raw_value(&BatchJson::from(find(store, id).await?))?;
                if let Some(exit) = shown(&json, wait, begun.elapsed() >= budget, format, "errand")? {
                    return Ok(exit);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Command::Items { id, from, limit, format } => {
            let items = store.batch_items(&Principal::Operator, id, from, limit).await?;
            if items.is_empty() {
                find(store, id).await?;
            }
            let next = items.last().filter(|_| items.len() == limit).map(|item| item.index + 1);
            print_items(&Page::of(items.into_iter().map(BatchItemJson::from), next)?, format)?;
        }
        Command::Seal { id, format } => {
            let batch = store.seal_batch(&Principal::Operator, id).await?.ok_or_else(|| unknown(id))?;
            print(&to_raw_value(&BatchJson::from(batch))?, format)?;
        }
        Command::Cancel(One { id, who, format }) => {
            let decided = store.cancel_batch(&Principal::Operator, id, &who.decider(setup)).await?;
            print_decided(decided, id, "it is complete, so there is nothing to cancel", format)?;
        }
        Command::Retry { one: One { id, who, format }, force } => {
            let decided =
                store.retry_batch(&Principal::Operator, id, &who.decider(setup), force, None).await?;
            print_decided(
                decided,
                id,
                "it is not complete yet, or no job that it enqueued is failed",
                format,
            )?;
        }
    }
    Ok(Exit::Success)
}

async fn find(store: &SharedStore, id: BatchId) -> anyhow::Result<BatchView> {
    store.batch(&Principal::Operator, id, true).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: BatchId) -> anyhow::Error {
    exit::negative(format!(
        "there is no batch {id}: it was never here, or it was removed after its retention"
    ))
}

fn print_decided(decided: BatchDecided, id: BatchId, why_not: &str, format: Format) -> anyhow::Result<()> {
    match decided {
        BatchDecided::Begun(batch) => print(&to_raw_value(&BatchJson::from(batch))?, format),
        // A cancellation that is under way stays so.
        BatchDecided::Unchanged(batch) if batch.cancelled.is_some() && batch.completed_at.is_none() => {
            print(&to_raw_value(&BatchJson::from(batch))?, format)
        }
        BatchDecided::Unchanged(_) => {
            Err(exit::negative(format!("the batch {id} stays as it is: {why_not}")))
        }
        BatchDecided::Unknown => Err(unknown(id)),
    }
}

/// A batch as it is told.
#[derive(Deserialize)]
struct ToldBatch {
    id: String,
    owner: Option<ToldOwner>,
    created_at: Timestamp,
    sealed: bool,
    total: u64,
    generation: u32,
    completed_at: Option<Timestamp>,
    counts: BTreeMap<String, u64>,
    deadline: Option<Timestamp>,
    cancelled_by: Option<String>,
    cancelled_at: Option<Timestamp>,
    doing: Option<String>,
    follow_up_id: Option<String>,
}

impl ToldBatch {
    fn of(&self, state: &str) -> u64 {
        self.counts.get(state).copied().unwrap_or(0)
    }

    fn state(&self) -> String {
        match (&self.completed_at, &self.doing, self.sealed) {
            (Some(_), ..) => "complete".to_owned(),
            // A whole generation is run again, and its jobs end one by one.
            (None, Some(doing), _) => match doing.as_str() {
                "retry" => "running again".to_owned(),
                "cancel" => "being cancelled".to_owned(),
                newer => newer.to_owned(),
            },
            (None, None, true) => "sealed".to_owned(),
            (None, None, false) => "open".to_owned(),
        }
    }

    /// Whether all of its jobs that have not ended are held, so that nothing of it goes on by what it does itself. What is
    /// still to be counted, added or called off may.
    fn is_held(&self) -> bool {
        let is_changing = !self.sealed || self.doing.is_some() || self.cancelled_at.is_some();
        let settled = ["held", "succeeded", "failed", "cancelled", "removed"].map(|state| self.of(state));
        !is_changing && self.of("held") > 0 && settled.iter().sum::<u64>() == self.total
    }

    /// How many jobs are in each state in which there are some.
    fn counts(&self) -> String {
        let counts = self.counts.iter().filter(|(_, jobs)| **jobs > 0);
        counts.map(|(state, jobs)| format!("{jobs} {state}")).collect::<Vec<_>>().join(", ")
    }
}

/// Prints a batch that need not be waited for any longer, and how the command ends by it.
fn shown(
    json: &RawValue,
    wait: Option<u64>,
    is_over: bool,
    format: Format,
    errand: &str,
) -> anyhow::Result<Option<Exit>> {
    let batch: ToldBatch = serde_json::from_str(json.get())?;
    let Some(budget) = wait else {
        print(json, format)?;
        return Ok(Some(Exit::Success));
    };
    let is_complete = batch.completed_at.is_some();
    if !is_complete && !is_over && !batch.is_held() {
        return Ok(None);
    }
    print(json, format)?;
    if !is_complete && batch.is_held() {
        output::note(format_args!(
            "the jobs of the batch {} that have not ended are all held; `{errand} jobs list --batch {0} --state held` says why",
            batch.id
        ));
        return Ok(Some(Exit::Negative));
    }
    if !is_complete {
        return Err(exit::negative(format!(
            "the batch {} is not complete after {budget} s; look again with `{errand} batches show {0}`",
            batch.id
        )));
    }
    Ok(Some(Exit::negative_if(batch.of("succeeded") < batch.total)))
}

fn print(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let batch: ToldBatch = serde_json::from_str(json.get())?;
    let cancelled = batch
        .cancelled_at
        .map(|at| format!("{} by {}", output::moment(at), batch.cancelled_by.as_deref().unwrap_or("errand")));
    Ok(output::print_fields(&[
        ("batch", Some(batch.id.clone())),
        ("state", Some(batch.state())),
        ("owner", Some(output::whose(batch.owner.as_ref()))),
        ("items", Some(batch.total.to_string())),
        ("jobs", Some(batch.counts()).filter(|counts| !counts.is_empty())),
        ("generation", Some(batch.generation.to_string())),
        ("created", Some(output::moment(batch.created_at))),
        ("deadline", batch.deadline.map(output::moment)),
        ("cancelled", cancelled),
        ("complete", batch.completed_at.map(output::moment)),
        ("follow-up", batch.follow_up_id.clone()),
    ])?)
}

fn print_page(page: &Page, format: Format) -> anyhow::Result<()> {
    let header = ["ID", "STATE", "OWNER", "ITEMS", "SUCCEEDED", "FAILED", "HELD", "CREATED"];
    output::print_items(&page.items, format, "there are no batches", header, |batch: &ToldBatch| {
        [
            batch.id.clone(),
            batch.state(),
            output::whose(batch.owner.as_ref()),
            batch.total.to_string(),
            batch.of("succeeded").to_string(),
            batch.of("failed").to_string(),
            batch.of("held").to_string(),
            output::moment(batch.created_at),
        ]
    })?;
    if let Some(next) = page.next() {
        output::note(format!("there may be more; go on with --before {next}"));
    }
    Ok(())
}

fn print_items(page: &Page, format: Format) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct ToldItem {
        index: u64,
        job_id: String,
        state: Option<String>,
    }

    let header = ["INDEX", "JOB", "STATE"];
    output::print_items(
        &page.items,
        format,
        "there are no items from here on",
        header,
        |item: &ToldItem| {
            [
                item.index.to_string(),
                item.job_id.clone(),
                item.state.clone().unwrap_or_else(|| "removed".to_owned()),
            ]
        },
    )?;
    if let Some(next) = page.next() {
        output::note(format!("go on with --from {next}"));
    }
    Ok(())
}
