//! A model of what happens to one job that counts, checked in every order of events: two workers, two
//! deliveries of the same message, a worker that dies or loses its lease, calls that arrive late or
//! never, a log that is asked, and somebody who calls the job off.
//!
//! Every change of the job's state goes through [`Transition`], the type that the stores execute, so
//! a move that the code forbids cannot be made here. What the model leaves out: several jobs (they
//! share nothing but lanes), time (what may happen after any wait may happen at once), and the batches.
//!
//! Assumed, as the documentation says: the log is asked whether a call never arrived only when no call
//! can arrive any more (`verify.log_delay_secs`), and a worker without a lease starts no call.

use std::{sync::Arc, time::Duration};

use errand::job::{Ending, ErrorKind, HeldReason, JobError, State, Transition};
use serde_json::value::RawValue;
use stateright::{Checker as _, Model, Property};

/// Messages of the same job that can be on the queue at once; the relay adds one when it publishes.
const MAX_MESSAGES: u8 = 2;

/// Claims of the job, which bounds how often a call that never arrived is made again.
const MAX_FENCE: u8 = 3;

/// The world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    job: Option<Job>,
    messages: u8,
    workers: [Worker; 2],
    /// Calls on the way, by the fence under which they were sent.
    on_the_way: Vec<u8>,
    /// Calls that ran, which is what the log knows, in order.
    ran: Vec<u8>,
    /// Workers that may still die or lose their lease.
    faults: u8,
    /// Whether somebody may still call the job off.
    cancels: u8,
    /// The first final state the job ever had.
    ended_as: Option<State>,
}

/// The job's row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Job {
    state: State,
    fence: u8,
    holder: Option<usize>,
    cancel_requested: bool,
    /// The log is to be asked.
    check: bool,
}

