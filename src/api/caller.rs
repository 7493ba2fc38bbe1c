//! Who a request is from, and what they may do.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{Extension, Request, State},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use quick_cache::sync::Cache;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    browser,
    limits::{Rate, Room, Taken},
    problem::{Kind, Problem},
    request::{text, whole_body},
};
use crate::{
    access::{AccessKey, Scope, Scopes, Shown},
    job::{JobSpec, Principal},
    store::{Decider, SharedStore, UsedKey},
    sync::lock,
};

/// How long a key is taken for valid without another look. With a key that is revoked no request begins later than that, and
/// none is answered that has lasted for longer.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Most keys that are known at once.
const MAX_KNOWN: usize = 10_000;

/// How many wrong keys may come from one address in [`FAILURE_WINDOW`] before further keys of it are refused without a look,
/// other than those that are known.
const MAX_FAILURES: u32 = 20;
const FAILURE_WINDOW: Duration = Duration::from_secs(10);

/// Paths about the API itself, which tell nothing of anybody.
const OPEN: [&str; 2] = ["/docs", "/openapi.json"];

/// Most addresses whose failures are counted.
const MAX_ADDRESSES: usize = 10_000;

/// Who a request is from. What they may see and change comes from [`Self::may`] only, so that no request forgets to ask.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    principal: Principal,
    scopes: Scopes,
    decider: Decider,
    /// The ID of the key, and when it ends.
    key: Option<(Uuid, Option<Timestamp>)>,
}

impl Caller {
    fn of(key: &AccessKey, peer: Peer) -> Self {
        let decider = peer.decider(format!("key {}", key.id));
        let (principal, scopes) = (key.principal.clone(), key.scopes.clone());
        Self { principal, scopes, decider, key: Some((key.id, key.expires_at)) }
    }

