//! What is encrypted.

use rcgen::{CertifiedKey, KeyPair};
use reqwest::Certificate;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

use super::*;

fn certificate() -> CertifiedKey<KeyPair> {
    drop(rustls::crypto::ring::default_provider().install_default());
    rcgen::generate_simple_self_signed(["receiver.example".to_owned()]).unwrap()
}

fn acceptor(own: &CertifiedKey<KeyPair>, protocol: &str) -> TlsAcceptor {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let chain = vec![own.cert.der().clone()];
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

fn url(receiver: &Receiver) -> CallbackUrl {
    format!("https://receiver.example:{}/secret", receiver.address.port()).parse().unwrap()
}

/// A client that is led to this host.
fn led() -> CallbackClient {
    let (lookup, _) = lookup(vec![vec![LOCALHOST]]);
    client(&["127.0.0.1"], PATIENCE, lookup)
}

/// The same, which trusts nobody but this one.
fn trusting(own: &CertifiedKey<KeyPair>) -> CallbackClient {
    let client = led();
    let root = Certificate::from_der(own.cert.der()).unwrap();
    let https = builder(&client.https_guard, PATIENCE).tls_certs_only([root]).build().unwrap();
    client.set_https(https);
    client
}

async fn http_1(own: &CertifiedKey<KeyPair>) -> Receiver {
    let acceptor = acceptor(own, "http/1.1");
    Receiver::new(LOCALHOST, 0, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await?;
            read_request(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
            stream.shutdown().await
        }
    })
    .await
}

/// Answers each request with a body without end.
async fn http_2(own: &CertifiedKey<KeyPair>, sent: &Arc<AtomicUsize>) -> Receiver {
    let (acceptor, sent) = (acceptor(own, "h2"), Arc::clone(sent));
    Receiver::new(LOCALHOST, 0, move |stream| {
        let (acceptor, sent) = (acceptor.clone(), Arc::clone(&sent));
        async move {
            let stream = acceptor.accept(stream).await?;
            let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
            while let Some(request) = connection.accept().await {
                let (_, mut answer) = request.map_err(io::Error::other)?;
                let mut body = answer.send_response(hyper::Response::new(()), false).unwrap();
                let sent = Arc::clone(&sent);
                tokio::spawn(async move {
                    loop {
                        body.reserve_capacity(64 * 1024);
                        let capacity = std::future::poll_fn(|context| body.poll_capacity(context)).await;
                        let Some(Ok(capacity)) = capacity else { return };
                        sent.fetch_add(capacity, Ordering::SeqCst);
                        if body.send_data(vec![b'y'; capacity].into(), false).is_err() {
                            return;
                        }
                    }
                });
            }
            Ok(())
        }
    })
    .await
}

#[tokio::test]
async fn a_receiver_with_a_certificate_that_is_trusted_gets_it() {
    let own = certificate();
    let receiver = http_1(&own).await;
    assert_eq!(post(&trusting(&own), &url(&receiver)).await.unwrap().status, 200);
}

#[tokio::test]
async fn over_http_2_as_little_of_a_body_is_read_and_the_connection_stays() {
    let (own, sent) = (certificate(), Arc::new(AtomicUsize::new(0)));
    let receiver = http_2(&own, &sent).await;
    let client = trusting(&own);
    for _ in 0..3 {
        assert_eq!(post(&client, &url(&receiver)).await.unwrap().status, 200);
    }
    assert_eq!(receiver.connections(), 1);
    assert!(sent.load(Ordering::SeqCst) < 16 * 1024 * 1024, "{sent:?}");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_said() {
    let own = certificate();
    let receiver = http_1(&own).await;
    assert_eq!(refused(&trusting(&certificate()), &url(&receiver)).await, SendErrorKind::Tls);
    let wrong_name = format!("https://other.example:{}/secret", receiver.address.port()).parse().unwrap();
    assert_eq!(refused(&trusting(&own), &wrong_name).await, SendErrorKind::Tls);
    // By the authorities that this host trusts.
    assert_eq!(refused(&led(), &url(&receiver)).await, SendErrorKind::Tls);
}

#[tokio::test]
async fn a_receiver_that_does_not_encrypt_gets_nothing() {
    let plain = Receiver::answers("HTTP/1.1 200 OK\r\n\r\n").await;
    let own = certificate();
    // It waits for a request, and is told about encryption.
    let talkative = Receiver::new(LOCALHOST, 0, |mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        stream.read_u8().await.map(drop)
    })
    .await;
    assert_eq!(refused(&trusting(&own), &url(&talkative)).await, SendErrorKind::Tls);
    let client = client(&["127.0.0.1"], Duration::from_secs(3), lookup(vec![vec![LOCALHOST]]).0);
    let root = Certificate::from_der(own.cert.der()).unwrap();
    let https = builder(&client.https_guard, Duration::from_secs(3)).tls_certs_only([root]).build().unwrap();
    client.set_https(https);
    assert_eq!(refused(&client, &url(&plain)).await, SendErrorKind::Connect);
}
