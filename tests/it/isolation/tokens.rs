//! What a token of somebody opens for them and for others.

use super::*;

impl World {
    /// A token is for events alone, and for those of whom it was made.
    pub(super) async fn walk_with_tokens(&self) {
        let create = Asked { path: "/v1/tokens".into(), body: Some(json!({})), header: None };
        let mut tokens = Vec::new();
        for secret in [&self.ids.secret, &self.others[0], &self.others[1]] {
            let made = self.ask(&Method::POST, &create, Some(secret)).await;
            assert_eq!(made.status, 200, "{made:?}");
            let made: Value = serde_json::from_str(&made.body).unwrap();
            tokens.push(made["token"].as_str().unwrap().to_owned());
        }
        for operation in self.document.iter().filter(|operation| !operation.scopes.is_empty()) {
            if operation.id == "listEvents" {
                let own = self.ask(&Method::GET, &operation.requests(&self.ids)[0], Some(&tokens[0])).await;
                assert!(own.status == 200 && own.body.contains(&self.ids.done), "{own:?}");
                for other in &tokens[1..] {
                    let refused = |asked: &Asked, told: &Told| operation.is_refused_to_others(asked, told);
                    self.refuses(operation, Some(other), refused).await;
                }
            } else {
                self.refuses(operation, Some(&tokens[0]), |_, told| told.status == 403).await;
            }
        }
    }
}
