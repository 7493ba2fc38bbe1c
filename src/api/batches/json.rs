//! Pages of batches and of their items as JSON.

use serde::Serialize;
use utoipa::ToSchema;

use crate::desk_json::{BatchItemJson, BatchJson};

/// A page of batches, newest first, with the counts of a moment ago.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct BatchPage {
    pub(super) items: Vec<BatchJson>,
    /// The `cursor` of the next page, and `null` where there is none.
    pub(super) next: Option<String>,
}

/// Items of a batch in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ItemPage {
    pub(super) items: Vec<BatchItemJson>,
    /// The `from` of the next page, and `null` where there is none.
    pub(super) next: Option<u64>,
}
