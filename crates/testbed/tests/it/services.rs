//! Tests of the fixture itself: the private services, their guards, the proxy and the waiting.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use errand_testbed::support::{self, Prometheus, Proxy, http, machine, postgres, rabbitmq, wait::until};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn each_database_is_separate() {
    let (one, two) = (support::database("same hint").await, support::database("same hint").await);
    for database in [&one, &two] {
        let mut connection = database.connect().await.unwrap();
        sqlx::query(AssertSqlSafe(format!("CREATE TABLE own AS SELECT '{}' AS name", database.name)))
            .execute(&mut connection)
            .await
            .unwrap();
        let row = sqlx::query("SELECT name FROM own").fetch_one(&mut connection).await.unwrap();
        assert_eq!(row.get::<String, _>("name"), database.name);
    }
}

#[tokio::test]
async fn a_killed_postgres_keeps_committed_rows() {
    let server = support::start_postgres(postgres::Options::default()).await;
    let database = server.database("kept").await.unwrap();
    let mut connection = database.connect().await.unwrap();
    sqlx::query("CREATE TABLE kept (id int)").execute(&mut connection).await.unwrap();
    for id in 0..100 {
        sqlx::query("INSERT INTO kept VALUES ($1)").bind(id).execute(&mut connection).await.unwrap();
    }

    server.kill9().await.unwrap();
    assert!(sqlx::query("SELECT 1").execute(&mut connection).await.is_err());
    server.restart().await.unwrap();
    assert_eq!(rows(&mut database.connect().await.unwrap()).await, 100);

    // A clean stop and start keeps them as well, and closes connections that are open.
    let mut connection = database.connect().await.unwrap();
    server.restart().await.unwrap();
    assert!(sqlx::query("SELECT 1").execute(&mut connection).await.is_err());
    assert_eq!(rows(&mut database.connect().await.unwrap()).await, 100);
}

async fn rows(connection: &mut PgConnection) -> i64 {
    sqlx::query("SELECT count(*) FROM kept").fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test]
async fn a_paused_postgres_answers_when_it_is_resumed() {
    let server = support::start_postgres(postgres::Options { fsync: true, ..Default::default() }).await;
    let mut connection = server.database("paused").await.unwrap().connect().await.unwrap();
    let fsync: String = sqlx::query("SHOW fsync").fetch_one(&mut connection).await.unwrap().get(0);
    assert_eq!(fsync, "on");

    server.pause().await.unwrap();
    let mut query = Box::pin(sqlx::query("SELECT 1").execute(&mut connection));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err());
    server.resume().await.unwrap();
    query.await.unwrap();
}

#[tokio::test]
async fn each_vhost_is_separate() {
    for _ in 0..2 {
        let vhost = support::vhost("same hint").await;
        let connection = vhost.connect().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        declare(&channel, "jobs").await;
        publish(&channel, "jobs", vhost.name.as_bytes()).await;
        assert_eq!(next(&channel, "jobs").await, vhost.name.as_bytes());

        let path = format!("queues/{}", vhost.encoded_name());
        let queues = vhost.manage(reqwest::Method::GET, &path, None).await.unwrap();
        assert_eq!(queues.as_array().unwrap().len(), 1);
        connection.close(200, "done".into()).await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_rabbitmq_keeps_a_confirmed_message() {
    let node = support::start_rabbitmq(rabbitmq::Options { prometheus: true, ..Default::default() }).await;
    let vhost = node.vhost("kept").await.unwrap();
    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare(&channel, "jobs").await;
    publish(&channel, "jobs", b"confirmed").await;
    let metrics = http::client().get(node.prometheus_url()).send().await.unwrap();
    assert!(metrics.status().is_success());

    node.kill9().await.unwrap();
    until("the client notices that the node is gone", LIMIT, async || {
        (!connection.status().connected()).then_some(())
    })
    .await;
    node.restart().await.unwrap();

    let connection = vhost.connect().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    assert_eq!(next(&channel, "jobs").await, b"confirmed");

    node.pause().await.unwrap();
    let connections = Connection::connect(&vhost.amqp_url, ConnectionProperties::default());
    assert!(tokio::time::timeout(Duration::from_millis(200), connections).await.is_err());
    node.resume().await.unwrap();
    vhost.connect().await.unwrap().close(200, "done".into()).await.unwrap();

    node.stop().await.unwrap();
    let connections = Connection::connect(&vhost.amqp_url, ConnectionProperties::default());
    assert!(connections.await.is_err());
}

async fn declare(channel: &Channel, queue: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

async fn publish(channel: &Channel, queue: &str, payload: &[u8]) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let confirmation = channel
        .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), payload, persistent)
        .await
        .unwrap()
        .await
        .unwrap();
    assert!(confirmation.is_ack());
}

