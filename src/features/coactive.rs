//! Which latents are active on the same rows.

use rayon::prelude::*;

use super::scan::by_latent;
use crate::codes::Codes;

/// Another latent that is often active with one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Partner {
    pub latent: u32,
    /// Both over either.
    pub jaccard: f32,
    /// log2 p(both) / (p(one) p(other)), bits.
    pub pmi: f32,
}

/// The `n` partners of each latent with the largest Jaccard index; equal ones by index. Counts are exact over the rows given.
pub(super) fn partners(codes: &Codes, n: usize) -> Vec<Vec<Partner>> {
    let (starts, entries) = by_latent(codes);
    let fires = |j: usize| (starts[j + 1] - starts[j]) as u64;
    let rows = codes.n_rows() as f64;
    (0..codes.d_sae)
        .into_par_iter()
        .map_init(
            || vec![0u32; codes.d_sae],
            |both, i| {
                // One counter per latent, and one latent at a time: no [d_sae, d_sae] table.
                both.iter_mut().for_each(|c| *c = 0);
                for &(row, _) in &entries[starts[i]..starts[i + 1]] {
                    codes.row(row as usize).0.iter().for_each(|&j| both[j as usize] += 1);
                }
                both[i] = 0;
                let mut found: Vec<Partner> = (0..codes.d_sae)
                    .filter(|&j| both[j] > 0)
                    .map(|j| {
                        let (c, a, b) = (u64::from(both[j]), fires(i), fires(j));
                        let pmi = (c as f64 * rows / (a as f64 * b as f64)).log2();
                        Partner { latent: j as u32, jaccard: (c as f64 / (a + b - c) as f64) as f32, pmi: pmi as f32 }
                    })
                    .collect();
                let better = |a: &Partner, b: &Partner| b.jaccard.total_cmp(&a.jaccard).then(a.latent.cmp(&b.latent));
                if found.len() > n && n > 0 {
                    found.select_nth_unstable_by(n - 1, better);
                }
                found.truncate(n);
                found.sort_unstable_by(better);
                found
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn partners_are_those_of_counting_all_pairs() {
        let (rows, d_sae) = (300, 17);
        let mut rng = Rng::stream(3, "test", 0);
        let mut codes = Codes::new(d_sae);
        let mut dense = vec![false; rows * d_sae];
        for r in 0..rows {
            let active: Vec<u32> = (0..d_sae as u32 - 1).filter(|_| rng.uniform() < 0.2).collect();
            active.iter().for_each(|&j| dense[r * d_sae + j as usize] = true);
            codes.push_row(active.iter().map(|&j| (j, 1.0)));
        }
        let got = partners(&codes, 5);
        assert!(got[d_sae - 1].is_empty(), "a dead latent has no partner");
        let count = |f: &dyn Fn(&[bool]) -> bool| dense.chunks(d_sae).filter(|row| f(row)).count() as f64;
        for i in 0..d_sae - 1 {
            let mut want: Vec<(f64, usize, f64)> = (0..d_sae - 1)
                .filter(|&j| j != i)
                .map(|j| {
                    let (both, either) = (count(&|r| r[i] && r[j]), count(&|r| r[i] || r[j]));
                    (both / either, j, (both * rows as f64 / (count(&|r| r[i]) * count(&|r| r[j]))).log2())
                })
                .collect();
            want.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            assert_eq!(got[i].len(), 5);
            for (got, want) in got[i].iter().zip(want) {
                assert_eq!(got.latent as usize, want.1);
                assert!((f64::from(got.jaccard) - want.0).abs() < 1e-6 && (f64::from(got.pmi) - want.2).abs() < 1e-5);
            }
        }
    }
}
