//! Answers of the HTTP API to decisions and changes that are lost after the commit, in commands too, and confirms of the
//! broker: what is asked for again is told what has become of it, and in the end it was done once.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use errand_sandbox::Running;
use errand_testbed::factory::{Envelope as _, create, read, send, spread};
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    api::{Api, kind, read_answer, served_by},
    harness::{Harness, PATIENCE, Process, in_memory, port, run, sandbox},
    lost_answers::{BATCHES_AT_ONCE, Cutter, ITEMS, JOBS_AT_ONCE, Unlucky, all, items},
    support::{self, wait::until},
};

/// Jobs that are changed and then made due; called off and run again; run again after they failed; and let go that are held.
const EDITED: usize = 150;
const CALLED_OFF: usize = 150;
const FAILED: usize = 80;
const HELD: usize = 120;
const DECIDED: usize = EDITED + CALLED_OFF + FAILED + HELD;

/// Half of the batches are called off, and of the others the failed jobs are run again. Half of the actions are confirmed,
/// and the others aborted.
const BATCHES: usize = 80;
const ACTIONS: usize = 60;

/// What is changed besides, there and back.
const PAUSES: usize = 30;
const PINS: usize = 40;
const KEYS: usize = 60;

/// Answers that are lost, one for each decision.
const DECISIONS: usize = 2 * (EDITED + CALLED_OFF) + FAILED + HELD + BATCHES + 2 * ACTIONS;
const _: () = assert!(DECISIONS >= 1_000);

/// Commands that get an answer when they ask again, commands that get none, and files of many jobs.
const COMMANDS: usize = 24;
const LOST_COMMANDS: usize = 6;
const FILES: usize = 8;

/// Connections on which so many messages are published each, without a confirm.
const PUBLISHERS: usize = 250;
const EACH: usize = 4;
const _: () = assert!(PUBLISHERS * EACH >= 1_000);

/// Reads fail once, and what became of the first e-mails of one owner is unknown, which is to open no circuit breaker.
const FAULTS: &str = "[[fault]]\nkind = \"provider_failure\"\nprovider_status = 400\ntool = \"GITHUB_GET_REPO\"\nfirst = 1\n\
    [[fault]]\nkind = \"reset\"\ntool = \"GMAIL_SEND_EMAIL\"\nuser = \"user-1\"\nafter_effect = false\nfirst = 1\n";
const BREAKS_LATE: (&str, &str) = ("ERRAND__CIRCUIT_BREAKER__AFTER", "1000000");

/// How a job ends about which somebody has decided: what its history tells of that, its state, and how often it had its effect.
type End = (&'static [&'static str], &'static str, u32);

/// What a request is told of which everything was done before.
#[track_caller]
fn refused((status, told): &(u16, Value), expected: u16, word: &str) {
    assert_eq!(*status, expected, "{told}");
    assert_eq!(kind(told), word, "{told}");
}

/// A job that does not run by itself during the test.
fn later(job: Value) -> Value {
    job.with("run_at", (Timestamp::now() + SignedDuration::from_hours(24)).to_string())
}

async fn unlucky(api: &Api) -> Unlucky<'_> {
    Unlucky { api, cutter: Cutter::start(api).await, client: support::http::client() }
}

