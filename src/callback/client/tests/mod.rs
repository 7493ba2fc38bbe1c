use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{callback::Network, failure::chain, job::OwnerKind};

mod answers;
mod places;
mod tls;

/// Long enough for whatever is to succeed.
const PATIENCE: Duration = Duration::from_secs(60);

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A receiver at a loopback address. It ends with its test.
struct Receiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Receiver {
    /// Does the same with each connection.
    async fn new<F: Future<Output = io::Result<()>> + Send>(
        ip: IpAddr,
        port: u16,
        each: impl Fn(TcpStream) -> F + Send + Sync + Clone + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::SeqCst);
                let each = each.clone();
                // Whether the client closed it first is for each test to say.
                tokio::spawn(async move { drop(each(stream).await) });
            }
        });
        Self { address, connections }
    }

    /// Gives this answer to each request, and closes the connection.
    async fn answers(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::new(LOCALHOST, 0, move |mut stream| {
            let answer = answer.clone();
            async move {
                read_request(&mut stream).await?;
                stream.write_all(&answer).await
            }
        })
        .await
    }

    fn url(&self) -> CallbackUrl {
        format!("http://{}/path-secret?query=secret", self.address).parse().unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads one request, whose body has the length that it says, and gives its head.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    stream.read_exact(&mut vec![0; length.unwrap_or(0)]).await?;
    Ok(head)
}

/// Gives these addresses, look-up by look-up, the last ones for ever; and counts.
fn lookup(answers: Vec<Vec<IpAddr>>) -> (Lookup, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let lookup: Lookup = Arc::new(move |_| {
        let at = counted.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
        let answer = answers[at].clone();
        Box::pin(async move { Ok(answer) })
    });
    (lookup, count)
}

fn client(allowed: &[&str], timeout: Duration, lookup: Lookup) -> CallbackClient {
    drop(rustls::crypto::ring::default_provider().install_default());
    let allowed: Vec<Network> = allowed.iter().map(|text| text.parse().unwrap()).collect();
    CallbackClient::with_lookup(AddressRules { allowed, refused: Vec::new() }, timeout, lookup).unwrap()
}

/// A client that may call every address of this host.
fn local_client(timeout: Duration) -> CallbackClient {
    client(&["127.0.0.0/8", "::1"], timeout, system_lookup())
}

impl CallbackClient {
    fn set_https(&self, client: Client) {
        let clients = Clients { keeping: client.clone(), closing: client };
        assert!(self.https.set(clients).is_ok());
    }
}

fn owner(id: &str) -> Owner {
    Owner::new(OwnerKind::User, id).unwrap()
}

async fn post(client: &CallbackClient, url: &CallbackUrl) -> Result<Answer, SendError> {
    let message = Signed { id: "id", timestamp: 1_700_000_000, signature: "v1,abc=" };
    client.post(&owner("user-1"), url, message, Bytes::from_static(b"{}")).await
}

/// The kind of the error of a request, which must not tell the rest of the URL.
async fn refused(client: &CallbackClient, url: &CallbackUrl) -> SendErrorKind {
    let error = post(client, url).await.unwrap_err();
    for text in [chain(&error), format!("{error:?}")] {
        assert!(!text.contains("secret"), "{text}");
    }
    error.kind()
}
