//! `errand tools`: what the tool API says about tools.

use super::{
    context::Context,
    exit::{self, Exit},
    output::{self, Format},
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

pub(super) async fn run(command: Command, context: &Context) -> anyhow::Result<Exit> {
    let Command::Show { slug, version, format } = command;
    let tool = match context.tool_api()?.tool(&slug, version.as_deref()).await {
        Err(ToolError::NotFound(_)) => {
            let at = version.map(|version| format!(" at version {version}")).unwrap_or_default();
            return Err(exit::negative(format!("the tool API knows no tool {slug}{at}")));
        }
        other => other?,
    };
    if format.json {
        output::print_json(&ToolJson::of(&tool))?;
        return Ok(Exit::Success);
    }
    let yes = |flag: bool, text: &str| flag.then(|| text.to_owned());
    output::print_fields(&[
        ("tool", Some(tool.slug.clone())),
        ("name", Some(tool.name.clone())),
        ("toolkit", Some(tool.toolkit.clone())),
        ("version", Some(tool.version.clone())),
        ("versions", Some(tool.available_versions.join(", "))),
        ("effect", Some(tool.effect().to_string())),
        ("tags", Some(tool.tags.join(", "))),
        ("account", yes(tool.no_auth, "needs none")),
        ("deprecated", yes(tool.deprecated, "yes, at this version")),
        ("description", Some(tool.description.clone())),
    ])?;
    Ok(Exit::Success)
}
