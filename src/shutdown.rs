//! Asking a process to stop, and how long it may take. The token is passed down; there is no global one.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The two ways to end: in order, and at once.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Stop taking new work, finish what runs, then end.
    pub stop: CancellationToken,
    /// End now, which is within about a second. Nothing is lost, but calls are interrupted.
    pub abort: CancellationToken,
}

/// Signals so soon after the first belong to it: package runners, `sudo` and wrappers pass on what their whole process
/// group has received already.
pub const ONE_STOP: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stop,
    Abort,
    /// It means nothing, or what was asked for already.
    Nothing,
}

impl Wish {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "ends in order; another one, more than a second later, ends it at once",
            Self::Abort => "ends at once",
            Self::Nothing => "ignored",
        }
    }
}

/// The signals that errand answers itself.
const SIGNALS: [(&str, SignalKind, Wish); 6] = [
    ("SIGTERM", SignalKind::terminate(), Wish::Stop),
    // Ctrl-C.
    ("SIGINT", SignalKind::interrupt(), Wish::Stop),
    // The terminal is gone.
    ("SIGHUP", SignalKind::hangup(), Wish::Stop),
    // Ctrl-\.
    ("SIGQUIT", SignalKind::quit(), Wish::Abort),
    // Without a handler these two would end the process as SIGKILL does.
    ("SIGUSR1", SignalKind::user_defined1(), Wish::Nothing),
    ("SIGUSR2", SignalKind::user_defined2(), Wish::Nothing),
];

/// Tells one stop from two, whichever signals it arrives as.
#[derive(Debug, Default)]
struct Wishes {
    first: Option<Instant>,
}

impl Wishes {
    /// What a signal asks for after those before it.
    fn hear(&mut self, wish: Wish, now: Instant) -> Wish {
        match (wish, self.first) {
            (Wish::Stop, None) => {
                self.first = Some(now);
                Wish::Stop
            }
            (Wish::Stop, Some(first)) if now.duration_since(first) < ONE_STOP => Wish::Nothing,
            (Wish::Stop, Some(_)) => Wish::Abort,
            (Wish::Abort | Wish::Nothing, _) => wish,
        }
    }
}

impl Shutdown {
    /// Cancels `stop` at the first SIGTERM, SIGINT or SIGHUP, and `abort` at another one that comes later than
    /// [`ONE_STOP`]. SIGQUIT cancels both. SIGUSR1 and SIGUSR2 are logged only. A SIGHUP that the process was started
    /// to ignore, as `nohup` does, stays ignored.
    ///
    /// # Errors
    /// The operating system refuses a handler.
    pub fn on_signals() -> std::io::Result<Self> {
        let (sender, mut heard) = mpsc::channel(SIGNALS.len());
        for (name, kind, wish) in SIGNALS {
            if kind == SignalKind::hangup() && ignores_hangups() {
                continue;
            }
            let (mut signal, sender) = (signal(kind)?, sender.clone());
            tokio::spawn(async move {
                while signal.recv().await.is_some() && sender.send((name, wish)).await.is_ok() {}
            });
        }
        let shutdown = Self::default();
        let Self { stop, abort } = shutdown.clone();
        tokio::spawn(async move {
            let mut wishes = Wishes::default();
            while let Some((name, wish)) = heard.recv().await {
                let wish = wishes.hear(wish, Instant::now());
                if wish != Wish::Nothing {
                    stop.cancel();
                }
                if wish == Wish::Abort {
                    abort.cancel();
                }
                tracing::info!(signal = name, answer = wish.as_str(), "received a signal");
            }
        });
        Ok(shutdown)
    }
}

/// Whether whoever started this process had it ignore SIGHUP, as far as the system says.
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1, which is SIGHUP.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// The least and the most of a budget that is kept back for what follows the running calls.
const RESERVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// When the parts of one shutdown end. All times follow from its begin and its budget, so they add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    /// Running calls are interrupted.
    pub drain_until: Instant,
    /// Nobody waits for the store any more.
    pub write_until: Instant,
    /// The process is gone.
    pub end: Instant,
}

impl Timeline {
    /// The times of a shutdown that begins `now`. A fifth of the budget, from one second to five, is kept back to
    /// interrupt, to write and to close; a budget of less than a second counts as one second.
    pub fn new(now: Instant, budget: Duration) -> Self {
        let (least, most) = RESERVE;
        let reserve = (budget / 5).clamp(least, most);
        let drain_until = now + budget.saturating_sub(reserve);
        Self { drain_until, write_until: drain_until + reserve / 2, end: drain_until + reserve }
    }

