//! What must hold for the bytes of a journal.

use errand::{
    store::Finish,
    worker::{UnreadableJournal, decode_journal},
};
use sha2::{Digest as _, Sha256};

/// Reads the bytes as a journal, and then as the results in one, because nobody makes up a checksum that is right.
/// Returns `whole`, `results`, `damaged` or `other_version`.
pub fn journal(bytes: &[u8]) -> &'static str {
    let read = decode_journal(bytes);
    if let Ok(results) = &read {
        assert!(decode_journal(&bytes[..bytes.len() - 1]).is_err(), "a missing byte was not noticed");
        is_kept(results);
        return "whole";
    }
    if let Ok(results) = decode_journal(&with_checksum(bytes)) {
        is_kept(&results);
        return "results";
    }
    match read {
        Err(UnreadableJournal::OtherVersion) => "other_version",
        _ => "damaged",
    }
}

/// What was read is read again after it was written again.
fn is_kept(results: &[Finish]) {
    let text = serde_json::to_vec(results).expect("results are JSON");
    let again = decode_journal(&with_checksum(&text)).expect("what is written can be read");
    assert_eq!(format!("{results:?}"), format!("{again:?}"));
}

fn with_checksum(results: &[u8]) -> Vec<u8> {
    let checksum: String = Sha256::digest(results).iter().map(|byte| format!("{byte:02x}")).collect();
    [br#"{"version":1,"results":"#, results, br#","checksum":""#, checksum.as_bytes(), br#""}"#].concat()
}
