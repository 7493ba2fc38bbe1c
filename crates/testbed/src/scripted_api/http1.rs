//! HTTP/1.1 over a plain socket, because no HTTP library breaks off where a test wants it.

use std::{future::pending, io, sync::atomic::Ordering::Relaxed};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Answer, Request, State,
    answer::{Content, End},
};

/// The size at which an endless body ends after all, should anybody read it.
const ENDLESS: u64 = 1024 * 1024 * 1024;
const CHUNK: &[u8] = &[b'x'; 64 * 1024];

/// One connection, request after request.
pub(super) async fn serve(state: &State, mut stream: TcpStream) {
    loop {
        // What is done without reading is decided before anything is read.
        if stream.peek(&mut [0]).await.unwrap_or(0) == 0 {
            return;
        }
        let mut answer = state.next();
        if !answer.is_unread {
            let Some(request) = read(&mut stream).await else { return };
            answer = state.decide(request, answer).await;
        }
        // A client that has gone is what some tests are about.
        if write(state, &mut stream, &answer).await.is_err() {
            return;
        }
        match answer.end {
            End::Stay => {}
            End::Close => return,
            End::Reset => return stream.set_zero_linger().unwrap(),
            End::Hang => pending().await,
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
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
    let request = Request { head: String::from_utf8(bytes).unwrap(), body: String::new() };
    let length: usize = request.header("content-length").first().map_or(0, |value| value.parse().unwrap());
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { body: String::from_utf8(body).unwrap(), ..request })
}

async fn write(state: &State, stream: &mut TcpStream, answer: &Answer) -> io::Result<()> {
    match &answer.content {
        Content::Whole { status, headers, body } => {
            let headers: String =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), body].concat()).await
        }
        Content::Bytes(bytes) => stream.write_all(bytes).await,
        Content::Endless { announced, start } => {
            let framing =
                announced.map_or("transfer-encoding: chunked".to_owned(), |n| format!("content-length: {n}"));
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()).await?;
            let mut part = start.as_slice();
            while state.endless_bytes.fetch_add(part.len() as u64, Relaxed) < ENDLESS {
                if announced.is_some() {
                    stream.write_all(part).await?;
                } else {
                    let size = format!("{:x}\r\n", part.len());
                    stream.write_all(&[size.as_bytes(), part, b"\r\n"].concat()).await?;
                }
                part = CHUNK;
            }
            Ok(())
        }
        Content::Theirs => panic!("there is no API behind this one"),
    }
}
