//! No table keeps the secret of a key.

use errand::access::Shown;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl World {
    /// The ID and the secret of a key that the operator asks for.
    async fn key_over_http(&self, path: &str, body: Value) -> (String, String) {
        let asked = Asked { path: path.to_owned(), body: Some(body), header: None };
        let told = self.ask(&Method::POST, &asked, Some(&self.operator)).await;
        assert_eq!(told.status, 201, "{told:?}");
        let key: Value = serde_json::from_str(&told.body).unwrap();
        let text = |name: &str| key[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    async fn keeps_no_secret(&self) {
        let (id, over_http) =
            self.key_over_http("/v1/keys", json!({"user_id": "user-8", "scopes": ["read"]})).await;
        let (_, rotated) = self.key_over_http(&format!("/v1/keys/{id}/rotate"), json!({})).await;
        let rows: Vec<_> =
            self.rows.of_every_table().await.into_iter().map(|row| row.to_lowercase()).collect();
        let is_kept = |text: &str| rows.iter().any(|row| row.contains(text));
        let own = [&self.operator, &self.ids.secret, &self.ids.revoked, &over_http, &rotated];
        for secret in own.into_iter().chain(&self.others) {
            // In hexadecimal, these digits are the random bytes, too.
            let digits = &secret[secret.len() - 64..];
            for kept in [digits, &*hex(digits.as_bytes())] {
                assert!(!is_kept(kept), "a row has a secret, or what it is made of");
            }
            // The search would find it: it finds what is kept instead.
            let digest = Shown::read(secret).unwrap().digest.0;
            assert!(is_kept(&hex(&digest)), "the digest of each secret is kept");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_of_any_table_has_the_secret_of_a_key_with_postgresql() {
    let harness = Harness::new("secrets", FAULT).await;
    let rows = Rows::of_postgres(&harness.database).await;
    let world = World::new(&harness.env(), rows, async || harness.worker(&[EVENTS]).await).await;
    world.keeps_no_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_of_any_table_has_the_secret_of_a_key_with_sqlite() {
    let (_folder, _sandbox, world) = World::in_sqlite().await;
    world.keeps_no_secret().await;
}
