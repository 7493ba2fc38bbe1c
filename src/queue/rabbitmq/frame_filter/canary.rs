//! Shows that the client library, without the filter, still cannot read what the filter replaces, and still writes what
//! the filter leaves out.

use std::{net::SocketAddr, pin::pin, process::Command, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicConsumeOptions, BasicPublishOptions},
    protocol::basic::parse_properties,
    types::FieldTable,
    uri::AMQPUri,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

use super::{
    super::stream::{self, SocketGuard},
    frame::{BODY, FRAME_HEAD, METHOD},
    samples::*,
};

/// Long enough for a busy machine. The library answers at once, or never.
const LIMIT: Duration = Duration::from_secs(20);

/// What the broker of these tests proposes as the largest frame, in bytes.
const FRAME_MAX: u32 = 8192;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_library_can_read_arrives() {
    let delivery = send_to_library(delivery(b"errand", b"default"), content(&with(0, b""))).await;
    assert_eq!(delivery.map(|delivery| delivery.data), Ok(b"hello".to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_still_cannot_read_what_the_filter_replaces() {
    let good = || delivery(b"errand", b"default");
    let plain = || content(&with(0, b""));
    let header_name = long(b"", &[1, 0xff, b'V']);
    let too_large = long(b"", &[short("n"), long(b"S", &vec![0; FRAME_MAX as usize])].concat());
    let cases = [
        ("a text property that is not UTF-8", good(), content(&with(MESSAGE_ID, &[2, 0xff, 0xfe]))),
        ("the name of a header that is not UTF-8", good(), content(&with(HEADERS, &header_name))),
        ("an exchange that is not UTF-8", delivery(b"\xff", b"default"), plain()),
        ("a routing key that is not UTF-8", delivery(b"errand", b"\xff"), plain()),
        ("a content header larger than a frame", good(), content(&with(HEADERS, &too_large))),
    ];
    for (what, method, header) in cases {
        let delivery = send_to_library(method, header).await;
        assert!(
            delivery.is_err(),
            "the client library reads {what} now: delete what the frame filter does about it, and all of the filter \
             when nothing else is left (see the module's documentation)"
        );
    }
}

#[test]
fn the_library_still_overflows_its_stack_in_nested_headers() {
    let test = "queue::rabbitmq::frame_filter::canary::the_library_reads_nested_headers";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored"])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(output.contains("running 1 test"), "{output}");
    assert!(
        !child.status.success(),
        "the client library copes with nested headers now: delete MAX_DEPTH, and all of the filter when nothing else is \
         left (see the module's documentation)"
    );
}

#[test]
#[ignore = "the test above runs it as a process of its own, which it ends"]
fn the_library_reads_nested_headers() {
    drop(parse_properties(&nested(20_000)[..]));
}

/// Who closes a channel on which messages wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClosedBy {
    Broker,
    Library,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_still_publishes_on_a_channel_that_was_closed() {
    for closed_by in [ClosedBy::Broker, ClosedBy::Library] {
        let connect = async |url: String| Connection::connect(&url, ConnectionProperties::default()).await;
        assert!(
            sent_after_close(closed_by, connect).await > 0,
            "the client library leaves out what waits for a channel that was closed by the {closed_by:?} now: delete what \
             `ClosedChannels` does about it (see the module's documentation)"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_on_a_channel_that_was_closed() {
    for closed_by in [ClosedBy::Broker, ClosedBy::Library] {
        let socket = SocketGuard::default();
        let sent = sent_after_close(closed_by, async |url: String| {
            let shared = socket.socket();
            let connect = async move |uri: AMQPUri, _runtime| Ok(stream::connect(&uri, &shared).await?);
            let properties = ConnectionProperties::default();
            Connection::connector(url.parse().unwrap(), stream::runtime(), connect, properties).await
        });
        assert_eq!(sent.await, 0, "closed by the {closed_by:?}");
    }
}

/// Publishes more than a connection takes at once, has the channel closed at the first message, and returns how many
/// frames come on that channel after the library has closed it or confirmed the close.
async fn sent_after_close(
    closed_by: ClosedBy,
    connect: impl AsyncFnOnce(String) -> lapin::Result<Connection>,
) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://{}/%2f", listener.local_addr().unwrap());
    let ((refuse_now, refusing), (go_on, is_closed)) = (oneshot::channel(), oneshot::channel());
    let broker = tokio::spawn(async move {
        refuse(listener.accept().await.unwrap().0, closed_by, refusing, is_closed).await
    });
    let connection = connect(url).await.unwrap();
    let (refused, other) =
        (connection.create_channel().await.unwrap(), connection.create_channel().await.unwrap());
    let large = vec![0; 1024 * 1024];
    let publish = async |channel: &Channel| {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        // These are not confirmed; what comes of them is what the broker sees.
        drop(channel.basic_publish("errand".into(), "default".into(), options, &large, properties).await);
    };
    let mut closing = pin!(refused.close(200, "done".into()));
    let closed = async {
        if closed_by == ClosedBy::Library {
            assert!(closing.as_mut().now_or_never().is_none());
        }
        while closed_by == ClosedBy::Broker && (refused.status().connected() || refused.status().closing()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        go_on.send(()).unwrap();
        publish(&other).await;
        broker.await.unwrap().unwrap()
    };
    let mut publishing = pin!(join_all((0..32).map(|_| publish(&refused))));
    // Nobody reads after the first message, so the others wait in the library now.
    assert!(publishing.as_mut().now_or_never().is_none());
    refuse_now.send(()).unwrap();
    let (_, sent) = timeout(LIMIT, async { tokio::join!(publishing, closed) }).await.unwrap();
    sent
}

/// Waits at the first message until it is told to go on, closes its channel unless the client does, and reads on when that
/// is known to the client, up to the first message on another channel. Returns how many frames came on the closed channel
/// after the client had closed it or confirmed the close.
async fn refuse(
    mut client: TcpStream,
    closed_by: ClosedBy,
    refusing: oneshot::Receiver<()>,
    is_closed: oneshot::Receiver<()>,
) -> std::io::Result<usize> {
    let mut signals = Some((refusing, is_closed));
    let (mut refused, mut confirmed, mut sent) = (None, false, 0);
    client.read_exact(&mut [0; 8]).await?;
    client.write_all(&start()).await?;
    loop {
        let (head, rest) = read_frame(&mut client).await?;
        let channel = [head[1], head[2]];
        if confirmed && refused == Some(channel) {
            sent += 1;
        }
        match (head[0], rest.get(..4)) {
            (METHOD, Some([_, 20, _, 40 | 41])) => confirmed = true,
            (METHOD, Some([_, 60, _, 40])) if refused.is_none() => {
                refused = Some(channel);
                let (refusing, is_closed) = signals.take().unwrap();
                refusing.await.unwrap();
                let reason = [&406_u16.to_be_bytes()[..], &short("PRECONDITION_FAILED"), &[0; 4]].concat();
                if closed_by == ClosedBy::Broker {
                    client.write_all(&on(channel, method(20, 40, &reason))).await?;
                }
                is_closed.await.unwrap();
            }
            (METHOD, Some([_, 60, _, 40])) if refused != Some(channel) => return Ok(sent),
            _ => {
                if let Some(answer) = answer(&head, &rest) {
                    client.write_all(&on(channel, answer)).await?;
                }
            }
        }
    }
}

/// Sends one message to a consumer of the library, and returns what arrives.
async fn send_to_library(method: Vec<u8>, header: Vec<u8>) -> Result<Delivery, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let message = [method, header, framed(BODY, b"hello")];
    let broker = tokio::spawn(async move { serve(listener.accept().await.unwrap().0, message).await });
    let received = timeout(LIMIT, receive(address)).await;
    broker.abort();
    received.unwrap_or_else(|elapsed| Err(elapsed.to_string()))
}

async fn receive(address: SocketAddr) -> Result<Delivery, String> {
    let url = format!("amqp://{address}/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume("q".into(), "c1".into(), options, FieldTable::default()).await;
    let next = consumer.unwrap().next().await;
    next.ok_or("the subscription ended")?.map_err(|error| error.to_string())
}

/// Answers a client up to its subscription, and then sends it a message.
async fn serve(mut client: TcpStream, message: [Vec<u8>; 3]) -> std::io::Result<()> {
    client.read_exact(&mut [0; 8]).await?;
    client.write_all(&start()).await?;
    loop {
        let (head, rest) = read_frame(&mut client).await?;
        let channel = [head[1], head[2]];
        let frames = match (head[0], rest.get(..4)) {
            (METHOD, Some([_, 60, _, 20])) => {
                [&[method(60, 21, &short("c1"))][..], &message.clone()].concat()
            }
            _ => answer(&head, &rest).into_iter().collect(),
        };
        for frame in frames {
            client.write_all(&on(channel, frame)).await?;
        }
    }
}

/// The broker's part of opening connections and channels.
fn answer(head: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
    match (head[0], rest.get(..4)) {
        (METHOD, Some([_, 10, _, 11])) => Some(tune(FRAME_MAX)),
        (METHOD, Some([_, 10, _, 40])) => Some(method(10, 41, &[0])),
        (METHOD, Some([_, 20, _, 10])) => Some(method(20, 11, &[0; 4])),
        _ => None,
    }
}

fn start() -> Vec<u8> {
    let start = [&[0, 9][..], &long(b"", b""), &long(b"", b"PLAIN"), &long(b"", b"en_US")].concat();
    on([0, 0], method(10, 10, &start))
}

fn method(class: u8, method: u8, arguments: &[u8]) -> Vec<u8> {
    framed(METHOD, &[&[0, class, 0, method][..], arguments].concat())
}

fn on(channel: [u8; 2], mut frame: Vec<u8>) -> Vec<u8> {
    frame[1..3].copy_from_slice(&channel);
    frame
}

/// The head of a frame, and what is behind it.
async fn read_frame(client: &mut TcpStream) -> std::io::Result<([u8; FRAME_HEAD], Vec<u8>)> {
    let mut head = [0; FRAME_HEAD];
    client.read_exact(&mut head).await?;
    let size = u32::from_be_bytes(head[3..].try_into().unwrap());
    let mut rest = vec![0; size as usize + 1];
    client.read_exact(&mut rest).await?;
    Ok((head, rest))
}
