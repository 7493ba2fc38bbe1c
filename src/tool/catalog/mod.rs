//! What is known about tools, and the decision which toolkit version a job runs.
//!
//! A pin belongs to a toolkit, the toolkit of a tool is said only by the tool's description, and a
//! description belongs to a version. So the toolkit is learnt from any version that has the tool,
//! and then the tool is looked up again *at the pinned version*, because slugs come and go.
//!
//! `decide` makes decisions with what is known; when it misses something, it says what.
//! [`Catalog::resolve_cached`] gives up there, [`Catalog::resolve`] asks the API and goes on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use self::decide::{Decider, Undecided};
pub use self::{
    decide::{Ask, Known, Resolved, UnpinnedPolicy},
    error::ResolveError,
};
use super::{
    SharedToolApi, ToolError, ToolInfo,
    pin::{self, PinSources},
    single_flight::SingleFlightCache,
};

mod decide;
mod error;

/// About how many descriptions are remembered.
const CAPACITY: usize = 4_096;

#[derive(Debug, Clone, Copy)]
pub struct CatalogOptions {
    pub ttl: Duration,
    /// How long it is remembered that there is no such tool.
    pub negative_ttl: Duration,
    /// Whether the schemas of arguments are kept, too.
    pub keep_schemas: bool,
}

impl CatalogOptions {
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, negative_ttl: Duration::from_secs(10), keep_schemas: false }
    }
}

/// Descriptions of tools, remembered, and decisions made with them.
#[derive(Debug)]
pub struct Catalog {
    api: SharedToolApi,
    options: CatalogOptions,
    known: SingleFlightCache<Key, Known>,
}

/// Slug and version; no version is the newest.
type Key = (Arc<str>, Option<Arc<str>>);

impl Catalog {
    pub fn new(api: SharedToolApi, options: CatalogOptions) -> Self {
        Self { api, options, known: SingleFlightCache::new(CAPACITY) }
    }

    /// What is known about a tool without asking the API. Never waits.
    pub fn get_cached(&self, slug: &str, version: Option<&str>) -> Option<Known> {
        self.known.fresh(&key(slug, version))
    }

    /// A tool's description. Callers that miss the same one at the same time share one request.
    ///
    /// A description at a literal version hardly changes, so while the API cannot say, an older one
    /// is used.
    ///
    /// # Errors
    /// [`ToolError::NotFound`] when the tool does not exist at that version.
    pub async fn get(&self, slug: &str, version: Option<&str>) -> Result<Arc<ToolInfo>, ToolError> {
        match self.look_up(slug, version).await? {
            Known::Found(info) => Ok(info),
            Known::Missing(error) => Err(ToolError::NotFound(Box::new((*error).clone()))),
        }
    }

    /// The decision for a job, if it can be made with what is known. Never waits.
    pub fn resolve_cached(
        &self,
        ask: &Ask<'_>,
        pins: &PinSources,
        policy: UnpinnedPolicy,
    ) -> Option<Result<Resolved, ResolveError>> {
        let known = |version: Option<&str>| self.get_cached(ask.tool, version);
        match (Decider { ask, pins, policy, known: &known }).decide() {
            Ok(resolved) => Some(Ok(resolved)),
            Err(Undecided::Refused(error)) => Some(Err(error)),
            Err(Undecided::Needs { .. }) => None,
        }
    }

    /// The decision for a job. The version that is decided here must be bound to the job: the
    /// next decision may differ.
    ///
    /// # Errors
    /// [`ResolveError`] when the job may not run, or when the API cannot say.
    pub async fn resolve(
        &self,
        ask: &Ask<'_>,
        pins: &PinSources,
        policy: UnpinnedPolicy,
    ) -> Result<Resolved, ResolveError> {
        // What was learnt for this decision counts even if the cache has dropped it meanwhile, so
        // every round learns something new and the loop ends.
        let mut learnt: HashMap<Option<String>, Known> = HashMap::new();
        loop {
            let known = |version: Option<&str>| {
                let version = version.map(str::to_owned);
                learnt.get(&version).cloned().or_else(|| self.get_cached(ask.tool, version.as_deref()))
            };
            let (version, only_for_hint) = match (Decider { ask, pins, policy, known: &known }).decide() {
                Ok(resolved) => return Ok(resolved),
                Err(Undecided::Refused(error)) => return Err(error),
                Err(Undecided::Needs { version, only_for_hint }) => (version, only_for_hint),
            };
            let known = match self.look_up(ask.tool, version.as_deref()).await {
                Ok(known) => known,
                Err(_) if only_for_hint => Known::Missing(Arc::default()),
                Err(error) => return Err(error.into()),
            };
            learnt.insert(version, known);
        }
    }

    async fn look_up(&self, slug: &str, version: Option<&str>) -> Result<Known, ToolError> {
        let key = key(slug, version);
        let (api, wanted) = (self.api.clone(), key.clone());
        let CatalogOptions { ttl, negative_ttl, keep_schemas } = self.options;
        let ttl_of = move |known: &Known| match known {
            Known::Found(_) => ttl,
            Known::Missing(_) => negative_ttl,
        };
        let fetch = move || {
            async move {
                match api.tool(&wanted.0, wanted.1.as_deref()).await {
                    Ok(mut info) => {
                        info.input_schema = info.input_schema.filter(|_| keep_schemas);
                        Ok(Known::Found(Arc::new(info)))
                    }
                    Err(ToolError::NotFound(error)) => Ok(Known::Missing(Arc::from(error))),
                    Err(error) => Err(error),
                }
            }
            .boxed()
        };
        match self.known.get_or_fetch(key.clone(), ttl_of, fetch).await {
            Ok(Known::Found(info)) => {
                if version.is_none() && pin::is_version(&info.version) {
                    let key = self::key(slug, Some(&info.version));
                    if self.known.fresh(&key).is_none() {
                        self.known.insert(key, Known::Found(info.clone()), ttl);
                    }
                }
                Ok(Known::Found(info))
            }
            Err(error @ (ToolError::Unavailable(_) | ToolError::Throttled { .. })) => {
                match self.known.stale(&key) {
                    Some(known @ Known::Found(_)) if version.is_some() => Ok(known),
                    _ => Err(error),
                }
            }
            other => other,
        }
    }
}

fn key(slug: &str, version: Option<&str>) -> Key {
    (Arc::from(slug), version.map(Arc::from))
}