async fn next(channel: &Channel, queue: &str) -> Vec<u8> {
    let mut consumer = channel
        .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let delivery = tokio::time::timeout(LIMIT, consumer.next()).await.unwrap().unwrap().unwrap();
    delivery.ack(BasicAckOptions::default()).await.unwrap();
    delivery.data
}

#[tokio::test]
async fn a_private_prometheus_scrapes_what_it_is_told_to() {
    let target = machine::free_port();
    let prometheus = Prometheus::start(&format!(
        "global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}\n\
         scrape_configs: [{{job_name: absent, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
    ))
    .await;
    let query = format!("{}/api/v1/query?query=up", prometheus.url());
    let client = http::client();
    let result = until("a first scrape", LIMIT, async || {
        let answer: serde_json::Value = client.get(&query).send().await.unwrap().json().await.unwrap();
        answer["data"]["result"].get(0).cloned()
    })
    .await;
    assert_eq!(result["metric"]["job"], "absent");
    assert_eq!(result["value"][1], "0");
}

#[tokio::test]
async fn a_cut_proxy_closes_connections_and_refuses_new_ones_until_it_heals() {
    let (proxy, _echo) = proxied_echo().await;
    let mut stream = dial(&proxy).await.unwrap();
    assert_eq!(echo(&mut stream, b"before").await, b"before");

    proxy.cut().await.unwrap();
    assert!(matches!(stream.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    assert_eq!(dial(&proxy).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

    proxy.heal().await.unwrap();
    assert_eq!(echo(&mut dial(&proxy).await.unwrap(), b"after").await, b"after");
}

/// Until it runs its program, a new process has copies of all sockets of this one.
#[tokio::test]
async fn a_cut_holds_while_processes_are_started() {
    let (proxy, _echo) = proxied_echo().await;
    let over = Arc::new(AtomicBool::new(false));
    let starter = {
        let over = over.clone();
        std::thread::spawn(move || {
            while !over.load(Relaxed) {
                Command::new("true").status().unwrap();
            }
        })
    };
    let mut dialled = 0;
    for _ in 0..300 {
        proxy.cut().await.unwrap();
        dialled += usize::from(dial(&proxy).await.is_ok());
        proxy.heal().await.unwrap();
    }
    over.store(true, Relaxed);
    starter.join().unwrap();
    assert_eq!(dialled, 0, "connections to a port that nobody listens on");
}

#[tokio::test]
async fn a_stalled_proxy_keeps_connections_and_delivers_when_it_heals() {
    let (proxy, _echo) = proxied_echo().await;
    let mut stream = dial(&proxy).await.unwrap();
    assert_eq!(echo(&mut stream, b"before").await, b"before");

    proxy.stall();
    stream.write_all(b"during").await.unwrap();
    let mut late = dial(&proxy).await.unwrap();
    late.write_all(b"late").await.unwrap();
    let mut answer = [0; 6];
    let silence = Duration::from_millis(100);
    assert!(tokio::time::timeout(silence, stream.read_exact(&mut answer)).await.is_err());

    proxy.heal().await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"during");
    late.read_exact(&mut answer[..4]).await.unwrap();
    assert_eq!(&answer[..4], b"late");

    // A cut ends connections that are stalled, too.
    proxy.stall();
    stream.write_all(b"lost").await.unwrap();
    proxy.cut().await.unwrap();
    assert!(matches!(stream.read(&mut answer).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_proxy_passes_on_that_one_side_has_no_more_to_say() {
    let (proxy, _echo) = proxied_echo().await;
    let mut stream = dial(&proxy).await.unwrap();
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"all");
}

#[test]
fn a_proxy_stands_in_for_its_target_in_a_url() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(support::start_proxy(1));
    let port = proxy.port();
    assert_eq!(
        proxy.url("postgres://errand@127.0.0.1:1/jobs").unwrap(),
        format!("postgres://errand@127.0.0.1:{port}/jobs")
    );
    assert_eq!(
        proxy.url("amqp://guest:guest@127.0.0.1:1/test%2Fjobs_1").unwrap(),
        format!("amqp://guest:guest@127.0.0.1:{port}/test%2Fjobs_1")
    );
}

async fn proxied_echo() -> (Proxy, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // It ends with an error when the proxy is cut.
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
    });
    (support::start_proxy(port).await, server)
}

async fn dial(proxy: &Proxy) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", proxy.port())).await
}

