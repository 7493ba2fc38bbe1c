//! A short and seeded part of `errand-lab chaos`, which is the whole program: it starts its own services.

use std::process::Output;

use serde_json::Value;

use crate::run;

/// Runs `errand-lab chaos` and returns its report, which must be clean.
fn chaos(args: &[&str]) -> Value {
    let keep = tempfile::tempdir().unwrap();
    let keep = keep.path().to_str().unwrap();
    let output = run(&[&["chaos", "--json", "--seed", "7", "--keep", keep], args].concat());
    let Output { status, stdout, stderr } = &output;
    let (report, said) = (String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr));
    assert!(status.success(), "{status}\n{report}\n{said}");
    serde_json::from_str(&report).unwrap()
}

/// Every given fault was played, with all its jobs, and unknown outcomes were among them.
fn assert_played(report: &Value, faults: usize, jobs: u64) {
    let rows = report["faults"].as_array().unwrap();
    assert_eq!(rows.len(), faults);
    for row in rows {
        assert_eq!((row["rounds"].as_u64(), row["enqueued"].as_u64()), (Some(1), Some(jobs)), "{row}");
        for must_be_zero in ["lost", "twice", "stuck", "untold"] {
            assert_eq!(row[must_be_zero], 0, "{row}");
        }
    }
    let sum = |count: &str| rows.iter().filter_map(|row| row[count].as_u64()).sum::<u64>();
    assert!(sum("unknown") > 0, "no call was interrupted, so the run shows little: {report}");
    assert!(sum("events") > sum("enqueued"), "no job has several events, so no order is shown: {report}");
}

#[test]
fn no_job_is_lost_repeated_or_stuck_and_no_event_untold_on_rabbitmq_and_postgresql() {
    let faults =
        "crash-during-call,crash-after-call,kill-workers,partition,cut-broker,api-faults,receiver-faults";
    let report = chaos(&["--faults", faults, "--rounds", "7", "--jobs", "60", "--parallel", "7"]);
    assert_played(&report, 7, 60);
}

#[test]
fn no_job_is_lost_repeated_or_stuck_and_no_event_untold_on_the_embedded_pair() {
    let faults = "crash-before-ack,crash-after-call,second-signal,lock-database,logs-late,receiver-faults";
    let report = chaos(&[
        "--backend",
        "embedded",
        "--faults",
        faults,
        "--rounds",
        "6",
        "--jobs",
        "60",
        "--parallel",
        "6",
    ]);
    assert_played(&report, 6, 60);
}

#[test]
fn wrong_arguments_are_named() {
    for (args, named) in [
        (["--faults", "rain"], "kill-workers"),
        (["--faults", "lock-database"], "does not exist with this backend"),
        (["--jobs", "3"], "10"),
        (["--crash-at", "x"], "--crash-at"),
    ] {
        let output = run(&["chaos", args[0], args[1]]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(named), "{said}");
    }
}
