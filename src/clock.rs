//! Time has one owner.
