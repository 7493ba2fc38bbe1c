//! An HTTP client for the tests.

use std::time::Duration;

/// A client of plain HTTP that uses no proxy of the machine. Make one per test: its connections belong to the runtime that
/// opened them.
pub fn client() -> reqwest::Client {
    builder().build().expect("build an HTTP client")
}

/// The same, for a test that wants more of it.
pub fn builder() -> reqwest::ClientBuilder {
    // Only the first call installs it; that a provider is there already is no failure.
    drop(rustls::crypto::ring::default_provider().install_default());
    // Reading the certificates of all authorities of the host takes as long as a short test.
    reqwest::Client::builder().tls_certs_only([]).no_proxy().timeout(Duration::from_secs(30))
}
