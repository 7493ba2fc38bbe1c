//! TLS of the API's own, where no proxy in front has it (`api.tls_certificate`, `api.tls_key`).

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{
    failure::chain,
    sync::{read, write},
};

/// How often the files are read again.
const EVERY: Duration = Duration::from_secs(5);

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of each file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The files of a certificate with its chain, and of its key, both as PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The certificate in use, which changes with its files.
pub(super) struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What is in the files, to see whether it changes.
pub(super) type Seen = [u8; 32];

impl Tls {
    /// Reads the files; an error says which of them cannot be used, and why.
    pub(super) fn new(files: TlsFiles) -> io::Result<(Arc<Self>, Seen)> {
        let (config, seen) = load(&files)?;
        Ok((Arc::new(Self { files, current: RwLock::new(config) }), seen))
    }

    /// Takes what is in the files whenever that changes, until `stop`. While it cannot be used, the last one stays.
    pub(super) async fn renew(&self, mut seen: Seen, stop: CancellationToken) {
        let mut told: Option<String> = None;
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let files = self.files.clone();
            let loaded = tokio::task::spawn_blocking(move || load(&files)).await;
            match loaded.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
                Ok((config, now)) => {
                    told = None;
                    if now != seen {
                        seen = now;
                        *write(&self.current) = config;
                        tracing::info!("the API's certificate was replaced");
                    }
                }
                // As while they are replaced one after the other.
                Err(error) if told.as_ref() != Some(&error.to_string()) => {
                    tracing::warn!(error = %chain(&error), "the API's certificate cannot be read again; the last one stays");
                    told = Some(error.to_string());
                }
                // The same was logged when it was first seen, and once is enough for one cause.
                Err(_) => {}
            }
        }
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(read(&self.current).clone());
        tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
    }
}

fn load(files: &TlsFiles) -> io::Result<(Arc<ServerConfig>, Seen)> {
    let (certificate, key) = (bounded(&files.certificate)?, bounded(&files.key)?);
    let wrong = |file: &PathBuf, what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", file.display()))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let chain = chain.map_err(|_| wrong(&files.certificate, "is no PEM file of certificates"))?;
    if chain.is_empty() {
        return Err(wrong(&files.certificate, "has no certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| wrong(&files.key, "has no private key in PEM that can be read"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, private);
    // The error would quote nothing of the key.
    let mut config =
        config.map_err(|error| wrong(&files.key, &format!("does not belong to the certificate: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let seen = Sha256::new().chain_update(&certificate).chain_update([0]).chain_update(&key).finalize();
    Ok((Arc::new(config), seen.into()))
}

fn bounded(file: &PathBuf) -> io::Result<Vec<u8>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let length = std::fs::metadata(file).map_err(named)?.len();
    if length > MAX_FILE_BYTES {
        return Err(named(io::Error::new(io::ErrorKind::InvalidData, "is too large")));
    }
    std::fs::read(file).map_err(named)
}
