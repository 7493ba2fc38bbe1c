//! A filter between the broker and the client library, which ends the connection at frames that it cannot read.
//!
//! The broker delivers a message again that ended a connection, so one message would stop every lane. Therefore what
//! publishers choose is inspected before the library reads it:
//!
//! * A content header that cannot be read is replaced by one that has the original in a header of its own,
//!   [`UNREADABLE_HEADER`]. So is one that is too large.
//! * In the exchange and the routing key of a delivery, which say nothing about the job, question marks take the
//!   place of what is not UTF-8.
//!
//! Everything else passes as it is.
//!
//! On the way to the broker, frames on a channel are left out when the library has closed it, or has confirmed that the
//! broker did. At such a frame the broker ends the connection, so one message that it does not take would end what other messages
//! wait for.
//!
//! # Upstream
//!
//! This is about lapin 4.12.3, which reads frames with amq-protocol 10.6.3:
//!
//! * `parse_short_string` of amq-protocol-types fails for what is not UTF-8: text properties, names of headers, exchange
//!   and routing key. RabbitMQ checks none of them. Values of headers had the same fault until they became bytes
//!   (<https://github.com/amqp-rs/amq-protocol/issues/28>); the maintainer says there that AMQP 0-9-1 allows nothing but
//!   UTF-8 in short strings. We know of no report about those.
//! * `IoLoop::parse` of lapin fails for a frame that is larger than was agreed. RabbitMQ splits no content header, adds
//!   headers of its own, and lets publishers send a few bytes more than a frame may have. We know of no report.
//! * `parse_value` of amq-protocol-types calls itself for each level of nested headers, until the stack of the thread is
//!   used up and the process dies. We know of no report.
//! * `Frames::pop` of lapin sends publishes after all other frames, so those that wait when their channel is closed come
//!   after that, or after the confirmation of it. We know of no report.
//!
//! The tests in `canary.rs` feed such frames to the library. One that fails names what the library can read now:
//! delete what this module does about it. When all fail, delete the module, `FilteredStream` and its reactor in
//! `stream.rs` with the dependency `async-rs`, and `Properties::unreadable`.

use bytes::{Buf as _, BytesMut};

use self::frame::{FRAME_END, FRAME_HEAD, FrameLength, METHOD, frame_length};

mod closed_channels;
mod content_header;
mod frame;
mod method;

#[cfg(test)]
mod canary;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

pub(super) use closed_channels::{ClosedChannels, Outgoing};
pub(super) use content_header::UNREADABLE_HEADER;
pub(super) use frame::MAX_FRAME;

/// The smallest limit of frames that can be agreed on, in bytes (AMQP 0-9-1, section 4.2.3).
const MIN_LIMIT: usize = 4096;

/// A decoder of a stream of frames that comes in chunks of any size.
#[derive(Debug)]
pub(super) struct FrameFilter {
    /// The largest frame that the library takes, in bytes, with its head and its end.
    limit: usize,
    /// Bytes that pass without inspection: the rest of a frame.
    bytes_to_pass: usize,
    /// Bytes that are left out: the rest of a content header that is too large.
    bytes_to_discard: usize,
    /// The start of a frame whose end has not come.
    frame_start: Vec<u8>,
    output: BytesMut,
}

/// What became of a chunk. What is behind `consumed` has to be filtered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filtered {
    /// Bytes at the start of the chunk that pass as they are.
    pub(super) passed: usize,
    /// Bytes at the start of the chunk that need not be filtered again. Those that did not pass come out of
    /// [`FrameFilter::take_output`], before anything that is behind them.
    pub(super) consumed: usize,
}

impl FrameFilter {
    /// A filter for a connection on which we ask for frames of up to `frame_max` bytes; zero means any.
    pub(super) fn new(frame_max: u32) -> Self {
        let (frame_start, output) = (Vec::new(), BytesMut::new());
        let mut filter =
            Self { limit: MAX_FRAME, bytes_to_pass: 0, bytes_to_discard: 0, frame_start, output };
        filter.lower_limit(frame_max);
        filter
    }

    /// The length in bytes up to which the next chunk is consumed whole.
    pub(super) fn next_chunk_limit(&self) -> usize {
        if self.frame_start.is_empty() { usize::MAX } else { self.missing_bytes() }
    }

    /// Inspects a chunk. The output has to be taken before.
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
            let uninspected = self.bytes_to_pass.min(chunk.len() - passed);
            self.bytes_to_pass -= uninspected;
            passed += uninspected;
            let rest = &chunk[passed..];
            if rest.is_empty() {
                return Filtered { passed, consumed: passed };
            }
            match frame_length(rest) {
                Some(FrameLength::Uninspected(length)) => self.bytes_to_pass = length,
                Some(FrameLength::Inspected(length))
                    if rest.get(..length).is_some_and(|frame| self.is_readable(frame)) =>
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

    /// Bytes that were consumed and did not come out yet: up to [`MAX_FRAME`].
    pub(super) fn buffered(&self) -> usize {
        self.frame_start.len() + self.output.len()
    }

    /// Buffers what belongs to the frame that has started, and returns how many bytes that were.
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

    /// How many bytes of the frame that has started are missing until it can be inspected, or its length is known.
    fn missing_bytes(&self) -> usize {
        let length = match frame_length(&self.frame_start) {
            Some(FrameLength::Inspected(length) | FrameLength::Uninspected(length)) => length.min(MAX_FRAME),
            None => FRAME_HEAD,
        };
        length - self.frame_start.len()
    }

    /// Writes a frame of this length, or what replaces it. All of it has come unless it is too large.
    fn finish_frame(&mut self, length: usize) {
        let mut frame = std::mem::take(&mut self.frame_start);
        if frame.len() == length && self.is_readable(&frame) {
            self.output.extend_from_slice(&frame);
        } else if frame[0] == METHOD {
            method::make_names_readable(&mut frame);
            self.output.extend_from_slice(&frame);
        } else {
            content_header::replace(&frame, length, self.limit, &mut self.output);
            self.bytes_to_discard = length - frame.len();
        }
    }

    /// Whether the library can read this frame. It does not look into one that ends wrongly.
    fn is_readable(&mut self, frame: &[u8]) -> bool {
        match frame {
            [METHOD, .., FRAME_END] => {
                if let Some(frame_max) = method::proposed_frame_max(frame) {
                    self.lower_limit(frame_max);
                }
                method::has_readable_names(frame)
            }
            [.., FRAME_END] => frame.len() <= self.limit && content_header::is_readable(frame),
            _ => true,
        }
    }

    /// Takes the smaller of two limits, as the library does. Zero means no limit.
    fn lower_limit(&mut self, frame_max: u32) {
        if frame_max > 0 {
            self.limit = self.limit.min((frame_max as usize).max(MIN_LIMIT));
        }
    }
}
