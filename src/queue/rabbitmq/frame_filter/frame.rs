//! The layout of AMQP 0-9-1 frames.

pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;
pub(super) const FRAME_END: u8 = 0xCE;

/// A frame's type, channel and size.
pub(super) const FRAME_HEAD: usize = 7;

/// What comes before the properties in a content header: class, weight and the size of the body.
pub(super) const CONTENT_HEAD: usize = 12;

/// The largest method that is inspected and the largest content header that passes, whatever was agreed, in bytes.
/// No more of a frame is buffered.
pub(in super::super) const MAX_FRAME: usize = 1024 * 1024;

/// A server that does not speak our version answers with `AMQP` and its own instead of a frame.
const PROTOCOL_HEADER: usize = 8;

/// The length of a frame in bytes, with its head and its end.
pub(super) enum FrameLength {
    Inspected(usize),
    Uninspected(usize),
}

/// The length of the frame that starts here, or `None` if its head is not complete.
pub(super) fn frame_length(bytes: &[u8]) -> Option<FrameLength> {
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
