//! Ceilings that are not settings. Every one has a name here; settings live in `default.toml`.
//!
//! A limit is applied while data is read, never after, so no customer can make errand hold more.

use std::time::Duration;

/// Largest job envelope accepted, in bytes. RabbitMQ 4 takes 16 MiB; larger inputs belong in a file store.
pub const MAX_ENVELOPE_BYTES: usize = 1024 * 1024;

/// Longest owner ID, in bytes (the same limit as the index that holds it).
pub const MAX_OWNER_ID_BYTES: usize = 256;

/// Longest tool slug, in bytes. The tool API publishes slugs of at most 64 characters.
pub const MAX_TOOL_BYTES: usize = 128;

/// Longest queue name, in bytes; it becomes part of a routing key, which AMQP limits to 255.
pub const MAX_QUEUE_NAME_BYTES: usize = 64;

/// Longest of the short free strings of an envelope (`requested_by`, `version`, account IDs, keys), in bytes.
pub const MAX_SHORT_TEXT_BYTES: usize = 256;

/// The highest `priority` of a job, and of a message; higher runs earlier within its queue.
pub const MAX_PRIORITY: u8 = 9;

/// Most tags on one job.
pub const MAX_TAGS: usize = 32;

/// Largest attempt budget that a job may ask for.
pub const MAX_ATTEMPTS: u32 = 1_000;

/// Longest timeout of one attempt.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Longest time budget of a job, and the furthest a job may be scheduled ahead.
pub const MAX_AGE: Duration = Duration::from_secs(366 * 24 * 3600);

/// Most jobs in one claim write.
pub const CLAIM_BATCH: usize = 512;

/// The most bytes of envelopes and results in one write to the store, or in one page of what the relay reads from it; at
/// least one row is written or read, whatever its size. So a slow link and the memory of a worker see a bounded amount at
/// a time, however many customers' large results wait.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Most attempts in one finish write.
pub const FINISH_BATCH: usize = 512;

/// Longest error message kept with a job, in characters. Tool errors can quote whole documents.
pub const MAX_ERROR_CHARS: usize = 2_000;

/// Most jobs that one read of the command line or a person may list.
pub const MAX_LIST: usize = 10_000;

/// Most jobs that one read of a list looks at, or one step of a decision about many, whatever they match: neighbours in the
/// order of creation, which lie beside each other.
pub const MAX_LOOK: usize = 2_500;

/// The same among the jobs of one owner, or those that are held: each may be read from a place of its own.
pub const MAX_LOOK_SCATTERED: usize = 500;

/// Most entries of a job's history that are read: the newest.
pub const MAX_HISTORY: usize = 1_000;

/// Most valid access keys of one owner, or of the operator.
pub const MAX_KEYS: usize = 100;

/// Most actions of one owner, or of the operator, that are previewed or under way.
pub const MAX_OPEN_ACTIONS: usize = 100;

/// Most actions of one owner, or of the operator, that have ended and are kept: the newest.
pub const MAX_ENDED_ACTIONS: usize = 1_000;

/// Largest filter of an action as JSON, in bytes.
pub const MAX_FILTER_BYTES: usize = 16 * 1024;

/// The longest that an access key stays valid beside the one that takes its place.
pub const MAX_OVERLAP: Duration = Duration::from_secs(90 * 86_400);

/// Most batches of one owner that are not complete. The operator's are not counted.
pub const MAX_OPEN_BATCHES: usize = 1_000;

/// Most items that one request adds to a batch.
pub const MAX_CHUNK_ITEMS: usize = 10_000;

/// Most items of one batch.
pub const MAX_BATCH_ITEMS: u64 = 1_000_000;

/// Most parts of one batch. Each request that adds items makes one at least.
pub const MAX_BATCH_PARTS: u64 = 10_000;

/// Largest body of a request that adds items to a batch, in bytes.
pub const MAX_CHUNK_BYTES: usize = 16 * 1024 * 1024;

/// Most other IDs of a job that are kept: those under which it was sent again with its idempotency key.
pub const MAX_ALIASES: usize = 100;

/// Most pins of one owner that are set over HTTP, or of those for everybody.
pub const MAX_PINS: usize = 1_000;

/// Longest reason of a pause, in characters.
pub const MAX_REASON_CHARS: usize = 500;

/// Longest name of somebody who decides about a job, in characters.
pub const MAX_DECIDER_CHARS: usize = 128;

/// When a delivery of an event is given up that waits, since it was made or asked for again: its schedule is over by then, unless its
/// receiver takes too little.
pub const DELIVERIES_EXPIRE_AFTER: Duration = Duration::from_secs(4 * 24 * 3_600);
