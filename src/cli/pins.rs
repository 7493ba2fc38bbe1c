//! `errand pins`: toolkit versions that are pinned at run time.

use serde_json::{json, to_string};

use super::{
    context::Context,
    exit::{self, Exit},
    output::{self, Format},
    value,
};
use crate::job::{Owner, Pin, PinnedBy};

const EXAMPLES: &str = "\
Examples:
  errand pins set github 20251027_00
  errand pins set github 20250901_02 --owner org:org-7
  errand pins unset github --owner org:org-7

A job's own version wins over its owner's pin, which wins over the pin for everybody, which wins
over [toolkit_versions] in errand.toml, which wins over COMPOSIO_TOOLKIT_VERSION_<TOOLKIT>. A pin
decides for jobs that have not started; a started job keeps the version that it began with.";

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
    },
    /// Remove a pin.
    Unset {
        /// The toolkit slug, in lower case.
        #[arg(value_parser = value::toolkit)]
        toolkit: String,
        /// The owner whose pin is removed, user:ID or org:ID; without it, the global pin.
        #[arg(long, value_parser = value::owner)]
        owner: Option<Owner>,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    let store = context.store()?;
    match command {
        Command::List { format } => list(&all(context, store.pins().await?), format)?,
        Command::Set { toolkit, version, owner } => {
            let pin = Pin { owner, toolkit, version };
            store.set_pin(&pin).await?;
            let holder = holder(pin.owner.as_ref());
            output::print_line(format!("{} is pinned to {} for {holder}", pin.toolkit, pin.version))?;
        }
        Command::Unset { toolkit, owner } => {
            let holder = holder(owner.as_ref());
            if !store.unset_pin(owner.as_ref(), &toolkit).await? {
                return Err(exit::negative(format!("{toolkit} was not pinned for {holder}")));
            }
            output::print_line(format!("{toolkit} is not pinned for {holder} any more"))?;
        }
    }
    store.close().await;
    Ok(Exit::Success)
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
    let json = |RankedPin { row, by }: &RankedPin| {
        let owner = row.owner.as_ref().map(|o| json!({"kind": o.kind().as_str(), "id": o.id()}));
        to_string(&json!({
            "toolkit": row.toolkit, "version": row.version, "owner": owner, "pinned_by": by.as_str(),
        }))
    };
    let header = ["TOOLKIT", "VERSION", "FOR", "PINNED BY"];
    output::print_list(pins, format, json, "nothing is pinned", header, |RankedPin { row, by }| {
        [row.toolkit.clone(), row.version.clone(), holder(row.owner.as_ref()), by.as_str().to_owned()]
    })
}

fn holder(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "everybody".to_owned(), ToString::to_string)
}
