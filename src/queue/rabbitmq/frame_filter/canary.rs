//! Shows that the client library, without the filter, still cannot read what the filter replaces.

use std::{net::SocketAddr, process::Command, time::Duration};

use futures_util::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties, message::Delivery, options::BasicConsumeOptions,
    protocol::basic::parse_properties, types::FieldTable,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
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
    let mut version = [0; 8];
    client.read_exact(&mut version).await?;
    let method =
        |class, method, arguments: &[u8]| framed(METHOD, &[&[0, class, 0, method][..], arguments].concat());
    let start = [&[0, 9][..], &long(b"", b""), &long(b"", b"PLAIN"), &long(b"", b"en_US")].concat();
    let (mut head, mut answers) = ([0; FRAME_HEAD], vec![method(10, 10, &start)]);
    loop {
        for mut answer in answers {
            answer[1..3].copy_from_slice(&head[1..3]);
            client.write_all(&answer).await?;
        }
        client.read_exact(&mut head).await?;
        let size = u32::from_be_bytes(head[3..].try_into().unwrap());
        let mut rest = vec![0; size as usize + 1];
        client.read_exact(&mut rest).await?;
        answers = match (head[0], rest.get(..4)) {
            (METHOD, Some([_, 10, _, 11])) => vec![tune(FRAME_MAX)],
            (METHOD, Some([_, 10, _, 40])) => vec![method(10, 41, &[0])],
            (METHOD, Some([_, 20, _, 10])) => vec![method(20, 11, &[0; 4])],
            (METHOD, Some([_, 60, _, 20])) => {
                let mut answers = vec![method(60, 21, &short("c1"))];
                answers.extend(message.clone());
                answers
            }
            _ => Vec::new(),
        };
    }
}
