//! How figures are spread.

use std::fmt;

use serde::Serialize;

/// The spread of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    /// How many figures there are.
    pub(super) count: usize,
    pub(super) lowest: f64,
    pub(super) lower_quartile: f64,
    pub(super) median: f64,
    pub(super) upper_quartile: f64,
    pub(super) highest: f64,
}

impl Spread {
    /// The spread of some figures; `None` when there are none.
    pub(super) fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (Some(lowest), Some(highest)) = (figures.first(), figures.last()) else { return None };
        Some(Self {
            count: figures.len(),
            lowest: *lowest,
            lower_quartile: percentile(&figures, 0.25),
            median: percentile(&figures, 0.5),
            upper_quartile: percentile(&figures, 0.75),
            highest: *highest,
        })
    }
}

impl fmt::Display for Spread {
    /// Such as `1.040 (quartiles 1.020 and 1.070, from 0.980 to 1.100)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count: _, lowest, lower_quartile, median, upper_quartile, highest } = self;
        write!(
            f,
            "{median:.3} (quartiles {lower_quartile:.3} and {upper_quartile:.3}, from {lowest:.3} to {highest:.3})"
        )
    }
}

/// A percentile of sorted figures; the median of an even number is between the two in the middle.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = last as f64 * share;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_figures() {
        assert_eq!(percentile(&[], 0.5), 0.0);
        assert_eq!(percentile(&[4.0], 0.99), 4.0);
        assert_eq!(percentile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(percentile(&[1.0, 2.0, 9.0], 0.5), 2.0);
    }
}
