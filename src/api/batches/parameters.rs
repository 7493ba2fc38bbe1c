//! The parameters and headers of requests about batches.

use utoipa::{
    IntoParams,
    openapi::{
        Required,
        path::{Parameter, ParameterIn},
    },
};

use crate::{
    api::{
        described::{cursor, number, optional, text},
        request::MAX_LIMIT,
    },
    cursor::BatchCursor,
};

/// The header by which a batch is known again.
#[derive(Debug)]
pub(super) struct Key;

/// Which items come.
#[derive(Debug)]
pub(super) struct Indexes;

/// A page of batches.
#[derive(Debug)]
pub(super) struct Page;

/// A page of items.
#[derive(Debug)]
pub(super) struct Range;

impl IntoParams for Key {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let key = text().pattern(Some("^[!-~]{1,256}$"));
        let what = "With the same key the same request is the same batch.";
        vec![optional(ParameterIn::Header, "Idempotency-Key", key, what)]
    }
}

impl IntoParams for Indexes {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut from = from("The index of the first of these items: the `total` of the batch.");
        from.required = Required::True;
        vec![from]
    }
}

impl IntoParams for Page {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let what = "Where to go on: the `next` of the page before.";
        vec![
            optional(ParameterIn::Query, "cursor", cursor(BatchCursor::pattern()), what),
            optional(
                ParameterIn::Query,
                "limit",
                number(1, MAX_LIMIT),
                "The most batches of the page. 50 without it.",
            ),
        ]
    }
}

impl IntoParams for Range {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![
            from("The index of the first item. 0 without it."),
            optional(
                ParameterIn::Query,
                "limit",
                number(1, MAX_LIMIT),
                "The most items of the page. 50 without it.",
            ),
        ]
    }
}

fn from(what: &str) -> Parameter {
    optional(ParameterIn::Query, "from", number(0, 1_000_000), what)
}
