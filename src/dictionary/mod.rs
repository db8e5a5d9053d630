//! The trained artefact: a dictionary of atoms with the rule that says which of them a row uses.
//!
//! Knows nothing of training: every variant ends as one of these, and everything after training sees only this.
//!
//! ```text
//! u    = norm(scale * (x - shift))                input transform, then a norm per row (neither in what Lapidary trains)
//! a    = (u - b_dec if centred else u) W_enc^T + b_enc
//! z    = activation(a)
//! y    = z W_dec + b_dec  (+ u W_skip^T)
//! xhat = norm^-1(y) / scale + shift
//! ```
//!
//! A pursuit takes `u - b_dec` apart in the decoder's atoms: `w_enc`, `b_enc` and `centred` take no part.

mod activation;
mod file;
mod fold;
mod lint;
mod power_diagram;
mod row_norm;
pub mod slice;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor, TensorId};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::kernels::{self, Coder};

use activation::Prepared;

pub use activation::Activation;
pub use file::{FORMAT_VERSION, KIND};
pub use lint::{Lint, Measured};
pub use power_diagram::{PowerDiagram, Subsets};
pub use row_norm::RowNorm;

/// An affine map of the input before encoding, undone after decoding.
#[derive(Debug, Clone)]
pub struct InputTransform {
    /// Subtracted first, `[d_in]`, f32.
    pub shift: Tensor,
    /// Multiplied then.
    pub scale: f64,
}

/// Where a dictionary comes from. All of it is kept, none of it changes the function.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The hook point (or name of ingested vectors) that it reads.
    pub hook: String,
    /// Learner that made it: `topk`, or `imported`, or a baseline's name.
    pub made_by: String,
    /// Version of Lapidary that wrote it.
    pub lapidary: String,
    /// The host: name, hash of its weights.
    #[serde(default)]
    pub host: serde_json::Value,
    /// The shards it was trained on: corpus, row counts, hash of their manifest.
    #[serde(default)]
    pub shards: serde_json::Value,
    /// The stream it was trained on where there were no shards: what their manifest would say. Null otherwise.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub stream: serde_json::Value,
    /// The resolved configuration of the run.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Figures the learner leaves behind (tokens seen, dead latents, the running threshold).
    #[serde(default)]
    pub notes: serde_json::Value,
}

/// A dictionary of `d_sae` atoms.
#[derive(Debug, Clone)]
pub struct Dictionary {
    /// Encoder and decoder; atoms are rows, `[d_sae, d_in]` and `[d_sae, d_out]`, f32.
    pub coder: Coder,
    /// Which pre-activations become codes.
    pub activation: Activation,
    /// Does the encoder subtract `b_dec` from its input?
    pub centred: bool,
    /// Top-k ranks latents by `value * selection_scale`, `[d_sae]` (imported dictionaries whose atoms are not of unit norm).
    pub selection_scale: Option<Tensor>,
    /// A threshold per latent, `[d_sae]`, f32 ([`Activation::JumpRelu`]).
    pub thresholds: Option<Tensor>,
    /// Gain and bias of magnitudes, `[d_sae]` each, f32 ([`Activation::Gated`]).
    pub magnitude: Option<(Tensor, Tensor)>,
    /// Codes are `c tanh(z / c)`.
    pub softcap: Option<f32>,
    /// Undone after decoding.
    pub input_transform: Option<InputTransform>,
    /// Done to each row after the input transform, and undone before it is.
    pub row_norm: Option<RowNorm>,
    /// A linear path beside the codes, `[d_out, d_in]` (skip transcoders).
    pub skip: Option<Tensor>,
    /// Where it comes from.
    pub provenance: Provenance,
    /// What a pursuit needs, with the atoms and the rule it was made of.
    prepared: OnceLock<(TensorId, Activation, Arc<Prepared>)>,
    /// The same on a GPU, where it encodes and decodes ([`Dictionary::on`]).
    elsewhere: Option<Arc<Dictionary>>,
}

