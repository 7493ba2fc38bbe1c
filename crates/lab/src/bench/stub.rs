//! A stub of the tool API: real HTTP/1.1 and HTTP/2 with fixed answers, as cheap as possible, because it shares
//! the processors with what is measured.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::http;
use bytes::Bytes;
use errand::cli;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::{
    child::{Process, Role, this_program},
    jobs::{TOOL, TOOLKIT, VERSION},
};
use crate::child::parent_is_gone;

/// Thousands of connections may be made at once.
const BACKLOG: u32 = 8192;

/// Larger requests are not the benchmark's.
const MAX_REQUEST: usize = 1024 * 1024;

/// Streams of one HTTP/2 connection, as servers commonly allow.
const STREAMS: u32 = 128;

/// The path of the count of calls.
const COUNT: &str = "/count";

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    running: AtomicU64,
    peak: AtomicU64,
}

/// Serves until the parent is gone. Prints the address when it listens.
///
/// # Errors
/// It cannot listen.
pub(super) async fn serve(delay: Duration) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(BACKLOG).context("the stub cannot listen")?;
    cli::print(&format!("{}\n", listener.local_addr()?))?;
    let counts = Arc::new(Counts::default());
    let serving = async {
        loop {
            // A client that is gone again, or too many open files: neither is the stub's to solve.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                // A connection that breaks is the client's affair.
                drop(serve_connection(stream, delay, counts).await);
            });
        }
    };
    tokio::select! {
        () = serving => {}
        () = parent_is_gone() => {}
    }
    Ok(())
}

/// Speaks HTTP/2 with a client that begins with its preface, and HTTP/1.1 with others.
async fn serve_connection(stream: TcpStream, delay: Duration, counts: Arc<Counts>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0; 3];
    while stream.peek(&mut first).await? < first.len() {
        stream.readable().await?;
    }
    if &first == b"PRI" {
        return multiplex(stream, delay, counts).await;
    }
    Ok(converse(stream, delay, &counts).await?)
}

async fn multiplex(stream: TcpStream, delay: Duration, counts: Arc<Counts>) -> Result<()> {
    let mut connection = h2::server::Builder::new().max_concurrent_streams(STREAMS).handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let counts = Arc::clone(&counts);
        tokio::spawn(async move { drop(answer(request, respond, delay, &counts).await) });
    }
    Ok(())
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    delay: Duration,
    counts: &Counts,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    while let Some(chunk) = body.data().await {
        body.flow_control().release_capacity(chunk?.len())?;
    }
    let call = counts.begin(head.method == http::Method::POST);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let text = match head.uri.path() {
        _ if call.counts => EXECUTED.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned(),
        path if path.contains("/connected_accounts") => accounts(),
        _ => tool(),
    };
    drop(call);
    let head = http::Response::builder().header("content-type", "application/json").body(())?;
    respond.send_response(head, false)?.send_data(text.into(), true)?;
    Ok(())
}

impl Counts {
    /// Notes that a request is being answered; one that `counts` is a call.
    fn begin(&self, counts: bool) -> Running<'_> {
        if counts {
            let running = self.running.fetch_add(1, Relaxed) + 1;
            self.peak.fetch_max(running, Relaxed);
        }
        Running { all: self, counts }
    }
}

/// A request that is being answered, until it is dropped.
struct Running<'a> {
    all: &'a Counts,
    counts: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.all.calls.fetch_add(1, Relaxed);
            self.all.running.fetch_sub(1, Relaxed);
        }
    }
}

