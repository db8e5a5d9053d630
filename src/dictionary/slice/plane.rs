//! Planes through activation space.

use std::str::FromStr;

use super::read;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Steps of the iteration that finds principal directions; it stops earlier when they stand still.
const ITERATIONS: usize = 300;

/// `origin + s u + t v`, with u and v of norm 1 and orthogonal.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// `[d_in]`, in the units of activations.
    pub origin: Vec<f64>,
    /// `[d_in]`.
    pub u: Vec<f64>,
    /// `[d_in]`.
    pub v: Vec<f64>,
    /// What the directions are, for the axes of a picture.
    pub names: [String; 2],
}

/// Which plane, as people write it: `random:SEED`, `latents:I,J` or `pca`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaneChoice {
    /// Two directions drawn at random.
    Random {
        /// Of the draw.
        seed: u64,
    },
    /// The atoms of two latents.
    Latents {
        /// Along the horizontal axis.
        i: usize,
        /// With the first, it spans the plane.
        j: usize,
    },
    /// The two directions in which the atoms spread most.
    Pca,
}

impl FromStr for PlaneChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::request(format!("`{s}` is no plane"), "write random:SEED, latents:I,J or pca");
        match s.split_once(':') {
            None if s == "pca" => Ok(Self::Pca),
            Some(("random", seed)) => Ok(Self::Random { seed: seed.parse().map_err(|_| bad())? }),
            Some(("latents", pair)) => {
                let (i, j) = pair.split_once(',').ok_or_else(bad)?;
                Ok(Self::Latents { i: i.trim().parse().map_err(|_| bad())?, j: j.trim().parse().map_err(|_| bad())? })
            }
            _ => Err(bad()),
        }
    }
}

impl Plane {
    /// The plane asked for, through the dictionary's `b_dec`.
    ///
    /// # Errors
    /// Latents that are not there, or whose atoms are parallel or of another width than the input.
    pub fn choose(choice: PlaneChoice, dictionary: &Dictionary) -> Result<Self> {
        let d = dictionary.d_in();
        match choice {
            PlaneChoice::Random { seed } => {
                let draw = |index: u64| {
                    let mut rng = Rng::stream(seed, "slice.plane", index);
                    (0..d).map(|_| rng.normal()).collect()
                };
                Self::new(middle(dictionary)?, draw(0), draw(1), ["first random direction", "second random direction"])
            }
            PlaneChoice::Latents { i, j } => {
                let atom = |l: usize| -> Result<Vec<f64>> {
                    if l >= dictionary.d_sae() {
                        let problem = format!("there is no latent {l} among {}", dictionary.d_sae());
                        return Err(Error::request(problem, format!("choose one below {}", dictionary.d_sae())));
                    }
                    read(&dictionary.coder.w_dec.get(l)?)
                };
                Self::new(
                    middle(dictionary)?,
                    atom(i)?,
                    atom(j)?,
                    [&format!("atom {i}"), &format!("atom {j}, less its part along atom {i}")],
                )
            }
            PlaneChoice::Pca => Self::principal(middle(dictionary)?, &dictionary.coder.w_dec.flatten_all()?.to_vec1::<f32>()?, "atoms"),
        }
    }

    /// The plane of two directions, made orthonormal (`a` keeps its direction).
    ///
    /// # Errors
    /// Directions of another width than the origin, of norm 0, or parallel.
    pub fn new(origin: Vec<f64>, a: Vec<f64>, b: Vec<f64>, names: [&str; 2]) -> Result<Self> {
        let parallel = || Error::request("the plane's two directions are parallel", "choose two that are not");
        for direction in [&a, &b] {
            if direction.len() != origin.len() {
                let help = "a plane lies in the space that the encoder reads".to_string();
                return Err(Error::Width { what: "a direction of the plane".into(), expected: origin.len(), got: direction.len(), help });
            }
        }
        let u = unit(a).ok_or_else(parallel)?;
        let mut v = unit(b).ok_or_else(parallel)?;
        // Twice: once leaves what rounding left of u.
        for _ in 0..2 {
            let along = dot(&u, &v);
            v.iter_mut().zip(&u).for_each(|(v, u)| *v -= along * u);
            if dot(&v, &v).sqrt() < 1e-6 {
                return Err(parallel());
            }
            v = unit(v).ok_or_else(parallel)?;
        }
        Ok(Self { origin, u, v, names: names.map(str::to_string) })
    }

    /// The plane through `origin` of the two directions in which `rows` `[n, d]` spread most about their mean. `of_what` names the rows.
    ///
    /// # Errors
    /// Rows that do not spread in two directions.
    pub fn principal(origin: Vec<f64>, rows: &[f32], of_what: &str) -> Result<Self> {
        let d = origin.len();
        let n = (rows.len() / d.max(1)) as f64;
        let mut mean = vec![0f64; d];
        for row in rows.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / n);
        }
        // Both directions at once, multiplied by the covariance until they stand still.
        let draw = |index: u64| {
            let mut rng = Rng::stream(0, "slice.principal", index);
            (0..d).map(|_| rng.normal()).collect::<Vec<f64>>()
        };
        let names = [format!("first principal direction of the {of_what}"), format!("second principal direction of the {of_what}")];
        let names = [names[0].as_str(), &names[1]];
        let mut plane = Self::new(origin.clone(), draw(0), draw(1), names)?;
        for _ in 0..ITERATIONS {
            let (mut a, mut b) = (vec![0f64; d], vec![0f64; d]);
            let (offset_u, offset_v) = (dot(&mean, &plane.u), dot(&mean, &plane.v));
            for row in rows.chunks_exact(d) {
                let (mut p, mut q) = (-offset_u, -offset_v);
                for ((x, u), v) in row.iter().zip(&plane.u).zip(&plane.v) {
                    p += f64::from(*x) * u;
                    q += f64::from(*x) * v;
                }
                for (((a, b), x), m) in a.iter_mut().zip(&mut b).zip(row).zip(&mean) {
                    let x = f64::from(*x) - m;
                    *a += p * x;
                    *b += q * x;
                }
            }
            let next = Self::new(origin.clone(), a, b, names)?;
            let still = dot(&next.u, &plane.u).abs().min(dot(&next.v, &plane.v).abs());
            plane = next;
            if still > 1.0 - 1e-12 {
                break;
            }
        }
        Ok(plane)
    }
}

/// `b_dec` in the units of activations; the input's shift, or 0, where the dictionary writes another space than it reads.
fn middle(dictionary: &Dictionary) -> Result<Vec<f64>> {
    let mut middle = match dictionary.d_in() == dictionary.d_out() {
        true => read(&dictionary.coder.b_dec)?,
        false => vec![0.0; dictionary.d_in()],
    };
    if let Some(t) = &dictionary.input_transform {
        middle.iter_mut().zip(read(&t.shift)?).for_each(|(x, shift)| *x = *x / t.scale + shift);
    }
    Ok(middle)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(mut v: Vec<f64>) -> Option<Vec<f64>> {
    let norm = dot(&v, &v).sqrt();
    v.iter_mut().for_each(|x| *x /= norm);
    (norm.is_finite() && norm > 0.0).then_some(v)
}