impl Dictionary {
    /// A plain dictionary; checks that the shapes agree.
    ///
    /// # Errors
    /// Shapes that do not agree, k out of range.
    pub fn new(coder: Coder, activation: Activation, centred: bool, provenance: Provenance) -> Result<Self> {
        let dictionary = Self {
            coder,
            activation,
            centred,
            selection_scale: None,
            thresholds: None,
            magnitude: None,
            softcap: None,
            input_transform: None,
            row_norm: None,
            skip: None,
            provenance,
            prepared: OnceLock::new(),
            elsewhere: None,
        };
        dictionary.check()?;
        Ok(dictionary)
    }

    /// Encodes and decodes on `device` from now on; its own tensors stay where they are, for whoever looks at them.
    ///
    /// # Errors
    /// No memory there.
    pub fn on(mut self, device: &Device) -> Result<Self> {
        self.elsewhere = None;
        if matches!(device, Device::Cpu) {
            return Ok(self);
        }
        let moved = |t: &Tensor| t.to_device(device);
        let c = &self.coder;
        let there = Self {
            coder: Coder { w_enc: moved(&c.w_enc)?, b_enc: moved(&c.b_enc)?, w_dec: moved(&c.w_dec)?, b_dec: moved(&c.b_dec)? },
            selection_scale: self.selection_scale.as_ref().map(moved).transpose()?,
            thresholds: self.thresholds.as_ref().map(moved).transpose()?,
            magnitude: self.magnitude.as_ref().map(|(a, b)| -> Result<_> { Ok((moved(a)?, moved(b)?)) }).transpose()?,
            input_transform: self
                .input_transform
                .as_ref()
                .map(|t| -> Result<_> { Ok(InputTransform { shift: moved(&t.shift)?, scale: t.scale }) })
                .transpose()?,
            skip: self.skip.as_ref().map(moved).transpose()?,
            prepared: OnceLock::new(),
            ..self.clone()
        };
        self.elsewhere = Some(Arc::new(there));
        Ok(self)
    }

