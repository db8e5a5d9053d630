//! The same function in other weights: what surrounds encoder and decoder moved into them. Sums are f64.

use candle_core::Tensor;

use super::{Activation, Dictionary};
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// `W v` `[rows]` for `w` `[rows, columns]` and `v` `[columns]`.
fn product(w: &Tensor, v: &Tensor) -> Result<Vec<f64>> {
    let (rows, columns) = w.dims2()?;
    let (w, v) = (w.flatten_all()?.to_vec1::<f32>()?, v.to_vec1::<f32>()?);
    let dot = |row: &[f32]| row.iter().zip(&v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    Ok((0..rows).map(|r| dot(&w[r * columns..(r + 1) * columns])).collect())
}

/// `t + factor * by`, elementwise.
fn plus(t: &Tensor, by: &[f64], factor: f64) -> Result<Tensor> {
    let sum: Vec<f32> = t.to_vec1::<f32>()?.iter().zip(by).map(|(&a, b)| (f64::from(a) + factor * b) as f32).collect();
    Ok(Tensor::from_vec(sum, t.dims1()?, t.device())?)
}

impl Dictionary {
    /// The same codes and reconstructions with an encoder that subtracts `b_dec`, or one that does not: `b_enc` takes up the difference.
    /// A pursuit stays as it is: it always subtracts.
    ///
    /// # Errors
    /// Another width written than read, when it is to subtract.
    pub fn with_centred(&self, centred: bool) -> Result<Self> {
        let mut d = self.clone();
        if d.centred != centred && !d.activation.is_pursuit() {
            if d.d_in() != d.d_out() {
                let problem = "b_dec of another width than the input cannot be subtracted from it";
                return Err(Error::request(problem, "leave the dictionary as it is"));
            }
            let by = product(&d.coder.w_enc, &d.coder.b_dec)?;
            d.coder.b_enc = plus(&d.coder.b_enc, &by, if centred { 1.0 } else { -1.0 })?;
            d.move_gates(self)?;
        }
        d.centred = centred;
        d.check()?;
        Ok(d)
    }

    /// The same codes and reconstructions without an input transform: scale and shift move into the weights. A norm per row after it
    /// cannot stand behind it.
    ///
    /// # Errors
    /// A norm per row; a pursuit whose input is scaled, unless it renormalises (its codes are in the input's units).
    pub fn without_input_transform(&self) -> Result<Self> {
        let Some(t) = &self.input_transform else { return Ok(self.clone()) };
        if self.row_norm.is_some() {
            return Err(Error::request("an input transform before a norm of each row cannot be folded", "apply it to the rows first"));
        }
        let mut d = self.clone();
        d.input_transform = None;
        let s = t.scale;
        let shift: Vec<f64> = t.shift.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        let c = &self.coder;
        let scaled = |t: &Tensor, by: f64| -> Result<Tensor> { Ok((t * by)?) };
        match &mut d.activation {
            Activation::Pursuit { renormalise: false, .. } if s != 1.0 => {
                return Err(Error::request(
                    "a scaled input of a pursuit in atoms as they are cannot be folded: its codes would be others",
                    "keep the input transform",
                ));
            }
            // Coefficients of unit atoms shrink by s, atoms by s: codes stay.
            Activation::Pursuit { tolerance, relative, .. } | Activation::OrthogonalPursuit { tolerance, relative, .. } if !*relative => {
                *tolerance = (f64::from(*tolerance) / s) as f32;
            }
            _ => {}
        }
        // u - b_dec = s (x - (shift + b_dec / s))
        let mut b_enc = c.b_enc.clone();
        if !self.centred && !self.activation.is_pursuit() {
            b_enc = plus(&b_enc, &product(&c.w_enc, &t.shift)?, -s)?;
        }
        d.coder = Coder {
            w_enc: scaled(&c.w_enc, s)?,
            b_enc,
            w_dec: scaled(&c.w_dec, 1.0 / s)?,
            b_dec: plus(&scaled(&c.b_dec, 1.0 / s)?, &shift, 1.0)?,
        };
        if self.skip.is_some() {
            // y / s + shift with a skip of u = s (x - shift): the skip stays, its shift joins the bias.
            let skip = self.skip.as_ref().map(|w| product(w, &t.shift)).transpose()?.unwrap_or_default();
            d.coder.b_dec = plus(&d.coder.b_dec, &skip, -1.0)?;
            if self.centred {
                return Err(Error::request("an input transform with a skip path and a centred encoder cannot be folded", "keep it"));
            }
        }
        d.move_gates(self)?;
        d.check()?;
        Ok(d)
    }

    /// Atoms of unit norm: `W_dec[i] /= n`, and codes become n times as large, with encoder, biases and thresholds following. The
    /// reconstruction stays. Atoms of norm 0 stay too.
    ///
    /// # Errors
    /// Where it would change which latents fire: top-k by codes (unless the scale it ranks by takes it up: rank `a n / n`), a pursuit in
    /// atoms as they are; a bound of codes.
    pub fn with_unit_atoms(&self) -> Result<Self> {
        let norms: Vec<f64> = {
            let (_, d) = self.coder.w_dec.dims2()?;
            let rows = self.coder.w_dec.flatten_all()?.to_vec1::<f32>()?;
            let norm = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            rows.chunks_exact(d).map(|row| Some(norm(row)).filter(|n| *n > 0.0).unwrap_or(1.0)).collect()
        };
        if norms.iter().all(|n| (n - 1.0).abs() < 1e-6) {
            return Ok(self.clone());
        }
        let refuse = |what: &str, help: &str| Err(Error::request(format!("atoms of other norms than 1 cannot be folded: {what}"), help));
        match &self.activation {
            Activation::TopK { .. } | Activation::AbsTopK { .. } if self.selection_scale.is_none() => {
                return refuse("top-k ranks codes, and other latents would win", "keep the norms: leave out --fold-norms");
            }
            Activation::Pursuit { renormalise: false, .. } => {
                return refuse("this pursuit takes inner products with the atoms as they are", "keep the norms: leave out --fold-norms");
            }
            _ if self.softcap.is_some() => return refuse("codes have a bound", "keep the norms: leave out --fold-norms"),
            _ => {}
        }
        let mut d = self.clone();
        let factor: Vec<f32> = norms.iter().map(|&n| n as f32).collect();
        let device = self.device();
        let column = Tensor::from_slice(&factor, (factor.len(), 1), device)?;
        let row = Tensor::from_slice(&factor, factor.len(), device)?;
        let c = &self.coder;
        d.coder = Coder {
            w_enc: c.w_enc.broadcast_mul(&column)?,
            b_enc: (&c.b_enc * &row)?,
            w_dec: c.w_dec.broadcast_div(&column)?,
            b_dec: c.b_dec.clone(),
        };
        if self.activation.is_pursuit() {
            (d.coder.w_enc, d.coder.b_enc) = (c.w_enc.clone(), c.b_enc.clone());
        }
        match self.activation {
            Activation::Threshold { threshold } if threshold > 0.0 => {
                d.activation = Activation::JumpRelu;
                d.thresholds = Some((&row * f64::from(threshold))?);
            }
            _ => d.thresholds = self.thresholds.as_ref().map(|t| t * &row).transpose()?,
        }
        d.magnitude = self.magnitude.as_ref().map(|(gain, bias)| -> Result<_> { Ok((gain.clone(), (bias * &row)?)) }).transpose()?;
        d.selection_scale = self.selection_scale.as_ref().map(|s| s / &row).transpose()?;
        if let Some(scale) = &d.selection_scale {
            if scale.to_vec1::<f32>()?.iter().all(|s| (s - 1.0).abs() < 1e-6) {
                d.selection_scale = None;
            }
        }
        d.forget();
        d.check()?;
        Ok(d)
    }

    /// Magnitudes are counted from `b_enc` (`gain (a - b_enc) + bias`): where `b_enc` took up something that the input lost, `bias` does too.
    fn move_gates(&mut self, before: &Self) -> Result<()> {
        let Some((gain, bias)) = &before.magnitude else { return Ok(()) };
        let moved: Vec<f64> = {
            let (now, then) = (self.coder.b_enc.to_vec1::<f32>()?, before.coder.b_enc.to_vec1::<f32>()?);
            let gain = gain.to_vec1::<f32>()?;
            now.iter().zip(then).zip(gain).map(|((&now, then), g)| f64::from(g) * (f64::from(now) - f64::from(then))).collect()
        };
        self.magnitude = Some((gain.clone(), plus(bias, &moved, 1.0)?));
        Ok(())
    }
}
