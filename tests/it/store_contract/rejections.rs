//! Rejected messages.

use errand::{
    job::{EnvelopeReason, Principal},
    store::{Decider, Rejected, RejectedFilter, StoreErrorKind},
};
use uuid::Uuid;

use super::{OPERATOR, TestStore, on_every_backend};

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
    let kept = t.store.rejected_message(&Principal::Operator, unfit.id).await.unwrap().unwrap();
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
    let list = t.store.rejected(&Principal::Operator, &RejectedFilter::default(), None, 10).await.unwrap();
    assert_eq!(
        list.iter().map(|view| view.message.id.as_u128()).collect::<Vec<_>>(),
        [2, 1],
        "what came last first"
    );
    assert_eq!((list[0].seen, list[0].size, list[0].message.body.len()), (3, 3, 0));
    assert_eq!(
        t.store.rejected(&Principal::Operator, &RejectedFilter::default(), None, 1).await.unwrap().len(),
        1
    );
    let whole = t.store.rejected_message(&Principal::Operator, first.id).await.unwrap().unwrap();
    assert_eq!(whole.message.body, first.body);
    assert_eq!(
        (whole.message.properties, whole.message.message),
        (first.properties.clone(), first.message.clone())
    );
    assert_eq!((whole.message.reason, whole.requeued_at), (EnvelopeReason::Malformed, None));

    assert!(t.store.mark_requeued(&Principal::Operator, first.id, OPERATOR, None).await.unwrap());
    assert!(!t.store.mark_requeued(&Principal::Operator, first.id, OPERATOR, None).await.unwrap());
    assert!(!t.store.mark_requeued(&Principal::Operator, Uuid::from_u128(9), OPERATOR, None).await.unwrap());
    assert_eq!(
        t.store.rejected(&Principal::Operator, &RejectedFilter::default(), None, 10).await.unwrap().len(),
        1
    );
    assert!(
        t.store
            .rejected_message(&Principal::Operator, first.id)
            .await
            .unwrap()
            .unwrap()
            .requeued_at
            .is_some()
    );
    t.store.reject(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(
        t.store.rejected(&Principal::Operator, &RejectedFilter::default(), None, 10).await.unwrap().len(),
        2,
        "rejected once more, so it is listed again"
    );
    assert!(t.store.rejected_message(&Principal::Operator, Uuid::from_u128(9)).await.unwrap().is_none());
});

on_every_backend!(rejected_messages_are_listed_by_reason_queue_and_time_page_by_page, async |t| {
    let message = |n: u128, queue: &str, reason| Rejected {
        id: Uuid::from_u128(n),
        queue: queue.parse().unwrap(),
        reason,
        message: "it is not a job".into(),
        body: b"{}".to_vec(),
        properties: "{}".into(),
        job: None,
        asked: None,
    };
    let (malformed, value) = (EnvelopeReason::Malformed, EnvelopeReason::BadValue);
    for (n, queue, reason) in [(1, "default", malformed), (2, "bulk", malformed), (3, "default", value)] {
        t.store.reject(&[message(n, queue, reason)]).await.unwrap();
    }
    let list = async |filter: &RejectedFilter, before, limit| -> Vec<u128> {
        let found = t.store.rejected(&Principal::Operator, filter, before, limit).await.unwrap();
        found.iter().map(|view| view.message.id.as_u128()).collect()
    };
    let all = RejectedFilter::default;
    let second = t.store.rejected_message(&Principal::Operator, Uuid::from_u128(2)).await.unwrap().unwrap();
    for (filter, expected) in [
        (all(), vec![3, 2, 1]),
        (RejectedFilter { reason: Some(malformed), ..all() }, vec![2, 1]),
        (RejectedFilter { queue: Some("default".parse().unwrap()), ..all() }, vec![3, 1]),
        (RejectedFilter { since: Some(second.received_at), ..all() }, vec![3, 2]),
        (RejectedFilter { until: Some(second.received_at), ..all() }, vec![1]),
    ] {
        assert_eq!(list(&filter, None, 10).await, expected, "{filter:?}");
    }
    assert_eq!(list(&all(), Some(second.place()), 10).await, [1]);
});

on_every_backend!(a_corrected_body_is_kept_beside_the_own_one_with_who_gave_it, async |t| {
    let rejected = Rejected {
        id: Uuid::from_u128(1),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "it is not a job".into(),
        body: b"{".to_vec(),
        properties: "{}".into(),
        job: None,
        asked: None,
    };
    t.store.reject(std::slice::from_ref(&rejected)).await.unwrap();
    assert!(
        t.store
            .mark_requeued(
                &Principal::Operator,
                rejected.id,
                &Decider::at_command_line("errand: worker"),
                None
            )
            .await
            .is_err(),
        "that is nobody"
    );
    assert!(
        t.store
            .mark_requeued(
                &Principal::Operator,
                rejected.id,
                &Decider::at_command_line("alice"),
                Some(b"{}".to_vec())
            )
            .await
            .unwrap()
    );
    let kept = t.store.rejected_message(&Principal::Operator, rejected.id).await.unwrap().unwrap();
    assert_eq!((&*kept.message.body, kept.corrected.as_deref()), (&b"{"[..], Some(&b"{}"[..])));
    assert_eq!(kept.requeued_by.as_deref(), Some("alice"));
});
