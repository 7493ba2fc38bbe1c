//! What apps send over HTTP that is unusual: numbers that no float holds, and heads without end.

use errand_testbed::factory::{Envelope as _, read};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    api::{Api, read_answer},
    harness::{PATIENCE, in_memory, run},
};

/// Numbers of which a float would make others, spelt as hardly anybody spells them, and a name that is there twice.
const NUMBERS: &str = r#"{"owner":"o","repo":"r","a":9007199254740993,"b":18446744073709551616,"c":1e400,"d":-0.0,"e":1.10,"f":1E+2,"g":-9223372036854775809,"h":1,"h":2}"#;

async fn api(name: &str) -> (Api, TempDir) {
    let folder = in_memory(name);
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let env = [("DATABASE_URL".to_owned(), url)];
    assert!(run(&["migrate"], &env).status.success());
    (Api::start(&env).await, folder)
}

/// An envelope with these arguments, and the ID of its job.
fn envelope() -> (String, String) {
    let job = read("user-1");
    let text = format!(
        r#"{{"id":"{}","user_id":"user-1","tool":"GITHUB_GET_REPO","arguments":{NUMBERS}}}"#,
        job.id()
    );
    (text, job.id().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_go_in_and_come_out_as_they_are_spelt_by_every_door() {
    let (api, _folder) = api("errand-numbers-").await;
    let post = async |path: &str, media_type: &str, body: String| -> (StatusCode, String) {
        let request = api.request(Method::POST, path).header("content-type", media_type).body(body);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let (one, inline, chunk) = (envelope(), envelope(), envelope());
    assert_eq!(post("/v1/jobs", "application/json", one.0).await.0, StatusCode::CREATED);
    let batch = format!(r#"{{"items":[{}]}}"#, inline.0);
    assert_eq!(post("/v1/batches", "application/json", batch).await.0, StatusCode::CREATED);
    let (_, opened) = post("/v1/batches", "application/json", r#"{"sealed":false}"#.to_owned()).await;
    let opened: Value = serde_json::from_str(&opened).unwrap();
    let items = format!("/v1/batches/{}/items?from=0", opened["id"].as_str().unwrap());
    assert_eq!(post(&items, "application/x-ndjson", chunk.0 + "\n").await.0, StatusCode::CREATED);
    for id in [one.1, inline.1, chunk.1] {
        let path = format!("/v1/jobs/{id}?fields=arguments");
        let told = api.request(Method::GET, &path).send().await.unwrap().text().await.unwrap();
        assert!(told.contains(&format!(r#""arguments":{NUMBERS}"#)), "{told}");
    }
    let listed =
        api.request(Method::GET, "/v1/jobs?fields=arguments").send().await.unwrap().text().await.unwrap();
    assert_eq!(listed.matches(NUMBERS).count(), 3, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_wrongly_is_told_with_how_it_is_written() {
    let (api, _folder) = api("errand-words-").await;
    for (path, says) in [
        (
            "/v1/jobs?owner=alice",
            "the parameter `owner`: names neither a user nor an organization; write `user:ID`",
        ),
        ("/v1/jobs?state=done", "the parameter `state`: use one of scheduled, available, running"),
        ("/v1/jobs?outcome_unknown=1", "the parameter `outcome_unknown`: must be `true` or `false`"),
        ("/v1/jobs?stat=held", "there is no parameter `stat` here; there are `state`, `owner`"),
        ("/v1/accounts?owner=team:a", "write `user:ID` or `org:ID`"),
        ("/v1/audit-log?owner=alice", "write `user:ID` or `org:ID`"),
        ("/v1/rejected?since=yesterday", "such as 2026-01-31T12:00:00Z"),
        ("/v1/workers?all=true", "there is no parameter `all` here, and no other"),
    ] {
        let (status, problem) = api.get(path).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == StatusCode::BAD_REQUEST && detail.contains(says), "{path}: {problem}");
    }
    let job = read("user-1");
    for (path, body, says) in [
        ("/v1/jobs?dry_run=1", job.clone(), "the parameter `dry_run`: must be `true` or `false`"),
        ("/v1/jobs?dryrun=true", job.clone(), "there is no parameter `dryrun` here; there are `dry_run`"),
        (
            "/v1/batches",
            json!({"items": [], "deadline": "yesterday"}),
            "write times as in RFC 3339, such as 2026-01-31T12:00:00Z",
        ),
    ] {
        let (status, problem) = api.post(path, &body).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == StatusCode::BAD_REQUEST && detail.contains(says), "{path}: {problem}");
    }
    let (_, job) = api.post("/v1/jobs", &job).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let edit = api.request(Method::PATCH, &path).json(&json!({"run_at": "soon"})).send().await.unwrap();
    let (_, problem) = read_answer(edit).await;
    assert!(problem["detail"].as_str().unwrap().contains("such as 2026-01-31T12:00:00Z"), "{problem}");
    let foreign = api.request(Method::GET, "/v1/jobs").header("origin", "https://page.example");
    let (_, problem) = read_answer(foreign.send().await.unwrap()).await;
    assert!(problem["detail"].as_str().unwrap().contains("`api.cors_origins`"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_one_list_goes_on_in_no_other() {
    let (api, _folder) = api("errand-cursors-").await;
    let lists = [("jobs", 'j'), ("batches", 'b'), ("actions", 'a'), ("rejected", 'r'), ("audit-log", 'c')];
    for (list, own) in lists {
        for (_, of) in lists {
            let path = format!("/v1/{list}?cursor={of}1760000000000001.0190b0a0-0000-7000-8000-000000000001");
            let (status, answer) = api.get(&path).await;
            let expected = if of == own { StatusCode::OK } else { StatusCode::BAD_REQUEST };
            assert_eq!(status, expected, "{path}: {answer}");
        }
        let keys = format!("/v1/{list}?cursor=0190b0a0-0000-7000-8000-000000000001");
        assert_eq!(api.get(&keys).await.0, StatusCode::BAD_REQUEST, "{list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_without_a_schema_says_how_to_migrate_and_at_its_end_that_it_stopped() {
    let folder = in_memory("errand-no-schema-");
    let url = format!("sqlite://{}", folder.path().join("errand.db").display());
    let mut api = Api::start(&[("DATABASE_URL".to_owned(), url)]).await;
    api.process.logged("run `errand migrate`").await;
    let (status, problem) = api.get("/v1/jobs").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("tables are missing") && detail.contains("`errand migrate`"), "{problem}");
    assert!(api.process.stop().await.success());
    assert_eq!(api.process.lines("the API stopped")[0]["level"], "INFO");
}

/// Sends a head and reads the first line of the answer; empty where the connection is closed without one.
async fn answered(api: &Api, head: &[u8]) -> String {
    let mut stream = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
    // It may be closed before all of it is sent.
    let _sent = stream.write_all(head).await;
    let mut answer = Vec::new();
    let _closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_headers_is_refused_and_costs_only_its_connection() {
    let (api, _folder) = api("errand-headers-").await;
    let get = "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n";
    let many: String = (0..5_000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    for head in [
        format!("{get}{many}\r\n"),
        format!("{get}X-Long: {}\r\n\r\n", "x".repeat(64 * 1024)),
        format!("GET /v1/jobs?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(64 * 1024)),
        // One that never ends.
        format!("{get}X-Endless: {}", "x".repeat(4 * 1024 * 1024)),
    ] {
        let answer = answered(&api, head.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "),
            "{answer}"
        );
    }
    assert_eq!(api.get("/v1/jobs").await.0, StatusCode::OK);
}
