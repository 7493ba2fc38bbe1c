//! The `errand` binary.
fn main() {}