    /// Whoever reaches a loopback address for which there are no keys.
    fn nobody(peer: Peer) -> Self {
        let decider = peer.decider("api");
        Self { principal: Principal::Operator, scopes: Scopes::all(), decider, key: None }
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

    /// An error unless they are the operator and may do this: what is nobody's alone is not for owners.
    pub(super) fn may_for_all(&self, scope: Scope) -> Result<(), Problem> {
        match self.may(scope)? {
            Principal::Operator => Ok(()),
            Principal::Owner(_) => Err(Problem::new(
                Kind::Forbidden,
                "this is about all owners at once; use a key of the operator (`errand keys create --operator`)",
            )),
        }
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

    /// How long a key may be valid that they make, or that takes the place of `replaced`: no longer than their own, unless it
    /// replaces that one.
    pub(super) fn may_last(
        &self,
        wanted: Option<Duration>,
        replaced: Option<Uuid>,
        now: Timestamp,
    ) -> Option<Duration> {
        match self.key {
            Some((id, Some(ends))) if replaced != Some(id) => {
                let left = Duration::try_from(ends.duration_since(now)).unwrap_or_default();
                Some(wanted.map_or(left, |wanted| wanted.min(left)))
            }
            _ => wanted,
        }
    }

    /// What is noted of them in the history of jobs and in the audit log.
    pub(super) fn decider(&self) -> &Decider {
        &self.decider
    }
}

/// The address that a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

impl Peer {
    fn decider(self, by: impl Into<Cow<'static, str>>) -> Decider {
        Decider { by: by.into(), origin: self.0.to_string().into() }
    }

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
    /// Whether it is known that there has been a key.
    required: AtomicBool,
    /// Since when it is known that there has been none.
    without_keys: Mutex<Option<Instant>>,
    known: Cache<[u8; 32], (AccessKey, Instant)>,
    rate: Rate,
    room: Arc<Room>,
    requests: Arc<Room>,
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

#[derive(Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl Gate {
    /// With as many requests under way at most as there may be connections.
    pub(super) fn new(store: SharedStore, is_on_loopback: bool, rate: Rate, connections: usize) -> Self {
        Self {
            store,
            is_on_loopback,
            required: AtomicBool::new(false),
            without_keys: Mutex::default(),
            known: Cache::new(MAX_KNOWN),
            rate,
            room: Room::for_bodies(),
            requests: Room::for_requests(connections),
            failures: Mutex::default(),
        }
    }

    /// Who shows this secret.
    async fn admit(&self, shown: Showing, request: &Parts, peer: Peer) -> Result<Caller, Problem> {
        let Showing::Secret(shown) = shown else {
            self.admit_without_key().await?;
            browser::refuse_foreign_pages(request)?;
            return Ok(Caller::nobody(peer));
        };
        Ok(Caller::of(&self.key(&shown, peer).await?, peer))
    }

    /// Judges once more whether a request may be answered.
    async fn admit_still(&self, shown: Showing, peer: Peer) -> Result<(), Problem> {
        match shown {
            Showing::Nothing => self.admit_without_key().await,
            Showing::Secret(shown) => self.key(&shown, peer).await.map(drop),
        }
    }

    async fn admit_without_key(&self) -> Result<(), Problem> {
        if self.is_on_loopback && !self.requires_keys().await? {
            return Ok(());
        }
        Err(Problem::new(
            Kind::Unauthorized,
            "send an access key, with the header `Authorization: Bearer SECRET`; `errand keys create` makes one",
        ))
    }

    /// Once there has been a key, they are required for good.
    async fn requires_keys(&self) -> Result<bool, Problem> {
        if self.required.load(Ordering::Relaxed) {
            return Ok(true);
        }
        if lock(&self.without_keys).is_some_and(|since| since.elapsed() < KNOWN_FOR) {
            return Ok(false);
        }
        let asked_at = Instant::now();
        let has_keys = self.store.has_keys().await?;
        self.required.fetch_or(has_keys, Ordering::Relaxed);
        *lock(&self.without_keys) = (!has_keys).then_some(asked_at);
        Ok(has_keys)
    }

    async fn key(&self, shown: &Shown, peer: Peer) -> Result<AccessKey, Problem> {
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
        match self.store.use_key(shown).await? {
            UsedKey::Valid(key) => {
                self.known.insert(shown.digest.0, (key.clone(), looked_at));
                return Ok(key);
            }
            // Whoever goes on with a key that has ended does not guess.
            UsedKey::Ended => {}
            UsedKey::Unknown => self.failed(peer),
        }
        self.known.remove(&shown.digest.0);
        Err(no_valid_key())
    }

    fn is_slowed(&self, peer: Peer) -> bool {
        let failures = lock(&self.failures);
        failures
            .get(&peer.neighbourhood())
            .is_some_and(|of| of.count >= MAX_FAILURES && of.since.elapsed() < FAILURE_WINDOW)
    }

    fn failed(&self, peer: Peer) {
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
    }
}

fn no_valid_key() -> Problem {
    Problem::new(
        Kind::Unauthorized,
        "there is no valid key with this secret: it is mistyped, has expired or was revoked",
    )
}

/// What a request shows of who it is from.
#[derive(Debug, Clone, Copy)]
enum Showing {
    Nothing,
    Secret(Shown),
}

impl Showing {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(said) = text(headers, header::AUTHORIZATION)? else { return Ok(Self::Nothing) };
        match said.split_once(' ') {
            Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => {
                Shown::read(secret.trim()).map(Self::Secret).ok_or_else(no_valid_key)
            }
            _ => Err(Problem::new(Kind::Unauthorized, "the header `Authorization` must be `Bearer SECRET`")),
        }
    }
}

/// Lets a request through with its [`Caller`], with its body read, which may take long. So it is judged once more before
/// anything is done, and whoever waited for long before anything is told. What was done within a moment is told in any case: a new
/// secret is in one answer.
pub(super) async fn authenticate(
    State(gate): State<Arc<Gate>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Response> {
    if OPEN.contains(&request.uri().path()) {
        return Ok(next.run(request).await);
    }
    // What reads it is not carried along by a request that waits, of which there may be ten thousand. The room is taken until
    // it is answered, because as long its body may be in memory.
    let (request, shown, _taken) = Box::pin(let_in(&gate, peer, request)).await?;
    let begun = Instant::now();
    let answer = next.run(request).await;
    if begun.elapsed() >= KNOWN_FOR
        && let Err(problem) = gate.admit_still(shown, peer).await
    {
        return Err(problem.though_done().into_response());
    }
    Ok(answer)
}

/// Reads a request whose caller is admitted, and says so in it.
async fn let_in(
    gate: &Gate,
    peer: Peer,
    request: Request,
) -> Result<(Request, Showing, [Option<Taken>; 2]), Response> {
    let (mut head, body) = request.into_parts();
    let admitted = async {
        let shown = Showing::of(&head.headers)?;
        let caller = gate.admit(shown, &head, peer).await?;
        gate.rate.take(&caller.principal, Instant::now())?;
        let counted = match &caller.principal {
            Principal::Operator => None,
            owner @ Principal::Owner(_) => Some(gate.requests.reserve(owner, 1)?),
        };
        Ok((shown, caller, counted))
    };
    let (shown, caller, counted) = admitted.await.map_err(unread)?;
    let read = whole_body(&gate.room, &caller.principal, head.uri.path(), &head.headers, body);
    let (body, taken) = read.await.map_err(unread)?;
    gate.admit_still(shown, peer).await.map_err(Problem::into_response)?;
    head.extensions.insert(caller);
    Ok((Request::from_parts(head, body.into()), shown, [taken, counted]))
}

/// Lets a request through whose caller has these scopes. What needs none needs no caller.
pub(super) async fn require(
    State(needed): State<Arc<[Scope]>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if !needed.is_empty() {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Problem::new(Kind::Internal, "errand does not know who asks"))?;
        needed.iter().try_for_each(|scope| caller.may(*scope).map(drop))?;
    }
    Ok(next.run(request).await)
}

/// The answer to a request of which the body was not read: another request on this connection could not be told from it.
fn unread(problem: Problem) -> Response {
    let mut answer = problem.into_response();
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        store::sqlite::{SqliteOptions, SqliteStore},
    };

