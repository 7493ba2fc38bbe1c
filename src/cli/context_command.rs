//! `errand context`: names for servers, and which one commands use.

use std::path::PathBuf;

use secrecy::SecretString;
use serde_json::json;

use super::{
    exit::{self, Exit},
    output::{self, Format},
    server::Server,
    value,
};
use crate::config::{Contexts, LOCAL, NamedServer, Sources, Target, check_context_name, mask_url};

const EXAMPLES: &str = "\
Examples:
  errand context set staging https://errand.staging.example.com --api-key-file ~/.errand-staging
  errand context set prod https://errand.example.com --api-key-file - --production
  errand context use prod
  errand --context staging jobs list
  errand context use local

Commands about jobs, batches, queues, keys and the like use the current context. `local`, which
is there from the start, is the database of this host. Before they change anything in a context
that is production, they ask for its name; scripts say it with --confirm NAME.";

/// List, set, use and remove contexts: servers whose HTTP API commands use.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List contexts.
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Set the server of a context. What was set of it before is forgotten.
    Set {
        /// The context.
        #[arg(value_parser = context_name)]
        name: String,
        /// The address of its HTTP API.
        #[arg(value_name = "URL")]
        address: String,
        /// Take the access key from this file each time, or with - from standard input once; without it, from ERRAND_API_KEY.
        #[arg(long, value_name = "FILE")]
        api_key_file: Option<PathBuf>,
        /// Ask before anything is changed there.
        #[arg(long)]
        production: bool,
    },
    /// Use a context where none is named.
    Use {
        /// The context, or `local`.
        name: String,
    },
    /// Remove a context.
    Remove {
        /// The context.
        name: String,
    },
}

fn context_name(text: &str) -> Result<String, String> {
    check_context_name(text).map(|()| text.to_owned())
}

pub(super) fn run(command: Command, sources: &Sources) -> anyhow::Result<Exit> {
    let file = Contexts::file(sources)?;
    let mut contexts = Contexts::load(&file)?;
    match command {
        Command::List { format } => {
            list(&contexts, format)?;
            return Ok(Exit::Success);
        }
        Command::Set { name, address, api_key_file, production } => {
            let (api_key, api_key_file) = match api_key_file {
                Some(file) if file.as_os_str() == "-" => (Some(key_of_input()?), None),
                Some(file) => (None, Some(std::path::absolute(file)?)),
                None => (None, None),
            };
            let server = NamedServer { server: address, api_key, api_key_file, production };
            // What cannot be used is better said now.
            let Target { server: place, .. } = server.target(&name, sources)?;
            Server::new(Target { name: Some(name.clone()), server: place, api_key: None, production }, None)?;
            contexts.contexts.insert(name.clone(), server);
            contexts.save(&file)?;
            output::print_line(format!(
                "the context {name} is set; `errand context use {name}` makes it the current one"
            ))?;
        }
        Command::Use { name } => {
            if name != LOCAL {
                contexts.find(&name)?;
            }
            contexts.current = (name != LOCAL).then(|| name.clone());
            contexts.save(&file)?;
            output::print_line(match name == LOCAL {
                true => "commands use the database of this host".to_owned(),
                false => format!("commands use {name}"),
            })?;
        }
        Command::Remove { name } => {
            contexts.find(&name)?;
            contexts.contexts.remove(&name);
            if contexts.current.as_ref() == Some(&name) {
                contexts.current = None;
                output::note("it was the current one; commands use the database of this host now");
            }
            contexts.save(&file)?;
            output::print_line(format!("the context {name} is removed"))?;
        }
    }
    Ok(Exit::Success)
}

/// The access key on standard input.
fn key_of_input() -> anyhow::Result<SecretString> {
    let key = value::text_or_file("-")?;
    match key.trim() {
        "" => Err(exit::usage("there is no access key on standard input")),
        key => Ok(SecretString::from(key)),
    }
}

fn list(contexts: &Contexts, format: Format) -> anyhow::Result<()> {
    let items: Vec<_> = contexts.contexts.iter().collect();
    let is_current = |name: &String| contexts.current.as_ref() == Some(name);
    let key = |server: &NamedServer| match (&server.api_key, &server.api_key_file) {
        (Some(_), _) => "kept".to_owned(),
        (None, Some(file)) => file.display().to_string(),
        (None, None) => "ERRAND_API_KEY".to_owned(),
    };
    let json = |(name, server): &(&String, &NamedServer)| {
        serde_json::to_string(&json!({
            "name": name, "server": mask_url(&server.server), "production": server.production, "current": is_current(name),
        }))
    };
    let nothing = "there are no contexts; commands use the database of this host";
    output::print_list(
        &items,
        format,
        json,
        nothing,
        ["NAME", "SERVER", "KEY", "PRODUCTION", "CURRENT"],
        |(name, server)| {
            let yes = |is: bool| if is { "yes" } else { "-" }.to_owned();
            [
                (*name).clone(),
                mask_url(&server.server),
                key(server),
                yes(server.production),
                yes(is_current(name)),
            ]
        },
    )
}