impl Unlucky<'_> {
    /// Loses the answer, asks for the same again, and says what that is told.
    async fn repeats(
        &self,
        method: Method,
        path: &str,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> (u16, Value) {
        self.lost(&method, path, &with).await;
        let answer = with(self.request(&self.api.base, &method, path)).send().await.unwrap();
        let (status, told) = read_answer(answer).await;
        (status.as_u16(), told)
    }

    async fn posts(&self, path: &str, body: &Value) -> (u16, Value) {
        self.repeats(Method::POST, path, |request| request.json(body)).await
    }

    /// Enqueues a job, and tells its path.
    async fn enqueued(&self, job: &Value) -> String {
        let (status, told) = self.api.post("/v1/jobs", job).await;
        assert_eq!(status, StatusCode::CREATED, "{told}");
        format!("/v1/jobs/{}", job.id())
    }

    /// Waits for the end of a job, a batch or an action, or until the job is held.
    async fn settled(&self, path: &str) -> Value {
        let path = format!("{path}?wait=20");
        until(&format!("the end of {path}"), PATIENCE, async || {
            let (status, told) = self.api.get(&path).await;
            (status == StatusCode::OK || told["state"] == "held").then_some(told)
        })
        .await
    }

    async fn decides(&self, sandbox: &Running, n: usize) {
        let user = format!("user-{}", n % 20 + 1);
        let (path, (kinds, state, effects)) = if n < EDITED {
            self.edits(n, &later(create(&user))).await
        } else if n < EDITED + CALLED_OFF {
            self.calls_off_and_retries(&later(create(&user))).await
        } else if n < EDITED + CALLED_OFF + FAILED {
            self.retries(&read(&user)).await
        } else {
            self.releases(n, &send("user-1")).await
        };
        let job = self.settled(&path).await;
        assert_eq!(job["state"], state, "{job}");
        let by_somebody = job["history"].as_array().unwrap().iter().filter(|entry| entry["by"] == "api");
        let told: Vec<&str> = by_somebody.map(|entry| entry["kind"].as_str().unwrap()).collect();
        assert_eq!(told, kinds, "{job}");
        assert_eq!(sandbox.job_effects(job.id()), effects, "{job}");
    }

    async fn edits(&self, n: usize, job: &Value) -> (String, End) {
        let path = self.enqueued(job).await;
        let read = self.api.request(Method::GET, &path).send().await.unwrap();
        let etag = read.headers()["etag"].to_str().unwrap();
        // It is not any more what was read, by whoever's change. What is like that already is not changed.
        let (tag, answer) = if n.is_multiple_of(2) { (etag, 412) } else { ("*", 200) };
        let wanted = json!({"priority": 9, "queue": "bulk"});
        let with = |request: RequestBuilder| request.header("If-Match", tag).json(&wanted);
        let (status, told) = self.repeats(Method::PATCH, &path, with).await;
        assert_eq!(status, answer, "{told}");
        let (_, told) = self.api.get(&path).await;
        assert_eq!((&told["priority"], &told["queue"]), (&json!(9), &json!("bulk")), "{told}");
        // When it is asked for again, the job may run by then, or have ended.
        let due = json!({"run_at": null});
        let again = self.repeats(Method::PATCH, &path, |request| request.json(&due)).await;
        if again.0 != 200 {
            refused(&again, 409, "wrong-state");
        }
        (path, (&["edited", "edited"], "succeeded", 1))
    }

    async fn calls_off_and_retries(&self, job: &Value) -> (String, End) {
        let path = self.enqueued(job).await;
        refused(&self.posts(&format!("{path}/cancel"), &json!({})).await, 409, "wrong-state");
        refused(&self.posts(&format!("{path}/retry"), &json!({"now": true})).await, 409, "wrong-state");
        (path, (&["cancelled", "retried"], "succeeded", 1))
    }

    async fn retries(&self, job: &Value) -> (String, End) {
        let path = self.enqueued(job).await;
        assert_eq!(self.settled(&path).await["state"], "failed");
        refused(&self.posts(&format!("{path}/retry"), &json!({})).await, 409, "wrong-state");
        (path, (&["retried"], "succeeded", 1))
    }

    async fn releases(&self, n: usize, job: &Value) -> (String, End) {
        let path = self.enqueued(job).await;
        assert_eq!(self.settled(&path).await["state"], "held");
        let ends = [("retry", "succeeded", 1), ("succeeded", "succeeded", 0), ("failed", "failed", 0)];
        let (how, state, effects) = ends[n % 3];
        refused(&self.posts(&format!("{path}/release"), &json!({"how": how})).await, 409, "wrong-state");
        (path, (&["released"], state, effects))
    }

    /// Makes a batch of jobs that wait, or of ones that fail.
    async fn makes_batch(&self, n: usize) -> String {
        let waits = n.is_multiple_of(2);
        let jobs = if waits { spread(ITEMS, |user| later(create(user))) } else { spread(ITEMS, read) };
        let (status, made) = self.api.post("/v1/batches", &json!({"items": jobs})).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        format!("/v1/batches/{}", made["id"].as_str().unwrap())
    }

    async fn decides_about_batch(&self, n: usize, batch: String) {
        let (decision, state, generation) =
            if n.is_multiple_of(2) { ("cancel", "cancelled", 1) } else { ("retry", "succeeded", 2) };
        if decision == "retry" {
            assert_eq!(self.settled(&batch).await["counts"]["failed"], ITEMS);
        }
        let again = self.posts(&format!("{batch}/{decision}"), &json!({})).await;
        // The rest may be called off again until all of it has ended.
        if decision == "retry" || again.0 != 200 {
            refused(&again, 409, "wrong-state");
        }
        let done = self.settled(&batch).await;
        let ended = (&done["counts"][state], &done["generation"]);
        assert_eq!(ended, (&json!(ITEMS), &json!(generation)), "{done}");
    }

    /// Decides about jobs of its own by an action.
    async fn acts(&self, n: usize) {
        for job in spread(ITEMS, |user| later(create(user))) {
            self.enqueued(&job.with("tags", json!({"action": n.to_string()}))).await;
        }
        let wanted = json!({"action": "cancel", "filter": {"tag": [format!("action={n}")]}});
        let key = format!("action-{n}");
        let with = |request: RequestBuilder| request.header("Idempotency-Key", &key).json(&wanted);
        let action = format!("/v1/actions/{}", self.twice("/v1/actions", with).await.id());
        let (decision, status, done) =
            if n.is_multiple_of(2) { ("confirm", "done", ITEMS) } else { ("abort", "aborted", 0) };
        self.twice(&format!("{action}/{decision}"), |request| request).await;
        let ended = self.settled(&action).await;
        assert_eq!((&ended["status"], &ended["progress"]["done"]), (&json!(status), &json!(done)), "{ended}");
    }
}