    /// Do all shapes agree?
    pub(crate) fn check(&self) -> Result<()> {
        let (d_sae, d_in) = self.coder.w_enc.dims2()?;
        let (rows, d_out) = self.coder.w_dec.dims2()?;
        let help = || "the dictionary is damaged, or a matrix is transposed: atoms are rows".to_string();
        let expect = |what: &str, expected: usize, got: usize| {
            if expected == got {
                Ok(())
            } else {
                Err(Error::Width { what: what.into(), expected, got, help: help() })
            }
        };
        expect("w_dec (its number of rows)", d_sae, rows)?;
        expect("b_enc", d_sae, self.coder.b_enc.dims1()?)?;
        expect("b_dec", d_out, self.coder.b_dec.dims1()?)?;
        if self.centred {
            expect("b_dec, which the encoder subtracts,", d_in, d_out)?;
        }
        if let Some(scale) = &self.selection_scale {
            expect("selection_scale", d_sae, scale.dims1()?)?;
        }
        let per_latent = [self.thresholds.as_ref(), self.magnitude.as_ref().map(|m| &m.0), self.magnitude.as_ref().map(|m| &m.1)];
        for tensor in per_latent.into_iter().flatten() {
            expect("a value per latent", d_sae, tensor.dims1()?)?;
        }
        let needs = |there: bool, what: &str| {
            if there {
                return Ok(());
            }
            let problem = format!("a dictionary with the activation {:?} and without {what}", self.activation);
            Err(Error::request(problem, help()))
        };
        needs((self.activation == Activation::JumpRelu) == self.thresholds.is_some(), "its thresholds")?;
        needs((self.activation == Activation::Gated) == self.magnitude.is_some(), "its magnitudes")?;
        if self.softcap.is_some() && matches!(self.activation, Activation::AbsTopK { .. }) {
            return Err(Error::config("softcap", "bounds positive codes, and abs_top_k has negative ones", "use another activation"));
        }
        if self.softcap.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
            return Err(Error::config("softcap", "is no bound", "it must be finite and above 0"));
        }
        if let Some(t) = &self.input_transform {
            expect("input shift", d_in, t.shift.dims1()?)?;
            expect("an input transform's output", d_in, d_out)?;
        }
        if self.row_norm.is_some() {
            expect("the output of a dictionary that norms its rows", d_in, d_out)?;
            if self.skip.is_some() {
                return Err(Error::request("a norm per row beside a skip path is no function this describes", help()));
            }
        }
        if let Some(skip) = &self.skip {
            let (rows, columns) = skip.dims2()?;
            expect("w_skip (its number of rows)", d_out, rows)?;
            expect("w_skip", d_in, columns)?;
        }
        if self.activation.is_pursuit() {
            let bad = |what: &str| {
                let problem = format!("a pursuit takes apart what the atoms add up to, and this dictionary {what}");
                Err(Error::config("activation", problem, "use relu, top_k or threshold, which have an encoder"))
            };
            if d_in != d_out {
                return bad("reads another width than it writes");
            }
            if self.skip.is_some() {
                return bad("has a linear path beside the codes");
            }
        }
        self.activation.check(d_sae)
    }

    /// The same atoms with another inference rule.
    ///
    /// # Errors
    /// A rule that does not fit: k out of range, a pursuit where input and output differ.
    pub fn with_activation(mut self, activation: Activation) -> Result<Self> {
        self.activation = activation;
        self.prepared = OnceLock::new();
        self.check()?;
        match self.elsewhere.take() {
            Some(there) => self.on(there.device()),
            None => Ok(self),
        }
    }

    /// After weights were replaced that a pursuit had prepared for.
    fn forget(&mut self) {
        self.prepared = OnceLock::new();
    }

    /// Made at the first use, and again at each use when atoms or rule were replaced since.
    fn prepared(&self) -> Result<Option<Arc<Prepared>>> {
        let id = self.coder.w_dec.id();
        if let Some((_, _, prepared)) = self.prepared.get().filter(|(of, rule, _)| *of == id && *rule == self.activation) {
            return Ok(Some(prepared.clone()));
        }
        let made = self.activation.prepare(&self.coder)?;
        if let Some(made) = &made {
            // Somebody else's is as good, and an older one stays: it is not looked at.
            self.prepared.get_or_init(|| (id, self.activation.clone(), made.clone()));
        }
        Ok(made)
    }

    /// Number of latents.
    pub fn d_sae(&self) -> usize {
        self.coder.w_enc.dims()[0]
    }

    /// Width of what it reads.
    pub fn d_in(&self) -> usize {
        self.coder.w_enc.dims()[1]
    }

    /// Width of what it writes.
    pub fn d_out(&self) -> usize {
        self.coder.w_dec.dims()[1]
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        self.coder.w_enc.device()
    }

    /// Before a norm per row.
    fn transformed(&self, x: &Tensor) -> Result<Tensor> {
        let (_, d) = x.dims2()?;
        if d != self.d_in() {
            return Err(Error::Width {
                what: "the input".into(),
                expected: self.d_in(),
                got: d,
                help: format!(
                    "this dictionary reads {}",
                    if self.provenance.hook.is_empty() { "another width" } else { &self.provenance.hook }
                ),
            });
        }
        let x = x.to_dtype(DType::F32)?.contiguous()?;
        match &self.input_transform {
            None => Ok(x),
            Some(t) => Ok((x.broadcast_sub(&t.shift)? * t.scale)?),
        }
    }

    /// Codes of activations `x` `[n, d_in]`.
    ///
    /// # Errors
    /// Another width.
    pub fn encode(&self, x: &Tensor) -> Result<Codes> {
        if let Some(there) = &self.elsewhere {
            return there.encode(&x.to_device(there.device())?);
        }
        let u = self.transformed(x)?;
        let u = match self.row_norm {
            None => u,
            Some(norm) => norm.apply(&u)?.u,
        };
        let u = if self.centred || self.activation.is_pursuit() { u.broadcast_sub(&self.coder.b_dec)? } else { u };
        let prepared = self.prepared()?;
        let codes = self.activation.codes(&u, self, prepared.as_deref())?;
        Ok(match self.softcap {
            None => codes,
            Some(c) => codes.mapped(|_, z| c * (z / c).tanh()),
        })
    }

    /// Reconstruction of codes, `[n, d_out]`, f32. With a skip path or a norm per row, `x` must be given.
    ///
    /// # Errors
    /// Codes of another dictionary; a skip path or a norm per row without `x`.
    pub fn decode(&self, codes: &Codes, x: Option<&Tensor>) -> Result<Tensor> {
        if let Some(there) = &self.elsewhere {
            let moved = x.map(|x| x.to_device(there.device())).transpose()?;
            return Ok(there.decode(codes, moved.as_ref())?.to_device(x.map_or(&Device::Cpu, Tensor::device))?);
        }
        let mut y = kernels::decode_codes(codes, &self.coder.w_dec, Some(&self.coder.b_dec))?;
        if let Some(skip) = &self.skip {
            let x = x.ok_or_else(|| Error::request("a dictionary with a skip path decodes from codes and input", "pass the input too"))?;
            y = (y + self.transformed(x)?.matmul(&skip.t()?)?)?;
        }
        if let Some(norm) = self.row_norm {
            let x =
                x.ok_or_else(|| Error::request("a dictionary that norms its rows decodes from codes and input", "pass the input too"))?;
            let normed = norm.apply(&self.transformed(x)?)?;
            y = y.broadcast_mul(&normed.scale)?.broadcast_add(&normed.shift)?;
        }
        match &self.input_transform {
            None => Ok(y),
            Some(t) => Ok((y * (1.0 / t.scale))?.broadcast_add(&t.shift)?),
        }
    }

    /// What codes add to a reconstruction, `[n, d_out]`, f32: the decoder's linear part, through the norm per row of `x` and the input
    /// transform's scale. So `decode(a, x) - decode(b, x)` without the rounding; values may be negative.
    ///
    /// # Errors
    /// Codes of another dictionary; a norm per row without `x`.
    pub fn contribution(&self, codes: &Codes, x: Option<&Tensor>) -> Result<Tensor> {
        if let Some(there) = &self.elsewhere {
            let moved = x.map(|x| x.to_device(there.device())).transpose()?;
            return Ok(there.contribution(codes, moved.as_ref())?.to_device(x.map_or(&Device::Cpu, Tensor::device))?);
        }
        let mut y = kernels::decode_codes(codes, &self.coder.w_dec, None)?;
        if let Some(norm) = self.row_norm {
            let x =
                x.ok_or_else(|| Error::request("a dictionary that norms its rows decodes from codes and input", "pass the input too"))?;
            y = y.broadcast_mul(&norm.apply(&self.transformed(x)?)?.scale)?;
        }
        match &self.input_transform {
            None => Ok(y),
            Some(t) => Ok((y * (1.0 / t.scale))?),
        }
    }

    /// Codes and reconstruction of `x` in one go.
    ///
    /// # Errors
    /// Another width.
    pub fn reconstruct(&self, x: &Tensor) -> Result<(Codes, Tensor)> {
        let codes = self.encode(x)?;
        let xhat = self.decode(&codes, Some(x))?;
        Ok((codes, xhat))
    }

    /// The dictionary of the first `m` latents: what a Matryoshka SAE trained them to be.
    ///
    /// # Errors
    /// No latent, or more than there are; a k that does not fit.
    pub fn prefix(&self, m: usize) -> Result<Self> {
        if m == 0 || m > self.d_sae() {
            return Err(Error::request(
                format!("a prefix of {m} of {} latents", self.d_sae()),
                "choose one of the prefixes it was trained with",
            ));
        }
        let first = |t: &Tensor| -> Result<Tensor> { Ok(t.narrow(0, 0, m)?.contiguous()?) };
        let c = &self.coder;
        let coder = Coder { w_enc: first(&c.w_enc)?, b_enc: first(&c.b_enc)?, w_dec: first(&c.w_dec)?, b_dec: c.b_dec.clone() };
        let prefix = Self {
            coder,
            selection_scale: self.selection_scale.as_ref().map(first).transpose()?,
            thresholds: self.thresholds.as_ref().map(first).transpose()?,
            magnitude: self.magnitude.as_ref().map(|(a, b)| -> Result<_> { Ok((first(a)?, first(b)?)) }).transpose()?,
            prepared: OnceLock::new(),
            elsewhere: None,
            ..self.clone()
        };
        prefix.check()?;
        match &self.elsewhere {
            Some(there) => prefix.on(there.device()),
            None => Ok(prefix),
        }
    }

    /// The same pursuit ended after `steps` steps; what it prepared of the atoms is shared, so several cost no memory.
    ///
    /// # Errors
    /// A rule that is no pursuit; no step.
    pub fn shorter(&self, steps: usize) -> Result<Self> {
        let activation = self.activation.with_steps(steps).ok_or_else(|| {
            let problem = format!("a dictionary with the activation {:?} takes no steps", self.activation);
            Error::request(problem, "use one that pursues (mp:K or omp:K)")
        })?;
        let prepared = OnceLock::new();
        let elsewhere = match &self.elsewhere {
            Some(there) => Some(Arc::new(there.shorter(steps)?)),
            None => {
                if let Some(made) = self.prepared()? {
                    prepared.get_or_init(|| (self.coder.w_dec.id(), activation.clone(), made));
                }
                None
            }
        };
        let shorter = Self { activation, prepared, elsewhere, ..self.clone() };
        shorter.check()?;
        Ok(shorter)
    }

    /// Numbers of steps worth a look of a pursuit of k: 1, 2, 3, 4, 6, 8, 12, 16, ... and k. Empty for other rules.
    pub fn step_counts(&self) -> Vec<usize> {
        let Some(k) = self.activation.steps() else { return Vec::new() };
        let below = [1, 2, 3].into_iter().chain((2..usize::BITS - 2).flat_map(|e| [1 << e, 3 << (e - 1)]));
        below.take_while(|&s| s < k).chain([k]).collect()
    }

    /// Widths below `d_sae` whose first latents were trained to be a dictionary of their own ([`Dictionary::prefix`]), narrowest first.
    pub fn prefixes(&self) -> Vec<usize> {
        let widths = self.provenance.notes.get("prefixes").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
        let widths = widths.iter().filter_map(|m| usize::try_from(m.as_u64()?).ok());
        widths.filter(|m| (1..self.d_sae()).contains(m)).collect()
    }

    /// Are encoder and decoder the very tensors of `other`?
    pub(crate) fn shares_weights(&self, other: &Self) -> bool {
        self.coder.w_dec.id() == other.coder.w_dec.id() && self.coder.w_enc.id() == other.coder.w_enc.id()
    }

    /// The atoms, `[d_sae, d_out]`, f32, for analysis with ndarray.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn atoms(&self) -> Result<Array2<f32>> {
        let values = self.coder.w_dec.flatten_all()?.to_vec1::<f32>()?;
        Ok(Array2::from_shape_vec((self.d_sae(), self.d_out()), values).expect("a tensor has as many values as its shape says"))
    }

    /// Norm of each atom, `[d_sae]`.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn atom_norms(&self) -> Result<Vec<f32>> {
        Ok(self.coder.w_dec.sqr()?.sum(1)?.sqrt()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests;
