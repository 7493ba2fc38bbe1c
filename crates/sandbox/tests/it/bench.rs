//! A sandbox of its own for a test, and how the test asks it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use errand_sandbox::{Options, Running, Sandbox, World};
use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

pub(crate) const KEY: &str = "ak_test_good";
pub(crate) const PINNED: &str = "20251027_00";
pub(crate) const REPO: &str = "/api/v3/tools/execute/GITHUB_GET_REPO";

pub(crate) fn repo_body(user: &str) -> Value {
    json!({"user_id": user, "version": PINNED, "arguments": {"owner": "o", "repo": "r"}})
}

/// The call that most tests make.
pub(crate) fn repo_call() -> Ask {
    Ask::post(REPO).json(repo_body("u-alice"))
}

/// A request.
#[derive(Debug)]
pub(crate) struct Ask {
    method: Method,
    path: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<String>,
}

impl Ask {
    pub(crate) fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), key: Some(KEY.to_owned()), headers: Vec::new(), body: None }
    }

    pub(crate) fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn json(self, body: Value) -> Self {
        self.raw(&body.to_string())
    }

    pub(crate) fn raw(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn try_json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    pub(crate) fn json(&self) -> Value {
        self.try_json().unwrap_or_else(|| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn at(&self, pointer: &str) -> Value {
        self.json().pointer(pointer).cloned().unwrap_or_else(|| panic!("no {pointer} in {}", self.text()))
    }
}

/// A sandbox of its own and a client for it.
pub(crate) struct Bench {
    pub(crate) running: Running,
    pub(crate) client: Client,
}

impl Bench {
    pub(crate) async fn start(world: &str) -> Self {
        Self::start_with(world, Options::DEFAULT_SEED).await
    }

    pub(crate) async fn start_with(world: &str, seed: u64) -> Self {
        Self::start_in(World::from_toml(world).unwrap(), seed).await
    }

    pub(crate) async fn start_in(world: World, seed: u64) -> Self {
        // The first test installs the provider; for the others it is there.
        // An error says that another test has chosen the same provider already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let sandbox = Sandbox::new(world, Options { seed });
        let running = sandbox.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Self { running, client }
    }

    pub(crate) async fn send(&self, ask: &Ask) -> reqwest::Result<Answer> {
        self.send_within(ask, Duration::from_secs(20)).await
    }

    pub(crate) async fn send_within(&self, ask: &Ask, limit: Duration) -> reqwest::Result<Answer> {
        let url = format!("{}{}", self.running.base_url(), ask.path);
        let mut request = self.client.request(ask.method.clone(), url).timeout(limit);
        if let Some(key) = &ask.key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &ask.body {
            request = request.header("content-type", "application/json").body(body.clone());
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.send(&Ask::new(Method::GET, path)).await.unwrap().json()
    }

    pub(crate) async fn set_faults(&self, faults: Value) {
        let put = Ask::new(Method::PUT, "/_sandbox/faults").json(json!({ "faults": faults }));
        assert_eq!(self.send(&put).await.unwrap().status, 200);
    }

    pub(crate) async fn find_logs(&self, request_id: &str) -> Value {
        let filter = json!({"field": "request_id", "operator": "==", "value": request_id});
        let search = Ask::post("/api/v3.1/logs/tool_execution").json(json!({"filters": [filter]}));
        self.send(&search).await.unwrap().json()
    }

    pub(crate) async fn wait_for_effects(&self, effects: u64) {
        tokio::time::timeout(Duration::from_secs(60), async {
            while self.running.ledger_summary().effects < effects {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{:?}", self.running.ledger_summary()));
    }
}
