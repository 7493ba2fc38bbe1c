//! The flags by which jobs are chosen, the same for every command.

use jiff::Timestamp;

use crate::{
    cli::value,
    job::{BatchId, Effect, ErrorKind, HeldReason, QueueName, State},
    store::JobFilter,
};

/// Which jobs; all that are given must hold.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct FilterFlags {
    /// Jobs in this state: scheduled, available, running, retryable, held, succeeded, failed or cancelled.
    #[arg(long, value_parser = value::word::<State>(State::WORDS), hide_possible_values = true)]
    state: Option<State>,
    #[command(flatten)]
    owner: value::AnyOwner,
    /// Jobs of this tool, such as GITHUB_GET_REPO.
    #[arg(long)]
    tool: Option<String>,
    /// Jobs of this toolkit, as far as it is known.
    #[arg(long, value_parser = value::toolkit)]
    toolkit: Option<String>,
    /// Jobs of this queue.
    #[arg(long)]
    queue: Option<QueueName>,
    /// Jobs with this tag. May be given several times.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = value::pair)]
    tags: Vec<(String, String)>,
    /// Jobs that were created then or later: RFC 3339, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = value::past)]
    since: Option<Timestamp>,
    /// Jobs that were created before then: RFC 3339, or a time ago such as 24h.
    #[arg(long, value_name = "TIME", value_parser = value::past)]
    until: Option<Timestamp>,
    /// Jobs with an error of this kind, such as needs_connection, also while they are retried.
    #[arg(long, value_name = "KIND", value_parser = value::word::<ErrorKind>(ErrorKind::WORDS), hide_possible_values = true)]
    error: Option<ErrorKind>,
    /// Jobs that are held for this reason: connection, credentials, unknown_outcome or unidentified.
    #[arg(long, value_parser = value::word::<HeldReason>(HeldReason::WORDS), hide_possible_values = true)]
    reason: Option<HeldReason>,
    /// Jobs of which nobody knows what became of their last call.
    #[arg(long)]
    unknown: bool,
    /// Jobs of this toolkit version: the one that they got, or else the one that they ask for.
    #[arg(long)]
    version: Option<String>,
    /// Jobs with this effect, safe, idempotent or once: the one that they got, or else the one that they ask for.
    #[arg(long, value_parser = value::word::<Effect>(Effect::WORDS), hide_possible_values = true)]
    effect: Option<Effect>,
    /// Jobs that this batch enqueued.
    #[arg(long, value_name = "ID")]
    batch: Option<BatchId>,
}

impl FilterFlags {
    pub(in crate::cli) fn filter(&self) -> anyhow::Result<JobFilter> {
        Ok(JobFilter {
            state: self.state,
            owner: self.owner.owner()?,
            tool: self.tool.clone(),
            toolkit: self.toolkit.clone(),
            queue: self.queue.clone(),
            tags: self.tags.iter().cloned().collect(),
            since: self.since,
            until: self.until,
            error_kind: self.error,
            held_reason: self.reason,
            outcome_unknown: self.unknown,
            version: self.version.clone(),
            effect: self.effect,
            batch: self.batch,
        })
    }
}
