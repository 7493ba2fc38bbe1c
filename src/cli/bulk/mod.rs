//! `errand enqueue-bulk`: many jobs from JSON Lines, in bounded memory.
//!
//! Lines are decoded one by one, gathered into batches, and several batches are under way at once.
//! A line that is not a job is counted and does not stop the others.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use indicatif::ProgressBar;
use serde_json::json;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    task::JoinSet,
};

mod at_server;

use super::{
    enqueue::EMAIL,
    exit::{self, Exit},
    output::{self, Format},
    setup::Setup,
    value,
};
use crate::{
    admission::{Admission, Enqueued},
    backoff::RECONNECT,
    bounds::{CLAIM_BATCH, MAX_ENVELOPE_BYTES},
    job::{
        Arrival, BYTE_ORDER_MARK, BatchId, FOREIGN_BYTES, Foreign, JobId, JobSpec, QueueName, decode,
        foreign, looks_like_email, named_queue,
    },
    store::{StoreError, StoreErrorKind},
};

/// Batches under way at once: enough to keep the database busy while the broker confirms.
const IN_FLIGHT: usize = 4;

/// The most bytes of envelopes in one batch.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How often a batch is sent again while the database is away.
const RETRIES: u32 = 6;

/// How many lines that are not jobs are reported one by one.
const SHOWN_PROBLEMS: usize = 10;

const EXAMPLES: &str = r#"Examples:
  errand enqueue-bulk jobs.jsonl
  generate-jobs | errand enqueue-bulk - --queue bulk

Each line is one envelope, such as
  {"id":"0190b0a0-0000-7000-8000-000000000001","user_id":"u-alice","tool":"NOTION_SEARCH"}
Give every line an `id`: then the same file can be sent again after an interruption, and what
is known already counts as a duplicate. Blank lines are skipped. The exit code is 1 if any line
was refused or is not a job; the others are enqueued all the same.

At a server (--server) the jobs become a batch, whose ID is printed: `errand batches show ID`. After
an interruption there, the same file with --batch ID goes on, and no line becomes a second job."#;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A file of JSON Lines, or - for standard input.
    file: PathBuf,

    /// The queue of jobs whose line names none.
    #[arg(long, default_value = QueueName::DEFAULT)]
    queue: QueueName,

    /// Go on with this batch at a server, which an interrupted run with the same file has left open.
    #[arg(long, value_name = "ID")]
    batch: Option<BatchId>,

    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: Args, setup: &Setup) -> anyhow::Result<Exit> {
    if setup.server.is_none() {
        if args.batch.is_some() {
            return Err(exit::usage("--batch is for batches at a server (--server, or a context)"));
        }
        setup.check_lane(args.queue.as_str()).map_err(exit::usage)?;
    }
    let (input, size): (Input, Option<u64>) = if args.file.as_os_str() == "-" {
        (Box::new(BufReader::new(tokio::io::stdin())), None)
    } else {
        let cannot = |error| exit::usage(format!("cannot read {}: {error}", args.file.display()));
        let file = tokio::fs::File::open(&args.file).await.map_err(cannot)?;
        let meta = file.metadata().await.map_err(cannot)?;
        (Box::new(BufReader::new(file)), meta.is_file().then_some(meta.len()))
    };
    let input = plain(input).await?;
    if let Some(server) = &setup.server {
        return at_server::run(server, input, &args).await;
    }
    let open = setup.door()?;
    let mut intake = Intake {
        lines: Lines { input, number: 0 },
        setup,
        queue: args.queue,
        door: open.door.clone(),
        under_way: JoinSet::new(),
        tally: Tally::default(),
        progress: progress(size),
    };
    let sent = intake.run().await;
    let Intake { tally, progress, .. } = intake;
    progress.finish_and_clear();
    open.close().await;
    if tally.email && !setup.config().owners.refuse_email {
        output::note(EMAIL);
    }
    report(&tally, args.format)?;
    sent?;
    Ok(Exit::negative_if(tally.refused + tally.invalid > 0))
}

type Input = Box<dyn AsyncBufRead + Unpin>;

/// The input after a byte order mark, which tools of Windows write. Of another encoding no line could be read, so it is
/// named once.
async fn plain(mut input: Input) -> anyhow::Result<Input> {
    let cannot = |error| exit::usage(format!("cannot read: {error}"));
    let mut start = Vec::with_capacity(FOREIGN_BYTES);
    // One read may return less than there is.
    (&mut input).take(FOREIGN_BYTES as u64).read_to_end(&mut start).await.map_err(cannot)?;
    match foreign(&start) {
        None => {}
        Some(Foreign::Marked) => drop(start.drain(..BYTE_ORDER_MARK.len())),
        Some(other) => return Err(value::not_plain("the input", other)),
    }
    Ok(Box::new(std::io::Cursor::new(start).chain(input)))
}

