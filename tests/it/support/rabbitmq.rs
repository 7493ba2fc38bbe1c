//! Private RabbitMQ nodes: one that all tests share, and those that a test breaks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use super::guard::{Guard, Process};
use super::wait::until;
use super::{http, machine};

/// A node boots in seven to nine seconds on an idle machine of two cores, and tests keep it busy.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LIST_LIMIT: Duration = Duration::from_secs(10);

/// How a private node is set up.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The memory above which the node blocks publishers, as in `rabbitmq.conf`.
    pub(crate) memory_watermark: String,
    /// Whether the node has the `rabbitmq_prometheus` plugin; the management plugin is always there.
    pub(crate) prometheus: bool,
    /// More lines for `rabbitmq.conf`.
    pub(crate) conf: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory_watermark: "512MB".to_owned(), prometheus: false, conf: String::new() }
    }
}

/// A virtual host of its own, in a node that lives at least as long as the test. The user is guest/guest.
#[derive(Clone, Debug)]
pub(crate) struct Vhost {
    /// The name is percent-encoded in here. It contains a slash, as the default one of RabbitMQ does.
    pub(crate) amqp_url: String,
    pub(crate) name: String,
    /// The root of the management API, without credentials and without `/api`.
    pub(crate) management_url: String,
}

impl Vhost {
    /// A connection for what the test itself publishes and looks at.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::connect(&self.amqp_url, ConnectionProperties::default())
            .await
            .expect("connect to RabbitMQ")
    }

    /// The name as it stands in a path of the management API.
    pub(crate) fn encoded_name(&self) -> String {
        encode(&self.name)
    }

    /// Calls the management API; `path` follows `/api/`. Panics unless the call succeeds. An empty answer is
    /// `null`.
    pub(crate) async fn manage(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        manage(&self.management_url, method, path, body).await
    }
}

/// The node that all tests of this process share. It cannot be stopped or paused.
#[derive(Debug)]
pub(crate) struct Shared(RabbitMq);

impl Shared {
    /// Creates an empty virtual host.
    pub(crate) async fn vhost(&self, hint: &str) -> Vhost {
        self.0.vhost(hint).await
    }
}

/// Starts the shared node when the first test asks for it.
pub(crate) async fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    machine::blocking(|| SHARED.get_or_init(|| Shared(RabbitMq::start_blocking(Options::default())))).await
}

/// A node that one test owns. It is gone, with its data, when the value is dropped.
#[derive(Clone, Debug)]
pub(crate) struct RabbitMq {
    node: Arc<Node>,
}

impl RabbitMq {
    pub(crate) async fn start(options: Options) -> RabbitMq {
        machine::blocking(|| RabbitMq::start_blocking(options)).await
    }

    fn start_blocking(options: Options) -> RabbitMq {
        let node = machine::start_with_retries("RabbitMQ", || Node::start(&options));
        RabbitMq { node: Arc::new(node) }
    }

    /// The AMQP URL of the default virtual host. It stays the same over restarts.
    pub(crate) fn url(&self) -> String {
        self.amqp_url("/")
    }

    /// The loopback port of AMQP, for a proxy in front of the node.
    pub(crate) fn port(&self) -> u16 {
        self.node.installation.ports.amqp
    }

    /// The root of the management API, without credentials and without `/api`.
    pub(crate) fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.node.installation.ports.management)
    }

    /// Where the node's own metrics are, if it was started with the plugin.
    pub(crate) fn prometheus_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.node.installation.ports.prometheus)
    }

    /// Creates an empty virtual host.
    pub(crate) async fn vhost(&self, hint: &str) -> Vhost {
        let name = format!("test/{}", machine::unique(hint));
        let vhost = Vhost { amqp_url: self.amqp_url(&name), management_url: self.management_url(), name };
        let path = vhost.encoded_name();
        vhost.manage(reqwest::Method::PUT, &format!("vhosts/{path}"), Some(json!({}))).await;
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        vhost.manage(reqwest::Method::PUT, &format!("permissions/{path}/guest"), Some(all)).await;
        vhost
    }

    /// Kills the node with SIGKILL, and returns when it is gone.
    ///
    /// RabbitMQ 3.10 writes the list of its quorum queues half a second late, and a queue that is not in it
    /// has lost every confirmed message after a crash. That is not what tests are about, so this waits until
    /// the list is written.
    pub(crate) async fn kill9(&self) {
        let directory = self.node.installation.guard.directory().join("data");
        until("RabbitMQ has written the list of its quorum queues", LIST_LIMIT, async || {
            quorum_queues_are_listed(&directory).then_some(())
        })
        .await;
        self.with_node(|node| node.process().kill()).await;
    }

    /// Shuts down cleanly, which takes several seconds.
    pub(crate) async fn stop(&self) {
        self.with_node(|node| {
            let mut process = node.process();
            process.signal_tree("CONT");
            process.signal("TERM");
            process.wait(STOP_LIMIT);
        })
        .await;
    }

    /// Starts again on the same data and ports, after a clean stop if the node runs.
    pub(crate) async fn restart(&self) {
        self.stop().await;
        self.with_node(|node| {
            let process =
                node.installation.run().unwrap_or_else(|error| panic!("RabbitMQ does not restart: {error}"));
            *node.process() = process;
        })
        .await;
    }

    /// Stops all processes of the node where they are; connections stay open and nothing answers.
    pub(crate) async fn pause(&self) {
        self.with_node(|node| node.process().signal_tree("STOP")).await;
    }

    /// Lets a paused node go on.
    pub(crate) async fn resume(&self) {
        self.with_node(|node| node.process().signal_tree("CONT")).await;
    }

    fn amqp_url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{}", self.port(), encode(vhost))
    }

    async fn with_node(&self, work: impl FnOnce(&Node) + Send + 'static) {
        let node = Arc::clone(&self.node);
        machine::blocking(move || work(&node)).await;
    }
}

