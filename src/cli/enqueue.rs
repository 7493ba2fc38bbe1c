//! `errand enqueue`: one job.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{
    exit::{self, Exit},
    jobs,
    output::{self, Format},
    server::{Call, JSON, Server, is_away, one_wait},
    setup::{OpenDoor, Setup},
    value::{self, OwnerFlags},
    wait,
};
use crate::{
    admission::Enqueued,
    job::{Arrival, Effect, JobId, JobSpec, QueueName, State, decode, looks_like_email},
};

/// What is said about such an owner, beside the answer. Whether it is refused is a setting.
pub(super) const EMAIL: &str = "note: the owner ID looks like an e-mail address, and those change hands; use an ID that stays with its owner";

const EXAMPLES: &str = r#"Examples:
  errand enqueue GITHUB_GET_REPO --owner user:u-alice --args '{"owner":"o","repo":"r"}'
  errand enqueue SLACK_SEND_MESSAGE --owner org:org-7 --requested-by u-alice --args @hi.json --wait
  errand enqueue GMAIL_SEND_EMAIL --owner user:u-alice --text 'Tell Bob I am late' --run-at +10m
  make-issue | errand enqueue LINEAR_CREATE_ISSUE --owner org:org-7 --args - --idempotency-key i-12

With --wait, the exit code is 0 only if the job succeeds."#;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "errand enqueue [OPTIONS] --owner <OWNER> <TOOL>")]
pub(super) struct Args {
    /// The tool, for example GITHUB_GET_REPO.
    tool: String,

    #[command(flatten)]
    owner: OwnerFlags,

    /// The tool's input: JSON, @file, or - for standard input.
    #[arg(long = "args", value_name = "JSON", conflicts_with = "text", allow_hyphen_values = true)]
    arguments: Option<String>,

    /// The request in natural language, instead of --args.
    #[arg(long)]
    text: Option<String>,

    /// The toolkit version to run; without it, the pin decides.
    #[arg(long)]
    version: Option<String>,

    /// The connected account to use; without it, the owner's newest active one.
    #[arg(long, value_name = "ID")]
    account: Option<String>,

    /// The queue, which is the lane that runs the job.
    #[arg(long, default_value = QueueName::DEFAULT)]
    queue: String,

    /// The priority within the queue, 0 to 9; higher runs earlier.
    #[arg(long, value_name = "N")]
    priority: Option<i16>,

    /// The time before which the job does not run: RFC 3339, or from now, such as +10m.
    #[arg(long, value_name = "WHEN", value_parser = value::moment)]
    run_at: Option<Timestamp>,

    /// The time after which the job fails instead of running: RFC 3339, or from now, such as +1h.
    #[arg(long, value_name = "WHEN", value_parser = value::moment)]
    expires_at: Option<Timestamp>,

    /// The timeout of one attempt, such as 90s.
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    timeout: Option<Duration>,

    /// The attempt budget: up to N attempts.
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,

    /// The age budget: how long after it was created the job is tried again, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    max_age: Option<Duration>,

    /// The effect of repeating the call: safe, idempotent or once; overrides the tool's hints.
    #[arg(long, value_parser = value::word::<Effect>(Effect::WORDS), hide_possible_values = true)]
    effect: Option<Effect>,

    /// The idempotency key, unique per owner: the same key again is the same job.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// The person or service that asked, when the job acts for an organization.
    #[arg(long, value_name = "ID")]
    requested_by: Option<String>,

    /// A tag; may be given several times.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = value::pair)]
    tags: Vec<(String, String)>,

    /// The job's ID (UUID); the same ID again is the same job. Without it, a new ID is made.
    #[arg(long, value_name = "UUID")]
    id: Option<JobId>,

    /// Wait up to N seconds (300 without a number) until the job is final or held.
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
    wait: Option<u64>,

    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    if let Some(server) = &setup.server {
        return run_at(server, &args).await;
    }
    let spec = Arc::new(spec(&args, setup)?);
    let open = setup.door()?;
    let answers =
        open.door.enqueue(std::slice::from_ref(&spec)).await.with_context(|| may_be_stored(spec.id))?;
    let (id, duplicate) = match answers.into_iter().next() {
        Some(Enqueued::New { id, .. }) => (id, false),
        Some(Enqueued::Duplicate(id)) => (id, true),
        Some(Enqueued::Refused(unfit)) => return Err(exit::negative(unfit.error.message())),
        Some(Enqueued::Conflict(conflict)) => return Err(exit::negative(conflict.message())),
        None => anyhow::bail!("the store gave no answer"),
    };
    let exit = match args.wait {
        Some(secs) => wait_for(&open, id, Duration::from_secs(secs), args.format, setup).await?,
        None => print_enqueued(id, duplicate, args.format)?,
    };
    open.close().await;
    Ok(exit)
}

/// What is said where it is not known whether a job was stored.
fn may_be_stored(id: JobId) -> String {
    format!("the job may be stored or not; the same command with `--id {id}` does not make a second one")
}

fn print_enqueued(id: JobId, duplicate: bool, format: Format) -> anyhow::Result<Exit> {
    if format.json {
        output::print_json(&json!({"id": id, "duplicate": duplicate}))?;
    } else {
        output::print_line(id)?;
    }
    Ok(Exit::Success)
}

/// A job as a server answers with it; without the scope `read` the answer has only its ID.
#[derive(Deserialize)]
struct NewJob {
    id: JobId,
}

