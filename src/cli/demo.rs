//! `errand demo`: some hundreds of jobs through the embedded worker and the sandbox tool API, and an
//! account of every one of them.

use std::{
    collections::{BTreeMap, HashSet},
    fs::Permissions,
    io::IsTerminal as _,
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use errand_sandbox::{self as sandbox, DEFAULT_WORLD, Sandbox, World};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    dev,
    exit::{self, Exit},
    jobs, output,
};
use crate::{
    admission::{Admission, Enqueued},
    app::{self, App},
    config::{Config, Toolkit},
    job::{Arrival, HeldReason, JobId, JobSpec, OwnerKind, Pin, Principal, QueueName, State, decode},
    shutdown::Shutdown,
    store::{Decider, JobFilter, JobView, SharedStore, all_jobs},
};

/// How long the demo waits for its jobs before it says that some are missing.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a few hundred jobs of 20 users and 3 organizations in one process, with nothing installed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many jobs, 20 to 9000.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(20..=9_000))]
    jobs: u32,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    enqueued: usize,
    settled: usize,
    lost: usize,
    outcomes: BTreeMap<&'static str, usize>,
    jobs_per_second: f64,
    seconds: f64,
}

/// What is said at the end, after the account of all jobs.
const NEXT: &str = "
What next:
  errand dev                 keeps running, and says how to enqueue jobs of your own
  errand enqueue --help      what a job can say
  errand demo --jobs 5000    more of the same
";

pub(crate) async fn run(args: Args, mut config: Config) -> Result<Exit> {
    // From now on a signal ends the demo in order, which removes the folder.
    let shutdown = Shutdown::on_signals()?;
    let folder =
        tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().map_err(|error| {
            exit::usage(format!(
                "cannot create a temporary folder; set TMPDIR to one that can be written: {error}"
            ))
        })?;
    dev::embed(&mut config, &folder.path().join("errand.db"));
    settle_for_demo(&mut config);

    let world = World::from_toml(&format!("{DEFAULT_WORLD}\n{}", include_str!("demo_faults.toml")))?;
    let sandbox = Sandbox::new(world, sandbox::Options::default())
        .bind(([127, 0, 0, 1], 0).into())
        .await
        .context("cannot listen on a free port of 127.0.0.1")?;
    config.composio.base_url = sandbox.base_url();
    config.composio.api_key = dev::SANDBOX_KEY.into();

    let app = App::new(config)?;
    let (store, door) = (app.services.store.clone(), app.admission());
    store.migrate().await?;
    // One pin in the store, so that all ways to pin can be seen: job, store, configuration, newest.
    store
        .set_pin(
            &Principal::Operator,
            &Pin { owner: None, toolkit: "gmail".into(), version: "20251001_00".into() },
            &Decider::at_command_line("errand demo"),
        )
        .await?;
    let running = tokio::spawn(app.run(app::install_metrics()?, shutdown.clone()));

    let settled = shutdown.stop.run_until_cancelled(settle(&args, &store, &door, &running)).await;
    let Some(settled) = settled.filter(|_| !shutdown.stop.is_cancelled()) else {
        // What fails now fails because the parts end.
        drop(running.await);
        sandbox.stop().await;
        return Err(exit::negative("interrupted; nothing is left behind"));
    };
    let (ids, seconds) = settled?;

    let jobs = all_jobs(&*store, &Principal::Operator, &JobFilter::default(), ids.len() * 2).await?;
    let summary = summarize(&ids, &jobs, seconds);
    if args.json {
        output::print_json(&summary)?;
    } else {
        let ledger = sandbox.ledger_summary();
        let effects = format!(
            "{} calls reached the tool API, {} took effect, {} jobs that must act once acted twice",
            ledger.calls, ledger.effects, ledger.jobs_repeated_once
        );
        print(&store, &summary, &jobs, &effects).await?;
        output::print(NEXT)?;
    }

    shutdown.stop.cancel();
    running.await??;
    sandbox.stop().await;
    Ok(Exit::negative_if(summary.lost != 0))
}

/// Enqueues the jobs and waits for them. Returns their IDs, and how many seconds they took.
async fn settle<T>(
    args: &Args,
    store: &SharedStore,
    door: &Admission,
    running: &JoinHandle<T>,
) -> Result<(HashSet<JobId>, f64)> {
    let specs = workload(args.jobs)?;
    let started = Instant::now();
    let mut ids = HashSet::with_capacity(specs.len());
    for (spec, answer) in specs.iter().zip(door.enqueue(&specs).await?) {
        match answer {
            Enqueued::New { id, .. } => ids.insert(id),
            other => bail!("the demo's own job {} was not taken: {other:?}", spec.tool),
        };
    }
    let bar = progress(args, ids.len() as u64);
    let watched = watch(store, &bar, ids.len(), running).await;
    bar.finish_and_clear();
    watched.map(|()| (ids, started.elapsed().as_secs_f64()))
}

