//! Many jobs at a server: a batch that is opened, filled chunk by chunk and sealed.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use uuid::Uuid;

use super::{Args, BATCH_BYTES, Input, Line, Lines, Tally, tell_problems};
use crate::{
    cli::{
        exit::{self, Exit},
        output::{self, Format},
        server::{Call, Refused, Server},
    },
    job::{Arrival, BatchId, JobId, QueueName, decode, named_queue},
};

/// The most items of a chunk.
const CHUNK_ITEMS: usize = 1_000;

/// A batch that is filled.
struct Filling<'a> {
    server: &'a Server,
    batch: BatchId,
    /// How many items it has.
    next: u64,
    tally: Tally,
}

/// A line that is an item.
struct Item {
    number: u64,
    body: Vec<u8>,
}

#[derive(Deserialize)]
struct Opened {
    id: BatchId,
}

pub(super) async fn run(server: &Server, input: Input, args: &Args) -> anyhow::Result<Exit> {
    let batch = match args.batch {
        Some(batch) => batch,
        None => {
            let open = Call::post("/v1/batches").known_by(Uuid::now_v7().to_string());
            let Opened { id } = server.ask(open.json(&json!({"sealed": false}))?).await?;
            id
        }
    };
    let mut filling = Filling { server, batch, next: 0, tally: Tally::default() };
    let mut lines = Lines { input, number: 0 };
    let filled = filling.fill(&mut lines, &args.queue).await;
    let Filling { batch, next, tally, .. } = filling;
    report(batch, next, &tally, args.format)?;
    if let Err(error) = filled {
        output::note(format!(
            "the batch {batch} stays open; the same file with `--batch {batch}` goes on, without any job twice"
        ));
        return Err(error);
    }
    let seal = Call::post(format!("/v1/batches/{batch}/seal")).repeatable();
    server.send(seal).await.with_context(|| {
        format!("all items are in the batch {batch}, which may still be open; `errand batches seal {batch}` seals it")
    })?;
    Ok(Exit::negative_if(tally.refused + tally.invalid > 0))
}

impl Filling<'_> {
    async fn fill(&mut self, lines: &mut Lines<Input>, queue: &QueueName) -> anyhow::Result<()> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while let Some(Line { number, body, .. }) =
            lines.next().await.map_err(|error| exit::usage(format!("cannot read: {error}")))?
        {
            match body.and_then(|body| item(body, queue)) {
                Ok(body) => {
                    bytes += body.len() + 1;
                    chunk.push(Item { number, body });
                }
                Err(why) => self.tally.invalid(number, why),
            }
            if chunk.len() >= CHUNK_ITEMS || bytes >= BATCH_BYTES {
                bytes = 0;
                self.add(std::mem::take(&mut chunk)).await?;
            }
        }
        self.add(chunk).await
    }

    /// Adds a chunk, without the items that the server refuses.
    async fn add(&mut self, mut chunk: Vec<Item>) -> anyhow::Result<()> {
        while !chunk.is_empty() {
            let body = chunk.iter().flat_map(|item| item.body.iter().copied().chain([b'\n'])).collect();
            let add = Call::post(format!("/v1/batches/{}/items", self.batch)).repeatable();
            let add = add.with("from", Some(self.next)).body("application/x-ndjson", body);
            let refused = match self.server.send(add).await {
                Ok(_) => {
                    self.next += chunk.len() as u64;
                    return Ok(());
                }
                Err(error) => error.downcast::<Refused>()?,
            };
            let wrong = self.wrong(&refused, chunk.len());
            if wrong.is_empty() {
                return Err(refused.into());
            }
            let mut place = 0;
            chunk.retain(|item| {
                let why = wrong.get(&place);
                place += 1;
                if let Some(why) = why {
                    self.tally.refused(item.number, why.clone());
                }
                why.is_none()
            });
        }
        Ok(())
    }

    /// Which items of a chunk are refused, by their place in it, and why.
    fn wrong(&self, refused: &Refused, items: usize) -> BTreeMap<usize, String> {
        let mut wrong = BTreeMap::new();
        for problem in &refused.items {
            let index = problem.pointer.split('/').nth(2).and_then(|index| index.parse::<u64>().ok());
            let place = index.and_then(|index| usize::try_from(index.checked_sub(self.next)?).ok());
            if let Some(place) = place.filter(|place| *place < items) {
                wrong.entry(place).or_insert_with(|| problem.detail.clone());
            }
        }
        wrong
    }
}

/// A line as an item, which names its queue where that is not the usual one.
fn item(body: Vec<u8>, queue: &QueueName) -> Result<Vec<u8>, String> {
    let named = named_queue(&body);
    let arrival =
        Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(named.as_ref().unwrap_or(queue)) };
    decode(&body, &arrival).map_err(|error| error.message)?;
    // A line break within JSON is only space between its parts.
    let body: Vec<u8> = body.into_iter().map(|b| if b == b'\r' { b' ' } else { b }).collect();
    if named.is_some() || queue.as_str() == QueueName::DEFAULT {
        return Ok(body);
    }
    let mut fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    fields.insert("queue".to_owned(), to_raw_value(queue).map_err(|error| error.to_string())?);
    serde_json::to_vec(&fields).map_err(|error| error.to_string())
}

fn report(batch: BatchId, added: u64, tally: &Tally, format: Format) -> anyhow::Result<()> {
    let Tally { refused, invalid, problems, .. } = tally;
    if format.json {
        let problems: Vec<_> =
            problems.iter().map(|(line, reason)| json!({"line": line, "message": reason})).collect();
        return output::print_json(&json!({
            "batch": batch, "added": added, "refused": refused, "invalid": invalid, "problems": problems,
        }));
    }
    tell_problems(tally);
    output::print_line(format!("batch {batch}: {added} items, {refused} refused, {invalid} invalid"))?;
    Ok(())
}
