//! Streams of a server, which it sends as server-sent events.

use std::time::Duration;

use reqwest::{
    Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};

use super::{ANSWER_TIMEOUT, Call, MAX_ANSWER_BYTES, Server, is_away};
use crate::{backoff::RECONNECT, cli::output};

/// How long a stream may be silent. The API is for 15 seconds at most.
const SILENCE: Duration = Duration::from_secs(60);

/// The time between the end of a connection and the next one.
const PAUSE: Duration = Duration::from_millis(200);

/// A stream that goes on where it was when its connection is lost.
pub(in crate::cli) struct Stream<'a> {
    server: &'a Server,
    call: Call,
    /// The last cursor that the server told.
    last: Option<String>,
    connection: Option<Response>,
    /// What has come of the next event.
    come: Vec<u8>,
    /// How often in a row the server was not there.
    lost: u32,
}

impl Server {
    /// What the server sends on this, each as its data.
    pub(in crate::cli) fn stream(&self, call: Call) -> Stream<'_> {
        Stream { server: self, call, last: None, connection: None, come: Vec::new(), lost: 0 }
    }
}

impl Stream<'_> {
    /// The data of the next event; `None` at the end of the stream.
    ///
    /// # Errors
    /// The server refuses it. A server that is away is waited for.
    pub(in crate::cli) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            while let Some(event) = self.take() {
                self.lost = 0;
                self.last = event.id.or(self.last.take());
                if !event.data.is_empty() {
                    return Ok(Some(event.data));
                }
            }
            match self.more().await {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if is_away(&error) => {
                    if self.lost == 0 {
                        output::note(format_args!("{error}; it is asked again until it answers"));
                    }
                    (self.connection, self.lost) = (None, self.lost.saturating_add(1));
                    self.come.clear();
                    tokio::time::sleep(RECONNECT.wait(self.lost, fastrand::f64())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads some more; `false` if the stream is over.
    async fn more(&mut self) -> anyhow::Result<bool> {
        let Some(connection) = &mut self.connection else { return self.connect().await };
        let gone = |why: &str| self.server.gone(why);
        match tokio::time::timeout(SILENCE, connection.chunk()).await {
            Ok(Ok(Some(chunk))) if self.come.len() + chunk.len() <= MAX_ANSWER_BYTES => {
                self.come.extend_from_slice(&chunk);
            }
            Ok(Ok(Some(_))) => return Err(gone("it sends an event that is too large")),
            // It ends it politely when it stops, and where there is nothing more, which it says when it is asked again.
            Ok(Ok(None)) => {
                self.connection = None;
                self.come.clear();
                tokio::time::sleep(PAUSE).await;
            }
            Ok(Err(error)) => return Err(gone(&crate::failure::chain(&error.without_url()))),
            Err(_elapsed) => return Err(gone("it was silent for a minute")),
        }
        Ok(true)
    }

    async fn connect(&mut self) -> anyhow::Result<bool> {
        let mut request = self.server.request(&self.call).header(ACCEPT, "text/event-stream");
        if let Some(last) = &self.last {
            request = request.header("last-event-id", last);
        }
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.server.away(error.without_url(), &self.call)),
            Err(_elapsed) => return Err(self.server.gone("it gives no answer")),
        };
        let status = answer.status();
        if status == StatusCode::NO_CONTENT {
            return Ok(false);
        }
        if status.is_success() {
            let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            if !media_type.is_some_and(|media_type| media_type.starts_with("text/event-stream")) {
                return Err(self.server.refused(status, &[]).into());
            }
            self.connection = Some(answer);
            return Ok(true);
        }
        let body = tokio::time::timeout(ANSWER_TIMEOUT, answer.bytes()).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        Err(self.server.refused(status, &body).into())
    }

    /// The next event of which all has come.
    fn take(&mut self) -> Option<Event> {
        let end = self.come.windows(2).position(|two| two == b"\n\n")?;
        let rest = self.come.split_off(end + 2);
        let block = std::mem::replace(&mut self.come, rest);
        Some(Event::read(&String::from_utf8_lossy(&block)))
    }
}

/// One event, as far as commands go by it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    id: Option<String>,
    /// Empty of one that only tells a cursor.
    data: String,
}

impl Event {
    /// Of lines as errand writes them: a name, a colon and a space before each value.
    fn read(block: &str) -> Self {
        let mut event = Self::default();
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", data)) if event.data.is_empty() => data.clone_into(&mut event.data),
                Some(("data", data)) => event.data = format!("{}\n{data}", event.data),
                // Comments, how soon to connect again, and the type, which the data has, too.
                _ => {}
            }
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_from_its_lines() {
        let event = |id: Option<&str>, data: &str| Event { id: id.map(str::to_owned), data: data.to_owned() };
        assert_eq!(
            Event::read("event: job.held\nid: 7\ndata: {\"a\": 1}\n\n"),
            event(Some("7"), "{\"a\": 1}")
        );
        assert_eq!(Event::read(": \nretry: 1000\nid: 7\n\n"), event(Some("7"), ""));
        assert_eq!(Event::read("data: a\ndata: b\n\n"), event(None, "a\nb"));
    }
}
