//! The listener of the API for apps.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn, from_fn_with_state},
};
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    actions,
    around::around,
    audit_log, batches, callbacks,
    caller::{self, Gate, Peer},
    connections::{Connections, Open},
    cors::{Origins, tell_browsers},
    decisions, desk,
    document::{self, DescribedRoutes},
    edit, events, jobs, keys,
    limits::{Rate, Room},
    pins,
    problem::{Kind, Problem},
    queues, rejected,
    sealing::Sealing,
    shared::{Description, Parts, Shared},
    slow_reader::SlowReader,
    streams::Streams,
    tls::{Seen, Tls, TlsFiles},
    together::Together,
    tokens,
    waiters::Waiters,
};
use crate::failure::chain;

/// Most connections that are open at once, where the process may have twice as many files open.
const MAX_CONNECTIONS: usize = 16_384;

/// How long the head of a request may take, and how long a connection may be idle before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Most bytes of the head of a request.
const MAX_HEAD_BYTES: usize = 32 * 1024;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long requests that are under way, and jobs on their way to the broker, may take to end when the API stops. With the
/// three seconds that a silent broker may take to be left, `errand api` ends within ten.
const DRAIN: Duration = Duration::from_secs(6);

#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    parts: Parts,
    routes: Router<Shared>,
    description: Description,
    is_on_loopback: bool,
    options: Options,
    tls: Option<(Arc<Tls>, Seen)>,
}

/// What is set about the API as a whole.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The origins of web pages that may use it; `*` is every one.
    pub cors_origins: Vec<String>,
    /// The most requests of an owner per second; 0 is no limit.
    pub requests_per_second: u32,
    /// Its certificate. Without one it speaks plain HTTP.
    pub tls: Option<TlsFiles>,
}

