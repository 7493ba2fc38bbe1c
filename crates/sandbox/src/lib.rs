//! A faithful stand-in for the tool API, with faults on demand and a ledger of effects.
//!
//! It answers `/api/v3` and `/api/v3.1` as the real API does as far as that is known, for a world
//! of users, accounts and tools that a TOML file describes; where it is not known, the file has a
//! switch. Under `/_sandbox` it can be told to misbehave, and asked what really happened.
//!
//! Guarantees:
//! * An effect is in the ledger if and only if the call took effect, whatever the client was told,
//!   and whether or not the client was still there.
//! * Nothing is ever de-duplicated.
//! * Faults are a function of the seed and the requests, not of timing.
//!
//! It deliberately does not talk to any provider, keep anything across restarts, or protect the
//! `/_sandbox` routes. It is for loopback.

mod accounts;
mod clock;
mod error;
mod fault;
mod ledger;
mod limiter;
mod listener;
mod logs;
mod query;
mod routes;
mod seeded;
mod server;
mod state;
mod world;

pub use ledger::LedgerSummary;
pub use server::{Options, Running, Sandbox};
pub use world::{DEFAULT_WORLD, World, WorldError};