async fn manage(root: &str, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
    let url = format!("{root}/api/{path}");
    let mut request = http::client().request(method.clone(), &url).basic_auth("guest", Some("guest"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.expect("reach the management API");
    let status = response.status();
    let text = response.text().await.expect("read an answer of the management API");
    assert!(status.is_success(), "{method} {url}: {status} {text}");
    if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("an answer in JSON") }
}

/// Percent-encodes a name of this fixture, in which only the slash needs it.
fn encode(name: &str) -> String {
    name.replace('/', "%2F")
}

#[derive(Debug)]
struct Node {
    /// Dropped first, so that the processes are dead when they are reaped.
    installation: Installation,
    process: Mutex<Process>,
}

/// What stays the same over restarts.
#[derive(Debug)]
struct Installation {
    guard: Guard,
    server: PathBuf,
    ports: Ports,
    /// The port mapper, one per node: a node that finds none starts one that outlives it.
    epmd: Process,
}

#[derive(Debug)]
struct Ports {
    amqp: u16,
    management: u16,
    prometheus: u16,
    distribution: u16,
    epmd: u16,
}

impl Node {
    fn start(options: &Options) -> Result<Node, String> {
        let installation = Installation::create(options)?;
        let process = Mutex::new(installation.run()?);
        Ok(Node { installation, process })
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().expect("no panic while it is locked")
    }
}

impl Installation {
    fn create(options: &Options) -> Result<Installation, String> {
        // The script of the same name in `sbin` is Debian's: it changes the user and the directories.
        let server =
            machine::program("rabbitmq-server", "rabbitmq-server", &[PathBuf::from("/usr/lib/rabbitmq/bin")]);
        let epmd = machine::program("epmd", "erlang-base", &machine::versions("/usr/lib/erlang", "bin"));
        let guard = Guard::new("rabbit", None).map_err(|error| error.to_string())?;
        let ports = Ports {
            amqp: machine::free_port(),
            management: machine::free_port(),
            prometheus: machine::free_port(),
            distribution: machine::free_port(),
            epmd: machine::free_port(),
        };
        let plugins = if options.prometheus { ",rabbitmq_prometheus" } else { "" };
        for (file, contents) in [
            ("rabbitmq.conf", configuration(options, &ports)),
            ("enabled_plugins", format!("[rabbitmq_management{plugins}].\n")),
        ] {
            fs::write(guard.directory().join(file), contents).map_err(|error| error.to_string())?;
        }
        // It also listens on the IPv6 loopback address, which cannot be turned off.
        let args = ["-port", &ports.epmd.to_string(), "-address", "127.0.0.1"].map(str::to_owned);
        let mut epmd = guard.launch(&epmd, &args, &[]).map_err(|error| format!("launch: {error}"))?;
        // The request for all names; the answer begins with the port of the port mapper.
        epmd.wait_ready(START_LIMIT, || {
            machine::ask(ports.epmd, b"\0\x01n") == Some(u32::from(ports.epmd).to_be_bytes())
        })
        .map_err(|error| format!("epmd: {error}\n{}", guard.output()))?;
        Ok(Installation { guard, server, ports, epmd })
    }

    fn run(&self) -> Result<Process, String> {
        let mut process = self
            .guard
            .launch(&self.server, &[], &self.environment())
            .map_err(|error| format!("launch: {error}"))?;
        process
            .wait_ready(START_LIMIT, || answers(self.ports.amqp))
            .map_err(|error| format!("{error}\n{}", self.guard.output()))?;
        Ok(process)
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let directory = self.guard.directory();
        let file = |name: &str| directory.join(name).display().to_string();
        vec![
            // The cookie is kept there.
            ("HOME", directory.display().to_string()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_NODENAME", format!("test{}@localhost", self.ports.amqp)),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_LOGS", file("log/rabbit.log")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_PID_FILE", file("rabbit.pid")),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            // The distribution port would listen on every address.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
            ("ERL_EPMD_PORT", self.ports.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_CRASH_DUMP_SECONDS", "0".to_owned()),
        ]
    }
}

fn configuration(options: &Options, ports: &Ports) -> String {
    let Ports { amqp, management, prometheus, .. } = ports;
    let mut lines = format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {management}\n\
         collect_statistics_interval = 1000\n\
         vm_memory_high_watermark.absolute = {}\n\
         disk_free_limit.absolute = 50MB\n",
        options.memory_watermark
    );
    if options.prometheus {
        lines += &format!("prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {prometheus}\n");
    }
    lines + &options.conf
}

/// Whether the list names each directory of a quorum queue that stands beside it.
fn quorum_queues_are_listed(data: &Path) -> bool {
    let nodes = subdirectories(data).into_iter().flat_map(|node| subdirectories(&node.join("quorum")));
    nodes.into_iter().all(|node| {
        let list = fs::read(node.join("names.dets")).unwrap_or_default();
        subdirectories(&node).iter().all(|queue| {
            let name = queue.file_name().expect("a directory entry has a name").as_encoded_bytes();
            list.windows(name.len()).any(|window| window == name)
        })
    })
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Whether the node greets AMQP clients, which it does when everything else is up.
fn answers(port: u16) -> bool {
    // The first bytes of `connection.start`: a method frame on channel 0.
    machine::ask(port, b"AMQP\0\0\x09\x01") == Some([1, 0, 0])
}
