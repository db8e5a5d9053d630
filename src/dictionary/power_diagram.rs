//! The cells of a TopK dictionary as a power diagram (Budd et al., arXiv 2505.11836): which latents fire is a question of distances.
//!
//! With pre-activations `z_i(x) = <w_i, x> + b_i` (a subtracted `b_dec` folded into b) put
//!
//! ```text
//! site       mu_i    = w_i
//! weight     alpha_i = 2 b_i + |w_i|^2
//! distance   pow_i(x) = |x - mu_i|^2 - alpha_i = |x|^2 - 2 z_i(x)
//! ```
//!
//! so the K largest z are the K smallest power distances: the cells are those of the K-th order power diagram. Taking positive z only
//! adds K dummy sites with mu = 0, alpha = 0. The same cells are those of the first-order diagram over K-subsets S,
//!
//! ```text
//! mu_S = mean of mu_i,   alpha_S = |mu_S|^2 + 2/K sum b_i,   S(x) = argmin_S |x - mu_S|^2 - alpha_S
//! ```
//!
//! All in f64 from the dictionary's f32 weights. For looking at the geometry; `Dictionary::encode` is the fast way to the same sets.

use std::cmp::Ordering;

use super::{Activation, Dictionary};
use crate::error::{Error, Result};

/// The power diagram of a dictionary's TopK rule.
#[derive(Debug, Clone)]
pub struct PowerDiagram {
    /// Width of a point.
    d: usize,
    /// Latents per cell, K.
    k: usize,
    /// Latents, without the dummies.
    n: usize,
    /// `[n + K, d]`: the latents' sites, then the dummies'.
    sites: Vec<f64>,
    /// `[n + K]`.
    weights: Vec<f64>,
}

