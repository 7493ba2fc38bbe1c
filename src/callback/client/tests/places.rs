//! Where a request goes, and where it does not.

use std::{process::Command, sync::Condvar};

use futures_util::future::join_all;

use super::*;
use crate::callback::guard::{MAX_LOOKUPS_OF_OWNER, on_threads};

const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// Where the child process of the test about proxies is to send a callback.
const TARGET: &str = "ERRAND_TEST_CALLBACK_URL";

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A URL with a name instead of the address.
fn named(receiver: &Receiver) -> CallbackUrl {
    format!("http://receiver.example:{}/secret", receiver.address.port()).parse().unwrap()
}

#[tokio::test]
async fn addresses_in_urls_are_judged_in_every_spelling() {
    let receiver = Receiver::answers(OK).await;
    let port = receiver.address.port();
    let strict = client(&[], PATIENCE, system_lookup());
    for host in [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "%31%32%37.0.0.1",
        "１２７.0.0.1",
        "127。0。0。1",
        "localhost",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "[::ffff:10.0.0.1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
    ] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{port}/secret").parse().unwrap();
            assert_eq!(refused(&strict, &url).await, SendErrorKind::RefusedAddress, "{url}");
        }
    }
    assert_eq!(receiver.connections(), 0);
    for host in ["127.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{port}/").parse().unwrap();
        assert_eq!(post(&local_client(PATIENCE), &url).await.unwrap().status, 200, "{url}");
    }
}

