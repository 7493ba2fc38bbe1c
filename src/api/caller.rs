//! Who a request is from, and what they may do.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{Extension, Request, State},
    http::{HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use quick_cache::sync::Cache;
use tokio::{sync::MutexGuard, time::Instant};
use uuid::Uuid;

use super::{
    browser,
    guesses::Guesses,
    limits::{Rate, Room, Taken},
    problem::{Kind, Problem},
    request::{text, whole_body},
    sealing::Sealing,
    token::{self, Token},
};
use crate::{
    access::{AccessKey, Scope, Scopes, SecretDigest, Shown},
    clock::SharedClock,
    job::{JobSpec, Principal},
    store::{Decider, EventsOf, SharedStore, UsedKey},
    sync::lock,
};

/// How long a key is taken for valid without another look. With a key that is revoked no request begins later than that, and
/// none is answered that has lasted for longer.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Most keys that are known at once.
const MAX_KNOWN: usize = 10_000;

/// How many keys can be looked up at the same time without waiting for each other.
const TURNS: usize = 64;

/// Paths about the API itself, which tell nothing of anybody.
const OPEN: [&str; 2] = ["/docs", "/openapi.json"];

/// Who a request is from. What they may see and change comes from [`Self::may`] only, so that no request forgets to ask.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    principal: Principal,
    scopes: Scopes,
    decider: Decider,
    /// The ID of the key, and when it ends.
    key: Option<(Uuid, Option<Timestamp>)>,
    /// The events for which their token is, if they show one.
    only: Option<EventsOf>,
}

impl Caller {
    fn of(key: &AccessKey, peer: Peer) -> Self {
        let decider = peer.decider(format!("key {}", key.id));
        let (principal, scopes) = (key.principal.clone(), key.scopes.clone());
        Self { principal, scopes, decider, key: Some((key.id, key.expires_at)), only: None }
    }

    /// Whoever shows a token.
    fn with(token: &Token, peer: Peer) -> Self {
        Self {
            principal: Principal::Owner(token.owner.clone()),
            scopes: Scopes::of(Scope::Read),
            decider: peer.decider("token"),
            key: None,
            only: Some(token.of),
        }
    }

