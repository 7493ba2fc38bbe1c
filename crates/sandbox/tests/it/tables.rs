//! The sandbox against its tables: what the tool API is known to answer, request by request, over real HTTP.

use std::collections::BTreeSet;

use errand_sandbox::DEFAULT_WORLD;

use crate::{
    bench::{Bench, repo_call},
    coded_vectors,
    row::{rows, run},
};

#[tokio::test]
async fn every_vector_is_answered_as_the_tool_api_answers_it() {
    let vectors = rows(include_str!("vectors.toml"));
    let coded = coded_vectors::IDS.map(str::to_owned);
    let ids: BTreeSet<String> = vectors.iter().map(|vector| vector.id.clone()).chain(coded).collect();
    let expected: BTreeSet<String> = (1..=68).map(|n| format!("V{n:02}")).collect();
    assert_eq!(ids, expected, "each vector has a row or a test");
    run(vectors).await;
}

#[tokio::test]
async fn every_fault_shows_the_client_what_it_says_and_leaves_the_effect_it_says() {
    run(rows(include_str!("faults.toml"))).await;
}

#[tokio::test]
async fn requests_that_make_no_sense_get_an_envelope_and_others_list_and_make_things() {
    run(rows(include_str!("routes.toml"))).await;
}

#[tokio::test]
async fn what_the_sdks_ask_for_is_answered_as_they_decode_it() {
    run(rows(include_str!("sdk.toml"))).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_an_envelope() {
    let bench = Bench::start(DEFAULT_WORLD).await;
    let answer = bench.send(&repo_call().raw(&"x".repeat(5 * 1024 * 1024))).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.at("/error/status")), (413, 413.into()));
}
