//! Frames and properties for the tests of the filter.

use proptest::{collection::vec, prelude::*};

use super::{
    content_header::{MAX_DEPTH, put_name, put_size},
    frame::{FRAME_END, HEADER, METHOD},
    method::{DELIVER, TUNE},
};

pub(super) const MESSAGE_ID: u16 = 1 << 7;
pub(super) const HEADERS: u16 = 1 << 13;

pub(super) fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 7];
    put_size(payload.len(), &mut frame);
    [frame, payload.to_vec(), vec![FRAME_END]].concat()
}

pub(super) fn content(properties: &[u8]) -> Vec<u8> {
    framed(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], properties].concat())
}

pub(super) fn with(flags: u16, list: &[u8]) -> Vec<u8> {
    [&flags.to_be_bytes()[..], list].concat()
}

pub(super) fn long(kind: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut out = kind.to_vec();
    put_size(bytes.len(), &mut out);
    out.extend_from_slice(bytes);
    out
}

pub(super) fn short(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_name(text, &mut out);
    out
}

pub(super) fn nested(levels: usize) -> Vec<u8> {
    let mut value = vec![b'V'];
    for _ in 0..levels {
        value = long(b"A", &value);
    }
    with(HEADERS, &long(b"", &[short("deep"), value].concat()))
}

/// Properties that the library cannot read, or that would overflow its stack.
pub(super) fn bad() -> Vec<Vec<u8>> {
    vec![
        with(MESSAGE_ID, &[2, 0xff, 0xfe]),
        with(HEADERS, &long(b"", &[1, 0xff, b'V'])),
        with(HEADERS, &long(b"", &[&short("t")[..], &long(b"F", &[1, 0xff, b'V'])].concat())),
        with(HEADERS, &long(b"", &[&short("t")[..], b"?"].concat())),
        nested(MAX_DEPTH),
        nested(5_000),
        with(0, &[1]),
        with(MESSAGE_ID, &[]),
        vec![0],
        vec![],
    ]
}

/// A delivery to consumer `c1` of a message with this exchange and routing key.
pub(super) fn delivery(exchange: &[u8], key: &[u8]) -> Vec<u8> {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()][..], text].concat();
    let tag = [&7_u64.to_be_bytes()[..], &[1]].concat();
    framed(METHOD, &[&DELIVER[..], &text(b"c1"), &tag, &text(exchange), &text(key)].concat())
}

pub(super) fn tune(frame_max: u32) -> Vec<u8> {
    framed(METHOD, &[&TUNE[..], &[0, 0], &frame_max.to_be_bytes(), &[0, 60]].concat())
}

pub(super) fn value() -> impl Strategy<Value = Vec<u8>> {
    let fixed = [(&b"V"[..], 0), (b"tbB", 1), (b"sUu", 2), (b"Iif", 4), (b"D", 5), (b"LldT", 8)];
    let fixed = fixed.into_iter().flat_map(|(kinds, size)| kinds.iter().map(move |kind| (*kind, size)));
    let fixed = proptest::sample::select(fixed.collect::<Vec<_>>());
    let leaf = prop_oneof![
        (fixed, any::<[u8; 8]>()).prop_map(|((kind, size), bytes)| [&[kind][..], &bytes[..size]].concat()),
        vec(any::<u8>(), 0..20).prop_map(|bytes| long(b"S", &bytes)),
        vec(any::<u8>(), 0..20).prop_map(|bytes| long(b"x", &bytes)),
    ];
    leaf.prop_recursive(5, 30, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|values| long(b"A", &values.concat())),
            entries(inner).prop_map(|entries| long(b"F", &entries)),
        ]
    })
}

pub(super) fn entries(value: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    vec(("[a-zäö]{0,4}", value), 0..4).prop_map(|entries| {
        entries.into_iter().flat_map(|(name, value)| [short(&name), value].concat()).collect()
    })
}

/// All properties that the flags name, and headers of every kind.
pub(super) fn properties() -> impl Strategy<Value = Vec<u8>> {
    (any::<u16>(), "[a-zäö]{0,9}", any::<[u8; 8]>(), entries(value())).prop_map(
        |(flags, text, number, headers)| {
            let mut list = Vec::new();
            for (index, kind) in "sshbbsssstssss".bytes().enumerate() {
                if flags & (1 << (15 - index)) != 0 {
                    list.extend(match kind {
                        b's' => short(&text),
                        b'h' => long(b"", &headers),
                        b'b' => number[..1].to_vec(),
                        _ => number.to_vec(),
                    });
                }
            }
            with(flags, &list)
        },
    )
}