/// How many changes of each kind the audit log tells of, and about how many objects.
fn changes(log: &[Value]) -> BTreeMap<&str, (usize, usize)> {
    let mut changed = BTreeMap::<&str, Vec<&str>>::new();
    for entry in log {
        let (what, object) = (entry["what"].as_str().unwrap(), entry["object"].as_str().unwrap());
        changed.entry(what).or_default().push(object);
    }
    let changed = changed.into_iter();
    changed.map(|(what, all)| (what, (all.len(), all.iter().collect::<HashSet<_>>().len()))).collect()
}

/// Loses a thousand answers to decisions, while a worker runs what they let go.
async fn decides_once(api: &Api, sandbox: &Running) {
    let unlucky = &unlucky(api).await;
    stream::iter(0..DECIDED).for_each_concurrent(JOBS_AT_ONCE, |n| unlucky.decides(sandbox, n)).await;
    let batches = stream::iter(0..BATCHES).then(|n| unlucky.makes_batch(n)).enumerate();
    batches.for_each_concurrent(JOBS_AT_ONCE, |(n, batch)| unlucky.decides_about_batch(n, batch)).await;
    stream::iter(0..ACTIONS).for_each_concurrent(JOBS_AT_ONCE, |n| unlucky.acts(n)).await;
    assert_eq!(unlucky.cutter.cut.load(Relaxed), DECISIONS);
    let jobs = all(api, "/v1/jobs").await;
    let ids: HashSet<&str> = jobs.iter().map(Value::id).collect();
    let expected = DECIDED + ITEMS * (BATCHES + ACTIONS);
    assert_eq!((jobs.len(), ids.len()), (expected, expected));
    let open = jobs.iter().filter(|job| job["finished_at"].is_null());
    assert_eq!(open.count(), ITEMS * ACTIONS / 2, "those of actions that were aborted");
    let once = |objects: usize| (objects, objects);
    let expected = [
        ("job.edited", (2 * EDITED, EDITED)),
        ("job.cancelled", once(CALLED_OFF + ITEMS * BATCHES / 2 + ITEMS * ACTIONS / 2)),
        ("job.retried", once(CALLED_OFF + FAILED + ITEMS * BATCHES / 2)),
        ("job.released", once(HELD)),
        ("batch.cancelled", once(BATCHES / 2)),
        ("batch.retried", once(BATCHES / 2)),
        ("action.confirmed", once(ACTIONS / 2)),
        ("action.aborted", once(ACTIONS / 2)),
    ];
    assert_eq!(changes(&all(api, "/v1/audit-log").await), BTreeMap::from(expected));
    let effects = EDITED + CALLED_OFF + FAILED + HELD / 3 + ITEMS * BATCHES / 2;
    // What failed or was held was called once before that.
    let calls = effects + FAILED + HELD + ITEMS * BATCHES / 2;
    let ledger = sandbox.ledger_summary();
    let counted = (ledger.calls, ledger.effects, ledger.jobs_repeated);
    assert_eq!(counted, (calls as u64, effects as u64, 0), "{ledger:?}");
}

