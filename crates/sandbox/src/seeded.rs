//! Pseudo-random decisions that follow from the seed: they look random and are not.
//!
//! Every draw is a pure function of the seed, of what is being decided, and of the request it is
//! decided for. Two runs with the same seed and the same requests make the same decisions, in
//! whatever order the requests happen to arrive.

const FNV_OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// A 128-bit name for a text, wide enough that two texts never share one in practice (FNV-1a).
pub(super) fn fingerprint(text: &str) -> u128 {
    text.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(FNV_PRIME))
}

/// A well-mixed number that depends on each of its inputs.
pub(super) fn draw(seed: u64, salt: u64, key: u128) -> u64 {
    let low = mix(seed ^ mix(key as u64));
    let high = mix(low ^ (key >> 64) as u64);
    mix(high ^ mix(salt))
}

/// A draw as a fraction, at least 0 and less than 1.
pub(super) fn fraction(seed: u64, salt: u64, key: u128) -> f64 {
    (draw(seed, salt, key) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Ten characters that are safe in a URL, from a number.
pub(super) fn token(mut number: u64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..10)
        .map(|_| {
            let symbol = char::from(ALPHABET[(number % 64) as usize]);
            number /= 64;
            symbol
        })
        .collect()
}

/// The finalizer of splitmix64.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_salt_and_key_and_on_nothing_else() {
        let key = fingerprint("job-1");
        assert_eq!(draw(1, 2, key), draw(1, 2, key));
        assert_ne!(draw(1, 2, key), draw(2, 2, key));
        assert_ne!(draw(1, 2, key), draw(1, 3, key));
        assert_ne!(draw(1, 2, key), draw(1, 2, fingerprint("job-2")));
    }

    #[test]
    fn fractions_spread_evenly() {
        let below = (0..10_000_u32).filter(|n| fraction(7, 0, fingerprint(&n.to_string())) < 0.25).count();
        assert!((2_300..2_700).contains(&below), "{below} of 10000 were below a quarter");
    }
}
