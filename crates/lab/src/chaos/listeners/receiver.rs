//! The listener that is a receiver of callbacks, and does not always do what it should.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
};
use errand::{
    callback::{Secret, verify},
    clock,
    job::{CallbackUrl, Owner, OwnerKind, Principal},
    store::{Decider, SharedStore},
};
use errand_testbed::services::{Place, proxy::Proxy};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::told::{Heard, Told};

/// How late an answer is that is late; longer than workers wait.
const LATE: Duration = Duration::from_millis(2_500);

/// How often it is looked whether something has come.
const LOOK: Duration = Duration::from_millis(20);

/// How often connections are closed in the middle.
const CLOSED: u32 = 3;

/// What it refuses with, in turns: with what says that it is down, and with what does not.
const REFUSALS: [u16; 6] = [503, 404, 500, 429, 302, 408];

/// How it misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Nobody can connect, and all connections are closed.
    IsGone,
    /// Nothing comes through, and connections stay.
    IsSilent,
    /// It takes nothing, and says so.
    Refuses,
    /// It takes everything, and answers when nobody waits any more.
    AnswersLate,
    /// Connections are closed when requests have come and are not answered.
    Closes,
}

impl Manner {
    pub(crate) const ALL: [Self; 5] =
        [Self::IsGone, Self::IsSilent, Self::Refuses, Self::AnswersLate, Self::Closes];
}

/// Receives callbacks of all owners of a round, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(super) heard: Heard,
    url: CallbackUrl,
    proxy: Proxy,
    desk: Arc<Desk>,
    _serving: AbortOnDropHandle<()>,
}

/// Where requests are judged.
#[derive(Debug)]
struct Desk {
    heard: Heard,
    /// What signs for each owner.
    secrets: HashMap<String, Secret>,
    answers: Mutex<Answers>,
    refused: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    AtOnce,
    Late,
    Refusals,
}

impl Receiver {
    /// Listens, and is told what signs. Organizations have set its URL then; users name it in each job.
    pub(super) async fn start(store: &SharedStore, place: &Place, owners: &[Owner]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free")?;
        let proxy = Proxy::start(place, listener.local_addr()?.port()).await?;
        let url: CallbackUrl = format!("http://127.0.0.1:{}/", proxy.port()).parse()?;
        let mut secrets = HashMap::new();
        for owner in owners {
            let (secret, by) = (Secret::generate()?, Decider::at_command_line("errand-lab"));
            let who = &Principal::Operator;
            match owner.kind() {
                OwnerKind::Org => {
                    store.set_callback(who, owner, Some(url.clone()), &secret, &by).await?;
                }
                OwnerKind::User => {
                    store.callback_secrets(who, owner, &secret, None, &by).await?;
                }
            }
            secrets.insert(owner.to_string(), secret);
        }
        let heard = Heard::default();
        let (answers, refused) = (Mutex::new(Answers::AtOnce), AtomicUsize::new(0));
        let desk = Arc::new(Desk { heard: heard.clone(), secrets, answers, refused });
        let serving = tokio::spawn(serve(listener, desk.clone()));
        Ok(Self { heard, url, proxy, desk, _serving: AbortOnDropHandle::new(serving) })
    }

    pub(crate) fn url(&self) -> &CallbackUrl {
        &self.url
    }

    /// Waits until the first callback has come, or for so long.
    pub(crate) async fn is_asked(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while self.heard.is_empty() && Instant::now() < until {
            sleep(LOOK).await;
        }
    }

    /// Misbehaves for so long, and is well again when this returns.
    ///
    /// # Errors
    /// Its port is taken by now.
    pub(crate) async fn misbehave(&self, manner: Manner, length: Duration) -> Result<()> {
        match manner {
            Manner::IsGone => {
                self.proxy.cut().await?;
                sleep(length).await;
            }
            Manner::IsSilent => {
                self.proxy.stall();
                sleep(length).await;
            }
            Manner::Refuses => {
                self.desk.answer(Answers::Refusals);
                sleep(length).await;
            }
            Manner::AnswersLate => {
                self.desk.answer(Answers::Late);
                sleep(length).await;
            }
            Manner::Closes => {
                self.desk.answer(Answers::Late);
                for _ in 0..CLOSED {
                    sleep(length / CLOSED).await;
                    self.proxy.cut().await?;
                    self.proxy.heal().await?;
                }
            }
        }
        self.desk.answer(Answers::AtOnce);
        self.proxy.heal().await
    }
}

async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let receive = move |headers: HeaderMap, body: Bytes| {
        let desk = desk.clone();
        async move { desk.receive(&headers, &body).await }
    };
    if let Err(error) = axum::serve(listener, Router::new().fallback(receive)).await {
        tracing::error!(%error, "the receiver of a round has ended");
    }
}

/// What is read of a callback.
#[derive(Deserialize)]
struct Callback {
    data: Told,
}

impl Desk {
    fn answer(&self, answers: Answers) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers;
    }

    async fn receive(&self, headers: &HeaderMap, body: &[u8]) -> StatusCode {
        let answers = *self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers == Answers::Refusals {
            let status = REFUSALS[self.refused.fetch_add(1, Relaxed) % REFUSALS.len()];
            return StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        }
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let id = header("webhook-id");
        let event = serde_json::from_slice::<Callback>(body).map(|callback| callback.data);
        if let Ok(event) = &event {
            let secret = event.owner.as_ref().and_then(|owner| self.secrets.get(owner));
            let secrets: Vec<&Secret> = secret.into_iter().collect();
            let (sent, signature) = (header("webhook-timestamp"), header("webhook-signature"));
            let now = clock::system().now().as_second();
            if let Err(error) = verify(&secrets, id, sent, signature, body, now) {
                self.heard.complain(format!("the callback of {event} is not believed: {error}"));
                return StatusCode::UNAUTHORIZED;
            }
        }
        self.heard.read(id, event);
        if answers == Answers::Late {
            sleep(LATE).await;
        }
        StatusCode::NO_CONTENT
    }
}
