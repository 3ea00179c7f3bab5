//! Medians, quantiles and spreads. Pure.

use serde::{Deserialize, Serialize};

/// What some samples of one quantity come to, in the unit of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples.
    pub n: usize,
    /// The median.
    pub median: f64,
    /// The first quartile.
    pub q1: f64,
    /// The third quartile.
    pub q3: f64,
    /// The least sample.
    pub min: f64,
    /// The greatest sample.
    pub max: f64,
}

/// The quantile `q` (0 to 1) of `samples`, interpolated between neighbours; `None` without samples.
/// What is not a number counts as the greatest.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = last as f64 * q.clamp(0.0, 1.0);
    let below = *sorted.get(at.floor() as usize)?;
    let above = *sorted.get(at.ceil() as usize)?;
    Some(below + (above - below) * at.fract())
}

/// The median; `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// All of [`Summary`]; `None` without samples.
pub fn summarize(samples: &[f64]) -> Option<Summary> {
    Some(Summary {
        n: samples.len(),
        median: median(samples)?,
        q1: quantile(samples, 0.25)?,
        q3: quantile(samples, 0.75)?,
        min: quantile(samples, 0.0)?,
        max: quantile(samples, 1.0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(median(&[]), None);
        assert_eq!(quantile(&[], 0.9), None);
        assert_eq!(summarize(&[]), None);
    }

    #[test]
    fn the_order_of_samples_does_not_matter() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let samples = [10.0, 20.0, 30.0, 40.0, 50.0];
        assert_eq!(quantile(&samples, 0.25), Some(20.0));
        assert_eq!(quantile(&samples, 0.9), Some(46.0));
        assert_eq!(quantile(&samples, 1.0), Some(50.0));
        assert_eq!(quantile(&samples, 2.0), Some(50.0));
        assert_eq!(quantile(&samples, -1.0), Some(10.0));
    }

    #[test]
    fn a_summary_has_all_of_it() {
        let summary = summarize(&[4.0, 2.0, 1.0, 3.0, 100.0]).unwrap();
        let expected = Summary {
            n: 5,
            median: 3.0,
            q1: 2.0,
            q3: 4.0,
            min: 1.0,
            max: 100.0,
        };
        assert_eq!(summary, expected);
    }
}