/// Enqueues the job at a server.
async fn run_at(server: &Server, args: &Args) -> anyhow::Result<Exit> {
    // What has a name of its own may be sent again.
    let named = args.id.is_some() || args.idempotency_key.is_some();
    let made = args.id.or_else(|| (!named).then(JobId::new));
    let envelope = envelope(args, made)?;
    let call = Call::post("/v1/jobs").repeatable().body(JSON, envelope);
    let (status, body) = server.send(call).await.map_err(|error| match made.filter(|_| is_away(&error)) {
        Some(id) => error.context(may_be_stored(id)),
        None => error,
    })?;
    let NewJob { id } = server.read(&body)?;
    match args.wait {
        Some(secs) => wait_at(server, id, Duration::from_secs(secs), args.format).await,
        None => print_enqueued(id, status == StatusCode::OK, args.format),
    }
}

/// Waits at a server for a job to end, and prints it.
async fn wait_at(server: &Server, id: JobId, budget: Duration, format: Format) -> anyhow::Result<Exit> {
    output::note(format_args!("enqueued {id}, waiting"));
    let until = Instant::now() + budget;
    let errand = server.errand();
    loop {
        let call = |left: Duration| {
            let wait = one_wait(left);
            Call::get(format!("/v1/jobs/{id}")).with("wait", Some(wait.as_secs())).waits(wait)
        };
        let stored = || format!("the job {id} is stored; look for it with `{errand} jobs show {id}`");
        let json: Box<RawValue> = server.keep_asking(until, call).await.with_context(stored)?;
        let job = jobs::ToldJob::of(json.get())?;
        if job.state().is_settled() || one_wait(until.saturating_duration_since(Instant::now())).is_zero() {
            jobs::print(&json, Timestamp::now(), None, format)?;
            return ended(id, job.state(), job.more.due_at, budget, &errand);
        }
    }
}

/// How the command ends that waited for a job.
fn ended(
    id: JobId,
    state: State,
    due: Option<Timestamp>,
    budget: Duration,
    errand: &str,
) -> anyhow::Result<Exit> {
    if state.is_settled() {
        return Ok(Exit::negative_if(state != State::Succeeded));
    }
    let why = match due.filter(|due| *due > Timestamp::now()) {
        Some(due) => format!(", because it is due at {}", output::moment(due)),
        None => String::new(),
    };
    let look = format!("look again with `{errand} jobs show {id}`");
    let check = if why.is_empty() { ", and check that a worker runs" } else { "" };
    let seconds = budget.as_secs();
    Err(exit::negative(format!("job {id} is still {state} after {seconds} s{why}; {look}{check}")))
}

/// The job, through the same decoder as every envelope.
fn spec(args: &Args, setup: &Setup) -> anyhow::Result<JobSpec> {
    let queue: QueueName = args.queue.parse().map_err(|error| exit::usage(format!("--queue {error}")))?;
    setup.check_lane(queue.as_str()).map_err(exit::usage)?;
    let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
    let spec = decode(&envelope(args, args.id)?, &arrival).map_err(|error| exit::usage(error.message))?;
    if looks_like_email(spec.owner.id()) && !setup.config().owners.refuse_email {
        output::note(EMAIL);
    }
    Ok(spec)
}

fn envelope(args: &Args, id: Option<JobId>) -> anyhow::Result<Vec<u8>> {
    let owner = args.owner.known()?;
    let mut fields: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
    let mut put = |name, value: Option<Box<RawValue>>| fields.extend(value.map(|value| (name, value)));
    if let Some(arguments) = &args.arguments {
        let text = value::text_or_file(arguments)?;
        let raw = RawValue::from_string(text.trim().to_owned()).map_err(|error| {
            exit::usage(format!(
                "--args is not valid JSON (line {}, column {}); quote it for the shell, or use --args @file",
                error.line(),
                error.column()
            ))
        })?;
        put("arguments", Some(raw));
    }
    put("id", raw(id.as_ref())?);
    put(owner.kind().field(), raw(Some(&owner.id()))?);
    put("requested_by", raw(args.requested_by.as_ref())?);
    put("tool", raw(Some(&args.tool))?);
    put("text", raw(args.text.as_ref())?);
    put("version", raw(args.version.as_ref())?);
    put("connected_account_id", raw(args.account.as_ref())?);
    put("queue", raw(Some(&args.queue))?);
    put("priority", raw(args.priority.as_ref())?);
    put("run_at", raw(args.run_at.as_ref())?);
    put("expires_at", raw(args.expires_at.as_ref())?);
    put("timeout_ms", raw(args.timeout.map(value::millis).as_ref())?);
    put("max_attempts", raw(args.max_attempts.as_ref())?);
    put("max_age_ms", raw(args.max_age.map(value::millis).as_ref())?);
    put("effect", raw(args.effect.as_ref())?);
    put("idempotency_key", raw(args.idempotency_key.as_ref())?);
    let tags: BTreeMap<_, _> = args.tags.iter().cloned().collect();
    put("tags", raw((!tags.is_empty()).then_some(&tags))?);
    Ok(serde_json::to_vec(&fields)?)
}

fn raw<T: Serialize>(value: Option<&T>) -> serde_json::Result<Option<Box<RawValue>>> {
    value.map(to_raw_value).transpose()
}

async fn wait_for(
    open: &OpenDoor,
    id: JobId,
    budget: Duration,
    format: Format,
    setup: &Setup,
) -> anyhow::Result<Exit> {
    output::note(format_args!("enqueued {id}, waiting"));
    let Some(job) = wait::until_settled(&open.store, id, budget).await? else {
        return Err(exit::negative(format!("job {id} is gone")));
    };
    let (state, due) = (job.state, job.due_at);
    jobs::print_view(&open.store, job, format, setup).await?;
    ended(id, state, due, budget, "errand")
}
