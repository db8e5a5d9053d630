//! A map: atoms in the plane, close ones close.
//!
//! A neighbour embedding in the manner of UMAP (McInnes, Healy, Melville 2018, arXiv 1802.03426): springs along the graph of nearest atoms,
//! repulsion from atoms drawn at random, with the kernel 1 / (1 + r^2) of t-SNE, from a start along the two main axes. One thread, one
//! seeded stream: the same map each time. Distances between far clusters mean nothing, as in all such maps.

use candle_core::Tensor;

use crate::error::Result;
use crate::rng::Rng;

/// Random atoms that push, for each spring that pulls.
const PUSHES: usize = 5;

/// Places in the unit square. `nearest`: for each atom its neighbours with their cosines, closest first.
pub(super) fn atlas(unit: &Tensor, nearest: &[Vec<(u32, f32)>], seed: u64) -> Result<Vec<(f32, f32)>> {
    let n = nearest.len();
    let mut rng = Rng::stream(seed, "atlas", 0);
    let mut places = start(unit, &mut rng)?;
    let springs = springs(nearest);
    let epochs = if n > 20_000 { 100 } else { 300 };
    // A spring of weight w acts in a share w of the epochs.
    let mut due: Vec<f32> = springs.iter().map(|_| rng.uniform() as f32).collect();
    for epoch in 0..epochs {
        let step = 1.0 - epoch as f32 / epochs as f32;
        for (&(i, j, weight), due) in springs.iter().zip(&mut due) {
            *due += weight;
            if *due < 1.0 {
                continue;
            }
            *due -= 1.0;
            let (i, j) = (i as usize, j as usize);
            let pull = force(places[i], places[j], |r2| -2.0 / (1.0 + r2));
            shift(&mut places[i], pull, step);
            shift(&mut places[j], [-pull[0], -pull[1]], step);
            for _ in 0..PUSHES {
                let k = rng.below(n as u64) as usize;
                if k != i {
                    let push = force(places[i], places[k], |r2| 2.0 / ((0.001 + r2) * (1.0 + r2)));
                    shift(&mut places[i], push, step);
                }
            }
        }
    }
    Ok(to_unit_square(&places))
}

/// Along `a - b`, as long as `factor` of their squared distance says; never longer than 4.
fn force(a: [f32; 2], b: [f32; 2], factor: impl Fn(f32) -> f32) -> [f32; 2] {
    let d = [a[0] - b[0], a[1] - b[1]];
    let f = factor(d[0] * d[0] + d[1] * d[1]);
    [(f * d[0]).clamp(-4.0, 4.0), (f * d[1]).clamp(-4.0, 4.0)]
}

fn shift(place: &mut [f32; 2], by: [f32; 2], step: f32) {
    place[0] += step * by[0];
    place[1] += step * by[1];
}

/// Springs (i, j, weight up to 1): the nearest of an atom pulls with 1, the others less the farther they are beside its own scale.
fn springs(nearest: &[Vec<(u32, f32)>]) -> Vec<(u32, u32, f32)> {
    let mut springs = Vec::new();
    for (i, near) in nearest.iter().enumerate() {
        let Some(&(_, first)) = near.first() else { continue };
        let mean = near.iter().map(|e| first - e.1).sum::<f32>() / near.len() as f32;
        for &(j, cos) in near {
            let weight = (-(first - cos) / mean.max(1e-6)).exp();
            if weight > 0.01 {
                springs.push((i as u32, j, weight));
            }
        }
    }
    springs
}

/// Coordinates on the two main axes of the atoms, by subspace iteration, 10 units wide.
fn start(unit: &Tensor, rng: &mut Rng) -> Result<Vec<[f32; 2]>> {
    let (n, d) = unit.dims2()?;
    let centred = unit.broadcast_sub(&unit.mean_keepdim(0)?)?;
    let mut axes: Vec<Vec<f32>> = (0..2).map(|_| (0..d).map(|_| rng.normal() as f32).collect()).collect();
    let mut scores = vec![vec![0f32; n]; 2];
    for _ in 0..8 {
        orthonormal(&mut axes);
        let basis = Tensor::from_vec(axes.concat(), (2, d), unit.device())?;
        let on = centred.matmul(&basis.t()?)?;
        scores = on.t()?.contiguous()?.to_vec2()?;
        axes = on.t()?.matmul(&centred)?.to_vec2()?;
    }
    let widest = scores.iter().flatten().fold(0f32, |m, v| m.max(v.abs())).max(1e-12);
    // A little noise parts atoms that are equal.
    let mut at = |axis: usize, i: usize| 5.0 * scores[axis][i] / widest + 1e-3 * rng.normal() as f32;
    Ok((0..n).map(|i| [at(0, i), at(1, i)]).collect())
}

fn orthonormal(axes: &mut [Vec<f32>]) {
    for a in 0..axes.len() {
        for b in 0..a {
            let dot: f32 = axes[a].iter().zip(&axes[b]).map(|(x, y)| x * y).sum();
            let other = axes[b].clone();
            axes[a].iter_mut().zip(other).for_each(|(x, y)| *x -= dot * y);
        }
        let norm = axes[a].iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-20);
        axes[a].iter_mut().for_each(|x| *x /= norm);
    }
}

/// One scale for both axes; the middle of the map is the middle of the square.
fn to_unit_square(places: &[[f32; 2]]) -> Vec<(f32, f32)> {
    let range =
        |axis: usize| places.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), p| (low.min(p[axis]), high.max(p[axis])));
    let ((x0, x1), (y0, y1)) = (range(0), range(1));
    let size = (x1 - x0).max(y1 - y0).max(1e-12);
    let to = |v: f32, low: f32, high: f32| (0.5 + (v - 0.5 * (low + high)) / size).clamp(0.0, 1.0);
    places.iter().map(|p| (to(p[0], x0, x1), to(p[1], y0, y1))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::nearest::{nearest, unit_atoms};
    use super::*;
    use candle_core::Device;

    /// Three bundles of atoms: on the map each atom's nearest are of its bundle.
    #[test]
    fn bundles_stay_together() {
        let mut rng = Rng::stream(1, "test", 0);
        let (per, d) = (40, 16);
        let w: Vec<f32> = (0..3 * per)
            .flat_map(|i| (0..d).map(|c| if c == i / per { 3.0 } else { 0.0 }).collect::<Vec<f32>>())
            .map(|v| v + 0.5 * rng.normal() as f32)
            .collect();
        let unit = unit_atoms(&Tensor::from_vec(w, (3 * per, d), &Device::Cpu).unwrap()).unwrap();
        let near = nearest(&unit, 10).unwrap();
        let map = atlas(&unit, &near, 0).unwrap();
        assert_eq!(map, atlas(&unit, &near, 0).unwrap(), "the same map each time");
        assert!(map.iter().all(|p| (0.0..=1.0).contains(&p.0) && (0.0..=1.0).contains(&p.1)));
        let distance = |a: usize, b: usize| (map[a].0 - map[b].0).hypot(map[a].1 - map[b].1);
        let own = (0..3 * per).filter(|&i| {
            let closest = (0..3 * per).filter(|&j| j != i).min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)));
            closest.is_some_and(|j| j / per == i / per)
        });
        assert!(own.count() >= 3 * per - 2);
    }

    #[test]
    fn one_atom_and_zero_atoms_have_places() {
        for n in [1, 3] {
            let unit = Tensor::zeros((n, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
            let map = atlas(&unit, &vec![Vec::new(); n], 0).unwrap();
            assert!(map.iter().all(|p| p.0.is_finite() && p.1.is_finite()));
        }
    }
}
