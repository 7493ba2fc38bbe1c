//! What is known about tools, and the decision which toolkit version a job runs.
//!
//! A pin belongs to a toolkit, the toolkit of a tool is said only by the tool's description, and a
//! description belongs to a version. So the toolkit is learnt from any version that has the tool,
//! and then the tool is looked up again *at the pinned version*, because slugs come and go.
//!
//! Decisions are made by one function over what is known; when it misses something, it says what.
//! [`Catalog::resolve_cached`] gives up there, [`Catalog::resolve`] asks the API and goes on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use super::{
    ApiError, SharedToolApi, ToolError, ToolInfo,
    cached::Cached,
    pin::{self, BASE_VERSION, Decision, PinSources, Wanted},
};
use crate::job::{Effect, ErrorKind, JobError, JobSpec, NotReady, Owner, PinnedBy, Stop};

/// Most guesses at the toolkit of a tool that is in neither the newest nor the base version.
const MAX_GUESSES: usize = 3;

/// How long descriptions are remembered.
#[derive(Debug, Clone, Copy)]
pub struct CatalogOptions {
    /// About how many descriptions are remembered.
    pub capacity: usize,
    /// How long a description is remembered.
    pub ttl: Duration,
    /// How long it is remembered that there is no such tool.
    pub negative_ttl: Duration,
}

impl Default for CatalogOptions {
    fn default() -> Self {
        Self { capacity: 4_096, ttl: Duration::from_secs(600), negative_ttl: Duration::from_secs(10) }
    }
}

/// What to do with jobs whose version is not pinned, or is `latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnpinnedPolicy {
    /// Refuse them, naming the ways to pin.
    #[default]
    Refuse,
    /// Take the newest version once and freeze it as a literal.
    Freeze,
}

/// What is known about a tool at a version.
#[derive(Debug, Clone)]
pub enum Known {
    /// Its description.
    Found(Arc<ToolInfo>),
    /// The API says that it does not exist there.
    Missing(Arc<ApiError>),
}

/// What a decision is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The tool's slug.
    pub tool: &'a str,
    /// The job's own `version`.
    pub version: Option<&'a str>,
    /// Whose pins count.
    pub owner: &'a Owner,
    /// The job's own `effect`, which wins over the tool's hints.
    pub effect: Option<Effect>,
}

impl<'a> From<&'a JobSpec> for Ask<'a> {
    fn from(spec: &'a JobSpec) -> Self {
        Self { tool: &spec.tool, version: spec.version.as_deref(), owner: &spec.owner, effect: spec.effect }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// From the tool's description.
    pub toolkit: String,
    /// A literal version at which the tool exists.
    pub version: String,
    /// Where the version came from.
    pub pinned_by: PinnedBy,
    /// What repeating a call does.
    pub effect: Effect,
    /// No account is needed.
    pub no_auth: bool,
    /// The tool is deprecated at this version.
    pub deprecated: bool,
}

/// Why there is no decision.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The job or a pin asks for something that is not a version.
    #[error("`{version}` is not a toolkit version")]
    BadVersion {
        /// What it asks for.
        version: String,
        /// Who asks.
        by: PinnedBy,
        /// The toolkit, where it is known.
        toolkit: Option<String>,
    },
    /// No version is pinned, or the pin says `latest`, and the policy refuses that.
    #[error("no toolkit version is pinned")]
    Unpinned {
        /// The toolkit, where it is known.
        toolkit: Option<String>,
        /// Who says `latest`, if anybody.
        latest: Option<PinnedBy>,
    },
    /// The tool does not exist at the version.
    #[error("the tool does not exist at the pinned version")]
    UnknownTool {
        /// The tool.
        tool: String,
        /// The version and who asks for it; `None` when the tool was found nowhere.
        pinned: Option<(String, PinnedBy)>,
        /// A description at another version, if one was found.
        elsewhere: Option<Arc<ToolInfo>>,
    },
    /// The API could not say.
    #[error(transparent)]
    Api(#[from] ToolError),
}

impl ResolveError {
    /// What it means for the job.
    pub fn not_ready(&self) -> NotReady {
        let fail = |kind, message| Stop::Fail { error: JobError::new(kind, message) }.into();
        match self {
            Self::BadVersion { version, by: PinnedBy::Job, .. } => fail(
                ErrorKind::InvalidJob,
                format!(
                    "`version` is `{version}`, which is not a toolkit version; write `YYYYMMDD_NN`, for \
                     example `20251027_00`, or leave it out to use the pin"
                ),
            ),
            Self::BadVersion { version, by, toolkit } => fail(
                ErrorKind::Unpinned,
                format!(
                    "{} pins `{version}`, which is not a toolkit version; write `YYYYMMDD_NN`",
                    source(*by, toolkit.as_deref())
                ),
            ),
            Self::Unpinned { toolkit, latest } => {
                fail(ErrorKind::Unpinned, unpinned(toolkit.as_deref(), *latest))
            }
            Self::UnknownTool { tool, pinned, elsewhere } => {
                fail(ErrorKind::UnknownTool, unknown_tool(tool, pinned.as_ref(), elsewhere.as_deref()))
            }
            Self::Api(error) => error.not_ready("describe the tool"),
        }
    }
}

