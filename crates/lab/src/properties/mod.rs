//! What must hold for whatever bytes come from outside.
//!
//! Each function takes any bytes, decodes them as errand does, checks what the rest of errand relies
//! on, and panics where it does not hold. The fuzz targets in `fuzz/` call these functions with bytes
//! that they make up, and a test calls them with the collected examples.
//!
//! Each returns a word for what became of the bytes, so that the examples can say what they are
//! examples of.

mod config;
mod envelope;
mod frames;
mod journal;
mod text;
mod tool_api;

pub use config::config;
pub use envelope::envelope;
pub use frames::frames;
pub use journal::journal;
pub use tool_api::tool_api;