impl Unlucky<'_> {
    async fn pins(&self, n: usize) {
        let pin = format!("/v1/pins/github?owner=user:user-{n}");
        let version = json!({"version": "20251027_00"});
        let (status, told) = self.repeats(Method::PUT, &pin, |request| request.json(&version)).await;
        assert_eq!((status, &told["version"]), (200, &version["version"]), "{told}");
        refused(&self.repeats(Method::DELETE, &pin, |request| request).await, 404, "not-found");
    }

    /// Asks with a key for what is no list, or for a list that has one page.
    async fn asks(&self, key: &str, method: Method, path: &str) -> Value {
        let request = self.api.request(method, path).bearer_auth(key);
        let (status, told) = read_answer(request.send().await.unwrap()).await;
        assert_eq!((status, &told["next"]), (StatusCode::OK, &Value::Null), "{told}");
        told
    }

    /// Makes a key for an owner. When the answer is lost, so is the secret: the same again is another key, and the one that
    /// nobody can use is found in the list and ended. Returns the other.
    async fn makes_key(&self, operator: &str, n: usize) -> Value {
        let wanted = json!({"org_id": format!("org-{n}"), "scopes": ["read"]});
        let with_key = |request: RequestBuilder| request.bearer_auth(operator);
        let with = |request: RequestBuilder| with_key(request).json(&wanted);
        let (status, made) = self.repeats(Method::POST, "/v1/keys", with).await;
        assert_eq!(status, 201, "{made}");
        let keys = self.asks(operator, Method::GET, "/v1/keys?limit=500").await;
        let of_owner = keys["items"].as_array().unwrap().iter().filter(|key| key["owner"] == made["owner"]);
        let others: Vec<&str> = of_owner.map(Value::id).filter(|id| *id != made.id()).collect();
        let [lost] = others[..] else { panic!("{keys}") };
        let lost = format!("/v1/keys/{lost}");
        if n.is_multiple_of(2) {
            let (status, ended) = self.repeats(Method::POST, &format!("{lost}/revoke"), with_key).await;
            assert_eq!((status, ended["revoked_at"].is_string()), (200, true), "{ended}");
            return made;
        }
        let with = |request: RequestBuilder| with_key(request).json(&json!({"overlap_secs": 0}));
        refused(&self.repeats(Method::POST, &format!("{lost}/rotate"), with).await, 409, "wrong-state");
        let replaced = self.asks(operator, Method::GET, &lost).await;
        let next = replaced["replaced_by"].as_str().unwrap_or_else(|| panic!("{replaced}"));
        self.asks(operator, Method::POST, &format!("/v1/keys/{next}/revoke")).await;
        made
    }
}