/// One worker process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Worker {
    /// It runs. A dead one never comes back; its successor has another ID.
    alive: bool,
    /// Its beat is young enough, so that nobody takes its jobs over.
    leased: bool,
    doing: Doing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// Holds the job under a fence and has sent nothing.
    Holds(u8),
    /// Has sent the call and waits.
    Waits(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Event {
    /// A worker takes a message, claims and acknowledges.
    Deliver(usize),
    /// A worker sends its call.
    Send(usize),
    /// A call reaches the tool API and has its effect.
    Arrive(u8),
    /// A call is lost on its way.
    Vanish(u8),
    /// A worker gets the answer of a call that ran, and finishes.
    Answer(usize),
    /// A worker stops waiting, and finishes with an unknown outcome.
    GiveUp(usize),
    /// A worker gives the job back before it sent anything.
    GiveBack(usize),
    /// A worker process dies.
    Die(usize),
    /// A worker lives, but its beats do not arrive.
    LoseLease(usize),
    /// Somebody takes over the job of a worker without a lease.
    Rescue,
    /// The log is asked, and tells.
    Verify,
    /// The relay puts the job on the queue.
    Publish,
    /// Somebody calls the job off.
    Cancel,
}

struct Protocol {
    /// Leaves out one rule, to show that the properties notice.
    without: Option<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// A call that was lost with its worker is looked up, not made again.
    Verification,
    /// The log says "never arrived" only when nothing can arrive any more.
    Settling,
    /// A worker without a lease starts no call.
    Lease,
}

fn error() -> JobError {
    JobError::new(ErrorKind::UnknownOutcome, "unknown")
}

fn succeed() -> Ending {
    let result: Arc<RawValue> = RawValue::from_string("{}".to_owned()).unwrap().into();
    Ending::Succeed { result }
}

fn retry() -> Ending {
    Ending::Retry { after: Duration::ZERO, error: error() }
}

fn verify() -> Ending {
    Ending::Verify { after: Duration::ZERO, error: error() }
}

fn give_back() -> Ending {
    Ending::Snooze { after: Duration::ZERO, error: None }
}

impl Protocol {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// What `finish` does with the report of a holder: apply it, apply it late, or fence it off.
    fn finish(job: &mut Job, fence: u8, ending: Ending) {
        if job.fence != fence {
            return;
        }
        let (on_time, late) = (Transition::End(ending.clone()), Transition::EndLate(ending.clone()));
        if let Ok(state) = on_time.apply(job.state) {
            let called_off = job.cancel_requested && matches!(state, State::Retryable | State::Held);
            job.state = if called_off { State::Cancelled } else { state };
        } else if let Ok(state) = late.apply(job.state) {
            job.state = state;
        } else {
            return;
        }
        job.holder = None;
        job.check = job.state == State::Held && matches!(ending, Ending::Verify { .. });
    }

    fn claim(world: &mut World, worker: usize) {
        world.messages -= 1;
        let job = world.job.get_or_insert(Job {
            state: State::Available,
            fence: 0,
            holder: None,
            cancel_requested: false,
            check: false,
        });
        // Any other state makes the message a duplicate, which is acknowledged and forgotten.
        if let Ok(state) = Transition::Claim.apply(job.state) {
            job.state = state;
            job.fence += 1;
            job.holder = Some(worker);
            world.workers[worker].doing = Doing::Holds(job.fence);
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let worker = Worker { alive: true, leased: true, doing: Doing::Nothing };
        vec![World {
            job: None,
            messages: 2,
            workers: [worker.clone(), worker],
            on_the_way: Vec::new(),
            ran: Vec::new(),
            faults: 1,
            cancels: 1,
            ended_as: None,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        for (n, worker) in world.workers.iter().enumerate().filter(|(_, worker)| worker.alive) {
            let may_start = worker.leased || !self.keeps(Rule::Lease);
            match worker.doing {
                Doing::Nothing if world.messages > 0 && worker.leased => events.push(Event::Deliver(n)),
                Doing::Holds(_) if may_start => events.extend([Event::Send(n), Event::GiveBack(n)]),
                Doing::Holds(_) => events.push(Event::GiveBack(n)),
                Doing::Waits(fence) => {
                    events.push(Event::GiveUp(n));
                    events.extend(world.ran.contains(&fence).then_some(Event::Answer(n)));
                }
                Doing::Nothing => {}
            }
            if world.faults > 0 {
                events.push(Event::Die(n));
                events.extend(worker.leased.then_some(Event::LoseLease(n)));
            }
        }
        events.extend(world.on_the_way.iter().flat_map(|call| [Event::Arrive(*call), Event::Vanish(*call)]));
        let Some(job) = &world.job else { return };
        let lost = job.holder.is_some_and(|holder| !world.workers[holder].leased);
        events.extend((job.state == State::Running && lost).then_some(Event::Rescue));
        let settled = world.on_the_way.is_empty() || !self.keeps(Rule::Settling);
        let told = world.ran.contains(&job.fence) || settled;
        events.extend((job.check && told).then_some(Event::Verify));
        let due = matches!(job.state, State::Retryable | State::Available);
        let room = world.messages < MAX_MESSAGES && job.fence < MAX_FENCE;
        events.extend((due && room).then_some(Event::Publish));
        events.extend((world.cancels > 0 && !job.state.is_final()).then_some(Event::Cancel));
    }

    fn next_state(&self, before: &World, event: Event) -> Option<World> {
        let mut world = before.clone();
        match event {
            Event::Deliver(n) => Self::claim(&mut world, n),
            Event::Send(n) => {
                let Doing::Holds(fence) = world.workers[n].doing else { return None };
                world.workers[n].doing = Doing::Waits(fence);
                world.on_the_way.push(fence);
            }
            Event::Arrive(call) | Event::Vanish(call) => {
                world.on_the_way.retain(|other| *other != call);
                if matches!(event, Event::Arrive(_)) {
                    world.ran.push(call);
                }
            }
            Event::Answer(n) | Event::GiveUp(n) | Event::GiveBack(n) => {
                let (Doing::Waits(fence) | Doing::Holds(fence)) = world.workers[n].doing else { return None };
                let ending = match event {
                    Event::Answer(_) => succeed(),
                    Event::GiveUp(_) => verify(),
                    _ => give_back(),
                };
                world.workers[n].doing = Doing::Nothing;
                Self::finish(world.job.as_mut()?, fence, ending);
            }
            Event::Die(n) => {
                world.faults -= 1;
                world.workers[n] = Worker { alive: false, leased: false, doing: Doing::Nothing };
            }
            Event::LoseLease(n) => {
                world.faults -= 1;
                world.workers[n].leased = false;
            }
            Event::Rescue => {
                let job = world.job.as_mut()?;
                let fence = job.fence;
                let ending = if self.keeps(Rule::Verification) { verify() } else { retry() };
                Self::finish(job, fence, ending);
            }
            Event::Verify => {
                let job = world.job.as_mut()?;
                let ending = if world.ran.contains(&job.fence) { succeed() } else { retry() };
                let fence = job.fence;
                Self::finish(job, fence, ending);
            }
            Event::Publish => {
                let job = world.job.as_mut()?;
                job.state = Transition::Publish.apply(job.state).ok()?;
                world.messages += 1;
            }
            Event::Cancel => {
                let job = world.job.as_mut()?;
                world.cancels -= 1;
                job.cancel_requested = job.state == State::Running;
                job.state = Transition::Cancel.apply(job.state).ok()?;
                job.check = false;
            }
        }
        if let Some(job) = &world.job
            && world.ended_as.is_none()
            && job.state.is_final()
        {
            world.ended_as = Some(job.state);
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the effect happens at most once", |_, world: &World| world.ran.len() <= 1),
            Property::always("a final state is left by nobody", |_, world: &World| {
                let now = world.job.as_ref().map(|job| job.state);
                world.ended_as.is_none() || world.ended_as == now
            }),
            Property::always("a job is never stuck", |model, world: &World| {
                let mut events = Vec::new();
                model.actions(world, &mut events);
                // The model ends where the bound of claims is reached, the real thing does not.
                let bounded = |job: &Job| job.fence == MAX_FENCE;
                let ended = |job: &Job| job.state.is_final() || bounded(job);
                events
                    .iter()
                    .any(|event| !matches!(event, Event::Cancel | Event::Die(_) | Event::LoseLease(_)))
                    || world.job.as_ref().map_or(world.messages == 0 || no_worker(world), ended)
                    || no_worker(world)
            }),
            Property::always("what succeeded has run", |_, world: &World| {
                world.ended_as != Some(State::Succeeded) || !world.ran.is_empty()
            }),
            Property::always("a held job says why", |_, world: &World| {
                world.job.as_ref().is_none_or(|job| (job.state == State::Held) <= job.check)
            }),
            Property::sometimes("a rescued call is found in the log", |_, world: &World| {
                world.faults == 0 && world.ended_as == Some(State::Succeeded) && !world.ran.is_empty()
            }),
            Property::sometimes(
                "a call that never arrived is made again and succeeds",
                |_, world: &World| world.ran == [2] && world.ended_as == Some(State::Succeeded),
            ),
        ]
    }
}

/// Whether nobody is left to take a message.
fn no_worker(world: &World) -> bool {
    world.workers.iter().all(|worker| !worker.alive || !worker.leased)
}

/// The properties that do not hold.
fn broken(without: Option<Rule>) -> Vec<&'static str> {
    let checker = Protocol { without }.checker().spawn_bfs().join();
    if without.is_none() {
        assert!(checker.unique_state_count() > 1_000, "the model explores: {}", checker.unique_state_count());
        checker.assert_properties();
    }
    let expectations = Protocol { without }.properties();
    let found = checker.discoveries();
    expectations
        .iter()
        .filter(|property| property.expectation == stateright::Expectation::Always)
        .filter(|property| found.contains_key(property.name))
        .map(|property| property.name)
        .collect()
}

#[test]
fn no_order_of_events_repeats_a_call_loses_a_job_or_leaves_a_final_state() {
    assert_eq!(broken(None), [""; 0]);
    // Parked jobs that the log cannot tell about have this reason; the model's log always tells.
    assert_eq!(verify().state(), State::Held);
    assert_eq!(HeldReason::UnknownOutcome.as_str(), "unknown_outcome");
}

#[test]
fn each_rule_is_needed() {
    for rule in [Rule::Verification, Rule::Settling, Rule::Lease] {
        let broken = broken(Some(rule));
        assert!(broken.contains(&"the effect happens at most once"), "without {rule:?}: {broken:?}");
    }
}
