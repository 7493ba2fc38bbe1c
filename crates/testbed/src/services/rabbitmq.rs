//! Private RabbitMQ nodes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use super::{
    guard::{Guard, Process},
    machine,
    place::Place,
    server::{self, Installation as _, Server},
};

/// A node boots in seven to nine seconds on an idle machine of two cores, and tests keep it busy.
const START_LIMIT: Duration = Duration::from_secs(120);
const LIST_LIMIT: Duration = Duration::from_secs(60);
const MANAGE_LIMIT: Duration = Duration::from_secs(30);
/// `rabbitmqctl` starts a virtual machine of its own for every command.
const CONTROL_LIMIT: Duration = Duration::from_secs(120);

/// Has the distribution of an Erlang node listen on loopback only.
const LOOPBACK: &str = "-kernel inet_dist_use_interface {127,0,0,1}";

/// Has a node that has nothing to do sleep at once, instead of keeping a core busy for a moment in case there is more. RabbitMQ
/// recommends it where others need the cores, too, as here the database and errand do.
const SHARED_CORES: &str = "+sbwt none +sbwtdcpu none +sbwtdio none";

/// How a private node is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The memory above which the node blocks publishers, as in `rabbitmq.conf`.
    pub memory_watermark: String,
    /// Whether the node has the `rabbitmq_prometheus` plugin; the management plugin is always there.
    pub prometheus: bool,
    /// More lines for `rabbitmq.conf`.
    pub conf: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory_watermark: "1GB".to_owned(), prometheus: false, conf: String::new() }
    }
}

/// A virtual host of its own. It is gone with its node. The user is guest/guest.
#[derive(Clone, Debug)]
pub struct Vhost {
    /// The name is percent-encoded in here. It contains a slash, as the default one of RabbitMQ does.
    pub amqp_url: String,
    /// Its name in the node.
    pub name: String,
    /// The root of the management API, without credentials and without `/api`.
    pub management_url: String,
}

impl Vhost {
    /// A connection for what the test itself publishes and looks at.
    ///
    /// # Errors
    /// The node does not answer, or refuses.
    pub async fn connect(&self) -> lapin::Result<Connection> {
        Connection::connect(&self.amqp_url, ConnectionProperties::default()).await
    }

    /// The name as it stands in a path of the management API.
    #[must_use]
    pub fn encoded_name(&self) -> String {
        encode(&self.name)
    }

    /// Calls the management API; `path` follows `/api/`. An empty answer is `null`.
    ///
    /// # Errors
    /// The node does not answer, or refuses.
    pub async fn manage(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value> {
        manage(&self.management_url, method, path, body).await
    }
}

/// A node that is gone, with its data, when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct RabbitMq(Server<Installation>);

impl RabbitMq {
    /// Starts a node, and returns when it answers.
    ///
    /// # Errors
    /// RabbitMQ is not installed, or does not start.
    pub async fn start(place: &Place, options: Options) -> Result<RabbitMq> {
        let place = place.clone();
        machine::blocking(move || RabbitMq::start_blocking(&place, &options)).await
    }

    /// The same, for a thread that may wait.
    ///
    /// # Errors
    /// As for `start`.
    pub fn start_blocking(place: &Place, options: &Options) -> Result<RabbitMq> {
        let programs = Programs::find()?;
        let start = || Server::start(Installation::create(place, &programs, options)?);
        machine::start_with_retries(Installation::SERVICE, start).map(RabbitMq)
    }

    /// The AMQP URL of the default virtual host. It stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        self.amqp_url("/")
    }

    /// The loopback port of AMQP, for a proxy in front of the node.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.installation().ports.amqp
    }

    /// The root of the management API, without credentials and without `/api`.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.installation().ports.management)
    }

    /// Where the node's own metrics are, if it was started with the plugin.
    #[must_use]
    pub fn prometheus_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.0.installation().ports.prometheus)
    }

    /// Creates an empty virtual host, whose name has the hint in it.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn vhost(&self, hint: &str) -> Result<Vhost> {
        let name = format!("test/{}", self.0.name(hint));
        let vhost = Vhost { amqp_url: self.amqp_url(&name), management_url: self.management_url(), name };
        let path = vhost.encoded_name();
        vhost.manage(reqwest::Method::PUT, &format!("vhosts/{path}"), Some(json!({}))).await?;
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        vhost.manage(reqwest::Method::PUT, &format!("permissions/{path}/guest"), Some(all)).await?;
        Ok(vhost)
    }

    /// Kills the node with SIGKILL, and returns when it is gone.
    ///
    /// RabbitMQ 3.10 writes the list of its quorum queues half a second late, and a queue that is not in it
    /// has lost every confirmed message after a crash. No client can do anything about that, so this waits
    /// until the list is written.
    ///
    /// # Errors
    /// The list is not written within 10 seconds, or the node cannot be killed.
    pub async fn kill9(&self) -> Result<()> {
        let directory = self.0.installation().guard.directory().join("data");
        let listed = async {
            while !quorum_queues_are_listed(&directory) {
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        };
        if tokio::time::timeout(LIST_LIMIT, listed).await.is_err() {
            bail!("RabbitMQ has not written the list of its quorum queues within {LIST_LIMIT:?}");
        }
        self.0.kill9().await
    }

    /// Shuts down cleanly, which takes several seconds. Kills what has not ended after a minute.
    ///
    /// # Errors
    /// The node cannot be stopped.
    pub async fn stop(&self) -> Result<()> {
        self.0.stop().await
    }

    /// Starts again on the same data and ports, after a clean stop if the node runs.
    ///
    /// # Errors
    /// The node does not stop or does not start.
    pub async fn restart(&self) -> Result<()> {
        self.0.restart().await
    }

    /// Stops all processes of the node where they are; connections stay open and nothing answers.
    ///
    /// # Errors
    /// No signal can be sent.
    pub async fn pause(&self) -> Result<()> {
        self.0.pause().await
    }

    /// Lets a paused node go on.
    ///
    /// # Errors
    /// No signal can be sent.
    pub async fn resume(&self) -> Result<()> {
        self.0.resume().await
    }

    fn amqp_url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{}", self.port(), encode(vhost))
    }

    /// Runs `rabbitmqctl` with these arguments on the node, for what the management API cannot do.
    ///
    /// # Errors
    /// The command fails, or takes longer than a minute; the message has the last lines of the node's output.
    pub async fn control(&self, args: &[&str]) -> Result<()> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.0.with(move |node| node.installation().control(&args)).await
    }
}