/// Makes a short run show what a long one would: quick retries and look-ups, and a toolkit that belongs to organizations.
fn settle_for_demo(config: &mut Config) {
    config.http.listen = None;
    config.retry.initial_ms = 100;
    config.retry.max_ms = 2_000;
    config.relay.poll_ms = 200;
    config.verify.poll_ms = 100;
    config.verify.first_ms = 500;
    config.verify.max_ms = 1_000;
    config.toolkit_versions.insert("github".into(), "20251027_00".into());
    config.toolkits.insert("slack".into(), Toolkit { owned_by: Some(OwnerKind::Org) });
    config.env_pins.clear();
}

/// The jobs, in an order that mixes everything.
fn workload(count: u32) -> Result<Vec<Arc<JobSpec>>> {
    let queue: QueueName = "default".parse()?;
    let bulk: QueueName = "bulk".parse()?;
    (0..count)
        .map(|n| {
            let lane = if n % 5 == 4 { &bulk } else { &queue };
            let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(lane) };
            let body = serde_json::to_vec(&job(n))?;
            Ok(Arc::new(decode(&body, &arrival)?))
        })
        .collect()
}

/// The n-th job: every twentieth is one of the special cases, the rest is daily work.
fn job(n: u32) -> Value {
    let (user, org) = (format!("user-{}", n % 20 + 1), format!("org-{}", n % 3 + 1));
    let of = |user: &str, tool: &str, arguments: Value| json!({"user_id": user, "tool": tool, "arguments": arguments});
    let repo = |user: &str, owner: &str, repo: &str| {
        of(user, "GITHUB_GET_REPO", json!({"owner": owner, "repo": repo}))
    };
    let with = |mut job: Value, key: &str, value: &str| {
        job[key] = value.into();
        job
    };
    if n.is_multiple_of(20) {
        return match n / 20 % 6 {
            0 => repo("u-nobody", "o", "r"),
            1 => of("user-2", "SLACK_SEND_MESSAGE", json!({"channel": "C01", "text": "hi"})),
            2 => with(repo("u-alice", "o", "old"), "connected_account_id", "ca_alice_old"),
            3 => repo("u-alice", "o", "new"),
            4 => of(&user, "GITHUB_DELETE_REPO", json!({"owner": "o", "repo": "gone"})),
            _ => with(repo("u-alice", "o", "r"), "connected_account_id", "ca_bob"),
        };
    }
    let mail = json!({"recipient_email": "ann@example.com", "subject": "hi", "body": format!("mail {n}")});
    let issue = json!({"issue_id": format!("ISS-{n}"), "state": "done"});
    match n % 7 {
        0 => repo(&user, "acme", &format!("r{n}")),
        1 => with(of(&user, "LINEAR_UPDATE_ISSUE", issue), "version", "20251020_00"),
        2 => of(&user, "NOTION_SEARCH", json!({"query": format!("plan {n}")})),
        3 => json!({"org_id": org, "tool": "SLACK_SEND_MESSAGE", "requested_by": user,
                    "arguments": {"channel": "C01", "text": format!("report {n}")}}),
        4 => of(&user, "GMAIL_SEND_EMAIL", mail),
        5 => of(&user, "HACKERNEWS_GET_USER", json!({"username": "pg"})),
        _ => of(&user, "NOTION_UPDATE_PAGE", json!({"page_id": format!("p{n}")})),
    }
}

fn progress(args: &Args, length: u64) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    output::styled(ProgressBar::new(length), "{bar:40} {pos}/{len} jobs settled, {msg}")
}

