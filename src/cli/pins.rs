//! `errand pins`: toolkit versions that are pinned at run time.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use serde_json::to_string;

use super::{
    context::Context,
    decider::Who,
    exit::{self, Exit},
    output::{self, Format},
    value,
};
use crate::{
    desk_json::PinJson,
    job::{Owner, Pin, PinnedBy},
    resolver::PINS_KNOWN_AFTER,
    tool::{SharedToolApi, ToolError, deprecation::Deprecation},
};

/// How many versions are named of those that there are.
const NAMED_VERSIONS: usize = 10;

/// How many pins of a list are looked up at once, and for how long at most. The list is there without that.
const LOOK_UPS_AT_ONCE: usize = 8;
const LOOK_UPS_TIMEOUT: Duration = Duration::from_secs(3);

const EXAMPLES: &str = "\
Examples:
  errand pins set github 20251027_00
  errand pins set github 20250905_00 --owner org:org-7
  errand pins unset github --owner org:org-7

A job's own version wins over its owner's pin, which wins over the pin for everybody, which wins
over [toolkit_versions] in errand.toml, which wins over COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>. A pin
decides for jobs that have not started; a started job keeps the version that it began with.

`set` asks the tool API whether there is such a version. `set` and `unset` end when all workers
know: a job that is enqueued after them runs by the new pin.";

/// List, set and remove pins of toolkit versions.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List all pins: per owner, global, from the configuration and from the environment.
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Set or replace a pin.
    Set {
        /// The toolkit slug, in lower case.
        #[arg(value_parser = value::toolkit)]
        toolkit: String,
        /// The toolkit version, such as 20251027_00.
        #[arg(value_parser = value::version)]
        version: String,
        /// The owner whose pin it is, user:ID or org:ID; without it, the pin is global.
        #[arg(long, value_parser = value::new_owner)]
        owner: Option<Owner>,
        /// Pin without asking the tool API whether there is such a version.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        who: Who,
    },
    /// Remove a pin.
    Unset {
        /// The toolkit slug, in lower case.
        #[arg(value_parser = value::toolkit)]
        toolkit: String,
        /// The owner whose pin is removed, user:ID or org:ID; without it, the global pin.
        #[arg(long, value_parser = value::owner)]
        owner: Option<Owner>,
        #[command(flatten)]
        who: Who,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    match command {
        Command::List { format } => {
            let pins = all(context, store.pins().await?);
            list(&pins, format)?;
            if context.config().require_api_key().is_ok() {
                let api = context.tool_api()?;
                // Nobody waits long for what is said beside the answer.
                let remarks = tokio::time::timeout(LOOK_UPS_TIMEOUT, remarks(&api, &pins));
                let remarks = remarks.await.unwrap_or_default();
                remarks.into_iter().for_each(output::note);
            }
        }
        Command::Set { toolkit, version, owner, force, who } => {
            let pin = Pin { owner, toolkit, version };
            if !force {
                check(context, &pin).await?;
            }
            store.set_pin(&pin, &who.decider(context)).await?;
            tokio::time::sleep(PINS_KNOWN_AFTER).await;
            let holder = holder(pin.owner.as_ref());
            output::print_line(format!("{} is pinned to {} for {holder}", pin.toolkit, pin.version))?;
        }
        Command::Unset { toolkit, owner, who } => {
            let holder = holder(owner.as_ref());
            if !store.unset_pin(owner.as_ref(), &toolkit, &who.decider(context)).await? {
                return Err(exit::negative(format!("{toolkit} was not pinned for {holder}")));
            }
            tokio::time::sleep(PINS_KNOWN_AFTER).await;
            output::print_line(format!("{toolkit} is not pinned for {holder} any more"))?;
        }
    }
    store.close().await;
    Ok(Exit::Success)
}

