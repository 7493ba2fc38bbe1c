//! The filter as a whole, compared with what the client library's own parser reads.

use lapin::{BasicProperties, protocol::basic::parse_properties, types::AMQPValue};
use proptest::{collection::vec, prelude::*};

use super::{
    FrameFilter, MIN_LIMIT, UNREADABLE_HEADER,
    content_header::{CUT_HEADER, MAX_DEPTH, REPLACEMENT_OVERHEAD, are_readable},
    frame::{BODY, CONTENT_HEAD, FRAME_END, FRAME_HEAD, HEARTBEAT, MAX_FRAME, METHOD},
    method::DELIVER,
    samples::*,
};

/// What comes out when the stream comes in chunks of these sizes, again and again.
fn filtered(stream: &[u8], sizes: &[usize]) -> Vec<u8> {
    filtered_by(FrameFilter::new(0), stream, sizes)
}

fn filtered_by(mut filter: FrameFilter, stream: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut rest = stream;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(*sizes.next().unwrap())];
        let filtered = filter.filter(chunk);
        assert!(filtered.passed <= filtered.consumed && filtered.consumed > 0);
        out.extend_from_slice(&chunk[..filtered.passed]);
        let mut output = [0; 64];
        loop {
            match filter.take_output(&mut output) {
                0 => break,
                length => out.extend_from_slice(&output[..length]),
            }
        }
        rest = &rest[filtered.consumed..];
    }
    out
}

fn read_by_library(properties: &[u8]) -> Option<BasicProperties> {
    parse_properties(properties).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, read)| read)
}

fn properties_of(frame: &[u8]) -> &[u8] {
    let size = u32::from_be_bytes(frame[3..FRAME_HEAD].try_into().unwrap()) as usize;
    assert_eq!(frame.len(), FRAME_HEAD + size + 1);
    assert_eq!(frame.last(), Some(&FRAME_END));
    &frame[FRAME_HEAD + CONTENT_HEAD..frame.len() - 1]
}

/// The original properties in a replacement, and whether it says that they are cut.
fn original(frame: &[u8]) -> (Vec<u8>, bool) {
    let read = read_by_library(properties_of(frame)).unwrap();
    let headers = read.headers().as_ref().unwrap().inner();
    let Some(AMQPValue::LongString(kept)) = headers.get(UNREADABLE_HEADER) else { panic!("{headers:?}") };
    (kept.as_bytes().to_vec(), headers.get(CUT_HEADER) == Some(&AMQPValue::Boolean(true)))
}

#[test]
fn what_cannot_be_read_is_replaced_wherever_the_stream_is_cut() {
    let before = framed(METHOD, b"deliver");
    let after = [framed(BODY, b"hello"), framed(HEARTBEAT, b""), content(&with(0, b""))].concat();
    for properties in bad() {
        let bad = content(&properties);
        let stream = [&before[..], &bad, &bad, &after].concat();
        let whole = filtered(&stream, &[stream.len()]);
        let replaced = &whole[before.len()..whole.len() - after.len()];
        let (first, second) = replaced.split_at(replaced.len() / 2);
        assert_eq!(first, second);
        assert_eq!(first[..3], bad[..3], "the same channel");
        assert_eq!(first[FRAME_HEAD..][..CONTENT_HEAD], bad[FRAME_HEAD..][..CONTENT_HEAD]);
        assert_eq!(original(first), (properties, false));
        assert!(whole.starts_with(&before) && whole.ends_with(&after));
        assert_eq!(filtered(&stream, &[1]), whole);
        for cut in (1..stream.len()).step_by(1 + stream.len() / 500) {
            assert_eq!(filtered(&stream, &[cut, stream.len()]), whole, "cut at {cut}");
        }
    }
}

#[test]
fn names_of_a_delivery_that_are_not_utf_8_are_replaced_wherever_the_stream_is_cut() {
    for (bad, replaced) in [
        (&b"\xff"[..], &b"?"[..]),
        (b"a\xff\xfeb\xc3", b"a??b?"),
        ("ä\u{10ffff}".as_bytes(), "ä\u{10ffff}".as_bytes()),
        (b"\xed\xa0\x80ok", b"???ok"),
        (b"", b""),
        (&[0xff; 255], &[b'?'; 255]),
    ] {
        let after = [content(&with(0, b"")), framed(BODY, b"\xff"), delivery(b"", b"next")].concat();
        let stream = [&delivery(bad, b"key"), &delivery(b"errand", bad), &after[..]].concat();
        let expected = [&delivery(replaced, b"key"), &delivery(b"errand", replaced), &after[..]].concat();
        for sizes in (1..stream.len()).map(|cut| [cut, stream.len()]).chain([[1, 1]]) {
            assert_eq!(filtered(&stream, &sizes), expected, "{sizes:?}");
        }
    }
}

