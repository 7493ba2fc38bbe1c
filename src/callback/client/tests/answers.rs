//! What a receiver may do with a request.

use crate::callback::{Secret, sign, verify};

use super::*;

/// Short, and still long enough to connect to this host when it is busy, for which there is half of it.
const SHORT: Duration = Duration::from_secs(2);

async fn status(answer: &[u8]) -> u16 {
    let receiver = Receiver::answers(answer).await;
    post(&local_client(PATIENCE), &receiver.url()).await.unwrap().status
}

async fn kind_of(answer: &[u8]) -> SendErrorKind {
    let receiver = Receiver::answers(answer).await;
    refused(&local_client(PATIENCE), &receiver.url()).await
}

/// Sends bytes without end, so many at a time, until the client closes the connection; counts them.
async fn flood(mut stream: TcpStream, chunk: &[u8], pause: Duration, sent: &AtomicUsize) -> io::Result<()> {
    loop {
        stream.write_all(chunk).await?;
        sent.fetch_add(chunk.len(), Ordering::SeqCst);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// A receiver that begins with a head, and goes on for ever.
async fn endless(head: &'static str, chunk: Vec<u8>, pause: Duration) -> (Receiver, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let (counted, chunk) = (Arc::clone(&sent), Arc::new(chunk));
    let receiver = Receiver::new(LOCALHOST, 0, move |mut stream| {
        let (counted, chunk) = (Arc::clone(&counted), Arc::clone(&chunk));
        async move {
            read_request(&mut stream).await?;
            stream.write_all(head.as_bytes()).await?;
            flood(stream, &chunk, pause, &counted).await
        }
    })
    .await;
    (receiver, sent)
}

#[tokio::test]
async fn a_message_is_sent_once_as_it_is_signed() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&got);
    let receiver = Receiver::new(LOCALHOST, 0, move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let head = read_request(&mut stream).await?;
            seen.lock().unwrap().push(head);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
        }
    })
    .await;
    let (secret, body) = (Secret::generate().unwrap(), Bytes::from_static(b"{\"a\": 1}"));
    let signature = sign(&[&secret], "msg_1", 1_700_000_000, &body);
    let message = Signed { id: "msg_1", timestamp: 1_700_000_000, signature: &signature };
    let client = local_client(PATIENCE);
    let answer = client.post(&owner("user-1"), &receiver.url(), message, body.clone()).await.unwrap();
    assert_eq!(answer, Answer { status: 204, retry_after: None });
    let heads = got.lock().unwrap().clone();
    let [head] = &heads[..] else { panic!("{heads:?}") };
    assert!(head.starts_with("POST /path-secret?query=secret HTTP/1.1\r\n"), "{head}");
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("content-length"), Some("8"));
    assert_eq!(header("user-agent"), Some(USER_AGENT));
    assert_eq!(header("host"), Some(&*receiver.address.to_string()));
    let (id, timestamp) = (header("webhook-id").unwrap(), header("webhook-timestamp").unwrap());
    let signature = header("webhook-signature").unwrap();
    assert_eq!(verify(&[&secret], id, timestamp, signature, &body, 1_700_000_010), Ok(()));
}

#[tokio::test]
async fn every_status_is_an_answer() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200),
        ("HTTP/1.0 200 OK\r\n\r\nok", 200),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 201 Made\r\n\r\n", 201),
        ("HTTP/1.1 301 Moved\r\nlocation: ::nonsense::\r\n\r\n", 301),
        ("HTTP/1.1 410 Gone\r\n\r\n", 410),
        ("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", 500),
        ("HTTP/1.1 999 What\r\n\r\n", 999),
    ] {
        let got = status(answer.as_bytes()).await;
        assert_eq!(got, expected);
        assert_eq!(Answer { status: got, retry_after: None }.is_success(), expected < 300);
    }
}

#[tokio::test]
async fn a_receiver_says_when_to_come_again() {
    let head = "HTTP/1.1 503 Busy\r\nretry-after: Sun, 01 Mar 2026 00:00:30 GMT\r\n";
    let dated = format!("{head}date: Sun, 01 Mar 2026 00:00:00 GMT\r\n\r\n");
    let receiver = Receiver::answers(dated).await;
    let answer = post(&local_client(PATIENCE), &receiver.url()).await.unwrap();
    assert_eq!(answer, Answer { status: 503, retry_after: Some(Duration::from_secs(30)) });
}

#[tokio::test]
async fn once_there_is_a_status_the_body_changes_nothing() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbroken off",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 8\r\n\r\nnonsense",
    ] {
        assert_eq!(status(answer.as_bytes()).await, 200);
    }
}

#[tokio::test]
async fn without_a_status_there_is_no_answer() {
    for answer in ["", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\nx: y\r\n", "SSH-2.0-OpenSSH\r\n", "\0\0\0\0"] {
        assert_eq!(kind_of(answer.as_bytes()).await, SendErrorKind::Broken, "{answer}");
    }
    let lines = (0..101).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    assert_eq!(kind_of(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()).await, SendErrorKind::Broken);
}

