//! Who a request is from, and what they may do.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    extract::{Extension, Request, State},
    http::{HeaderMap, header, request::Parts},
    middleware::Next,
    response::Response,
};
use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::{
    browser,
    problem::{Kind, Problem},
    request::text,
};
use crate::{
    access::{AccessKey, Scope, Scopes, Shown},
    job::{JobSpec, Principal},
    store::SharedStore,
    sync::lock,
};

/// How long a key is taken for valid without another look. A key that is revoked works no longer than that.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Most keys that are known at once.
const MAX_KNOWN: usize = 10_000;

/// How many wrong keys may come from one address in [`FAILURE_WINDOW`] before further keys of it are refused without a look,
/// other than those that are known.
const MAX_FAILURES: u32 = 20;
const FAILURE_WINDOW: Duration = Duration::from_secs(10);

/// Most addresses whose failures are counted.
const MAX_ADDRESSES: usize = 10_000;

/// Who a request is from. What they may see and change comes from [`Self::may`] only, so that no request forgets to ask.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    principal: Principal,
    scopes: Scopes,
    name: Arc<str>,
}

impl Caller {
    fn of(key: &AccessKey) -> Self {
        let name = format!("key {}", key.id).into();
        Self { principal: key.principal.clone(), scopes: key.scopes.clone(), name }
    }

    /// Whoever reaches a loopback address for which there are no keys.
    fn nobody() -> Self {
        Self { principal: Principal::Operator, scopes: Scopes::all(), name: "api".into() }
    }

    /// As whom they may do this.
    pub(super) fn may(&self, scope: Scope) -> Result<&Principal, Problem> {
        if self.scopes.allow(scope) {
            return Ok(&self.principal);
        }
        Err(Problem::new(
            Kind::Forbidden,
            format!("this key may not do this; use one with the scope `{scope}`"),
        ))
    }

    /// Whether they may enqueue this job.
    pub(super) fn may_enqueue(&self, spec: &JobSpec) -> Result<(), Problem> {
        if self.principal.may_see(&spec.owner) {
            return Ok(());
        }
        Err(Problem::new(Kind::Forbidden, "this key enqueues jobs of its own owner only"))
    }

    /// Whether these scopes allow nothing that the caller may not do.
    pub(super) fn may_pass_on(&self, scopes: &Scopes) -> Result<(), Problem> {
        if scopes.are_within(&self.scopes) {
            return Ok(());
        }
        let own =
            format!("this key may make and end keys with its own scopes at most, which are {}", self.scopes);
        Err(Problem::new(Kind::Forbidden, own))
    }

    /// The name in the history of jobs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// The address that a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

impl Peer {
    /// What is counted as one: of IPv6 the part that somebody has to themselves.
    fn neighbourhood(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => {
                address.to_ipv4_mapped().map_or_else(|| network(address).into(), IpAddr::V4)
            }
        }
    }
}

fn network(address: Ipv6Addr) -> Ipv6Addr {
    (u128::from(address) >> 64 << 64).into()
}

/// Who is let in.
#[derive(Debug)]
pub(super) struct Gate {
    store: SharedStore,
    /// Whether requests without a key are from the operator as long as there has been no key.
    is_on_loopback: bool,
    /// Since when it is known that there has been no key.
    without_keys: Mutex<Option<Instant>>,
    known: Cache<[u8; 32], (AccessKey, Instant)>,
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

#[derive(Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl Gate {
    pub(super) fn new(store: SharedStore, is_on_loopback: bool) -> Self {
        Self {
            store,
            is_on_loopback,
            without_keys: Mutex::default(),
            known: Cache::new(MAX_KNOWN),
            failures: Mutex::default(),
        }
    }

    async fn admit(&self, request: &Parts, peer: Peer) -> Result<Caller, Problem> {
        match secret(&request.headers)? {
            Some(secret) => Ok(Caller::of(&self.key(secret, peer).await?)),
            None if self.is_on_loopback && !self.requires_keys().await? => {
                browser::refuse_foreign_pages(request)?;
                Ok(Caller::nobody())
            }
            None => Err(Problem::new(
                Kind::Unauthorized,
                "send an access key, with the header `Authorization: Bearer SECRET`; `errand keys create` makes one",
            )),
        }
    }

    async fn requires_keys(&self) -> Result<bool, Problem> {
        if lock(&self.without_keys).is_some_and(|since| since.elapsed() < KNOWN_FOR) {
            return Ok(false);
        }
        let asked_at = Instant::now();
        let has_keys = self.store.has_keys().await?;
        *lock(&self.without_keys) = (!has_keys).then_some(asked_at);
        Ok(has_keys)
    }

    async fn key(&self, secret: &str, peer: Peer) -> Result<AccessKey, Problem> {
        let Some(shown) = Shown::read(secret) else { return Err(self.failed(peer)) };
        if let Some((key, looked_at)) = self.known.get(&shown.digest.0)
            && looked_at.elapsed() < KNOWN_FOR
        {
            return Ok(key);
        }
        // One that was known a moment ago is looked at, whoever else guesses from the same address.
        if self.known.peek(&shown.digest.0).is_none() && self.is_slowed(peer) {
            let detail =
                "too many wrong keys came from this address; wait some seconds, and send the right one";
            return Err(Problem::new(Kind::TooManyRequests, detail));
        }
        let looked_at = Instant::now();
        let Some(key) = self.store.use_key(&shown).await? else {
            self.known.remove(&shown.digest.0);
            return Err(self.failed(peer));
        };
        self.known.insert(shown.digest.0, (key.clone(), looked_at));
        Ok(key)
    }

    fn is_slowed(&self, peer: Peer) -> bool {
        let failures = lock(&self.failures);
        failures
            .get(&peer.neighbourhood())
            .is_some_and(|of| of.count >= MAX_FAILURES && of.since.elapsed() < FAILURE_WINDOW)
    }

    fn failed(&self, peer: Peer) -> Problem {
        let mut failures = lock(&self.failures);
        if failures.len() >= MAX_ADDRESSES {
            failures.retain(|_, of| of.since.elapsed() < FAILURE_WINDOW);
        }
        if failures.len() >= MAX_ADDRESSES {
            failures.clear();
        }
        let new = Failures { since: Instant::now(), count: 0 };
        let of = failures.entry(peer.neighbourhood()).or_insert(new);
        if of.since.elapsed() >= FAILURE_WINDOW {
            *of = Failures { since: Instant::now(), count: 0 };
        }
        of.count = of.count.saturating_add(1);
        Problem::new(
            Kind::Unauthorized,
            "there is no valid key with this secret: it is mistyped, has expired or was revoked",
        )
    }
}

/// The secret that a request shows.
fn secret(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(said) = text(headers, header::AUTHORIZATION)? else { return Ok(None) };
    match said.split_once(' ') {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(secret.trim())),
        _ => Err(Problem::new(Kind::Unauthorized, "the header `Authorization` must be `Bearer SECRET`")),
    }
}

/// Lets a request through with its [`Caller`]. Whoever waited for long is judged once more before the answer.
pub(super) async fn authenticate(
    State(gate): State<Arc<Gate>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (mut head, body) = request.into_parts();
    let caller = gate.admit(&head, peer).await?;
    head.extensions.insert(caller);
    let shown = secret(&head.headers)?.map(str::to_owned);
    let begun = Instant::now();
    let answer = next.run(Request::from_parts(head, body)).await;
    if let Some(secret) = shown
        && begun.elapsed() >= KNOWN_FOR
    {
        gate.key(&secret, peer).await?;
    }
    Ok(answer)
}
