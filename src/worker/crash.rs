//! Points on a job's way at which `errand-lab chaos` lets a worker crash, to see what is left behind. A crash ends the
//! process where it stands, as SIGKILL would: nothing is flushed, no destructor runs.

use std::{
    convert::Infallible,
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::string_enum::string_enum;

/// How long a call has been on its way when [`CrashPoint::DuringCall`] strikes.
const INTO_THE_CALL: Duration = Duration::from_millis(100);

string_enum! {
    /// Where to crash, in the order of a job's way.
    CrashPoint {
        /// A delivery is there, and nothing is written.
        BeforeClaim = "before-claim",
        /// The claim is committed, and the delivery is not acknowledged.
        BeforeAck = "before-ack",
        /// The job is claimed, and nothing is sent.
        AfterClaim = "after-claim",
        /// The call is sent, and not answered.
        DuringCall = "during-call",
        /// The call is answered, and nothing of it is written.
        AfterCall = "after-call",
        /// The outcome is committed.
        AfterFinish = "after-finish",
    }
}

/// Crash when a point is passed for the given time, counted from 1. Written `POINT:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPlan {
    pub point: CrashPoint,
    pub passage: u32,
}

impl fmt::Display for CrashPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point.as_str(), self.passage)
    }
}

impl FromStr for CrashPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(word, number)| {
            let passage = number.parse().ok().filter(|passage| *passage > 0)?;
            Some(Self { point: word.parse().ok()?, passage })
        });
        parsed.ok_or_else(|| {
            let points = CrashPoint::WORDS.join(", ");
            format!("write POINT:N, where N counts from 1 and POINT is one of {points}")
        })
    }
}

/// A plan with its count. Workers have none, except in `errand-lab chaos`.
#[derive(Debug, Default)]
pub(super) struct Crash {
    plan: Option<CrashPlan>,
    passed: AtomicU32,
}

impl Crash {
    pub(super) fn new(plan: Option<CrashPlan>) -> Self {
        Self { plan, passed: AtomicU32::new(0) }
    }

    /// Passes a point, and does not return if the crash is due.
    pub(super) fn pass(&self, point: CrashPoint) {
        if self.is_due(point) {
            std::process::abort();
        }
    }

    /// To be waited for beside a call. Never returns.
    pub(super) async fn during_call(&self) -> Infallible {
        if self.is_due(CrashPoint::DuringCall) {
            tokio::time::sleep(INTO_THE_CALL).await;
            std::process::abort();
        }
        std::future::pending().await
    }

    fn is_due(&self, point: CrashPoint) -> bool {
        self.plan.is_some_and(|plan| {
            plan.point == point && self.passed.fetch_add(1, Ordering::Relaxed) + 1 == plan.passage
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_written_as_they_are_read() {
        for point in CrashPoint::ALL.iter().copied() {
            let plan = CrashPlan { point, passage: 7 };
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        for wrong in ["", "after-call", "after-call:0", "after-call:x", "nowhere:1"] {
            assert!(wrong.parse::<CrashPlan>().unwrap_err().contains("before-claim"));
        }
    }

    #[test]
    fn only_the_planned_passage_of_the_planned_point_is_due() {
        let crash = Crash::new(Some(CrashPlan { point: CrashPoint::AfterCall, passage: 2 }));
        assert!(!crash.is_due(CrashPoint::BeforeClaim));
        assert!(!crash.is_due(CrashPoint::AfterCall));
        assert!(crash.is_due(CrashPoint::AfterCall));
        assert!(!crash.is_due(CrashPoint::AfterCall));
        assert!(!Crash::default().is_due(CrashPoint::AfterCall));
    }
}
