//! A job that is published at RabbitMQ and answered there.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties, types::FieldTable};
use serde_json::Value;
use tokio::time::timeout;

/// Publishes a job and waits for what became of it: what its reply brings back of ours, and the reply.
pub(crate) async fn run(url: &str, job: &Value) -> anyhow::Result<(String, Value)> {
    // While the broker has an alarm it answers nothing, and lapin waits.
    let patience = timeout(Duration::from_secs(60), publish(url, job));
    patience.await.context("no reply within a minute: publish the same again, or read the job over HTTP")?
}

async fn publish(url: &str, job: &Value) -> anyhow::Result<(String, Value)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?.name().clone();
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = channel.basic_consume(queue.clone(), "".into(), no_ack, FieldTable::default()).await?;

    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_reply_to(queue)
        .with_correlation_id("order-17".into());
    let (body, mandatory) = (job.to_string(), BasicPublishOptions { mandatory: true, ..Default::default() });
    let sent =
        channel.basic_publish("errand".into(), "default".into(), mandatory, body.as_bytes(), properties);
    // A job that no queue takes is confirmed as well, and comes back with that.
    let confirm = sent.await?.await?;
    ensure!(matches!(confirm, Confirmation::Ack(None)), "the broker did not take the job: {confirm:?}");

    loop {
        let reply = replies.next().await.context("the broker ended the queue of replies")??;
        let order = reply.properties.correlation_id().as_ref().map(ToString::to_string);
        let reply: Value = serde_json::from_slice(&reply.data)?;
        // After `held` comes `final`.
        if reply["reply"] != "held" {
            connection.close(200, "done".into()).await?;
            return Ok((order.unwrap_or_default(), reply));
        }
    }
}
