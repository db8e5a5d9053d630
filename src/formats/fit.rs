//! From a dictionary to one that a dialect can hold: what can be folded away without changing codes or reconstruction is, what cannot
//! is refused with the reason.

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

/// What a dialect can hold beside encoder, decoder and their biases.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holds {
    /// The encoder always subtracts `b_dec` (`Some(true)`), never (`Some(false)`), or a setting says (`None`).
    pub centred: Option<bool>,
    /// A norm per row.
    pub row_norm: bool,
    /// A linear path beside the codes.
    pub skip: bool,
    /// Writing another width than it reads.
    pub other_width: bool,
    /// Ranking of latents by something else than their codes.
    pub selection_scale: bool,
    /// A pursuit, in atoms of unit norm (without renormalising).
    pub pursuit: bool,
}

/// `dictionary` as `format` can hold it. Input transforms are always folded away; `centred` is made what it must be. What was folded is
/// added to `notes`.
///
/// # Errors
/// [`Error::Unsupported`], with what to do instead.
pub fn fit(dictionary: &Dictionary, format: &str, holds: Holds, notes: &mut Vec<String>) -> Result<Dictionary> {
    let refuse = |what: &str, instead: &str| Err(Error::Unsupported { by: format.into(), what: what.into(), instead: instead.into() });
    if dictionary.softcap.is_some() {
        return refuse("codes with a bound (softcap)", "keep it in Lapidary's own format, or train without a softcap");
    }
    if dictionary.row_norm.is_some() && !holds.row_norm {
        return refuse(
            "a norm of each row, which no weights can stand for",
            "export to saelens, or to openai for a layer norm; or normalise the rows before they reach it",
        );
    }
    if dictionary.skip.is_some() && !holds.skip {
        return refuse("a skip path", "export to sparsify");
    }
    if dictionary.d_in() != dictionary.d_out() && !holds.other_width {
        return refuse("a dictionary that writes another width than it reads", "keep it in Lapidary's own format");
    }
    if dictionary.selection_scale.is_some() && !holds.selection_scale {
        return refuse(
            "a selection scale: latents that are ranked by something else than their codes",
            "keep it in Lapidary's own format, or read it with another rule (--activation threshold:X)",
        );
    }
    if dictionary.activation.is_pursuit() && !holds.pursuit {
        return refuse(
            "a pursuit",
            "export to saelens (unit atoms, matching pursuit) or overcomplete, or keep it in Lapidary's own format",
        );
    }
    let mut d = dictionary.clone();
    if d.row_norm.is_some() && d.input_transform.is_some() {
        return refuse("an input transform before a norm of each row", "apply the transform to the rows first");
    }
    if d.input_transform.is_some() {
        d = d.without_input_transform()?;
        notes.push("the input transform (scale and shift) was folded into the weights; codes are the same".into());
    }
    if let Some(centred) = holds.centred.filter(|&c| c != d.centred && !d.activation.is_pursuit()) {
        if d.d_in() != d.d_out() {
            return refuse("an encoder that does not subtract b_dec, which has another width", "keep it in Lapidary's own format");
        }
        d = d.with_centred(centred)?;
        notes.push(match centred {
            true => "b_enc was raised by W_enc b_dec, because this format's encoder subtracts b_dec; codes are the same".into(),
            false => "b_enc was lowered by W_enc b_dec, because this format's encoder does not subtract b_dec; codes are the same".into(),
        });
    }
    Ok(d)
}
