//! The cells of a TopK dictionary in a plane, exactly: which latents are active at every point of a 2-D slice of activation space.
//!
//! On `x = x0 + s u + t v` with orthonormal u, v each pre-activation is an affine function of (s, t), so the slice of a K-th order power
//! diagram (see [`PowerDiagram`](super::PowerDiagram)) is one in the plane: convex cells, one per set of at most K active latents. The set S
//! with fewer than K members, all others not positive, has K - |S| *dummies* (z = 0) in it. Nothing is rastered: a cell is the box cut by
//!
//! ```text
//! z_i >= z_j   for i in S, j not in S        and   z_i >= 0 for i in S,   z_j <= 0 for j not in S while a dummy is in S
//! ```
//!
//! and the edges that survive name its neighbours (swap i for j), which are visited from the middle of the box outwards. A picture of a
//! 768-wide model made this way is exact, a projection is not. All in f64. Not for: drawing (`plot`).

mod cells;
mod plane;

use candle_core::Tensor;

use super::{Activation, Dictionary};
use crate::error::{Error, Result};

pub use cells::{Cell, Cells};
pub use plane::{Plane, PlaneChoice};

/// Pre-activations on a plane.
#[derive(Debug, Clone)]
pub struct Slice {
    k: usize,
    /// `[a, b, c]` of each latent: `z = a s + b t + c`, `[n]`. Scaled by the latent's selection scale, which keeps its sign.
    lines: Vec<[f64; 3]>,
}

impl Slice {
    /// Of a dictionary with the TopK rule. Selection scales and an input transform are taken in: both keep the cells convex.
    ///
    /// # Errors
    /// Another activation; a norm per row (curved cells); a selection scale that is not positive; a plane of another width.
    pub fn of(dictionary: &Dictionary, plane: &Plane) -> Result<Self> {
        let Activation::TopK { k } = dictionary.activation else {
            let problem = format!("a slice shows the cells of TopK, this dictionary has {:?}", dictionary.activation);
            return Err(Error::request(problem, "slice a dictionary with the activation topk:K"));
        };
        if dictionary.row_norm.is_some() {
            return Err(Error::Unsupported {
                by: "a slice".into(),
                what: "a norm per row, which bends the cells".into(),
                instead: "slice a dictionary that Lapidary trained".into(),
            });
        }
        let d = dictionary.d_in();
        if plane.origin.len() != d {
            return Err(Error::Width {
                what: "the plane".into(),
                expected: d,
                got: plane.origin.len(),
                help: "make it of this dictionary".into(),
            });
        }
        // The plane's origin and directions as the encoder sees them.
        let (mut origin, mut scale) = (plane.origin.clone(), 1.0);
        if let Some(t) = &dictionary.input_transform {
            scale = t.scale;
            origin.iter_mut().zip(read(&t.shift)?).for_each(|(x, shift)| *x = scale * (*x - shift));
        }
        if dictionary.centred {
            origin.iter_mut().zip(read(&dictionary.coder.b_dec)?).for_each(|(x, b)| *x -= b);
        }
        let (w, b) = (dictionary.coder.w_enc.flatten_all()?.to_vec1::<f32>()?, read(&dictionary.coder.b_enc)?);
        let ranks = dictionary.selection_scale.as_ref().map(read).transpose()?.unwrap_or_else(|| vec![1.0; b.len()]);
        if let Some(j) = ranks.iter().position(|r| !(*r > 0.0 && r.is_finite())) {
            let problem = format!("latent {j} has the selection scale {}", ranks[j]);
            return Err(Error::request(problem, "a slice needs positive ones: import the dictionary again"));
        }
        let line = |((w, b), rank): ((&[f32], &f64), &f64)| {
            let along = |v: &[f64]| w.iter().zip(v).map(|(w, v)| f64::from(*w) * v).sum::<f64>();
            [rank * scale * along(&plane.u), rank * scale * along(&plane.v), rank * (along(&origin) + b)]
        };
        let lines: Vec<[f64; 3]> = w.chunks_exact(d).zip(&b).zip(&ranks).map(line).collect();
        if lines.iter().flatten().any(|v| !v.is_finite()) {
            return Err(Error::request("the dictionary's weights are not finite", "train or import it again"));
        }
        Ok(Self { k, lines })
    }

    /// Latents that may be active at once.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of latents.
    pub fn d_sae(&self) -> usize {
        self.lines.len()
    }

    /// Active latents at a point of the plane, ascending: the at most K greatest positive pre-activations, the lower index of equals.
    pub fn active(&self, s: f64, t: f64) -> Vec<u32> {
        let mut positive: Vec<(f64, u32)> = self.lines.iter().zip(0..).map(|(l, j)| (at(l, (s, t)), j)).filter(|(z, _)| *z > 0.0).collect();
        let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if positive.len() > self.k {
            positive.select_nth_unstable_by(self.k, order);
            positive.truncate(self.k);
        }
        let mut latents: Vec<u32> = positive.into_iter().map(|p| p.1).collect();
        latents.sort_unstable();
        latents
    }

    /// Half the width of a box in which something happens: the median distance from the origin to the line where a latent's
    /// pre-activation changes its sign, times 1.5; 1 where all lines pass through the origin (any size shows the same then).
    pub fn fitting_half(&self) -> f64 {
        let mut distances: Vec<f64> =
            self.lines.iter().map(|l| l[2].abs() / l[0].hypot(l[1])).filter(|r| r.is_finite() && *r > 0.0).collect();
        if distances.is_empty() {
            return 1.0;
        }
        let middle = distances.len() / 2;
        1.5 * *distances.select_nth_unstable_by(middle, f64::total_cmp).1
    }
}

fn at(line: &[f64; 3], p: (f64, f64)) -> f64 {
    line[0] * p.0 + line[1] * p.1 + line[2]
}

fn read(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests;
