//! What is done with one request.

/// What is done with one request. Unless it says otherwise, the request is read whole, and the connection stays
/// for the next one.
#[derive(Debug, Clone)]
pub struct Answer {
    pub(super) content: Content,
    pub(super) end: End,
    pub(super) is_unread: bool,
    is_held: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A complete answer.
    Whole { status: String, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Exactly these bytes. HTTP/2 has no such answer.
    Bytes(Vec<u8>),
    /// A body that goes on for as long as anybody reads it. HTTP/2 has no such answer.
    Endless { announced: Option<u64>, start: Vec<u8> },
    /// What the API or the function behind this one says.
    Theirs,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Stay,
    Close,
    Reset,
    Hang,
}

impl Answer {
    /// A complete answer with a length, such as `200 OK` with a body.
    #[must_use]
    pub fn new(status: &str, body: impl Into<Vec<u8>>) -> Self {
        let (status, body) = (status.to_owned(), body.into());
        Self::of(Content::Whole { status, headers: Vec::new(), body })
    }

    /// Exactly these bytes, which need be no HTTP.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of(Content::Bytes(bytes.into()))
    }

    /// Not a byte.
    #[must_use]
    pub fn nothing() -> Self {
        Self::bytes([])
    }

    /// A success whose body begins like this and goes on, in chunks or with an announced length.
    #[must_use]
    pub fn endless(announced: Option<u64>, start: &str) -> Self {
        Self::of(Content::Endless { announced, start: start.into() }).closing()
    }

    pub fn theirs() -> Self {
        Self::of(Content::Theirs)
    }

    fn of(content: Content) -> Self {
        Self { content, end: End::Stay, is_unread: false, is_held: false }
    }

    /// With another header. Only complete answers have any.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let Content::Whole { headers, .. } = &mut self.content else {
            panic!("{name}: only a complete answer has headers");
        };
        headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Then closes the connection.
    #[must_use]
    pub fn closing(self) -> Self {
        Self { end: End::Close, ..self }
    }

    /// Then resets the connection, or in HTTP/2 the stream.
    #[must_use]
    pub fn resetting(self) -> Self {
        Self { end: End::Reset, ..self }
    }

    /// Then says nothing more, and keeps the connection.
    #[must_use]
    pub fn hanging(self) -> Self {
        Self { end: End::Hang, ..self }
    }

    /// Reads nothing of the request. In HTTP/2 that is a stream that is refused.
    #[must_use]
    pub fn unread(self) -> Self {
        Self { is_unread: true, ..self }
    }

    /// Waits for [`release`](super::ScriptedApi::release) after the request was read.
    #[must_use]
    pub fn held(self) -> Self {
        Self { is_held: true, ..self }
    }

    pub(super) fn is_theirs(&self) -> bool {
        matches!(self.content, Content::Theirs)
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }
}