#[test]
fn methods_that_are_no_whole_delivery_pass() {
    let whole = delivery(b"\xff", b"\xff");
    let payload = &whole[FRAME_HEAD..whole.len() - 1];
    for end in 0..payload.len() {
        let cut = framed(METHOD, &payload[..end]);
        assert_eq!(filtered(&cut, &[usize::MAX]), cut, "{end}");
    }
    let mut confirm = payload.to_vec();
    confirm[3] = 80;
    let mut no_end = whole.clone();
    *no_end.last_mut().unwrap() = 0;
    for passes in [framed(METHOD, &confirm), no_end] {
        assert_eq!(filtered(&passes, &[1]), passes);
    }
    let large = framed(METHOD, &[&DELIVER[..], &vec![0xff; MAX_FRAME]].concat());
    assert_eq!(filtered(&large, &[1_000]), large);
}

#[test]
fn every_truncation_of_properties_is_replaced() {
    let whole = [short("text/plain"), long(b"", &[short("n"), long(b"S", b"x")].concat()), short("id")];
    let whole = with(1 << 15 | HEADERS | MESSAGE_ID, &whole.concat());
    assert_eq!(filtered(&content(&whole), &[1]), content(&whole));
    for end in 0..whole.len() {
        let out = filtered(&content(&whole[..end]), &[usize::MAX]);
        assert_eq!(original(&out), (whole[..end].to_vec(), false));
    }
}

#[test]
fn nesting_passes_up_to_the_limit() {
    for levels in 0..MAX_DEPTH {
        let stream = content(&nested(levels));
        assert_eq!(filtered(&stream, &[usize::MAX]), stream);
        assert!(read_by_library(&nested(levels)).is_some());
    }
}

#[test]
fn a_replacement_fits_into_a_frame_and_says_what_it_leaves_out() {
    let next = content(&with(0, b""));
    for (ours, proposed_frame_max, limit) in [
        (131_072, 0, 131_072),
        (131_072, 131_072, 131_072),
        (131_072, 8_192, 8_192),
        (8_192, 131_072, 8_192),
        (0, 0, MAX_FRAME),
        (1, 1, MIN_LIMIT),
    ] {
        let tune = tune(proposed_frame_max);
        let kept = limit - REPLACEMENT_OVERHEAD;
        for length in [kept + 1, limit, 2 * MAX_FRAME] {
            let properties = with(MESSAGE_ID, &vec![0xff; length]);
            for size in [1_000, usize::MAX] {
                let stream = [&tune[..], &content(&properties), &next].concat();
                let out = filtered_by(FrameFilter::new(ours), &stream, &[size]);
                let replaced = out.strip_suffix(&next[..]).unwrap().strip_prefix(&tune[..]).unwrap();
                assert!(replaced.len() <= limit);
                assert_eq!(original(replaced), (properties[..kept].to_vec(), true));
            }
        }
    }
}

#[test]
fn a_content_header_passes_up_to_the_agreed_limit() {
    let headers = |size: usize| with(HEADERS, &long(b"", &[short("n"), long(b"S", &vec![0; size])].concat()));
    let around = content(&headers(0)).len();
    for limit in [MIN_LIMIT, 131_072] {
        let whole = content(&headers(limit - around));
        let stream = [tune(u32::try_from(limit).unwrap()), whole.clone()].concat();
        assert_eq!(filtered(&stream, &[usize::MAX]), stream);
        assert_eq!(filtered(&stream, &[1_000]), stream);
        let properties = headers(limit - around + 1);
        let stream = [tune(u32::try_from(limit).unwrap()), content(&properties)].concat();
        let out = filtered(&stream, &[1_000]);
        let replaced = out.strip_prefix(&tune(u32::try_from(limit).unwrap())[..]).unwrap();
        assert!(replaced.len() <= limit);
        assert_eq!(original(replaced), (properties[..limit - REPLACEMENT_OVERHEAD].to_vec(), true));
    }
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let other = (proptest::sample::select(vec![METHOD, BODY, HEARTBEAT]), vec(any::<u8>(), 0..50));
    let frame = prop_oneof![
        properties().prop_map(|properties| content(&properties)),
        other.prop_map(|(kind, payload)| framed(kind, &payload)),
    ];
    vec(frame, 0..8).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn what_can_be_read_passes_byte_for_byte(stream in stream(), sizes in vec(1..80_usize, 1..6)) {
        prop_assert_eq!(filtered(&stream, &sizes), &stream[..]);
        prop_assert_eq!(filtered(&stream, &[usize::MAX]), stream);
    }

    #[test]
    fn the_library_agrees_on_what_can_be_read(
        properties in properties(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        prop_assert!(are_readable(&properties));
        prop_assert!(read_by_library(&properties).is_some());
        let mut changed = properties;
        *at.get_mut(&mut changed) = byte;
        prop_assert_eq!(are_readable(&changed), read_by_library(&changed).is_some());
        let out = filtered(&content(&changed), &[usize::MAX]);
        prop_assert!(read_by_library(properties_of(&out)).is_some());
    }

    #[test]
    fn the_library_reads_whatever_comes_out(
        properties in vec(any::<u8>(), 0..300),
        sizes in vec(1..80_usize, 1..6),
    ) {
        let out = filtered(&content(&properties), &sizes);
        prop_assert!(read_by_library(properties_of(&out)).is_some());
    }
}
