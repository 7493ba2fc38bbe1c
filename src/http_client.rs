//! The HTTP clients with which errand asks others.

use reqwest::{Client, ClientBuilder, redirect, retry};

/// Builds a client that follows no redirection, because what is sent along is meant for nobody else, and that sends nothing
/// again by itself.
///
/// With `https` it speaks only that, and trusts the authorities that the host trusts. Over plain HTTP nothing is verified: a
/// host that has no certificates of authorities, such as a slim container, is no obstacle, and nobody waits until hundreds of
/// them are read.
pub(crate) fn client_builder(https: bool) -> ClientBuilder {
    let builder =
        Client::builder().redirect(redirect::Policy::none()).retry(retry::never()).https_only(https);
    if https { builder } else { builder.tls_certs_only([]) }
}
