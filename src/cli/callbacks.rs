//! `errand callbacks`: where the events of owners are sent, what signs them, and what became of that.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use uuid::Uuid;

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format, ToldOwner},
    server::{Call, MAX_LIMIT, Page, Server},
    setup::Setup,
    value::{self, AnyOwner, OwnerFlags},
};
use crate::{
    callback::Secret,
    cursor::DeliveryCursor,
    desk_json::{CallbackJson, CallbackSecretJson, DeliveryJson},
    job::{CallbackUrl, Owner, Principal},
    relay::{PATIENCE, SCHEDULE},
    store::{Callback, Decider, DeliveryFilter, DeliveryState, Recovery, SharedStore},
};

/// How many deliveries are made due again together.
const RECOVERED_TOGETHER: usize = 10_000;

/// Set where the events of owners are sent, and see to their deliveries.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = help())]
pub(super) enum Command {
    /// Set where all events of an owner are sent from now on; what was disabled is enabled.
    Set {
        #[command(flatten)]
        owner: OwnerFlags,
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
    /// List the URLs that owners have set, and whether they take what is sent.
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Print the secret that signs all that is sent for an owner; the first time, it is made.
    Secret {
        #[command(flatten)]
        owner: OwnerFlags,
        /// Replace it, and print the new one.
        #[arg(long)]
        replace: bool,
        /// How long the one before signs beside the new one, for receivers to take that: 90 days at most.
        #[arg(long, value_name = "TIME", value_parser = value::overlap, default_value = "24h", requires = "replace")]
        overlap: Duration,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
    /// List what is sent, was delivered or has failed, newest first.
    Deliveries(Deliveries),
    /// Send what has failed again, with the `webhook-id` that it had.
    Recover {
        #[command(flatten)]
        owner: OwnerFlags,
        /// What was to be sent since then: RFC 3339, or a time ago such as 24h.
        #[arg(long, value_name = "TIME", value_parser = since)]
        since: Timestamp,
        /// Also what was delivered, for a receiver that has lost it.
        #[arg(long)]
        delivered: bool,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct To {
    /// The URL, http or https, up to 1,024 bytes.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Send nothing more but what jobs and batches ask for.
    #[arg(long)]
    no_url: bool,
}

impl To {
    /// The error does not quote the URL, which may be a secret, as one of the command line's grammar would.
    fn url(&self) -> anyhow::Result<Option<CallbackUrl>> {
        let url = self.url.as_deref().map(str::parse::<CallbackUrl>).transpose();
        url.map_err(|error| exit::usage(format!("--url {error}")))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Deliveries {
    #[command(flatten)]
    owner: AnyOwner,
    /// In this state.
    #[arg(long, value_parser = value::word::<DeliveryState>(DeliveryState::WORDS))]
    state: Option<DeliveryState>,
    /// Go on with a list that ended here.
    #[arg(long, value_name = "CURSOR")]
    before: Option<DeliveryCursor>,
    /// List up to N deliveries.
    #[arg(long, default_value_t = 50, value_parser = value::limit)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

fn help() -> String {
    format!(
        "\
Examples:
  errand callbacks set --owner org:org-7 --url https://app.example.com/errand
  errand callbacks secret --owner org:org-7
  errand callbacks secret --owner org:org-7 --replace --overlap 48h
  errand callbacks deliveries --owner org:org-7 --state failed
  errand callbacks recover --owner org:org-7 --since 24h

{}
{}

docs/callbacks.md says what is sent, and how it is verified.",
        schedule(),
        patience(),
    )
}

/// When something is sent again.
fn schedule() -> String {
    let waits: Vec<String> = SCHEDULE.iter().map(|wait| short(*wait)).collect();
    let (last, others) = waits.split_last().map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
    format!(
        "What a receiver does not take is sent again after {} and {last},\n\
         each time a tenth more or less; then it has failed.",
        others.join(", ")
    )
}

/// When the URL of an owner is given up.
fn patience() -> String {
    let days = PATIENCE.as_secs() / 86_400;
    format!(
        "The URL of an owner that takes nothing for {days} days or answers 410 is disabled until it is set."
    )
}

/// A time in its largest unit.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3_600),
    }
}

fn since(text: &str) -> Result<Timestamp, String> {
    let since = value::past(text)?;
    if since > Timestamp::now() { Err("it is in the future".to_owned()) } else { Ok(since) }
}

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match &setup.server {
        Some(server) => over_api(command, server).await?,
        None => {
            let store = setup.store()?;
            in_database(command, setup, &store).await?;
            store.close().await;
        }
    }
    Ok(Exit::Success)
}

async fn over_api(command: Command, server: &Server) -> anyhow::Result<()> {
    match command {
        Command::Set { owner, to, who, format } => {
            who.is_the_key()?;
            let url = to.url()?;
            let owner = owner.owner()?;
            let set =
                |method| Call::new(method, "/v1/callbacks").with("owner", Some(owner.clone())).repeatable();
            let set = match url.as_ref() {
                Some(url) => set(Method::PUT).json(&json!({ "url": url.as_str() }))?,
                None => set(Method::DELETE),
            };
            print_set(&server.ask::<Box<RawValue>>(set).await?, format)
        }
        Command::List { format } => list(&server.all(|| Call::get("/v1/callbacks")).await?, format),
        Command::Secret { owner, replace, overlap, who, format } => {
            who.is_the_key()?;
            let secret = Call::post("/v1/callbacks/secret").with("owner", Some(owner.owner()?));
            let secret = if replace {
                secret.json(&json!({"replace": true, "overlap_secs": overlap.as_secs()}))?
            } else {
                secret.repeatable()
            };
            print_secret(&server.ask::<Box<RawValue>>(secret).await?, format)
        }
        Command::Deliveries(Deliveries { owner, state, before, limit, format }) => {
            let list = Call::get("/v1/deliveries")
                .with("owner", owner.owner()?)
                .with("state", state)
                .with("cursor", before)
                .with("limit", Some(limit.min(MAX_LIMIT)));
            list_deliveries(&server.page(list).await?, format)
        }
        Command::Recover { owner, since, delivered, who, format } => {
            who.is_the_key()?;
            let owner = owner.owner()?;
            let (mut deliveries, mut cursor) = (0, None);
            loop {
                let wanted = json!({ "since": since, "delivered": delivered, "cursor": cursor });
                let recover =
                    Call::post("/v1/callbacks/recover").with("owner", Some(&owner)).json(&wanted)?;
                let page: Recovered = server.ask(recover).await?;
                deliveries += page.deliveries;
                cursor = page.next;
                if cursor.is_none() {
                    return print_recovered(deliveries, format);
                }
            }
        }
    }
}

async fn in_database(command: Command, setup: &Setup, store: &SharedStore) -> anyhow::Result<()> {
    let operator = Principal::Operator;
    match command {
        Command::Set { owner, to, who, format } => {
            let url = to.url()?;
            if url.is_some() && !setup.config().callbacks.enabled {
                output::note("callbacks.enabled is false here; workers with this setting send nothing");
            }
            let (owner, fresh) = (owner.owner()?, fresh()?);
            let set = store.set_callback(&operator, &owner, url, &fresh, &who.decider(setup)).await?;
            let set = set.ok_or_else(|| nobody(&owner))?;
            print_set(&to_raw_value(&CallbackJson::of(&set))?, format)
        }
        Command::List { format } => {
            let callbacks = all(store).await?;
            let json = callbacks.iter().map(|callback| to_raw_value(&CallbackJson::of(callback)));
            list(&json.collect::<Result<Vec<_>, _>>()?, format)
        }
        Command::Secret { owner, replace, overlap, who, format } => {
            let (owner, fresh) = (owner.owner()?, fresh()?);
            let replaced = replace.then_some(overlap);
            let by = who.decider(setup);
            let secrets = store.callback_secrets(&operator, &owner, &fresh, replaced, &by).await?;
            let secrets = secrets.ok_or_else(|| nobody(&owner))?;
            if let Some((_, until)) = secrets.previous.as_ref().filter(|_| replace)
                && secrets.secret.expose_bytes() != fresh.expose_bytes()
            {
                return Err(exit::negative(format!(
                    "the secret was replaced before, and the one before it signs until {}; replace it then, or at once with \
                     `--overlap 0s`, after which only the new one signs",
                    output::moment(*until)
                )));
            }
            print_secret(&to_raw_value(&CallbackSecretJson::of(&owner, &secrets))?, format)
        }
        Command::Deliveries(Deliveries { owner, state, before, limit, format }) => {
            let filter = DeliveryFilter { owner: owner.owner()?, state };
            let deliveries =
                store.deliveries(&operator, &filter, before.map(|cursor| cursor.0), limit).await?;
            let next = deliveries.last().filter(|_| deliveries.len() == limit);
            let next = next.map(|last| DeliveryCursor::of(last.place()));
            list_deliveries(&Page::of(deliveries.iter().map(DeliveryJson::of), next)?, format)
        }
        Command::Recover { owner, since, delivered, who, format } => {
            let recovery = Recovery { since, before: None, delivered };
            let deliveries = recover(store, &owner.owner()?, recovery, &who.decider(setup)).await?;
            print_recovered(deliveries, format)
        }
    }
}

/// The callbacks of all owners who have set one, page by page.
async fn all(store: &SharedStore) -> anyhow::Result<Vec<Callback>> {
    let mut callbacks: Vec<Callback> = Vec::new();
    loop {
        let behind = callbacks.last().map(|callback| callback.owner.clone());
        let page = store.callbacks(&Principal::Operator, behind, MAX_LIMIT).await?;
        if page.is_empty() {
            return Ok(callbacks);
        }
        callbacks.extend(page);
    }
}

/// Makes all of them due again, page by page, and returns how many.
async fn recover(
    store: &SharedStore,
    owner: &Owner,
    mut recovery: Recovery,
    by: &Decider,
) -> anyhow::Result<u64> {
    let mut all = 0;
    loop {
        let page = store.recover_deliveries(&Principal::Operator, owner, &recovery, RECOVERED_TOGETHER, by);
        let (deliveries, next) = page.await?;
        all += deliveries;
        if next.is_none() {
            return Ok(all);
        }
        recovery.before = next;
    }
}

/// One that nobody can guess.
fn fresh() -> anyhow::Result<Secret> {
    Secret::generate().context("the operating system gives no random numbers")
}

fn nobody(owner: &Owner) -> anyhow::Error {
    exit::negative(format!("there is no callback of {owner}"))
}

/// A callback as it is told.
#[derive(Deserialize)]
struct ToldCallback {
    owner: ToldOwner,
    url: Option<String>,
    set_at: Timestamp,
    failing_since: Option<Timestamp>,
    disabled_at: Option<Timestamp>,
    disabled_why: Option<String>,
}

/// A secret as it is told.
#[derive(Deserialize)]
struct ToldSecret {
    owner: ToldOwner,
    secret: SecretString,
    previous_until: Option<Timestamp>,
}

/// A delivery as it is told.
#[derive(Deserialize)]
struct ToldDelivery {
    owner: ToldOwner,
    url: String,
    r#type: String,
    job_id: Option<Uuid>,
    batch_id: Option<Uuid>,
    state: String,
    due_at: Option<Timestamp>,
    tries: u32,
    last_status: Option<u16>,
    last_error: Option<String>,
    finished_at: Option<Timestamp>,
}

/// How many deliveries are due again by one request.
#[derive(Deserialize)]
struct Recovered {
    deliveries: u64,
    next: Option<String>,
}

fn print_set(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let ToldCallback { owner, url, .. } = serde_json::from_str(json.get())?;
    let told = match url {
        Some(url) => format!("all events of {owner} are sent to {url}"),
        None => format!("events of {owner} are sent where its jobs and batches say, and nowhere else"),
    };
    Ok(output::print_line(output::clean(&told))?)
}

fn list(callbacks: &[Box<RawValue>], format: Format) -> anyhow::Result<()> {
    let header = ["OWNER", "URL", "SET", "FAILING SINCE", "DISABLED"];
    output::print_items(callbacks, format, "no owner has set a URL", header, |callback: &ToldCallback| {
        let why = callback.disabled_why.as_deref().unwrap_or("-");
        [
            callback.owner.to_string(),
            callback.url.clone().unwrap_or_else(dash),
            output::moment(callback.set_at),
            callback.failing_since.map_or_else(dash, output::moment),
            callback.disabled_at.map_or_else(dash, |at| format!("{} {why}", output::moment(at))),
        ]
    })
}

fn print_secret(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let ToldSecret { owner, secret, previous_until } = serde_json::from_str(json.get())?;
    let beside = previous_until
        .map(|until| format!("; until {} the one before signs, too", output::moment(until)))
        .unwrap_or_default();
    output::note(format!("this signs all that is sent for {owner}{beside}"));
    Ok(output::print_line(secret.expose_secret())?)
}

fn list_deliveries(page: &Page, format: Format) -> anyhow::Result<()> {
    let header = ["STATE", "WHAT", "JOB OR BATCH", "TO", "TRIES", "LAST ANSWER", "DUE OR ENDED", "OWNER"];
    output::print_items(
        &page.items,
        format,
        "there are no such deliveries",
        header,
        |told: &ToldDelivery| {
            let status = told.last_status.map(|status| status.to_string());
            let origin = told.url.parse().map(|url: CallbackUrl| url.origin());
            [
                told.state.clone(),
                told.r#type.clone(),
                told.job_id.or(told.batch_id).map_or_else(dash, |id| id.to_string()),
                origin.unwrap_or_else(|_| dash()),
                told.tries.to_string(),
                status.or_else(|| told.last_error.clone()).unwrap_or_else(dash),
                told.due_at.or(told.finished_at).map_or_else(dash, output::moment),
                told.owner.to_string(),
            ]
        },
    )?;
    if let Some(next) = page.next() {
        output::note(format!("there may be more; go on with the same filters and --before {next}"));
    }
    Ok(())
}

fn print_recovered(deliveries: u64, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(&json!({ "deliveries": deliveries }));
    }
    let counted = output::count(deliveries, "delivery is", "deliveries are");
    Ok(output::print_line(format!("{counted} sent again"))?)
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_and_the_page_have_the_times_at_which_something_is_sent_again() {
        let times = "5s, 30s, 2m, 10m, 1h, 3h, 6h, 12h, 12h and 12h";
        assert!(schedule().contains(&format!("sent again after {times},\n")), "{}", schedule());
        assert!(patience().contains("for 5 days or"), "{}", patience());
        assert!(include_str!("../../docs/callbacks.md").contains(times));
        assert!(help().lines().all(|line| line.chars().count() <= 100), "{}", help());
    }
}
