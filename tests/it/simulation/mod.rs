//! The real code of the embedded mode on simulated time, among faults that are drawn from a seed.
//!
//! A world is one seed: one or two processes on one SQLite file, each with the in-process queue, the worker,
//! the relay, the rescue and the verification as [`errand::app`] wires them; a tool API with a ledger of what
//! really happened; apps that enqueue, people who cancel and release. For five simulated minutes processes are
//! killed and stopped, calls of the store fail, hang, or lose their answers, clocks are wrong, and the tool
//! API does whatever docs/guarantees.md says it may. Then the faults end, and what is promised must hold.
//!
//! Simulated are the clock, the tool API and the faults; everything else is the code that ships. A process is
//! killed by cutting it off: its calls are not answered any more and have no effect, so whatever its tasks
//! still do is not felt outside. A seed replays exactly, because everything runs on one thread, in the order
//! of simulated time, and every choice is drawn from the seed.

use std::{
    env, fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use errand::config::{self, Config, Sources};
use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use tempfile::TempDir;

use self::{
    api::Patience,
    store::StoreThread,
    world::{Setting, World},
};
use crate::harness::in_memory;

mod api;
mod check;
mod clock;
mod rng;
mod store;
mod trace;
mod world;

/// The settings of a simulated process, in the environment's names. Waits are long against the polls, because
/// each poll costs a call of the real store.
const SETTINGS: &[(&str, &str)] = &[
    ("DATABASE_URL", "sqlite:///simulated"),
    ("ERRAND__HTTP__LISTEN", ""),
    ("ERRAND__WORKER__LEASE_SECS", "65"),
    ("ERRAND__WORKER__HEARTBEAT_SECS", "20"),
    ("ERRAND__WORKER__DRAIN_SECS", "20"),
    ("ERRAND__RELAY__POLL_MS", "60000"),
    ("ERRAND__RELAY__UNCLAIMED_SECS", "60"),
    ("ERRAND__RESCUE__POLL_SECS", "40"),
    ("ERRAND__VERIFY__POLL_MS", "30000"),
    ("ERRAND__VERIFY__FIRST_MS", "5000"),
    ("ERRAND__VERIFY__MAX_MS", "60000"),
    ("ERRAND__VERIFY__LOG_DELAY_SECS", "300"),
    ("ERRAND__VERIFY__GIVE_UP_SECS", "900"),
    ("ERRAND__CONNECTIONS__POLL_MS", "30000"),
    ("ERRAND__RETRY__MAX_MS", "60000"),
    ("ERRAND__RETRY__MAX_ATTEMPTS", "5"),
    ("ERRAND__RETRY__MAX_RETRY_AFTER_SECS", "60"),
    ("ERRAND__RETRY__MAX_THROTTLED_SECS", "600"),
    ("ERRAND__COMPOSIO__TIMEOUT_MS", "30000"),
    ("ERRAND__TOOLKIT_VERSIONS__ALPHA", api::VERSION),
    ("ERRAND__TOOLKIT_VERSIONS__BETA", api::VERSION),
    ("ERRAND__TOOLKIT_VERSIONS__GAMMA", api::VERSION),
];

/// What all worlds of one test share.
struct Ground {
    directory: TempDir,
    config: Config,
}

impl Ground {
    fn prepare() -> Self {
        let env = SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = config::load(&Sources { file: None, env }).unwrap().config;
        // Memory is faster, and a world does not outlive its process.
        Self { directory: in_memory("errand-world-"), config }
    }

    fn store(&self) -> StoreThread {
        StoreThread::start(self.directory.path())
    }

    /// Lets one world live.
    fn simulate(&self, seed: u64, patience: Patience, thread: &StoreThread) -> Outcome {
        // The product's own chance: waits with jitter.
        fastrand::seed(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let outcome = runtime.block_on(async {
            let world = World::new(Setting { seed, patience, config: &self.config, thread });
            let (told, mut broken) = Arc::clone(&world).run().await;
            broken.extend(check::broken(&world, &told));
            let trace = std::mem::take(&mut *world.trace.lock().unwrap());
            Outcome {
                seed,
                broken,
                trace: trace.lines().to_vec(),
                hash: trace.hash(),
                simulated: world.now().as_secs(),
            }
        });
        drop(runtime);
        outcome
    }

    /// Lets the worlds of all these seeds live, on as many threads as there are cores, and returns those in
    /// which a promise was broken.
    fn simulate_all(&self, seeds: std::ops::Range<u64>, patience: Patience) -> Vec<Outcome> {
        // One test after the other, because each takes all cores.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let next = AtomicU64::new(seeds.start);
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for core in cores() {
                let (next, failures, seeds) = (&next, &failures, &seeds);
                thread::Builder::new()
                    .name("world".to_owned())
                    .spawn_scoped(scope, move || {
                        stay_on(&core);
                        let thread = self.store();
                        loop {
                            let seed = next.fetch_add(1, Relaxed);
                            if !seeds.contains(&seed) {
                                break;
                            }
                            let outcome = self.simulate(seed, patience, &thread);
                            if !outcome.broken.is_empty() {
                                failures.lock().unwrap().push(outcome);
                            }
                        }
                    })
                    .unwrap();
            }
        });
        failures.into_inner().unwrap()
    }
}

