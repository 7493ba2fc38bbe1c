//! One integration binary.
mod sandbox;
mod tool_api;