impl Api {
    /// Binds the address, so that a port in use is known before anything else starts.
    ///
    /// # Errors
    /// The address cannot be bound, or the certificate cannot be used.
    pub async fn bind(address: SocketAddr, parts: Parts, options: Options) -> std::io::Result<Self> {
        let tls = options.tls.clone().map(Tls::new).transpose()?;
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let DescribedRoutes { router: routes, paths } = routes();
        let description = Description::new(
            paths,
            &format!("{}://{address}", if tls.is_some() { "https" } else { "http" }),
        )?;
        let is_on_loopback = address.ip().is_loopback();
        Ok(Self { listener, parts, routes, description, is_on_loopback, options, tls })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`. Then those who wait get their answers, and requests that are under way end within six seconds.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, parts, routes, description, is_on_loopback, options, tls } = self;
        let waiters = Waiters::new(parts.store.clone(), stop.clone());
        let most = most_connections();
        let streams = Streams::new(parts.store.clone(), Room::for_streams(most), stop.clone());
        let looking = tokio::spawn({
            let (waiters, streams) = (waiters.clone(), streams.clone());
            async move { tokio::join!(waiters.run(), streams.run()) }
        });
        let tls = tls.map(|(tls, seen)| {
            let renewing = {
                let (tls, stop) = (tls.clone(), stop.clone());
                async move { tls.renew(seen, stop).await }
            };
            tokio::spawn(renewing);
            tls
        });
        let rate = Rate::new(options.requests_per_second);
        let sealing = Arc::new(Sealing::new(parts.store.clone()));
        let gate = Arc::new(Gate::new(
            parts.store.clone(),
            parts.clock.clone(),
            sealing.clone(),
            is_on_loopback,
            rate,
            most,
        ));
        let origins = Origins::new(options.cors_origins);
        let turns = Room::for_turns();
        let together = Together::new(parts.admission.clone(), stop.clone());
        let (parts, glimpse) = (Arc::new(parts), Arc::default());
        let shared = Shared {
            parts,
            together: together.clone(),
            waiters,
            streams,
            sealing,
            glimpse,
            description,
            turns,
        };
        let router = router(routes, shared, gate, origins);
        let connections = Connections::new(most);
        let serving = TaskTracker::new();
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let open = Arc::new(connections.enter().await);
                        let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                        serving.spawn(serve_any(stream, tls, Peer(peer.ip()), open, router, stop));
                    }
                    // As when the process is out of files.
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
            }
        };
        let _stopped: Option<()> = stop.run_until_cancelled(accepting).await;
        drop(listener);
        serving.close();
        let drained = async {
            serving.wait().await;
            together.handed_over().await;
        };
        let _in_time = tokio::time::timeout(DRAIN, drained).await;
        drop(looking.await);
    }
}

/// How many connections may be open. Half of the files that the process may open are for jobs, the store and the broker.
fn most_connections() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, ..limits };
    let files = if setrlimit(Resource::Nofile, raised).is_ok() { raised.current } else { limits.current };
    let half = files.and_then(|files| usize::try_from(files / 2).ok());
    half.unwrap_or(MAX_CONNECTIONS).clamp(1, MAX_CONNECTIONS)
}

/// Every route there is, with its description.
fn routes() -> DescribedRoutes {
    DescribedRoutes::new()
        .route(jobs::__path_enqueue, jobs::enqueue)
        .route(jobs::__path_list, jobs::list)
        .route(jobs::__path_show, jobs::show)
        .route(jobs::__path_attempts, jobs::attempts)
        .route(jobs::__path_history, jobs::history)
        .route(edit::__path_edit, edit::edit)
        .route(decisions::__path_cancel, decisions::cancel)
        .route(decisions::__path_retry, decisions::retry)
        .route(decisions::__path_release, decisions::release)
        .route(batches::__path_create, batches::create)
        .route(batches::__path_list, batches::list)
        .route(batches::__path_show, batches::show)
        .route(batches::__path_add, batches::add)
        .route(batches::__path_items, batches::items)
        .route(batches::__path_seal, batches::seal)
        .route(batches::__path_cancel, batches::cancel)
        .route(batches::__path_retry, batches::retry)
        .route(keys::__path_create, keys::create)
        .route(keys::__path_list, keys::list)
        .route(keys::__path_show, keys::show)
        .route(keys::__path_rotate, keys::rotate)
        .route(keys::__path_revoke, keys::revoke)
        .route(actions::__path_create, actions::create)
        .route(actions::__path_list, actions::list)
        .route(actions::__path_show, actions::show)
        .route(actions::__path_confirm, actions::confirm)
        .route(actions::__path_abort, actions::abort)
        .route(queues::__path_list, queues::list)
        .route(queues::__path_pause, queues::pause)
        .route(queues::__path_resume, queues::resume)
        .route(queues::__path_stats, queues::stats)
        .route(pins::__path_list, pins::list)
        .route(pins::__path_set, pins::set)
        .route(pins::__path_remove, pins::remove)
        .route(rejected::__path_list, rejected::list)
        .route(rejected::__path_show, rejected::show)
        .route(rejected::__path_body, rejected::body)
        .route(rejected::__path_requeue, rejected::requeue)
        .route(desk::__path_workers, desk::workers)
        .route(desk::__path_tool, desk::tool)
        .route(desk::__path_accounts, desk::accounts)
        .route(audit_log::__path_list, audit_log::list)
        .route(events::__path_list, events::list)
        .route(callbacks::__path_list, callbacks::list)
        .route(callbacks::__path_set, callbacks::set)
        .route(callbacks::__path_remove, callbacks::remove)
        .route(callbacks::__path_secret, callbacks::secret)
        .route(callbacks::__path_recover, callbacks::recover)
        .route(callbacks::__path_deliveries, callbacks::deliveries)
        .route(tokens::__path_create, tokens::create)
        .route(document::__path_openapi, document::openapi)
        .route(document::__path_docs, document::docs)
}

fn router(routes: Router<Shared>, shared: Shared, gate: Arc<Gate>, origins: Option<Origins>) -> Router {
    let not_found = || async { Problem::new(Kind::NotFound, "there is no such path; GET /docs lists them") };
    let other_method =
        || async { Problem::new(Kind::MethodNotAllowed, "the header `Allow` names the methods") };
    let routes = routes
        .fallback(not_found)
        .method_not_allowed_fallback(other_method)
        // Each handler reads its body within bounds of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(gate, caller::authenticate));
    let routes = if let Some(origins) = origins {
        routes.layer(from_fn_with_state(origins, tell_browsers))
    } else {
        routes
    };
    routes.layer(from_fn(around)).with_state(shared)
}

/// Serves a connection, after its handshake where there is a certificate.
async fn serve_any(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    peer: Peer,
    open: Arc<Open>,
    router: Router,
    stop: CancellationToken,
) {
    let Some(tls) = tls else { return serve(stream, peer, open, router, stop).await };
    // It is larger by kilobytes, which a connection without TLS does not have to carry.
    let encrypted = async {
        let accepted = tokio::select! {
            accepted = tls.accept(stream) => accepted,
            () = open.has_to_go() => return,
        };
        match accepted {
            Ok(stream) => serve(stream, peer, open, router, stop).await,
            Err(error) => {
                tracing::trace!(error = %chain(&error), "a connection to the API ended before its handshake did")
            }
        }
    };
    Box::pin(encrypted).await;
}

/// Answers the requests of one connection, one after the other, until it is closed or idle for too long, has to make room, or
/// until `stop`.
async fn serve<S>(stream: S, peer: Peer, open: Arc<Open>, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<_>| {
        request.extensions_mut().insert(peer);
        let asking = Arc::new(open.asks());
        // An answer that goes on for long keeps it.
        request.extensions_mut().insert(asking.clone());
        let answer = router.call(request);
        async move {
            let answer = answer.await;
            drop(asking);
            answer
        }
    });
    let serving = http.serve_connection(TokioIo::new(SlowReader::new(stream)), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        // First, so that a request that is there already is seen.
        biased;
        ended = serving.as_mut() => Some(ended),
        () = stop.cancelled() => None,
        () = open.has_to_go() => {
            if open.is_idle() {
                return;
            }
            None
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    // What goes wrong with a connection is nothing that an operator could mend here.
    tracing::trace!(?ended, "a connection to the API is closed");
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_request_that_panics_is_answered_and_the_next_one_too() {
        let router = Router::new()
            .route("/panics", get(async || -> &'static str { panic!("as planned") }))
            .route("/works", get(async || "works"))
            .layer(from_fn(around));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let open = Arc::new(Connections::new(1).enter().await);
        tokio::spawn(serve(stream, Peer([127, 0, 0, 1].into()), open, router, CancellationToken::new()));
        for path in ["/panics", "/works"] {
            let close = if path == "/works" { "Connection: close\r\n" } else { "" };
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
        }
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert!(answers.starts_with("HTTP/1.1 500 "), "{answers}");
        assert!(answers.contains("urn:errand:problem:internal"), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 OK") && answers.ends_with("works"), "{answers}");
    }
}
