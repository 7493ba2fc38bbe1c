//! What commands print: plain tables, JSON, and nothing that could steer a terminal.

use std::{
    borrow::Cow,
    io::{self, Write as _},
};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::table;

/// The flag of commands that can answer programs.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Format {
    /// Print JSON instead of text.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct Closed(#[source] pub(super) io::Error);

/// Prints text, which ends in a newline.
pub fn print(text: &str) -> Result<(), Closed> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Closed)
}

pub(super) fn print_line(line: impl std::fmt::Display) -> Result<(), Closed> {
    print(&format!("{line}\n"))
}

pub(super) fn print_json(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    Ok(print_line(serde_json::to_string(value)?)?)
}

/// Prints rows below a header, without borders. On a terminal they fit its width.
pub(super) fn print_table(header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Closed> {
    let rows = rows.iter().map(|row| row.iter().map(|cell| clean(cell).into_owned()).collect()).collect();
    let (text, left_out) = table::render(header, rows, table::room());
    print_line(text)?;
    if !left_out.is_empty() {
        note(format!(
            "there is no room for {}; a wider terminal shows them, and so does `--json` where there is one",
            left_out.join(", ")
        ));
    }
    Ok(())
}

/// Prints a list: a JSON document or a row for each item, or says on standard error why there is none.
pub(super) fn print_list<T, const N: usize>(
    items: &[T],
    format: Format,
    json: impl Fn(&T) -> serde_json::Result<String>,
    nothing: impl std::fmt::Display,
    header: [&str; N],
    row: impl Fn(&T) -> [String; N],
) -> anyhow::Result<()> {
    if format.json {
        let lines = items.iter().map(|item| Ok(json(item)? + "\n"));
        return Ok(print(&lines.collect::<serde_json::Result<String>>()?)?);
    }
    if items.is_empty() {
        note(nothing);
        return Ok(());
    }
    Ok(print_table(&header, items.iter().map(|item| row(item).into()).collect())?)
}

/// The same of items as they leave errand everywhere: that JSON, or a row for each item, which is read as far as it needs.
pub(super) fn print_items<T: DeserializeOwned, const N: usize>(
    items: &[Box<RawValue>],
    format: Format,
    nothing: impl std::fmt::Display,
    header: [&str; N],
    row: impl Fn(&T) -> [String; N],
) -> anyhow::Result<()> {
    if format.json {
        return Ok(print(&items.iter().map(|item| format!("{}\n", item.get())).collect::<String>())?);
    }
    let items =
        items.iter().map(|item| serde_json::from_str(item.get())).collect::<serde_json::Result<Vec<T>>>()?;
    print_list(&items, format, |_| Ok(String::new()), nothing, header, row)
}

/// The owner in what errand tells of something; without one it is the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ToldOwner {
    kind: String,
    id: String,
}

impl std::fmt::Display for ToldOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

/// Whose something is.
pub(super) fn whose(owner: Option<&ToldOwner>) -> String {
    owner.map_or_else(|| "operator".to_owned(), ToldOwner::to_string)
}

/// Says something beside the answer, on standard error. If nobody listens there, that is no failure.
pub fn note(text: impl std::fmt::Display) {
    let _nobody_listens = writeln!(io::stderr(), "{text}");
}

/// A progress bar that looks as the template says.
pub(super) fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Prints names and values below each other; values that are `None` are left out.
pub(super) fn print_fields(fields: &[(&str, Option<String>)]) -> Result<(), Closed> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in fields {
        if let Some(value) = value {
            text.push_str(&format!("{name:width$}  {}\n", clean(value)));
        }
    }
    print(&text)
}

/// A number with its noun.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A moment, to the second.
pub(super) fn moment(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// Text of customers and services on one line, without characters that a terminal would obey.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        let visible = |c: char| if c.is_whitespace() { ' ' } else { char::REPLACEMENT_CHARACTER };
        text.chars().map(|c| if c.is_control() { visible(c) } else { c }).collect::<String>().into()
    } else {
        text.into()
    }
}

/// As [`clean`], but lines stay lines.
pub(super) fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        assert_eq!(clean("a\u{1b}[31m\tb\r\n\u{9b}c"), "a\u{fffd}[31m b  \u{fffd}c");
        assert_eq!(clean("grün"), "grün");
        assert_eq!(clean_lines("a\n\u{7}b"), "a\n\u{fffd}b");
    }
}
