//! Events over HTTP, as a list and as a stream, and the tokens with which web pages follow them.

use std::{collections::BTreeMap, time::Instant};

use errand_testbed::factory::{Envelope as _, id, read};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::{
    access_keys::{database, made, tomorrow},
    api::{Api, kind, read_answer},
    harness::{Harness, PATIENCE, run},
    support::wait::until,
};

pub(crate) const RECORDS: [&str; 2] = ["ERRAND__EVENTS__RECORD", "all"];

/// A stream that is open, as an event source reads it.
pub(crate) struct Stream {
    answer: Response,
    /// What has come and was not read yet.
    come: String,
    /// The last place that was told.
    last: String,
}

impl Stream {
    async fn of(answer: Response) -> Self {
        let names = ["content-type", "x-accel-buffering", "cache-control"];
        let headers = names.map(|name| answer.headers()[name].to_str().unwrap());
        assert_eq!((answer.status(), headers), (StatusCode::OK, ["text/event-stream", "no", "no-store"]));
        let mut stream = Self { answer, come: String::new(), last: String::new() };
        let first = stream.block().await.unwrap();
        assert!(!first.contains_key("data") && first["retry"].parse::<u64>().is_ok(), "{first:?}");
        stream
    }

    /// The fields up to the next blank line, of which a comment has no name. `None` at the end, which is no error.
    pub(crate) async fn block(&mut self) -> Option<BTreeMap<String, String>> {
        loop {
            if let Some((block, rest)) = self.come.split_once("\n\n") {
                let fields = block.lines().filter_map(|line| line.split_once(": "));
                let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
                let block: BTreeMap<_, _> = fields.collect();
                self.come = rest.to_owned();
                assert_ne!(block.contains_key(""), block.contains_key("data"), "{block:?}");
                // The first one has none where there is something to tell at once.
                if let Some(id) = block.get("id") {
                    self.last.clone_from(id);
                }
                return Some(block);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await.expect("more comes");
            match chunk.unwrap() {
                Some(chunk) => self.come.push_str(std::str::from_utf8(&chunk).unwrap()),
                None if self.come.is_empty() => return None,
                None => panic!("half a block: {}", self.come),
            }
        }
    }

    /// The next event, without its cursor, which is another one each time; `None` at the end.
    pub(crate) async fn next_event(&mut self) -> Option<Value> {
        loop {
            let block = self.block().await?;
            if let Some(data) = block.get("data") {
                let mut event: Value = serde_json::from_str(data).unwrap();
                let told = (event["cursor"].take(), &event["type"]);
                assert_eq!(told, (json!(block["id"]), &json!(block["event"])));
                return Some(event);
            }
        }
    }

    /// So many events, or fewer where it ends before.
    async fn events(&mut self, most: usize) -> Vec<Value> {
        let mut all = Vec::new();
        for _ in 0..most {
            let Some(event) = self.next_event().await else { break };
            all.push(event);
        }
        all
    }

    async fn rest(&mut self) -> Vec<Value> {
        self.events(usize::MAX).await
    }
}

/// Somebody who uses the API with a key or a token, or with neither.
pub(crate) struct App<'a> {
    api: &'a Api,
    secret: String,
}

/// Two users and the operator.
fn people<'a>(api: &'a Api, env: &[(String, String)]) -> [App<'a>; 3] {
    [["--user", "user-1"].as_slice(), &["--user", "user-2"], &["--operator"]].map(|who| {
        let key = made(env, &[who, &["--scope", "enqueue,read,manage"]].concat());
        App::of(api, text(&key, "secret"))
    })
}