async fn converse(mut stream: TcpStream, delay: Duration, counts: &Counts) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(2048);
    loop {
        let request = loop {
            match parse(&buffer) {
                Parsed::Whole(request) => break request,
                Parsed::Partial => {}
                Parsed::Unusable => return Ok(()),
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let execute = request.method_is_post;
        let call = counts.begin(execute);
        if !delay.is_zero() && request.path != COUNT {
            tokio::time::sleep(delay).await;
        }
        let answer = match request.path {
            COUNT => with_length(&format!("{} {}", counts.calls.load(Relaxed), counts.peak.load(Relaxed))),
            _ if execute => EXECUTED.to_owned(),
            path if path.contains("/connected_accounts") => with_length(&accounts()),
            path if path.contains("/tools/") => with_length(&tool()),
            _ => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        };
        let end = request.end;
        drop(call);
        stream.write_all(answer.as_bytes()).await?;
        buffer.drain(..end);
    }
}

/// The answer to every call; its length is checked by a test.
const EXECUTED: &str = concat!(
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 250\r\n\r\n",
    r#"{"data":{"id":8127364,"name":"bench","full_name":"acme/bench","description":"One answer of a tool, "#,
    r#"of a size that is common among tools","stars":1024,"open_issues":17},"error":null,"successful":true,"#,
    r#""log_id":"log_Bench0123456789","session_info":null}"#
);

fn tool() -> String {
    format!(
        r#"{{"slug":"{TOOL}","name":"Bench","description":"","toolkit":{{"slug":"{TOOLKIT}"}},"version":"{VERSION}","available_versions":["{VERSION}"],"tags":[],"no_auth":false,"is_deprecated":false}}"#
    )
}

/// One account that names no owner, so that it fits whoever asks.
fn accounts() -> String {
    format!(
        r#"{{"items":[{{"id":"ca_bench","toolkit":{{"slug":"{TOOLKIT}"}},"status":"ACTIVE","created_at":"2025-01-01T00:00:00Z"}}],"next_cursor":null}}"#
    )
}

fn with_length(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

struct Request<'a> {
    method_is_post: bool,
    path: &'a str,
    /// Where the next request begins.
    end: usize,
}

enum Parsed<'a> {
    Whole(Request<'a>),
    Partial,
    /// Not what the benchmark's contenders send.
    Unusable,
}

fn parse(buffer: &[u8]) -> Parsed<'_> {
    let Some(head_end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if buffer.len() > MAX_REQUEST { Parsed::Unusable } else { Parsed::Partial };
    };
    let Ok(head) = std::str::from_utf8(&buffer[..head_end]) else { return Parsed::Unusable };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Parsed::Unusable };
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>());
    let end = match length {
        Ok(length) if length <= MAX_REQUEST => head_end + 4 + length,
        _ => return Parsed::Unusable,
    };
    if buffer.len() < end {
        return Parsed::Partial;
    }
    Parsed::Whole(Request { method_is_post: method == "POST", path, end })
}

/// The stub, as its parent sees it.
#[derive(Debug)]
pub(super) struct StubProcess {
    process: Process,
    address: String,
    delay: Duration,
    client: reqwest::Client,
}

/// How often the stub was called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calls {
    /// Calls that were answered.
    pub(super) answered: u64,
    /// The most calls that ran at once.
    pub(super) peak: u64,
}

impl StubProcess {
    pub(super) async fn start(delay: Duration) -> Result<Self> {
        let arguments = ["--stub-ms".to_owned(), delay.as_millis().to_string()];
        let mut process = Process::start(&this_program()?, Role::Stub, &arguments, &[])?;
        let address = process.first_line().await?;
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        Ok(Self { process, address, delay, client })
    }

    pub(super) fn delay(&self) -> Duration {
        self.delay
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) async fn calls(&self) -> Result<Calls> {
        let url = format!("{}{COUNT}", self.base_url());
        let text = self.client.get(url).send().await?.error_for_status()?.text().await?;
        let (answered, peak) = text.split_once(' ').context("the stub's count cannot be read")?;
        Ok(Calls { answered: answered.parse()?, peak: peak.parse()? })
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_answer_has_the_length_that_it_announces() {
        let (head, body) = EXECUTED.split_once("\r\n\r\n").unwrap();
        let announced = head.rsplit_once(": ").unwrap().1;
        assert_eq!(announced.parse(), Ok(body.len()));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }

    #[test]
    fn requests_are_cut_where_they_end() {
        let text = b"POST /a HTTP/1.1\r\nhost: x\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\n\r\n";
        let Parsed::Whole(first) = parse(text) else { panic!("the first request is whole") };
        assert!(first.method_is_post);
        assert_eq!(first.path, "/a");
        let Parsed::Whole(second) = parse(&text[first.end..]) else { panic!("so is the second") };
        assert_eq!((second.path, second.method_is_post), ("/b", false));
        assert!(matches!(parse(&text[..first.end - 1]), Parsed::Partial));
    }
}
