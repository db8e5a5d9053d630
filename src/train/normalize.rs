//! One scalar for all rows, so that settings mean the same for every host: mean squared norm becomes `d_in`.

use crate::error::{Error, Result};

/// The factor by which rows of mean squared norm `mean_sq_norm` are multiplied.
///
/// # Errors
/// All-zero or non-finite data.
pub fn scale_for(mean_sq_norm: f64, d_in: usize) -> Result<f64> {
    if !(mean_sq_norm.is_finite() && mean_sq_norm > 0.0) {
        return Err(Error::request(
            format!("the training rows have mean squared norm {mean_sq_norm}"),
            "check what was harvested: all-zero or non-finite activations cannot be learned from",
        ));
    }
    Ok((d_in as f64 / mean_sq_norm).sqrt())
}
