//! The vocabulary of jobs: pure types and rules, no I/O, no clock, no randomness.

mod binding;
mod envelope;
mod id;
mod outcome;
mod owner;
mod queue;
mod retry;
mod state;

pub use binding::{Binding, PinnedBy};
pub use envelope::{
    Arrival, Digest, EnvelopeError, EnvelopeReason, JobSpec, OwnerPolicy, QueueName, decode, encode,
};
pub use id::{Fence, JobId, RequestId, WorkerId};
pub use outcome::{Attempt, AttemptOutcome, Effect, ErrorKind, JobError};
pub use owner::{Owner, OwnerError, OwnerKind};
pub use queue::QueueType;
pub use retry::{Budget, RetryPolicy};
pub use state::{Ending, HeldReason, IllegalMove, Release, State, Transition};
