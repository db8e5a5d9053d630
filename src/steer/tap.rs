//! The splice: codes of the rows at one hook point are changed, and the change is decoded into the host.
//!
//! `x' = x + (z' - z) W_dec`, through the dictionary's norm per row and input scale: the reconstruction's error stays where it is, and a
//! row whose codes do not change keeps its bytes. Without the error term, `x' = decode(z')`.

use candle_core::{DType, Device, Tensor};

use super::Edit;
use crate::codes::Codes;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::{HostModel, Tap};
use crate::trace::check_width;

/// A tap that changes latents; the pass runs to the logits.
pub struct Edited<'a> {
    at: HookPoint,
    dictionary: &'a Dictionary,
    edits: &'a [Edit],
    keep_error: bool,
    open: Vec<bool>,
}

impl<'a> Edited<'a> {
    /// Changes latents of `dictionary` at `at`. `open`: the positions of the batch that may be changed, `[b * t]`, row-major.
    ///
    /// # Errors
    /// A hook point that the host has not, another width, a dictionary that writes elsewhere than it reads, a latent it has not or that
    /// is named twice.
    pub fn new(
        host: &dyn HostModel,
        at: HookPoint,
        dictionary: &'a Dictionary,
        edits: &'a [Edit],
        keep_error: bool,
        open: Vec<bool>,
    ) -> Result<Self> {
        check(host, &at, dictionary, edits)?;
        Ok(Self { at, dictionary, edits, keep_error, open })
    }
}

/// Can these edits be made there?
pub(super) fn check(host: &dyn HostModel, at: &HookPoint, dictionary: &Dictionary, edits: &[Edit]) -> Result<()> {
    check_width(host, at, dictionary)?;
    if dictionary.d_in() != dictionary.d_out() || dictionary.skip.is_some() {
        return Err(Error::request(
            format!(
                "this dictionary reads {} dimensions and writes {} somewhere else (a transcoder): there is no code to change at {at}",
                dictionary.d_in(),
                dictionary.d_out()
            ),
            "steer with a dictionary that reconstructs what it reads",
        ));
    }
    for (i, edit) in edits.iter().enumerate() {
        if edit.latent as usize >= dictionary.d_sae() {
            let n = dictionary.d_sae();
            return Err(Error::request(
                format!("no latent {} in a dictionary of {n}", edit.latent),
                format!("latents go from 0 to {}", n - 1),
            ));
        }
        if edits[..i].iter().any(|e| e.latent == edit.latent) {
            return Err(Error::request(format!("latent {} is changed twice", edit.latent), "name each latent once"));
        }
    }
    Ok(())
}

/// Latents and values of one row.
type Row = Vec<(u32, f32)>;

/// `z' - z` of a row, and `z'`; each by value descending.
fn edited(edits: &[Edit], indices: &[u32], values: &[f32]) -> (Row, Row) {
    let mut after: Row = indices.iter().copied().zip(values.iter().copied()).collect();
    let mut difference = Vec::new();
    for edit in edits {
        let at = after.iter().position(|e| e.0 == edit.latent);
        let z = at.map_or(0.0, |i| after[i].1);
        let by = edit.difference(z);
        if by == 0.0 {
            continue;
        }
        difference.push((edit.latent, by));
        match at {
            Some(i) => after[i].1 = z + by,
            None => after.push((edit.latent, by)),
        }
    }
    for row in [&mut difference, &mut after] {
        row.retain(|e| e.1 != 0.0);
        row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    (difference, after)
}

impl Tap for Edited<'_> {
    fn wants(&self, at: &HookPoint) -> bool {
        *at == self.at
    }

    fn visit(&mut self, _at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        let (b, t, d) = x.dims3()?;
        if self.open.len() != b * t {
            let problem = format!("{} positions that may be changed in a batch of {}", self.open.len(), b * t);
            return Err(Error::request(problem, "give one entry per position of the batch"));
        }
        let open: Vec<u32> = (0u32..).zip(&self.open).filter(|(_, &o)| o).map(|(i, _)| i).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let flat = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.reshape((b * t, d))?;
        let pick = |rows: &[u32]| -> Result<Tensor> {
            Ok(flat.index_select(&Tensor::from_slice(rows, rows.len(), &Device::Cpu)?, 0)?.to_device(self.dictionary.device())?)
        };
        let rows = pick(&open)?;
        let codes = self.dictionary.encode(&rows)?;
        let d_sae = self.dictionary.d_sae();
        let (mut difference, mut after, mut changed) = (Codes::new(d_sae), Codes::new(d_sae), Vec::new());
        for (r, &row) in open.iter().enumerate() {
            let (indices, values) = codes.row(r);
            let (by, to) = edited(self.edits, indices, values);
            if !by.is_empty() {
                changed.push(row);
                difference.push_row(by.into_iter());
            }
            after.push_row(to.into_iter());
        }
        let (at, new): (&[u32], Vec<f32>) = match self.keep_error {
            true if changed.is_empty() => return Ok(None),
            true => {
                let rows = pick(&changed)?;
                let by = self.dictionary.contribution(&difference, Some(&rows))?;
                (&changed, (rows + by)?.flatten_all()?.to_vec1()?)
            }
            false => (&open, self.dictionary.decode(&after, Some(&rows))?.flatten_all()?.to_vec1()?),
        };
        let mut out: Vec<f32> = flat.flatten_all()?.to_vec1()?;
        for (&row, new) in at.iter().zip(new.chunks_exact(d)) {
            out[row as usize * d..][..d].copy_from_slice(new);
        }
        Ok(Some(Tensor::from_vec(out, (b, t, d), &Device::Cpu)?.to_device(x.device())?.to_dtype(x.dtype())?))
    }

    fn last(&self) -> Option<HookPoint> {
        None
    }
}