impl PowerDiagram {
    /// Of a plain dictionary with the TopK rule.
    ///
    /// # Errors
    /// Another activation, selection scales, an input transform: the cells are others then.
    pub fn of(dictionary: &Dictionary) -> Result<Self> {
        let Activation::TopK { k } = dictionary.activation else {
            let problem = format!("the power diagram is that of TopK, this dictionary has {:?}", dictionary.activation);
            return Err(Error::request(problem, "read it with the activation topk:K"));
        };
        if dictionary.selection_scale.is_some() || dictionary.input_transform.is_some() {
            return Err(Error::Unsupported {
                by: "a power diagram".into(),
                what: "selection scales or an input transform".into(),
                instead: "use a dictionary that Lapidary trained".into(),
            });
        }
        let (n, d) = dictionary.coder.w_enc.dims2()?;
        let read =
            |t: &candle_core::Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect()) };
        let (w, b, b_dec) = (read(&dictionary.coder.w_enc)?, read(&dictionary.coder.b_enc)?, read(&dictionary.coder.b_dec)?);
        let folded = w.chunks_exact(d).zip(b).map(|(w, b)| if dictionary.centred { b - dot(w, &b_dec) } else { b });
        Ok(Self::new(w.clone(), folded.collect(), d, k, n))
    }

    fn new(w: Vec<f64>, b: Vec<f64>, d: usize, k: usize, n: usize) -> Self {
        let mut weights: Vec<f64> = w.chunks_exact(d).zip(&b).map(|(w, b)| 2.0 * b + dot(w, w)).collect();
        let mut sites = w;
        sites.resize((n + k) * d, 0.0);
        weights.resize(n + k, 0.0);
        Self { d, k, n, sites, weights }
    }

    /// Number of sites, the K dummies included.
    pub fn n_sites(&self) -> usize {
        self.n + self.k
    }

    fn site(&self, i: usize) -> &[f64] {
        &self.sites[i * self.d..(i + 1) * self.d]
    }

    /// Power distances of `x` `[d]` from each site, `[n + K]`, the dummies last.
    pub fn distances(&self, x: &[f64]) -> Vec<f64> {
        (0..self.n_sites()).map(|i| sq_distance(x, self.site(i)) - self.weights[i]).collect()
    }

    /// The latents of the cell that holds `x`: those of the K nearest sites that are no dummies, ascending; and by how much the K-th is
    /// nearer than the next.
    pub fn cell(&self, x: &[f64]) -> (Vec<u32>, f64) {
        let distances = self.distances(x);
        let mut order: Vec<usize> = (0..distances.len()).collect();
        // Dummies before latents at the same distance: a pre-activation of 0 does not fire.
        let key = |i: usize| (distances[i], i < self.n, i);
        order.sort_by(|&a, &b| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
        });
        let (nearest, others) = order.split_at(self.k);
        let last = nearest[self.k - 1];
        // Walls between dummies are none.
        let next = others.iter().find(|&&i| i < self.n || last < self.n);
        (self.latents(nearest), next.map_or(f64::INFINITY, |&next| distances[next] - distances[last]))
    }

    fn latents(&self, sites: &[usize]) -> Vec<u32> {
        let mut latents: Vec<u32> = sites.iter().filter(|i| **i < self.n).map(|&i| i as u32).collect();
        latents.sort_unstable();
        latents
    }

    /// Site `[d]` and weight of a subset of K sites in the first-order diagram. The weight is the mean weight less the scatter of the
    /// sites: `alpha_S = mean alpha_i - mean |mu_i - mu_S|^2`, which equals the form in the module's head.
    pub fn subset(&self, sites: &[usize]) -> (Vec<f64>, f64) {
        let share = 1.0 / sites.len() as f64;
        let mut mean = vec![0f64; self.d];
        for &i in sites {
            mean.iter_mut().zip(self.site(i)).for_each(|(m, w)| *m += share * w);
        }
        let weight = sites.iter().map(|&i| share * (self.weights[i] - sq_distance(self.site(i), &mean))).sum();
        (mean, weight)
    }

    /// Every K-subset of all sites, as a first-order power diagram. There are (n + K) choose K: for small dictionaries.
    ///
    /// # Errors
    /// More than a million subsets.
    pub fn subsets(&self) -> Result<Subsets> {
        let count = (0..self.k).fold(1f64, |c, i| c * (self.n_sites() - i) as f64 / (i + 1) as f64);
        if count > 1e6 {
            let problem = format!("{} sites have {count:.0} subsets of {}", self.n_sites(), self.k);
            return Err(Error::request(problem, "enumerate those of a smaller dictionary or k"));
        }
        let mut all = Subsets { d: self.d, latents: Vec::new(), sites: Vec::new(), weights: Vec::new() };
        let mut chosen: Vec<usize> = (0..self.k).collect();
        loop {
            let (site, weight) = self.subset(&chosen);
            all.latents.push(self.latents(&chosen));
            all.sites.extend(site);
            all.weights.push(weight);
            // The next subset in lexical order.
            let Some(at) = (0..self.k).rev().find(|&p| chosen[p] < self.n_sites() - self.k + p) else { return Ok(all) };
            chosen[at] += 1;
            for p in at + 1..self.k {
                chosen[p] = chosen[p - 1] + 1;
            }
        }
    }
}

/// A first-order power diagram whose sites are subsets.
#[derive(Debug, Clone)]
pub struct Subsets {
    d: usize,
    latents: Vec<Vec<u32>>,
    sites: Vec<f64>,
    weights: Vec<f64>,
}

