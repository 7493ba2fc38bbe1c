//! A tool API by somebody else: a second reading of the facts, in the plainest legal form, that misbehaves by
//! a seed.
//!
//! It shares no code with `sandbox` and none with the client, so a misunderstanding in one of them shows. It
//! speaks HTTP/1.1 over plain sockets, because much of what it does wrong no HTTP library would do.
//!
//! What it promises even while it misbehaves, because nobody could keep a promise on top of less:
//! * It says `successful: true` in a whole answer only if the tool ran, and refuses a call with a 4xx status
//!   other than 408 only if the tool did not and will not run.
//! * A tool runs at most [`Options::late`] after its call arrived, and is in the log at most
//!   [`Options::log_delay`] later, under the request ID that was sent.
//! * The log loses either nothing or, for [`Options::log_blackout`] at a time, everything. What it lost is back
//!   afterwards.
//!
//! Any owner whose ID begins with `user-` or `org-` has one active account per toolkit.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod answer;
mod api;
mod calls;
mod ledger;
mod log;
mod mischief;
mod options;
mod state;
mod wire;
mod world;

pub use ledger::{Call, Summary};
pub use mischief::Mischief;
pub use options::{Options, Rates};
pub use world::{ONCE_TOOLS, TOOLKITS, TOOLS};

use state::State;
use wire::Act;

/// A pause after a connection could not be accepted, which happens when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A tool API that misbehaves.
#[derive(Debug)]
pub struct SecondApi;

impl SecondApi {
    /// Starts to serve. It belongs to the runtime in which it is started.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn bind(options: Options) -> io::Result<Running> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            options,
            address,
            started: Instant::now(),
            misbehaves: AtomicBool::new(true),
            requests: AtomicU64::new(0),
            ledger: Mutex::default(),
            work: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let running = Running { state, listening: Mutex::new(None) };
        running.open(listener);
        Ok(running)
    }
}

/// A tool API that is being served. It ends, with all that is under way, when this is dropped.
#[derive(Debug)]
pub struct Running {
    state: Arc<State>,
    listening: Mutex<Option<Listening>>,
}

/// The listener and its connections.
#[derive(Debug)]
struct Listening {
    closed: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Running {
    /// The root, without the path of the API.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.state.address)
    }

    /// The loopback port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.state.address.port()
    }

    /// The key that is accepted.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.state.options.api_key
    }

    /// How often a tool took effect for a job, or for a request ID.
    #[must_use]
    pub fn effects_of(&self, id: &str) -> u64 {
        self.state.ledger(|ledger| ledger.effects_of(id))
    }

    /// How often a job, or a request ID, was heard of.
    #[must_use]
    pub fn calls_of(&self, id: &str) -> u64 {
        self.state.ledger(|ledger| ledger.calls_of(id))
    }

    /// Every call, in the order of arrival.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state.ledger(|ledger| ledger.calls().to_vec())
    }

    /// Everything that happened, counted.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.state.ledger(|ledger| ledger.summary())
    }

    /// Ends all misbehaviour. What is late already stays late, and everything is in the log at once.
    pub fn heal(&self) {
        self.state.misbehaves.store(false, Ordering::Release);
    }

    /// Misbehaves again.
    pub fn misbehave(&self) {
        self.state.misbehaves.store(true, Ordering::Release);
    }

    /// Closes the port and every connection; both hold when it returns. Calls that have arrived go on, and
    /// nobody hears of them.
    pub async fn go_away(&self) {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Listening { closed, accepting }) = listening {
            closed.cancel();
            // It ends by the token; that it panicked would only mean that it has ended, too.
            drop(accepting.await);
        }
    }

    /// Listens on the same port again.
    ///
    /// # Errors
    /// It is taken by now.
    pub async fn come_back(&self) -> io::Result<()> {
        if self.listening.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.open(TcpListener::bind(self.state.address).await?);
        }
        Ok(())
    }

    /// Waits until no call is under way, which takes no longer than the longest misbehaviour.
    pub async fn idle(&self) {
        self.state.work.close();
        self.state.work.wait().await;
        self.state.work.reopen();
    }

    fn open(&self, listener: TcpListener) {
        let closed = self.state.stop.child_token();
        let accepting = tokio::spawn(accept(self.state.clone(), listener, closed.clone()));
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Listening { closed, accepting });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.stop.cancel();
    }
}

async fn accept(state: Arc<State>, listener: TcpListener, closed: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = closed.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (state, closed) = (state.clone(), closed.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = closed.cancelled() => {}
                        // The client has gone, which is its own affair.
                        _gone = serve(state, stream) => {}
                    }
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection, request after request.
async fn serve(state: Arc<State>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        // What was not read when the connection is closed makes it a reset.
        if stream.get_ref().peek(&mut [0]).await? == 0 {
            return Ok(());
        }
        let nth = state.requests.fetch_add(1, Ordering::Relaxed);
        if state.trouble("connection", nth, state.options.rates.connection).is_some() {
            state.ledger(|ledger| ledger.count("cut_unread"));
            return Ok(());
        }
        let Some(request) = wire::read(&mut stream).await? else { return Ok(()) };
        // The work goes on when the client has gone.
        let (worker, stop) = (state.clone(), state.stop.clone());
        let work = state.work.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => Act::Close,
                act = api::handle(&worker, &request) => act,
            }
        });
        match work.await {
            Ok(Act::Answer(answer)) => {
                let whole = answer.is_whole();
                stream.get_mut().write_all(&answer.encode()).await?;
                if !whole {
                    return stream.get_mut().shutdown().await;
                }
            }
            Ok(Act::Close) | Err(_) => return Ok(()),
        }
    }
}