impl<'a> App<'a> {
    pub(crate) fn of(api: &'a Api, secret: &str) -> Self {
        Self { api, secret: secret.to_owned() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.api.request(method, path).timeout(2 * PATIENCE);
        if self.secret.is_empty() { request } else { request.bearer_auth(&self.secret) }
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read_answer(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    /// Asks for events; behind the last one that it has read, or, where that is empty, as the query says.
    async fn asks(&self, query: &str, last: &str, accept: &str) -> Response {
        let request = self.request(Method::GET, &format!("/v1/events{query}"));
        request.header("last-event-id", last).header("accept", accept).send().await.unwrap()
    }

    async fn page(&self, query: &str) -> (StatusCode, Value) {
        read_answer(self.asks(query, "", "application/json").await).await
    }

    /// All events of the list, without their cursors, each page behind what the one before it says.
    pub(crate) async fn listed(&self, query: &str) -> Vec<Value> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let (status, mut page) = read_answer(self.asks(query, &next, "*/*").await).await;
            assert_eq!(status, StatusCode::OK, "{query}: {page}");
            let items = page["items"].as_array_mut().unwrap();
            if items.is_empty() {
                return all;
            }
            assert!(items.len() == 1 || !query.contains("limit=1"), "{items:?}");
            assert!(items.iter_mut().all(|item| item["cursor"].take().is_string()));
            all.append(items);
            text(&page, "next").clone_into(&mut next);
        }
    }

    pub(crate) async fn stream(&self, query: &str, last: &str) -> Stream {
        Stream::of(self.asks(query, last, "text/event-stream").await).await
    }

    async fn is_told_that_it_is_over(&self, query: &str, last: &str) {
        let answer = self.asks(query, last, "text/event-stream").await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{query}");
    }

    /// How the list and the stream are refused, which is alike.
    async fn refused(&self, query: &str) -> String {
        let mut told = Vec::new();
        for accept in ["application/json", "text/event-stream"] {
            let answer = self.asks(query, "", accept).await;
            assert!(!answer.status().is_success(), "{query} is not refused");
            let (status, problem) = read_answer(answer).await;
            told.push(format!("{} {}", status.as_u16(), kind(&problem)));
        }
        assert_eq!(told[0], told[1], "{query}");
        told.remove(0)
    }

    async fn token(&self, wanted: &Value) -> App<'a> {
        let (status, made) = self.post("/v1/tokens", wanted).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        App::of(self.api, text(&made, "token"))
    }

    /// A job that nobody runs before tomorrow.
    async fn enqueues(&self, owner: &str) -> String {
        let job = read(owner).with("run_at", tomorrow());
        assert_eq!(self.post("/v1/jobs", &job).await.0, StatusCode::CREATED);
        job.id().to_owned()
    }

    async fn decides(&self, job: &str, action: &str, how: Value) {
        let (status, answer) = self.post(&format!("/v1/jobs/{job}/{action}"), &how).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    pub(crate) async fn calls_off(&self, owner: &str) -> String {
        let job = self.enqueues(owner).await;
        self.decides(&job, "cancel", json!({})).await;
        job
    }

    async fn runs(&self, owner: &str) -> String {
        let job = read(owner);
        let request = self.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&job);
        let (status, done) = read_answer(request.send().await.unwrap()).await;
        assert_eq!((status, &done["state"]), (StatusCode::OK, &json!("succeeded")), "{done}");
        job.id().to_owned()
    }
}

/// An API on a SQLite file without a worker, so that nothing happens but what somebody decides.
pub(crate) async fn alone() -> (tempfile::TempDir, Vec<(String, String)>, Api) {
    let (folder, mut env) = database();
    env.push(RECORDS.map(str::to_owned).into());
    let api = Api::start(&env).await;
    (folder, env, api)
}

pub(crate) async fn execute(env: &[(String, String)], sql: &str) {
    let mut database = SqliteConnection::connect(&env[0].1).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut database).await.unwrap();
}

pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn all<'a>(events: &'a [Value], name: &str) -> Vec<&'a str> {
    events.iter().map(|event| text(event, name)).collect()
}

