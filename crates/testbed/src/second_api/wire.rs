//! HTTP/1.1, as far as it is needed, and further than it is allowed.

use std::{io, time::SystemTime};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// The longest line of a head, the most lines, and the longest body, in bytes.
const MAX_LINE: u64 = 64 * 1024;
const MAX_LINES: usize = 100;
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A request that was read whole.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// The parts of the path, decoded.
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The value of a header, which is looked for in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The values of a list in the query, in any of the forms that clients use.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        let of = |key: &str| key == name || key.strip_suffix("[]") == Some(name);
        let values = self.query.iter().filter(|(key, _)| of(key));
        values.flat_map(|(_, value)| value.split(',')).filter(|value| !value.is_empty()).collect()
    }

    /// The value of a parameter in the query.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the next request; `None` at the end of the connection.
pub(super) async fn read(stream: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<Option<Request>> {
    let Some(first) = line(stream).await?.filter(|line| !line.is_empty()) else { return Ok(None) };
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(malformed()) };
    let mut headers = Vec::new();
    loop {
        let line = line(stream).await?.ok_or_else(malformed)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        if headers.len() > MAX_LINES {
            return Err(malformed());
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.split('/').skip(1).map(|part| decoded(part, false)).collect(),
        query: query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect(),
        headers,
        body: Vec::new(),
    };
    let length: usize = match request.header("content-length") {
        Some(length) => length.parse().map_err(|_| malformed())?,
        None => 0,
    };
    if length > MAX_BODY || request.header("transfer-encoding").is_some() {
        return Err(malformed());
    }
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).await?;
    Ok(Some(request))
}

async fn line(stream: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(malformed());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map(Some).map_err(|_| malformed())
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a request that this server reads")
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (decoded(name, true), decoded(value, true))
}

/// Resolves `%41`, and `+` in a query.
fn decoded(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) if plus => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Act {
    Answer(Answer),
    /// The connection ends without a word.
    Close,
}

/// How an answer's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    /// More is announced than comes.
    StopsBeforeLength,
    /// The last chunk never comes.
    StopsBetweenChunks,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    pub(super) framing: Framing,
}

impl Answer {
    /// An answer in JSON.
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::of(status, "application/json", body.to_string())
    }

    /// An answer of any type.
    pub(super) fn of(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![
            ("Content-Type", content_type.to_owned()),
            ("Date", httpdate::fmt_http_date(SystemTime::now())),
        ];
        Self { status, headers, body: body.into(), framing: Framing::Length }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn framed(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    /// Whether the connection can go on after it.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.framing, Framing::Length | Framing::Chunked)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = self.body.len();
        let mut bytes = match self.framing {
            Framing::Length => format!("{head}Content-Length: {length}\r\n\r\n"),
            Framing::StopsBeforeLength => format!("{head}Content-Length: {}\r\n\r\n", length + 100),
            Framing::Chunked | Framing::StopsBetweenChunks => {
                format!("{head}Transfer-Encoding: chunked\r\n\r\n")
            }
        }
        .into_bytes();
        match self.framing {
            Framing::Length | Framing::StopsBeforeLength => bytes.extend_from_slice(&self.body),
            Framing::Chunked | Framing::StopsBetweenChunks => {
                for chunk in self.body.chunks(1_000) {
                    bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                if self.framing == Framing::Chunked {
                    bytes.extend_from_slice(b"0\r\n\r\n");
                }
            }
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        408 => "Request Timeout",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Something",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_read_and_the_next_one_after_it() {
        let text = b"POST /api/v3/a%2Fb?ids=x%2Cy&ids[]=z&q=a+b HTTP/1.1\r\nHost: h\r\nX-Request-ID: 1\r\n\
                     content-length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
        let mut stream = BufReader::new(&text[..]);
        let request = read(&mut stream).await.unwrap().unwrap();
        assert_eq!((&*request.method, &request.body[..]), ("POST", &b"abc"[..]));
        assert_eq!(request.path, ["api", "v3", "a/b"]);
        assert_eq!(request.list("ids"), ["x", "y", "z"]);
        assert_eq!(request.parameter("q"), Some("a b"));
        assert_eq!(request.header("x-request-id"), Some("1"));
        assert_eq!(read(&mut stream).await.unwrap().unwrap().method, "GET");
        assert!(read(&mut stream).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        for text in [
            "GET\r\n\r\n",
            "GET / HTTP/1.1\r\nno header\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        ] {
            assert!(read(&mut BufReader::new(text.as_bytes())).await.is_err(), "{text}");
        }
    }
}
