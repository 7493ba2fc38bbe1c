use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Folder, Unreadable, decode};
use crate::{
    job::{
        Attempt, AttemptOutcome, Ending, ErrorKind, Fence, HeldReason, JobError, JobId, RequestId, Stop,
        WorkerId,
    },
    store::{By, Finish},
};

fn errors() -> impl Strategy<Value = JobError> {
    (select(ErrorKind::ALL), any::<String>(), any::<Option<i64>>(), any::<Option<String>>())
        .prop_map(|(kind, message, code, slug)| JobError::new(kind, message).with_code(code, slug))
}

fn stops() -> impl Strategy<Value = Stop> {
    prop_oneof![
        errors().prop_map(|error| Stop::Fail { error }),
        (select(HeldReason::ALL), errors()).prop_map(|(reason, error)| Stop::Hold { reason, error }),
        (any::<String>(), errors()).prop_map(|(toolkit, error)| Stop::Connect { toolkit, error }),
    ]
}

fn durations() -> impl Strategy<Value = Duration> {
    (any::<u32>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs.into(), nanos))
}

fn endings() -> impl Strategy<Value = Ending> {
    let result = (any::<String>(), any::<i64>()).prop_map(|(text, number)| {
        // Pretty JSON has line breaks, and a result is kept as it came.
        let json = serde_json::json!({"text": text, "number": number, "list": [1, null]});
        let raw = RawValue::from_string(serde_json::to_string_pretty(&json).unwrap()).unwrap();
        Ending::Succeed { result: raw.into() }
    });
    prop_oneof![
        result,
        stops().prop_map(Ending::Stop),
        (durations(), errors()).prop_map(|(after, error)| Ending::Retry { after, error }),
        (durations(), option::of(errors())).prop_map(|(after, error)| Ending::Snooze { after, error }),
        (durations(), errors()).prop_map(|(after, error)| Ending::Verify { after, error }),
    ]
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let times = (-1_000_000_000i64..4_000_000_000, 0i32..1_000_000_000)
        .prop_map(|(secs, nanos)| Timestamp::new(secs, nanos).unwrap());
    (
        (any::<u32>(), any::<u128>(), select(AttemptOutcome::ALL), any::<Option<u16>>()),
        (any::<Option<String>>(), any::<Option<String>>(), option::of(errors())),
        (times.clone(), times),
    )
        .prop_map(
            |(
                (number, request, outcome, http_status),
                (log_id, version, error),
                (started_at, finished_at),
            )| {
                Attempt {
                    number,
                    request_id: RequestId(Uuid::from_u128(request)),
                    outcome,
                    http_status,
                    log_id,
                    version,
                    error,
                    started_at,
                    finished_at,
                }
            },
        )
}

/// Any report of a holder.
fn finishes() -> impl Strategy<Value = Finish> {
    (any::<u128>(), any::<i64>(), attempts(), endings()).prop_map(|(id, fence, attempt, ending)| Finish {
        id: JobId(Uuid::from_u128(id)),
        fence: Fence(fence),
        by: By::Holder,
        attempt,
        ending,
    })
}

fn folder() -> (tempfile::TempDir, Folder) {
    let parent = tempfile::tempdir().unwrap();
    let folder = Folder(parent.path().join("a/journal"));
    (parent, folder)
}

fn read(path: &Path) -> Result<Vec<Finish>, Unreadable> {
    decode(&fs::read(path).unwrap())
}

/// The raw text of a result is part of what `{:?}` shows.
fn shown(finishes: &[Finish]) -> String {
    format!("{finishes:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_file_gives_back_what_was_written(written in vec(finishes(), 0..6)) {
        let (_parent, folder) = folder();
        let path = folder.write(WorkerId::new(), &written).unwrap();
        prop_assert_eq!(folder.files().unwrap(), vec![path.clone()]);
        prop_assert_eq!(shown(&read(&path).unwrap()), shown(&written));
        folder.remove(&path).unwrap();
        folder.remove(&path).unwrap();
        prop_assert_eq!(folder.files().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is(
        written in vec(finishes(), 0..4), at in any::<prop::sample::Index>(), flip in 1u8..=255
    ) {
        let (_parent, folder) = folder();
        let path = folder.write(WorkerId::new(), &written).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_missing_end_is_noticed(written in vec(finishes(), 0..4), cut in any::<prop::sample::Index>()) {
        let (_parent, folder) = folder();
        let path = folder.write(WorkerId::new(), &written).unwrap();
        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]).unwrap_err(), Unreadable::Damaged);
    }
}

