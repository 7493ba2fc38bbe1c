//! The same job by every way in that apps and people have: it is one job, and another one under its ID or key is refused.

use std::collections::BTreeMap;

use errand_testbed::factory::id;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json, value::RawValue};

use crate::{
    answers::App,
    api::{Api, kind, read_answer},
    harness::{Harness, PATIENCE, in_memory, run},
    support::wait::until,
};

/// The input of the job. A float would make another number of some of these.
const ARGUMENTS: &str = r#"{"owner":"o","repo":"r","a":1.0,"b":9007199254740993,"c":-0.0,"d":1E+2}"#;

/// One job, as it may be written: but for the spelling of its arguments, all of this is form. `$` is where its name goes.
const SAME: [&str; 5] = [
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":ARGUMENTS}"#,
    r#"{"arguments":ARGUMENTS,"tool":"TOOL",$"user_id":"user-1"}"#,
    r#" { $ "user_id" : "user-1", "tool" : "TOOL",
        "arguments" : { "owner": "o",  "repo": "r", "a": 1.0, "b": 9007199254740993, "c": -0.0, "d": 1E+2 } } "#,
    r#"{$"user_id":"user-1","org_id":null,"tool":"TOOL","queue":"default","priority":0,"tags":{},"arguments":ARGUMENTS}"#,
    r#"{$"\u0075ser_id":"\u0075ser-1","tool":"TOOL","arguments":ARGUMENTS}"#,
];

/// Other jobs.
const OTHER: [&str; 8] = [
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":ARGUMENTS,"priority":5}"#,
    r#"{$"user_id":"user-1","tool":"GITHUB_LIST_REPOS","arguments":ARGUMENTS}"#,
    r#"{$"user_id":"user-1","tool":"TOOL"}"#,
    // What is in the arguments is the app's, and means what it means by its own rules.
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":{"repo":"r","owner":"o","a":1.0,"b":9007199254740993,"c":-0.0,"d":1E+2}}"#,
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":{"owner":"o","repo":"r","a":1,"b":9007199254740993,"c":-0.0,"d":1E+2}}"#,
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":{"owner":"o","repo":"r","a":1.0,"b":9007199254740992,"c":-0.0,"d":1E+2}}"#,
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":{"owner":"o","repo":"r","a":1.0,"b":9007199254740993,"c":-0.0,"d":1e2}}"#,
    r#"{$"user_id":"user-1","tool":"TOOL","arguments":{"owner":"\u006f","repo":"r","a":1.0,"b":9007199254740993,"c":-0.0,"d":1E+2}}"#,
];

const JSON: &str = "application/json";

/// The ways in: a request, with the key beside the body or in it; an item of a new batch; a line that is added to one; a
/// message; the command, on the database and at a server; and a line of a file, on the database.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Door {
    Request,
    Header,
    Item,
    Line,
    Message,
    Command,
    Server,
    Bulk,
}

impl Door {
    const ALL: [Self; 8] = [
        Self::Request,
        Self::Header,
        Self::Item,
        Self::Line,
        Self::Message,
        Self::Command,
        Self::Server,
        Self::Bulk,
    ];

    fn takes(self, name: &Name) -> bool {
        self != Self::Header || name.field == "idempotency_key"
    }
}

/// By what a job is known.
#[derive(Debug)]
struct Name {
    field: &'static str,
    text: String,
    /// What is said of another job with it: by the API, and of a message.
    conflict: &'static str,
    reason: &'static str,
}

impl Name {
    /// An ID, and a key, that no job has yet.
    fn both() -> [Self; 2] {
        [("id", "id-conflict", "body_conflict"), ("idempotency_key", "key-conflict", "key_conflict")]
            .map(|(field, conflict, reason)| Self { field, text: id(), conflict, reason })
    }

