//! `errand keys`: access keys, by which apps use the HTTP API.

use std::time::Duration;

use jiff::Timestamp;
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
    server::{Call, Server},
    setup::Setup,
    value,
};
use crate::{
    access::{AccessKey, KeyJson, NewKey, Scopes},
    bounds::{MAX_KEYS, MAX_LIST},
    job::{Owner, OwnerKind, Principal},
    store::AddedKey,
};

const EXAMPLES: &str = "\
Examples:
  errand keys create --org org-7 --scope enqueue,read --expires-in 90d
  errand keys create --operator --scope manage,read --json
  errand keys rotate 0190b0a0-0000-7000-8000-000000000001 --overlap 24h
  errand keys revoke 0190b0a0-0000-7000-8000-000000000001

A key of a user or an organization enqueues, reads and manages that owner's jobs and nothing
else; for it, it is as if nobody else had any. An operator's key is for all owners.

The secret is shown once and kept nowhere: an app sends it as `Authorization: Bearer SECRET`.
A key that is revoked or has expired is refused within a second, and listed for thirty days.";

/// Make, list, rotate and revoke access keys of the HTTP API.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Make a key, and show its secret once.
    Create {
        #[command(flatten)]
        whose: Whose,
        /// What it may do: enqueue, read, manage, with commas between them.
        #[arg(long, value_name = "SCOPES", value_parser = scopes)]
        scope: Scopes,
        /// When it ends, such as 90d; without it, when it is revoked.
        #[arg(long, value_name = "TIME", value_parser = value::duration)]
        expires_in: Option<Duration>,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
    /// List keys, the newest first.
    List {
        #[command(flatten)]
        owner: value::AnyOwner,
        #[command(flatten)]
        format: Format,
    },
    /// Make a key that takes the place of another one, which stays valid for a while.
    Rotate {
        /// The ID of the key that is replaced.
        id: Uuid,
        /// How long it stays valid, for apps to take the new one: 90 days at most.
        #[arg(long, value_name = "TIME", value_parser = value::overlap, default_value = "24h")]
        overlap: Duration,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
    /// End a key at once.
    Revoke {
        /// The ID of the key.
        id: Uuid,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Whose {
    /// For all owners.
    #[arg(long)]
    operator: bool,
    /// For the organization with this ID.
    #[arg(long, value_name = "ID")]
    org: Option<String>,
    /// For the user with this ID.
    #[arg(long, value_name = "ID")]
    user: Option<String>,
}

impl Whose {
    fn principal(self) -> anyhow::Result<Principal> {
        let (kind, id) = match (self.org, self.user) {
            (Some(id), _) => (OwnerKind::Org, id),
            (None, Some(id)) => (OwnerKind::User, id),
            (None, None) => return Ok(Principal::Operator),
        };
        let owner = Owner::new(kind, id).map_err(|error| exit::usage(format!("the ID {error}")))?;
        Ok(Principal::Owner(owner))
    }
}

pub(super) async fn run(command: Command, setup: &Setup) -> anyhow::Result<Exit> {
    match &setup.server {
        Some(server) => over_api(command, server).await?,
        None => in_database(command, setup).await?,
    }
    Ok(Exit::Success)
}

async fn over_api(command: Command, server: &Server) -> anyhow::Result<()> {
    match command {
        Command::Create { whose, scope, expires_in, who, format } => {
            who.is_the_key()?;
            let principal = whose.principal()?;
            let owner = |kind| principal.owner().filter(|owner| owner.kind() == kind).map(Owner::id);
            let wanted = json!({
                "user_id": owner(OwnerKind::User), "org_id": owner(OwnerKind::Org),
                "operator": principal == Principal::Operator, "scopes": scope.words(),
                "expires_in_secs": expires_in.map(|time| time.as_secs()),
            });
            print_new(&server.ask::<Box<RawValue>>(Call::post("/v1/keys").json(&wanted)?).await?, format)
        }
        Command::List { owner, format } => {
            let owner = owner.owner()?.map(|owner| owner.to_string());
            let mut keys = server.all(|| Call::get("/v1/keys")).await?;
            if owner.is_some() {
                let is_of = |key: &RawValue| {
                    serde_json::from_str::<Key>(key.get()).map(|key| Some(key.whose()) == owner)
                };
                let mut own = Vec::new();
                for key in keys {
                    if is_of(&key)? {
                        own.push(key);
                    }
                }
                keys = own;
            }
            list(&keys, format)
        }
        Command::Rotate { id, overlap, who, format } => {
            who.is_the_key()?;
            let wanted = json!({"overlap_secs": overlap.as_secs()});
            let rotate = Call::post(format!("/v1/keys/{id}/rotate")).json(&wanted)?;
            print_new(&server.ask::<Box<RawValue>>(rotate).await?, format)
        }
        Command::Revoke { id, who, format } => {
            who.is_the_key()?;
            let revoke = Call::post(format!("/v1/keys/{id}/revoke")).repeatable();
            print_revoked(&server.ask::<Box<RawValue>>(revoke).await?, format)
        }
    }
}

async fn in_database(command: Command, setup: &Setup) -> anyhow::Result<()> {
    let store = setup.store()?;
    match command {
        Command::Create { whose, scope, expires_in, who, format } => {
            let (key, secret) = NewKey::generate(whose.principal()?, scope, expires_in)?;
            match store.add_key(&Principal::Operator, &key, &who.decider(setup)).await? {
                AddedKey::Added(key) => print_new(&new_json(&key, &secret)?, format)?,
                AddedKey::TooMany | AddedKey::Foreign => {
                    return Err(exit::negative(format!(
                        "{} has {MAX_KEYS} valid keys; revoke one of them first",
                        key.principal
                    )));
                }
            }
        }
        Command::List { owner, format } => {
            let principal = owner.owner()?.map_or(Principal::Operator, Principal::Owner);
            let keys = store.keys(&principal, None, MAX_LIST).await?;
            let keys = keys.iter().map(|key| to_raw_value(&key.json())).collect::<Result<Vec<_>, _>>()?;
            list(&keys, format)?;
        }
        Command::Rotate { id, overlap, who, format } => {
            let old = store.key(&Principal::Operator, id).await?.ok_or_else(|| unknown(id))?;
            let (key, secret) = NewKey::generate(old.principal.clone(), old.scopes.clone(), old.valid_for())?;
            let Some(key) =
                store.rotate_key(&Principal::Operator, id, &key, overlap, &who.decider(setup)).await?
            else {
                return Err(exit::negative(
                    "this key has ended, or was replaced before; make a new one with `errand keys create`",
                ));
            };
            print_new(&new_json(&key, &secret)?, format)?;
        }
        Command::Revoke { id, who, format } => {
            let key = store
                .revoke_key(&Principal::Operator, id, &who.decider(setup))
                .await?
                .ok_or_else(|| unknown(id))?;
            print_revoked(&to_raw_value(&key.json())?, format)?;
        }
    }
    store.close().await;
    Ok(())
}

fn unknown(id: Uuid) -> anyhow::Error {
    exit::negative(format!("there is no key {id}; `errand keys list` names them"))
}

fn new_json(key: &AccessKey, secret: &SecretString) -> serde_json::Result<Box<RawValue>> {
    to_raw_value(&KeyJson { secret: Some(secret), ..key.json() })
}

/// A key as it is told.
#[derive(Deserialize)]
struct Key {
    id: Uuid,
    secret: Option<SecretString>,
    owner: Option<ToldOwner>,
    scopes: Vec<String>,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
}

impl Key {
    fn whose(&self) -> String {
        output::whose(self.owner.as_ref())
    }
}

fn print_new(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let key: Key = serde_json::from_str(json.get())?;
    output::note(format!(
        "key {} of {}, for {}, {}; its secret is shown this once",
        key.id,
        key.whose(),
        key.scopes.join(","),
        key.expires_at
            .map_or_else(|| "which does not expire".to_owned(), |at| format!("until {}", output::moment(at)))
    ));
    let secret = key.secret.as_ref().map_or("", |secret| secret.expose_secret());
    Ok(output::print_line(secret)?)
}

fn print_revoked(json: &RawValue, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::print_json(json);
    }
    let key: Key = serde_json::from_str(json.get())?;
    Ok(output::print_line(format!("the key {} of {} is revoked", key.id, key.whose()))?)
}

fn list(keys: &[Box<RawValue>], format: Format) -> anyhow::Result<()> {
    let header = ["OWNER", "SCOPES", "EXPIRES", "REVOKED", "CREATED", "LAST USED", "ID"];
    let moment = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), output::moment);
    output::print_items(keys, format, "there are no keys", header, |key: &Key| {
        [
            key.whose(),
            key.scopes.join(", "),
            moment(key.expires_at),
            moment(key.revoked_at),
            output::moment(key.created_at),
            moment(key.last_used_at),
            key.id.to_string(),
        ]
    })
}

fn scopes(text: &str) -> Result<Scopes, String> {
    text.parse().map_err(|error: crate::access::NoScopes| error.to_string())
}
