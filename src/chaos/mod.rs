//! Breaks everything around errand at random, and checks what it promises.

pub mod foreign;
