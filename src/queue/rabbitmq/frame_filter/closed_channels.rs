//! The way to the broker: frames on a channel that has been closed, by either side, are left out.

use std::collections::HashMap;

use super::frame::{FRAME_HEAD, FrameLength, METHOD, frame_length};

/// Class and method of `channel.open`, `channel.close` and `channel.close-ok`.
pub(super) const OPEN: [u8; 4] = [0, 20, 0, 10];
pub(super) const CLOSE: [u8; 4] = [0, 20, 0, 40];
pub(super) const CLOSE_OK: [u8; 4] = [0, 20, 0, 41];

/// A decoder of the stream of frames that the library writes, in chunks of any size.
#[derive(Debug, Default)]
pub(in super::super) struct ClosedChannels {
    /// The channels that the library has closed, or whose close it has confirmed, and that were not opened since: up to as
    /// many as were agreed on. Whether it has confirmed, which it may have to where it has closed, too.
    closed: HashMap<[u8; 2], bool>,
    /// Bytes that pass, and bytes that are left out: the rest of frames that were judged. One of them is zero.
    bytes_to_pass: usize,
    bytes_to_discard: usize,
    /// The start of a frame that cannot be judged yet.
    frame_start: Vec<u8>,
}

/// What to do with the start of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Outgoing {
    /// Up to so many bytes may be written; [`ClosedChannels::wrote`] has to be told how many were.
    Pass(usize),
    /// So many bytes are dealt with, and these have to be written before anything that is behind them.
    Consumed(usize, Vec<u8>),
}

impl ClosedChannels {
    /// Judges the start of a chunk that is not empty.
    pub(in super::super) fn judge(&mut self, chunk: &[u8]) -> Outgoing {
        if !self.frame_start.is_empty() {
            return self.complete_start(chunk);
        }
        while self.bytes_to_discard == 0 && self.bytes_to_pass < chunk.len() {
            match self.judge_frame(&chunk[self.bytes_to_pass..]) {
                Some((length, true)) => self.bytes_to_pass = self.bytes_to_pass.saturating_add(length),
                // What is in front of the frame goes first.
                _ if self.bytes_to_pass > 0 => break,
                Some((length, false)) => self.bytes_to_discard = length,
                None => {
                    self.frame_start.extend_from_slice(chunk);
                    return Outgoing::Consumed(chunk.len(), Vec::new());
                }
            }
        }
        if self.bytes_to_discard > 0 {
            let discarded = self.bytes_to_discard.min(chunk.len());
            self.bytes_to_discard -= discarded;
            return Outgoing::Consumed(discarded, Vec::new());
        }
        Outgoing::Pass(self.bytes_to_pass.min(chunk.len()))
    }

    pub(in super::super) fn wrote(&mut self, bytes: usize) {
        self.bytes_to_pass -= bytes;
    }

    /// Takes bytes until the frame that has started can be judged. A frame is longer than that, so more will come.
    fn complete_start(&mut self, chunk: &[u8]) -> Outgoing {
        let mut start = std::mem::take(&mut self.frame_start);
        for (index, byte) in chunk.iter().enumerate() {
            start.push(*byte);
            if let Some((length, passes)) = self.judge_frame(&start) {
                let rest = length.saturating_sub(start.len());
                if passes {
                    self.bytes_to_pass = rest;
                    return Outgoing::Consumed(index + 1, start);
                }
                self.bytes_to_discard = rest;
                return Outgoing::Consumed(index + 1, Vec::new());
            }
        }
        self.frame_start = start;
        Outgoing::Consumed(chunk.len(), Vec::new())
    }

    /// The length of the frame that starts here and whether it passes, or `None` if too little of it is there.
    fn judge_frame(&mut self, bytes: &[u8]) -> Option<(usize, bool)> {
        let (FrameLength::Inspected(length) | FrameLength::Uninspected(length)) = frame_length(bytes)?;
        let [kind, high, low, ..] = *bytes else { return Some((length, true)) };
        let channel = [high, low];
        let is_open = !self.closed.contains_key(&channel);
        let passes = match (kind, if kind == METHOD { bytes.get(FRAME_HEAD..FRAME_HEAD + 4)? } else { &[] }) {
            (b'A', _) => true,
            (_, method) if method == OPEN => {
                self.closed.remove(&channel);
                true
            }
            (_, method) if method == CLOSE => {
                self.closed.entry(channel).or_insert(false);
                is_open
            }
            (_, method) if method == CLOSE_OK => self.closed.insert(channel, true) != Some(true),
            _ => is_open,
        };
        Some((length, passes))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            frame::{BODY, HEADER, HEARTBEAT},
            samples::framed,
        },
        *,
    };

    fn on(channel: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = framed(kind, payload);
        frame[1..3].copy_from_slice(&[0, channel]);
        frame
    }

    /// What is written when the library offers chunks of this size and the socket takes so many bytes at once.
    fn written(stream: &[u8], chunk: usize, taken: usize) -> Vec<u8> {
        let (mut gate, mut out, mut rest) = (ClosedChannels::default(), Vec::new(), stream);
        while !rest.is_empty() {
            match gate.judge(&rest[..rest.len().min(chunk)]) {
                Outgoing::Pass(length) => {
                    let length = length.min(taken);
                    gate.wrote(length);
                    out.extend_from_slice(&rest[..length]);
                    rest = &rest[length..];
                }
                Outgoing::Consumed(length, start) => {
                    assert!(length > 0);
                    out.extend_from_slice(&start);
                    rest = &rest[length..];
                }
            }
        }
        out
    }

    #[test]
    fn frames_of_a_closed_channel_are_left_out_until_it_is_open_again_wherever_the_stream_is_cut() {
        let publish = |channel| {
            [
                on(channel, METHOD, &[0, 60, 0, 40, 0, 0, 0, 0, 0]),
                on(channel, HEADER, &[0; 14]),
                on(channel, BODY, b"hello"),
            ]
            .concat()
        };
        let open = |channel| on(channel, METHOD, &OPEN);
        let (close, close_ok) =
            (|channel| on(channel, METHOD, &CLOSE), |channel| on(channel, METHOD, &CLOSE_OK));
        let heartbeat = framed(HEARTBEAT, b"");
        let before =
            [&b"AMQP\0\0\x09\x01"[..], &open(1), &open(2), &publish(1), &publish(2), &close_ok(1)].concat();
        let left_out = [publish(1), close(1), close_ok(1), on(1, BODY, &[7; 100])].concat();
        // The library closes a channel, and confirms that the broker does so at the same time.
        let (closes, confirms) = (close(2), close_ok(2));
        let after = [&heartbeat[..], &open(1), &publish(1), &open(2), &publish(2), &heartbeat].concat();
        let stream = [
            &before[..],
            &left_out,
            &publish(2),
            &left_out,
            &closes,
            &publish(2),
            &close(2),
            &confirms,
            &confirms,
            &after,
        ];
        let (stream, expected) =
            (stream.concat(), [&before[..], &publish(2), &closes, &confirms, &after].concat());
        for chunk in 1..=stream.len() {
            for taken in [1, 7, stream.len()] {
                assert_eq!(written(&stream, chunk, taken), expected, "{chunk} {taken}");
            }
        }
    }
}
