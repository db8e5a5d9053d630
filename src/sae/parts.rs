//! Around a variant's steps: figures for the log by name, checks of settings, calibration of a threshold, folding the scale away. Not for:
//! the steps themselves (`body`, and each variant).

use candle_core::Tensor;

use super::AuxKConfig;
use crate::error::{Error, Result};
use crate::kernels::{encode_threshold, nth_largest, Coder};

/// A named figure of a step, for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// As the log calls it.
    pub name: String,
    /// Its value, or the sum that `per` divides.
    pub value: f64,
    /// What the log divides the sum of values by.
    pub per: Per,
}

/// See [`Part::per`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// The summed squared distance of rows from their batch's mean: a sum of squared errors becomes an FVU.
    Spread,
    /// Rows.
    Row,
    /// Steps.
    Step,
    /// Nothing: the last value counts.
    Last,
}

/// Refuses a weight that is no weight.
pub fn check_weight(key: &str, value: f64, help: &str) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} is no weight"), help))
}

/// `d_sae` with 0 replaced, after refusing `k` that cannot be.
pub fn check_k(d_sae: usize, k: usize, d_in: usize, aux_k: &AuxKConfig) -> Result<usize> {
    let d_sae = if d_sae == 0 { 16 * d_in } else { d_sae };
    if k == 0 || k > d_sae {
        return Err(Error::config(
            "sae.k",
            format!("{k} of {d_sae} latents cannot be active"),
            format!("choose k between 1 and {d_sae}, or a larger sae.d_sae"),
        ));
    }
    check_weight("sae.aux_k.coef", aux_k.coef, "0 turns AuxK off, 0.03125 is the default")?;
    Ok(d_sae)
}

/// Rows that are encoded at once when a threshold is calibrated.
const CHUNK: usize = 4096;

/// The threshold at which codes `a > threshold` of `rows` `[m, d_in]` have `k` entries per row on average: the largest value that is left
/// out. 0 where fewer are positive.
///
/// # Errors
/// A tensor operation that fails.
pub fn calibrate(coder: &Coder, rows: &Tensor, k: f64) -> Result<f32> {
    let (m, _) = rows.dims2()?;
    let d_sae = coder.b_enc.dims1()?;
    let total = |rows: usize| (rows as f64 * k).round() as usize;
    let wanted = total(m) + 1;
    let xc = rows.broadcast_sub(&coder.b_dec)?;
    // What the first rows say bounds the candidates; when it was too high it is lowered.
    let first =
        crate::kernels::encode_batch_topk(&xc.narrow(0, 0, m.min(CHUNK))?, &coder.w_enc, &coder.b_enc, total(m.min(CHUNK)), None)?.1;
    let mut floor = if first.is_finite() { 0.8 * first } else { 0.0 };
    loop {
        let threshold = Tensor::full(floor, d_sae, rows.device())?;
        let mut values = Vec::new();
        for from in (0..m).step_by(CHUNK) {
            let chunk = xc.narrow(0, from, CHUNK.min(m - from))?.contiguous()?;
            values.extend(encode_threshold(&chunk, &coder.w_enc, &coder.b_enc, &threshold)?.values);
        }
        match nth_largest(&mut values, wanted) {
            Some(value) => return Ok(value),
            None if floor == 0.0 => return Ok(0.0),
            None => floor = if floor < 1e-6 { 0.0 } else { 0.5 * floor },
        }
    }
}

/// The coder for rows in their own units: with u = scale * x, a(u) / scale = (x - b_dec / scale) W_enc^T + b_enc / scale.
///
/// # Errors
/// A tensor operation that fails.
pub fn unscaled(c: &Coder, scale: f64) -> Result<Coder> {
    Ok(Coder { w_enc: c.w_enc.copy()?, b_enc: (&c.b_enc / scale)?, w_dec: c.w_dec.copy()?, b_dec: (&c.b_dec / scale)? })
}

/// Moves decoder norms into the encoder, so that rows have unit norm: exact for codes that scale with their pre-activations. Returns the
/// norms, `[d_sae]`.
///
/// # Errors
/// A tensor operation that fails.
pub fn unit_rows(c: Coder) -> Result<(Coder, Tensor)> {
    let norms = c.w_dec.sqr()?.sum(1)?.sqrt()?;
    // A row of zeros stays one.
    let safe = norms.maximum(f64::from(f32::MIN_POSITIVE))?;
    let coder = Coder {
        w_enc: c.w_enc.broadcast_mul(&norms.unsqueeze(1)?)?,
        b_enc: (&c.b_enc * &norms)?,
        w_dec: c.w_dec.broadcast_div(&safe.unsqueeze(1)?)?,
        b_dec: c.b_dec,
    };
    Ok((coder, norms))
}
