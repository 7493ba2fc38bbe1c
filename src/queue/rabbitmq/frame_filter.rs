//! Keeps what the client library cannot read away from it.
//!
//! The library ends the connection at a text that is not UTF-8 and at a frame that is larger than was agreed, and
//! recurses without a limit into nested headers. In each case one message would stop every lane, because the broker
//! delivers it again. So what publishers choose is looked at before the library sees it:
//!
//! * A content header that cannot be read is replaced by one that has the original in a header of its own,
//!   [`UNREADABLE_HEADER`]. So is one that is too large: RabbitMQ splits none, adds headers of its own, and lets
//!   publishers send a few bytes more than a frame may have.
//! * In the exchange and the routing key of a delivery, which say nothing about the job, question marks take the
//!   place of what is not UTF-8.
//!
//! Everything else passes as it is.

use std::ops::Range;

use bytes::{Buf as _, BytesMut};

/// The header with the original properties, in their binary form, of a message that cannot be read.
pub(super) const UNREADABLE_HEADER: &str = "x-errand-unreadable";

/// The header that says that the end of the original properties is missing.
const CUT_HEADER: &str = "x-errand-unreadable-cut";

/// Deepest nesting of headers that passes. The library's stack takes a few hundred.
const MAX_DEPTH: usize = 32;

/// Most of a frame that is buffered, in bytes, and so the largest content header that passes whatever was agreed, and
/// the largest method that is looked at.
const MAX_FRAME: usize = 1024 * 1024;

/// The smallest limit of frames that can be agreed on, in bytes (AMQP 0-9-1, section 4.2.3).
const MIN_LIMIT: usize = 4096;

/// What a replacement has beside the original properties, in bytes, at most.
const AROUND_KEPT: usize = 256;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;

/// A frame's type, channel and size.
const FRAME_HEAD: usize = 7;

/// What comes before the properties in a content header: class, weight and the size of the body.
const CONTENT_HEAD: usize = 12;

/// Class and method of a delivery.
const DELIVER: [u8; 4] = [0, 60, 0, 60];

/// Class and method of what the broker proposes when a connection begins.
const TUNE: [u8; 4] = [0, 10, 0, 30];

/// A server that does not speak our version answers with `AMQP` and its own instead of a frame.
const PROTOCOL_HEADER: usize = 8;

/// A decoder of a stream of frames that comes in chunks of any size.
#[derive(Debug)]
pub(super) struct FrameFilter {
    /// The largest frame that the library takes, in bytes, with its head and its end.
    limit: usize,
    /// Bytes that pass unseen: the rest of a frame of no interest.
    bytes_to_pass: usize,
    /// Bytes that are left out: the rest of a content header that is too large.
    bytes_to_discard: usize,
    /// The start of a frame whose end has not come.
    frame_start: Vec<u8>,
    output: BytesMut,
}

/// What became of a chunk. What is behind `consumed` was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filtered {
    /// Bytes at the start of the chunk that pass as they are.
    pub(super) passed: usize,
    /// Bytes at the start of the chunk that are dealt with. Those that did not pass come out as
    /// [`FrameFilter::take_output`], before anything that is behind them.
    pub(super) consumed: usize,
}

/// The length of a frame in bytes, with its head and its end.
enum FrameLength {
    /// It has to be looked at.
    Inspected(usize),
    Uninspected(usize),
}

impl FrameFilter {
    /// For a connection on which this is the largest frame, in bytes, that is asked for; zero means any.
    pub(super) fn new(frame_max: u32) -> Self {
        let (frame_start, output) = (Vec::new(), BytesMut::new());
        let mut filter =
            Self { limit: MAX_FRAME, bytes_to_pass: 0, bytes_to_discard: 0, frame_start, output };
        filter.lower_limit(frame_max);
        filter
    }

    /// Most bytes that the next chunk should have, so that all of it is consumed.
    pub(super) fn next_chunk_limit(&self) -> usize {
        if self.frame_start.is_empty() { usize::MAX } else { self.missing_bytes() }
    }

