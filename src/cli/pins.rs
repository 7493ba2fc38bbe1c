//! `errand pins`: toolkit versions that are pinned at run time.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{
    decider::Who,
    exit::{self, Exit},
    output::{self, Format, ToldOwner},
    server::Call,
    setup::Setup,
    value,
};
use crate::{
    desk_json::PinJson,
    job::{Owner, Pin, PinnedBy, Principal},
    resolver::PINS_KNOWN_AFTER,
    tool::{Pinnable, SharedToolApi, ToolError, deprecation::Deprecation, pinnable},
};

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

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match command {
        Command::List { format } => list(setup, format).await?,
        Command::Set { toolkit, version, owner, force, who } => {
            set(setup, &Pin { owner, toolkit, version }, force, &who).await?;
        }
        Command::Unset { toolkit, owner, who } => unset(setup, &toolkit, owner.as_ref(), &who).await?,
    }
    Ok(Exit::Success)
}

async fn list(setup: &Setup, format: Format) -> anyhow::Result<()> {
    if let Some(server) = &setup.server {
        return print(&server.page(Call::get("/v1/pins")).await?.items, format);
    }
    let store = setup.store()?;
    let pins = all(setup, store.pins().await?);
    store.close().await;
    let json =
        |RankedPin { row, by }: &RankedPin| to_raw_value(&PinJson { pinned_by: *by, ..PinJson::of(row) });
    print(&pins.iter().map(json).collect::<Result<Vec<_>, _>>()?, format)?;
    if setup.config().require_api_key().is_ok() {
        let api = setup.tool_api()?;
        // Nobody waits long for what is said beside the answer.
        let remarks = tokio::time::timeout(LOOK_UPS_TIMEOUT, remarks(&api, &pins));
        let remarks = remarks.await.unwrap_or_default();
        remarks.into_iter().for_each(output::note);
    }
    Ok(())
}

async fn set(setup: &Setup, pin: &Pin, force: bool, who: &Who) -> anyhow::Result<()> {
    let mut whose = holder(pin.owner.as_ref());
    if let Some(server) = &setup.server {
        who.is_the_key()?;
        let set = Call::new(Method::PUT, format!("/v1/pins/{}", pin.toolkit))
            .with("owner", pin.owner.as_ref())
            .with("force", force.then_some(true))
            .repeatable();
        // Without a name it is that of the key's owner.
        let told: ToldPin = server.ask(set.json(&json!({"version": pin.version}))?).await?;
        whose = holder(told.owner.as_ref());
    } else {
        let store = setup.store()?;
        if !force {
            check(setup, pin).await?;
        }
        store.set_pin(&Principal::Operator, pin, &who.decider(setup)).await?;
        store.close().await;
    }
    tokio::time::sleep(PINS_KNOWN_AFTER).await;
    Ok(output::print_line(format!("{} is pinned to {} for {whose}", pin.toolkit, pin.version))?)
}

async fn unset(setup: &Setup, toolkit: &str, owner: Option<&Owner>, who: &Who) -> anyhow::Result<()> {
    let holder = holder(owner);
    if let Some(server) = &setup.server {
        who.is_the_key()?;
        let unset = Call::new(Method::DELETE, format!("/v1/pins/{toolkit}")).with("owner", owner);
        server.send(unset).await?;
    } else {
        let store = setup.store()?;
        let was_set = store.unset_pin(&Principal::Operator, owner, toolkit, &who.decider(setup)).await?;
        store.close().await;
        if !was_set {
            return Err(exit::negative(format!("{toolkit} was not pinned for {holder}")));
        }
    }
    tokio::time::sleep(PINS_KNOWN_AFTER).await;
    // Without a name it was that of the key's owner, whom the server knows.
    let whose =
        if setup.server.is_some() && owner.is_none() { String::new() } else { format!(" for {holder}") };
    Ok(output::print_line(format!("{toolkit} is not pinned{whose} any more"))?)
}

/// Refuses what the tool API does not know, and says if it will go away.
async fn check(setup: &Setup, pin: &Pin) -> anyhow::Result<()> {
    const FORCE: &str = "the pin cannot be checked (--force sets it all the same)";
    let Pin { toolkit, version, .. } = pin;
    let api = setup.tool_api().context(FORCE)?;
    match pinnable(&api, toolkit, version).await.context(FORCE)? {
        Pinnable::Yes { deprecated } => {
            deprecation(deprecated.as_deref(), toolkit, version).into_iter().for_each(output::note);
            Ok(())
        }
        Pinnable::No(why) => Err(exit::negative(format!("{why}; --force pins it all the same"))),
    }
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

fn all(setup: &Setup, stored: Vec<Pin>) -> Vec<RankedPin> {
    let config = setup.config();
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

/// A pin as it is told.
#[derive(Deserialize)]
struct ToldPin {
    toolkit: String,
    version: String,
    owner: Option<ToldOwner>,
    pinned_by: String,
}

fn print(pins: &[Box<RawValue>], format: Format) -> anyhow::Result<()> {
    let header = ["TOOLKIT", "VERSION", "FOR", "PINNED BY"];
    output::print_items(pins, format, "nothing is pinned", header, |pin: &ToldPin| {
        [pin.toolkit.clone(), pin.version.clone(), holder(pin.owner.as_ref()), pin.pinned_by.clone()]
    })
}

fn holder(owner: Option<&impl ToString>) -> String {
    owner.map_or_else(|| "everybody".to_owned(), ToString::to_string)
}
