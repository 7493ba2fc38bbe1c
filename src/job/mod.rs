//! The vocabulary of jobs: pure types and rules, no I/O, no clock, no randomness.

mod binding;
mod callback_url;
mod ending;
mod envelope;
mod id;
mod look_up;
mod outcome;
mod owner;
mod principal;
mod publisher;
mod queue;
mod reply;
mod retry;
mod rules;
mod state;
mod transition;

pub use binding::{Binding, Pin, PinnedBy};
pub use callback_url::{BadUrl, CallbackUrl, MAX_URL_BYTES};
pub use ending::{AttemptEnd, Ending, NotReady, Stop};
pub use envelope::{
    Arrival, BYTE_ORDER_MARK, Digest, Edit, EnvelopeError, EnvelopeReason, FOREIGN_BYTES, Foreign, JobSpec,
    decode, encode, foreign, id_of, named_queue, names_compression,
};
pub use id::{BatchId, Fence, IdError, JobId, RequestId, WorkerId};
pub use look_up::{LookResult, LookUps, unknown_outcome};
pub use outcome::{Attempt, AttemptOutcome, Effect, ErrorKind, JobError, Started};
pub(crate) use outcome::{EXPIRED, TOO_OLD, clip};
pub use owner::{Owner, OwnerError, OwnerKind};
pub use principal::Principal;
pub use publisher::{OwnerPattern, PublisherRules};
pub use queue::{QueueName, QueueNameError, QueueType};
pub use reply::{Asked, RESERVED_PREFIX, ReplyKind, ReplyRules};
pub use retry::{Budget, RetryPolicy, Spending};
pub use rules::{Rules, Unfit, looks_like_email};
pub use state::{HeldReason, Release, State};
pub use transition::{IllegalMove, Transition};