#[tokio::test]
async fn a_receiver_that_never_answers_costs_the_timeout() {
    let silent = Receiver::new(LOCALHOST, 0, |mut stream| async move {
        read_request(&mut stream).await?;
        stream.read_u8().await.map(drop)
    })
    .await;
    // The connection is made by the system, though nobody takes it.
    let deaf = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let deaf = format!("http://{}/secret", deaf.local_addr().unwrap()).parse().unwrap();
    let (byte_by_byte, _) = endless("HTTP/1.1 200 OK\r\nx: ", b"y".to_vec(), Duration::from_millis(20)).await;
    let (early, _) = endless("", b"HTTP/1.1 103 Early\r\n\r\n".to_vec(), Duration::from_millis(20)).await;
    for url in [silent.url(), deaf, byte_by_byte.url(), early.url()] {
        let begun = Instant::now();
        assert_eq!(refused(&local_client(SHORT), &url).await, SendErrorKind::Timeout, "{url}");
        assert!((SHORT..PATIENCE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte() {
    let receiver = Receiver::new(LOCALHOST, 0, |mut stream| async move {
        read_request(&mut stream).await?;
        stream.set_nodelay(true)?;
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" {
            stream.write_u8(*byte).await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    })
    .await;
    assert_eq!(post(&local_client(PATIENCE), &receiver.url()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_that_never_ends_costs_a_second() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"] {
        let (receiver, _) = endless(head, b"y".to_vec(), Duration::from_millis(20)).await;
        let begun = Instant::now();
        assert_eq!(post(&local_client(PATIENCE), &receiver.url()).await.unwrap().status, 200);
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    }
    // Neither does it cost more than is left of the timeout, nor does that undo the status.
    let (receiver, _) = endless("HTTP/1.1 200 OK\r\n\r\n", Vec::new(), Duration::from_millis(20)).await;
    assert_eq!(post(&local_client(SHORT / 2), &receiver.url()).await.unwrap().status, 200);
}

#[tokio::test]
async fn of_a_gigabyte_hardly_anything_is_read() {
    // What the buffers of two sockets take.
    const BUFFERS: usize = 64 * 1024 * 1024;
    let line = [b"x: ".as_slice(), &[b'y'; 8_000], b"\r\n"].concat();
    for (head, chunk, answer) in [
        ("HTTP/1.1 200 OK\r\n\r\n", vec![b'y'; 64 * 1024], Some(200)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", vec![b'y'; 64 * 1024], Some(200)),
        ("HTTP/1.1 200 OK\r\n", line, None),
        ("HTTP/1.1 200 OK\r\nx: ", vec![b'y'; 64 * 1024], None),
    ] {
        let (receiver, sent) = endless(head, chunk, Duration::ZERO).await;
        let client = local_client(PATIENCE);
        match answer {
            Some(status) => assert_eq!(post(&client, &receiver.url()).await.unwrap().status, status),
            None => assert_eq!(refused(&client, &receiver.url()).await, SendErrorKind::Broken),
        }
        assert!(sent.load(Ordering::SeqCst) < BUFFERS, "{head}: {sent:?}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_small_body() {
    let serve = |body: usize| {
        Receiver::new(LOCALHOST, 0, move |mut stream| async move {
            loop {
                read_request(&mut stream).await?;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n{}", "y".repeat(body));
                stream.write_all(answer.as_bytes()).await?;
            }
        })
    };
    const MUCH: usize = 8 * 1024 * 1024;
    for body in [0, MAX_BODY_BYTES, MUCH] {
        let (receiver, client) = (serve(body).await, local_client(PATIENCE));
        for _ in 0..10 {
            assert_eq!(post(&client, &receiver.url()).await.unwrap().status, 200);
            // A task of its own gives the connection back. Where it comes too late, once, another is made.
            tokio::task::yield_now().await;
        }
        let connections = receiver.connections();
        assert!(if body == MUCH { connections == 10 } else { connections < 10 }, "{body}: {connections}");
    }
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_is_nobody_elses_fault() {
    let receiver = Receiver::answers("HTTP/1.1 200 OK\r\n\r\n").await;
    let message = Signed { id: "a\nb", timestamp: 0, signature: "v1,abc=" };
    let sent = local_client(PATIENCE).post(&owner("user-1"), &receiver.url(), message, Bytes::new()).await;
    let error = sent.unwrap_err();
    assert_eq!((error.kind(), receiver.connections()), (SendErrorKind::Unsendable, 0));
}

#[tokio::test]
async fn connections_are_kept_to_so_many_hosts_and_no_more() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&open), Arc::clone(&most));
    let receiver = Receiver::new(LOCALHOST, 0, move |mut stream| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while read_request(&mut stream).await.is_ok() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
            }
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    })
    .await;
    let client = client(&["127.0.0.1"], PATIENCE, lookup(vec![vec![LOCALHOST]]).0);
    let port = receiver.address.port();
    for n in 0..3 * KEPT_HOSTS {
        let url = format!("http://app-{n}.example:{port}/").parse().unwrap();
        assert_eq!(post(&client, &url).await.unwrap().status, 200);
    }
    assert_eq!(receiver.connections(), 3 * KEPT_HOSTS);
    // Some are about to be closed.
    let most = most.load(Ordering::SeqCst);
    assert!(most < KEPT_HOSTS + 16, "{most} were open together");
}
