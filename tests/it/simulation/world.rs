//! One world: processes that come and go on one database, apps that enqueue jobs, people who call jobs off,
//! mend what they are asked to mend and release what is held. Everything is drawn from the seed.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use errand::{
    admission::{Admission, Enqueued},
    app::App,
    config::Config,
    job::{HeldReason, JobId, JobSpec, Principal, Release, State, encode},
    queue::{Address, Message, Properties, Queue as _, embedded::EmbeddedQueue},
    services::Services,
    shutdown::Shutdown,
    store::{
        AttemptView, Decider, Event, Events as _, EventsAfter, EventsOf, History as _, HistoryEntry,
        HistoryFact, JobControl as _, JobFilter, JobView, SharedStore, StoreError, all_jobs,
    },
    supervisor::Supervisor,
};
use errand_testbed::factory::Envelope as _;
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    api::{Api, Line, Log, OWNERS, Patience, TOOLS},
    clock::{HostClock, Wrongness},
    rng::SeededRng,
    store::{AsyncCall, Faulty, GrantedClaims, StoreThread, StoreWeather},
    trace::Trace,
};

/// When the last fault has happened.
const CALM_AT: Duration = Duration::from_secs(300);

/// A world that is not at rest so long after the last fault never will be.
const NEVER: Duration = Duration::from_secs(3 * 3_600);

/// How long a world is watched after it came to rest.
const WATCHED: Duration = Duration::from_secs(120);

/// The longest that an orderly shutdown takes beyond its drain.
const BEYOND_DRAIN: Duration = Duration::from_secs(60);

/// People and watchers look at the jobs so often.
const LOOKS: Duration = Duration::from_secs(30);

/// Who calls jobs off and releases them.
const PERSON: &str = "a person";

/// One world, shared by everything in it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) start: Instant,
    pub(super) calm_at: Duration,
    pub(super) config: Config,
    pub(super) api: Api,
    pub(super) store_weather: StoreWeather,
    pub(super) store_dice: SeededRng,
    pub(super) trace: Mutex<Trace>,
    pub(super) claims: GrantedClaims,
    thread: StoreThread,
    rng: SeededRng,
    theme: Theme,
    /// The processes that take jobs at the moment, by slot.
    live: Mutex<BTreeMap<usize, Live>>,
    ended: Mutex<BTreeMap<JobId, State>>,
    broken: Mutex<Vec<String>>,
    capacity: usize,
}

/// One life of a process, from its start to its end.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) slot: usize,
    pub(super) name: String,
    /// It was killed: nothing that it still does has any effect.
    pub(super) dead: CancellationToken,
}

impl Life {
    fn new(slot: usize, name: String) -> Arc<Self> {
        Arc::new(Self { slot, name, dead: CancellationToken::new() })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }
}

/// What apps use of a process.
#[derive(Debug, Clone)]
struct Live {
    queue: Arc<EmbeddedQueue>,
    door: Arc<Admission>,
}

/// A job that an app wants.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) spec: Arc<JobSpec>,
    /// It names an account that it may not use.
    pub(super) is_robbery: bool,
    at: Duration,
    way: Way,
    cancelled_at: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Way {
    /// Through the door of a process.
    Admission,
    /// Through the command line, which is a process without a queue.
    CommandLine,
    /// As a message, which is published again at these times, and then until it has arrived.
    Message(Vec<Duration>),
}

/// A wish and what became of it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) wish: Wish,
    pub(super) job: Option<JobView>,
    pub(super) attempts: Vec<AttemptView>,
    pub(super) history: Vec<HistoryEntry>,
    pub(super) events: Vec<Event>,
}

/// Most worlds are a mixture of everything; some faults need others to come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Theme {
    Mixture,
    /// Calls are long, and one of two processes that live through everything does not reach the store for
    /// longer than a lease: its jobs are taken over while it still works on them.
    Partition,
}

/// What is fixed before a world begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) seed: u64,
    pub(super) patience: Patience,
    pub(super) config: &'a Config,
    pub(super) thread: &'a StoreThread,
}

