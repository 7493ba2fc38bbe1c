//! `errand events` at a server, by the key of an owner.

use errand_testbed::factory::{Envelope as _, id, read};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    access_keys::{database, made, tomorrow},
    api::Api,
    harness::{Process, run},
};

/// A job that was called off before it ran.
async fn called_off(api: &Api, secret: &str) -> String {
    let job = read("user-1").with("run_at", tomorrow());
    for (path, body) in
        [("/v1/jobs".to_owned(), job.clone()), (format!("/v1/jobs/{}/cancel", job.id()), json!({}))]
    {
        let answer = api.request(Method::POST, &path).bearer_auth(secret).json(&body).send().await.unwrap();
        assert!([StatusCode::OK, StatusCode::CREATED].contains(&answer.status()), "{path}");
    }
    job.id().to_owned()
}

fn events(text: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(text).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_listed_and_followed_at_a_server_also_across_its_restart() {
    let (_folder, mut env) = database();
    env.push(("ERRAND__EVENTS__RECORD".into(), "all".into()));
    let mut api = Api::start(&env).await;
    let key = made(&env, &["--user", "user-1", "--scope", "enqueue,read,manage"]);
    let secret = key["secret"].as_str().unwrap();
    let base = api.base.clone();
    let asks = [("ERRAND_API_KEY".to_owned(), secret.to_owned())];
    let at = |args: &[&str]| run(&[&["--server", &base, "events"], args].concat(), &asks);
    let mut jobs = vec![called_off(&api, secret).await, called_off(&api, secret).await];

    // Page by page, by the cursors that are printed.
    let first = at(&["--limit", "1", "--json"]);
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    let after = told.split("go on with --after ").nth(1).unwrap_or_else(|| panic!("{told}")).trim();
    let items = [events(&first.stdout), events(&at(&["--after", after, "--json"]).stdout)].concat();
    let ids: Vec<&str> = items.iter().map(|event| event["job_id"].as_str().unwrap()).collect();
    assert_eq!(ids, jobs);
    let table = String::from_utf8_lossy(&at(&[]).stdout).into_owned();
    assert!(table.contains("job.cancelled") && table.contains(&jobs[1]), "{table}");

    // Those of one job end with it.
    let of_one = at(&["--follow", "--job", &jobs[0], "--json"]);
    assert!(of_one.status.success(), "{}", String::from_utf8_lossy(&of_one.stderr));
    let of_one = events(&of_one.stdout);
    assert_eq!((of_one.len(), &of_one[0]["id"]), (1, &items[0]["id"]));

    let follow = ["--server", &base, "events", "--follow", "--after", after];
    // What it prints is among what it says beside that.
    let follower = Process::start_by(&["/bin/sh", "-c", "exec \"$0\" \"$@\" >&2"], &follow, &asks);
    follower.logged(&jobs[1]).await;
    assert!(api.process.stop().await.success());
    follower.logged("it is asked again until it answers").await;
    let api = Api::listening(base.strip_prefix("http://").unwrap(), &env).await;
    jobs.push(called_off(&api, secret).await);
    follower.logged(&jobs[2]).await;
    let log = follower.log();
    let often: Vec<_> = jobs.iter().map(|job| log.matches(job.as_str()).count()).collect();
    assert_eq!(often, [0, 1, 1], "each once, from the cursor on: {log}");

    let unknown = id();
    for (args, code, why) in [
        (["--job", unknown.as_str()], 1, "there is no job with this ID"),
        (["--after", "nonsense"], 2, "no cursor of these events"),
        (["--owner", "user:user-2"], 1, "its own owner only"),
    ] {
        for follow in [&[][..], &["--follow"]] {
            let refused = at(&[&args[..], follow].concat());
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!((refused.status.code(), told.contains(why)), (Some(code), true), "{args:?}: {told}");
        }
    }
}