/// Descriptions of tools, remembered, and decisions made with them.
#[derive(Debug)]
pub struct Catalog {
    api: SharedToolApi,
    options: CatalogOptions,
    known: Cached<Key, Known>,
}

/// Slug and version; no version is the newest.
type Key = (Arc<str>, Option<Arc<str>>);

impl Catalog {
    /// Remembers nothing yet.
    pub fn new(api: SharedToolApi, options: CatalogOptions) -> Self {
        Self { api, options, known: Cached::new(options.capacity) }
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
        decide(ask, pins, policy, &|version| self.get_cached(ask.tool, version)).ok()
    }

    /// The decision for a job. The version that is decided here must be frozen with the job: the
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
            let look = |version: Option<&str>| {
                let version = version.map(str::to_owned);
                learnt.get(&version).cloned().or_else(|| self.get_cached(ask.tool, version.as_deref()))
            };
            let Need { version, only_for_hint } = match decide(ask, pins, policy, &look) {
                Ok(decision) => return decision,
                Err(need) => need,
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
        let CatalogOptions { ttl, negative_ttl, .. } = self.options;
        let keep = move |known: &Known| match known {
            Known::Found(_) => ttl,
            Known::Missing(_) => negative_ttl,
        };
        let fetch = move || {
            async move {
                match api.tool(&wanted.0, wanted.1.as_deref()).await {
                    Ok(info) => Ok(Known::Found(Arc::new(info))),
                    Err(ToolError::NotFound(error)) => Ok(Known::Missing(Arc::from(error))),
                    Err(error) => Err(error),
                }
            }
            .boxed()
        };
        match self.known.get(key.clone(), keep, fetch).await {
            Ok(Known::Found(info)) => {
                if version.is_none() && pin::is_version(&info.version) {
                    let key = self::key(slug, Some(&info.version));
                    if self.known.fresh(&key).is_none() {
                        self.known.put(key, Known::Found(info.clone()), ttl);
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

/// A description that a decision cannot be made without.
struct Need {
    version: Option<String>,
    /// The decision stands; the description would only make its message better.
    only_for_hint: bool,
}

type Look<'a> = dyn Fn(Option<&str>) -> Option<Known> + 'a;

/// Makes the decision with what is known, or says what else is needed.
fn decide(
    ask: &Ask<'_>,
    pins: &PinSources,
    policy: UnpinnedPolicy,
    look: &Look<'_>,
) -> Result<Result<Resolved, ResolveError>, Need> {
    let find = |version: Option<&str>| match look(version) {
        Some(Known::Found(info)) => Ok(Some(info)),
        Some(Known::Missing(_)) => Ok(None),
        None => Err(Need { version: version.map(str::to_owned), only_for_hint: false }),
    };
    let resolved = |info: &ToolInfo, version: &str, pinned_by| Resolved {
        toolkit: info.toolkit.clone(),
        version: version.to_owned(),
        pinned_by,
        effect: ask.effect.unwrap_or_else(|| info.effect()),
        no_auth: info.no_auth,
        deprecated: info.deprecated,
    };
    let unknown = |pinned: Option<(&str, PinnedBy)>, elsewhere| ResolveError::UnknownTool {
        tool: ask.tool.to_owned(),
        pinned: pinned.map(|(version, by)| (version.to_owned(), by)),
        elsewhere,
    };

    // The job's own word comes first, and where it is a version, no pin has to be known.
    let asks_latest = match pin::wanted(ask.version) {
        Ok(Wanted::Exact(version)) => {
            return Ok(match find(Some(version))? {
                Some(info) => Ok(resolved(&info, version, PinnedBy::Job)),
                None => {
                    let elsewhere = find(None).map_err(|need| Need { only_for_hint: true, ..need })?;
                    Err(unknown(Some((version, PinnedBy::Job)), elsewhere))
                }
            });
        }
        Ok(Wanted::Latest) if policy == UnpinnedPolicy::Refuse => {
            return Ok(Err(ResolveError::Unpinned { toolkit: None, latest: Some(PinnedBy::Job) }));
        }
        Ok(Wanted::Latest) => true,
        Ok(Wanted::Nothing) => false,
        Err(_) => {
            let version = ask.version.unwrap_or_default().to_owned();
            return Ok(Err(ResolveError::BadVersion { version, by: PinnedBy::Job, toolkit: None }));
        }
    };

    let mut probe = find(None)?;
    if probe.is_none() {
        // Renamed away in the meantime, perhaps.
        probe = find(Some(BASE_VERSION))?;
    }
    if probe.is_none() {
        // Or it came after the base version and was renamed away before the newest: then only the
        // versions in between have it, and the pinned one is the one that matters.
        for toolkit in pins.candidates(ask.owner, ask.tool).into_iter().take(MAX_GUESSES) {
            if let Decision::Pinned { version, .. } = pins.decide(ask.version, ask.owner, &toolkit)
                && let Some(info) = find(Some(&version))?
                && info.toolkit == toolkit
            {
                probe = Some(info);
                break;
            }
        }
    }
    let Some(probe) = probe else { return Ok(Err(unknown(None, None))) };

    let toolkit = probe.toolkit.as_str();
    let decision = if asks_latest {
        Decision::Latest { by: PinnedBy::Job }
    } else {
        pins.decide(None, ask.owner, toolkit)
    };
    let (version, by) = match decision {
        Decision::Pinned { version, by } => (version, by),
        Decision::Malformed { version, by } => {
            let toolkit = Some(toolkit.to_owned());
            return Ok(Err(ResolveError::BadVersion { version, by, toolkit }));
        }
        Decision::Latest { .. } | Decision::Unpinned if policy == UnpinnedPolicy::Freeze => {
            let all = probe.available_versions.iter().map(String::as_str).chain([probe.version.as_str()]);
            match pin::newest(all) {
                Some(newest) => (newest.to_owned(), PinnedBy::Latest),
                None => {
                    let cause = "it names no version of the toolkit that could be frozen".into();
                    return Ok(Err(ToolError::Unavailable(cause).into()));
                }
            }
        }
        Decision::Latest { by } => {
            let toolkit = Some(toolkit.to_owned());
            return Ok(Err(ResolveError::Unpinned { toolkit, latest: Some(by) }));
        }
        Decision::Unpinned => {
            let toolkit = Some(toolkit.to_owned());
            return Ok(Err(ResolveError::Unpinned { toolkit, latest: None }));
        }
    };
    Ok(match find(Some(&version))? {
        // A tool that moved to another toolkit is not what the pin was meant for.
        Some(info) if info.toolkit == toolkit => Ok(resolved(&info, &version, by)),
        _ => Err(unknown(Some((&version, by)), Some(probe))),
    })
}

/// Names a source of pins in a sentence.
fn source(by: PinnedBy, toolkit: Option<&str>) -> String {
    match by {
        PinnedBy::Job => "the job's `version`".into(),
        PinnedBy::Owner => "the owner's pin (`errand pins`)".into(),
        PinnedBy::Global => "the global pin (`errand pins`)".into(),
        PinnedBy::Config => "`toolkit_versions` in the configuration".into(),
        PinnedBy::Env => format!("`{}`", pin::env_name(toolkit.unwrap_or("<toolkit>"))),
        PinnedBy::Latest => "the newest version".into(),
    }
}

fn unpinned(toolkit: Option<&str>, latest: Option<PinnedBy>) -> String {
    let what = toolkit.map_or_else(|| "the tool's toolkit".into(), |slug| format!("the toolkit `{slug}`"));
    let why = match latest {
        Some(by) => format!("{} says `latest`, which changes without notice", source(by, toolkit)),
        None => format!("{what} is not pinned to a version"),
    };
    format!(
        "{why}; pin {what} with the job's `version`, `errand pins set`, `toolkit_versions` in the \
         configuration or `{}`",
        pin::env_name(toolkit.unwrap_or("<toolkit>"))
    )
}

fn unknown_tool(tool: &str, pinned: Option<&(String, PinnedBy)>, elsewhere: Option<&ToolInfo>) -> String {
    match (pinned, elsewhere) {
        (Some((version, by)), Some(info)) => {
            let toolkit = &info.toolkit;
            let newest = match pin::newest(info.available_versions.iter().map(String::as_str)) {
                Some(newest) if newest != info.version => {
                    format!(" (the newest of `{toolkit}` is `{newest}`)")
                }
                _ => String::new(),
            };
            format!(
                "the tool `{tool}` does not exist at version `{version}` of the toolkit `{toolkit}`, which comes \
                 from {}, but it does at `{}`{newest}; pin a version that has it, or use the slug it has there",
                source(*by, Some(toolkit)),
                info.version
            )
        }
        (Some((version, by)), None) => format!(
            "the tool `{tool}` does not exist at version `{version}`, which comes from {}, nor at the newest \
             version of any toolkit; correct the slug (they are in upper case) or the version",
            source(*by, None)
        ),
        (None, _) => format!(
            "the tool API knows no tool `{tool}`, neither at the newest nor at the base version of any toolkit; \
             correct the slug (they are in upper case), or give the `version` that has it"
        ),
    }
}
