//! The states of a job. Which of them follow each other is said by [`super::Transition`].

use crate::string_enum::string_enum;

string_enum! {
    State {
        /// Due later.
        Scheduled = "scheduled",
        /// In the queue, or on the way to it.
        Available = "available",
        /// Claimed by a worker.
        Running = "running",
        /// Failed in a way that is worth another try; due again later.
        Retryable = "retryable",
        /// Parked until a person or a connection lets it go.
        Held = "held",
        /// Done, with a result. Final.
        Succeeded = "succeeded",
        /// Given up, with an error. Final.
        Failed = "failed",
        /// Called off before it ran. Final.
        Cancelled = "cancelled",
    }
}

impl State {
    /// Whether nothing but an operator's explicit retry leaves this state.
    pub fn is_final(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Scheduled | Self::Available | Self::Running | Self::Retryable | Self::Held => false,
        }
    }

    /// Whether waiting longer changes nothing by itself: the job is final, or held for a person or a connection.
    pub fn is_settled(self) -> bool {
        self.is_final() || self == Self::Held
    }
}

string_enum! {
    HeldReason or Unrecognized {
        /// A call that must happen at most once ended without an answer.
        UnknownOutcome = "unknown_outcome",
        /// The owner has to connect, or reconnect, an account.
        Connection = "connection",
        Credentials = "credentials",
        /// The message came without an ID and was redelivered, so it may have run before.
        Unidentified = "unidentified",
    }
}

impl HeldReason {
    /// Whether the call of a job that is held for this may have been made.
    pub fn may_have_run(self) -> bool {
        match self {
            Self::UnknownOutcome | Self::Unidentified | Self::Unrecognized => true,
            Self::Connection | Self::Credentials => false,
        }
    }
}

string_enum! {
    /// What an operator decides about a held job.
    Release {
        /// Make the call again.
        Retry = "retry",
        /// The call is known to have succeeded.
        Succeeded = "succeeded",
        /// The call is known to have failed, or is not wanted any more.
        Failed = "failed",
    }
}
