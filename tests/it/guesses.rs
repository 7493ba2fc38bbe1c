//! Guesses of access keys are counted by the address that they come from. How addresses of IPv6 are counted is tested beside
//! the code (`src/api/caller.rs`), because of those a loopback interface has only one.

use std::net::IpAddr;

use reqwest::{Client, StatusCode};
use serde_json::Value;

use crate::{
    access_keys::{database, made},
    api::{Api, kind, read_answer},
    harness::PATIENCE,
    support::{http, wait::until},
};

/// Somebody who asks from an address of their own.
struct Guest<'a> {
    api: &'a Api,
    client: Client,
}

impl<'a> Guest<'a> {
    /// At an address of the loopback interface, by its last number.
    fn at(api: &'a Api, last: u8) -> Self {
        let address = IpAddr::from([127, 0, 0, last]);
        let builder = http::builder().pool_max_idle_per_host(0).local_address(address);
        Self { api, client: builder.build().unwrap() }
    }

    async fn lists_jobs(&self, secret: &str) -> (StatusCode, Value) {
        let request = self.client.get(format!("{}/v1/jobs", self.api.base)).bearer_auth(secret);
        read_answer(request.send().await.unwrap()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_from_one_address_slow_nobody_at_another() {
    let (_folder, env) = database();
    let api = Api::start(&env).await;
    let (guesser, neighbour) = (Guest::at(&api, 1), Guest::at(&api, 2));
    let secret = || {
        let key = made(&env, &["--operator", "--scope", "read"]);
        key["secret"].as_str().unwrap().to_owned()
    };
    let valid = secret();
    let wrong = |guess: u32| format!("{}{guess:08x}", &valid[..valid.len() - 8]);
    // On a machine that stands still the time of the guesses may be over before the key is shown.
    let unused = until("a valid key to be refused that nobody has used yet", PATIENCE, async || {
        let unused = secret();
        for guess in 0..30 {
            let (status, problem) = guesser.lists_jobs(&wrong(guess)).await;
            assert!([401, 429].contains(&status.as_u16()), "{problem}");
        }
        let (status, told) = guesser.lists_jobs(&unused).await;
        if status == StatusCode::OK {
            return None;
        }
        assert_eq!((status.as_u16(), kind(&told)), (429, "too-many-requests"), "{told}");
        Some(unused)
    })
    .await;
    let (status, problem) = neighbour.lists_jobs(&wrong(0)).await;
    assert_eq!((status.as_u16(), kind(&problem)), (401, "unauthorized"), "{problem}");
    let (status, list) = neighbour.lists_jobs(&unused).await;
    assert_eq!(status, StatusCode::OK, "{list}");
}