#[test]
fn files_belong_to_their_owner_alone() {
    let (_parent, folder) = folder();
    let path = folder.write(WorkerId::new(), &[]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&folder.0)), (0o600, 0o700));
}

#[test]
fn a_missing_folder_is_made_and_one_that_takes_no_files_is_an_error() {
    let (_parent, folder) = folder();
    folder.prepare().unwrap();
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0, "nothing is left in it");
    // Also the superuser, who may write to read-only folders, can make no file here.
    let refuses = Folder(PathBuf::from("/proc/self/fd"));
    assert!(refuses.prepare().is_err() && refuses.write(WorkerId::new(), &[]).is_err());
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(Folder(file.path().to_owned()).prepare().is_err());
}

#[test]
fn two_workers_share_a_folder_and_neither_reads_what_the_other_is_writing() {
    let (_parent, folder) = folder();
    let (first, second) = (WorkerId::new(), WorkerId::new());
    let later = folder.write(second, &[]).unwrap();
    let earlier = folder.write(first, &[]).unwrap();
    let _draft = tempfile::NamedTempFile::new_in(&folder.0).unwrap();
    assert_eq!(folder.files().unwrap(), [earlier, later], "oldest first");
}

#[test]
fn a_file_that_is_set_aside_is_kept_and_not_read_again() {
    let (_parent, folder) = folder();
    let path = folder.write(WorkerId::new(), &[]).unwrap();
    let aside = folder.set_aside(&path).unwrap();
    assert_eq!(folder.set_aside(&path).unwrap(), aside, "another process was faster");
    assert!(aside.exists() && folder.files().unwrap().is_empty());
}

/// A journal may be read by a later build than the one that wrote it.
#[test]
fn the_first_version_of_the_format_stays_readable() {
    let results = concat!(
        r#"[{"id":"0190b0a0-0000-7000-8000-000000000001","fence":3,"by":"holder","attempt":{"number":2,"#,
        r#""request_id":"0190b0a0-0000-7000-8000-000000000002","outcome":"succeeded","http_status":200,"#,
        r#""log_id":"log_1","version":"20251027_00","error":null,"started_at":"2026-01-02T03:04:05Z","#,
        r#""finished_at":"2026-01-02T03:04:06.5Z"},"ending":{"succeed":{"result":{"n": 1.0, "n": 2}}}}]"#
    );
    let checksum: String = Sha256::digest(results).iter().map(|byte| format!("{byte:02x}")).collect();
    let journal = format!(r#"{{"version":1,"results":{results},"checksum":"{checksum}"}}"#);
    let finishes = decode(journal.as_bytes()).unwrap();
    assert_eq!((finishes[0].fence, finishes[0].attempt.number), (Fence(3), 2));
    let (_parent, folder) = folder();
    let path = folder.write(WorkerId::new(), &finishes).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), journal);

    let newer = journal.replacen("\"version\":1", "\"version\":2", 1);
    assert_eq!(decode(newer.as_bytes()).unwrap_err(), Unreadable::OtherVersion);

    // Whole, with a word that this build does not know.
    let results = results.replacen("succeeded", "improved", 1);
    let checksum: String = Sha256::digest(&results).iter().map(|byte| format!("{byte:02x}")).collect();
    let newer = format!(r#"{{"version":1,"results":{results},"checksum":"{checksum}"}}"#);
    assert_eq!(decode(newer.as_bytes()).unwrap_err(), Unreadable::OtherVersion);
}
