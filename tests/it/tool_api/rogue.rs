//! An HTTP server that does exactly what it is told, byte by byte.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What is done with one request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Read it, write these bytes and wait for the next one on the same connection.
    Answer(Vec<u8>),
    /// Read it, write these bytes and close.
    AnswerAndClose(Vec<u8>),
    /// Read it, write these bytes and keep the connection open for ever.
    AnswerAndStall(Vec<u8>),
    /// Read it and reset the connection.
    Reset,
    /// Write these bytes as soon as anything arrives, and close.
    AnswerUnread(Vec<u8>),
    /// Reset the connection without reading.
    ResetUnread,
    /// Never read anything.
    Ignore,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Seen {
    /// The values of a header.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// Method and target.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap().trim_end_matches(" HTTP/1.1")
    }
}

#[derive(Debug)]
pub(crate) struct Rogue {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Rogue {
    /// Serves; request number `n`, over all connections, is treated as `acts[n]`, and the last act
    /// is repeated.
    pub(crate) async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        let acts = Arc::new(Mutex::new(acts.into_iter().peekable()));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acts, record) = (acts.clone(), record.clone());
                tokio::spawn(async move {
                    let next = || {
                        let mut acts = acts.lock().unwrap();
                        let act = acts.next().unwrap();
                        if acts.peek().is_none() {
                            *acts = vec![act.clone(), act.clone()].into_iter().peekable();
                            acts.next();
                        }
                        act
                    };
                    serve(stream, next, &record).await;
                });
            }
        });
        Self { addr, seen, task }
    }

    pub(crate) async fn answering(status: &str, body: &str) -> Self {
        Self::start(vec![Act::Answer(response(status, "", body))]).await
    }

    pub(crate) fn base(&self) -> url::Url {
        format!("http://{}", self.addr).parse().unwrap()
    }

    /// The requests that were read so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A complete response with a `content-length`.
pub(crate) fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn serve(mut stream: TcpStream, mut next: impl FnMut() -> Act, seen: &Mutex<Vec<Seen>>) {
    let mut act = None;
    loop {
        // What is done without reading is decided before anything has arrived.
        if act.is_none() {
            let mut byte = [0];
            if stream.peek(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            act = Some(next());
        }
        match act.take().unwrap() {
            Act::Ignore => return tokio::time::sleep(Duration::from_secs(60)).await,
            Act::ResetUnread => return reset(stream),
            Act::AnswerUnread(bytes) => return drop(stream.write_all(&bytes).await),
            other => {
                let Some(request) = read(&mut stream).await else { return };
                seen.lock().unwrap().push(request);
                match other {
                    Act::Answer(bytes) => drop(stream.write_all(&bytes).await),
                    Act::AnswerAndClose(bytes) => {
                        drop(stream.write_all(&bytes).await);
                        return;
                    }
                    Act::AnswerAndStall(bytes) => {
                        drop(stream.write_all(&bytes).await);
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        return;
                    }
                    Act::Reset => return reset(stream),
                    Act::Ignore | Act::ResetUnread | Act::AnswerUnread(_) => unreachable!(),
                }
            }
        }
    }
}

/// Ends a connection with RST instead of FIN.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut body = bytes.split_off(end + 4);
    let head = String::from_utf8(bytes).unwrap();
    let seen = Seen { head, body: String::new() };
    let length: usize = seen.header("content-length").first().map_or(0, |value| value.parse().unwrap());
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Seen { body: String::from_utf8(body).unwrap(), ..seen })
}