#[tokio::test]
async fn a_name_leads_only_to_addresses_that_are_permitted() {
    let receiver = Receiver::answers(OK).await;
    for addresses in [&["127.0.0.1"][..], &["::1"], &["10.0.0.1", "::ffff:127.0.0.1", "169.254.169.254"]] {
        let (lookup, count) = lookup(vec![ips(addresses)]);
        let client = client(&[], PATIENCE, lookup);
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://receiver.example:{}/secret", receiver.address.port());
            let url = url.parse().unwrap();
            assert_eq!(refused(&client, &url).await, SendErrorKind::RefusedAddress, "{url}");
        }
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn without_encryption_only_what_is_allowed_by_name_is_called() {
    let client = client(&["10.0.0.1"], PATIENCE, system_lookup());
    for (ip, http, https) in [
        ("10.0.0.1", true, true),
        ("10.0.0.2", false, false),
        ("1.1.1.1", false, true),
        ("2606:4700::1", false, true),
    ] {
        let ip = ip.parse().unwrap();
        assert_eq!((client.http_guard.permits(ip), client.https_guard.permits(ip)), (http, https), "{ip}");
    }
    for (url, end) in [("http://h/", "use https"), ("https://h/", "may be sent")] {
        let error = failed(SendErrorKind::RefusedAddress, &url.parse().unwrap());
        assert!(error.to_string().ends_with(end), "{error}");
    }
}

#[tokio::test]
async fn of_mixed_addresses_only_the_permitted_ones_are_tried() {
    let receiver = Receiver::answers(OK).await;
    let port = receiver.address.port();
    let forbidden = Receiver::new("127.0.0.2".parse().unwrap(), port, |_| async { Ok(()) }).await;
    let (lookup, _) = lookup(vec![ips(&["127.0.0.2", "::1", "10.0.0.1", "127.0.0.1"])]);
    let client = client(&["127.0.0.1"], PATIENCE, lookup);
    assert_eq!(post(&client, &named(&receiver)).await.unwrap().status, 200);
    assert_eq!((forbidden.connections(), receiver.connections()), (0, 1));
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_later_is_judged_again() {
    // It closes each connection, so that the next request needs another.
    let receiver = Receiver::answers("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
    let port = receiver.address.port();
    let forbidden = Receiver::new("127.0.0.2".parse().unwrap(), port, |_| async { Ok(()) }).await;
    let (lookup, count) = lookup(vec![ips(&["127.0.0.1"]), ips(&["127.0.0.2"])]);
    let client = client(&["127.0.0.1"], PATIENCE, lookup);
    assert_eq!(post(&client, &named(&receiver)).await.unwrap().status, 200);
    // There is one look-up for a connection, so there is none that is judged and another that is used.
    assert_eq!(count.load(Ordering::SeqCst), receiver.connections());
    for _ in 0..3 {
        assert_eq!(refused(&client, &named(&receiver)).await, SendErrorKind::RefusedAddress);
    }
    assert_eq!((receiver.connections(), forbidden.connections()), (1, 0));
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_unknown() {
    let receiver = Receiver::answers(OK).await;
    let failing: Lookup = Arc::new(|_| Box::pin(async { Err(io::Error::other("no such name")) }));
    let hanging: Lookup = Arc::new(|_| Box::pin(std::future::pending()));
    let (none, _) = lookup(vec![Vec::new()]);
    for (lookup, timeout) in [(failing, PATIENCE), (none, PATIENCE), (hanging, Duration::from_secs(3))] {
        let client = client(&["127.0.0.1"], timeout, lookup);
        assert_eq!(refused(&client, &named(&receiver)).await, SendErrorKind::UnknownHost);
    }
}

#[tokio::test]
async fn where_nobody_listens_there_is_no_connection() {
    let closed = TcpListener::bind((LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let url = format!("http://{closed}/secret").parse().unwrap();
    assert_eq!(refused(&local_client(PATIENCE), &url).await, SendErrorKind::Connect);
}

#[tokio::test]
async fn a_redirection_is_not_followed() {
    let other = Receiver::answers(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {status} Moved\r\nlocation: http://{}/\r\n\r\n", other.address);
        let receiver = Receiver::answers(answer).await;
        let answer = post(&local_client(PATIENCE), &receiver.url()).await.unwrap();
        assert_eq!((answer.status, answer.is_success()), (status, false));
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn proxies_of_the_environment_are_not_asked() {
    // The environment is that of a process, so the callback is sent by another one, which runs this very test.
    if let Ok(url) = std::env::var(TARGET) {
        let (lookup, _) = lookup(vec![ips(&["127.0.0.1"])]);
        let client = client(&["127.0.0.1"], PATIENCE, lookup);
        assert_eq!(post(&client, &url.parse().unwrap()).await.unwrap().status, 200);
        return;
    }
    let (receiver, proxy) = (Receiver::answers(OK).await, Receiver::answers(OK).await);
    let (_, module) = module_path!().split_once("::").unwrap();
    let test = format!("{module}::proxies_of_the_environment_are_not_asked");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &test]).env(TARGET, named(&receiver).as_str());
    for name in ["no_proxy", "NO_PROXY", "REQUEST_METHOD"] {
        child.env_remove(name);
    }
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, format!("http://{}", proxy.address));
    }
    let output = spawn_blocking(move || child.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((receiver.connections(), proxy.connections()), (1, 0));
}

#[tokio::test]
async fn slow_names_of_one_owner_leave_look_ups_to_others() {
    let (held, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new((Mutex::new(false), Condvar::new())));
    let (counted, closed) = (Arc::clone(&held), Arc::clone(&gate));
    let look = move |host: &str| {
        if host.starts_with("slow") {
            counted.fetch_add(1, Ordering::SeqCst);
            let (is_open, opened) = &*closed;
            let wait = opened.wait_timeout_while(is_open.lock().unwrap(), PATIENCE, |is_open| !*is_open);
            drop(wait.unwrap());
        }
        Ok(vec![LOCALHOST])
    };
    let client = client(&["127.0.0.1"], Duration::from_secs(6), on_threads(look));
    let receiver = Receiver::answers(OK).await;
    let message = Signed { id: "id", timestamp: 1_700_000_000, signature: "v1,abc=" };
    let slow = owner("slow");
    let url = |n: usize| format!("http://slow-{n}.example:{}/", receiver.address.port()).parse().unwrap();
    // More of them than there are look-ups of all.
    let urls: Vec<CallbackUrl> = (0..300).map(url).collect();
    let all = urls.iter().map(|url| client.post(&slow, url, message, Bytes::new()));
    for sent in join_all(all).await {
        assert_eq!(sent.unwrap_err().kind(), SendErrorKind::UnknownHost);
    }
    // Nobody waits for them any longer, but the system has not answered yet.
    assert_eq!(held.load(Ordering::SeqCst), MAX_LOOKUPS_OF_OWNER);
    assert_eq!(post(&client, &named(&receiver)).await.unwrap().status, 200, "another owner");
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert_eq!(client.post(&slow, &urls[0], message, Bytes::new()).await.unwrap().status, 200);
}
