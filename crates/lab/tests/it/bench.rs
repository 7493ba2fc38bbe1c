//! A short benchmark of the embedded pair, whose figures mean nothing.

use serde_json::Value;

use crate::run;

const SHORT: [&str; 9] =
    ["bench", "--backend", "embedded", "--jobs", "40", "--stub-ms", "0", "--latency-secs", "1"];

#[test]
fn builds_are_measured_in_turn_and_compared_by_pairs() {
    // The same build, in the place of another.
    let other = env!("CARGO_BIN_EXE_errand-lab");
    let output = run(&[&SHORT[..], &["--rounds", "2", "--worker", other, "--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let level = &report["levels"][0];
    let measured: Vec<(u64, &str)> = level["rates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rate| (rate["round"].as_u64().unwrap(), rate["contender"].as_str().unwrap()))
        .collect();
    let expected =
        [(1, "baseline"), (1, "worker"), (1, "other"), (2, "other"), (2, "worker"), (2, "baseline")];
    assert_eq!(measured, expected, "{report}");
    for figure in ["jobs_per_second", "cpu_seconds_per_1000"] {
        let spread = &level["comparison"][figure];
        assert_eq!(spread["count"], 2, "{report}");
        assert!(spread["median"].as_f64().unwrap() > 0.0, "{report}");
    }
    // Nothing but the broker brings jobs from outside to the baseline.
    let latencies: Vec<&Value> =
        level["latencies"].as_array().unwrap().iter().map(|latency| &latency["contender"]).collect();
    assert_eq!(latencies, ["worker", "other"]);
}

#[test]
fn a_program_without_a_worker_is_refused() {
    for (program, reason) in [("/bin/true", "has no worker to measure"), ("/nowhere", "cannot run")] {
        let output = run(&[&SHORT[..], &["--worker", program]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}
