//! `errand accounts`: which accounts an owner has connected. Never their credentials.

use super::{
    context::Context,
    exit::Exit,
    output::{self, Format},
    value::{self, OwnerFlags},
};
use crate::{desk_json::AccountJson, tool::Account};

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

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    let Command::List { owner, toolkit, format } = command;
    let owner = owner.owner()?;
    let accounts = context.tool_api()?.accounts(&[owner.id()], toolkit.as_deref()).await?.accounts;
    let json = |account: &Account| serde_json::to_string(&AccountJson::of(account));
    let nothing = format_args!("{owner} has connected nothing that matches");
    let header = ["ID", "TOOLKIT", "STATUS", "CONNECTED", "REASON"];
    output::print_list(&accounts, format, json, nothing, header, |account| {
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
