//! Methods in which publishers choose text, or the broker proposes the largest frame.

use std::ops::Range;

use super::frame::FRAME_HEAD;

/// Class and method of a delivery.
pub(super) const DELIVER: [u8; 4] = [0, 60, 0, 60];

/// Class and method of what the broker proposes when a connection begins.
pub(super) const TUNE: [u8; 4] = [0, 10, 0, 30];

/// The largest frame that the broker proposes, in bytes, if this is the frame in which it does.
pub(super) fn proposed_frame_max(frame: &[u8]) -> Option<u32> {
    // The highest channel comes first.
    let (method, arguments) = frame.get(FRAME_HEAD..)?.split_at_checked(TUNE.len())?;
    let frame_max = arguments.get(2..6).filter(|_| method == TUNE)?;
    frame_max.try_into().ok().map(u32::from_be_bytes)
}

/// Whether the library can read the exchange and the routing key, if this frame is a delivery.
pub(super) fn has_readable_names(frame: &[u8]) -> bool {
    delivery_names(frame).into_iter().all(|name| std::str::from_utf8(&frame[name]).is_ok())
}

/// Puts question marks in the place of what is not UTF-8 in the exchange and the routing key.
pub(super) fn make_names_readable(frame: &mut [u8]) {
    for name in delivery_names(frame) {
        replace_invalid_utf8(&mut frame[name]);
    }
}

/// Where the exchange and the routing key are in a delivery. Both are empty in another frame.
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

fn replace_invalid_utf8(text: &mut [u8]) {
    let mut start = 0;
    while let Err(error) = std::str::from_utf8(&text[start..]) {
        let bad = start + error.valid_up_to();
        let end = error.error_len().map_or(text.len(), |length| bad + length);
        text[bad..end].fill(b'?');
        start = end;
    }
}
