//! The client of the tool API against servers that misbehave, and against the sandbox.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::sync::Arc;
use std::time::Duration;

use errand::{
    app, config,
    job::{JobSpec, RequestId},
    tool::{
        Body, Call, Reply,
        composio::{Composio, Options},
    },
};
use errand_testbed::{
    factory,
    scripted_api::{Answer, ScriptedApi},
};

use crate::jobs::spec;

mod against_sandbox;
mod calls;
mod lookups;
mod multiplexed;
mod remembered;

const KEY: &str = "ak_test_good";
const OK: &str = r#"{"data":{},"error":null,"successful":true,"log_id":"log_1"}"#;

fn options(base: url::Url) -> Options {
    drop(rustls::crypto::ring::default_provider().install_default());
    let defaults = config::load(&config::Sources::default()).unwrap().config;
    Options { base_url: base, api_key: KEY.into(), ..app::tool_api_options(&defaults).unwrap() }
}

fn base(api: &ScriptedApi) -> url::Url {
    api.url().parse().unwrap()
}

pub(crate) fn client(api: &ScriptedApi) -> Composio {
    Composio::new(options(base(api))).unwrap()
}

fn call(spec: Arc<JobSpec>) -> Call {
    Call {
        request_id: RequestId::new(),
        job: spec.id,
        spec,
        version: "20251027_00".into(),
        account: Some("ca_1".into()),
        timeout: Duration::from_secs(5),
    }
}

fn simple() -> Call {
    call(spec(&factory::read("u-alice")))
}

fn within(millis: u64, call: Call) -> Call {
    Call { timeout: Duration::from_millis(millis), ..call }
}

fn body(reply: Reply) -> Body {
    match reply {
        Reply::Answered(answer) => answer.body,
        other => panic!("{other:?}"),
    }
}
