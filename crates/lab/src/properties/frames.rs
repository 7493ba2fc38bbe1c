//! Streams of AMQP frames from the broker.

use errand::queue::rabbitmq::{MAX_BUFFERED_BYTES, filter_frames};

/// The limits of frames that are tried, in bytes: any, and the smallest.
const FRAME_LIMITS: [u32; 2] = [0, 4096];

/// Takes the bytes as what the broker sends, and reads it through the frame filter. Returns whether it comes through
/// as it is, is changed, or ends within a frame that is kept back.
///
/// # Panics
/// A property does not hold.
pub fn frames(bytes: &[u8]) -> &'static str {
    for frame_max in FRAME_LIMITS {
        let whole = in_one_read(bytes, frame_max);
        for sizes in [vec![1], vec![7], vec![4096], random_sizes(bytes)] {
            let largest = sizes.iter().max().copied().unwrap_or(0);
            let read = filter_frames(bytes, frame_max, &sizes);
            assert!(read.bytes == whole, "reads of {sizes:?} bytes give something else than one read");
            assert!(
                read.most_buffered <= MAX_BUFFERED_BYTES + largest,
                "{} bytes buffered",
                read.most_buffered
            );
        }
        let again = filter_frames(&whole, frame_max, &[4096]).bytes;
        assert!(again == whole, "what was filtered is changed when it is filtered again");
    }
    let whole = in_one_read(bytes, 0);
    if whole == bytes {
        "passed"
    } else if bytes.starts_with(&whole) {
        "unfinished"
    } else {
        "replaced"
    }
}

fn in_one_read(bytes: &[u8], frame_max: u32) -> Vec<u8> {
    filter_frames(bytes, frame_max, &[bytes.len().max(1)]).bytes
}

/// Sizes of reads that belong to these bytes, so that a find can be repeated.
fn random_sizes(bytes: &[u8]) -> Vec<usize> {
    let seed = bytes.iter().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut random = fastrand::Rng::with_seed(seed);
    (0..8).map(|_| random.usize(1..64)).collect()
}
