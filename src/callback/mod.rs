//! Callbacks: signed HTTP requests that errand sends to addresses which customers name.
//!
//! A customer chooses the URL, and may choose one that leads into the operator's own network, to a server that never answers,
//! or to one that answers without end. So every address is judged when it is connected to ([`AddressRules`]), no redirection is
//! followed, and of an answer only the status counts. Each request is signed as in Standard Webhooks ([`sign`]), so that its
//! receiver can tell who sent it, and when.
//!
//! What is sent when, and what is kept of it, is decided elsewhere: nothing is sent twice here, and nothing is stored.

mod address;
mod client;
mod guard;
mod retry_after;
mod signature;

pub use address::{AddressRules, BadNetwork, Network};
pub use client::{Answer, CallbackClient, SendError, SendErrorKind, SetupError, Signed};
pub use retry_after::MAX_RETRY_AFTER;
pub use signature::{
    BadSecret, BadSignature, MAX_SECRET_BYTES, MIN_SECRET_BYTES, Secret, TOLERANCE, sign, verify,
};
