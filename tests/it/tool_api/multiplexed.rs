//! Calls that share connections, over HTTP/2.

use errand::tool::{ToolApi as _, composio::HttpVersion};

use super::*;

/// An API that answers once the test lets it.
async fn patient() -> ScriptedApi {
    ScriptedApi::http2([Answer::new("200 OK", OK).held()]).await
}

fn multiplexed(api: &ScriptedApi, max_calls: usize) -> Arc<Composio> {
    let options = Options { http_version: HttpVersion::Http2, max_calls, ..options(base(api)) };
    Arc::new(Composio::new(options).unwrap())
}

fn start(composio: &Arc<Composio>, calls: usize) -> Vec<tokio::task::JoinHandle<Reply>> {
    let one = |composio: Arc<Composio>| async move { composio.execute(&within(30_000, simple())).await };
    (0..calls).map(|_| tokio::spawn(one(composio.clone()))).collect()
}

#[tokio::test]
async fn a_hundred_calls_share_a_connection_and_no_more() {
    let api = patient().await;
    let composio = multiplexed(&api, 250);
    let calls = start(&composio, 250);
    api.until_seen(250).await;
    assert_eq!(api.connections(), 3);
    api.release();
    for call in calls {
        let reply = call.await.unwrap();
        assert!(matches!(&reply, Reply::Answered(answer) if answer.status == 200), "{reply:?}");
    }
}

#[tokio::test]
async fn a_lost_connection_leaves_the_outcome_of_its_own_calls_unknown() {
    let api = patient().await;
    let composio = multiplexed(&api, 200);
    let mut calls = start(&composio, 100);
    api.until_seen(100).await;
    // The next call goes to the second connection, which is cut.
    api.script([Answer::nothing().closing()]);
    let reply = composio.execute(&simple()).await;
    assert!(matches!(reply, Reply::NoAnswer(_)), "{reply:?}");
    api.release();
    for call in calls.drain(..) {
        let reply = call.await.unwrap();
        assert!(matches!(reply, Reply::Answered(_)), "{reply:?}");
    }
    api.script([Answer::new("200 OK", OK).held()]);
    let next = start(&composio, 1);
    api.until_seen(102).await;
    api.release();
    for call in next {
        assert!(matches!(call.await.unwrap(), Reply::Answered(_)), "a new connection is made");
    }
}

#[tokio::test]
async fn a_refused_stream_was_not_processed_and_any_other_reset_may_have_been() {
    let api = patient().await;
    let composio = multiplexed(&api, 1);
    api.script([Answer::nothing().unread()]);
    let reply = composio.execute(&simple()).await;
    assert!(matches!(reply, Reply::NotSent(_)), "{reply:?}");
    api.script([Answer::nothing().resetting()]);
    let reply = composio.execute(&simple()).await;
    assert!(matches!(reply, Reply::NoAnswer(_)), "{reply:?}");
}

#[tokio::test]
async fn a_server_that_speaks_only_http_1_is_not_sent_anything() {
    let api = ScriptedApi::answering("200 OK", OK).await;
    let options = Options { http_version: HttpVersion::Http2, ..options(base(&api)) };
    let reply = Composio::new(options).unwrap().execute(&within(1_000, simple())).await;
    assert!(!matches!(reply, Reply::Answered(_)), "{reply:?}");
}