/// Loses answers to changes of queues, pins and keys.
async fn changes_once(api: &Api, env: &[(String, String)]) {
    let unlucky = &unlucky(api).await;
    for n in 0..PAUSES {
        let wanted = json!({"reason": format!("repair {n}")});
        refused(&unlucky.posts("/v1/queues/bulk/pause", &wanted).await, 409, "wrong-state");
        refused(&unlucky.posts("/v1/queues/bulk/resume", &json!({})).await, 409, "wrong-state");
    }
    stream::iter(0..PINS).for_each_concurrent(JOBS_AT_ONCE, |n| unlucky.pins(n)).await;
    assert_eq!(api.get("/v1/pins").await.1["items"], json!([]));
    let operator = run(&["keys", "create", "--operator", "--scope", "read,manage"], env);
    let operator = String::from_utf8(operator.stdout).unwrap().trim().to_owned();
    let made = stream::iter(0..KEYS).map(|n| unlucky.makes_key(&operator, n)).buffer_unordered(JOBS_AT_ONCE);
    let made: Vec<Value> = made.collect().await;
    assert_eq!(unlucky.cutter.cut.load(Relaxed), 2 * (PAUSES + PINS + KEYS));
    let keys = unlucky.asks(&operator, Method::GET, "/v1/keys?limit=500").await;
    let valid = |key: &&Value| key["revoked_at"].is_null() && key["replaced_by"].is_null();
    assert_eq!(keys["items"].as_array().unwrap().iter().filter(valid).count(), KEYS + 1);
    for key in &made {
        unlucky.asks(key["secret"].as_str().unwrap(), Method::GET, "/v1/pins").await;
    }
    for (what, entries, objects) in [
        ("queue", vec![("queue.paused", PAUSES), ("queue.resumed", PAUSES)], Some(1)),
        ("pin", vec![("pin.removed", PINS), ("pin.set", PINS)], Some(1)),
        ("key", vec![("key.created", 2 * KEYS + 1), ("key.revoked", KEYS), ("key.rotated", KEYS / 2)], None),
    ] {
        let log = format!("/v1/audit-log?limit=500&kind={what}");
        let log = unlucky.asks(&operator, Method::GET, &log).await["items"].as_array().unwrap().clone();
        let expected = entries.into_iter().map(|(what, all)| (what, (all, objects.unwrap_or(all))));
        assert_eq!(changes(&log), expected.collect::<BTreeMap<_, _>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_decisions_whose_answers_are_lost_are_made_once_with_postgresql() {
    let harness = Harness::new("lost-decisions", FAULTS).await;
    let _worker = harness.worker(&[BREAKS_LATE]).await;
    let api = Api::start(&harness.env()).await;
    decides_once(&api, &harness.sandbox).await;
    changes_once(&api, &harness.env()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_decisions_whose_answers_are_lost_are_made_once_with_sqlite() {
    let (folder, sandbox) = (in_memory("errand-lost-decisions-"), sandbox(FAULTS).await);
    let env = [
        ("DATABASE_URL", format!("sqlite://{}", folder.path().join("errand.db").display())),
        ("COMPOSIO_BASE_URL", sandbox.base_url()),
        ("COMPOSIO_API_KEY", "ak_test_good".into()),
        ("ERRAND__VERIFY__ENABLED", "false".into()),
        (BREAKS_LATE.0, BREAKS_LATE.1.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let data = folder.path().to_str().unwrap();
    let args = ["dev", "--real", "--data", data, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"];
    let api = served_by(Process::start(&args, &env[1..])).await;
    decides_once(&api, &sandbox).await;
    changes_once(&api, &env[..1]).await;
}

/// Forwards a connection until an answer is to be lost, which cuts it.
async fn forward(mut client: TcpStream, to: SocketAddr, mut loses: impl FnMut() -> bool) -> io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut asked, mut told) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        tokio::select! {
            length = client.read(&mut asked) => match length? {
                0 => return Ok(()),
                length => server.write_all(&asked[..length]).await?,
            },
            length = server.read(&mut told) => match length? {
                length if length == 0 || loses() => return Ok(()),
                length => client.write_all(&told[..length]).await?,
            },
        }
    }
}

/// A cutter that lets each third answer through.
async fn third_answers(api: &Api) -> Cutter {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let target = SocketAddr::from(([127, 0, 0, 1], port(&api.base)));
    let cut = Arc::new(AtomicUsize::new(0));
    let answers = cut.clone();
    let accepting = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let answers = answers.clone();
            connections.spawn(forward(client, target, move || answers.fetch_add(1, Relaxed) % 3 < 2));
        }
    });
    Cutter { base, cut, accepting: accepting.abort_handle() }
}

/// What a command at a server prints, or says of its failure.
async fn command(base: &str, args: &[&str]) -> Result<Value, String> {
    let words: Vec<String> = ["--server", base].iter().chain(args).map(|word| (*word).to_owned()).collect();
    let env = [("HOME".to_owned(), std::env::temp_dir().display().to_string())];
    let asks = move || run(&words.iter().map(String::as_str).collect::<Vec<_>>(), &env);
    let ended = tokio::task::spawn_blocking(asks).await.unwrap();
    serde_json::from_slice(&ended.stdout).map_err(|_| String::from_utf8(ended.stderr).unwrap())
}

/// A command sends by itself again what it has lost the answer to, and where that is in vain it says how.
async fn enqueues(api: &Api, n: usize, file: &str) {
    let input = send("user-2")["arguments"].to_string();
    let enqueue = ["enqueue", "GMAIL_SEND_EMAIL", "--owner", "user:user-2", "--json", "--args", &input];
    let cutter = third_answers(api).await;
    if n < FILES {
        let filled = command(&cutter.base, &["enqueue-bulk", file, "--json"]).await.unwrap();
        assert_eq!(filled["added"], ITEMS, "{filled}");
    } else if n < FILES + COMMANDS {
        assert_eq!(command(&cutter.base, &enqueue).await.unwrap()["duplicate"], true);
    } else {
        let said = command(&Cutter::start(api).await.base, &enqueue).await.unwrap_err();
        let (_, id) = said.split_once("the same command with `--id ").expect(&said);
        let again = [&enqueue[..], &["--id", &id[..36]]].concat();
        assert_eq!(command(&api.base, &again).await.unwrap()["duplicate"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_whose_answers_are_lost_enqueue_once() {
    let harness = Harness::new("lost-commands", "").await;
    let _worker = harness.worker(&[]).await;
    let api = &Api::start(&harness.env()).await;
    let folder = in_memory("errand-lost-commands-");
    let path = folder.path().join("jobs.jsonl");
    std::fs::write(&path, items().iter().map(|item| format!("{item}\n")).collect::<String>()).unwrap();
    let commands = stream::iter(0..FILES + COMMANDS + LOST_COMMANDS);
    commands.for_each_concurrent(BATCHES_AT_ONCE, |n| enqueues(api, n, path.to_str().unwrap())).await;
    harness.all_ran_once((FILES * ITEMS + COMMANDS + LOST_COMMANDS) as u64).await;
    let batches = all(api, "/v1/batches").await;
    let sealed = batches.iter().filter(|batch| batch["sealed"] == true).count();
    assert_eq!((batches.len(), sealed), (FILES, FILES));
}

/// Publishes jobs on a connection that is cut at the first confirm, and then once more.
async fn publishes(harness: &Harness, jobs: &[Value]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut url = url::Url::parse(&harness.vhost.amqp_url).unwrap();
    let broker = SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()));
    url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    let is_open = Arc::new(AtomicBool::new(false));
    let only_confirms = is_open.clone();
    let cut = tokio::spawn(async move {
        let (client, _) = listener.accept().await?;
        forward(client, broker, move || only_confirms.load(Relaxed)).await
    });
    let connection = Connection::connect(url.as_str(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    is_open.store(true, Relaxed);
    for job in jobs {
        let (body, options) = (serde_json::to_vec(job).unwrap(), BasicPublishOptions::default());
        let properties = BasicProperties::default().with_delivery_mode(2);
        let published = channel.basic_publish("errand".into(), "default".into(), options, &body, properties);
        // The connection may be cut by now, and no confirm comes over it.
        drop(published.await);
    }
    timeout(PATIENCE, cut).await.expect("the broker confirms").unwrap().unwrap();
    harness.publish(jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_whose_confirms_are_lost_are_published_again_and_run_once() {
    let harness = Harness::new("lost-confirms", "").await;
    let worker = harness.worker(&[]).await;
    let jobs = spread(PUBLISHERS * EACH, send);
    let each = stream::iter(jobs.chunks(EACH));
    each.for_each_concurrent(JOBS_AT_ONCE, |jobs| publishes(&harness, jobs)).await;
    harness.all_ran_once(jobs.len() as u64).await;
    worker.metric_reaches("errand_duplicate_deliveries_total{queue=\"default\"}", PUBLISHERS as f64).await;
}
