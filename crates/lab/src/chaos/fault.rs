//! The kinds of faults.

use std::str::FromStr;

use errand::worker::CrashPoint;

use super::backend::Backend;

/// One kind of fault, with which rounds are played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing breaks: what the others are compared with.
    Calm,
    /// A worker crashes at a point of a job's way, several times.
    Crash(CrashPoint),
    /// Workers are killed at random.
    KillWorkers,
    /// A worker stands still for longer than its lease, and goes on as if nothing had happened.
    FreezeWorker,
    /// Workers are restarted in order, one after the other.
    RollingRestart,
    /// Workers are told twice to end.
    SecondSignal,
    /// Connections to the broker break.
    CutBroker,
    /// The broker is silent.
    StallBroker,
    /// The broker's queue is deleted, with the messages in it.
    DeleteQueue,
    /// The broker is killed and comes back.
    KillBroker,
    /// The broker stands still.
    FreezeBroker,
    /// Connections to the database break.
    CutDatabase,
    /// The database is silent.
    StallDatabase,
    /// One worker is cut off from the database for longer than its lease.
    Partition,
    /// The database is killed and comes back.
    KillDatabase,
    /// The database stands still.
    FreezeDatabase,
    /// Another process holds the write lock of the database file.
    LockDatabase,
    /// Calls fail in every way, before and after their effect.
    ApiFaults,
    /// The tool API cannot be reached.
    ApiGone,
    /// The tool API is silent.
    ApiStalled,
    /// The receiver of callbacks fails in every way.
    ReceiverFaults,
    /// Some jobs allow their calls a few milliseconds.
    ShortTimeouts,
    /// Results are large.
    LargeResults,
    /// Rows hold words of a newer version.
    UnknownWords,
    /// The broker throws messages away, as a policy of its operator tells it.
    LossyPolicy,
    /// The database grants fewer connections than workers want.
    FewConnections,
    /// The workers' files cannot grow, as on a full disk.
    FullDisk,
    /// The execution log is late.
    LogsLate,
    /// The execution log cannot be read for a while.
    LogsRefused,
    /// The execution log has lost everything.
    LogsLost,
    /// Calls fail, and several other faults are injected.
    Everything,
}

impl Fault {
    /// Every fault that a backend can have.
    pub(crate) fn all(backend: Backend) -> Vec<Self> {
        let everywhere = [
            Self::Calm,
            Self::KillWorkers,
            Self::FreezeWorker,
            Self::RollingRestart,
            Self::SecondSignal,
            Self::ApiFaults,
            Self::ApiGone,
            Self::ApiStalled,
            Self::ReceiverFaults,
            Self::ShortTimeouts,
            Self::LargeResults,
            Self::UnknownWords,
            Self::LogsLate,
            Self::LogsRefused,
            Self::LogsLost,
            Self::Everything,
        ];
        let of_services = [
            Self::CutBroker,
            Self::StallBroker,
            Self::DeleteQueue,
            Self::KillBroker,
            Self::FreezeBroker,
            Self::CutDatabase,
            Self::StallDatabase,
            Self::Partition,
            Self::KillDatabase,
            Self::FreezeDatabase,
            Self::LossyPolicy,
            Self::FewConnections,
        ];
        let own: &[Self] = match backend {
            Backend::Amqp => &of_services,
            Backend::Embedded => &[Self::LockDatabase, Self::FullDisk],
        };
        CrashPoint::ALL
            .iter()
            .copied()
            .map(Self::Crash)
            .chain(everywhere)
            .chain(own.iter().copied())
            .collect()
    }

    /// The name on the command line and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Crash(CrashPoint::BeforeClaim) => "crash-before-claim",
            Self::Crash(CrashPoint::BeforeAck) => "crash-before-ack",
            Self::Crash(CrashPoint::AfterClaim) => "crash-after-claim",
            Self::Crash(CrashPoint::DuringCall) => "crash-during-call",
            Self::Crash(CrashPoint::AfterCall) => "crash-after-call",
            Self::Crash(CrashPoint::AfterFinish) => "crash-after-finish",
            Self::KillWorkers => "kill-workers",
            Self::FreezeWorker => "freeze-worker",
            Self::RollingRestart => "rolling-restart",
            Self::SecondSignal => "second-signal",
            Self::CutBroker => "cut-broker",
            Self::StallBroker => "stall-broker",
            Self::DeleteQueue => "delete-queue",
            Self::KillBroker => "kill-broker",
            Self::FreezeBroker => "freeze-broker",
            Self::CutDatabase => "cut-database",
            Self::StallDatabase => "stall-database",
            Self::Partition => "partition",
            Self::KillDatabase => "kill-database",
            Self::FreezeDatabase => "freeze-database",
            Self::LockDatabase => "lock-database",
            Self::ApiFaults => "api-faults",
            Self::ApiGone => "api-gone",
            Self::ApiStalled => "api-stalled",
            Self::ReceiverFaults => "receiver-faults",
            Self::ShortTimeouts => "short-timeouts",
            Self::LargeResults => "large-results",
            Self::UnknownWords => "unknown-words",
            Self::LossyPolicy => "lossy-policy",
            Self::FewConnections => "few-connections",
            Self::FullDisk => "full-disk",
            Self::LogsLate => "logs-late",
            Self::LogsRefused => "logs-refused",
            Self::LogsLost => "logs-lost",
            Self::Everything => "everything",
        }
    }

    /// Whether the fault would be one of all rounds that run at the same time.
    pub(super) fn needs_the_services_alone(self) -> bool {
        matches!(self, Self::KillBroker | Self::FreezeBroker | Self::KillDatabase | Self::FreezeDatabase)
    }

    /// Whether a message that was not claimed may be gone for good, so that only the store keeps jobs.
    pub(super) fn loses_messages(self) -> bool {
        matches!(self, Self::DeleteQueue | Self::LossyPolicy)
    }

    /// What can be injected beside failing calls.
    pub(super) fn mixed(backend: Backend) -> Vec<Self> {
        let whole_rounds = [
            Self::Calm,
            Self::ApiFaults,
            Self::ShortTimeouts,
            Self::LargeResults,
            Self::LogsLost,
            Self::Everything,
        ];
        let fits = |fault: &Self| {
            !whole_rounds.contains(fault) && !fault.needs_the_services_alone() && !fault.loses_messages()
        };
        Self::all(backend).into_iter().filter(fits).collect()
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Backend::Amqp, Backend::Embedded].into_iter().flat_map(Self::all);
        all.clone().find(|fault| fault.name() == name).ok_or_else(|| {
            let mut names: Vec<_> = all.map(Self::name).collect();
            names.sort_unstable();
            names.dedup();
            format!("there is no such fault; choose from {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_own_name() {
        for backend in [Backend::Amqp, Backend::Embedded] {
            let faults = Fault::all(backend);
            let names: std::collections::HashSet<_> = faults.iter().map(|fault| fault.name()).collect();
            assert_eq!(names.len(), faults.len());
            for fault in faults {
                assert_eq!(fault.name().parse(), Ok(fault));
            }
        }
        assert!("rain".parse::<Fault>().unwrap_err().contains("kill-workers"));
    }
}
