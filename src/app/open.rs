//! Opens the backends that the configuration names. Each connects when it is first used.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use secrecy::ExposeSecret as _;

use super::options::worker_name;
use crate::{
    clock,
    config::Config,
    job::QueueName,
    queue::{
        SharedQueue,
        embedded::EmbeddedQueue,
        rabbitmq::{RabbitOptions, RabbitQueue},
    },
    store::{
        SharedStore,
        postgres::{PostgresOptions, PostgresStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
    tool::{
        SharedToolApi,
        composio::{self, Composio},
    },
};

/// Messages that the in-process queue holds per lane; what is more waits in the store.
const EMBEDDED_CAPACITY: usize = 10_000;

/// Most calls for which connections to the tool API are kept open between calls.
const MAX_POOLED_CALLS: usize = 4_096;

/// The store that the configuration names; an error if its address cannot be used.
pub fn open_store(config: &Config) -> Result<SharedStore> {
    let url = config.store.url.expose_secret();
    let records_events = config.records_events();
    if let Some(path) = url.strip_prefix("sqlite://") {
        let options =
            SqliteOptions { path: Path::new(path).to_owned(), clock: clock::system(), records_events };
        return Ok(Arc::new(SqliteStore::new(options)));
    }
    let tenant_role = match config.store.tenant_role.as_str() {
        "" => None,
        name => Some(name.parse().context("store.tenant_role")?),
    };
    let options = PostgresOptions {
        url: config.store.url.clone(),
        schema: config.store.schema.clone(),
        tenant_role,
        hot_connections: config.store.hot_connections,
        other_connections: config.store.other_connections,
        application_name: "errand".into(),
        statement_timeout: Duration::from_millis(config.store.statement_timeout_ms),
        records_events,
    };
    Ok(Arc::new(PostgresStore::new(options)?))
}

/// RabbitMQ, or the queue inside this process when no broker is configured; an error if the address cannot be used.
pub fn open_queue(config: &Config) -> Result<SharedQueue> {
    let names: Vec<QueueName> = config.queues.keys().cloned().collect();
    if config.amqp.url.expose_secret().is_empty() {
        return Ok(Arc::new(EmbeddedQueue::new(names, EMBEDDED_CAPACITY)));
    }
    let options = RabbitOptions {
        url: config.amqp.url.clone(),
        queue_type: config.amqp.queue_type,
        declare: config.amqp.declare,
        management_url: config.amqp.management_url.clone(),
        lanes: names,
        connection_name: worker_name(config),
        heartbeat: Duration::from_secs(config.amqp.heartbeat_secs.into()),
    };
    Ok(Arc::new(RabbitQueue::new(options)?))
}

/// The tool API that the configuration names; an error if its address or the key cannot be used.
pub fn open_tool_api(config: &Config) -> Result<SharedToolApi> {
    Ok(Arc::new(Composio::new(tool_api_options(config)?)?))
}

/// How to reach the tool API that the configuration names; an error if its address cannot be used.
pub fn tool_api_options(config: &Config) -> Result<composio::Options> {
    let composio = &config.composio;
    Ok(composio::Options {
        base_url: composio.base_url.parse().context("composio.base_url is not a URL")?,
        api_key: composio.api_key.clone(),
        api_key_file: config.api_key_file.clone(),
        api_path: composio.api_path.clone(),
        connect_timeout: Duration::from_millis(composio.connect_timeout_ms),
        max_response_bytes: composio.max_response_bytes,
        http_version: composio.http_version,
        max_calls: config
            .queues
            .values()
            .map(|lane| lane.concurrency as usize)
            .sum::<usize>()
            .min(MAX_POOLED_CALLS),
        user_agent: concat!("errand/", env!("CARGO_PKG_VERSION")).into(),
        clock: clock::system(),
    })
}
