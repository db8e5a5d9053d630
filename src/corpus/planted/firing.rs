//! How often features fire, by rank.

/// `min(c r^-exponent, cap)` for ranks r = 1.., with c such that the sum is `l0`. The caller has checked `l0 <= cap * n`.
pub(super) fn zipf(n: usize, exponent: f64, l0: f64, cap: f64) -> Vec<f64> {
    let weights: Vec<f64> = (1..=n).map(|r| (r as f64).powf(-exponent)).collect();
    // Weights descend, so the capped ones are the first few: cap one more until the next fits below.
    let mut tail: f64 = weights.iter().sum();
    let mut capped = 0;
    let mut c = l0 / tail;
    while capped < n && c * weights[capped] > cap {
        tail -= weights[capped];
        capped += 1;
        c = if capped < n { (l0 - cap * capped as f64).max(0.0) / tail } else { 0.0 };
    }
    weights.iter().enumerate().map(|(i, w)| if i < capped { cap } else { c * w }).collect()
}

/// A Zipf law stretched to run from `most` (rank 1) to `least` (rank n).
pub(super) fn zipf_between(n: usize, exponent: f64, least: f64, most: f64) -> Vec<f64> {
    let last = (n as f64).powf(-exponent);
    let stretch = if last < 1.0 { (most - least) / (1.0 - last) } else { 0.0 };
    (1..=n).map(|r| most - stretch * (1.0 - (r as f64).powf(-exponent))).collect()
}

/// From `first` (rank 1) to `last` (rank n), linear in rank.
pub(super) fn linear(n: usize, first: f64, last: f64) -> Vec<f64> {
    let span = (n.max(2) - 1) as f64;
    (0..n).map(|i| first + (last - first) * i as f64 / span).collect()
}