    /// The same shutdown as if its budget were used up `now`.
    #[must_use]
    pub fn cut_short(self, now: Instant) -> Self {
        let short = Self::new(now, Duration::ZERO);
        Self {
            drain_until: self.drain_until.min(short.drain_until),
            write_until: self.write_until.min(short.write_until),
            end: self.end.min(short.end),
        }
    }
}

/// The budget of a shutdown that has begun. Every wait of the shutdown goes through it.
#[derive(Debug)]
pub struct Countdown {
    times: Timeline,
    abort: CancellationToken,
    cut: bool,
}

impl Countdown {
    /// Begins to count; `abort` cuts the rest short.
    pub fn begin(budget: Duration, abort: CancellationToken) -> Self {
        Self { times: Timeline::new(Instant::now(), budget), abort, cut: false }
    }

    pub fn times(&self) -> Timeline {
        self.times
    }

    pub fn left(&self) -> Duration {
        self.times.end.saturating_duration_since(Instant::now())
    }

    /// Waits for `work` until the chosen time, which drops it (`None`). A second signal may bring the time nearer.
    pub async fn within<T>(
        &mut self,
        until: impl Fn(Timeline) -> Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.abort.cancelled(), if !self.cut => {
                    self.cut = true;
                    self.times = self.times.cut_short(Instant::now());
                }
                () = tokio::time::sleep_until(until(self.times)) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the budget is divided, it is used up and not exceeded.
        #[test]
        fn the_times_are_in_order_and_add_up_to_the_budget(budget_ms in 0u64..4_000_000, cut_ms in 0u64..4_000_000) {
            let (now, budget) = (Instant::now(), Duration::from_millis(budget_ms));
            let whole = Timeline::new(now, budget);
            prop_assert!(now <= whole.drain_until && whole.drain_until < whole.write_until && whole.write_until < whole.end);
            prop_assert_eq!(whole.end - now, budget.max(Duration::from_secs(1)));
            let reserve = whole.end - whole.drain_until;
            prop_assert!((Duration::from_secs(1)..=Duration::from_secs(5)).contains(&reserve));

            let at = now + Duration::from_millis(cut_ms);
            let cut = whole.cut_short(at);
            prop_assert!(cut.drain_until <= cut.write_until && cut.write_until <= cut.end);
            prop_assert!(cut.end <= whole.end && cut.end <= at + Duration::from_secs(1));
        }
    }

    #[test]
    fn signals_within_a_second_are_one_stop() {
        use Wish::{Abort, Nothing, Stop};
        let begun = Instant::now();
        for (signals, wished) in [
            (&[(Stop, 0), (Stop, 3), (Stop, 999)][..], Nothing),
            (&[(Stop, 0), (Stop, 1_000)], Abort),
            (&[(Stop, 0), (Stop, 3), (Stop, 5_000)], Abort),
            (&[(Stop, 0), (Abort, 3)], Abort),
            (&[(Abort, 0)], Abort),
            (&[(Nothing, 0), (Stop, 3_000)], Stop),
            (&[(Stop, 0), (Nothing, 3_000)], Nothing),
        ] {
            let mut wishes = Wishes::default();
            let at = |ms| begun + Duration::from_millis(ms);
            let answers = signals.iter().map(|(wish, ms)| wishes.hear(*wish, at(*ms)));
            assert_eq!(answers.last(), Some(wished), "{signals:?}");
        }
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_work_or_at_its_time() {
        let begun = Instant::now();
        let mut countdown = Countdown::begin(Duration::from_secs(2), CancellationToken::new());
        assert_eq!(countdown.within(|times| times.drain_until, async { 7 }).await, Some(7));
        assert_eq!(countdown.within(|times| times.drain_until, pending::<()>()).await, None);
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!(countdown.within(|times| times.end, pending::<()>()).await, None);
        assert!(begun.elapsed() >= Duration::from_secs(2));
        assert_eq!(countdown.left(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_second_signal_cuts_every_later_wait_short() {
        let abort = CancellationToken::new();
        let begun = Instant::now();
        let mut countdown = Countdown::begin(Duration::from_secs(3_600), abort.clone());
        let signal = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            abort.cancel();
        };
        let (drained, ()) =
            tokio::join!(countdown.within(|times| times.drain_until, pending::<()>()), signal);
        assert_eq!(drained, None);
        assert_eq!(countdown.within(|times| times.end, pending::<()>()).await, None);
        assert!(begun.elapsed() >= Duration::from_secs(1), "what is known is still written");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