fn after(place: &str) -> String {
    format!("?after={place}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_told_as_it_happens_and_goes_on_where_a_stream_broke_off_until_all_is_over() {
    let harness = Harness::new("event-streams", "").await;
    let _worker = harness.worker(&[RECORDS.into()]).await;
    let env = [harness.env(), vec![RECORDS.map(str::to_owned).into()]].concat();
    let api = Api::start(&env).await;
    let [one, two, _] = people(&api, &env);
    let mut stream = one.stream("", "").await;
    let mut foreign = vec![two.runs("user-2").await];
    let own = one.runs("user-1").await;
    let first = stream.next_event().await.unwrap();
    assert_eq!((text(&first, "type"), text(&first, "job_id")), ("job.succeeded", own.as_str()));
    assert_eq!(one.listed("").await, [first], "the same as in the list");
    let last = stream.last.clone();
    drop(stream);
    let mut missed = Vec::new();
    for _ in 0..3 {
        foreign.push(two.runs("user-2").await);
        missed.push(one.runs("user-1").await);
    }
    let items = one.listed("").await.split_off(1);
    assert_eq!(all(&items, "job_id"), missed);
    let mut streams = vec![one.stream("", &last).await, one.stream(&after(&last), "").await];
    assert_eq!(streams[0].events(3).await, items);
    let third = streams[0].last.clone();
    // What a browser remembers is newer than what its page asked for at first.
    streams.push(one.stream(&after(&third), &last).await);
    for stream in &mut streams[1..] {
        assert_eq!(stream.events(3).await, items);
    }
    streams.push(one.stream(&after(&last), &third).await);
    let fourth = one.runs("user-1").await;
    for stream in &mut streams {
        assert_eq!(text(&stream.next_event().await.unwrap(), "job_id"), fourth, "and none is repeated");
    }
    assert_eq!(all(&two.listed("").await, "job_id"), foreign);
    let job = one.enqueues("user-1").await;
    let of_job = format!("?job={job}");
    let mut stream = one.stream(&of_job, "").await;
    one.decides(&job, "cancel", json!({})).await;
    let mut told = stream.rest().await;
    assert_eq!(all(&told, "type"), ["job.cancelled"]);
    one.is_told_that_it_is_over(&of_job, &stream.last).await;
    one.decides(&job, "retry", json!({"now": true})).await;
    told.extend(one.stream(&of_job, &stream.last).await.rest().await);
    assert_eq!(all(&told, "type"), ["job.cancelled", "job.retried", "job.succeeded"]);
    let (_, batch) = one.post("/v1/batches", &json!({"items": [read("user-1"), read("user-1")]})).await;
    let of_batch = format!("?batch={}", text(&batch, "id"));
    let items = one.stream(&of_batch, "").await.rest().await;
    assert_eq!(all(&items, "type"), ["job.succeeded", "job.succeeded", "batch.completed"]);
    assert_eq!(all(&items, "batch_id"), [text(&batch, "id"); 3]);
    for (query, told) in [(of_job, told), (of_batch, items)] {
        assert_eq!(one.listed(&query).await, told);
        let mut whole = one.stream(&query, "").await;
        assert_eq!(whole.rest().await, told, "from the beginning");
        one.is_told_that_it_is_over(&query, &whole.last).await;
        assert_eq!(two.refused(&query).await, "404 not-found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_told_of_their_own_jobs_alone_and_of_each_once_however_many_there_are() {
    let (_folder, env, api) = alone().await;
    let [one, two, operator] = people(&api, &env);
    let (of_two, mut streams, mut both) = ("?owner=user:user-2", Vec::new(), Vec::new());
    for (reader, query) in [(&one, ""), (&two, ""), (&operator, of_two), (&operator, "")] {
        streams.push(reader.stream(query, "").await);
    }
    for (app, owner) in [(&one, "user-1"), (&two, "user-2")].repeat(3) {
        both.push(app.calls_off(owner).await);
    }
    let ones: Vec<String> = both.iter().step_by(2).cloned().collect();
    let twos: Vec<String> = both.iter().skip(1).step_by(2).cloned().collect();
    for (stream, expected) in streams.iter_mut().zip([&ones, &twos, &twos, &both]) {
        assert_eq!(all(&stream.events(expected.len()).await, "job_id"), *expected);
    }
    assert_eq!(all(&operator.listed(of_two).await, "job_id"), twos);
    assert_eq!(all(&one.listed("?owner=user:user-1").await, "job_id"), ones);
    let (_, batch) = two.post("/v1/batches", &json!({"sealed": false})).await;
    for (query, refusal) in [
        (format!("job={}", twos[0]), "404 not-found"),
        (format!("batch={}", text(&batch, "id")), "404 not-found"),
        ("owner=user:user-2".to_owned(), "403 forbidden"),
        (format!("job={}&owner=user:user-1", ones[0]), "400 bad-request"),
        ("type=job.failed".to_owned(), "400 bad-request"),
    ] {
        assert_eq!(one.refused(&format!("?{query}")).await, refusal, "{query}");
    }
    assert_eq!(App::of(&api, "").refused("").await, "401 unauthorized");
    // More at once than wait for a stream, which is left behind then, and reads by itself what it has missed.
    let many = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
        insert into events (at, kind, sequence, job_id, owner_kind, owner_id)
        select 1700000000000000, 'job.succeeded', i, randomblob(16), 'user', 'user-1' from n";
    execute(&env, many).await;
    let job = two.calls_off("user-2").await;
    assert_eq!(text(&streams[1].next_event().await.unwrap(), "job_id"), job);
    let told = streams[0].events(3_000).await;
    assert!(told.iter().zip(1_u64..).all(|(event, sequence)| event["sequence"] == sequence));
    assert!(told == one.listed("?limit=500").await.split_off(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_for_whom_they_were_told_and_tell_nothing_of_others() {
    let (_folder, env, api) = alone().await;
    let [one, two, operator] = people(&api, &env);
    let (_, begin) = one.page("").await;
    for (app, owner) in [(&one, "user-1"), (&two, "user-2"), (&one, "user-1")] {
        app.calls_off(owner).await;
    }
    for reader in [&one, &two, &operator] {
        assert_eq!(reader.listed("?limit=1").await, reader.listed("").await);
    }
    assert_eq!(one.listed(&after(text(&begin, "next"))).await, one.listed("").await);
    let (ones, again, twos) = (one.page("").await.1, one.page("").await.1, two.page("").await.1);
    let (seen, all) = (text(&ones["items"][0], "cursor"), operator.page("").await.1);
    assert_eq!(ones["items"][0]["id"], all["items"][0]["id"], "an event has one ID, whoever is told of it");
    assert_ne!(ones["next"], again["next"], "whether anything happened meanwhile is not told");
    let position: u64 = text(&all["items"][0], "cursor").parse().unwrap();
    let (at, end) = (position.to_string(), (position + 2).to_string());
    for place in ["0", "", &seen[1..], &format!("{}A", &seen[1..]), text(&twos, "next"), &at, &end] {
        assert_eq!(one.refused(&after(place)).await, "400 bad-request", "{place}");
    }
    for place in [seen, "18446744073709551616", &u64::MAX.to_string(), &(position + 3).to_string()] {
        assert_eq!(operator.refused(&after(place)).await, "400 bad-request", "{place}");
    }
    assert_eq!(operator.page(&after(&end)).await.1, json!({"items": [], "next": end}));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_were_removed_or_never_recorded_are_refused() {
    let (_folder, env, api) = alone().await;
    let [one, two, operator] = people(&api, &env);
    one.calls_off("user-1").await;
    two.calls_off("user-2").await;
    let (ones, all) = (one.page("").await.1, operator.page("").await.1);
    one.calls_off("user-1").await;
    execute(&env, "update events set at = at - 8 * 86400000000 where position < 3").await;
    let pruned = run(&["prune", "--json"], &env);
    assert_eq!(serde_json::from_slice::<Value>(&pruned.stdout).unwrap()["events"], 2);
    for (reader, page) in [(&one, ones), (&operator, all)] {
        let left = reader.listed("").await;
        let gone = after(text(&page["items"][0], "cursor"));
        assert_eq!((left.len(), reader.refused(&gone).await.as_str()), (1, "410 events-removed"));
        let (_, problem) = reader.page(&gone).await;
        let named = text(&problem, "detail").split("after=").nth(1).unwrap().split(',').next().unwrap();
        // That of the page has moved on with what others did, and so it is not refused.
        for place in [named, text(&page, "next")] {
            assert_eq!(reader.listed(&after(place)).await, left);
            assert_eq!(reader.stream("", place).await.events(1).await, left);
        }
    }
    let silent = Api::start(&env[..1]).await;
    assert_eq!(App::of(&silent, &one.secret).refused("").await, "409 not-recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_the_events_of_one_subject_and_for_nothing_else() {
    let (_folder, env, api) = alone().await;
    let [one, two, operator] = people(&api, &env);
    let (job, other) = (one.enqueues("user-1").await, one.enqueues("user-1").await);
    let foreign = two.calls_off("user-2").await;
    let (page, nobody) = (one.token(&json!({"job_id": job})).await, App::of(&api, ""));
    let shown = format!("?token={}", page.secret);
    let mut stream = nobody.stream(&shown, "").await;
    one.decides(&other, "cancel", json!({})).await;
    one.decides(&job, "cancel", json!({})).await;
    let told = stream.rest().await;
    assert_eq!(all(&told, "job_id"), [job.as_str()]);
    nobody.is_told_that_it_is_over(&shown, &stream.last).await;
    assert_eq!(nobody.listed(&format!("{shown}&job={job}")).await, told);
    assert_eq!((page.listed("").await, one.listed(&format!("?job={job}")).await), (told.clone(), told));
    for query in [format!("job={other}"), format!("batch={other}"), "owner=user:user-2".to_owned()] {
        assert_eq!(page.refused(&format!("?{query}")).await, "403 forbidden", "{query}");
        assert_eq!(nobody.refused(&format!("{shown}&{query}")).await, "403 forbidden", "{query}");
    }
    for (method, path) in [("GET", "/v1/jobs"), ("POST", "/v1/tokens"), ("POST", "/v1/jobs")] {
        let answer = page.request(method.parse().unwrap(), path).json(&json!({})).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    for wrong in ["", "x", "errand_token_", &format!("errand_token_{}A", &page.secret[14..])] {
        assert_eq!(App::of(&api, wrong).refused("").await, "401 unauthorized", "{wrong}");
        assert_eq!(nobody.refused(&format!("?token={wrong}")).await, "401 unauthorized", "{wrong}");
    }
    assert_eq!(one.listed(&shown).await, one.listed("").await, "what is in a header counts");
    for (app, wanted, status) in [
        (&one, json!({"expires_in_secs": 0}), 400_u16),
        (&one, json!({"expires_in_secs": 3_601}), 400),
        (&one, json!({"job_id": job, "user_id": "user-1"}), 400),
        (&operator, json!({}), 400),
        (&one, json!({"user_id": "user-2"}), 403),
        (&one, json!({"job_id": foreign}), 404),
        (&one, json!({"batch_id": id()}), 404),
    ] {
        assert_eq!(app.post("/v1/tokens", &wanted).await.0, status, "{wanted}");
    }
    assert_eq!(one.token(&json!({"expires_in_secs": 3_600})).await.listed("").await, one.listed("").await);
    let twos = operator.token(&json!({"user_id": "user-2"})).await;
    assert_eq!(twos.listed("").await, two.listed("").await);
    assert_eq!(two.listed(&after(text(&twos.page("").await.1, "next"))).await, Vec::<Value>::new());
    // Addresses are in logs, for which a key is too much.
    assert_eq!(nobody.refused(&format!("?token={}", one.secret)).await, "401 unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_their_key_or_token_and_those_without_a_key_with_the_first_one() {
    let (_folder, env, api) = alone().await;
    let nobody = App::of(&api, "");
    let job = nobody.calls_off("user-1").await;
    let free = nobody.token(&json!({"user_id": "user-1"})).await;
    assert_eq!(all(&free.listed("").await, "job_id"), [job]);
    let mut streams = vec![nobody.stream("", "").await, free.stream("", "").await];
    let [one, ..] = people(&api, &env);
    let key = made(&env, &["--user", "user-1", "--scope", "read"]);
    let holder = App::of(&api, text(&key, "secret"));
    let (page, brief) = (holder.token(&json!({})).await, one.token(&json!({"expires_in_secs": 10})).await);
    for app in [&holder, &page, &brief] {
        streams.push(app.stream("", "").await);
    }
    let (mut valid, judged) = (one.stream("", "").await, Instant::now());
    assert!(run(&["keys", "revoke", text(&key, "id")], &env).status.success());
    for app in [&nobody, &free, &holder, &page, &brief] {
        until("it is refused, and was judged long ago", PATIENCE, async || {
            let (status, _) = app.page("").await;
            (status == StatusCode::UNAUTHORIZED && judged.elapsed().as_secs() > 1).then_some(())
        })
        .await;
    }
    let job = one.calls_off("user-1").await;
    assert_eq!(text(&valid.next_event().await.unwrap(), "job_id"), job);
    for stream in &mut streams {
        assert_eq!(stream.rest().await, Vec::<Value>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_told_places_and_ends_in_order_with_the_api() {
    let (_folder, env, mut api) = alone().await;
    let [one, two, operator] = people(&api, &env);
    let of_one = "?owner=user:user-1";
    let mut streams = vec![one.stream("", "").await, operator.stream(of_one, "").await];
    let begun = Instant::now();
    let foreign = two.calls_off("user-2").await;
    for stream in &mut streams {
        let beat = stream.block().await.unwrap();
        assert!(beat.contains_key("") && begun.elapsed().as_secs() < 60, "{beat:?} of {foreign}");
    }
    assert_eq!(streams[1].last, "1", "it has moved on with what others did");
    streams.push(one.stream("", &streams[0].last).await);
    let job = one.calls_off("user-1").await;
    for stream in &mut streams {
        assert_eq!(text(&stream.next_event().await.unwrap(), "job_id"), job);
    }
    assert!(api.process.stop().await.success(), "{}", api.process.log());
    for stream in &mut streams {
        assert_eq!(stream.rest().await, Vec::<Value>::new());
    }
}
