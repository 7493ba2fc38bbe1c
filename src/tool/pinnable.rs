//! Whether a toolkit has a version, which is asked before it is pinned: a job by a pin that means nothing fails for good.

use super::{SharedToolApi, ToolError};

/// How many versions are named of those that there are.
const NAMED_VERSIONS: usize = 10;

/// What the tool API says of a version that is to be pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinnable {
    /// There is such a version; the header that says whether it will go away.
    Yes { deprecated: Option<String> },
    /// A sentence.
    No(String),
}

/// Asks the tool API about a version of a toolkit.
///
/// # Errors
/// The tool API does not answer, or not as it should.
pub async fn pinnable(api: &SharedToolApi, toolkit: &str, version: &str) -> Result<Pinnable, ToolError> {
    let versions = match api.toolkit(toolkit, Some(version)).await {
        Ok(info) if info.available_versions.iter().any(|known| known == version) => {
            return Ok(Pinnable::Yes { deprecated: info.deprecated });
        }
        Ok(info) => info.available_versions,
        Err(ToolError::NotFound(_)) => match api.toolkit(toolkit, None).await {
            Ok(info) => info.available_versions,
            Err(ToolError::NotFound(_)) => {
                return Ok(Pinnable::No(format!(
                    "the tool API knows no toolkit {toolkit}; `errand tools show TOOL` names that of a tool"
                )));
            }
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let named: Vec<_> = versions.iter().take(NAMED_VERSIONS).map(String::as_str).collect();
    let more = if versions.len() > named.len() { " and older ones" } else { "" };
    Ok(Pinnable::No(format!("{toolkit} has no version {version}, but {}{more}", named.join(", "))))
}
