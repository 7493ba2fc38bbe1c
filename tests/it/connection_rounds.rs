//! Rounds in which the tool API is asked which connections there are. What counts is requests, never time.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use errand::{
    backoff::Intervals,
    clock,
    job::{ErrorKind, JobId, State, Stop},
    maintenance::connections::{Connections, Options},
    queue::embedded::EmbeddedQueue,
    services::Services,
    store::Claim,
};
use errand_sandbox::{DEFAULT_WORLD, Options as SandboxOptions, Running, Sandbox, World};
use errand_testbed::scripted_api::{Answer, Request, ScriptedApi};
use serde_json::{Value, json};

use crate::{
    jobs::claim,
    store_contract::{TestStore, error, job},
    support::http,
    tool_api::client,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// Whatever was asked about is not asked about again within a test.
const OPTIONS: Options = Options {
    enabled: true,
    poll: HOUR,
    batch: 5,
    intervals: Intervals { initial: HOUR, max: HOUR, multiplier: 1.0, jitter: 0.0 },
};

/// Held jobs and the API that is asked about them.
struct Bench {
    t: TestStore,
    api: ScriptedApi,
    connections: Connections,
}

impl Bench {
    async fn new(api: ScriptedApi, batch: usize) -> Self {
        let t = TestStore::sqlite().await;
        let queue = Arc::new(EmbeddedQueue::new([], 1));
        let services = Services::new(t.store.clone(), queue, Arc::new(client(&api)), clock::system());
        let connections = Connections::new(&services, Options { batch, ..OPTIONS });
        Self { t, api, connections }
    }

    /// An API that answers a look-up for these owners, in one text, as a function says.
    async fn listing(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::new(ScriptedApi::responding(move |request| answer(&asked(request))).await, 5).await
    }

    /// Holds a job of each of these, whose connections are due in this order.
    async fn hold(&self, jobs: impl IntoIterator<Item = Value>, toolkit: &str) -> Vec<JobId> {
        let stop = Stop::Connect { toolkit: toolkit.into(), error: error(ErrorKind::NeedsConnection) };
        let parked: Vec<Claim> = jobs
            .into_iter()
            .map(|fields| Claim { stop: Some(stop.clone()), ..claim(&job(fields)) })
            .collect();
        for page in parked.chunks(500) {
            self.t.store.claim(self.t.worker, page).await.unwrap();
        }
        self.make_due().await;
        parked.iter().map(|claim| claim.spec.id).collect()
    }

    async fn make_due(&self) {
        self.t.execute("update awaited set look_at = id").await;
    }

    /// What was asked in one round.
    async fn round(&self) -> Vec<String> {
        let requests = self.connections.run_once().await.unwrap();
        let asked: Vec<String> = self.api.take_seen().iter().map(asked).collect();
        assert_eq!(requests, asked.len(), "all requests count");
        asked
    }

    async fn states(&self, jobs: &[JobId]) -> Vec<State> {
        let mut states = Vec::new();
        for id in jobs {
            states.push(self.t.state(*id).await);
        }
        states
    }

    async fn asked_about(&self) -> i64 {
        self.t.count("select count(*) from awaited where lookups > 0").await
    }
}

fn owner(id: impl Into<String>) -> Value {
    json!({ "user_id": id.into() })
}

/// The owners, joined by commas, or the account that a request is about.
fn asked(request: &Request) -> String {
    let target = request.line().strip_prefix("GET ").unwrap();
    let url = url::Url::parse(&format!("http://api{target}")).unwrap();
    let owners = url.query_pairs().find(|(name, _)| name == "user_ids");
    owners.map_or_else(
        || url.path_segments().unwrap().next_back().unwrap().to_owned(),
        |(_, ids)| ids.into_owned(),
    )
}

fn account(id: &str, owner: Option<&str>) -> Value {
    json!({"id": id, "user_id": owner, "toolkit": {"slug": "github"}, "status": "ACTIVE", "is_disabled": false,
           "created_at": "2026-01-01T00:00:00Z"})
}

fn list(accounts: &[Value]) -> Answer {
    Answer::new("200 OK", json!({"items": accounts, "next_cursor": null}).to_string())
}

async fn sandbox() -> Running {
    let sandbox = Sandbox::new(World::from_toml(DEFAULT_WORLD).unwrap(), SandboxOptions::default());
    sandbox.bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap()
}

/// Connects an account, as a person would on the hosted page.
async fn connect(sandbox: &Running, owner: &str) {
    let url = format!("{}/api/v3/connected_accounts/link", sandbox.base_url());
    let body = json!({"auth_config_id": "ac_1", "user_id": owner});
    let link = http::client().post(url).header("x-api-key", "ak_test_good").json(&body);
    let link: Value = link.send().await.unwrap().json().await.unwrap();
    let page = http::client().get(link["redirect_url"].as_str().unwrap()).send().await.unwrap();
    assert!(page.status().is_success());
}

#[tokio::test]
async fn two_hundred_owners_cost_ten_requests_and_each_that_connects_goes_on() {
    let sandbox = sandbox().await;
    let bench = Bench::new(ScriptedApi::in_front_of(&sandbox.base_url()).await, 5).await;
    let jobs = bench.hold((0..200).map(|n| owner(format!("new-{n}"))), "github").await;
    for round in 1..=2 {
        assert_eq!(bench.round().await.len(), 5);
        assert_eq!(bench.asked_about().await, 100 * round);
    }
    assert!(bench.round().await.is_empty(), "nothing is due");
    assert!(bench.states(&jobs).await.iter().all(|state| *state == State::Held));

    let connected = [0, 57, 199];
    for n in connected {
        connect(&sandbox, &format!("new-{n}")).await;
    }
    bench.make_due().await;
    assert_eq!(bench.round().await.len() + bench.round().await.len(), 10);
    for (n, state) in bench.states(&jobs).await.into_iter().enumerate() {
        assert_eq!(state, if connected.contains(&n) { State::Available } else { State::Held }, "new-{n}");
    }
}

#[tokio::test]
async fn an_owner_who_connects_goes_on_soon_although_thousands_wait() {
    let bench = Bench::listing(|asked| {
        if asked.starts_with("ca_") {
            let status = if asked == "ca_late" { "ACTIVE" } else { "EXPIRED" };
            let account =
                json!({"id": asked, "user_id": "u", "toolkit": {"slug": "github"}, "status": status});
            return Answer::new("200 OK", account.to_string());
        }
        let late = asked.split(',').any(|owner| owner == "late");
        list(&if late { vec![account("ca_1", Some("late"))] } else { Vec::new() })
    })
    .await;
    let naming = |account: String| json!({"user_id": "u", "connected_account_id": account});
    bench.hold((0..3_000).map(|n| owner(format!("nobody-{n}"))), "github").await;
    let alone = bench.hold([naming("ca_late".into())], "github").await;
    assert_eq!(bench.round().await.len(), 5);
    assert_eq!(bench.states(&alone).await, [State::Available], "those who are asked about together");

    bench.hold((0..500).map(|n| naming(format!("ca_{n}"))), "github").await;
    let late = bench.hold([owner("late")], "github").await;
    let mut requests = 0;
    while bench.states(&late).await != [State::Available] {
        requests += bench.round().await.len();
        assert!(requests <= 2 * (3_000 / 20) + 5, "{requests}");
    }
}

#[tokio::test]
async fn nobody_gets_the_account_of_another_from_an_answer_about_several() {
    // The API may list whom it was not asked about.
    let bench = Bench::listing(|_| list(&[account("ca_9", Some("u-9")), account("ca_1", Some("u-1"))])).await;
    let jobs = bench.hold(["u-1", "u-2", "u-3"].map(owner), "github").await;
    assert_eq!(bench.round().await, ["u-1,u-2,u-3"]);
    assert_eq!(bench.states(&jobs).await, [State::Available, State::Held, State::Held]);

    // It may leave out whose an account is. Asked about alone, its filter is believed.
    let bench = Bench::listing(|asked| match asked {
        "u-2" => list(&[]),
        _ => list(&[account("ca_1", None)]),
    })
    .await;
    let jobs = bench.hold(["u-1", "u-2", "u-3"].map(owner), "github").await;
    assert_eq!(bench.round().await, ["u-1,u-2,u-3", "u-1", "u-2", "u-3"]);
    assert_eq!(bench.states(&jobs).await, [State::Available, State::Held, State::Available]);

    // Also of one account among several.
    let bench = Bench::listing(|asked| match asked {
        "u-1" => list(&[]),
        "u-2" => list(&[account("ca_2", Some("u-2"))]),
        _ => list(&[account("ca_2", None), account("ca_1", Some("u-1"))]),
    })
    .await;
    let jobs = bench.hold(["u-1", "u-2"].map(owner), "github").await;
    assert_eq!(bench.round().await, ["u-1,u-2", "u-1", "u-2"]);
    assert_eq!(bench.states(&jobs).await, [State::Held, State::Available]);
}

#[tokio::test]
async fn an_id_that_is_a_list_to_the_api_is_asked_about_alone_and_gets_nothing_of_others() {
    for is_told in [true, false] {
        let bench = Bench::listing(move |asked| {
            let own = |owner: &str| account(&format!("ca_{owner}"), is_told.then_some(owner));
            list(&asked.split(',').map(own).collect::<Vec<_>>())
        })
        .await;
        let jobs = bench.hold([owner("u-1,u-2"), owner("u-3")], "github").await;
        let mut asked = bench.round().await;
        asked.sort();
        assert_eq!(asked, ["u-1,u-2", "u-3"]);
        assert_eq!(bench.states(&jobs).await, [State::Held, State::Available]);
    }
}

#[tokio::test]
async fn an_answer_that_has_more_pages_than_are_read_proves_nothing_and_all_pages_count() {
    let bench = Bench::listing(|asked| match asked.contains(',') {
        true => Answer::new(
            "200 OK",
            json!({"items": [], "next_cursor": fastrand::u64(..).to_string()}).to_string(),
        ),
        false => list(&[account("ca_1", Some(asked))]),
    })
    .await;
    let jobs = bench.hold(["u-1", "u-2"].map(owner), "github").await;
    assert_eq!(bench.round().await.len(), 20 + 1, "one of them at least");
    assert!(bench.round().await.is_empty(), "what goes beyond the bound is waited for");
    assert_eq!(bench.states(&jobs).await, [State::Available, State::Held]);
    assert_eq!(bench.asked_about().await, 0, "the other is due as before");
}

#[tokio::test]
async fn no_round_makes_more_requests_than_it_may_and_what_it_did_not_ask_is_due() {
    let bench =
        Bench::listing(|asked| list(&asked.split(',').map(|_| account("ca_1", None)).collect::<Vec<_>>()))
            .await;
    let jobs = bench.hold((0..10).map(|n| owner(format!("u-{n}"))), "github").await;
    let mut released = 0;
    for _ in 0..3 {
        assert!(bench.round().await.len() <= 5);
        let now = bench.states(&jobs).await.iter().filter(|state| **state == State::Available).count();
        assert!(now > released || now == 10, "each round goes on where the last one ended");
        released = now;
    }
    assert_eq!(released, 10);
}

#[tokio::test]
async fn an_api_that_throttles_is_left_alone_and_costs_nobody_their_turn() {
    let bench = Bench::listing(|_| Answer::new("429 Slow Down", "{}").header("retry-after", "9")).await;
    bench.hold((0..50).map(|n| owner(format!("u-{n}"))), "github").await;
    assert_eq!(bench.round().await.len(), 1);
    assert!(bench.round().await.is_empty());
    assert_eq!(bench.asked_about().await, 0);
}

#[tokio::test]
async fn an_owner_whom_the_api_refuses_hides_no_other() {
    let bench = Bench::listing(|asked| match asked.contains("bad") {
        true => Answer::new("400 Bad Request", r#"{"error":{"message":"no such user ID"}}"#),
        false => list(&[account("ca_1", Some(asked))]),
    })
    .await;
    let jobs = bench.hold(["u-1", "bad", "u-2"].map(owner), "github").await;
    assert_eq!(bench.round().await, ["u-1,bad,u-2", "u-1", "bad", "u-2"]);
    assert_eq!(bench.states(&jobs).await, [State::Available, State::Held, State::Available]);
}

#[tokio::test]
async fn long_ids_are_asked_about_in_shorter_lists() {
    let bench = Bench::listing(|_| list(&[])).await;
    let long = |n: usize| owner(format!("{n:0>250}"));
    bench.hold((0..12).map(long), "github").await;
    let asked = bench.round().await;
    assert_eq!(asked.iter().map(|ids| ids.split(',').count()).collect::<Vec<_>>(), [5, 5, 2]);
    assert_eq!(bench.asked_about().await, 12);
}