    /// Looks at a chunk. The output has to be taken before.
    pub(super) fn filter(&mut self, chunk: &[u8]) -> Filtered {
        if self.bytes_to_discard > 0 {
            let consumed = self.bytes_to_discard.min(chunk.len());
            self.bytes_to_discard -= consumed;
            return Filtered { passed: 0, consumed };
        }
        if !self.frame_start.is_empty() {
            return Filtered { passed: 0, consumed: self.buffer_frame(chunk) };
        }
        let mut passed = 0;
        loop {
            let unseen = self.bytes_to_pass.min(chunk.len() - passed);
            self.bytes_to_pass -= unseen;
            passed += unseen;
            let rest = &chunk[passed..];
            if rest.is_empty() {
                return Filtered { passed, consumed: passed };
            }
            match frame_length(rest) {
                Some(FrameLength::Uninspected(length)) => self.bytes_to_pass = length,
                Some(FrameLength::Inspected(length))
                    if rest.get(..length).is_some_and(|frame| self.is_readable_frame(frame)) =>
                {
                    passed += length;
                }
                _ => return Filtered { passed, consumed: passed + self.buffer_frame(rest) },
            }
        }
    }

    /// Moves output into the buffer, and returns how many bytes that were.
    pub(super) fn take_output(&mut self, buffer: &mut [u8]) -> usize {
        let length = self.output.len().min(buffer.len());
        self.output.copy_to_slice(&mut buffer[..length]);
        length
    }

    /// Takes from the chunk what belongs to the frame that has started, and returns how many bytes that were.
    fn buffer_frame(&mut self, chunk: &[u8]) -> usize {
        let mut consumed = 0;
        loop {
            let more = self.missing_bytes().min(chunk.len() - consumed);
            self.frame_start.extend_from_slice(&chunk[consumed..consumed + more]);
            consumed += more;
            match frame_length(&self.frame_start) {
                Some(FrameLength::Uninspected(length)) => {
                    self.bytes_to_pass = length - self.frame_start.len();
                    self.output.extend_from_slice(&self.frame_start);
                    self.frame_start.clear();
                    return consumed;
                }
                Some(FrameLength::Inspected(length)) if self.missing_bytes() == 0 => {
                    self.finish_frame(length);
                    return consumed;
                }
                _ if consumed == chunk.len() => return consumed,
                _ => {}
            }
        }
    }

    /// How many bytes of the frame that has started have to come until it can be decided, or its length is known.
    fn missing_bytes(&self) -> usize {
        let length = match frame_length(&self.frame_start) {
            Some(FrameLength::Inspected(length) | FrameLength::Uninspected(length)) => length.min(MAX_FRAME),
            None => FRAME_HEAD,
        };
        length - self.frame_start.len()
    }

    /// Decides about a frame of this length, all of which has come unless it is too large.
    fn finish_frame(&mut self, length: usize) {
        let mut frame = std::mem::take(&mut self.frame_start);
        if frame.len() == length && self.is_readable_frame(&frame) {
            self.output.extend_from_slice(&frame);
        } else if frame[0] == METHOD {
            for name in delivery_names(&frame) {
                replace_invalid_utf8(&mut frame[name]);
            }
            self.output.extend_from_slice(&frame);
        } else {
            replace(&frame, length, self.limit - AROUND_KEPT, &mut self.output);
            self.bytes_to_discard = length - frame.len();
        }
    }

    /// Whether the library may see this frame as it is. It looks into none that has a wrong end.
    fn is_readable_frame(&mut self, frame: &[u8]) -> bool {
        match frame {
            [METHOD, .., FRAME_END] => {
                if let Some(frame_max) = proposed_frame_max(frame) {
                    self.lower_limit(frame_max);
                }
                delivery_names(frame).into_iter().all(|name| std::str::from_utf8(&frame[name]).is_ok())
            }
            [properties @ .., FRAME_END] => {
                frame.len() <= self.limit && are_readable(&properties[FRAME_HEAD + CONTENT_HEAD..])
            }
            _ => true,
        }
    }

    /// Takes the smaller of two limits, as the library does. Zero is none.
    fn lower_limit(&mut self, frame_max: u32) {
        if frame_max > 0 {
            self.limit = self.limit.min((frame_max as usize).max(MIN_LIMIT));
        }
    }
}

/// What starts here, or `None` if that cannot be told yet.
fn frame_length(bytes: &[u8]) -> Option<FrameLength> {
    match *bytes.first()? {
        kind @ (METHOD | HEADER | BODY | HEARTBEAT) => {
            let size = bytes.get(3..FRAME_HEAD)?.try_into().ok().map(u32::from_be_bytes)?;
            let length = (size as usize).saturating_add(FRAME_HEAD + 1);
            let inspected = match kind {
                HEADER => size as usize >= CONTENT_HEAD,
                METHOD => length <= MAX_FRAME,
                _ => false,
            };
            Some(if inspected { FrameLength::Inspected(length) } else { FrameLength::Uninspected(length) })
        }
        b'A' => Some(FrameLength::Uninspected(PROTOCOL_HEADER)),
        // Here the library ends the connection.
        _ => Some(FrameLength::Uninspected(usize::MAX)),
    }
}