/// The cores that this process may use, each by itself.
fn cores() -> Vec<CpuSet> {
    let all = sched_getaffinity(None).unwrap();
    let alone = |core| {
        let mut set = CpuSet::new();
        set.set(core);
        set
    };
    (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).map(alone).collect()
}

/// Keeps this thread, and those that it will start, on one core. The threads of a world and of its store only
/// ever wait for each other, so on two cores they would wake each other from sleep with every call.
///
/// Simulated time does not pass while others have the core, so all other tests go first.
fn stay_on(core: &CpuSet) {
    sched_setaffinity(None, core).unwrap();
    setpriority_process(None, 15).unwrap();
}

/// What a world came to.
struct Outcome {
    seed: u64,
    broken: Vec<String>,
    trace: Vec<String>,
    hash: u64,
    simulated: u64,
}

impl Outcome {
    fn print(&self) {
        let Self { seed, broken, trace, hash, simulated } = self;
        println!("seed {seed}: {} events in {simulated} simulated seconds, hash {hash:016x}", trace.len());
        trace.iter().for_each(|line| println!("{line}"));
        broken.iter().for_each(|promise| println!("BROKEN: {promise}"));
        println!("replay: ERRAND_SIM_SEED={seed} cargo test --test it simulation::no_fault -- --nocapture");
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} must be a whole number")))
}

/// Seeds that every run of the tests looks at.
const SEEDS: u64 = 80;

#[test]
fn no_fault_breaks_a_promise() {
    let ground = Ground::prepare();
    if let (Some(seed), None) = (number("ERRAND_SIM_SEED"), number("ERRAND_SIM_SEEDS")) {
        let outcome = ground.simulate(seed, Patience::Promised, &ground.store());
        outcome.print();
        assert!(outcome.broken.is_empty(), "seed {seed} breaks promises");
        return;
    }
    let first = number("ERRAND_SIM_SEED").unwrap_or(1);
    let count = number("ERRAND_SIM_SEEDS").unwrap_or(SEEDS);
    let began = Instant::now();
    let failures = ground.simulate_all(first..first + count, Patience::Promised);
    println!("{count} seeds from {first} in {:.1} s", began.elapsed().as_secs_f64());
    if let Some(failure) = failures.first() {
        failure.print();
    }
    let seeds: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
    assert!(seeds.is_empty(), "{} of {count} seeds break promises: {seeds:?}", seeds.len());
}

#[test]
fn a_seed_replays_exactly() {
    let ground = Ground::prepare();
    // Other worlds were in here, which must make no difference.
    let used = ground.store();
    for seed in 1_000_001..=1_000_005 {
        let [first, again] =
            [&ground.store(), &used].map(|store| ground.simulate(seed, Patience::Promised, store));
        assert!(first.trace.len() > 20, "something happens");
        let differs = first.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.hash, again.hash, "seed {seed}");
    }
}

/// An unordered choice between two things that are ready is drawn from nothing that a seed controls.
#[test]
fn every_choice_in_the_code_that_is_simulated_has_an_order() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for folder in ["relay", "worker", "maintenance"] {
        files.extend(
            fs::read_dir(source.join(folder))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_file()),
        );
    }
    let mut found = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for choice in text.split("select! {").skip(1) {
            found += 1;
            assert!(
                choice.trim_start().starts_with("biased;"),
                "{}: {}",
                file.display(),
                &choice[..80.min(choice.len())]
            );
        }
    }
    assert!(found > 3, "the choices are found");
}

#[test]
fn a_tool_api_that_is_slower_than_promised_makes_errand_repeat_calls_and_is_found_out() {
    let ground = Ground::prepare();
    let twice = |failure: &Outcome| failure.broken.iter().any(|promise| promise.contains("was done twice"));
    let found = |first| ground.simulate_all(first..first + 10, Patience::Broken).iter().any(twice);
    assert!((1..200).step_by(10).any(found), "the check notices");
}
