//! 1b: between k-means and local PCA (Budd et al., arXiv 2505.11836). At equal numbers of cells, a TopK SAE with k = 1 (an affine map of rank
//! 1 per cell, all flats through `b_dec`) lies between the k-means autoencoder (a constant per cell) and a line per cell. MNIST, 8 x 8.

use rayon::prelude::*;

use super::images::{shrunk, Mnist};
use super::lab::{Lab, Toy};
use super::report::{Row, Table};
use super::rows::{Set, Shuffled};
use super::Outcome;
use crate::error::Result;
use crate::rng::Rng;
use crate::sae::{SaeConfig, TopKConfig};
use crate::score::baselines::eigenvectors;

const CELLS: usize = 10;
const TRAIN_ROWS: usize = 3000;
const TEST_ROWS: usize = 2000;
/// Starts of k-means, the best of which is kept.
const RESTARTS: u64 = 10;
const ITERATIONS: usize = 100;

/// In one line.
pub const ASSERTION: &str = "test FVU of k-means > TopK SAE, k = 1 > k-means + PCA1 >= K-subspaces at 10 cells";

/// Weight of a seed in the progress.
pub const WEIGHT: u64 = 4;

const KMEANS: &str = "k-means";
const SAE: &str = "TopK SAE, k = 1";
const LINES: &str = "k-means + PCA1";
const SUBSPACES: &str = "K-subspaces";

/// Fits all four, judges their order.
pub fn run(lab: &Lab<'_>, mnist: &Mnist) -> Result<Outcome> {
    let mut table = Table::new(
        &["1b"],
        format!("MNIST averaged to 8 x 8, {TRAIN_ROWS} training and {TEST_ROWS} test rows per seed, {CELLS} cells: test FVU"),
    );
    let (train, test) = (shrunk(&mnist.train), shrunk(&mnist.test));
    for &seed in lab.seeds {
        lab.status(&format!("1b: seed {seed}"));
        let (train, test) = (train.split(TRAIN_ROWS, seed).0, test.split(TEST_ROWS, seed).0);
        let (centres, cells) = kmeans(&train, CELLS, seed);
        let lines = Flats::fit(&train, &cells, &centres)?;
        table.add(KMEANS, "FVU", fvu(&test, |x| centres.nearest(x).1));
        let learner = SaeConfig::TopK(TopKConfig { d_sae: CELLS, k: 1, ..Default::default() });
        let toy = Toy { init_rows: TRAIN_ROWS, ..Toy::default() };
        let (trained, _) = lab.train(&mut Shuffled::new(&train, seed)?, seed, &toy, &[learner])?;
        table.add(SAE, "FVU", lab.metric("fvu", &trained, &test.batch())?[0]);
        table.add(SAE, "dead", lab.metric("dead_fraction", &trained, &test.batch())?[0] * CELLS as f64);
        table.add(LINES, "FVU", fvu(&test, |x| lines.error(x, centres.nearest(x).0)));
        let subspaces = subspaces(&train, &cells, &centres)?;
        table.add(SUBSPACES, "FVU", fvu(&test, |x| subspaces.nearest(x).1));
        lab.finished(&format!("1b: seed {seed}"), WEIGHT);
    }
    let cell = |name: &str, seed: usize| table.get(name, "FVU").values[seed];
    let order = [KMEANS, SAE, LINES, SUBSPACES];
    let mut rows = Vec::new();
    for pair in order.windows(2) {
        let last = pair[1] == SUBSPACES;
        let held: Vec<bool> = (0..lab.seeds.len())
            .map(|s| {
                let (a, b) = (cell(pair[0], s), cell(pair[1], s));
                if last {
                    a >= b
                } else {
                    a > b
                }
            })
            .collect();
        let sign = if last { ">=" } else { ">" };
        let measured = format!("{} and {}", table.get(pair[0], "FVU"), table.get(pair[1], "FVU"));
        let assertion = format!("test FVU of {} {sign} {}", pair[0], pair[1]);
        rows.push(Row::judged("1b", &assertion, &assertion.replace("test ", ""), measured, &held, &format!("{CELLS} cells each")));
    }
    Ok(Outcome { rows, tables: vec![table], figures: Vec::new() })
}

/// Sum of `error` over rows, over their squared distance from their mean.
fn fvu(set: &Set, error: impl Fn(&[f32]) -> f64 + Sync + Send) -> f64 {
    let errors: Vec<f64> = set.x.par_chunks_exact(set.d).map(error).collect();
    let mut mean = vec![0f64; set.d];
    for row in set.x.chunks_exact(set.d) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / set.len() as f64);
    }
    let spread: f64 = set.x.chunks_exact(set.d).map(|row| sq_distance(row, &mean)).sum();
    errors.iter().sum::<f64>() / spread
}

fn sq_distance(x: &[f32], centre: &[f64]) -> f64 {
    x.iter().zip(centre).map(|(x, c)| (f64::from(*x) - c).powi(2)).sum()
}

/// Index and value of the least; the first of equals.
fn least(values: impl Iterator<Item = f64>) -> (usize, f64) {
    values.enumerate().fold((0, f64::INFINITY), |best, (i, v)| if v < best.1 { (i, v) } else { best })
}

/// A constant per cell.
struct Centres(Vec<Vec<f64>>);

impl Centres {
    fn nearest(&self, x: &[f32]) -> (usize, f64) {
        least(self.0.iter().map(|c| sq_distance(x, c)))
    }
}

