//! `errand accounts`: which accounts an owner has connected. Never their credentials.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::to_raw_value;

use super::{
    exit::Exit,
    output::{self, Format},
    server::Call,
    setup::Setup,
    value::{self, OwnerFlags},
};
use crate::desk_json::AccountJson;

/// List connected accounts as the tool API knows them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List an owner's accounts, most recently connected first.
    #[command(override_usage = "errand accounts list [OPTIONS] --owner <OWNER>")]
    List {
        #[command(flatten)]
        owner: OwnerFlags,
        /// Only accounts of this toolkit.
        #[arg(long, value_parser = value::toolkit)]
        toolkit: Option<String>,
        #[command(flatten)]
        format: Format,
    },
}

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    let Command::List { owner, toolkit, format } = command;
    let owner = owner.owner()?;
    let accounts = match &setup.server {
        Some(server) => {
            let list = Call::get("/v1/accounts").with("owner", Some(&owner)).with("toolkit", toolkit);
            server.page(list).await?.items
        }
        None => {
            let accounts = setup.tool_api()?.accounts(&[owner.id()], toolkit.as_deref()).await?.accounts;
            accounts
                .iter()
                .map(|account| to_raw_value(&AccountJson::of(account)))
                .collect::<Result<_, _>>()?
        }
    };
    let nothing = format_args!("{owner} has connected nothing that matches");
    let header = ["ID", "TOOLKIT", "STATUS", "CONNECTED", "REASON"];
    output::print_items(&accounts, format, nothing, header, |account: &Account| {
        let disabled = if account.disabled { " (disabled)" } else { "" };
        [
            account.id.clone(),
            account.toolkit.clone(),
            format!("{}{disabled}", account.status),
            output::moment(account.created_at),
            account.status_reason.clone().unwrap_or_default(),
        ]
    })?;
    Ok(Exit::Success)
}

/// An account as it is told.
#[derive(Deserialize)]
struct Account {
    id: String,
    toolkit: String,
    status: String,
    status_reason: Option<String>,
    disabled: bool,
    created_at: Timestamp,
}