async fn manage(root: &str, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value> {
    let url = format!("{root}/api/{path}");
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(MANAGE_LIMIT).build()?;
    let mut request = client.request(method.clone(), &url).basic_auth("guest", Some("guest"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let mut response = send(&request).await;
    // The node closes a connection on which no request came for some seconds, as happens on a busy machine.
    if response.is_err() && method.is_idempotent() {
        response = send(&request).await;
    }
    let response = response.context("reach the management API of RabbitMQ")?;
    let status = response.status();
    let text = response.text().await.context("read an answer of the management API of RabbitMQ")?;
    ensure!(status.is_success(), "{method} {url}: {status} {text}");
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{method} {url}: the answer is not JSON"))
}

async fn send(request: &reqwest::RequestBuilder) -> Result<reqwest::Response> {
    Ok(request.try_clone().context("a request with a stream")?.send().await?)
}

/// Percent-encodes a name of this fixture, in which only the slash needs it.
fn encode(name: &str) -> String {
    name.replace('/', "%2F")
}

/// What is run.
#[derive(Clone, Debug)]
struct Programs {
    server: PathBuf,
    epmd: PathBuf,
}

impl Programs {
    fn find() -> Result<Self> {
        // The script of the same name in `sbin` is Debian's: it changes the user and the directories.
        let upstream = [PathBuf::from("/usr/lib/rabbitmq/bin")];
        Ok(Self {
            server: machine::program("rabbitmq-server", "rabbitmq-server", &upstream)?,
            epmd: machine::program(
                "epmd",
                "erlang-base",
                &machine::versions(Path::new("/usr/lib/erlang"), "bin"),
            )?,
        })
    }
}

/// What stays the same over restarts.
#[derive(Debug)]
struct Installation {
    guard: Guard,
    server: PathBuf,
    ports: Ports,
    /// The port mapper, one per node: a node that finds none starts one that outlives it.
    #[expect(dead_code, reason = "it is reaped when this is dropped")]
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

impl Installation {
    fn create(place: &Place, programs: &Programs, options: &Options) -> Result<Installation> {
        let guard = Guard::new(place, "rabbit", None)?;
        let ports = Ports {
            amqp: place.free_port()?,
            management: place.free_port()?,
            prometheus: place.free_port()?,
            distribution: place.free_port()?,
            epmd: place.free_port()?,
        };
        let plugins = if options.prometheus { ",rabbitmq_prometheus" } else { "" };
        for (file, contents) in [
            ("rabbitmq.conf", configuration(options, &ports)),
            ("enabled_plugins", format!("[rabbitmq_management{plugins}].\n")),
        ] {
            fs::write(guard.directory().join(file), contents).with_context(|| format!("write {file}"))?;
        }
        // It also listens on the IPv6 loopback address, which cannot be turned off.
        let args = ["-port", &ports.epmd.to_string(), "-address", "127.0.0.1"].map(str::to_owned);
        let mut epmd = guard.launch(&programs.epmd, &args, &[])?;
        // The request for all names; the answer begins with the port of the port mapper.
        epmd.wait_ready(START_LIMIT, || {
            machine::ask(ports.epmd, b"\0\x01n") == Some(u32::from(ports.epmd).to_be_bytes())
        })
        .with_context(|| format!("the port mapper epmd wrote:\n{}\nand", guard.output()))?;
        Ok(Installation { guard, server: programs.server.clone(), ports, epmd })
    }

    fn control(&self, args: &[String]) -> Result<()> {
        let mut environment = self.environment();
        // Its own distribution port would listen on every address, too.
        environment.push(("RABBITMQ_CTL_ERL_ARGS", LOOPBACK.to_owned()));
        let mut process =
            self.guard.launch(&self.server.with_file_name("rabbitmqctl"), args, &environment)?;
        match process.wait(CONTROL_LIMIT)? {
            Some(status) if status.success() => Ok(()),
            status => bail!("rabbitmqctl {args:?} failed ({status:?})\n{}", self.guard.output()),
        }
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
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("{LOOPBACK} {SHARED_CORES}")),
            ("ERL_EPMD_PORT", self.ports.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_CRASH_DUMP_SECONDS", "0".to_owned()),
        ]
    }
}

impl server::Installation for Installation {
    const SERVICE: &'static str = "RabbitMQ";
    const STOP_SIGNAL: &'static str = "TERM";
    const STOP_LIMIT: Duration = Duration::from_secs(60);

    fn run(&self) -> Result<Process> {
        let mut process = self.guard.launch(&self.server, &[], &self.environment())?;
        process
            .wait_ready(START_LIMIT, || answers(self.ports.amqp))
            .with_context(|| format!("the node wrote:\n{}\nand", self.guard.output()))?;
        Ok(process)
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
            let name = queue.file_name().unwrap_or_default().as_encoded_bytes();
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