/// The largest frame that the broker proposes, in bytes, if this is the frame in which it does.
fn proposed_frame_max(frame: &[u8]) -> Option<u32> {
    // The highest channel comes first.
    let (method, arguments) = frame.get(FRAME_HEAD..)?.split_at_checked(TUNE.len())?;
    let frame_max = arguments.get(2..6).filter(|_| method == TUNE)?;
    frame_max.try_into().ok().map(u32::from_be_bytes)
}

/// Where the exchange and the routing key of a delivery are; nowhere, if the frame is none.
fn delivery_names(frame: &[u8]) -> [Range<usize>; 2] {
    find_delivery_names(frame).unwrap_or_default()
}

fn find_delivery_names(frame: &[u8]) -> Option<[Range<usize>; 2]> {
    // The delivery tag, and whether it is redelivered.
    const BETWEEN: usize = 8 + 1;
    let text = |at: usize| Some(at + 1..at + 1 + usize::from(*frame.get(at)?));
    let arguments = FRAME_HEAD + DELIVER.len();
    if frame.get(FRAME_HEAD..arguments)? != DELIVER {
        return None;
    }
    let consumer = text(arguments)?;
    let exchange = text(consumer.end + BETWEEN)?;
    let key = text(exchange.end)?;
    (key.end < frame.len()).then_some([exchange, key])
}

/// Puts question marks in the place of what is not UTF-8.
fn replace_invalid_utf8(text: &mut [u8]) {
    let mut start = 0;
    while let Err(error) = std::str::from_utf8(&text[start..]) {
        let bad = start + error.valid_up_to();
        let end = error.error_len().map_or(text.len(), |length| bad + length);
        text[bad..end].fill(b'?');
        start = end;
    }
}

/// Writes what stands for a content header of this length, of which `frame` is the start, and keeps most of its
/// properties.
fn replace(frame: &[u8], length: usize, most: usize, out: &mut BytesMut) {
    const ONLY_HEADERS: u16 = 1 << 13;
    let original = &frame[FRAME_HEAD + CONTENT_HEAD..frame.len().min(length - 1)];
    let kept = &original[..original.len().min(most)];
    let mut table = Vec::with_capacity(kept.len() + 64);
    put_name(UNREADABLE_HEADER, &mut table);
    table.push(b'S');
    put_size(kept.len(), &mut table);
    table.extend_from_slice(kept);
    if frame.len() < length || kept.len() < original.len() {
        put_name(CUT_HEADER, &mut table);
        table.extend_from_slice(&[b't', 1]);
    }
    let mut payload = frame[FRAME_HEAD..FRAME_HEAD + CONTENT_HEAD].to_vec();
    payload.extend_from_slice(&ONLY_HEADERS.to_be_bytes());
    put_size(table.len(), &mut payload);
    payload.extend_from_slice(&table);
    let mut head = frame[..3].to_vec();
    put_size(payload.len(), &mut head);
    out.extend_from_slice(&head);
    out.extend_from_slice(&payload);
    out.extend_from_slice(&[FRAME_END]);
}

fn put_size(size: usize, out: &mut Vec<u8>) {
    // Everything that is measured here is smaller than a frame.
    out.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_name(name: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
}

/// Whether the library can read these properties, the flags first.
fn are_readable(mut properties: &[u8]) -> bool {
    read_properties(&mut properties).is_some() && properties.is_empty()
}

fn read_properties(bytes: &mut &[u8]) -> Option<()> {
    let flags = u16::from_be_bytes(take(bytes, 2)?.try_into().ok()?);
    // From the highest bit: content_type, content_encoding, headers, delivery_mode, priority, correlation_id,
    // reply_to, expiration, message_id, timestamp, type, user_id, app_id, cluster_id. The library does not look at
    // the last two bits.
    for (index, kind) in "sshbbsssstssss".bytes().enumerate() {
        if flags & (1 << (15 - index)) == 0 {
            continue;
        }
        match kind {
            b's' => short_string(bytes)?,
            b'h' => table(long_bytes(bytes)?, 1)?,
            b'b' => drop(take(bytes, 1)?),
            _ => drop(take(bytes, 8)?),
        }
    }
    Some(())
}

fn table(mut bytes: &[u8], depth: usize) -> Option<()> {
    while !bytes.is_empty() {
        short_string(&mut bytes)?;
        value(&mut bytes, depth)?;
    }
    Some(())
}

fn array(mut bytes: &[u8], depth: usize) -> Option<()> {
    while !bytes.is_empty() {
        value(&mut bytes, depth)?;
    }
    Some(())
}

fn value(bytes: &mut &[u8], depth: usize) -> Option<()> {
    let fixed = match take(bytes, 1)?[0] {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        b'S' | b'x' => return long_bytes(bytes).map(drop),
        b'A' if depth < MAX_DEPTH => return array(long_bytes(bytes)?, depth + 1),
        b'F' if depth < MAX_DEPTH => return table(long_bytes(bytes)?, depth + 1),
        _ => return None,
    };
    take(bytes, fixed).map(drop)
}

fn short_string(bytes: &mut &[u8]) -> Option<()> {
    let length = take(bytes, 1)?[0];
    std::str::from_utf8(take(bytes, length.into())?).ok().map(drop)
}

fn long_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(take(bytes, 4)?.try_into().ok()?);
    take(bytes, length as usize)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    bytes.split_off(..length)
}