/// Refuses what the tool API does not know, and says if it will go away: a job by such a pin fails for good.
async fn check(context: &Context, pin: &Pin) -> anyhow::Result<()> {
    const FORCE: &str = "the pin cannot be checked (--force sets it all the same)";
    let Pin { toolkit, version, .. } = pin;
    let api = context.tool_api().context(FORCE)?;
    let versions = match api.toolkit(toolkit, Some(version)).await {
        Ok(info) if info.available_versions.contains(version) => {
            if let Some(notice) = deprecation(info.deprecated.as_deref(), toolkit, version) {
                output::note(notice);
            }
            return Ok(());
        }
        Ok(info) => info.available_versions,
        Err(ToolError::NotFound(_)) => match api.toolkit(toolkit, None).await {
            Ok(info) => info.available_versions,
            Err(ToolError::NotFound(_)) => {
                return Err(exit::negative(format!(
                    "the tool API knows no toolkit {toolkit}; `errand tools show TOOL` names that of a tool, and --force \
                     pins all the same"
                )));
            }
            Err(error) => return Err(error).context(FORCE),
        },
        Err(error) => return Err(error).context(FORCE),
    };
    let named: Vec<_> = versions.iter().take(NAMED_VERSIONS).map(String::as_str).collect();
    let more = if versions.len() > named.len() { " and older ones" } else { "" };
    let named = named.join(", ");
    Err(exit::negative(format!(
        "{toolkit} has no version {version}, but {named}{more}; --force pins it all the same"
    )))
}

/// What is said about a version that will go away.
fn deprecation(header: Option<&str>, toolkit: &str, version: &str) -> Option<String> {
    let found = Deprecation::find(header?, toolkit, version)?;
    Some(format!("warning: version {version} of {toolkit} {found}"))
}

/// What is wrong with the versions that are pinned, as far as the tool API says.
async fn remarks(api: &SharedToolApi, pins: &[RankedPin]) -> Vec<String> {
    let pinned: BTreeSet<_> = pins.iter().map(|pin| (&pin.row.toolkit, &pin.row.version)).collect();
    let look_ups = pinned.into_iter().map(|(toolkit, version)| async move {
        match api.toolkit(toolkit, Some(version)).await {
            Ok(info) => deprecation(info.deprecated.as_deref(), toolkit, version),
            Err(ToolError::NotFound(_)) => {
                Some(format!("warning: the tool API knows no version {version} of {toolkit}"))
            }
            Err(_) => None,
        }
    });
    stream::iter(look_ups).buffered(LOOK_UPS_AT_ONCE).filter_map(async |remark| remark).collect().await
}

/// A pin with its place in the order of precedence.
struct RankedPin {
    row: Pin,
    by: PinnedBy,
}

fn all(context: &Context, stored: Vec<Pin>) -> Vec<RankedPin> {
    let config = context.config();
    let everybody = |by| {
        move |(toolkit, version): (&String, &String)| RankedPin {
            row: Pin { owner: None, toolkit: toolkit.clone(), version: version.clone() },
            by,
        }
    };
    let stored = stored.into_iter().map(|row| {
        let by = if row.owner.is_some() { PinnedBy::Owner } else { PinnedBy::Global };
        RankedPin { row, by }
    });
    let mut pins: Vec<RankedPin> = stored
        .chain(config.toolkit_versions.iter().map(everybody(PinnedBy::Config)))
        .chain(config.env_pins.iter().map(everybody(PinnedBy::Env)))
        .collect();
    pins.sort_by(|a, b| (&a.row.toolkit, a.by, &a.row.owner).cmp(&(&b.row.toolkit, b.by, &b.row.owner)));
    pins
}

fn list(pins: &[RankedPin], format: Format) -> anyhow::Result<()> {
    let json = |RankedPin { row, by }: &RankedPin| to_string(&PinJson { pinned_by: *by, ..PinJson::of(row) });
    let header = ["TOOLKIT", "VERSION", "FOR", "PINNED BY"];
    output::print_list(pins, format, json, "nothing is pinned", header, |RankedPin { row, by }| {
        [row.toolkit.clone(), row.version.clone(), holder(row.owner.as_ref()), by.as_str().to_owned()]
    })
}

fn holder(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "everybody".to_owned(), ToString::to_string)
}
