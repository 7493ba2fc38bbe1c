//! A faithful stand-in for the tool API.