#[cfg(test)]
mod tests {
    use lapin::{BasicProperties, protocol::basic::parse_properties, types::AMQPValue};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MESSAGE_ID: u16 = 1 << 7;
    const HEADERS: u16 = 1 << 13;

    fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 7];
        put_size(payload.len(), &mut frame);
        [frame, payload.to_vec(), vec![FRAME_END]].concat()
    }

    fn content(properties: &[u8]) -> Vec<u8> {
        framed(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], properties].concat())
    }

    fn with(flags: u16, list: &[u8]) -> Vec<u8> {
        [&flags.to_be_bytes()[..], list].concat()
    }

    fn long(kind: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut out = kind.to_vec();
        put_size(bytes.len(), &mut out);
        out.extend_from_slice(bytes);
        out
    }

    fn short(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_name(text, &mut out);
        out
    }

    fn nested(levels: usize) -> Vec<u8> {
        let mut value = vec![b'V'];
        for _ in 0..levels {
            value = long(b"A", &value);
        }
        with(HEADERS, &long(b"", &[short("deep"), value].concat()))
    }

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

    fn bad() -> Vec<Vec<u8>> {
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

    /// A delivery to consumer `c1` of a message with this exchange and routing key.
    fn delivery(exchange: &[u8], key: &[u8]) -> Vec<u8> {
        let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()][..], text].concat();
        let tag = [&7_u64.to_be_bytes()[..], &[1]].concat();
        framed(METHOD, &[&DELIVER[..], &text(b"c1"), &tag, &text(exchange), &text(key)].concat())
    }

    #[test]
    fn names_of_a_delivery_that_are_not_utf_8_are_mended_wherever_the_stream_is_cut() {
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

    fn tune(frame_max: u32) -> Vec<u8> {
        framed(METHOD, &[&TUNE[..], &[0, 0], &frame_max.to_be_bytes(), &[0, 60]].concat())
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
            let kept = limit - AROUND_KEPT;
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
        let headers =
            |size: usize| with(HEADERS, &long(b"", &[short("n"), long(b"S", &vec![0; size])].concat()));
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
            assert_eq!(original(replaced), (properties[..limit - AROUND_KEPT].to_vec(), true));
        }
    }

    #[test]
    fn what_is_no_stream_of_frames_passes() {
        let mut no_end = content(&bad()[0]);
        *no_end.last_mut().unwrap() = 0;
        let other_version = [&b"AMQP\0\0\x09\x02"[..], &framed(METHOD, b"x")].concat();
        for stream in [&b"HTTP/1.1 400 Bad Request"[..], &no_end, &other_version, &framed(HEADER, b"short")] {
            assert_eq!(filtered(stream, &[usize::MAX]), stream);
            assert_eq!(filtered(stream, &[1]), stream);
        }
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let fixed = [(&b"V"[..], 0), (b"tbB", 1), (b"sUu", 2), (b"Iif", 4), (b"D", 5), (b"LldT", 8)];
        let fixed = fixed.into_iter().flat_map(|(kinds, size)| kinds.iter().map(move |kind| (*kind, size)));
        let fixed = proptest::sample::select(fixed.collect::<Vec<_>>());
        let leaf = prop_oneof![
            (fixed, any::<[u8; 8]>())
                .prop_map(|((kind, size), bytes)| [&[kind][..], &bytes[..size]].concat()),
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

    fn entries(value: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        vec(("[a-zäö]{0,4}", value), 0..4).prop_map(|entries| {
            entries.into_iter().flat_map(|(name, value)| [short(&name), value].concat()).collect()
        })
    }

    /// All properties that the flags name, and headers of every kind.
    fn properties() -> impl Strategy<Value = Vec<u8>> {
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
}
