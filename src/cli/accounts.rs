//! `errand accounts`: which accounts an owner has connected. Never their credentials.

use serde_json::json;

use super::{
    context::Context,
    exit::Exit,
    output::{self, Format},
    value::{self, OwnerFlags},
};

/// List connected accounts as the tool API knows them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List an owner's accounts, most recently connected first.
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
    let accounts = context.tool_api()?.accounts(owner.id(), toolkit.as_deref()).await?;
    if format.json {
        for account in &accounts {
            output::print_json(&json!({
                "id": account.id, "toolkit": account.toolkit, "status": account.status,
                "status_reason": account.status_reason, "disabled": account.disabled,
                "usable": account.is_active(), "created_at": account.created_at,
            }))?;
        }
    } else if accounts.is_empty() {
        output::note(format_args!("{owner} has connected nothing that matches"));
    } else {
        let rows = accounts.iter().map(|account| {
            let disabled = if account.disabled { " (disabled)" } else { "" };
            vec![
                account.id.clone(),
                account.toolkit.clone(),
                format!("{}{disabled}", account.status),
                output::moment(account.created_at),
                account.status_reason.clone().unwrap_or_default(),
            ]
        });
        output::print_table(&["ID", "TOOLKIT", "STATUS", "CONNECTED", "REASON"], rows.collect())?;
    }
    Ok(Exit::Success)
}
