//! Pins: toolkit versions that are pinned at run time.

use std::fmt;

use async_trait::async_trait;

use super::StoreError;
use crate::job::{Owner, Pin};

/// Toolkit versions that are pinned at run time.
#[async_trait]
pub trait Pins: fmt::Debug + Send + Sync {
    /// All pins, global ones first.
    async fn pins(&self) -> Result<Vec<Pin>, StoreError>;

    /// Sets or replaces a pin.
    async fn set_pin(&self, pin: &Pin) -> Result<(), StoreError>;

    /// Removes a pin; `false` when there was none.
    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool, StoreError>;
}
