//! A client of the API that does next to nothing: it sends bytes and reads the status and the body of the answer.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// One address has some 28,000 ports for connections to another one; each address of ours makes fewer.
const CONNECTIONS_OF_AN_ADDRESS: usize = 8_000;

/// A longer head or body is no answer of the API to the benchmark.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    host: SocketAddr,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Client {
    /// Connects as the `n`th client of the API.
    pub(super) async fn connect(host: SocketAddr, n: usize) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Ok(nth @ 1..) = u8::try_from(n / CONNECTIONS_OF_AN_ADDRESS) {
            socket.bind((Ipv4Addr::new(127, 0, 1, nth), 0).into())?;
        }
        let stream = socket.connect(host).await.context("cannot connect to the API")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, host, buffer: Vec::new() })
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask(path, "application/json").await?;
        self.answer().await
    }

    /// Sends a request for what is accepted, and does not wait for its answer.
    pub(super) async fn ask(&mut self, path: &str, accepted: &str) -> Result<()> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: {accepted}\r\n\r\n", self.host);
        Ok(self.stream.write_all(head.as_bytes()).await?)
    }

    pub(super) async fn post(&mut self, path: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
            self.host
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.answer().await
    }

    /// Reads what has come of an answer that goes on; an error unless it has this status.
    pub(super) async fn begins(&mut self, status: u16) -> Result<()> {
        let expected = format!("HTTP/1.1 {status} ");
        while self.buffer.len() < expected.len() {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the API closed a connection instead of answering");
            }
        }
        let begins = String::from_utf8_lossy(&self.buffer[..expected.len()]);
        ensure!(begins == expected, "the API answers {begins:?}, and not {expected:?}");
        Ok(())
    }

    pub(super) async fn answer(&mut self) -> Result<Answer> {
        loop {
            if let Some((answer, end)) = parse(&self.buffer)? {
                self.buffer.drain(..end);
                return Ok(answer);
            }
            ensure!(self.buffer.len() < MAX_ANSWER, "an answer of the API is too long");
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the API closed a connection instead of answering");
            }
        }
    }
}

impl Answer {
    /// Fails unless it has this status.
    pub(super) fn expect(self, status: u16) -> Result<Self> {
        ensure!(
            self.status == status,
            "the API answered {} instead of {status}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        Ok(self)
    }
}

/// The first answer in the buffer, and where the next one begins. All answers of the API to us say how long they are.
fn parse(buffer: &[u8]) -> Result<Option<(Answer, usize)>> {
    let Some(head_end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..head_end]).context("an answer that is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse::<usize>().ok());
    let (Some(status), Some(length)) = (status, length) else {
        bail!("an answer that cannot be read: {head}")
    };
    let (begin, end) = (head_end + 4, head_end + 4 + length);
    let body = buffer.get(begin..end).map(<[u8]>::to_vec);
    Ok(body.map(|body| (Answer { status, body }, end)))
}

/// What several connections do together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) host: SocketAddr,
    pub(super) connections: usize,
    pub(super) path: &'static str,
    /// What every answer must be.
    pub(super) status: u16,
}

impl Load {
    /// Each connection sends the next request when the last one is answered, and `answered` has taken its number. Returns
    /// the requests that were answered per second, from `settle` on and for `time`.
    pub(super) async fn rate(
        self,
        settle: Duration,
        time: Duration,
        body: impl Fn(usize) -> String + Send + Sync + 'static,
        answered: Option<mpsc::Sender<usize>>,
    ) -> Result<f64> {
        let (next, body) = (Arc::new(AtomicUsize::new(0)), Arc::new(body));
        let counts_from = Instant::now() + settle;
        let until = counts_from + time;
        let mut tasks = JoinSet::new();
        for n in 0..self.connections {
            let (next, body, answered) = (next.clone(), body.clone(), answered.clone());
            tasks.spawn(async move {
                let mut client = Client::connect(self.host, n).await?;
                let mut counted = 0_usize;
                loop {
                    let place = next.fetch_add(1, Relaxed);
                    client.post(self.path, &body(place)).await?.expect(self.status)?;
                    if let Some(answered) = &answered {
                        answered.send(place).await?;
                    }
                    let now = Instant::now();
                    if now >= until {
                        return Ok::<usize, anyhow::Error>(counted);
                    }
                    counted += usize::from(now >= counts_from);
                }
            });
        }
        let mut counted = 0;
        while let Some(done) = tasks.join_next().await {
            counted += done??;
        }
        Ok(counted as f64 / time.as_secs_f64())
    }

    /// Requests are due at an even pace, whatever becomes of those before: one that no connection is free for waits, and its
    /// wait counts. Returns how long each took from when it was due, in milliseconds, without those of `settle`.
    pub(super) async fn latencies(
        self,
        pace: f64,
        settle: Duration,
        time: Duration,
        body: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Result<Vec<f64>> {
        let (next, body) = (Arc::new(AtomicUsize::new(0)), Arc::new(body));
        let total = (pace * (settle + time).as_secs_f64()) as usize;
        let skip = (pace * settle.as_secs_f64()) as usize;
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for n in 0..self.connections {
            let (next, body) = (next.clone(), body.clone());
            tasks.spawn(async move {
                let mut client = Client::connect(self.host, n).await?;
                let mut latencies = Vec::new();
                loop {
                    let place = next.fetch_add(1, Relaxed);
                    if place >= total {
                        return Ok::<Vec<f64>, anyhow::Error>(latencies);
                    }
                    let body = body(place);
                    let due = begin + Duration::from_secs_f64(place as f64 / pace);
                    sleep_until(due).await;
                    client.post(self.path, &body).await?.expect(self.status)?;
                    if place >= skip {
                        latencies.push(due.elapsed().as_secs_f64() * 1000.0);
                    }
                }
            });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_cut_where_they_end() {
        let text = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 422 X\r\ncontent-length: 3\r\n\r\nab";
        let (first, end) = parse(text).unwrap().unwrap();
        assert_eq!((first.status, &first.body[..]), (201, &b"{}"[..]));
        assert!(parse(&text[end..]).unwrap().is_none());
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }
}
