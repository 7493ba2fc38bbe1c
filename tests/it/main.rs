//! One integration binary.

mod services;
mod support;