/// The whole flow from lines to counts.
struct Intake<'a> {
    lines: Lines<Input>,
    setup: &'a Setup,
    queue: QueueName,
    door: Admission,
    under_way: JoinSet<Result<Answers, StoreError>>,
    tally: Tally,
    progress: ProgressBar,
}

impl Intake<'_> {
    async fn run(&mut self) -> anyhow::Result<()> {
        let (mut batch, mut bytes) = (Vec::with_capacity(CLAIM_BATCH), 0);
        while let Some(line) =
            self.lines.next().await.map_err(|error| exit::usage(format!("cannot read: {error}")))?
        {
            let Line { number, read, body } = line;
            self.progress.inc(read);
            match body.and_then(|body| Ok((self.spec(&body)?, body.len()))) {
                Ok((spec, size)) => {
                    self.tally.email |= looks_like_email(spec.owner.id());
                    batch.push((number, Arc::new(spec)));
                    bytes += size;
                }
                Err(reason) => self.tally.invalid(number, reason),
            }
            if batch.len() >= CLAIM_BATCH || bytes >= BATCH_BYTES {
                bytes = 0;
                self.send(std::mem::take(&mut batch)).await?;
            }
        }
        if !batch.is_empty() {
            self.send(batch).await?;
        }
        while self.collect_one().await? {}
        Ok(())
    }

    fn spec(&self, body: &[u8]) -> Result<JobSpec, String> {
        let named = named_queue(body);
        let queue = named.as_ref().unwrap_or(&self.queue);
        self.setup.check_lane(queue.as_str())?;
        let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(queue) };
        decode(body, &arrival).map_err(|error| error.message)
    }

    async fn send(&mut self, batch: Batch) -> anyhow::Result<()> {
        while self.under_way.len() >= IN_FLIGHT {
            self.collect_one().await?;
        }
        self.under_way.spawn(enqueue_all(self.door.clone(), batch));
        Ok(())
    }

    /// Waits for one batch; `false` when none is under way.
    async fn collect_one(&mut self) -> anyhow::Result<bool> {
        let Some(answers) = self.under_way.join_next().await else { return Ok(false) };
        for (number, answer) in answers?? {
            match answer {
                Ok(Enqueued::New { .. }) => self.tally.new += 1,
                Ok(Enqueued::Duplicate(_)) => self.tally.duplicate += 1,
                Ok(Enqueued::Refused(unfit)) => self.tally.refused(number, unfit.error.message().to_owned()),
                Ok(Enqueued::Conflict(conflict)) => {
                    self.tally.refused(number, conflict.message());
                }
                Err(unfit) => self.tally.refused(number, unfit),
            }
        }
        self.progress.set_message(format!("{} new", self.tally.new));
        Ok(true)
    }
}

type Batch = Vec<(u64, Arc<JobSpec>)>;

/// What became of the lines of a batch, or why the database refuses one for what it contains.
type Answers = Vec<(u64, Result<Enqueued, String>)>;