impl World {
    pub(super) fn new(setting: Setting<'_>) -> Arc<Self> {
        let Setting { seed, patience, thread, .. } = setting;
        let rng = SeededRng::new(seed, "world");
        let theme = if rng.chance(0.2) { Theme::Partition } else { Theme::Mixture };
        let mut config = setting.config.clone();
        // Files are read and written at the pace of the machine, which no seed controls. What a shutdown cannot
        // write is left to the rescue here.
        config.worker.journal_dir = None;
        config.verify.enabled = rng.chance(0.9) || patience == Patience::Broken;
        for lane in config.queues.values_mut() {
            lane.concurrency = rng.pick(&[1, 2, 8]);
        }
        let store_dice = SeededRng::new(seed, "store");
        thread.sweep();
        thread.clock.restart(Wrongness::draw(&store_dice, CALM_AT));
        Arc::new(Self {
            start: Instant::now(),
            calm_at: CALM_AT,
            config,
            api: Api::new(seed, CALM_AT, patience, theme),
            store_weather: StoreWeather::draw(&store_dice, CALM_AT, theme),
            store_dice,
            trace: Mutex::default(),
            claims: GrantedClaims::default(),
            thread: thread.clone(),
            live: Mutex::default(),
            ended: Mutex::default(),
            broken: Mutex::default(),
            capacity: rng.pick(&[1, 10_000]),
            rng,
            theme,
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn is_calm(&self) -> bool {
        self.now() >= self.calm_at
    }

    pub(super) fn note(&self, who: &str, what: &str) {
        self.trace.lock().unwrap().note(self.now(), who, what, false);
    }

    /// Notes a call of the store. Polls that found nothing are not shown.
    pub(super) fn tell_store<T: fmt::Debug>(
        &self,
        caller: &Life,
        told: &str,
        answer: &Result<T, StoreError>,
        is_lost: bool,
    ) {
        let (what, quiet) = match answer {
            Ok(answer) => {
                let answer = format!("{answer:?}");
                let poll =
                    ["beat", "next_due_in", "schema", "known_success"].iter().any(|p| told.starts_with(p));
                let quiet = poll || matches!(&*answer, "[]" | "None" | "0");
                (format!("{told} -> {answer}{}", if is_lost { ", which is lost" } else { "" }), quiet)
            }
            Err(error) => (format!("{told} -> {error}"), false),
        };
        self.trace.lock().unwrap().note(self.now(), &caller.name, &what, quiet);
    }

    /// Makes a call of the real store, in no time.
    pub(super) fn apply<T: Send + 'static>(&self, call: impl AsyncCall<T>) -> Result<T, StoreError> {
        self.thread.clock.set(self.now());
        self.thread.run(call(self.thread.store.clone()))
    }

    pub(super) fn is_broken(&self, promise: String) {
        self.broken.lock().unwrap().push(promise);
    }

    /// Lives until it is at rest and was watched for a while. Returns what became of every wish, and which
    /// promises were broken meanwhile.
    pub(super) async fn run(self: Arc<Self>) -> (Vec<Told>, Vec<String>) {
        let wishes = self.wishes();
        let over = CancellationToken::new();
        let slots = if self.theme == Theme::Mixture && self.rng.chance(0.5) { 1 } else { 2 };
        let processes: Vec<_> =
            (0..slots).map(|slot| tokio::spawn(self.clone().inhabit(slot, over.clone()))).collect();
        let apps: Vec<_> = wishes.iter().map(|wish| tokio::spawn(self.clone().wish(wish.clone()))).collect();

        self.until(self.calm_at).await;
        let rests = timeout(NEVER, async {
            for app in apps {
                app.await.unwrap();
            }
            while !self.look(&wishes, true).await {
                sleep(LOOKS).await;
            }
        });
        if rests.await.is_err() {
            self.is_broken("the world never comes to rest".to_owned());
        }
        let watched_until = self.now() + WATCHED;
        while self.now() < watched_until {
            sleep(WATCHED / 2).await;
            self.look(&wishes, false).await;
        }
        over.cancel();
        for process in processes {
            process.await.unwrap();
        }
        let events = self.events();
        let told = wishes.into_iter().map(|wish| self.read(wish, &events)).collect();
        // The doors hold the world, and the world holds them.
        self.live.lock().unwrap().clear();
        (told, std::mem::take(&mut *self.broken.lock().unwrap()))
    }

    async fn until(&self, at: Duration) {
        sleep_until(self.start + at).await;
    }

    /// All that was recorded, read in pages.
    fn events(&self) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        loop {
            let after = all.last().map(|event| event.position);
            let page = self.apply(move |store| {
                Box::pin(async move { store.events(&Principal::Operator, EventsOf::All, after, 500).await })
            });
            match page.unwrap() {
                EventsAfter::Are { events, .. } if events.is_empty() => return all,
                EventsAfter::Are { events, .. } => all.extend(events),
                lost => panic!("nothing was removed, and there is {lost:?} behind {after:?}"),
            }
        }
    }

    fn read(&self, wish: Wish, events: &[Event]) -> Told {
        let id = wish.spec.id;
        let job = self
            .apply(move |store| Box::pin(async move { store.job(&Principal::Operator, id).await }))
            .unwrap();
        let attempts = self
            .apply(move |store| Box::pin(async move { store.attempts(&Principal::Operator, id).await }))
            .unwrap();
        let history = self
            .apply(move |store| Box::pin(async move { store.history(&Principal::Operator, id).await }))
            .unwrap();
        let events = events.iter().filter(|event| event.job == Some(id)).cloned().collect();
        Told { wish, job, attempts, history, events }
    }

    // -----------------------------------------------------------------------------------------
    // Processes.

    /// One process after the other in the same place, until the world is over.
    async fn inhabit(self: Arc<Self>, slot: usize, over: CancellationToken) {
        for n in 0.. {
            let life = Life::new(slot, format!("p{slot}.{n}"));
            let (app, live) = self.process(&life);
            self.live.lock().unwrap().insert(slot, live);
            let shutdown = Shutdown::default();
            self.note(&life.name, "starts");
            let (runtime, ends) = (app.runtime(), shutdown.clone());
            let supervisor = Supervisor::new(ends.stop.clone());
            let running = tokio::spawn(async move { runtime.run(ends, &supervisor).await.0 });
            // Some live through everything.
            let lasts = self.theme == Theme::Partition || self.rng.chance(0.2);
            let is_last = lasts || self.now() + Duration::from_secs(10) >= self.calm_at;
            if is_last {
                // Those in the second place are a help for a while, not more.
                let leaves = async {
                    if slot == 0 {
                        std::future::pending::<()>().await;
                    }
                    self.until(self.calm_at + LOOKS).await;
                };
                tokio::select! {
                    biased;
                    () = over.cancelled() => {}
                    () = leaves => {}
                }
            } else {
                let longest = Duration::from_secs(200).min(self.calm_at - self.now());
                sleep(self.rng.between(Duration::from_secs(1), longest)).await;
            }
            self.end(&life, &shutdown, running, is_last).await;
            if is_last {
                break;
            }
            sleep(self.rng.up_to(Duration::from_secs(40))).await;
        }
    }

    fn process(self: &Arc<Self>, life: &Arc<Life>) -> (App, Live) {
        let queue = Arc::new(EmbeddedQueue::new(self.config.queues.keys().cloned(), self.capacity));
        let api = Arc::new(Line { world: self.clone(), life: life.clone() });
        let wrongness = Wrongness::draw(&self.rng, self.calm_at);
        let clock = Arc::new(HostClock { start: self.start, wrongness });
        let services = Services::new(self.store_of(life), queue.clone(), api, clock);
        let app = App::of(services, self.config.clone());
        let door = Arc::new(app.admission());
        (app, Live { queue, door })
    }

    fn store_of(self: &Arc<Self>, life: &Arc<Life>) -> SharedStore {
        Arc::new(Faulty { world: self.clone(), life: life.clone() })
    }

    /// Kills the process, or has it stop in order.
    async fn end(
        &self,
        life: &Life,
        shutdown: &Shutdown,
        running: JoinHandle<anyhow::Result<errand::worker::Report>>,
        in_order: bool,
    ) {
        self.live.lock().unwrap().remove(&life.slot);
        let kills = !in_order && self.rng.chance(0.5);
        self.note(&life.name, if kills { "is killed" } else { "is asked to stop" });
        shutdown.stop.cancel();
        if kills {
            // What is left of it winds up; nothing of that is felt outside.
            life.dead.cancel();
            shutdown.abort.cancel();
            return;
        }
        if !in_order && self.rng.chance(0.3) {
            sleep(self.rng.up_to(Duration::from_secs(10))).await;
            self.note(&life.name, "is asked to stop at once");
            shutdown.abort.cancel();
        }
        let drain = Duration::from_secs(self.config.worker.drain_secs);
        match timeout(drain + BEYOND_DRAIN, running).await {
            Ok(Ok(Ok(report))) => self.note(&life.name, &format!("ended and left {:?}", report.left)),
            Ok(ended) => self.is_broken(format!("{} failed: {ended:?}", life.name)),
            Err(_) => self.is_broken(format!("{} did not stop in time", life.name)),
        }
    }

    // -----------------------------------------------------------------------------------------
    // Apps.

    fn wishes(&self) -> Vec<Wish> {
        let timeouts = match self.theme {
            Theme::Mixture => self.rng.pick(&[&[2_000, 60_000][..], &[60_000, 500_000]]),
            Theme::Partition => &[500_000],
        };
        let mut wishes: Vec<Wish> =
            (0..3 + self.rng.below(8)).map(|n| self.draw_wish(n as u128 + 1, timeouts)).collect();
        // A call that succeeds at once, by which the log can show that it knows our request IDs.
        let plain = json!({"user_id": "u-ann", "tool": "GAMMA_SEND", "arguments": {}});
        wishes.push(Wish {
            spec: spec(wishes.len() as u128 + 1, &plain),
            is_robbery: false,
            at: self.calm_at + Duration::from_secs(5),
            way: Way::CommandLine,
            cancelled_at: None,
        });
        wishes
    }

    fn draw_wish(&self, n: u128, timeouts: &[u64]) -> Wish {
        let rng = &self.rng;
        let latest = if self.theme == Theme::Partition { 0.3 } else { 0.7 };
        let at = rng.up_to(self.calm_at.mul_f64(latest));
        let shown = |at: Duration| self.thread.clock.at(at).to_string();
        let (field, owner) = rng.pick(&OWNERS);
        let (tool, toolkit, _) = rng.pick(&TOOLS);
        let mut job = json!({"tool": tool, "arguments": {"n": n as u64}});
        job[field] = json!(owner);
        let mut sometimes = |share: f64, name: &str, value: &dyn Fn() -> Value| {
            if rng.chance(share) {
                job[name] = value();
            }
        };
        sometimes(0.2, "effect", &|| rng.pick(&["safe", "idempotent", "once", "once"]).into());
        sometimes(0.4, "timeout_ms", &|| rng.pick(timeouts).into());
        let run_at = rng.chance(0.2).then(|| rng.up_to(self.calm_at * 2));
        sometimes(1.0, "run_at", &|| run_at.map_or(Value::Null, |at| shown(at).into()));
        sometimes(0.1, "max_attempts", &|| rng.pick(&[1, 2, 3]).into());
        sometimes(0.1, "max_age_ms", &|| 600_000.into());
        sometimes(0.2, "priority", &|| rng.pick(&[1, 9]).into());
        sometimes(0.2, "queue", &|| "bulk".into());
        // In good time, or already over when it is enqueued; never before `run_at`, which is refused.
        let over = run_at.unwrap_or(Duration::ZERO) + rng.between(Duration::from_secs(1), self.calm_at);
        sometimes(0.1, "expires_at", &|| shown(over).into());
        // The account of the job's owner, or of somebody else.
        let mut lasting = self.api.accounts.iter().filter(|a| a.toolkit == toolkit && a.until.is_none());
        let named = if rng.chance(0.15) { lasting.nth(rng.below(3)) } else { None };
        if let Some(account) = &named {
            job["connected_account_id"] = json!(account.id);
        }
        Wish {
            spec: spec(n, &job),
            is_robbery: named.is_some_and(|account| account.owner != owner),
            at,
            way: match rng.below(3) {
                0 => Way::Admission,
                1 => Way::CommandLine,
                _ => Way::Message((0..rng.below(4)).map(|_| rng.up_to(self.calm_at)).collect()),
            },
            cancelled_at: rng.chance(0.08).then(|| at + rng.up_to(Duration::from_secs(120))),
        }
    }

    /// An app enqueues a job and does not rest until it is told that errand has it.
    async fn wish(self: Arc<Self>, wish: Wish) {
        let id = wish.spec.id;
        self.until(wish.at).await;
        self.note("app", &format!("wants {id}, {:?} of {}", wish.spec.tool, wish.spec.owner.id()));
        let cancels = wish.cancelled_at.map(|at| tokio::spawn(self.clone().cancel(id, at)));
        match &wish.way {
            Way::Message(again) => {
                for at in again {
                    self.until(*at).await;
                    self.publish(&wish.spec).await;
                }
                self.until(self.calm_at).await;
                while self.look_at(id).is_none() {
                    self.publish(&wish.spec).await;
                    sleep(LOOKS).await;
                }
            }
            way => {
                let life = Life::new(usize::MAX, "cli".to_owned());
                let clock = Arc::new(HostClock { start: self.start, wrongness: Wrongness::default() });
                let rules = errand::job::Rules::default();
                let bare = Admission::new(self.store_of(&life), None, clock, rules, Duration::ZERO);
                let bare = Arc::new(bare);
                loop {
                    let live = self.some_live().filter(|_| matches!(way, Way::Admission));
                    let door = live.map_or_else(|| bare.clone(), |live| live.door);
                    // A process that is killed does not answer.
                    let batch = [wish.spec.clone()];
                    let answer = timeout(Duration::from_secs(40), door.enqueue(&batch)).await;
                    match answer {
                        Ok(Ok(answers)) => {
                            if !matches!(answers[..], [Enqueued::New { .. } | Enqueued::Duplicate(_)]) {
                                self.is_broken(format!("{id} was not taken: {answers:?}"));
                            }
                            break;
                        }
                        _ => sleep(Duration::from_secs(2)).await,
                    }
                }
            }
        }
        if let Some(cancels) = cancels {
            cancels.await.unwrap();
        }
    }

    /// Puts a message on the queue of a process, or of each, as a broker may that is not sure.
    async fn publish(&self, spec: &Arc<JobSpec>) {
        let message = Message {
            to: Address::Lane(spec.queue.clone()),
            body: encode(spec).into(),
            properties: Properties { message_id: Some(spec.id.to_string()), ..Properties::default() },
            priority: 0,
        };
        let mut live: Vec<Live> = self.live.lock().unwrap().values().cloned().collect();
        if self.rng.chance(0.5) {
            live.truncate(1);
        }
        for Live { queue, .. } in live {
            // A message that is lost with its process is published again in time.
            drop(queue.publish(vec![message.clone(); 1 + self.rng.below(2)]).await);
        }
    }

    fn some_live(&self) -> Option<Live> {
        let live = self.live.lock().unwrap();
        let all: Vec<&Live> = live.values().collect();
        (!all.is_empty()).then(|| self.rng.pick(&all).clone())
    }

    async fn cancel(self: Arc<Self>, id: JobId, at: Duration) {
        self.until(at).await;
        let store = self.store_of(&Life::new(usize::MAX, "cli".to_owned()));
        drop(store.cancel(&Principal::Operator, id, &Decider::at_command_line(PERSON)).await);
    }

    // -----------------------------------------------------------------------------------------
    // People.

    fn look_at(&self, id: JobId) -> Option<JobView> {
        self.apply(move |store| Box::pin(async move { store.job(&Principal::Operator, id).await })).unwrap()
    }

    /// Looks at all jobs; releases what is held, if somebody is there to do so. Says whether the world is at
    /// rest.
    async fn look(self: &Arc<Self>, wishes: &[Wish], releases: bool) -> bool {
        let all = JobFilter::default();
        let jobs = self
            .apply(move |store| {
                Box::pin(async move { all_jobs(&*store, &Principal::Operator, &all, 1_000).await })
            })
            .unwrap();
        let mut rests = jobs.len() == wishes.len() && self.api.under_way.load(Relaxed) == 0;
        for job in &jobs {
            self.watch(job);
            match job.held_reason {
                Some(reason) if !self.waits_for_good(job) => {
                    rests = false;
                    if releases {
                        self.release(job, reason).await;
                    }
                }
                Some(_) => {}
                None => rests &= job.state.is_final(),
            }
        }
        rests
    }

    /// A final state is not left again.
    fn watch(&self, job: &JobView) {
        let mut ended = self.ended.lock().unwrap();
        let first = *ended.entry(job.spec.id).or_insert(job.state);
        if first.is_final() && first != job.state {
            self.is_broken(format!("{} was {first} and is {}", job.spec.id, job.state));
        }
        ended.insert(job.spec.id, if first.is_final() { first } else { job.state });
    }

    /// Nobody will ever connect the account that it waits for.
    pub(super) fn waits_for_good(&self, job: &JobView) -> bool {
        let toolkit = TOOLS.iter().find(|(slug, ..)| *slug == job.spec.tool).map(|(_, toolkit, _)| *toolkit);
        let mut accounts = self.api.accounts.iter();
        job.held_reason == Some(HeldReason::Connection)
            && !accounts.any(|a| {
                a.owner == job.spec.owner.id() && Some(a.toolkit) == toolkit && a.is_usable(self.now())
            })
    }

    /// A person does what the job asks for.
    async fn release(self: &Arc<Self>, job: &JobView, reason: HeldReason) {
        let id = job.spec.id;
        let release = match reason {
            HeldReason::Connection | HeldReason::Credentials => Release::Retry,
            // errand still asks the log.
            HeldReason::UnknownOutcome if job.check_at.is_some() => return,
            // Who looks knows only when nothing can come any more.
            HeldReason::UnknownOutcome if self.api.under_way.load(Relaxed) > 0 => return,
            HeldReason::UnknownOutcome => {
                if self.config.verify.enabled && self.log_tells() && self.could_tell(job) {
                    self.is_broken(format!(
                        "{id} was left to a person, although the log could tell: {job:?}"
                    ));
                }
                if self.api.has_run(id) { Release::Succeeded } else { Release::Retry }
            }
            HeldReason::Unidentified | HeldReason::Unrecognized => return,
        };
        let store = self.store_of(&Life::new(usize::MAX, "cli".to_owned()));
        drop(store.release(&Principal::Operator, id, release, &Decider::at_command_line(PERSON)).await);
    }

    fn log_tells(&self) -> bool {
        let (log, mends) = self.api.weather.log;
        log == Log::Open || mends
    }

    /// Whether a log that works was enough to tell what became of a call when it was asked for the last time: the call
    /// has an entry, or the first that was sent when it had ended, and that succeeded by then, has one.
    fn could_tell(&self, job: &JobView) -> bool {
        if self.api.has_run(job.spec.id) {
            return true;
        }
        let (id, all) = (job.spec.id, JobFilter::default());
        let history = self
            .apply(move |store| Box::pin(async move { store.history(&Principal::Operator, id).await }))
            .unwrap();
        let all = self
            .apply(move |store| {
                Box::pin(async move { all_jobs(&*store, &Principal::Operator, &all, 1_000).await })
            })
            .unwrap();
        let Some(unknown_since) = job.unknown_since else { return false };
        let looks = history.iter().filter(|entry| matches!(entry.fact, HistoryFact::LookedUp { .. }));
        let Some(asked) = looks.map(|entry| entry.at).max() else { return false };
        let delay = SignedDuration::from_secs(self.config.verify.log_delay_secs.try_into().unwrap());
        let timeout = job.spec.timeout.unwrap_or(Duration::from_millis(self.config.composio.timeout_ms));
        let ended = unknown_since + delay / 2 + SignedDuration::try_from(timeout).unwrap();
        let later = all.iter().filter(|other| {
            let plain =
                other.state == State::Succeeded && other.attempt == 1 && other.unknown_since.is_none();
            plain && other.created_at > ended
        });
        let logged =
            |other: &JobView| other.finished_at.is_some_and(|finished_at| finished_at + delay < asked);
        // Those of one moment are looked for in any order.
        let later: Vec<&JobView> = later.collect();
        let first = later.iter().map(|other| other.created_at).min();
        let mut first = later.into_iter().filter(|other| Some(other.created_at) == first).peekable();
        first.peek().is_some() && first.all(logged)
    }
}

/// The n-th job of a world.
fn spec(n: u128, job: &Value) -> Arc<JobSpec> {
    crate::jobs::spec(&job.clone().named(&Uuid::from_u128(n).to_string()))
}
