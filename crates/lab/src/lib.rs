//! The laboratory of errand: what measures it, what breaks it on purpose, and what must hold for any bytes that
//! come from outside.
//!
//! The program `errand-lab` starts workers as processes of its own, which run the same library as the binary
//! `errand` does. Nothing in production depends on this crate.

mod bench;
mod chaos;
mod child;
pub mod cli;
mod compat;
pub mod properties;