/// Waits until no job is on its way any more, and every unknown outcome is looked up.
async fn watch<T>(
    store: &SharedStore,
    bar: &ProgressBar,
    enqueued: usize,
    running: &JoinHandle<T>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let census = store.census().await?;
        let count = |counts: fn(State) -> bool| -> u64 {
            census.jobs.iter().filter(|(_, state, _)| counts(*state)).map(|(.., count)| count).sum()
        };
        let unknown = census.held.iter().find(|(reason, _)| *reason == HeldReason::UnknownOutcome);
        let looked_up = unknown.map_or(0, |(_, jobs)| *jobs);
        let on_the_way = count(|state| state != State::Held) + looked_up;
        let retrying = count(|state| state == State::Retryable);
        bar.set_position((enqueued as u64).saturating_sub(on_the_way));
        bar.set_message(format!("{retrying} wait for a retry, {looked_up} are looked up"));
        if on_the_way == 0 || Instant::now() > deadline {
            return Ok(());
        }
        if running.is_finished() {
            bail!("the worker ended before its jobs did; run again with ERRAND__LOG__LEVEL=info to see why");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn summarize(ids: &HashSet<JobId>, jobs: &[JobView], seconds: f64) -> Summary {
    let mut outcomes = BTreeMap::new();
    let mut settled = 0;
    for job in jobs.iter().filter(|job| ids.contains(&job.spec.id)) {
        *outcomes.entry(job.state.as_str()).or_default() += 1;
        settled += usize::from(job.state.is_final() || job.state == State::Held);
    }
    let rounded = |value: f64, digits: f64| (value * digits).round() / digits;
    Summary {
        enqueued: ids.len(),
        settled,
        lost: ids.len() - settled,
        outcomes,
        jobs_per_second: rounded(settled as f64 / seconds.max(0.001), 10.0),
        seconds: rounded(seconds, 1000.0),
    }
}

async fn print(store: &SharedStore, summary: &Summary, jobs: &[JobView], ledger: &str) -> Result<()> {
    let mut groups: BTreeMap<(&str, &str), (usize, u32)> = BTreeMap::new();
    for job in jobs {
        let why = match (job.state, &job.error) {
            (State::Succeeded, _) if job.unknown_since.is_some() => LOOKED_UP,
            (State::Succeeded, _) if job.attempt > 1 => RETRIED,
            (State::Succeeded, _) => "at the first attempt",
            (_, Some(error)) => error.kind().as_str(),
            (_, None) => "",
        };
        let entry = groups.entry((job.state.as_str(), why)).or_default();
        entry.0 += 1;
        entry.1 += job.attempt;
    }
    let rows = groups.into_iter().map(|((state, why), (count, attempts))| {
        vec![
            state.to_owned(),
            why.to_owned(),
            count.to_string(),
            attempts.to_string(),
            meaning(why).to_owned(),
        ]
    });
    output::print_table(&["OUTCOME", "WHY", "JOBS", "ATTEMPTS", "WHICH MEANS"], rows.collect())?;
    output::print_line("")?;
    for text in examples(store, jobs).await? {
        output::print_line(text)?;
    }
    output::print_line(format_args!(
        "{:.0} jobs/s ({:.1} s in all, retries and waits included); {ledger}.",
        summary.jobs_per_second, summary.seconds
    ))?;
    output::print_line(format_args!(
        "{} jobs enqueued, {} reached a final or held state, difference {}.",
        summary.enqueued, summary.settled, summary.lost
    ))?;
    Ok(())
}

/// Why jobs succeeded, beside the words for errors.
const LOOKED_UP: &str = "looked up";
const RETRIED: &str = "after a retry";

/// What a word of the table means in this demo.
fn meaning(why: &str) -> &'static str {
    match why {
        RETRIED => "the tool API failed or throttled at first",
        LOOKED_UP => "the answer was lost, so the call was not repeated: its log had it",
        "needs_connection" => "its owner has connected no account; it goes on when there is one",
        "wrong_owner_kind" => "the toolkit is for organizations, and a user asked",
        "account_not_found" => "it named an account that is not its owner's",
        "tool_failed" => "the tool answered that it cannot",
        "unknown_outcome" => "the answer was lost, and nobody knows yet whether the call counted",
        _ => "",
    }
}

/// One job of each kind that is worth a look, in full.
async fn examples(store: &SharedStore, jobs: &[JobView]) -> Result<Vec<String>> {
    let retried = jobs.iter().find(|job| job.state == State::Succeeded && job.attempt > 1);
    let explicit = jobs.iter().find(|job| job.spec.connected_account_id.as_deref() == Some("ca_alice_old"));
    let default = jobs.iter().find(|job| {
        job.spec.owner.id() == "u-alice" && job.spec.connected_account_id.is_none() && job.binding.is_some()
    });
    let unknown = jobs.iter().find(|job| job.unknown_since.is_some());
    let mut texts = Vec::new();
    for job in [retried, explicit, default, unknown].into_iter().flatten() {
        let mut text =
            format!("{}  {} for {}  -> {}\n", job.spec.id, job.spec.tool, job.spec.owner, job.state);
        if let Some(binding) = &job.binding {
            let account = binding.account.as_deref().unwrap_or("none needed");
            text += &format!(
                "  version {} ({}), account {account}\n",
                binding.version,
                jobs::pinned(binding.pinned_by)
            );
        }
        for attempt in store.attempts(&Principal::Operator, job.spec.id).await? {
            let outcome = attempt.outcome.map_or("running", |outcome| outcome.as_str());
            let status =
                attempt.http_status.map_or("no answer".to_owned(), |status| format!("HTTP {status}"));
            let log = attempt.log_id.map_or(String::new(), |log| format!(", log {log}"));
            text += &format!(
                "  attempt {}: {outcome}, {status}{log}, request {}\n",
                attempt.number, attempt.request_id
            );
        }
        for entry in store.history(&Principal::Operator, job.spec.id).await? {
            let (kind, word, _) = entry.fact.parts();
            let word = word.map(|word| format!(" {word}")).unwrap_or_default();
            text += &format!("  {kind}{word}, by {}\n", entry.by);
        }
        if let Some(error) = &job.error {
            text += &format!("  {}\n", error.message());
        }
        texts.push(text);
    }
    Ok(texts)
}