impl Subsets {
    /// Number of subsets.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The latents of the nearest subset, ascending. Subsets that differ in their dummies only are the same cell.
    pub fn cell(&self, x: &[f64]) -> &[u32] {
        let distance = |s: usize| sq_distance(x, &self.sites[s * self.d..(s + 1) * self.d]) - self.weights[s];
        let nearest = (0..self.len()).map(|s| (distance(s), s)).min_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
        nearest.map_or(&[], |(_, s)| &self.latents[s])
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sq_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Provenance;
    use crate::kernels::Coder;
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    /// Integers / 4: sums and products are exact in f32, so that no rounding separates the two sides.
    fn quarter() -> impl Strategy<Value = f32> {
        (-40i32..=40).prop_map(|v| v as f32 / 4.0)
    }

    fn dictionary(w: &[f32], b: &[f32], b_dec: &[f32], k: usize) -> Dictionary {
        let (n, d) = (b.len(), b_dec.len());
        let tensor = |v: &[f32], shape: (usize, usize)| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
        let coder = Coder {
            w_enc: tensor(w, (n, d)),
            b_enc: Tensor::from_slice(b, n, &Device::Cpu).unwrap(),
            w_dec: tensor(w, (n, d)),
            b_dec: Tensor::from_slice(b_dec, d, &Device::Cpu).unwrap(),
        };
        Dictionary::new(coder, Activation::TopK { k }, true, Provenance::default()).unwrap()
    }

    proptest! {
        #[test]
        fn cells_are_the_codes(
            w in prop::collection::vec(quarter(), 7 * 3),
            b in prop::collection::vec(quarter(), 7),
            b_dec in prop::collection::vec(quarter(), 3),
            x in prop::collection::vec(quarter(), 3 * 5),
            k in 1usize..=4,
        ) {
            let dictionary = dictionary(&w, &b, &b_dec, k);
            let diagram = PowerDiagram::of(&dictionary).unwrap();
            let subsets = diagram.subsets().unwrap();
            let codes = dictionary.encode(&Tensor::from_slice(&x, (5, 3), &Device::Cpu).unwrap()).unwrap();
            for (r, x) in x.chunks_exact(3).enumerate() {
                let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                let mut fired = codes.row(r).0.to_vec();
                fired.sort_unstable();
                let (cell, margin) = diagram.cell(&x);
                prop_assert_eq!(&cell, &fired);
                // On a wall both sides are nearest: the subset form names either.
                if margin > 1e-9 {
                    prop_assert_eq!(subsets.cell(&x), &fired[..]);
                }
            }
        }

        #[test]
        fn distances_are_pre_activations(w in prop::collection::vec(quarter(), 4), b in quarter(), x in prop::collection::vec(quarter(), 4)) {
            let diagram = PowerDiagram::of(&dictionary(&w, &[b], &[0.0; 4], 1)).unwrap();
            let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let z = x.iter().zip(&w).map(|(x, w)| x * f64::from(*w)).sum::<f64>() + f64::from(b);
            prop_assert!((diagram.distances(&x)[0] - (dot(&x, &x) - 2.0 * z)).abs() < 1e-9);
            prop_assert!((diagram.distances(&x)[1] - dot(&x, &x)).abs() < 1e-9, "the dummy has z = 0");
        }
    }

    #[test]
    fn a_subsets_weight_has_two_forms() {
        let (w, b) = ([1.0, 0.0, 0.0, 2.0, -1.0, 1.0], [0.5, -0.25, 1.0]);
        let diagram = PowerDiagram::of(&dictionary(&w, &b, &[0.0; 2], 2)).unwrap();
        let (mean, weight) = diagram.subset(&[0, 2]);
        assert_eq!(mean, [0.0, 0.5]);
        assert!((weight - (0.25 + (0.5 + 1.0))).abs() < 1e-12, "{weight}");
        assert_eq!(diagram.subsets().unwrap().len(), 10);
    }

    #[test]
    fn other_rules_and_too_many_subsets_are_refused() {
        let relu = dictionary(&[1.0], &[0.0], &[0.0], 1).with_activation(Activation::Relu).unwrap();
        assert!(PowerDiagram::of(&relu).unwrap_err().to_string().contains("topk:K"));
        let wide = PowerDiagram::of(&dictionary(&[1.0; 300], &[0.0; 300], &[0.0], 6)).unwrap();
        assert!(wide.subsets().unwrap_err().to_string().contains("smaller"));
    }
}