    /// Whoever reaches a loopback address for which there are no keys.
    fn nobody(peer: Peer) -> Self {
        let decider = peer.decider("api");
        Self { principal: Principal::Operator, scopes: Scopes::all(), decider, key: None, only: None }
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

    /// Of what they follow the events, who ask for these or for nothing in particular.
    pub(super) fn may_follow(&self, wanted: Option<EventsOf>) -> Result<EventsOf, Problem> {
        match (self.only, wanted) {
            (Some(only), Some(wanted)) if only != EventsOf::All && only != wanted => {
                Err(Problem::new(Kind::Forbidden, "this token is for the events of something else"))
            }
            (only, wanted) => Ok(wanted.or(only).unwrap_or(EventsOf::All)),
        }
    }

    /// The ID of the key that they show.
    pub(super) fn key(&self) -> Option<Uuid> {
        self.key.map(|(id, _)| id)
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
}

/// Who is let in.
#[derive(Debug)]
pub(super) struct Gate {
    store: SharedStore,
    clock: SharedClock,
    /// Whether requests without a key are from the operator as long as there has been no key.
    is_on_loopback: bool,
    /// Whether it is known that there has been a key.
    required: AtomicBool,
    /// Since when it is known that there has been none.
    without_keys: Mutex<Option<Instant>>,
    /// By their IDs.
    known: Cache<Uuid, Known>,
    /// Whose turn it is to look a key up, by its ID, so that one look serves all who show it at the same time.
    turns: [tokio::sync::Mutex<()>; TURNS],
    sealing: Arc<Sealing>,
    rate: Rate,
    room: Arc<Room>,
    requests: Arc<Room>,
    guesses: Guesses,
}

/// A key that was valid a moment ago.
#[derive(Debug, Clone)]
struct Known {
    key: AccessKey,
    /// Of its secret, if that was shown.
    digest: Option<SecretDigest>,
    looked_at: Instant,
}

impl Known {
    fn is_of(&self, shown: &Shown) -> bool {
        self.digest.is_some_and(|digest| digest.is(&shown.digest))
    }

    fn is_fresh(&self) -> bool {
        self.looked_at.elapsed() < KNOWN_FOR
    }
}

impl Gate {
    /// With as many requests under way at most as there may be connections.
    pub(super) fn new(
        store: SharedStore,
        clock: SharedClock,
        sealing: Arc<Sealing>,
        is_on_loopback: bool,
        rate: Rate,
        connections: usize,
    ) -> Self {
        Self {
            store,
            clock,
            sealing,
            is_on_loopback,
            required: AtomicBool::new(false),
            without_keys: Mutex::default(),
            known: Cache::new(MAX_KNOWN),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            rate,
            room: Room::for_bodies(),
            requests: Room::for_requests(connections),
            guesses: Guesses::default(),
        }
    }

    /// What a request shows.
    async fn shown(&self, request: &Parts) -> Result<Showing, Problem> {
        let in_query;
        let said = match text(&request.headers, header::AUTHORIZATION)? {
            Some(said) => match said.split_once(' ') {
                Some((scheme, said)) if scheme.eq_ignore_ascii_case("bearer") => said.trim(),
                _ => {
                    let detail = "the header `Authorization` must be `Bearer SECRET`";
                    return Err(Problem::new(Kind::Unauthorized, detail));
                }
            },
            // What can send a header does so.
            None => {
                in_query = token::in_query(&request.uri);
                match &in_query {
                    None => return Ok(Showing::Nothing),
                    Some(shown) if Token::is_like(shown) => shown,
                    // A key there would come to be in logs.
                    Some(_) => return Err(Token::is_none()),
                }
            }
        };
        if !Token::is_like(said) {
            return Shown::read(said).map(Showing::Secret).ok_or_else(no_valid_key);
        }
        Ok(Showing::Token(Arc::new(Token::open(self.sealing.seals().await?, said)?)))
    }

    /// Who shows this.
    async fn admit(&self, shown: &Showing, request: &Parts, peer: Peer) -> Result<Caller, Problem> {
        match shown {
            Showing::Nothing => {
                self.admit_without_key().await?;
                browser::refuse_foreign_pages(request)?;
                Ok(Caller::nobody(peer))
            }
            Showing::Secret(shown) => Ok(Caller::of(&self.key(shown, peer).await?, peer)),
            Showing::Token(token) => {
                token.may_ask_for(request.uri.path())?;
                self.admit_token(token).await?;
                Ok(Caller::with(token, peer))
            }
        }
    }

    /// Judges once more whether a request may be answered.
    async fn admit_still(&self, shown: &Showing, peer: Peer) -> Result<(), Problem> {
        match shown {
            Showing::Nothing => self.admit_without_key().await,
            Showing::Secret(shown) => self.key(shown, peer).await.map(drop),
            Showing::Token(token) => self.admit_token(token).await,
        }
    }

    /// A token ends with the key with which it was made.
    async fn admit_token(&self, token: &Token) -> Result<(), Problem> {
        token.is_valid(self.clock.now())?;
        let Some(id) = token.key else { return self.admit_without_key().await };
        let is_known = || self.known.get(&id).is_some_and(|known| known.is_fresh());
        if is_known() {
            return Ok(());
        }
        let _turn = self.turn(id).await;
        if is_known() {
            return Ok(());
        }
        let looked_at = Instant::now();
        match self.store.valid_key(id).await? {
            Some(key) => {
                let digest = self.known.get(&id).and_then(|known| known.digest);
                self.known.insert(id, Known { key, digest, looked_at });
                Ok(())
            }
            None => {
                self.known.remove(&id);
                Err(Token::has_ended())
            }
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

    /// Waits for whoever looks this key up, but not for long: where the database is away, all are told so at the same time.
    async fn turn(&self, id: Uuid) -> Option<MutexGuard<'_, ()>> {
        let place = (id.as_u128() % TURNS as u128) as usize;
        tokio::time::timeout(KNOWN_FOR, self.turns[place].lock()).await.ok()
    }

    async fn key(&self, shown: &Shown, peer: Peer) -> Result<AccessKey, Problem> {
        let known = || self.known.get(&shown.id).filter(|known| known.is_of(shown));
        if let Some(known) = known().filter(Known::is_fresh) {
            return Ok(known.key);
        }
        // One that was known a moment ago is looked at, whoever else guesses from the same address. Who guesses takes no turn, so
        // that they hold up nobody.
        let was_known = known().is_some();
        let _turn = if was_known { self.turn(shown.id).await } else { None };
        if let Some(known) = known().filter(Known::is_fresh) {
            return Ok(known.key);
        }
        if !was_known && self.guesses.are_too_many(peer.0) {
            let detail =
                "too many wrong keys came from this address; wait some seconds, and send the right one";
            return Err(Problem::new(Kind::TooManyRequests, detail));
        }
        let looked_at = Instant::now();
        match self.store.use_key(shown).await? {
            UsedKey::Valid(key) => {
                let known = Known { key: key.clone(), digest: Some(shown.digest), looked_at };
                self.known.insert(shown.id, known);
                return Ok(key);
            }
            // Whoever goes on with a key that has ended does not guess.
            UsedKey::Ended => {}
            UsedKey::Unknown => self.guesses.add(peer.0),
        }
        // A wrong secret of a key says nothing about the right one.
        if was_known {
            self.known.remove(&shown.id);
        }
        Err(no_valid_key())
    }
}

fn no_valid_key() -> Problem {
    Problem::new(
        Kind::Unauthorized,
        "there is no valid key with this secret: it is mistyped, has expired or was revoked",
    )
}

/// What a request shows of who it is from.
#[derive(Debug)]
enum Showing {
    Nothing,
    Secret(Shown),
    Token(Arc<Token>),
}

/// That a request was let in, for what is told later.
#[derive(Debug)]
pub(super) struct Admitted {
    gate: Arc<Gate>,
    shown: Showing,
    peer: Peer,
}

impl Admitted {
    /// Whether something may still be told.
    pub(super) async fn is_valid(&self) -> Result<(), Problem> {
        self.gate.admit_still(&self.shown, self.peer).await
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
    let (request, admitted, _taken) = Box::pin(let_in(gate, peer, request)).await?;
    let begun = Instant::now();
    let answer = next.run(request).await;
    if begun.elapsed() >= KNOWN_FOR
        && let Err(problem) = admitted.is_valid().await
    {
        return Err(problem.though_done().into_response());
    }
    Ok(answer)
}

/// Reads a request whose caller is admitted, and says so in it.
async fn let_in(
    gate: Arc<Gate>,
    peer: Peer,
    request: Request,
) -> Result<(Request, Arc<Admitted>, [Option<Taken>; 2]), Response> {
    let (mut head, body) = request.into_parts();
    let admitted = async {
        let shown = gate.shown(&head).await?;
        let caller = gate.admit(&shown, &head, peer).await?;
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
    let admitted = Arc::new(Admitted { gate, shown, peer });
    admitted.is_valid().await.map_err(Problem::into_response)?;
    head.extensions.insert(caller);
    head.extensions.insert(admitted.clone());
    Ok((Request::from_parts(head, body.into()), admitted, [taken, counted]))
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
