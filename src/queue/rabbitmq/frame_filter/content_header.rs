//! Content headers, which have the properties of a message: whether the client library can read one, and what is put
//! in its place if not.

use bytes::BytesMut;

use super::frame::{CONTENT_HEAD, FRAME_END, FRAME_HEAD};

/// The header with the original properties, in their binary form, of a message that cannot be read.
pub(in super::super) const UNREADABLE_HEADER: &str = "x-errand-unreadable";

/// The header that says that the end of the original properties is missing.
pub(super) const CUT_HEADER: &str = "x-errand-unreadable-cut";

/// Deepest nesting of headers that passes. The library's stack takes a few hundred.
pub(super) const MAX_DEPTH: usize = 32;

/// The most bytes of a replacement beside the original properties.
pub(super) const REPLACEMENT_OVERHEAD: usize = 256;

/// Whether the library can read the properties of this whole frame.
pub(super) fn is_readable(frame: &[u8]) -> bool {
    are_readable(&frame[FRAME_HEAD + CONTENT_HEAD..frame.len() - 1])
}

/// Writes what stands for a content header of this length, which starts with `frame`, in up to `limit` bytes.
pub(super) fn replace(frame: &[u8], length: usize, limit: usize, out: &mut BytesMut) {
    const ONLY_HEADERS: u16 = 1 << 13;
    let original = &frame[FRAME_HEAD + CONTENT_HEAD..frame.len().min(length - 1)];
    let kept = &original[..original.len().min(limit - REPLACEMENT_OVERHEAD)];
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

pub(super) fn put_size(size: usize, out: &mut Vec<u8>) {
    // Everything that is measured here is smaller than a frame.
    out.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
}

pub(super) fn put_name(name: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
}

/// Whether the library can read these properties, the flags first.
pub(super) fn are_readable(mut properties: &[u8]) -> bool {
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