async fn enqueue_all(door: Admission, batch: Batch) -> Result<Answers, StoreError> {
    let (mut todo, mut answers) = (vec![batch], Vec::new());
    while let Some(mut batch) = todo.pop() {
        match enqueue(&door, &batch).await {
            Ok(done) => {
                let numbers = batch.iter().map(|(number, _)| *number);
                answers.extend(numbers.zip(done.into_iter().map(Ok)));
            }
            // One job spoils the batch: halve it until that job is alone.
            Err(error) if error.kind() == StoreErrorKind::Data => match batch.as_slice() {
                [(number, _)] => answers.push((*number, Err(error.to_string()))),
                _ => {
                    todo.push(batch.split_off(batch.len() / 2));
                    todo.push(batch);
                }
            },
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}

/// Enqueues a batch, also while the database is away for a moment; the store gives the answers that were lost.
async fn enqueue(door: &Admission, batch: &Batch) -> Result<Vec<Enqueued>, StoreError> {
    let specs: Vec<_> = batch.iter().map(|(_, spec)| spec.clone()).collect();
    let mut step = 0;
    loop {
        match door.enqueue(&specs).await {
            Err(error) if error.kind().passes() && step < RETRIES => {
                step += 1;
                tokio::time::sleep(RECONNECT.wait(step, fastrand::f64()).min(Duration::from_secs(5))).await;
            }
            other => return other,
        }
    }
}

struct Line {
    /// Counts from 1.
    number: u64,
    /// Bytes that were read for it.
    read: u64,
    /// The line, or why it is too long to be kept.
    body: Result<Vec<u8>, String>,
}

/// Reads lines of bounded length; blank ones are skipped.
struct Lines<R> {
    input: R,
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    async fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let (mut body, mut read, mut ended) = (Vec::new(), 0, false);
            while !ended {
                let chunk = self.input.fill_buf().await?;
                if chunk.is_empty() {
                    break;
                }
                let end = chunk.iter().position(|byte| *byte == b'\n');
                let taken = end.map_or(chunk.len(), |at| at + 1);
                // One byte more than the limit is kept, so that the decoder sees that it is too long.
                let room = (MAX_ENVELOPE_BYTES + 1).saturating_sub(body.len());
                body.extend_from_slice(&chunk[..end.unwrap_or(taken).min(room)]);
                ended = end.is_some();
                self.input.consume(taken);
                read += taken as u64;
            }
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if body.trim_ascii().is_empty() {
                continue;
            }
            let body = if body.len() > MAX_ENVELOPE_BYTES {
                Err(format!("the line has {read} bytes; send at most {MAX_ENVELOPE_BYTES}"))
            } else {
                Ok(body)
            };
            return Ok(Some(Line { number: self.number, read, body }));
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    new: u64,
    duplicate: u64,
    /// Jobs that may not run, or whose name is taken.
    refused: u64,
    /// Lines that are not jobs.
    invalid: u64,
    /// Whether an owner's ID looks like an e-mail address.
    email: bool,
    /// The first problems by line; batches end in any order.
    problems: BTreeMap<u64, String>,
}

impl Tally {
    fn refused(&mut self, number: u64, reason: String) {
        self.refused += 1;
        self.problem(number, reason);
    }

    fn invalid(&mut self, number: u64, reason: String) {
        self.invalid += 1;
        self.problem(number, reason);
    }

    fn problem(&mut self, number: u64, reason: String) {
        self.problems.insert(number, reason);
        if self.problems.len() > SHOWN_PROBLEMS {
            self.problems.pop_last();
        }
    }
}

fn report(tally: &Tally, format: Format) -> anyhow::Result<()> {
    let Tally { new, duplicate, refused, invalid, problems, email: _ } = tally;
    if format.json {
        let problems: Vec<_> =
            problems.iter().map(|(line, reason)| json!({"line": line, "message": reason})).collect();
        return output::print_json(&json!({
            "new": new, "duplicate": duplicate, "refused": refused, "invalid": invalid, "problems": problems,
        }));
    }
    tell_problems(tally);
    output::print_line(format!("{new} new, {duplicate} duplicate, {refused} refused, {invalid} invalid"))?;
    Ok(())
}

/// Tells the first lines that were not enqueued, and how many there are besides.
fn tell_problems(Tally { refused, invalid, problems, .. }: &Tally) {
    for (line, reason) in problems {
        output::note(format_args!("line {line}: {}", output::clean(reason)));
    }
    let hidden = (refused + invalid).saturating_sub(problems.len() as u64);
    if hidden > 0 {
        output::note(format_args!("and {hidden} more"));
    }
}

/// A bar on standard error for a file, a spinner for a stream; neither where nobody looks.
fn progress(size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {percent:>3} %  {msg}  {elapsed}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}  {msg}  {elapsed}"),
    };
    output::styled(bar, template)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8]) -> Vec<(u64, Result<usize, ()>)> {
        let mut lines = Lines { input: BufReader::with_capacity(7, input), number: 0 };
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push((line.number, line.body.map(|body| body.len()).map_err(drop)));
        }
        all
    }

    #[tokio::test]
    async fn blank_lines_count_as_lines_and_a_last_newline_is_optional() {
        assert_eq!(lines(b"{\"a\":1}\n\n  \r\n{}").await, [(1, Ok(7)), (4, Ok(2))]);
        assert_eq!(lines(b"").await, []);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_not_kept_and_does_not_stop_the_next() {
        let mut input = vec![b'x'; MAX_ENVELOPE_BYTES + 100];
        input.extend_from_slice(b"\n{}\n");
        assert_eq!(lines(&input).await, [(1, Err(())), (2, Ok(2))]);
    }

    #[test]
    fn the_first_problems_are_kept_whatever_order_they_come_in() {
        let mut tally = Tally::default();
        for number in (1..=20).rev() {
            tally.invalid(number, String::new());
        }
        assert_eq!(tally.problems.into_keys().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
        assert_eq!(tally.invalid, 20);
    }
}
