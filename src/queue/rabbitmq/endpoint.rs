//! The address of the broker, and our login.

use std::{fmt, time::Duration};

use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::queue::{BROKER_TIMEOUT, QueueError, QueueErrorKind};

/// The largest frame, in bytes, unless the URL says otherwise: what RabbitMQ lets other clients send by default. The
/// properties of a message are always one frame, and with a smaller limit here one message with long headers would keep
/// its lane waiting for ever. The client library keeps buffers of 64 frames for every connection.
const FRAME_MAX: u32 = 128 * 1024;

/// Longest name of a connection, so that consumer tags fit into 255 bytes.
const MAX_CONNECTION_NAME_BYTES: usize = 128;

pub(super) struct Endpoint {
    pub(super) uri: AMQPUri,
    pub(super) connection_name: String,
}

impl Endpoint {
    /// An unusable URL is an error of kind `Access`, which quotes neither the URL nor its password.
    pub(super) fn new(url: &str, heartbeat: Duration, connection_name: &str) -> Result<Self, QueueError> {
        let end = connection_name.floor_char_boundary(MAX_CONNECTION_NAME_BYTES);
        Ok(Self { uri: parse(url, heartbeat)?, connection_name: connection_name[..end].to_owned() })
    }

    /// Host and port, for people.
    pub(super) fn address(&self) -> String {
        let authority = &self.uri.authority;
        format!("{}:{}", authority.host, authority.port)
    }

    /// The server's name and version, which the client library keeps to itself; `None` over TLS.
    pub(super) async fn version(&self) -> Option<String> {
        if self.uri.scheme != AMQPScheme::AMQP {
            return None;
        }
        let authority = &self.uri.authority;
        timeout(BROKER_TIMEOUT, greeting((authority.host.as_str(), authority.port))).await.ok().flatten()
    }
}

/// Without the URL, which has the password.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("connection_name", &self.connection_name).finish_non_exhaustive()
    }
}

fn parse(url: &str, heartbeat: Duration) -> Result<AMQPUri, QueueError> {
    let unusable = |why: &str| {
        let sentence = format!(
            "the RabbitMQ URL is unusable ({why}): it should look like amqp://user:password@host:5672/vhost"
        );
        QueueError::new(QueueErrorKind::Access, sentence)
    };
    // The parser's own words may quote the URL, and with it the password.
    let generic = url::Url::parse(url).map_err(|_| unusable("not a URL"))?;
    let host = match generic.host() {
        // The AMQP parser takes an IPv6 address for no host at all, which means `localhost` to it.
        Some(url::Host::Ipv6(address)) => Some(address.to_string()),
        Some(host) if host.to_string().is_empty() => return Err(unusable("no host")),
        Some(_) => None,
        None => return Err(unusable("no host")),
    };
    let mut uri: AMQPUri = url.parse().map_err(|_| unusable("not an amqp or amqps URL"))?;
    if let Some(host) = host {
        uri.authority.host = host;
    }
    if uri.vhost.is_empty() {
        // Strictly, `amqp://host/` names a virtual host without a name. Nobody has one or means it.
        "/".clone_into(&mut uri.vhost);
    }
    let seconds = u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX);
    uri.query.heartbeat.get_or_insert(seconds);
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    Ok(uri)
}

/// Begins a connection as a client does, and reads the first frame of the server.
async fn greeting(address: (&str, u16)) -> Option<String> {
    const FRAME_HEADER: usize = 7;
    const METHOD_HEADER: usize = 6;
    const MAX_GREETING: u32 = 64 * 1024;
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await.ok()?;
    let size = u32::from_be_bytes(header[3..].try_into().ok()?);
    if size > MAX_GREETING {
        return None;
    }
    let mut method = vec![0; size as usize];
    stream.read_exact(&mut method).await.ok()?;
    // The method's IDs and the protocol's version come before the server's properties.
    let table = method.get(METHOD_HEADER..)?;
    let (_, properties) = lapin::types::parsing::parse_field_table(table).ok()?;
    let text = |name: &str| properties.inner().get(name)?.as_long_string().map(ToString::to_string);
    Some(format!("{} {}", text("product")?, text("version")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::chain;

    fn parsed(url: &str) -> AMQPUri {
        parse(url, Duration::from_secs(15)).unwrap()
    }

    #[test]
    fn urls_mean_what_people_mean() {
        let uri = parsed("amqp://u:p@[2001:db8::1]:5673");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("2001:db8::1", 5673));
        assert_eq!(uri.vhost, "/");
        assert_eq!(parsed("amqp://u:p@mq/").vhost, "/");
        assert_eq!(parsed("amqp://u:p@mq/%2f").vhost, "/");
        assert_eq!(parsed("amqps://u:p@mq/jobs").authority.port, 5671);
        assert_eq!(parsed("amqp://u:p@10.1.2.3/jobs").authority.host, "10.1.2.3");
        assert_eq!(parsed("amqp://u:p@mq/jobs").query.heartbeat, Some(15));
        assert_eq!(parsed("amqp://u:p@mq/jobs?heartbeat=30").query.heartbeat, Some(30));
        assert_eq!(parsed("amqp://u:p@mq/jobs").query.frame_max, Some(FRAME_MAX));
        assert_eq!(parsed("amqp://u:p@mq/jobs?frame_max=65536").query.frame_max, Some(65536));
    }

    #[test]
    fn an_unusable_url_is_refused_without_quoting_it() {
        for url in [
            "",
            "hunter2",
            "http://u:hunter2@mq/",
            "amqp://u:hunter2@mq:99999/",
            "amqp:hunter2",
            "amqp:///hunter2",
        ] {
            let error = parse(url, Duration::from_secs(15)).unwrap_err();
            assert_eq!(error.kind(), QueueErrorKind::Access);
            assert!(!chain(&error).contains("hunter2"), "{error}");
        }
    }
}
