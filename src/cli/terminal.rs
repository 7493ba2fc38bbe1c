//! Questions to whoever sits at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use super::{exit, output};

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 128;

/// An error unless there is a terminal on which somebody can be asked; it says what to do without one.
pub(super) fn need(otherwise: &str) -> anyhow::Result<()> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(exit::usage(format!("there is no terminal to ask on; {otherwise}")))
}

/// What somebody answers on the terminal, without blanks around it.
pub(super) fn answer(question: &str) -> io::Result<String> {
    output::note(question);
    let mut answer = String::new();
    io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}
