//! Rejected messages.

use errand::{
    job::EnvelopeReason,
    store::{Rejected, StoreErrorKind},
};
use uuid::Uuid;

use super::{TestStore, on_every_backend};

on_every_backend!(a_rejection_that_cannot_be_kept_can_be_kept_without_its_texts, async |t| {
    let unfit = Rejected {
        id: Uuid::from_u128(3),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "a\0b".into(),
        body: b"\0\xff".to_vec(),
        properties: "{}".into(),
        job: None,
        asked: None,
    };
    let refused = t.store.reject(std::slice::from_ref(&unfit)).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Data);
    let plain = unfit.clone().into_plain();
    assert!(!plain.message.contains('\0') && plain.properties == "{}");
    t.store.reject(&[plain]).await.unwrap();
    let kept = t.store.rejected_message(unfit.id).await.unwrap().unwrap();
    assert_eq!((kept.message.body, kept.message.reason), (unfit.body, unfit.reason), "the message is whole");
});

on_every_backend!(a_rejected_message_seen_again_is_the_same_row, async |t| {
    let message = |n: u128, body: &[u8]| Rejected {
        id: Uuid::from_u128(n),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "the envelope is not a valid job".into(),
        body: body.to_vec(),
        properties: r#"{"message_id":"m"}"#.into(),
        job: None,
        asked: None,
    };
    let (first, second) = (message(2, b"\0\xff{"), message(1, b""));
    t.store.reject(&[first.clone(), first.clone()]).await.unwrap();
    t.store.reject(&[second, first.clone()]).await.unwrap();
    t.store.reject(&[]).await.unwrap();
    let list = t.store.rejected(10).await.unwrap();
    assert_eq!(
        list.iter().map(|view| view.message.id.as_u128()).collect::<Vec<_>>(),
        [2, 1],
        "what came last first"
    );
    assert_eq!((list[0].seen, list[0].size, list[0].message.body.len()), (3, 3, 0));
    assert_eq!(t.store.rejected(1).await.unwrap().len(), 1);
    let whole = t.store.rejected_message(first.id).await.unwrap().unwrap();
    assert_eq!(whole.message.body, first.body);
    assert_eq!(
        (whole.message.properties, whole.message.message),
        (first.properties.clone(), first.message.clone())
    );
    assert_eq!((whole.message.reason, whole.requeued_at), (EnvelopeReason::Malformed, None));

    assert!(t.store.mark_requeued(first.id).await.unwrap());
    assert!(!t.store.mark_requeued(first.id).await.unwrap());
    assert!(!t.store.mark_requeued(Uuid::from_u128(9)).await.unwrap());
    assert_eq!(t.store.rejected(10).await.unwrap().len(), 1);
    assert!(t.store.rejected_message(first.id).await.unwrap().unwrap().requeued_at.is_some());
    t.store.reject(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(t.store.rejected(10).await.unwrap().len(), 2, "rejected once more, so it is listed again");
    assert!(t.store.rejected_message(Uuid::from_u128(9)).await.unwrap().is_none());
});
