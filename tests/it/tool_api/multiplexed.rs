//! Calls that share connections, over HTTP/2.

use std::{
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use errand::tool::{ToolApi as _, composio::HttpVersion};
use h2::{Reason, server::SendResponse};
use tokio::{
    net::TcpListener,
    sync::{Notify, broadcast},
};

use super::*;

/// What the server does with a call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    /// Waits until the test lets all calls go, then answers.
    Answers,
    /// Says that it will not process it.
    Refuses,
    /// Breaks off after it has read it.
    Resets,
    /// Cuts the connection that it came on.
    Cuts,
}

/// A server that speaks nothing but HTTP/2.
struct Server {
    base: url::Url,
    connections: AtomicUsize,
    does: Mutex<Does>,
    arrived: AtomicUsize,
    arrival: Notify,
    go: broadcast::Sender<()>,
}

impl Server {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = Arc::new(Self {
            base: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            connections: AtomicUsize::new(0),
            does: Mutex::new(Does::Answers),
            arrived: AtomicUsize::new(0),
            arrival: Notify::new(),
            go: broadcast::channel(1).0,
        });
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(accepting.clone().serve(stream));
            }
        });
        server
    }

    async fn serve(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let cut = Arc::new(Notify::new());
        loop {
            let accepted = tokio::select! {
                accepted = connection.accept() => accepted,
                () = cut.notified() => return,
            };
            let Some(Ok((request, mut respond))) = accepted else { return };
            let does = *self.does.lock().unwrap();
            if does == Does::Refuses {
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            }
            let (server, cut, go) = (self.clone(), cut.clone(), self.go.subscribe());
            tokio::spawn(async move { server.answer(request.into_body(), respond, does, &cut, go).await });
        }
    }

    async fn answer(
        &self,
        mut body: h2::RecvStream,
        mut respond: SendResponse<Bytes>,
        does: Does,
        cut: &Notify,
        mut go: broadcast::Receiver<()>,
    ) {
        while let Some(Ok(_)) = body.data().await {}
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.arrival.notify_waiters();
        match does {
            Does::Resets => respond.send_reset(Reason::INTERNAL_ERROR),
            Does::Cuts => cut.notify_one(),
            Does::Answers | Does::Refuses => {
                drop(go.recv().await);
                let response = axum::http::Response::new(());
                respond.send_response(response, false).unwrap().send_data(OK.into(), true).unwrap();
            }
        }
    }

    fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    async fn until_arrived(&self, calls: usize) {
        loop {
            let arrival = self.arrival.notified();
            if self.arrived.load(Ordering::SeqCst) >= calls {
                return;
            }
            arrival.await;
        }
    }
}

fn multiplexed(server: &Server, max_calls: usize) -> Arc<Composio> {
    let options = Options { http_version: HttpVersion::Http2, max_calls, ..options(server.base.clone()) };
    Arc::new(Composio::new(options).unwrap())
}

fn start(composio: &Arc<Composio>, calls: usize) -> Vec<tokio::task::JoinHandle<Reply>> {
    let one = |composio: Arc<Composio>| async move { composio.execute(&simple()).await };
    (0..calls).map(|_| tokio::spawn(one(composio.clone()))).collect()
}

#[tokio::test]
async fn a_hundred_calls_share_a_connection_and_no_more() {
    let server = Server::start().await;
    let composio = multiplexed(&server, 250);
    let calls = start(&composio, 250);
    server.until_arrived(250).await;
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
    server.go.send(()).unwrap();
    for call in calls {
        let reply = call.await.unwrap();
        assert!(matches!(&reply, Reply::Answered(answer) if answer.status == 200), "{reply:?}");
    }
}

#[tokio::test]
async fn a_lost_connection_leaves_the_outcome_of_its_own_calls_unknown() {
    let server = Server::start().await;
    let composio = multiplexed(&server, 200);
    let mut calls = start(&composio, 100);
    server.until_arrived(100).await;
    // The next call goes to the second connection, which is cut.
    server.does(Does::Cuts);
    let reply = composio.execute(&simple()).await;
    assert!(matches!(reply, Reply::NoAnswer(_)), "{reply:?}");
    server.go.send(()).unwrap();
    for call in calls.drain(..) {
        let reply = call.await.unwrap();
        assert!(matches!(reply, Reply::Answered(_)), "{reply:?}");
    }
    server.does(Does::Answers);
    let next = start(&composio, 1);
    server.until_arrived(102).await;
    server.go.send(()).unwrap();
    for call in next {
        assert!(matches!(call.await.unwrap(), Reply::Answered(_)), "a new connection is made");
    }
}

#[tokio::test]
async fn a_refused_stream_was_not_processed_and_any_other_reset_may_have_been() {
    let server = Server::start().await;
    let composio = multiplexed(&server, 1);
    server.does(Does::Refuses);
    let reply = composio.execute(&simple()).await;
    assert!(matches!(reply, Reply::NotSent(_)), "{reply:?}");
    server.does(Does::Resets);
    let reply = composio.execute(&simple()).await;
    assert!(matches!(reply, Reply::NoAnswer(_)), "{reply:?}");
}

#[tokio::test]
async fn a_server_that_speaks_only_http_1_is_not_sent_anything() {
    let rogue = Rogue::answering("200 OK", OK).await;
    let options = Options { http_version: HttpVersion::Http2, ..options(rogue.base()) };
    let reply = Composio::new(options).unwrap().execute(&within(1_000, simple())).await;
    assert!(!matches!(reply, Reply::Answered(_)), "{reply:?}");
}
