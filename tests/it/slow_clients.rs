//! Clients of the HTTP API that connect, ask for half of something, for nothing or for what lasts, and stay.

use errand_testbed::factory::{Envelope as _, read, send, spread};
use reqwest::{Method, RequestBuilder, StatusCode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{
    access_keys::{made, tomorrow},
    api::{Api, served_by},
    harness::{Harness, PATIENCE, Process},
    support::wait::until,
};

const CONNECTIONS: &str = "errand_api_connections";
const FILES: &str = "process_open_fds";

/// How many connections a flood has here. Our own limit of open files is raised for them.
fn flood() -> usize {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).unwrap();
    // The API takes up to half of the files that its process may open, which are as many as ours.
    let most = limits.maximum.and_then(|files| usize::try_from(files / 4).ok());
    most.unwrap_or(usize::MAX).min(1_500)
}

/// Connections of which each fourth sends nothing at all, and the others half the head of a request.
async fn silent(api: &Api, connections: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for number in 0..connections {
        let mut connection = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
        if number % 4 > 0 {
            connection.write_all(b"POST /v1/jobs HTTP/1.1\r\nHost:").await.unwrap();
        }
        held.push(connection);
    }
    held
}

/// But for those that our own client keeps for its next request.
async fn open_connections_become_few(api: &Api) {
    until("few open connections", PATIENCE, async || {
        (api.process.metric(CONNECTIONS).await < 10.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_requests_cost_no_job_and_keep_no_other_client_from_being_answered() {
    let harness = Harness::new("half-requests", "").await;
    let api = served_by(harness.worker(&[("ERRAND__API__LISTEN", "127.0.0.1:0")]).await).await;
    let (flood, files) = (flood(), api.process.metric(FILES).await);
    let mut held = Vec::new();
    until("a flood of connections", PATIENCE, async || {
        // While the machine stands still, the first may be closed for their slowness.
        held.extend(silent(&api, flood / 4).await);
        (api.process.metric(CONNECTIONS).await >= flood as f64).then_some(())
    })
    .await;
    harness.publish(&spread(100, send)).await;
    for job in spread(20, send) {
        let (status, answer) = api.post("/v1/jobs", &job).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    }
    harness.all_ran_once(120).await;
    api.process.becomes_ready(true).await;
    drop(held);
    open_connections_become_few(&api).await;
    // Those to the tool API and the database may stay open.
    until("their files to be closed", PATIENCE, async || {
        (api.process.metric(FILES).await < files + flood as f64 / 2.0).then_some(())
    })
    .await;
}

/// Half requests are more than the files that the process may open.
#[tokio::test(flavor = "multi_thread")]
async fn half_requests_leave_files_to_jobs_and_make_room_for_who_asks() {
    let harness = Harness::new("half-files", "").await;
    let mut env = harness.env();
    env.push(("ERRAND__API__LISTEN".into(), "127.0.0.1:0".into()));
    let args = ["worker", "--listen", "127.0.0.1:0"];
    let api = served_by(Process::start_by(&["prlimit", "--nofile=512"], &args, &env)).await;
    let held = silent(&api, flood().min(320)).await;
    api.process.metric_reaches(CONNECTIONS, 256.0).await;
    harness.publish(&spread(100, send)).await;
    harness.all_ran_once(100).await;
    api.process.becomes_ready(true).await;
    for job in spread(20, send) {
        // A connection of its own each time, which takes the place of a half request.
        let answer = api.request(Method::POST, "/v1/jobs").header("connection", "close").json(&job);
        assert_eq!(answer.send().await.unwrap().status(), StatusCode::CREATED);
    }
    // Had they been closed for their slowness, it would have been all of them at about the same time.
    let open = api.process.metric(CONNECTIONS).await;
    assert!((200.0..=256.0).contains(&open), "{open} connections are open, of 256 that may be");
    drop(held);
    harness.all_ran_once(120).await;
    open_connections_become_few(&api).await;
}

/// A request that waits lasts a minute.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_requests_wait_leaves_connections_to_others() {
    let harness = Harness::new("waits-of-one", "").await;
    let mut env = harness.env();
    env.push(("ERRAND__API__LISTEN".into(), "127.0.0.1:0".into()));
    let args = ["worker", "--listen", "127.0.0.1:0"];
    let api = served_by(Process::start_by(&["prlimit", "--nofile=512"], &args, &env)).await;
    let secret = |owner: &str| {
        let key = made(&env, &["--user", owner, "--scope", "enqueue,read"]);
        key["secret"].as_str().unwrap().to_owned()
    };
    let (patient, other) = (secret("user-1"), secret("user-2"));
    let job = read("user-1").with("run_at", tomorrow());
    let asks = |method, path: &str, secret: &str| api.request(method, path).bearer_auth(secret);
    let status = async |request: RequestBuilder| request.send().await.unwrap().status();
    assert_eq!(status(asks(Method::POST, "/v1/jobs", &patient).json(&job)).await, StatusCode::CREATED);
    let mut waiting = JoinSet::new();
    // A quarter of half of the files.
    for _ in 0..64 {
        let path = format!("/v1/jobs/{}?wait=60", job.id());
        waiting.spawn(asks(Method::GET, &path, &patient).send());
    }
    api.process.metric_reaches("errand_api_waiting_requests", 64.0).await;
    assert_eq!(status(asks(Method::GET, "/v1/jobs", &patient)).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(status(asks(Method::GET, "/v1/jobs", &other)).await, StatusCode::OK);
    drop(waiting);
    until("the owner to be answered again", PATIENCE, async || {
        (status(asks(Method::GET, "/v1/jobs", &patient)).await == StatusCode::OK).then_some(())
    })
    .await;
}