/// Cell of each row, and the sum of distances.
fn assign(set: &Set, nearest: impl Fn(&[f32]) -> (usize, f64) + Sync + Send) -> (Vec<usize>, f64) {
    let all: Vec<(usize, f64)> = set.x.par_chunks_exact(set.d).map(nearest).collect();
    (all.iter().map(|a| a.0).collect(), all.iter().map(|a| a.1).sum())
}

/// Mean of each cell; an empty one keeps its centre.
fn means(set: &Set, cells: &[usize], before: &Centres) -> Centres {
    let mut sums = vec![(vec![0f64; set.d], 0usize); before.0.len()];
    for (row, &cell) in set.x.chunks_exact(set.d).zip(cells) {
        sums[cell].0.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        sums[cell].1 += 1;
    }
    let mean =
        |((sum, n), old): ((Vec<f64>, usize), &Vec<f64>)| if n == 0 { old.clone() } else { sum.iter().map(|s| s / n as f64).collect() };
    Centres(sums.into_iter().zip(&before.0).map(mean).collect())
}

/// k-means++ and Lloyd, the best of several starts.
fn kmeans(set: &Set, k: usize, seed: u64) -> (Centres, Vec<usize>) {
    let mut best: Option<(f64, Centres, Vec<usize>)> = None;
    for restart in 0..RESTARTS {
        let mut rng = Rng::stream(seed, "claims.kmeans", restart);
        let row = |r: usize| set.row(r).iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let mut centres = Centres(vec![row(rng.below(set.len() as u64) as usize)]);
        while centres.0.len() < k {
            let distances: Vec<f64> = set.x.chunks_exact(set.d).map(|x| centres.nearest(x).1).collect();
            let next = rng.weighted(&distances);
            centres.0.push(row(next));
        }
        let (mut cells, mut loss) = assign(set, |x| centres.nearest(x));
        for _ in 0..ITERATIONS {
            centres = means(set, &cells, &centres);
            let (now, then) = assign(set, |x| centres.nearest(x));
            loss = then;
            if now == cells {
                break;
            }
            cells = now;
        }
        if best.as_ref().is_none_or(|b| loss < b.0) {
            best = Some((loss, centres, cells));
        }
    }
    let (_, centres, cells) = best.expect("there is at least one start");
    (centres, cells)
}

/// A line per cell: its mean and first principal axis.
struct Flats {
    means: Centres,
    axes: Vec<Vec<f64>>,
}

impl Flats {
    fn fit(set: &Set, cells: &[usize], before: &Centres) -> Result<Self> {
        let d = set.d;
        let means = means(set, cells, before);
        let mut axes = Vec::new();
        for (cell, mean) in means.0.iter().enumerate() {
            let mut covariance = vec![0f64; d * d];
            for row in set.x.chunks_exact(d).zip(cells).filter(|(_, c)| **c == cell).map(|(row, _)| row) {
                let centred: Vec<f64> = row.iter().zip(mean).map(|(v, m)| f64::from(*v) - m).collect();
                for (line, a) in covariance.chunks_exact_mut(d).zip(&centred) {
                    line.iter_mut().zip(&centred).for_each(|(c, b)| *c += a * b);
                }
            }
            let vectors = eigenvectors(&covariance, d)?;
            axes.push((0..d).map(|r| vectors[(r, d - 1)]).collect());
        }
        Ok(Self { means, axes })
    }

    /// Squared distance from the cell's line.
    fn error(&self, x: &[f32], cell: usize) -> f64 {
        let (mean, axis) = (&self.means.0[cell], &self.axes[cell]);
        let along: f64 = x.iter().zip(mean).zip(axis).map(|((x, m), u)| (f64::from(*x) - m) * u).sum();
        (sq_distance(x, mean) - along * along).max(0.0)
    }

    fn nearest(&self, x: &[f32]) -> (usize, f64) {
        least((0..self.axes.len()).map(|cell| self.error(x, cell)))
    }
}

/// Lloyd's iterations with lines instead of points, from the partition of k-means.
fn subspaces(set: &Set, cells: &[usize], centres: &Centres) -> Result<Flats> {
    let mut cells = cells.to_vec();
    let mut flats = Flats::fit(set, &cells, centres)?;
    for _ in 0..ITERATIONS {
        let now = assign(set, |x| flats.nearest(x)).0;
        if now == cells {
            break;
        }
        cells = now;
        flats = Flats::fit(set, &cells, &flats.means)?;
    }
    Ok(flats)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two lines that cross no cell of each other: y = 0 from 0 to 9, and x = 20 from 0 to 9.
    fn cross() -> Set {
        let x = (0..10).flat_map(|i| [i as f32, 0.0]).chain((0..10).flat_map(|i| [20.0, i as f32])).collect();
        Set { x, d: 2 }
    }

    #[test]
    fn lines_fit_what_points_cannot() {
        let set = cross();
        let (centres, cells) = kmeans(&set, 2, 0);
        assert!(cells[..10].iter().all(|c| *c == cells[0]) && cells[10..].iter().all(|c| *c != cells[0]));
        let point = fvu(&set, |x| centres.nearest(x).1);
        assert!(point > 0.05);
        let lines = Flats::fit(&set, &cells, &centres).unwrap();
        assert!(fvu(&set, |x| lines.error(x, centres.nearest(x).0)) < 1e-12);
        assert!(fvu(&set, |x| subspaces(&set, &cells, &centres).unwrap().nearest(x).1) < 1e-12);
        let one = Centres(vec![vec![0.0, 0.0]]);
        assert_eq!(means(&set, &[0; 20], &one).0, [[12.25, 2.25]]);
    }
}
