//! A request as it came.

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// The request line and the headers.
    pub(super) head: String,
    /// The body.
    pub body: String,
}

impl Request {
    /// Method and target.
    #[must_use]
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default().rsplit_once(' ').map_or("", |(line, _)| line)
    }

    /// The values of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Vec<&str> {
        let of_name = self.headers().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        of_name.map(|(_, value)| value).collect()
    }

    /// The job that the request is about, if it is a call.
    #[must_use]
    pub fn job(&self) -> Option<&str> {
        self.header("x-errand-job-id").first().copied()
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.head.lines().skip(1).filter_map(|line| line.split_once(": "))
    }
}
