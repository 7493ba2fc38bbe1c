//! `errand tools`: what the tool API says about tools.

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    exit::{self, Exit},
    output::{self, Format},
    server::Call,
    setup::Setup,
};
use crate::{desk_json::ToolJson, tool::ToolError};

/// Show a tool as the tool API describes it.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show a tool: its toolkit, versions, and what repeating a call does.
    Show {
        /// The tool, for example GITHUB_GET_REPO.
        slug: String,
        /// The toolkit version to describe; the newest without it.
        #[arg(long)]
        version: Option<String>,
        #[command(flatten)]
        format: Format,
    },
}

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    let Command::Show { slug, version, format } = command;
    let json = match &setup.server {
        Some(server) => server.ask(Call::get(format!("/v1/tools/{slug}")).with("version", version)).await?,
        None => match setup.tool_api()?.tool(&slug, version.as_deref()).await {
            Err(ToolError::NotFound(_)) => {
                let at = version.map(|version| format!(" at version {version}")).unwrap_or_default();
                return Err(exit::negative(format!("the tool API knows no tool {slug}{at}")));
            }
            tool => to_raw_value(&ToolJson::of(&tool?))?,
        },
    };
    print(&json, format)?;
    Ok(Exit::Success)
}

/// A tool as it is told.
#[derive(Deserialize)]
struct Tool {
    slug: String,
    name: String,
    description: String,
    toolkit: String,
    version: String,
    available_versions: Vec<String>,
    tags: Vec<String>,
    effect: String,
    no_auth: bool,
    deprecated: bool,
}

fn print(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let tool: Tool = serde_json::from_str(json.get())?;
    let yes = |flag: bool, text: &str| flag.then(|| text.to_owned());
    Ok(output::print_fields(&[
        ("tool", Some(tool.slug)),
        ("name", Some(tool.name)),
        ("toolkit", Some(tool.toolkit)),
        ("version", Some(tool.version)),
        ("versions", Some(tool.available_versions.join(", "))),
        ("effect", Some(tool.effect)),
        ("tags", Some(tool.tags.join(", "))),
        ("account", yes(tool.no_auth, "needs none")),
        ("deprecated", yes(tool.deprecated, "yes, at this version")),
        ("description", Some(tool.description)),
    ])?)
}
