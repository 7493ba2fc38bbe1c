//! The collected examples of bytes from outside, each through the function that fuzzing calls. A name
//! begins with what becomes of the bytes, such as `bad_owner-empty`.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use errand::bounds::MAX_ENVELOPE_BYTES;
use errand_lab::properties;

/// Says what becomes of the bytes.
type Check = fn(&[u8]) -> &'static str;

/// Runs every example of a directory. Returns the words of all of them.
///
/// # Errors
/// Everything that is wrong.
fn run(corpus: &Path, check: Check) -> Result<BTreeSet<String>, Vec<String>> {
    let mut files: Vec<PathBuf> = match std::fs::read_dir(corpus) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(error) => return Err(vec![format!("{}: {error}", corpus.display())]),
    };
    files.sort();
    let (mut words, mut faults) = (BTreeSet::new(), Vec::new());
    for file in &files {
        let name = file.file_name().unwrap().to_string_lossy();
        let bytes = std::fs::read(file).unwrap();
        // A name without a dash was made by a fuzzer that writes its finds here.
        let expected = name.split_once('-').map(|(word, _)| word);
        match catch_unwind(AssertUnwindSafe(|| check(&bytes))) {
            Err(_) => faults.push(format!("{name}: a property does not hold, see above")),
            Ok(word) if expected.is_none_or(|expected| expected == word) => {
                words.insert(word.to_owned());
            }
            Ok(word) => faults.push(format!("{name}: it is `{word}`")),
        }
    }
    if words.is_empty() && faults.is_empty() {
        faults.push(format!("{}: there are no examples", corpus.display()));
    }
    if faults.is_empty() { Ok(words) } else { Err(faults) }
}

#[track_caller]
fn holds(corpus: &str, check: Check, expected: &[&str]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    match run(&directory, check) {
        Ok(words) => assert_eq!(words, expected.iter().map(|word| (*word).to_owned()).collect()),
        Err(faults) => panic!("{}", faults.join("\n")),
    }
}

#[test]
fn the_properties_of_envelopes_hold_for_the_corpus() {
    holds("envelope", properties::envelope, &["accepted", "bad_owner", "bad_value", "malformed", "no_id"]);
}

#[test]
fn the_properties_of_the_tool_apis_answers_hold_for_the_corpus() {
    holds(
        "tool_api",
        properties::tool_api,
        &["failed", "held", "retried", "succeeded", "throttled", "unknown"],
    );
}

#[test]
fn the_properties_of_configurations_hold_for_the_corpus() {
    holds("config", properties::config, &["loaded", "refused"]);
}

#[test]
fn the_properties_of_frames_hold_for_the_corpus() {
    holds("frames", properties::frames, &["passed", "replaced", "unfinished"]);
}

#[test]
fn the_properties_of_journals_hold_for_the_corpus() {
    holds("journal", properties::journal, &["damaged", "other_version", "results", "whole"]);
}

#[test]
fn the_properties_of_envelopes_hold_around_the_largest_size() {
    let of_size = |size: usize| {
        let frame = r#"{"user_id":"u","tool":"T","arguments":{"a":""}}"#;
        let filled = frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(size - frame.len())));
        assert_eq!(filled.len(), size);
        filled.into_bytes()
    };
    for size in [MAX_ENVELOPE_BYTES / 2, MAX_ENVELOPE_BYTES - 10, MAX_ENVELOPE_BYTES] {
        assert_eq!(properties::envelope(&of_size(size)), "no_id");
    }
    assert_eq!(properties::envelope(&of_size(MAX_ENVELOPE_BYTES + 1)), "too_large");
}

#[test]
fn a_corpus_that_shows_nothing_fails() {
    let directory = tempfile::tempdir().unwrap();
    let faults = |check| run(directory.path(), check).unwrap_err();
    assert!(run(&directory.path().join("missing"), |_| "fine").is_err());
    assert_eq!(faults(|_| "fine").len(), 1, "an empty corpus");
    std::fs::write(directory.path().join("fine-file"), "a").unwrap();
    std::fs::write(directory.path().join("0a1b2c"), "b").unwrap();
    assert!(run(directory.path(), |_| "fine").is_ok());
    assert_eq!(faults(|_| "bad"), ["fine-file: it is `bad`"]);
    assert_eq!(faults(|bytes| if bytes == b"b" { panic!("as it should") } else { "fine" }).len(), 1);
}
