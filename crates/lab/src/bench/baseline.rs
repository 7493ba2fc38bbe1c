//! The baseline is a bare loop: consume, one batched insert, call, one batched update, acknowledge. It decides
//! nothing, retries nothing and measures nothing, so that it shows what the services and the client
//! libraries allow.
//!
//! It is made as fast as such a loop reasonably gets with the libraries that the worker uses, and with
//! the same bounds: as many jobs in flight, as many unsettled deliveries, as many jobs per statement.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use errand::{
    app,
    bounds::{CLAIM_BATCH, FINISH_BATCH},
    config::Config,
    failure::chain,
    job::QueueName,
    queue::{Consumer, Settler, Token},
    tool::composio::{HttpVersion, client_pool::ClientPool},
};
use reqwest::{
    Client,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use uuid::Uuid;

use super::{
    database::BenchStore,
    jobs::{TOOL, message, now_micros},
};
use crate::child::parent_is_gone;

/// The worker's own prefetch, which is the broker's sweet spot.
const MAX_PREFETCH: u32 = 500;

/// Jobs that wait in the channel that stands in for a broker.
const CHANNEL: usize = 10_000;

/// A call that was answered; its permit is free when the result is written.
struct Done {
    id: Uuid,
    result: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// Where jobs come from.
enum Source {
    Broker(Box<dyn Consumer>, Arc<dyn Settler>),
    Channel(mpsc::Receiver<(Uuid, Bytes)>),
}

/// Loops until the parent is gone. Without a broker it makes `feed` jobs itself.
pub(super) async fn run(config: Config, feed: usize) -> Result<()> {
    tokio::select! {
        ended = work(&config, feed) => ended,
        () = parent_is_gone() => Ok(()),
    }
}

async fn work(config: &Config, feed: usize) -> Result<()> {
    let lane = config.worker.queues.first().context("the baseline has no lane")?;
    let concurrency = config.queues.get(lane).context("the lane has no concurrency")?.concurrency;
    let store = BenchStore::open(&config.store.url, config.store.hot_connections)?;
    let clients = Arc::new(client_pool(config.composio.http_version, concurrency)?);
    let url: Arc<str> =
        format!("{}{}/tools/execute/{TOOL}", config.composio.base_url, config.composio.api_path).into();
    let (finished, results) = mpsc::unbounded_channel();
    tokio::spawn(finish(store.clone(), results));

    let permits = Arc::new(Semaphore::new(concurrency as usize));
    // The queue must live as long as its consumer.
    let queue = config.has_amqp().then(|| app::open_queue(config)).transpose()?;
    let mut source = match &queue {
        Some(queue) => {
            let prefetch = u16::try_from(concurrency.min(MAX_PREFETCH))?;
            let consumer = queue.consume(lane, prefetch).await?;
            let settler = consumer.settler();
            Source::Broker(consumer, settler)
        }
        None => Source::Channel(feed_channel(lane.clone(), feed)),
    };
    loop {
        let mut room = permits.clone().acquire_owned().await?;
        let more = permits.available_permits().min(CLAIM_BATCH - 1);
        if let Ok(rest) = permits.clone().try_acquire_many_owned(u32::try_from(more)?) {
            room.merge(rest);
        }
        let (ids, bodies, tokens) = source.next(room.num_permits()).await?;
        if ids.is_empty() {
            return std::future::pending().await;
        }
        store.insert_baseline(&ids, &bodies, now_micros()).await?;
        for (id, body) in ids.into_iter().zip(bodies) {
            let Some(permit) = room.split(1) else { break };
            let (clients, url, finished) = (clients.clone(), url.clone(), finished.clone());
            tokio::spawn(async move {
                match call(clients.checkout().client(), &url, body).await {
                    Ok(result) => drop(finished.send(Done { id, result, _permit: permit })),
                    Err(error) => tracing::error!(error = %chain(&*error), "a call of the baseline failed"),
                }
            });
        }
        if let Source::Broker(_, settler) = &source {
            settler.ack(tokens).await?;
        }
    }
}

impl Source {
    /// One job or more, up to `most`; none when there will be no more.
    async fn next(&mut self, most: usize) -> Result<(Vec<Uuid>, Vec<Bytes>, Vec<Token>)> {
        let (mut ids, mut bodies, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        match self {
            Self::Broker(consumer, _) => {
                for delivery in consumer.next(most).await? {
                    ids.push(delivery.properties.message_id.as_deref().unwrap_or_default().parse()?);
                    bodies.push(delivery.body);
                    tokens.push(delivery.token);
                }
            }
            Self::Channel(jobs) => {
                let mut batch = Vec::new();
                jobs.recv_many(&mut batch, most).await;
                (ids, bodies) = batch.into_iter().unzip();
            }
        }
        Ok((ids, bodies, tokens))
    }
}

fn feed_channel(lane: QueueName, feed: usize) -> mpsc::Receiver<(Uuid, Bytes)> {
    let (sender, jobs) = mpsc::channel(CHANNEL);
    tokio::spawn(async move {
        for n in 0..feed {
            let (id, message) = message(&lane, n);
            if sender.send((id.0, message.body)).await.is_err() {
                return;
            }
        }
    });
    jobs
}

/// What is finished while a write is in progress is written by the next one.
async fn finish(store: BenchStore, mut results: mpsc::UnboundedReceiver<Done>) {
    let mut batch = Vec::new();
    while results.recv_many(&mut batch, FINISH_BATCH).await > 0 {
        let ids: Vec<Uuid> = batch.iter().map(|done| done.id).collect();
        let bodies: Vec<Bytes> = batch.iter().map(|done| done.result.clone()).collect();
        if let Err(error) = store.finish_baseline(&ids, &bodies, now_micros()).await {
            tracing::error!(error = %chain(&error), "the baseline could not write results");
        }
        batch.clear();
    }
}

/// The worker's own connections.
fn client_pool(version: HttpVersion, concurrency: u32) -> Result<ClientPool> {
    let headers = HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static("application/json")),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ]);
    let build = || {
        Client::builder()
            .default_headers(headers.clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .tcp_nodelay(true)
            .tls_certs_only([])
    };
    Ok(ClientPool::new(version, concurrency as usize, build)?)
}

/// Sends the job as it came, which is as large as what the worker sends.
async fn call(client: &Client, url: &str, body: Bytes) -> Result<Bytes> {
    Ok(client.post(url).body(body).send().await?.error_for_status()?.bytes().await?)
}