async fn echo(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
#[should_panic(expected = "waited 50ms in vain: a thing that never comes")]
async fn waiting_in_vain_says_for_what() {
    until("a thing that never comes", Duration::from_millis(50), async || None::<()>).await;
}

/// Makes `started_to_be_killed` do its work. It also names the directory of that process's services.
const TO_BE_KILLED: &str = "ERRAND_TEST_TO_BE_KILLED";

#[tokio::test]
async fn services_end_when_the_test_process_is_killed() {
    // It stays if this test fails, because it lists what `tests/run` then has to end.
    let base = tempfile::Builder::new().prefix("killed-").tempdir_in(machine::base()).unwrap().keep();
    // Another account has to pass through.
    machine::open_for_others(&base);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "services::started_to_be_killed"])
        .env(TO_BE_KILLED, "1")
        .env("ERRAND_TEST_DIR", &base)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = base.join("started");
    until("the other process has started its services", 4 * LIMIT, async || {
        assert_eq!(child.try_wait().unwrap(), None);
        started.exists().then_some(())
    })
    .await;
    let names: Vec<String> = processes_in(&base).into_iter().map(|(_, name)| name).collect();
    for expected in ["postgres", "beam.smp", "epmd"] {
        assert!(names.iter().any(|name| name == expected), "no {expected} in {names:?}");
    }

    child.kill().unwrap();
    child.wait().unwrap();
    until("every process of its services is gone", LIMIT, async || {
        processes_in(&base).is_empty().then_some(())
    })
    .await;
    until("the directories of its services are gone", LIMIT, async || {
        fs::read_dir(&base).unwrap().all(|entry| entry.unwrap().path() == started).then_some(())
    })
    .await;
    fs::remove_dir_all(&base).unwrap();
}

/// Not a test of its own: the process that the test above kills.
#[tokio::test]
async fn started_to_be_killed() {
    if std::env::var_os(TO_BE_KILLED).is_none() {
        return;
    }
    tokio::join!(support::database("killed"), support::vhost("killed"));
    fs::write(machine::base().join("started"), "").unwrap();
    std::future::pending().await
}

/// The processes that work in a directory or below it, with their names. A zombie works nowhere.
fn processes_in(directory: &Path) -> Vec<(PathBuf, String)> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes
        .filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory)))
        .filter_map(|process| {
            let name = fs::read_to_string(process.join("comm")).ok()?;
            Some((process, name.trim_end().to_owned()))
        })
        .collect()
}
