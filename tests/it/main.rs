//! One integration binary.
mod sandbox;
