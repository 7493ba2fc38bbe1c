//! Callbacks while receivers, workers or the database do not do what they should. The real binary on real services.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use errand_testbed::factory::Envelope as _;
use rcgen::{CertifiedKey, KeyPair};
use reqwest::Method;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    access_keys::tomorrow,
    callbacks::{Place, Receiver, SENDS, calling},
    event_streams::text,
    harness::{Harness, PATIENCE, sandbox},
    support::{self, postgres, wait::until},
};

/// What no server says to a request without its end.
const ENDLESS: usize = 1024 * 1024 * 1024;

/// A server that is none of HTTP's friends, for as long as this lives.
pub(crate) struct Odd {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Odd {
    /// Does the same with each connection.
    pub(crate) async fn new<F: Future<Output = ()> + Send + 'static>(
        each: impl Fn(TcpStream) -> F + Send + Clone + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, connections) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&connections);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::SeqCst);
                let each = each.clone();
                tokio::spawn(async move { each(stream).await });
            }
        });
        Self { port, connections, serving }
    }

    /// Takes each connection and says nothing.
    async fn silent() -> Self {
        Self::new(|stream: TcpStream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Reads a request to its end, and returns its path. `None` where there is none.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut read = Vec::new();
    loop {
        let mut chunk = [0; 4_096];
        let bytes = stream.read(&mut chunk).await.ok().filter(|bytes| *bytes > 0)?;
        read.extend(&chunk[..bytes]);
        let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if read.len() >= end + 4 + length.unwrap_or(0_usize) {
            return head.split(' ').nth(1).map(str::to_owned);
        }
    }
}

/// Answers by the path in some way that no server should.
async fn oddly(mut stream: TcpStream, elsewhere: &str) {
    let Some(path) = request(&mut stream).await else { return };
    let answer = match path.as_str() {
        "/endless" => format!("HTTP/1.1 200 OK\r\ncontent-length: {ENDLESS}\r\n\r\n"),
        "/cut" => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned(),
        "/redirect" => format!("HTTP/1.1 307 Away\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n"),
        "/garbage" => "220 mail.example ESMTP\r\n\r\n".to_owned(),
        "/slow-body" => format!("HTTP/1.1 200 OK\r\ncontent-length: {ENDLESS}\r\n\r\n"),
        "/slow-head" => "HTTP/1.1 200 OK\r\n".to_owned(),
        _ => String::new(),
    };
    // Whoever has read enough closes the connection.
    drop(stream.write_all(answer.as_bytes()).await);
    if path == "/endless" {
        let chunk = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        while sent < ENDLESS && stream.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
    }
    if path.starts_with("/slow") {
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_delays_no_other_of_its_owner_or_of_anybody() {
    // Nobody gives up on it during the test.
    let place = Place::with("callbacks-silent", "", &[("ERRAND__CALLBACKS__TIMEOUT_MS", "60000")]).await;
    let (silent, good) = (Odd::silent().await, Receiver::new().await);
    let waiting: Vec<Value> = (0..20).map(|_| calling("user-1", &silent.url(""))).collect();
    place.harness.publish(&waiting).await;
    until("it is asked", PATIENCE, async || (silent.connections() > 0).then_some(())).await;
    let others = |owner: &str| -> Vec<Value> { (0..10).map(|_| calling(owner, &good.url(owner))).collect() };
    place.harness.publish(&[others("user-1"), others("user-2")].concat()).await;
    good.has(20).await;
    until("they are noted", PATIENCE, async || {
        (place.deliveries("state=delivered").await.len() == 20).then_some(())
    })
    .await;
    let left = place.deliveries("state=waiting").await;
    assert!(left.iter().all(|one| one["tries"] == 0 && one["url"] == silent.url("")), "{left:?}");
    assert!(silent.connections() < 20, "it has few of them: {}", silent.connections());
    // A worker that ends does not wait for it.
    let mut worker = place.worker;
    assert!(worker.stop().await.success(), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_its_status_counts_however_it_goes_on_and_nothing_leads_elsewhere() {
    let place = Place::with("callbacks-odd", "", &[("ERRAND__CALLBACKS__TIMEOUT_MS", "5000")]).await;
    let elsewhere = Receiver::new().await;
    let to = elsewhere.url("elsewhere");
    let odd = Odd::new(move |stream| {
        let to = to.clone();
        async move { oddly(stream, &to).await }
    })
    .await;
    let cases = [
        ("endless", "delivered", json!(200), Value::Null),
        ("cut", "delivered", json!(200), Value::Null),
        ("redirect", "waiting", json!(307), json!("refused")),
        ("garbage", "waiting", Value::Null, json!("broken")),
        ("nothing", "waiting", Value::Null, json!("broken")),
        ("slow-body", "delivered", json!(200), Value::Null),
        ("slow-head", "waiting", Value::Null, json!("timeout")),
    ];
    let jobs: Vec<Value> = cases.iter().map(|(path, ..)| calling("user-1", &odd.url(path))).collect();
    place.harness.publish(&jobs).await;
    for (job, (path, state, status, error)) in jobs.iter().zip(cases) {
        let sent = until(path, PATIENCE, async || {
            let all = place.deliveries("").await;
            all.into_iter().find(|one| one["job_id"] == job["id"] && one["tries"] != 0)
        })
        .await;
        let told = (&sent["state"], &sent["last_status"], &sent["last_error"]);
        assert_eq!(told, (&json!(state), &status, &error), "{path}: {sent}");
    }
    assert!(elsewhere.came().is_empty(), "a redirection is not followed");
    let peak = place.worker.peak_memory();
    assert!(peak < ENDLESS as u64 / 2, "{peak} bytes");
    // The next one gets through.
    let good = calling("user-1", &elsewhere.url("good"));
    place.harness.publish(&[good]).await;
    assert_eq!(elsewhere.has(1).await[0].path, "/good");
}

/// The deliveries as the command line has them.
fn told(place: &Place) -> Vec<Value> {
    let list = place.harness.errand(&["callbacks", "deliveries", "--json"]);
    assert!(list.status.success(), "{list:?}");
    String::from_utf8(list.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A receiver on this host that encrypts, and how many requests it could read.
async fn encrypting(own: &CertifiedKey<KeyPair>) -> (Odd, Arc<AtomicUsize>) {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let chain = vec![own.cert.der().clone()];
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (acceptor, requests) = (TlsAcceptor::from(Arc::new(config)), Arc::new(AtomicUsize::new(0)));
    let read = Arc::clone(&requests);
    let odd = Odd::new(move |stream| {
        let (acceptor, read) = (acceptor.clone(), Arc::clone(&read));
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if request(&mut stream).await.is_some() {
                read.fetch_add(1, Ordering::SeqCst);
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
            }
        }
    })
    .await;
    (odd, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_certificate_of_its_name_that_is_trusted_gets_nothing_and_it_is_said() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let [good, of_another, stranger] = ["localhost", "receiver.example", "localhost"]
        .map(|name| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    fs::write(&trusted, good.cert.pem() + &of_another.cert.pem()).unwrap();
    let place = Place::with("callbacks-tls", "", &[("SSL_CERT_FILE", trusted.to_str().unwrap())]).await;
    let receivers = [encrypting(&good).await, encrypting(&of_another).await, encrypting(&stranger).await];
    let url = |odd: &Odd| format!("https://localhost:{}/", odd.port);
    let jobs = receivers.each_ref().map(|(odd, _)| calling("user-1", &url(odd)));
    place.harness.publish(&jobs).await;
    place.failed(&jobs[1], "tls").await;
    place.failed(&jobs[2], "tls").await;
    let all = until("one is delivered, and the others are tried again", PATIENCE, async || {
        let all = told(&place);
        let tried =
            |job: &Value, tries| all.iter().any(|one| one["job_id"] == job["id"] && one["tries"] == tries);
        (tried(&jobs[0], 1) && tried(&jobs[1], 2) && tried(&jobs[2], 2)).then_some(all)
    })
    .await;
    for one in &all {
        let is_good = one["job_id"] == jobs[0]["id"];
        let (state, status, error) = match is_good {
            true => ("delivered", json!(200), Value::Null),
            false => ("waiting", Value::Null, json!("tls")),
        };
        let found = (&one["state"], &one["last_status"], &one["last_error"]);
        assert_eq!(found, (&json!(state), &status, &error), "{one}");
        assert_eq!(one["due_at"].is_null(), is_good, "{one}");
    }
    let read = receivers.each_ref().map(|(_, requests)| requests.load(Ordering::SeqCst));
    assert_eq!(read, [1, 0, 0], "nothing was sent to those");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_send_spends_no_try_and_sends_when_it_can_again() {
    let place = Place::new("callbacks-local", "").await;
    let receiver = Receiver::new().await;
    let urls = [receiver.url(""), receiver.url("").replace("127.0.0.1", "localhost")];
    let jobs = urls.map(|url| calling("user-1", &url).with("run_at", tomorrow()));
    for job in &jobs {
        place.asks(Method::POST, "/v1/jobs", job).await;
    }
    // No further file or socket can be opened, neither to look a name up nor to connect. The database is connected.
    place.worker.limit("--nofile=3:");
    for job in &jobs {
        place.asks(Method::POST, &format!("/v1/jobs/{}/cancel", job.id()), &json!({})).await;
    }
    for job in &jobs {
        let unsent = place.failed(job, "local").await;
        assert_eq!((&unsent["state"], &unsent["tries"]), (&json!("waiting"), &json!(0)), "{unsent}");
    }
    let told = place.worker.lines_like("callbacks cannot be sent from this host").len();
    assert_eq!(told, 1, "{}", place.worker.log());
    place.worker.limit("--nofile=1024:");
    receiver.has(2).await;
    place.all_are("delivered", 2).await;
    assert!(place.deliveries("").await.iter().all(|one| one["tries"] == 1));
}

/// Has so many jobs of one owner wait until tomorrow and calls them off, so that each has one event.
async fn much_is_called_off(place: &Place, jobs: usize, url: &str) {
    let items: Vec<Value> = (0..jobs).map(|_| calling("user-1", url).with("run_at", tomorrow())).collect();
    let batch = place.asks(Method::POST, "/v1/batches", &json!({ "items": items })).await;
    place.asks(Method::POST, &format!("/v1/batches/{}/cancel", text(&batch, "id")), &json!({})).await;
    place.harness.counts("state = 'cancelled'", jobs as u64).await;
}

/// Makes sure that each event has come, and that this is known of each.
async fn each_has_come(harness: &Harness, receiver: &Receiver, jobs: usize) {
    let delivered = "select count(*)::text from deliveries where state = 'delivered'";
    until("all are delivered", PATIENCE, async || {
        (harness.text(delivered).await? == jobs.to_string()).then_some(())
    })
    .await;
    assert_eq!(harness.text("select count(*)::text from deliveries").await, Some(jobs.to_string()));
    let came = receiver.came();
    let told: BTreeSet<String> =
        came.iter().map(|one| text(&one.json()["data"], "job_id").to_owned()).collect();
    let ids: BTreeSet<&str> = came.iter().map(|one| one.id()).collect();
    assert_eq!((told.len(), ids.len()), (jobs, jobs), "of {} that came", came.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_worker_that_sends_is_killed_another_sends_what_is_left() {
    let mut place = Place::new("callbacks-killed", "").await;
    let second = place.harness.worker(&SENDS).await;
    let receiver = Receiver::gated(50).await;
    much_is_called_off(&place, 200, &receiver.url("")).await;
    receiver.has(60).await;
    // It has sent some, is sending others, and has not begun with the rest.
    place.worker.kill9();
    assert!(receiver.came().len() < 200, "{}", receiver.came().len());
    receiver.open();
    each_has_come(&place.harness, &receiver, 200).await;
    // What was answered before was perhaps not noted.
    second.metric_reaches("errand_callbacks_total{result=\"delivered\"}", 150.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_notes_what_is_answered_until_then_whoever_does_not_answer() {
    let mut place = Place::new("callbacks-stopped", "").await;
    let (silent, receiver) = (Odd::silent().await, Receiver::gated(0).await);
    let to_silent: Vec<Value> = (0..2).map(|_| calling("user-2", &silent.url(""))).collect();
    let others: Vec<Value> = (0..6).map(|_| calling("user-1", &receiver.url(""))).collect();
    place.harness.publish(&[to_silent, others].concat()).await;
    receiver.has(6).await;
    until("both are asked", PATIENCE, async || (silent.connections() == 2).then_some(())).await;
    place.worker.terminate();
    receiver.open();
    assert!(place.worker.ended().await.success(), "{}", place.worker.log());
    assert_eq!(place.deliveries("state=delivered").await.len(), 6, "what was answered is noted");
    // The next one goes on with what was cut off.
    let _second = place.harness.worker(&SENDS).await;
    until("they are asked again", PATIENCE, async || (silent.connections() >= 4).then_some(())).await;
    assert_eq!(receiver.came().len(), 6, "once each");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_come_while_the_database_is_away_are_noted_when_it_is_back() {
    let server = support::start_postgres(postgres::Options::default()).await;
    let harness = Harness::of(
        server.database("callbacks").await.unwrap(),
        support::vhost("callbacks-database").await,
        sandbox("").await,
    );
    let place = Place::of(harness, &SENDS).await;
    let receiver = Receiver::gated(20).await;
    much_is_called_off(&place, 100, &receiver.url("")).await;
    receiver.has(30).await;
    server.kill9().await.unwrap();
    receiver.open();
    until("it cannot be noted", PATIENCE, async || {
        (place.worker.metric_sum("errand_store_errors_total").await > 0.0).then_some(())
    })
    .await;
    server.restart().await.unwrap();
    each_has_come(&place.harness, &receiver, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_a_job_that_is_removed_meanwhile_is_told_without_it() {
    let place = Place::new("callbacks-removed", "").await;
    let receiver = Receiver::gated(0).await;
    let [job, stays] = [(); 2].map(|()| calling("user-1", &receiver.url("")).with("run_at", tomorrow()));
    for job in [&job, &stays] {
        place.changed_and_cancelled(job).await;
    }
    until("all are added", PATIENCE, async || (place.deliveries("").await.len() == 4).then_some(())).await;
    // Its end is told once its change was.
    receiver.has(2).await;
    place.harness.execute(&format!("delete from jobs where id = '{}'", job.id())).await;
    receiver.open();
    place.all_are("delivered", 4).await;
    for one in receiver.came().iter().filter(|one| one.kind() == "job.cancelled") {
        let data = one.json()["data"].clone();
        assert_eq!(data["job"].is_null(), data["job_id"] == job["id"], "{data}");
    }
    assert_eq!(receiver.came().len(), 4);
}