    /// With a store that nobody asks here.
    fn gate() -> Gate {
        let options =
            SqliteOptions { path: "nowhere.db".into(), clock: clock::system(), records_events: false };
        Gate::new(Arc::new(SqliteStore::new(options)), false, Rate::new(0), 1)
    }

    fn peer(address: &str) -> Peer {
        Peer(address.parse().unwrap())
    }

    /// As many wrong keys as are let through, from both in turn.
    fn guess(gate: &Gate, one: Peer, other: Peer) {
        for guess in 0..MAX_FAILURES {
            assert!(!gate.is_slowed(one) && !gate.is_slowed(other), "after {guess} guesses");
            gate.failed(if guess % 2 == 0 { one } else { other });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_network_of_ipv6_guess_together_and_those_of_others_for_themselves() {
        let gate = gate();
        let (one, other) = (peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        guess(&gate, one, other);
        for neighbour in [one, other, peer("2001:db8:1:2::"), peer("2001:db8:1:2:3::")] {
            assert!(gate.is_slowed(neighbour), "{neighbour:?}");
        }
        let strangers =
            ["2001:db8:1:3::1", "2001:db8:1:1:ffff:ffff:ffff:ffff", "2001:db8::1", "::1", "192.0.2.1"];
        for stranger in strangers.map(peer) {
            assert!(!gate.is_slowed(stranger), "{stranger:?}");
        }
        // Then they begin anew.
        tokio::time::advance(FAILURE_WINDOW).await;
        guess(&gate, one, other);
        assert!(gate.is_slowed(one) && gate.is_slowed(other));
    }

    /// A listener of IPv6 that takes IPv4 as well gives them as addresses of one network.
    #[tokio::test(start_paused = true)]
    async fn addresses_of_ipv4_guess_for_themselves_also_where_they_are_written_as_those_of_ipv6() {
        let gate = gate();
        let (plain, mapped) = (peer("192.0.2.1"), peer("::ffff:192.0.2.1"));
        guess(&gate, plain, mapped);
        assert!(gate.is_slowed(plain) && gate.is_slowed(mapped));
        for stranger in ["192.0.2.2", "::ffff:192.0.2.2", "127.0.0.1", "::1"].map(peer) {
            assert!(!gate.is_slowed(stranger), "{stranger:?}");
        }
    }
}
