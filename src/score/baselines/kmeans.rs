//! Directions from the mean to the centroids of k-means: a dictionary that knows where the rows are, and not how they add up.
//!
//! k-means++ on a part of the sample, then Lloyd. Distances are f32 products, centroids are f64 means in row order.

use rayon::prelude::*;

use super::{normalise, BaselineConfig, Sample};
use crate::error::Result;
use crate::kernels::sq_norm;
use crate::rng::Rng;
use crate::score::decoder::products;

/// k-means++ draws among the first rows only: it visits all of them once per centroid.
const SEEDING_ROWS: usize = 8192;
/// Lloyd ends when fewer than one row in so many changes its centroid.
const SETTLED: usize = 200;
/// Rows whose distances one task computes.
const BLOCK: usize = 256;

/// `[at most min(d_sae, max_centroids), d]`, unit; a centroid at the mean has no direction and is left out.
pub fn atoms(sample: &Sample, config: &BaselineConfig) -> Result<Vec<f32>> {
    let wanted = config.d_sae.min(config.max_centroids).max(1);
    let mut centroids = seed(sample, wanted, &mut Rng::stream(config.seed, "baseline kmeans", 0));
    let mut nearest = vec![u32::MAX; sample.n];
    for _ in 0..config.lloyd_iterations {
        let now = assign(sample, &centroids);
        let moved = now.iter().zip(&nearest).filter(|(a, b)| a != b).count();
        nearest = now;
        recentre(sample, &nearest, &mut centroids);
        if moved * SETTLED < sample.n {
            break;
        }
    }
    let mut atoms = Vec::with_capacity(centroids.len());
    for centroid in centroids.chunks_exact_mut(sample.d) {
        if normalise(centroid) {
            atoms.extend_from_slice(centroid);
        }
    }
    Ok(atoms)
}

/// k-means++: each next centroid is a row drawn with its squared distance to the nearest one so far as weight. Fewer than `wanted` when
/// the rows have fewer different values.
fn seed(sample: &Sample, wanted: usize, rng: &mut Rng) -> Vec<f32> {
    let n = sample.n.min(SEEDING_ROWS);
    let mut distances = vec![f64::INFINITY; n];
    let mut chosen = rng.below(n as u64) as usize;
    let mut centroids = Vec::with_capacity(wanted * sample.d);
    loop {
        centroids.extend_from_slice(sample.row(chosen));
        let centre = sample.row(chosen);
        distances.par_iter_mut().enumerate().for_each(|(r, best)| {
            let gap = f64::from(sq_distance(sample.row(r), centre));
            *best = best.min(gap);
        });
        if centroids.len() == wanted * sample.d || distances.iter().sum::<f64>() <= 0.0 {
            return centroids;
        }
        chosen = rng.weighted(&distances);
    }
}

/// `||a - b||^2` in sixteen fixed lanes (a plain sum would not be vectorised). Zero exactly when the rows are equal, which the product
/// form is not: that is how `seed` knows that the rows are used up.
fn sq_distance(a: &[f32], b: &[f32]) -> f32 {
    let (mut lanes, (wide_a, rest_a), (wide_b, rest_b)) = ([0f32; 16], a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in wide_a.iter().zip(wide_b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += (a - b) * (a - b);
        }
    }
    rest_a.iter().zip(rest_b).fold(lanes.iter().sum(), |sum, (a, b)| sum + (a - b) * (a - b))
}

/// Nearest centroid of each row; the lowest index wins a tie.
fn assign(sample: &Sample, centroids: &[f32]) -> Vec<u32> {
    let d = sample.d;
    let half_norms: Vec<f32> = centroids.chunks_exact(d).map(|c| 0.5 * sq_norm(c)).collect();
    let mut nearest = vec![0u32; sample.n];
    nearest.par_chunks_mut(BLOCK).zip(sample.centred.par_chunks(BLOCK * d)).for_each(|(nearest, rows)| {
        let mut dots = vec![0f32; nearest.len() * half_norms.len()];
        products(rows, centroids, d, &mut dots);
        for (nearest, dots) in nearest.iter_mut().zip(dots.chunks_exact(half_norms.len())) {
            // ||x - c||^2 = ||x||^2 - 2 (<x, c> - ||c||^2 / 2): the nearest has the largest bracket.
            let mut best = f32::NEG_INFINITY;
            for (c, (dot, half)) in dots.iter().zip(&half_norms).enumerate() {
                if dot - half > best {
                    best = dot - half;
                    *nearest = c as u32;
                }
            }
        }
    });
    nearest
}

/// Each centroid becomes the mean of its rows; one without rows stays.
fn recentre(sample: &Sample, nearest: &[u32], centroids: &mut [f32]) {
    let d = sample.d;
    let mut sums = vec![0f64; centroids.len()];
    let mut counts = vec![0u64; centroids.len() / d];
    for (r, &c) in nearest.iter().enumerate() {
        let c = c as usize;
        counts[c] += 1;
        sums[c * d..(c + 1) * d].iter_mut().zip(sample.row(r)).for_each(|(s, &v)| *s += f64::from(v));
    }
    for ((centroid, sum), &count) in centroids.chunks_exact_mut(d).zip(sums.chunks_exact(d)).zip(&counts) {
        if count > 0 {
            centroid.iter_mut().zip(sum).for_each(|(c, s)| *c = (s / count as f64) as f32);
        }
    }
}