    /// The body with this name.
    fn in_body(&self, body: &str) -> String {
        body.replace('$', &format!(r#""{}":"{}","#, self.field, self.text))
    }

    /// A body with this name that has an ID, also where its key is what names the job, and that ID.
    fn with_id(&self, named: String) -> (String, String) {
        if self.field == "id" {
            return (named, self.text.clone());
        }
        let id = id();
        (named.replacen('{', &format!(r#"{{"id":"{id}","#), 1), id)
    }
}

/// What becomes of a job.
#[derive(Debug)]
enum Answer {
    New(String),
    Known(String),
    /// Its name is another one's, as this says.
    Refused(String),
}

struct Doors<'a> {
    api: &'a Api,
    /// Of commands on the database.
    env: &'a [(String, String)],
    /// Where there are a broker and a worker, and the state in which a job ends there.
    broker: Option<Broker<'a>>,
    tool: &'static str,
}

struct Broker<'a> {
    harness: &'a Harness,
    app: &'a App<'a>,
    end: &'static str,
}

impl Doors<'_> {
    /// Takes a job in.
    async fn enter(&self, door: Door, name: &Name, body: &str) -> Answer {
        let body = body.replace("ARGUMENTS", ARGUMENTS).replace("TOOL", self.tool);
        let named = name.in_body(&body);
        match door {
            Door::Request => self.request(name, None, named).await,
            Door::Header => self.request(name, Some(&name.text), body.replace('$', "")).await,
            Door::Item => {
                let items = format!(r#"{{"items":[{named}]}}"#);
                self.item(name, self.post("/v1/batches", JSON, None, items).await).await
            }
            Door::Line => {
                let (status, opened) = self.api.post("/v1/batches", &json!({"sealed": false})).await;
                assert_eq!(status, StatusCode::CREATED, "{opened}");
                let path = format!("/v1/batches/{}/items?from=0", opened["id"].as_str().unwrap());
                let line = named.replace('\n', " ") + "\n";
                self.item(name, self.post(&path, "application/x-ndjson", None, line).await).await
            }
            Door::Message => self.message(name, named).await,
            Door::Command => command(&[], self.env, name, &body),
            Door::Server => {
                let env = [("HOME".to_owned(), std::env::temp_dir().display().to_string())];
                command(&["--server", &self.api.base], &env, name, &body)
            }
            Door::Bulk => self.bulk(name, named).await,
        }
    }

    async fn post(
        &self,
        path: &str,
        media_type: &str,
        key: Option<&str>,
        body: String,
    ) -> (StatusCode, Value) {
        let mut request = self.api.request(Method::POST, path).header("content-type", media_type);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        read_answer(request.body(body).send().await.unwrap()).await
    }

    async fn request(&self, name: &Name, key: Option<&str>, body: String) -> Answer {
        let (status, answer) = self.post("/v1/jobs", JSON, key, body).await;
        match status {
            StatusCode::CREATED => Answer::New(text(&answer, "id")),
            StatusCode::OK => Answer::Known(text(&answer, "id")),
            _ => {
                assert_eq!((status.as_u16(), kind(&answer)), (422, name.conflict), "{answer}");
                Answer::Refused(text(&answer, "detail"))
            }
        }
    }

    /// What became of the only item of a batch.
    async fn item(&self, name: &Name, (status, answer): (StatusCode, Value)) -> Answer {
        if status != StatusCode::CREATED {
            assert_eq!((status.as_u16(), kind(&answer)), (422, "invalid-batch"), "{answer}");
            let error = &answer["errors"][0];
            assert_eq!(kind(error), name.conflict, "{answer}");
            assert_eq!(text(error, "pointer"), format!("/items/0/{}", name.field), "{answer}");
            return Answer::Refused(text(error, "detail"));
        }
        let (_, items) = self.api.get(&format!("/v1/batches/{}/items", text(&answer, "id"))).await;
        let job = text(&items["items"][0], "job_id");
        // A known job keeps the batch that it had.
        let (_, told) = self.api.get(&format!("/v1/jobs/{job}")).await;
        if told["batch_id"] == answer["id"] { Answer::New(job) } else { Answer::Known(job) }
    }

    async fn message(&self, name: &Name, body: String) -> Answer {
        let Broker { app, .. } = self.broker.as_ref().expect("there is a broker");
        let (body, _) = name.with_id(body);
        app.ask("message", body).await;
        let reply = until("a reply", PATIENCE, async || app.get().await).await;
        let reply: Value = serde_json::from_slice(&reply.delivery.data).unwrap();
        match reply["reply"].as_str().unwrap() {
            "final" => Answer::New(text(&reply, "id")),
            "duplicate" => Answer::Known(text(&reply, "id")),
            _ => {
                assert_eq!((&reply["reply"], &reply["reason"]), (&json!("rejected"), &json!(name.reason)));
                Answer::Refused(text(&reply, "message"))
            }
        }
    }

    /// `errand enqueue-bulk` with one line.
    async fn bulk(&self, name: &Name, body: String) -> Answer {
        let (line, id) = name.with_id(body);
        let folder = in_memory("errand-doors-line-");
        let file = folder.path().join("jobs.jsonl").display().to_string();
        std::fs::write(&file, line.replace('\n', " ") + "\n").unwrap();
        let ran = run(&["enqueue-bulk", &file, "--json"], self.env);
        let counted: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let counts = ["new", "duplicate", "refused", "invalid"].map(|count| counted[count].as_u64().unwrap());
        if counts == [0, 0, 1, 0] {
            assert_eq!(ran.status.code(), Some(1), "{counted}");
            return Answer::Refused(text(&counted["problems"][0], "message"));
        }
        assert_eq!(ran.status.code(), Some(0), "{counted}");
        // A job is found by each ID under which it was sent.
        let (_, told) = self.api.get(&format!("/v1/jobs/{id}")).await;
        let job = text(&told, "id");
        match counts {
            [1, 0, 0, 0] => Answer::New(job),
            [0, 1, 0, 0] => Answer::Known(job),
            _ => panic!("{counted}"),
        }
    }

    /// A job that has come in first by one way is known by these, and another one is refused there. `whole`: each of them is
    /// shown all bodies, and else one of each kind.
    async fn agree(&self, first: Door, name: &Name, others: &[Door], whole: bool) {
        let entered = self.enter(first, name, SAME[0]).await;
        let Answer::New(job) = entered else { panic!("{first:?}, {name:?}: {entered:?}") };
        if let Some(Broker { harness, end, .. }) = self.broker {
            harness.counts(&format!("id = '{job}' and state = '{end}'"), 1).await;
        }
        for (turn, door) in others.iter().filter(|door| door.takes(name)).enumerate() {
            for (bodies, is_same) in [(&SAME[..], true), (&OTHER[..], false)] {
                let of_this_turn = (turn + first as usize) % bodies.len();
                for (place, body) in bodies.iter().enumerate() {
                    if whole || place == of_this_turn {
                        let answer = self.enter(*door, name, body).await;
                        let is_right = match &answer {
                            Answer::New(_) => false,
                            Answer::Known(known) => is_same && *known == job,
                            // Which job has a key is told; whose an ID is, is nobody's business.
                            Answer::Refused(why) => !is_same && (name.field == "id" || why.contains(&job)),
                        };
                        assert!(is_right, "{first:?}, {door:?}, {name:?}: {body}: {answer:?} and not {job}");
                    }
                }
            }
        }
        let path = format!("/v1/jobs/{job}?fields=arguments");
        let told = self.api.request(Method::GET, &path).send().await.unwrap().text().await.unwrap();
        assert!(told.contains(&format!(r#""arguments":{ARGUMENTS}"#)), "{first:?}, {name:?}: {told}");
    }
}

fn text(answer: &Value, key: &str) -> String {
    answer[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {answer}")).to_owned()
}

/// `errand enqueue` with flags that say what a body does.
fn command(at: &[&str], env: &[(String, String)], name: &Name, body: &str) -> Answer {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&body.replace('$', "")).unwrap();
    let mut args: Vec<String> = at.iter().map(|word| (*word).to_owned()).collect();
    args.extend(["enqueue", "--json"].map(str::to_owned));
    args.extend([format!("--{}", name.field.replace('_', "-")), name.text.clone()]);
    for (field, value) in fields {
        let plain = serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned());
        match field.as_str() {
            "tool" => args.push(plain),
            "arguments" => args.extend(["--args".to_owned(), plain]),
            _ if ["null", "{}"].contains(&value.get()) => {}
            field => args.extend([format!("--{}", field.replace('_', "-")), plain]),
        }
    }
    let ran = run(&args.iter().map(String::as_str).collect::<Vec<_>>(), env);
    let [out, err] = [&ran.stdout, &ran.stderr].map(|text| String::from_utf8_lossy(text));
    if ran.status.success() {
        let told: Value = serde_json::from_str(&out).unwrap();
        let job = text(&told, "id");
        return if told["duplicate"] == true { Answer::Known(job) } else { Answer::New(job) };
    }
    assert_eq!(ran.status.code(), Some(1), "{args:?}: {out}{err}");
    assert!(err.contains("another body"), "{args:?}: {out}{err}");
    Answer::Refused(err.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_the_same_by_every_way_in_while_it_waits() {
    let folder = in_memory("errand-doors-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    let api = Api::start(&env).await;
    let doors = Doors { api: &api, env: &env, broker: None, tool: "GITHUB_GET_REPO" };
    let ways: Vec<Door> = Door::ALL.into_iter().filter(|door| *door != Door::Message).collect();
    let mut jobs = 0;
    for first in &ways {
        for name in Name::both().iter().filter(|name| first.takes(name)) {
            doors.agree(*first, name, &ways, *first == Door::Request).await;
            jobs += 1;
        }
    }
    let (_, list) = api.get("/v1/jobs?limit=500").await;
    assert_eq!(list["items"].as_array().unwrap().len(), jobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_and_every_other_way_in_agree_about_a_job_that_has_succeeded() {
    let harness = Harness::new("doors", "").await;
    let _worker = harness.worker(&[]).await;
    let (env, app) = (harness.env(), App::new(&harness).await);
    let api = Api::start(&env).await;
    let broker = Broker { harness: &harness, app: &app, end: "succeeded" };
    let doors = Doors { api: &api, env: &env, broker: Some(broker), tool: "GITHUB_GET_REPO" };
    let mut jobs = 0;
    for first in Door::ALL {
        let others = if first == Door::Message { &Door::ALL[..] } else { &[Door::Message] };
        for name in Name::both().iter().filter(|name| first.takes(name)) {
            doors.agree(first, name, others, first == Door::Request).await;
            jobs += 1;
        }
    }
    assert_eq!(harness.settled(jobs).await, [("succeeded".to_owned(), jobs)]);
    let ledger = harness.sandbox.ledger_summary();
    assert_eq!((ledger.calls, ledger.jobs_repeated), (jobs, 0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_failed_is_the_same_by_every_way_in_and_is_not_run_again() {
    let harness = Harness::new("doors-failed", "").await;
    let _worker = harness.worker(&[]).await;
    let (env, app) = (harness.env(), App::new(&harness).await);
    let api = Api::start(&env).await;
    let broker = Broker { harness: &harness, app: &app, end: "failed" };
    let doors = Doors { api: &api, env: &env, broker: Some(broker), tool: "GITHUB_NO_SUCH_TOOL" };
    let mut jobs = 0;
    for first in [Door::Request, Door::Item, Door::Line, Door::Message, Door::Command] {
        for name in Name::both() {
            doors.agree(first, &name, &Door::ALL, false).await;
            jobs += 1;
        }
    }
    assert_eq!(harness.settled(jobs).await, [("failed".to_owned(), jobs)]);
    harness.called(0).await;
}
