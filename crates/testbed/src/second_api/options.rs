//! How the API misbehaves.

use std::time::Duration;

use super::mischief::Mischief;

/// How the API misbehaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The loopback port, 0 for any. One that is to be there again after [`Running::go_away`](super::Running::go_away) is better named,
    /// from below the range of outgoing connections.
    pub port: u16,
    /// The only key that is accepted.
    pub api_key: String,
    /// What happens to the n-th call of a job, or to the n-th look-up of something, follows from this alone.
    pub seed: u64,
    /// How often.
    pub rates: Rates,
    /// What may happen to calls; each with the same probability.
    pub mischief: Vec<Mischief>,
    /// How long a call hangs. Longer than the client waits, or it is only slow.
    pub hang: Duration,
    /// The longest time from the arrival of a call to its late effect.
    pub late: Duration,
    /// The longest time from an effect to its entry in the log.
    pub log_delay: Duration,
    /// How long the log shows nothing at a time. Longer than a look-up and its repetitions take.
    pub log_blackout: Duration,
    /// The size of a huge body, in bytes.
    pub huge: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            api_key: "ak_second".to_owned(),
            seed: 0,
            rates: Rates::default(),
            mischief: Mischief::ALL.to_vec(),
            hang: Duration::from_secs(10),
            late: Duration::from_secs(5),
            log_delay: Duration::from_secs(2),
            log_blackout: Duration::from_secs(5),
            huge: 9 * 1024 * 1024,
        }
    }
}

/// Probabilities of misbehaviour, from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// A request is cut off before it is read.
    pub connection: f64,
    /// Something is wrong with a call.
    pub call: f64,
    /// Something is wrong with a look-up of a tool, a toolkit or an account.
    pub look_up: f64,
    /// Something is wrong with a look into the log.
    pub log: f64,
    /// The log shows nothing for a while.
    pub blackout: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { connection: 0.02, call: 0.3, look_up: 0.1, log: 0.2, blackout: 0.3 }
    }
}
