//! Tables without borders, which on a terminal keep words whole: what does not fit is wrapped between words, and columns for
//! which there is no room are left out and named.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use jiff::Timestamp;

/// The space between columns.
const GAP: usize = 2;

/// The most characters of a word that is kept whole: an ID is, and JSON without blanks is not.
const LONGEST_WORD: usize = 40;

/// The width of the terminal, where the output is one.
pub(super) fn room() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// The table, and the columns for which there is no room of this width. Cells have no line breaks.
pub(super) fn render<'a>(
    header: &[&'a str],
    mut rows: Vec<Vec<String>>,
    room: Option<usize>,
) -> (String, Vec<&'a str>) {
    let whole = widths(header, &rows, |cell| cell.chars().count());
    let Some(room) = room.filter(|room| total(&whole) > *room) else {
        return (table(header, &rows, &whole), Vec::new());
    };
    for cell in rows.iter_mut().flatten().filter(|cell| cell.parse::<Timestamp>().is_ok()) {
        // A moment is two words: its day and its time.
        *cell = cell.replacen('T', " ", 1);
    }
    let least = widths(header, &rows, |cell| {
        let words = cell.split(' ').map(|word| word.chars().count());
        words.max().unwrap_or(0).min(LONGEST_WORD)
    });
    let kept = kept(header, &least, room);
    let of_kept = |all: &[usize]| kept.iter().map(|column| all[*column]).collect::<Vec<_>>();
    let widths = spread(of_kept(&least), &of_kept(&whole), room);
    let header_of_kept: Vec<_> = kept.iter().map(|column| header[*column]).collect();
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| kept.iter().map(|column| row[*column].clone()).collect()).collect();
    let left_out = (0..header.len()).filter(|column| !kept.contains(column)).map(|column| header[column]);
    (table(&header_of_kept, &rows, &widths), left_out.collect())
}

/// The width of each column, by that of its cells.
fn widths(header: &[&str], rows: &[Vec<String>], of_cell: impl Fn(&str) -> usize) -> Vec<usize> {
    let of_column = |(index, name): (usize, &&str)| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| of_cell(cell));
        cells.chain([of_cell(name)]).max().unwrap_or(0)
    };
    header.iter().enumerate().map(of_column).collect()
}

/// The columns for which there is room: the ID, which is what other commands take, and then from the left those that fit.
fn kept(header: &[&str], least: &[usize], room: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..header.len()).collect();
    order.sort_by_key(|column| header[*column] != "ID");
    let (mut kept, mut taken) = (Vec::new(), 0);
    for column in order {
        let with = if kept.is_empty() { least[column] } else { taken + GAP + least[column] };
        if kept.is_empty() || with <= room {
            kept.push(column);
            taken = with;
        }
    }
    kept.sort_unstable();
    kept
}

/// Gives what is left of the room to the columns, first to those that need least to have no cell wrapped.
fn spread(mut widths: Vec<usize>, whole: &[usize], room: usize) -> Vec<usize> {
    let mut left = room.saturating_sub(total(&widths));
    let mut order: Vec<_> = (0..widths.len()).collect();
    order.sort_by_key(|column| whole[*column] - widths[*column].min(whole[*column]));
    for column in order {
        let more = left.min(whole[column].saturating_sub(widths[column]));
        widths[column] += more;
        left -= more;
    }
    widths
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

fn table(header: &[&str], rows: &[Vec<String>], widths: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).force_no_tty();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::MAX);
    for row in rows {
        table.add_row(row);
    }
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_padding((0, GAP as u16));
        let width = u16::try_from((*width).max(1) + GAP).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: [&str; 8] = ["ID", "STATE", "OWNER", "TOOL", "QUEUE", "ATTEMPTS", "CREATED", "ERROR"];

    fn jobs() -> Vec<Vec<String>> {
        let job = |state: &str, tool: &str, error: &str| {
            let id = "0190b0a0-0000-7000-8000-000000000001";
            [id, state, "user:u-alice", tool, "default", "1", "2026-01-31T12:00:00Z", error]
                .map(str::to_owned)
                .to_vec()
        };
        vec![
            job("held (unknown_outcome)", "GITHUB_GET_REPO", "transport"),
            job("succeeded", "SLACK_SEND", ""),
        ]
    }

    /// Each word of the cells that are shown, and of the header.
    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn no_word_is_broken_at_any_width_and_what_is_left_out_is_named() {
        let whole = render(&JOBS, jobs(), None).0;
        let all: Vec<String> = words(&whole)
            .into_iter()
            .map(str::to_owned)
            .chain(["2026-01-31".into(), "12:00:00Z".into()])
            .collect();
        for room in 38..160 {
            let (text, left_out) = render(&JOBS, jobs(), Some(room));
            assert!(text.lines().all(|line| line.chars().count() <= room), "{room}:\n{text}");
            for word in words(&text) {
                assert!(all.iter().any(|known| known == word), "{room}: {word}\n{text}");
            }
            let shown = JOBS.iter().filter(|name| words(&text).contains(name)).count();
            assert_eq!(shown + left_out.len(), JOBS.len(), "{room}:\n{text}");
            assert!(!left_out.contains(&"ID"));
        }
    }

    #[test]
    fn a_list_of_jobs_has_what_matters_in_eighty_columns() {
        let (text, left_out) = render(&JOBS, jobs(), Some(80));
        assert_eq!(left_out, ["TOOL", "ATTEMPTS", "CREATED", "ERROR"], "{text}");
        let plain: Vec<_> = jobs().into_iter().skip(1).collect();
        let (text, left_out) = render(&JOBS, plain, Some(80));
        assert_eq!(left_out, ["QUEUE", "ATTEMPTS", "CREATED"], "{text}");
    }

    #[test]
    fn what_fits_and_what_is_no_terminal_is_on_one_line_each() {
        for room in [None, Some(200)] {
            let (text, left_out) = render(&JOBS, jobs(), room);
            assert_eq!((text.lines().count(), left_out.len()), (3, 0), "{text}");
            assert!(text.contains("2026-01-31T12:00:00Z"), "{text}");
        }
    }

    #[test]
    fn a_text_is_wrapped_between_words_and_only_what_is_longer_than_an_id_within_one() {
        let row = ["a".to_owned(), "one two three".to_owned(), "x".repeat(100)].to_vec();
        let (text, left_out) = render(&["NAME", "WHY", "JSON"], vec![row], Some(60));
        assert_eq!(left_out, [] as [&str; 0], "{text}");
        for word in ["one", "two", "three"] {
            assert!(words(&text).contains(&word), "{text}");
        }
    }
}
